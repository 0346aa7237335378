//! What a worker leaves for the one that takes over.

use crate::durable;
use crate::owner::Plugging;
use crate::processors::ProcessorOrder;
use crate::run_dir::RunDir;
use backstay_model::DriveSlot;
use backstay_qemu::process::{self, AdoptError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;

/// `instance.json`, written before QEMU is started and again whenever it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Milliseconds since the Unix epoch when QEMU was started.
    pub started_unix_ms: i64,
    /// `10.0.2`.
    pub qemu_version: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Why that one.
    pub accelerator_reason: String,
    /// The guest has executed: the memory state that the launch record names is behind it and must not be loaded again,
    /// because its disks have moved on.
    pub ran: bool,
    /// The user wants it paused: a stopped guest stays stopped when it is taken over, any other is continued.
    #[serde(default)]
    pub paused: bool,
    /// Starts by the recovery action, milliseconds since the Unix epoch, oldest first.
    #[serde(default)]
    pub recoveries: Vec<u64>,
    /// What the processors get, where it has changed since the launch.
    #[serde(default)]
    pub processors: Option<ProcessorOrder>,
    /// The guest stands still because a volume is nearly full.
    #[serde(default)]
    pub low_space: bool,
    /// A disk that is being attached or detached.
    #[serde(default)]
    pub plugging: Option<Plugging>,
    /// Places of disks that were detached since the launch and are empty.
    #[serde(default)]
    pub removed: BTreeSet<DriveSlot>,
}

/// Reads the record.
///
/// # Errors
/// As the file system; `InvalidData` for a damaged record.
pub fn read(run: &RunDir) -> io::Result<Option<Instance>> {
    durable::read_json(&run.instance())
}

/// Writes the record.
///
/// # Errors
/// As the file system.
pub fn write(run: &RunDir, instance: &Instance) -> io::Result<()> {
    durable::replace_json(&run.instance(), instance)
}

/// Process number of this folder's QEMU if it lives.
///
/// # Errors
/// When that cannot be told.
pub fn living(run: &RunDir) -> Result<Option<u32>, AdoptError> {
    process::adopt(run).map(|qemu| qemu.map(|q| q.pid()))
}

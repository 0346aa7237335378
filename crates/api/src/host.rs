//! The host.

use crate::schema;
use backstay_model::{VmId, VmState};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use utoipa::ToSchema;

/// What this host is and can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Host name.
    pub name: String,
    /// Version of Backstay.
    pub version: String,
    /// The daemon's process.
    pub daemon_pid: u32,
    /// When the daemon was started.
    #[schema(value_type = schema::Timestamp)]
    pub daemon_started: Timestamp,
    /// QEMU's executable.
    #[schema(value_type = String)]
    pub qemu: PathBuf,
    /// Its version, or none when it does not run; `qemu_reason` says why.
    pub qemu_version: Option<String>,
    /// Why QEMU's version is not known.
    #[serde(default)]
    pub qemu_reason: Option<String>,
    /// `kvm` or `tcg`: what `accel=auto` gives.
    pub accelerator: String,
    /// Why.
    pub accelerator_reason: String,
    /// Whether checkpoints of running machines can pause them for milliseconds only.
    pub background_snapshot: bool,
    /// Why, or why not.
    pub background_snapshot_reason: String,
    /// QEMU sees only its programs, its devices and its machine's run folder.
    #[serde(default)]
    pub sandbox: bool,
    /// Why (not).
    #[serde(default)]
    pub sandbox_reason: String,
    /// Whether errors of disks and file systems that the kernel reports become events.
    #[serde(default)]
    pub kernel_log: String,
    /// What the disks tell of themselves (SMART), or why that is not known.
    #[serde(default)]
    pub disk_health: String,
    /// Processors of the host.
    pub cpus: u32,
    /// Memory of the host in bytes.
    pub memory_bytes: u64,
    /// Memory that could be given to machines now, in bytes.
    pub memory_available_bytes: u64,
    /// Memory of the machines that are on, in bytes.
    pub memory_assigned_bytes: u64,
    /// Where configurations, disks and checkpoints are kept.
    #[schema(value_type = String)]
    pub state_dir: PathBuf,
    /// Where sockets are.
    #[schema(value_type = String)]
    pub run_dir: PathBuf,
    /// Free bytes on the file system of `state_dir`.
    pub state_dir_free_bytes: u64,
    /// Machines by what they do: total number.
    pub vms: u32,
    /// Machines that are on.
    pub vms_active: u32,
    /// What is promised to machines and what is left.
    #[serde(default)]
    pub capacity: HostCapacity,
    /// What deserves attention.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What the daemon logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLevel {
    /// `error`, `warn`, `info`, `debug`, `trace`, or one for each part: `info,backstay_daemon::workers=debug`.
    pub level: String,
}

/// What this host has promised to its machines and what is left for more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct HostCapacity {
    /// Logical processors that count.
    pub processors: u32,
    /// Cores kept for the host itself.
    pub cores_kept: f64,
    /// Cores promised to machines: the sum of their reserves.
    pub cores_promised: f64,
    /// Cores that can still be promised.
    pub cores_left: f64,
    /// Memory that counts, in bytes.
    pub memory_bytes: u64,
    /// Memory that could be used now without swapping, in bytes.
    pub memory_available_bytes: u64,
    /// What makes the memory smaller than the host's: a control group or a setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limited_by: Option<String>,
    /// Memory kept for the host itself, in bytes.
    pub memory_kept_bytes: u64,
    /// Memory that the machines that are on may use in all, with what is around their guests, in bytes.
    pub memory_promised_bytes: u64,
    /// The part of it that they have not used yet, in bytes.
    pub memory_outstanding_bytes: u64,
    /// Memory that can still be promised, in bytes: available less outstanding less kept.
    pub memory_left_bytes: u64,
    /// Whether limits and weights of processors act.
    pub processor_control: bool,
    /// How, or why not.
    pub processor_control_reason: String,
    /// Who has been promised what.
    pub promises: Vec<HostPromise>,
}

/// What one machine has been promised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostPromise {
    /// The machine.
    #[schema(value_type = Uuid)]
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// What it does.
    #[schema(value_type = schema::VmState)]
    pub state: VmState,
    /// Its reserve in cores.
    pub cores: f64,
    /// Memory that it may use, with what is around the guest, in bytes.
    pub memory_bytes: u64,
    /// What its processes have made their own of it, in bytes.
    pub memory_used_bytes: u64,
}

/// How all machines are stopped with their host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostStopGuests {
    /// Seconds that a guest may take to shut down before it is saved instead; 120 unless given.
    #[serde(default)]
    pub shutdown_timeout_s: Option<u32>,
    /// Machines of one start order that are stopped at the same time; 4 unless given.
    #[serde(default)]
    pub parallel: Option<u32>,
}

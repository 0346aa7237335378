//! Processor limits and weights in the host's kernel: control groups, by one of three ways.
//!
//! ```text
//!  backstay-vms/            all machines: weighs as ten ordinary groups
//!    <GUID>/                weight of the machine against the others
//!      vcpu/                limit: only the threads of its virtual processors are in it
//! ```
//! A thread that has used up its quota stands still, whatever it holds. QEMU's own threads must never be among them: they
//! carry the control socket and every disk request.
//!
//! | way | machine's group | weight acts on |
//! |---|---|---|
//! | systemd | scope `backstay-vm-<GUID>.scope` with `Delegate=yes`, in `backstay.slice` | all of QEMU and the worker |
//! | cgroup v2 | folder, `vcpu` is threaded | all of QEMU |
//! | cgroup v1 | folder | the virtual processors |

mod control;
mod folder;
#[cfg(test)]
mod kernel;
mod probe;
mod systemd;
mod v1;
mod v2;

pub(crate) use control::Control;
pub use folder::{Folders, HostFolders};
pub use probe::{HostTree, NoControl, Tree, Way, probe};
pub use systemd::BusError;

use backstay_model::{CpuControl, CpuShare, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// What the group of all machines weighs, where an ordinary one weighs 100.
const ALL_WEIGHT: u32 = 1000;

/// The group below a machine's for its virtual processors.
const VCPU: &str = "vcpu";

/// Which way is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlPolicy {
    /// The first that works: systemd, cgroup v2, cgroup v1.
    #[default]
    Auto,
    /// Units of systemd.
    Systemd,
    /// Folders of cgroup v2.
    Cgroup2,
    /// Folders of cgroup v1.
    Cgroup1,
    /// None: limits and weights do not act.
    None,
}

/// How processors are controlled on this host; part of the launch record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessorSettings {
    /// Which way.
    #[serde(default)]
    pub policy: ControlPolicy,
    /// Name of the group that all machines are in (without systemd).
    #[serde(default = "default_group")]
    pub group: String,
}

fn default_group() -> String {
    "backstay-vms".into()
}

impl Default for ProcessorSettings {
    fn default() -> Self {
        Self { policy: ControlPolicy::Auto, group: default_group() }
    }
}

/// What a machine's processors get now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessorOrder {
    /// The settings.
    pub control: CpuControl,
    /// The weight that follows from the reserves of all machines, 1 to 10,000; the machine's own where nobody has told.
    #[serde(default)]
    pub weight: Option<u32>,
}

impl ProcessorOrder {
    /// What the kernel is told.
    #[must_use]
    pub fn share(&self) -> CpuShare {
        let share = self.control.share();
        CpuShare { weight: self.weight.map_or(share.weight, |weight| weight.clamp(1, 10_000)), ..share }
    }
}

/// Processes and threads of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Threads {
    /// QEMU's process.
    pub qemu: u32,
    /// Threads of the virtual processors; one for all where QEMU runs them in turn.
    pub vcpus: BTreeSet<u32>,
}

/// A control group that could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A file or folder of the kernel's tree.
    #[error("{what} {path} failed")]
    File {
        /// The step.
        what: String,
        /// Its object.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// systemd.
    #[error("systemd did not {what} {unit}")]
    Systemd {
        /// The step.
        what: &'static str,
        /// Its object.
        unit: String,
        /// Its answer.
        #[source]
        source: BusError,
    },
}

impl ControlError {
    /// A thread or process was gone before it could be moved.
    fn is_gone(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()))
    }
}

/// One way of controlling the processors of one machine. Calls block for a moment.
pub trait Driver: Debug + Send + Sync {
    /// Puts the threads where they belong and sets what they get. Whatever is so already stays untouched.
    ///
    /// # Errors
    /// [`ControlError`]; parts may have been done.
    fn apply(&self, threads: &Threads, share: &CpuShare) -> Result<(), ControlError>;

    /// Removes the machine's groups once its processes are over.
    ///
    /// # Errors
    /// [`ControlError`], for example while a process is still in it.
    fn remove(&self) -> Result<(), ControlError>;

    /// Where, for people.
    fn place(&self) -> String;
}

/// The driver for one machine.
#[must_use]
pub fn driver(way: &Way, settings: &ProcessorSettings, vm: VmId) -> Box<dyn Driver> {
    let folders: Arc<dyn Folders> = Arc::new(HostFolders);
    match way {
        Way::Cgroup1 { root } => {
            Box::new(v1::Files::new(folders, root.join(&settings.group), &vm.to_string()))
        }
        Way::Cgroup2 { root } => Box::new(v2::Files::new(folders, root, &settings.group, &vm.to_string())),
        Way::Systemd { tree } => Box::new(systemd::Scope::new(folders, tree.clone(), vm)),
    }
}

/// Removes what a machine left whose worker could not do it. Blocks for a moment.
pub fn tidy(settings: &ProcessorSettings, vm: VmId) {
    let Ok(way) = probe(settings, &HostTree::here(), &HostFolders) else { return };
    if let Err(error) = driver(&way, settings, vm).remove() {
        tracing::warn!(%vm, error = crate::report::chain_of(&error), "a control group stays");
    }
}

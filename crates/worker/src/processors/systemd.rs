//! A scope of systemd around QEMU and its worker.
//!
//! systemd owns the tree; with `Delegate=yes` what is below the scope is ours. The weight is the scope's property, so that
//! systemd does not undo it. The limit is no property of the scope, because that would hold for QEMU's own threads too.

use super::{ControlError, Driver, Folders, Threads, Tree, v1, v2};
use backstay_model::{CpuShare, VmId};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use zbus::export::ordered_stream::OrderedStreamExt;
use zbus::{Connection, OwnedObjectPath, Proxy, Variant};

const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const SLICE: &str = "backstay.slice";

/// How long systemd may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What systemd or the bus answered.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The bus, or a refusal.
    #[error("D-Bus")]
    Bus(#[source] zbus::Error),
    /// The job did not succeed.
    #[error("its job ended with '{0}'")]
    Job(String),
    /// It does not answer.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Timeout,
    /// Called where no runtime is.
    #[error("there is no runtime to wait in")]
    NoRuntime,
}

impl From<zbus::Error> for BusError {
    fn from(error: zbus::Error) -> Self {
        Self::Bus(error)
    }
}

/// The scope of one machine.
#[derive(Debug)]
pub(super) struct Scope {
    folders: Arc<dyn Folders>,
    tree: Tree,
    vm: VmId,
    bus: Bus,
}

/// Where systemd listens.
#[derive(Clone, Debug)]
enum Bus {
    /// The host's.
    System,
    /// One that a test made.
    #[cfg(test)]
    At(String),
}

impl Bus {
    async fn connect(&self) -> zbus::Result<Connection> {
        match self {
            Self::System => Connection::system().await,
            #[cfg(test)]
            Self::At(address) => zbus::connection::Builder::address(address.as_str()).build().await,
        }
    }
}

impl Scope {
    pub(super) fn new(folders: Arc<dyn Folders>, tree: Tree, vm: VmId) -> Self {
        Self { folders, tree, vm, bus: Bus::System }
    }

    fn unit(&self) -> String {
        format!("backstay-vm-{}.scope", self.vm)
    }

    fn folder(&self, control_group: &str) -> PathBuf {
        let (Tree::V1(root) | Tree::V2(root)) = &self.tree;
        root.join(control_group.trim_start_matches('/'))
    }

    /// Makes the scope, or brings the one that is there up to date. Returns its control group.
    async fn ensure(&self, processes: &[u32], weight: u32) -> Result<String, BusError> {
        let unit = self.unit();
        let unit = unit.as_str();
        let bus = self.bus.connect().await?;
        let manager = Proxy::new(&bus, SERVICE, "/org/freedesktop/systemd1", MANAGER).await?;
        let found: zbus::Result<OwnedObjectPath> = manager.call("GetUnit", &(unit,)).await;
        match found {
            Ok(path) => {
                let group = control_group(&bus, &path).await?;
                let changed = vec![("CPUWeight", Variant::from(u64::from(weight)))];
                let _: () = manager.call("SetUnitProperties", &(unit, true, changed)).await?;
                let strangers: Vec<u32> =
                    processes.iter().copied().filter(|pid| !is_in(*pid, &group)).collect();
                if !strangers.is_empty() {
                    let _: () = manager.call("AttachProcessesToUnit", &(unit, "", strangers)).await?;
                }
                Ok(group)
            }
            Err(zbus::Error::MethodError(name, ..))
                if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit" =>
            {
                start(&manager, unit, properties(self.vm, processes, weight)).await?;
                let path: OwnedObjectPath = manager.call("GetUnit", &(unit,)).await?;
                control_group(&bus, &path).await
            }
            Err(error) => Err(error.into()),
        }
    }

    fn wait<T>(
        &self,
        what: &'static str,
        work: impl Future<Output = Result<T, BusError>>,
    ) -> Result<T, ControlError> {
        let answer = match Handle::try_current() {
            Ok(runtime) => runtime.block_on(async {
                tokio::time::timeout(PATIENCE, work).await.unwrap_or(Err(BusError::Timeout))
            }),
            Err(_) => Err(BusError::NoRuntime),
        };
        answer.map_err(|source| ControlError::Systemd { what, unit: self.unit(), source })
    }
}

impl Driver for Scope {
    fn apply(&self, threads: &Threads, share: &CpuShare) -> Result<(), ControlError> {
        let processes = [std::process::id(), threads.qemu];
        let group = self.wait("make", self.ensure(&processes, share.weight))?;
        let machine = self.folder(&group);
        let folders = self.folders.as_ref();
        match self.tree {
            Tree::V1(_) => v1::confine(folders, &machine, threads, share),
            Tree::V2(_) => v2::confine(folders, &machine, threads, share),
        }
    }

    /// systemd removes the scope, with what is below it, when its last process has ended: the worker itself.
    fn remove(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn place(&self) -> String {
        format!("systemd, {}", self.unit())
    }
}

/// Properties of a new scope.
fn properties<'a>(vm: VmId, processes: &[u32], weight: u32) -> Vec<(&'static str, Variant<'a>)> {
    vec![
        ("Description", Variant::from(format!("Backstay virtual machine {vm}"))),
        ("Slice", Variant::from(SLICE)),
        ("Delegate", Variant::from(true)),
        ("CPUWeight", Variant::from(u64::from(weight))),
        ("PIDs", Variant::from(processes.to_vec())),
        ("CollectMode", Variant::from("inactive-or-failed")),
        // The order of ends is the reverse: a host that shuts down stops the daemon first, which takes care of the guests.
        // Both are named: without a daemon there is nothing that orders the second one after the first.
        ("Before", Variant::from(vec!["backstay.service", "backstay-guests.service"])),
    ]
}

async fn start(
    manager: &Proxy<'_>,
    unit: &str,
    properties: Vec<(&'static str, Variant<'_>)>,
) -> Result<(), BusError> {
    let _: () = manager.call("Subscribe", &()).await?;
    // Before the call: the job may be over before its answer is read.
    let mut ended = manager.receive_signal("JobRemoved").await?;
    let none: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
    let job: OwnedObjectPath = manager.call("StartTransientUnit", &(unit, "fail", properties, none)).await?;
    while let Some(signal) = ended.next().await {
        let body = signal.body();
        let (_, path, _, result): (u32, OwnedObjectPath, String, String) = body.deserialize()?;
        if path == job {
            return if result == "done" { Ok(()) } else { Err(BusError::Job(result)) };
        }
    }
    Err(BusError::Job("the connection was lost".into()))
}

async fn control_group(bus: &Connection, unit: &OwnedObjectPath) -> Result<String, BusError> {
    let scope = Proxy::new(bus, SERVICE, unit, "org.freedesktop.systemd1.Scope").await?;
    Ok(scope.get_property("ControlGroup").await?)
}

/// Whether a process is in a control group or below it, in any hierarchy.
fn is_in(process: u32, group: &str) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .any(|path| path.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

#[cfg(test)]
mod tests;

//! Disks on SCSI that come and go while the guest runs: one at a time, in a task of its own.
//!
//! What is about to happen is in [`Plugging`] before anything else knows of it, so that a worker that takes over in the middle asks
//! QEMU how far it came: a disk that the guest has stays, one that it has not goes.

use super::{Owner, ReplyTo, refuse};
use crate::control::{Reply, WorkerError, WorkerErrorCode, WorkerEvent};
use crate::disks::{DiskSet, DisksError};
use crate::report::chain_of;
use backstay_disk::Backend as _;
use backstay_model::{DriveMedia, DriveSlot, DriveSpec, VmState};
use backstay_qemu::argv::{Plug, device_id, format_node, plug, protocol_node};
use backstay_qemu::qmp::{Qmp, QmpError, QmpEvent};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;

/// How long a guest may take to let go of a disk.
const LET_GO: Duration = Duration::from_secs(15);

/// A disk that is being attached or detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugging {
    /// Where.
    pub slot: DriveSlot,
    /// It comes; else it goes.
    pub comes: bool,
}

/// Why a disk did not come or go. Nothing is changed then.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlugError {
    #[error(transparent)]
    Disks(DisksError),
    #[error("QEMU does not take the disk at {slot}")]
    Refused {
        slot: DriveSlot,
        #[source]
        source: QmpError,
    },
    #[error("QEMU does not give the disk at {slot} back")]
    Kept {
        slot: DriveSlot,
        #[source]
        source: QmpError,
    },
    #[error(
        "the guest has not let go of the disk at {slot} within {} s, and keeps it: does it run, and has it a driver for the \
         controller? Try again, or turn the machine off",
        LET_GO.as_secs()
    )]
    NotLetGo { slot: DriveSlot },
    #[error("the worker failed: {0}")]
    Failed(JoinError),
}

/// What is worth telling of a disk that came or went.
pub(super) type PlugEnd = Result<Vec<String>, PlugError>;

/// A disk on its way.
pub(super) struct ActivePlug {
    plugging: Plugging,
    pub(super) task: JoinHandle<PlugEnd>,
    reply: Option<ReplyTo>,
}

pub(super) fn ended(end: Result<PlugEnd, JoinError>) -> PlugEnd {
    end.unwrap_or_else(|panic| Err(PlugError::Failed(panic)))
}

impl Owner {
    pub(super) fn add_disk(&mut self, drive: DriveSpec, reply: ReplyTo) {
        let slot = drive.slot;
        let planned = plug(&drive, &self.run).ok_or_else(|| only_scsi(slot));
        let ready = planned.and_then(|plug| Ok((plug, self.may_plug()?)));
        let (plug, qmp) = match ready {
            Ok(ready) => ready,
            Err(why) => return drop(reply.send(refuse(why))),
        };
        let spec = &self.record.spec;
        if spec.drive(slot).is_some() {
            return drop(
                reply.send(refuse(format!("there is a drive at {slot} already: a place takes one"))),
            );
        }
        if !slot.scsi_controller().is_some_and(|c| spec.all_scsi_controllers().contains(&c)) {
            return drop(reply.send(refuse(format!("the guest has no SCSI controller for {slot}"))));
        }
        let vacated = self.disks.vacate(slot).map_err(|error| error.to_string());
        let noted = vacated.and_then(|()| {
            self.note(|instance| {
                instance.plugging = Some(Plugging { slot, comes: true });
                instance.removed.remove(&slot);
            })
        });
        if let Err(why) = noted.and_then(|()| self.change_spec(|spec| spec.attach(drive.clone()))) {
            self.forget_plugging();
            return drop(reply.send(refuse(why)));
        }
        let disks = Arc::clone(&self.disks);
        let task = tokio::spawn(come(qmp, disks, drive, plug));
        self.plug = Some(ActivePlug { plugging: Plugging { slot, comes: true }, task, reply: Some(reply) });
    }

    pub(super) fn remove_disk(&mut self, slot: DriveSlot, reply: ReplyTo) {
        let qmp = match self.may_remove(slot) {
            Ok(qmp) => qmp,
            Err(why) => return drop(reply.send(refuse(why))),
        };
        if let Err(why) = self.note(|instance| instance.plugging = Some(Plugging { slot, comes: false })) {
            return drop(reply.send(refuse(why)));
        }
        let task = tokio::spawn(go(qmp, Arc::clone(&self.disks), slot));
        self.plug = Some(ActivePlug { plugging: Plugging { slot, comes: false }, task, reply: Some(reply) });
    }

    fn may_remove(&self, slot: DriveSlot) -> Result<Qmp, String> {
        let drive = self.record.spec.drive(slot).ok_or_else(|| format!("there is no drive at {slot}"))?;
        if slot.scsi_controller().is_none() || !matches!(drive.media, DriveMedia::Disk(_)) {
            return Err(only_scsi(slot));
        }
        if self.merges(slot) {
            return Err(format!("files of the disk at {slot} are being merged: try again in a moment"));
        }
        if self.compacts(slot) {
            return Err(format!("the disk at {slot} is being compacted: try again when that is done"));
        }
        self.may_plug()
    }

    /// The guest runs, and nothing else is at work on its devices.
    fn may_plug(&self) -> Result<Qmp, String> {
        let name = &self.record.spec.name;
        if self.state != VmState::Running {
            return Err(format!(
                "'{name}' is {}: disks come and go while it is running, or while it is off",
                self.state
            ));
        }
        if self.job.is_some() || self.asking.is_some() {
            return Err(format!("a checkpoint of '{name}' is being written: try again when it is complete"));
        }
        if self.is_moving() {
            return Err(format!("a disk of '{name}' is being moved: try again when that is done"));
        }
        if let Some(active) = &self.plug {
            return Err(format!("the disk at {} is on its way: try again in a moment", active.plugging.slot));
        }
        self.qmp().ok_or_else(|| format!("'{name}' has no QEMU now: try again in a moment"))
    }

    /// Whether a disk is on its way, for those who need the devices as they are.
    pub(super) fn is_plugging(&self) -> bool {
        self.plug.is_some()
    }

    pub(super) fn plugged(&mut self, end: PlugEnd) {
        let Some(ActivePlug { plugging: Plugging { slot, comes }, reply, .. }) = self.plug.take() else {
            return;
        };
        let answer = match end {
            Ok(warnings) => {
                for message in warnings {
                    self.tell(WorkerEvent::Warning { message });
                }
                if !comes {
                    self.has_gone(slot);
                }
                Ok(Reply::Done)
            }
            Err(error) => {
                tracing::warn!(%slot, comes, error = chain_of(&error), "a disk did not come or go");
                if comes {
                    self.never_came(slot);
                }
                let code = WorkerErrorCode::Precondition;
                Err(WorkerError { code, message: chain_of(&error) })
            }
        };
        self.forget_plugging();
        if let Some(reply) = reply {
            let _ = reply.send(answer);
        }
    }

    /// No QEMU has it, and no worker opens it again.
    fn has_gone(&mut self, slot: DriveSlot) {
        let kept = self.change_spec(|spec| _ = spec.detach(slot));
        let noted = self.note(|instance| _ = instance.removed.insert(slot));
        if let Err(why) = kept.and(noted) {
            // The next worker opens it again, and QEMU gets it back with its next start.
            tracing::error!(%slot, why, "it is not written down that a disk has gone");
        }
        if let Err(error) = self.disks.vacate(slot) {
            tracing::warn!(%slot, %error, "what is written down of a disk that has gone stays");
        }
    }

    fn never_came(&mut self, slot: DriveSlot) {
        if let Err(why) = self.change_spec(|spec| _ = spec.detach(slot)) {
            tracing::error!(%slot, why, "a disk that did not come stays written down");
        }
    }

    fn forget_plugging(&mut self) {
        if let Err(why) = self.note(|instance| instance.plugging = None) {
            // The next worker looks, and finds that nothing is to be done.
            tracing::warn!(why, "a disk that came or went is still written down as being on its way");
        }
    }

    /// A former worker died while a disk was on its way: asks QEMU how far it came.
    pub(super) async fn settle_plug(&mut self, qmp: &Qmp) {
        let Some(Plugging { slot, comes }) = self.instance.plugging else { return };
        match qmp.has_drive(&device_id(slot)).await {
            Ok(true) => tracing::info!(%slot, comes, "the guest has the disk"),
            Ok(false) => {
                tracing::info!(%slot, comes, "the guest does not have the disk");
                remove_nodes(qmp, slot).await;
                let disks = Arc::clone(&self.disks);
                let trouble =
                    tokio::task::spawn_blocking(move || disks.detach(slot)).await.unwrap_or_default();
                if let Some(message) = trouble {
                    self.tell(WorkerEvent::Warning { message });
                }
                if comes { self.never_came(slot) } else { self.has_gone(slot) }
            }
            // It has ended, and the next one gets all disks.
            Err(error) => tracing::warn!(%slot, error = chain_of(&error), "QEMU does not tell of a disk"),
        }
        self.forget_plugging();
    }

    /// No QEMU lives: the next one gets what is written down.
    pub(super) fn drop_plug(&mut self) {
        if self.instance.plugging.is_some() {
            self.forget_plugging();
        }
    }

    /// QEMU has ended, or is about to: whatever was on its way ends soon.
    pub(super) async fn end_plug(&mut self) {
        let Some(active) = &mut self.plug else { return };
        let end = ended((&mut active.task).await);
        self.plugged(end);
    }

    /// Another worker takes over: it asks QEMU how far it came.
    pub(super) fn leave_plug(&mut self) {
        if let Some(active) = self.plug.take() {
            active.task.abort();
        }
    }

    /// A guest let go of a disk after all.
    pub(super) fn device_deleted(&mut self, event: &QmpEvent) {
        let device = event.data["device"].as_str().unwrap_or_default();
        let Some(slot) = backstay_qemu::argv::slot_of_name(device) else { return };
        let ours = self.record.spec.drive(slot).is_some();
        let (Some(qmp), None, true) = (self.qmp(), &self.plug, ours) else { return };
        self.tell(WorkerEvent::Warning { message: format!("the guest has let go of the disk at {slot}") });
        let (plugging, disks) = (Plugging { slot, comes: false }, Arc::clone(&self.disks));
        let _ = self.note(|instance| instance.plugging = Some(plugging));
        let task = tokio::spawn(async move {
            remove_nodes(&qmp, slot).await;
            close(disks, slot).await
        });
        self.plug = Some(ActivePlug { plugging, task, reply: None });
    }
}

fn only_scsi(slot: DriveSlot) -> String {
    format!("{slot}: only hard disks on SCSI come and go while the guest runs")
}

/// A disk for a guest that runs. What was done is undone if it fails.
async fn come(qmp: Qmp, disks: Arc<DiskSet>, drive: DriveSpec, plug: Plug) -> PlugEnd {
    let slot = drive.slot;
    let set = Arc::clone(&disks);
    let opened = tokio::task::spawn_blocking(move || set.attach(&drive)).await;
    let warnings = opened.map_err(PlugError::Failed)?.map_err(PlugError::Disks)?;
    // Of a disk that was here before and whose end was not clean.
    remove_nodes(&qmp, slot).await;
    let mut plug = plug;
    plug.set_sector_size(disks.disk(slot).map_or(512, |disk| disk.sector_size()));
    let Plug { nodes: [protocol, format], device } = plug;
    let taken = async {
        qmp.blockdev_add(protocol).await?;
        qmp.blockdev_add(format).await?;
        qmp.device_add(device).await
    };
    if let Err(source) = taken.await {
        // One that it took without saying so would lose its server. Its end has to be waited for.
        if let Ok(true) = qmp.has_drive(&device_id(slot)).await {
            let mut events = qmp.events();
            let gone = qmp.device_del(&device_id(slot)).await;
            if gone.is_ok() {
                let _ = timeout(LET_GO, deleted(&mut events, slot)).await;
            }
        }
        remove_nodes(&qmp, slot).await;
        let _ = tokio::task::spawn_blocking(move || disks.detach(slot)).await;
        return Err(PlugError::Refused { slot, source });
    }
    Ok(warnings)
}

/// Takes a disk away from a guest that runs.
async fn go(qmp: Qmp, disks: Arc<DiskSet>, slot: DriveSlot) -> PlugEnd {
    let mut events = qmp.events();
    {
        // QEMU waits for the requests that are in flight.
        let _hurry = disks.hurry();
        qmp.device_del(&device_id(slot)).await.map_err(|source| PlugError::Kept { slot, source })?;
        let _ = timeout(LET_GO, deleted(&mut events, slot)).await;
        // The word may have been lost, and QEMU too.
        let there = qmp.has_drive(&device_id(slot)).await;
        if there.map_err(|source| PlugError::Kept { slot, source })? {
            return Err(PlugError::NotLetGo { slot });
        }
    }
    remove_nodes(&qmp, slot).await;
    close(disks, slot).await
}

async fn close(disks: Arc<DiskSet>, slot: DriveSlot) -> PlugEnd {
    let trouble = tokio::task::spawn_blocking(move || disks.detach(slot)).await.map_err(PlugError::Failed)?;
    Ok(trouble.into_iter().collect())
}

/// Returns when QEMU says that the guest has let go of a disk, or says nothing any more.
async fn deleted(events: &mut broadcast::Receiver<QmpEvent>, slot: DriveSlot) {
    use broadcast::error::RecvError;
    loop {
        match events.recv().await {
            Ok(event) if event.name == "DEVICE_DELETED" && event.data["device"] == device_id(slot) => return,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// Removes a disk's nodes. Those that are not there are as good as removed.
async fn remove_nodes(qmp: &Qmp, slot: DriveSlot) {
    for node in [format_node(slot), protocol_node(slot)] {
        match qmp.blockdev_del(&node).await {
            Ok(()) | Err(QmpError::Disconnected { .. }) => {}
            Err(error) => tracing::debug!(%slot, node, error = chain_of(&error), "a node was not removed"),
        }
    }
}

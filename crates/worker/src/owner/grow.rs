//! A disk that becomes larger while the guest runs.

use super::{Owner, ReplyTo, fail, refuse};
use crate::control::{Reply, WorkerError, WorkerErrorCode};
use crate::disks::DiskSet;
use crate::report::chain_of;
use backstay_disk::{Backend, Disk, ResizeError};
use backstay_model::{DriveMedia, DriveSlot};
use backstay_qemu::argv::format_node;
use backstay_qemu::qmp::{Qmp, QmpError};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long QEMU may take to connect anew.
const CONNECTED: Duration = Duration::from_secs(20);
/// Between two attempts.
const SOON: Duration = Duration::from_millis(50);

impl Owner {
    /// The file first, then QEMU, which hands it on to the guest. A worker that takes over in between does the second part.
    pub(super) fn grow_disk(&self, slot: DriveSlot, size: u64, reply: ReplyTo) {
        let disk = match self.disks.disk(slot) {
            Ok(disk) => disk,
            Err(error) => return drop(reply.send(refuse(error.to_string()))),
        };
        if self.job.is_some() || self.asking.is_some() || self.is_plugging() {
            let words =
                "a checkpoint is being written, or a disk attached or detached: try again when that is done";
            return drop(reply.send(refuse(words)));
        }
        let (qmp, disks) = (self.qmp(), Arc::clone(&self.disks));
        tokio::spawn(async move {
            let answer = match grow(disk, size).await {
                Ok(grown) => {
                    let unseen = match qmp {
                        Some(qmp) => tell_guest(&qmp, disks, slot, grown.new).await.err(),
                        None => Some("it does not run now".into()),
                    };
                    let words = || "a guest looks at the size of an IDE disk when it starts".to_owned();
                    let unseen = unseen.or_else(|| matches!(slot, DriveSlot::Ide { .. }).then(words));
                    Ok(Reply::Grown { old: grown.old, new: grown.new, unseen })
                }
                Err(answer) => answer,
            };
            let _ = reply.send(answer);
        });
    }

    /// A former worker died before it had told QEMU. In tasks of their own: the guest goes on meanwhile.
    pub(super) fn settle_sizes(&self, qmp: &Qmp) {
        let slots = self.record.spec.drives.iter().filter(|d| matches!(d.media, DriveMedia::Disk(_)));
        for slot in slots.map(|drive| drive.slot) {
            let (Ok(disk), qmp, disks) = (self.disks.disk(slot), qmp.clone(), Arc::clone(&self.disks)) else {
                continue;
            };
            tokio::spawn(async move {
                let (size, known) = (disk.size(), qmp.node_size(&format_node(slot)).await);
                if matches!(known, Ok(Some(known)) if known < size)
                    && let Err(why) = tell_guest(&qmp, disks, slot, size).await
                {
                    tracing::warn!(%slot, why, "the guest does not know that its disk has grown");
                }
            });
        }
    }
}

async fn grow(disk: Arc<Disk>, size: u64) -> Result<backstay_disk::Grown, super::Answer> {
    match tokio::task::spawn_blocking(move || disk.grow(size)).await {
        Ok(Ok(grown)) => Ok(grown),
        Ok(Err(error @ (ResizeError::Io { .. } | ResizeError::Open { .. }))) => Err(fail(&error)),
        Ok(Err(error)) => Err(refuse(chain_of(&error))),
        Err(panic) => {
            let message = format!("the worker failed: {panic}");
            Err(Err(WorkerError { code: WorkerErrorCode::Failed, message }))
        }
    }
}

/// QEMU learns the size of a disk when it connects: it is made to, and then told to hand the size on.
async fn tell_guest(qmp: &Qmp, disks: Arc<DiskSet>, slot: DriveSlot, size: u64) -> Result<(), String> {
    let node = format_node(slot);
    let deadline = Instant::now() + CONNECTED;
    let renewing = tokio::task::spawn_blocking(move || disks.renew(slot)).await;
    renewing.map_err(|panic| panic.to_string())?;
    loop {
        qmp.touch(&node).await.map_err(|error| chain_of(&error))?;
        match qmp.block_resize(&node, size).await {
            Ok(()) => return Ok(()),
            Err(QmpError::Refused { .. }) if Instant::now() < deadline => sleep(SOON).await,
            Err(error) => return Err(chain_of(&error)),
        }
    }
}

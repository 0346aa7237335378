//! Compacting the top file of a disk while the guest runs: one at a time, in a thread of the disk engine. It makes way for
//! checkpoints and saves.

use super::{Answer, Owner, refuse};
use crate::control::{CompactOutcome, FailureKind, Reply};
use crate::report::chain_of;
use backstay_disk::{CompactError, Compacted, MergeControl};
use backstay_model::DriveSlot;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

/// What came of the thread.
pub(super) type CompactEnd = Result<Result<Compacted, CompactError>, JoinError>;

/// A compaction under way.
pub(super) struct ActiveCompact {
    slot: DriveSlot,
    control: Arc<MergeControl>,
    pub(super) task: JoinHandle<Result<Compacted, CompactError>>,
    /// Closed when it has ended.
    ended: watch::Receiver<()>,
}

impl ActiveCompact {
    fn outcome(&self) -> CompactOutcome {
        let progress = self.control.progress();
        CompactOutcome::Running {
            blocks_total: progress.blocks_total,
            blocks_done: progress.blocks_done,
            bytes_moved: progress.bytes_moved,
        }
    }
}

impl Owner {
    pub(super) fn compact_disk(&mut self, slot: DriveSlot, rate: Option<u64>) -> Answer {
        if let Some(active) = &self.compact {
            if active.slot == slot && !active.control.is_cancelled() {
                active.control.set_rate(rate);
                return Ok(Reply::Compact(active.outcome()));
            }
            return refuse(format!(
                "the disk at {} is being compacted: wait for that, or cancel it",
                active.slot
            ));
        }
        if self.job.is_some() || self.asking.is_some() || self.is_plugging() || self.is_moving() {
            let words = "a checkpoint is being written, or a disk attached, detached or moved: try again when that is done";
            return refuse(words);
        }
        if self.merges(slot) {
            return refuse(format!(
                "files of the disk at {slot} are being merged: try again when that is done"
            ));
        }
        let disk = match self.disks.disk(slot) {
            Ok(disk) => disk,
            Err(error) => return refuse(error.to_string()),
        };
        let control = Arc::new(MergeControl::new());
        control.set_rate(rate);
        let how = Arc::clone(&control);
        let (ends, ended) = watch::channel(());
        let task = tokio::task::spawn_blocking(move || {
            let _told_when_dropped = ends;
            disk.compact(&how)
        });
        let active = self.compact.insert(ActiveCompact { slot, control, task, ended });
        Ok(Reply::Compact(active.outcome()))
    }

    pub(super) fn compact_status(&self, slot: DriveSlot) -> CompactOutcome {
        match (&self.compact, &self.compacted) {
            (Some(active), _) if active.slot == slot => active.outcome(),
            (_, Some((last, outcome))) if *last == slot => outcome.clone(),
            _ => CompactOutcome::Unknown,
        }
    }

    /// Asks it to end; the result closes when it has.
    pub(super) fn stop_compacting(&self) -> Option<watch::Receiver<()>> {
        let active = self.compact.as_ref()?;
        active.control.cancel();
        Some(active.ended.clone())
    }

    /// Whether a disk is being compacted.
    pub(super) fn compacts(&self, slot: DriveSlot) -> bool {
        self.compact.as_ref().is_some_and(|active| active.slot == slot)
    }

    pub(super) fn compact_done(&mut self, end: CompactEnd) {
        let Some(ActiveCompact { slot, .. }) = self.compact.take() else { return };
        let outcome = match end {
            Ok(Ok(done)) => CompactOutcome::Complete {
                dropped_blocks: done.dropped_blocks,
                moved_blocks: done.moved_blocks,
                bytes_moved: done.bytes_moved,
                old_len: done.old_len,
                new_len: done.new_len,
                freed: done.freed,
            },
            Ok(Err(CompactError::Cancelled { .. } | CompactError::Closed { .. })) => CompactOutcome::Stopped,
            Ok(Err(error)) => {
                CompactOutcome::Failed { message: chain_of(&error), kind: FailureKind::of_compact(&error) }
            }
            Err(panic) => CompactOutcome::Failed {
                message: format!("the worker failed: {panic}"),
                kind: FailureKind::Trouble,
            },
        };
        tracing::info!(%slot, ?outcome, "a disk was to be compacted");
        // The daemon asks about the last one only.
        self.compacted = Some((slot, outcome));
    }

    /// Before the disks are closed.
    pub(super) async fn end_compact(&mut self) {
        let Some(active) = &mut self.compact else { return };
        active.control.cancel();
        let end = (&mut active.task).await;
        self.compact_done(end);
    }
}

/// Returns when a compaction that was asked to end has.
pub(super) async fn has_ended(ended: Option<watch::Receiver<()>>) {
    if let Some(mut ended) = ended {
        while ended.changed().await.is_ok() {}
    }
}

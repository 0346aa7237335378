//! Merging a layer into its parent while the guest runs: one at a time, in a thread of the disk engine.

use super::{Answer, Owner, refuse};
use crate::control::{FailureKind, MergeOutcome, MergeRequest, Reply, WorkerEvent};
use crate::disks::DisksError;
use crate::report::chain_of;
use backstay_disk::{MergeControl, MergeError, Merged};
use backstay_model::DriveSlot;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::{JoinError, JoinHandle};

/// What came of the thread.
pub(super) type MergeEnd = Result<Result<Merged, MergeError>, JoinError>;

/// A merge under way.
pub(super) struct ActiveMerge {
    request: MergeRequest,
    control: Arc<MergeControl>,
    pub(super) task: JoinHandle<Result<Merged, MergeError>>,
}

impl ActiveMerge {
    fn outcome(&self) -> MergeOutcome {
        let progress = self.control.progress();
        MergeOutcome::Running {
            blocks_total: progress.blocks_total,
            blocks_done: progress.blocks_done,
            bytes_moved: progress.bytes_moved,
        }
    }
}

impl Owner {
    pub(super) fn merge_layer(&mut self, request: MergeRequest) -> Answer {
        if let Some(active) = &self.merge {
            if active.request.upper == request.upper {
                active.control.set_rate(request.rate);
                return Ok(Reply::Merge(active.outcome()));
            }
            let busy = active.request.upper.display();
            return refuse(format!("{busy} is being merged: wait for that, or cancel it"));
        }
        if self.is_moving() {
            return refuse("a disk is being moved: try again when that is done");
        }
        if self.compacts(request.slot) {
            return refuse(format!(
                "the disk at {} is being compacted: try again when that is done",
                request.slot
            ));
        }
        let disk = match self.disks.disk(request.slot) {
            Ok(disk) => disk,
            Err(error) => return refuse(error.to_string()),
        };
        let control = Arc::new(MergeControl::new());
        control.set_rate(request.rate);
        let (work, how, guard) = (request.clone(), Arc::clone(&control), self.guard.options());
        let task = tokio::task::spawn_blocking(move || {
            how.keep_free(guard.reserve_beside(&work.lower));
            disk.merge_layer(&work.upper, &work.children, &how)
        });
        let active = self.merge.insert(ActiveMerge { request, control, task });
        Ok(Reply::Merge(active.outcome()))
    }

    /// Whether files of a disk are being merged.
    pub(super) fn merges(&self, slot: DriveSlot) -> bool {
        self.merge.as_ref().is_some_and(|active| active.request.slot == slot)
    }

    /// The file that grows by a merge under way.
    pub(super) fn grows_by_merge(&self) -> Option<PathBuf> {
        self.merge.as_ref().map(|active| active.request.lower.clone())
    }

    pub(super) fn merge_status(&self, upper: &Path) -> MergeOutcome {
        match &self.merge {
            Some(active) if active.request.upper == upper => active.outcome(),
            _ => self.merged.get(upper).cloned().unwrap_or(MergeOutcome::Unknown),
        }
    }

    pub(super) fn change_merge(&self, upper: &Path, change: impl FnOnce(&MergeControl)) -> Answer {
        match &self.merge {
            Some(active) if active.request.upper == upper => {
                change(&active.control);
                Ok(Reply::Done)
            }
            _ => refuse(format!("{} is not being merged", upper.display())),
        }
    }

    pub(super) fn merge_done(&mut self, end: MergeEnd) {
        let Some(ActiveMerge { request, .. }) = self.merge.take() else { return };
        let outcome = match end {
            Ok(Ok(merged)) => match self.disks.merged(request.slot, &request.upper, &request.lower) {
                Ok(()) => MergeOutcome::Complete { bytes_moved: merged.bytes_moved },
                Err(error) => {
                    let message = chain_of(&error as &dyn std::error::Error);
                    MergeOutcome::Failed { message, kind: FailureKind::Trouble }
                }
            },
            Ok(Err(MergeError::Cancelled { .. } | MergeError::Closed { .. })) => MergeOutcome::Stopped,
            Ok(Err(error)) => {
                MergeOutcome::Failed { message: chain_of(&error), kind: FailureKind::of_merge(&error) }
            }
            Err(panic) => {
                let error = DisksError::Failed(panic.to_string());
                MergeOutcome::Failed { message: error.to_string(), kind: FailureKind::Trouble }
            }
        };
        let MergeRequest { upper, lower, .. } = request;
        if outcome != MergeOutcome::Stopped {
            self.tell(WorkerEvent::MergeFinished { upper: upper.clone(), lower, outcome: outcome.clone() });
        }
        // The daemon asks about the last one only.
        self.merged.clear();
        self.merged.insert(upper, outcome);
    }

    /// Before the disks are closed.
    pub(super) async fn end_merge(&mut self) {
        let Some(active) = &mut self.merge else { return };
        active.control.cancel();
        let end = (&mut active.task).await;
        self.merge_done(end);
    }
}

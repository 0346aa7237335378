//! A disk that moves to another file while the guest runs: one at a time, in a thread of the disk engine.

use super::{Answer, Owner, refuse};
use crate::control::{MoveOutcome, Reply};
use crate::disks::MoveError;
use crate::report::chain_of;
use backstay_disk::RelocateControl;
use backstay_model::DriveSlot;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::{JoinError, JoinHandle};

/// What came of the thread.
pub(super) type MoveEnd = Result<Result<(), MoveError>, JoinError>;

/// A move under way.
pub(super) struct ActiveMove {
    slot: DriveSlot,
    to: PathBuf,
    control: Arc<RelocateControl>,
    pub(super) task: JoinHandle<Result<(), MoveError>>,
}

impl ActiveMove {
    fn outcome(&self) -> MoveOutcome {
        let (done, total) = self.control.progress();
        MoveOutcome::Running { done, total }
    }
}

impl Owner {
    pub(super) fn move_disk(&mut self, slot: DriveSlot, to: PathBuf) -> Answer {
        if let Some(active) = &self.moving {
            if active.to == to {
                return Ok(Reply::Move(active.outcome()));
            }
            return refuse(format!(
                "the disk at {} is being moved: wait for that, or cancel it",
                active.slot
            ));
        }
        if self.job.is_some() || self.asking.is_some() || self.is_plugging() {
            let words =
                "a checkpoint is being written, or a disk attached or detached: try again when that is done";
            return refuse(words);
        }
        if self.compacts(slot) {
            return refuse(format!("the disk at {slot} is being compacted: try again when that is done"));
        }
        if let Err(error) = self.disks.disk(slot) {
            return refuse(error.to_string());
        }
        let control = Arc::new(RelocateControl::default());
        let (disks, new, how) = (Arc::clone(&self.disks), to.clone(), Arc::clone(&control));
        let guard = self.guard.options();
        let task = tokio::task::spawn_blocking(move || {
            how.keep_free(guard.reserve_beside(&new));
            disks.relocate(slot, &new, &how)
        });
        let active = self.moving.insert(ActiveMove { slot, to, control, task });
        Ok(Reply::Move(active.outcome()))
    }

    pub(super) fn move_status(&self, to: &Path) -> MoveOutcome {
        match (&self.moving, &self.moved) {
            (Some(active), _) if active.to == to => active.outcome(),
            (_, Some((last, outcome))) if last == to => outcome.clone(),
            _ => MoveOutcome::Unknown,
        }
    }

    pub(super) fn cancel_move(&self, to: &Path) -> Answer {
        match &self.moving {
            Some(active) if active.to == to => {
                active.control.cancel();
                Ok(Reply::Done)
            }
            _ => refuse(format!("no disk is being moved to {}", to.display())),
        }
    }

    /// Whether a disk is on its way to another file.
    pub(super) fn is_moving(&self) -> bool {
        self.moving.is_some()
    }

    pub(super) fn move_done(&mut self, end: MoveEnd) {
        let Some(ActiveMove { to, slot, .. }) = self.moving.take() else { return };
        let outcome = match end {
            Ok(Ok(())) => MoveOutcome::Complete,
            Ok(Err(error)) => MoveOutcome::Failed { message: chain_of(&error) },
            Err(panic) => MoveOutcome::Failed { message: format!("the worker failed: {panic}") },
        };
        tracing::info!(%slot, to = %to.display(), ?outcome, "a disk was to be moved");
        // The daemon asks about the last one only.
        self.moved = Some((to, outcome));
    }

    /// Before the disks are closed.
    pub(super) async fn end_move(&mut self) {
        let Some(active) = &mut self.moving else { return };
        active.control.cancel();
        let end = (&mut active.task).await;
        self.move_done(end);
    }
}

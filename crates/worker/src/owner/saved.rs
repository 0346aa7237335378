//! What becomes of a saved state: it is spent right before the guest executes, goes when it has, and stays if it never did.

use super::Owner;
use crate::control::{RestoreFrom, WorkerEvent};
use crate::saved_state;
use backstay_model::VmState;
use std::path::PathBuf;

impl Owner {
    /// The machine's own saved state that this run began with.
    fn own_state(&self) -> Option<&RestoreFrom> {
        self.record.restore.as_ref().filter(|from| from.once)
    }

    /// The guest has not executed, so the saved state that it was to continue from is as good as before. One that was
    /// about to run has not either, if neither QEMU nor its disks have seen it do so.
    pub(super) fn keeps_saved_state(&self) -> bool {
        let Some(from) = self.own_state() else { return false };
        let spent = saved_state::spent_name(&from.descriptor_file);
        !self.instance.ran || (!self.executed && spent.exists() && self.disks.are_unwritten())
    }

    /// How many starts by the recovery action count at present.
    pub(super) fn recoveries(&self) -> u32 {
        u32::try_from(self.life.recent_restarts(self.clock.now())).unwrap_or(u32::MAX)
    }

    /// The guest is about to execute: no later start may load the memory again. On disk first, because the record in the
    /// run folder goes with the power.
    ///
    /// # Errors
    /// In words; the guest must not execute then.
    pub(super) fn about_to_run(&mut self) -> Result<(), String> {
        if self.keeps_saved_state()
            && let Some(from) = self.own_state()
        {
            saved_state::spend(&from.descriptor_file).map_err(|error| {
                let file = from.descriptor_file.display();
                format!("{file} cannot be renamed, which it has to be before the guest runs: {error}")
            })?;
        }
        self.note(|instance| instance.ran = true)
    }

    /// The state that the next start loads: a checkpoint's until the guest has executed, the machine's own as long as it is
    /// kept.
    pub(super) fn state_to_load(&mut self) -> Option<RestoreFrom> {
        let from = self.record.restore.clone()?;
        if from.once && self.keeps_saved_state() {
            self.instance.ran = false;
        }
        if self.instance.ran {
            return None;
        }
        if from.once
            && let Err(error) = saved_state::unspend(&from.descriptor_file)
        {
            tracing::warn!(%error, "the saved state cannot get its name back");
        }
        Some(from)
    }

    /// The guest executes: the state is of no use any more.
    pub(super) fn spend_saved_state(&self) {
        let Some(from) = self.own_state().cloned() else { return };
        // Not in a task of its own: the next save writes to the same names.
        if let Err(error) = saved_state::remove(&from.descriptor_file, &from.memory_file) {
            tracing::warn!(%error, "a spent saved state could not be removed");
        }
    }

    /// QEMU has ended while it was being saved. Its last byte may have been written, and then the machine is saved.
    pub(super) async fn end_save(&mut self) {
        if self.job.as_ref().is_some_and(|job| job.plan.save)
            && let Some(job) = &mut self.job
        {
            let outcome = (&mut job.task).await.unwrap_or_else(|panic| super::checkpoints::panicked(&panic));
            self.job_done(outcome).await;
        }
    }

    /// After the disks were closed: the state in which the machine really ends. A saved one gets its marks and stamps.
    pub(super) async fn seal(&mut self, state: VmState, files: Vec<PathBuf>) -> VmState {
        let kept = self.own_state().filter(|_| self.keeps_saved_state());
        let (descriptor, kept) = match (&self.saved, kept) {
            (Some(descriptor), _) => (descriptor.clone(), false),
            (None, Some(from)) => (from.descriptor_file.clone(), true),
            (None, None) => return state,
        };
        let tops = self.disks.tops();
        let sealed = tokio::task::spawn_blocking(move || {
            // What a former state has left must not replace a new one.
            let named = match kept {
                true => saved_state::unspend(&descriptor),
                false => crate::durable::remove(&saved_state::spent_name(&descriptor)),
            };
            named.map_err(|error| error.to_string())?;
            saved_state::mark(&tops, true);
            let stamps = saved_state::stamps(&files).map_err(|error| error.to_string())?;
            saved_state::add_stamps(&descriptor, stamps)
        });
        if let Ok(Err(message)) = sealed.await {
            let message = format!(
                "whether a disk is changed while the machine is saved will not be noticed: {message}"
            );
            self.tell(WorkerEvent::Warning { message });
        }
        VmState::Saved
    }
}

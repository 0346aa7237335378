//! One merge at a time on a disk, and the end of it when the disk closes.

use crate::quiesce::StillBusy;
use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Instant,
};

/// Whether a merge runs, and whether it may.
#[derive(Debug, Default)]
pub(crate) struct MergeSlot {
    /// Set by closing: no merge may begin, and the one that runs ends.
    closing: AtomicBool,
    running: Mutex<bool>,
    ended: Condvar,
}

/// The right to merge; given back when dropped.
#[derive(Debug)]
pub(crate) struct MergeTurn<'a>(&'a MergeSlot);

impl MergeSlot {
    /// `None` if one runs already.
    pub(crate) fn begin(&self) -> Option<MergeTurn<'_>> {
        let mut running = self.running();
        if *running || self.closing() {
            return None;
        }
        *running = true;
        Some(MergeTurn(self))
    }

    pub(crate) fn closing(&self) -> bool {
        self.closing.load(SeqCst)
    }

    pub(crate) fn is_running(&self) -> bool {
        *self.running()
    }

    /// Ends the merge that runs, if any, for good.
    pub(crate) fn close(&self, deadline: Instant) -> Result<(), StillBusy> {
        self.closing.store(true, SeqCst);
        let mut running = self.running();
        while *running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StillBusy);
            }
            running = match self.ended.wait_timeout(running, left) {
                Ok((running, _)) => running,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        Ok(())
    }

    fn running(&self) -> MutexGuard<'_, bool> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MergeTurn<'_> {
    fn drop(&mut self) {
        *self.0.running() = false;
        self.0.ended.notify_all();
    }
}

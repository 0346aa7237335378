//! How somebody watches and ends a resize that another thread does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Shared between the thread that resizes and those that watch it.
#[derive(Debug, Default)]
pub struct ResizeControl {
    cancelled: AtomicBool,
    total: AtomicU64,
    done: AtomicU64,
}

impl ResizeControl {
    /// Not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends it soon, with the disk as it was; not any more once the size is being changed, which takes a moment.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    /// Whether [`ResizeControl::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Relaxed)
    }

    /// Bytes that were looked through or reserved, and that there are in this step; 0 of 0 before and between them.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.total.load(Relaxed))
    }

    /// A step of that many bytes begins.
    pub(super) fn begin(&self, total: u64) {
        self.done.store(0, Relaxed);
        self.total.store(total, Relaxed);
    }

    pub(super) fn passed(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }
}

//! Blocks that nobody may write to for a moment, because they are being moved or looked at.
//!
//! A request that meets one leaves the gate, waits outside and comes again, so that neither a layer switch nor whoever waits for
//! requests to leave ever waits for it.

use std::{
    collections::BTreeSet,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

#[derive(Debug)]
pub(crate) struct Holds {
    block_shift: u32,
    /// Whether any is held: what requests look at first.
    any: AtomicBool,
    held: Mutex<BTreeSet<u32>>,
    released: Condvar,
}

/// Blocks that are held until this is dropped.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a Holds);

impl Holds {
    /// For blocks of `1 << block_shift` bytes.
    pub(super) fn new(block_shift: u32) -> Self {
        let (any, held, released) = (AtomicBool::new(false), Mutex::default(), Condvar::new());
        Self { block_shift, any, held, released }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on requests to these blocks wait; those that are under way may not yet.
    pub(super) fn hold(&self, blocks: impl IntoIterator<Item = u32>) -> Held<'_> {
        self.lock().extend(blocks);
        self.any.store(true, SeqCst);
        Held(self)
    }

    fn blocks(&self, offset: u64, len: u64) -> std::ops::RangeInclusive<u32> {
        let block = |at: u64| u32::try_from(at >> self.block_shift).unwrap_or(u32::MAX);
        block(offset)..=block(offset + len.saturating_sub(1))
    }

    /// Whether a change of that range has to wait.
    pub(crate) fn meets(&self, offset: u64, len: u64) -> bool {
        self.any.load(SeqCst) && self.lock().range(self.blocks(offset, len)).next().is_some()
    }

    /// Waits until it has not. Not to be called inside of the gate.
    pub(crate) fn wait(&self, offset: u64, len: u64) {
        let mut held = self.lock();
        while held.range(self.blocks(offset, len)).next().is_some() {
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.0.lock();
        held.clear();
        self.0.any.store(false, SeqCst);
        self.0.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};

    #[test]
    fn a_request_waits_for_its_blocks_and_for_no_others() {
        let holds = Holds::new(12);
        let held = holds.hold([3, 5]);
        assert!(holds.meets(3 << 12, 512) && holds.meets(0, 1 << 20) && !holds.meets(4 << 12, 4096));
        assert!(!holds.meets(6 << 12, 1 << 20));
        thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let holds = &holds;
            scope.spawn(move || {
                holds.wait(5 << 12, 512);
                tell.send(()).unwrap();
            });
            holds.wait(4 << 12, 4096);
            assert!(told.try_recv().is_err());
            drop(held);
            told.recv().unwrap();
        });
        assert!(!holds.meets(0, 1 << 20));
    }
}

//! Where writes go while the top of a chain moves into its parent.
//!
//! Each block of the upper layer is in one of three states:
//! - *kept*: writes go to the upper layer, which has the block;
//! - *copying*: writes go to both, the lower first, one at a time for each block. The upper layer is what counts until
//!   its table entry is cleared and that is durable;
//! - *moved*, or never in the upper layer: writes go to the lower layer.
//!
//! So the upper layer never gets a new block, a block is copied once however often it is written to, and a request waits at most
//! for the copy of one piece of the block it writes to, or for the extent that a new block of the lower layer needs.

use crate::{
    backend::ZeroMode,
    layer::Layer,
    write::{trim_layers, write_layers, zero_layers},
};
use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU8, AtomicU64,
            Ordering::{AcqRel, Acquire, Release, SeqCst},
        },
    },
};

const KEPT: u8 = 0;
const COPYING: u8 = 1;
const MOVED: u8 = 2;

/// Locks for blocks that are being copied: neighbours have different ones.
const STRIPES: usize = 64;

#[derive(Debug)]
pub(crate) struct Routing {
    block_shift: u32,
    states: Box<[AtomicU8]>,
    stripes: Box<[Stripe]>,
    /// The lower layer is about to be, or is, all that counts for blocks in the state *copying*.
    lower_counts: AtomicBool,
    /// The merge has ended early: everything goes to the upper layer again.
    ended: AtomicBool,
    /// Writes of the guest in the lower layer that a flush has to cover.
    lower_written: AtomicU64,
    /// Those that one has covered.
    lower_flushed: AtomicU64,
}

#[derive(Debug, Default)]
struct Stripe {
    lock: Mutex<()>,
    /// Writes under the lock that have ended so far, well or not.
    writes: AtomicU64,
}

/// Where a write into one block goes.
enum Route<'a> {
    Upper,
    Lower,
    Both { _alone: MutexGuard<'a, ()>, block: u32 },
}

impl Routing {
    /// `held` are the blocks that the upper layer has; blocks are `1 << block_shift` bytes.
    pub(crate) fn new(size: u64, block_shift: u32, held: &[u32]) -> Self {
        let count = usize::try_from(size.div_ceil(1 << block_shift)).unwrap_or(usize::MAX);
        let states: Box<[AtomicU8]> = (0..count).map(|_| AtomicU8::new(MOVED)).collect();
        for state in held.iter().filter_map(|block| states.get(*block as usize)) {
            state.store(KEPT, Release);
        }
        Self {
            block_shift,
            states,
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
            lower_counts: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            lower_written: AtomicU64::new(0),
            lower_flushed: AtomicU64::new(0),
        }
    }

    fn state(&self, block: u32) -> u8 {
        self.states.get(block as usize).map_or(MOVED, |state| state.load(SeqCst))
    }

    fn set(&self, block: u32, new: u8) {
        if let Some(state) = self.states.get(block as usize) {
            state.store(new, SeqCst);
        }
    }

    fn stripe(&self, block: u32) -> &Stripe {
        &self.stripes[block as usize % STRIPES]
    }

    /// Keeps writes to the block out.
    pub(crate) fn lock(&self, block: u32) -> MutexGuard<'_, ()> {
        self.stripe(block).lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes with each write to the block while it is being copied.
    pub(crate) fn version(&self, block: u32) -> u64 {
        self.stripe(block).writes.load(SeqCst)
    }

    /// From now on writes to these blocks go to both layers; those that are under way may not yet.
    pub(crate) fn copy(&self, blocks: &[u32]) {
        blocks.iter().for_each(|block| self.set(*block, COPYING));
    }

    pub(crate) fn is_copying(&self, block: u32) -> bool {
        self.state(block) == COPYING
    }

    /// Those of the blocks that are being copied go back to the upper layer.
    pub(crate) fn keep(&self, blocks: &[u32]) {
        for block in blocks {
            let _alone = self.lock(*block);
            if self.is_copying(*block) {
                self.set(*block, KEPT);
            }
        }
    }

    /// The block belongs to the lower layer from now on; `drop` tells readers.
    pub(crate) fn moved<T>(&self, block: u32, drop: impl FnOnce() -> T) -> T {
        let _alone = self.lock(block);
        let dropped = drop();
        self.set(block, MOVED);
        dropped
    }

    pub(crate) fn lower_counts(&self, counts: bool) {
        self.lower_counts.store(counts, SeqCst);
    }

    /// Everything goes to the upper layer from now on; requests under way may not yet.
    pub(crate) fn end(&self) {
        self.ended.store(true, SeqCst);
    }

    /// Flushes the lower layer if a guest's write is in it that was not flushed.
    pub(crate) fn flush_lower(&self, lower: &Layer) -> io::Result<()> {
        let written = self.lower_written.load(Acquire);
        if self.lower_flushed.load(Acquire) >= written {
            return Ok(());
        }
        self.flush_lower_now(lower)
    }

    pub(crate) fn flush_lower_now(&self, lower: &Layer) -> io::Result<()> {
        let written = self.lower_written.load(Acquire);
        lower.flush()?;
        self.lower_flushed.fetch_max(written, AcqRel);
        Ok(())
    }

    fn route(&self, block: u32) -> Route<'_> {
        if self.ended.load(SeqCst) {
            return Route::Upper;
        }
        match self.state(block) {
            KEPT => return Route::Upper,
            MOVED => return Route::Lower,
            _ => {}
        }
        let alone = self.lock(block);
        match self.state(block) {
            KEPT => Route::Upper,
            MOVED => Route::Lower,
            _ => Route::Both { _alone: alone, block },
        }
    }

    /// The parts of a range that lie in one block each: block, offset, length.
    fn parts(&self, offset: u64, len: u64) -> impl Iterator<Item = (u32, u64, u64)> + use<> {
        let shift = self.block_shift;
        let (mut at, end) = (offset, offset + len);
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let part = (((at >> shift) + 1) << shift).min(end) - at;
            let block = u32::try_from(at >> shift).unwrap_or(u32::MAX);
            at += part;
            Some((block, at - part, part))
        })
    }

    pub(crate) fn write(&self, layers: &[Arc<Layer>], offset: u64, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        for (block, at, len) in self.parts(offset, data.len() as u64) {
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
            let (part, behind) = rest.split_at(len);
            rest = behind;
            self.change(block, layers, &|layers| write_layers(layers, at, part))?;
        }
        Ok(())
    }

    pub(crate) fn zero(
        &self,
        layers: &[Arc<Layer>],
        offset: u64,
        len: u64,
        mode: ZeroMode,
    ) -> io::Result<()> {
        if mode.fast_only && !layers.iter().take(2).all(|layer| layer.file.punches()) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.parts(offset, len).try_for_each(|(block, at, len)| {
            self.change(block, layers, &|layers| zero_layers(layers, at, len, mode))
        })
    }

    pub(crate) fn trim(&self, layers: &[Arc<Layer>], offset: u64, len: u64) -> io::Result<()> {
        self.parts(offset, len).try_for_each(|(block, at, len)| match self.route(block) {
            Route::Upper => trim_layers(layers, at, len),
            Route::Lower => self.in_lower(trim_layers(below(layers), at, len)),
            // The two could free different parts, and what is read would change once more later.
            Route::Both { .. } => Ok(()),
        })
    }

    /// Makes a change of one block where it belongs.
    fn change(
        &self,
        block: u32,
        layers: &[Arc<Layer>],
        change: &dyn Fn(&[Arc<Layer>]) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.route(block) {
            Route::Upper => change(layers),
            Route::Lower => self.in_lower(change(below(layers))),
            Route::Both { _alone, block } => {
                // The lower first: whoever reads this write in the upper layer finds it in the lower one too, later.
                let lower_counts = self.lower_counts.load(SeqCst);
                match change(below(layers)) {
                    Ok(()) if lower_counts => self.wrote_lower(),
                    Ok(()) => {}
                    Err(error) if lower_counts => return Err(error),
                    // It was not asked for by the guest. The merge meets the reason soon enough.
                    Err(error) => {
                        tracing::debug!(block, %error, "a block is not merged now: its parent refused a write");
                        self.set(block, KEPT);
                    }
                }
                let written = change(layers);
                // Last: the merge reads the upper layer without the lock, and what it read before this may be old.
                self.stripe(block).writes.fetch_add(1, SeqCst);
                written
            }
        }
    }

    fn in_lower(&self, result: io::Result<()>) -> io::Result<()> {
        if result.is_ok() {
            self.wrote_lower();
        }
        result
    }

    fn wrote_lower(&self) {
        self.lower_written.fetch_add(1, AcqRel);
    }
}

/// The layers without the top.
fn below(layers: &[Arc<Layer>]) -> &[Arc<Layer>] {
    layers.get(1..).unwrap_or_default()
}

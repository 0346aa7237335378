//! How somebody watches, slows and ends a merge that another thread runs.

use std::{
    fmt,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Shared between the thread that merges and those that watch it. Everything may be called at any time.
#[derive(Default)]
pub struct MergeControl {
    cancelled: AtomicBool,
    /// Bytes per second; 0: no limit.
    rate: AtomicU64,
    blocks_total: AtomicU64,
    blocks_done: AtomicU64,
    bytes_moved: AtomicU64,
    bytes_freed: AtomicU64,
    /// Told when `cancelled` or `rate` change.
    lock: Mutex<()>,
    changed: Condvar,
    observer: Option<Observer>,
    /// Blocks in a batch; 0: as many as are best.
    batch_blocks: usize,
    /// Threads that copy; 0: as many as are best.
    threads: usize,
    /// Bytes that stay free on the volume of the lower layer.
    reserve: AtomicU64,
    /// The room beside what is still to be moved below which space is given back on the way; 0: as much as is best.
    spare: u64,
}

type Observer = Box<dyn Fn(MergeStep) + Send + Sync>;

/// How far a merge is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeProgress {
    /// Blocks of the upper layer that were to be moved when this run began; 0 before that is known.
    pub blocks_total: u64,
    /// Those of them that the lower layer holds now for good. What is done is never done again, also not by a later merge.
    pub blocks_done: u64,
    /// Bytes copied so far.
    pub bytes_moved: u64,
    /// Bytes of the upper file given back to the file system so far.
    pub bytes_freed: u64,
}

/// Points between two actions of a merge. For tests: what a guest does there, or a power cut, must harm nothing.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeStep {
    /// Requests are routed; nothing was moved yet.
    Begun,
    /// A piece of a block was copied.
    Copied,
    /// All of a batch is copied; the lower layer is flushed next.
    LowerFlush,
    /// The lower layer is durable; table entries of the upper one are cleared next.
    Clear,
    /// They are cleared; the upper layer is flushed next.
    UpperFlush,
    /// They are durable; requests are sent to the lower layer next.
    Redirect,
    /// Requests go to the lower layer; the upper file's space is given back next.
    Release,
    /// Of a compaction: no block can move any more; what stays a hole is given back next.
    Packed,
    /// Nothing is left in the upper layer.
    Emptied,
    /// A child was given its new parent.
    Reparented,
}

impl fmt::Debug for MergeControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MergeControl")
            .field("cancelled", &self.is_cancelled())
            .field("rate", &self.rate())
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}

impl MergeControl {
    /// No limit, not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With a function that is called between the actions of the merge, in its threads.
    #[doc(hidden)]
    #[must_use]
    pub fn observed(observer: impl Fn(MergeStep) + Send + Sync + 'static) -> Self {
        Self { observer: Some(Box::new(observer)), ..Self::default() }
    }

    /// With batches of that many blocks.
    #[doc(hidden)]
    #[must_use]
    pub fn in_batches_of(self, blocks: usize) -> Self {
        Self { batch_blocks: blocks, ..self }
    }

    /// With that many threads that copy, whether somebody uses the disk or not.
    #[doc(hidden)]
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    pub(crate) fn threads(&self, best: usize) -> usize {
        if self.threads == 0 { best } else { self.threads }
    }

    /// Space is given back on the way, as on a volume that has no room for both layers.
    #[doc(hidden)]
    #[must_use]
    pub fn short_of_room(self) -> Self {
        Self { spare: u64::MAX, ..self }
    }

    /// Ends the merge soon: with a chain that is valid and that a later merge goes on with.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
        self.wake();
    }

    /// Whether [`MergeControl::cancel`] was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Relaxed)
    }

    /// Moves at most this many bytes per second from now on; `None` or 0: as fast as it goes.
    pub fn set_rate(&self, bytes_per_second: Option<u64>) {
        self.rate.store(bytes_per_second.unwrap_or(0), Relaxed);
        self.wake();
    }

    /// Keeps so many bytes free on the volume of the lower layer, if that is another one than the upper layer's: there nothing comes
    /// back by merging. Where both lie on one, space is given back on the way before it is as short as that.
    pub fn keep_free(&self, bytes: u64) {
        self.reserve.store(bytes, Relaxed);
    }

    pub(crate) fn reserve(&self) -> u64 {
        self.reserve.load(Relaxed)
    }

    /// The limit in bytes per second.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Relaxed)).filter(|rate| *rate > 0)
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> MergeProgress {
        MergeProgress {
            blocks_total: self.blocks_total.load(Relaxed),
            blocks_done: self.blocks_done.load(Relaxed),
            bytes_moved: self.bytes_moved.load(Relaxed),
            bytes_freed: self.bytes_freed.load(Relaxed),
        }
    }

    pub(crate) fn begin(&self, blocks: u64) {
        self.blocks_total.store(blocks, Relaxed);
        self.blocks_done.store(0, Relaxed);
    }

    pub(crate) fn blocks_done(&self, blocks: u64) {
        self.blocks_done.fetch_add(blocks, Relaxed);
    }

    pub(crate) fn moved(&self, bytes: u64) {
        self.bytes_moved.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn freed(&self, bytes: u64) {
        self.bytes_freed.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn batch_blocks(&self, best: usize) -> usize {
        if self.batch_blocks == 0 { best } else { self.batch_blocks }
    }

    pub(crate) fn spare(&self, best: u64) -> u64 {
        let reserve = self.reserve();
        if self.spare == 0 { best.max(reserve.saturating_add(reserve / 2)) } else { self.spare }
    }

    pub(crate) fn step(&self, step: MergeStep) {
        if let Some(observer) = &self.observer {
            observer(step);
        }
    }

    fn wake(&self) {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.changed.notify_all();
    }

    /// Waits until `until`, or until something was changed.
    fn wait(&self, until: Instant) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let left = until.saturating_duration_since(Instant::now());
        if !self.is_cancelled() && !left.is_zero() {
            // Whoever is woken looks for itself at what changed.
            drop(self.changed.wait_timeout(guard, left));
        }
    }
}

/// Spreads bytes over time.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The next byte may not be moved before.
    next: Instant,
    /// The limit that says so.
    rate: Option<u64>,
}

/// Longest time that a limit is made up for: a merge that stood still does not catch up by a burst.
const BURST: Duration = Duration::from_millis(200);

impl Pace {
    pub(crate) fn new() -> Self {
        Self { next: Instant::now(), rate: None }
    }

    /// Waits as long as the limit says before more is moved; `bytes` are moved next. `stop` ends the wait.
    pub(crate) fn wait(&mut self, control: &MergeControl, bytes: u64, stop: &dyn Fn() -> bool) {
        let slice = Duration::from_millis(100);
        // Another limit counts from now on.
        while !stop() && self.rate.is_some() && control.rate() == self.rate && self.next > Instant::now() {
            control.wait(self.next.min(Instant::now() + slice));
        }
        let now = Instant::now();
        let rate = control.rate();
        let owed = if rate == self.rate { self.next } else { now };
        self.rate = rate;
        self.next = match rate {
            None => now,
            Some(rate) => {
                let took = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1));
                owed.max(now.checked_sub(BURST).unwrap_or(now)) + took
            }
        };
    }
}

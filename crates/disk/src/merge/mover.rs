//! Moving the blocks: a batch at a time, each step in the one order that no crash can make wrong.
//!
//! ```text
//!  1 writes to some blocks go to both layers      wait for writes under way
//!  2 copy what the upper layer holds of them       and so on with the rest of the batch
//!  3 lower counts too: its failures fail requests  wait for writes under way
//!  4 flush the lower layer                         a crash finds all in the upper layer, still
//!  5 clear the upper layer's table entries
//!  6 flush the upper layer                         a crash finds either, and both are complete
//!  7 readers and writers go to the lower layer
//!  8 punch out the blocks                          once nobody reads there, and only where room is short
//! ```
//!
//! The file of the upper layer goes when the merge has ended, so its space comes back anyway. Punching holes excludes writers of the
//! same file for as long as the file system takes to free extents, which is seconds where they are many and are discarded: that is
//! for volumes that need the space before the end.

use super::{MergeControl, MergeError, MergeStep, control::Pace, route::Routing};
use crate::{disk::Disk, layer::Layer};
use backstay_vhd::{FileSpan, LayerFormat};
use std::{
    io::{self, ErrorKind},
    sync::{
        Arc, Mutex,
        atomic::AtomicU64,
        mpsc::{self, SyncSender},
    },
    thread,
};

/// Bytes of data in a batch.
const BATCH: u64 = 64 << 20;
/// Blocks in a batch: as many are written twice at a time.
const BATCH_BLOCKS: usize = 512;
/// Bytes of blocks that are announced to writers at once. A write to one that is announced and not copied yet may have to wait for an
/// extent of the lower layer; one to a block that is copied finds its place there.
const ANNOUNCED: u64 = 16 << 20;

pub(super) struct Mover<'a> {
    pub(super) disk: &'a Disk,
    pub(super) control: &'a MergeControl,
    pub(super) upper: Arc<Layer>,
    /// The lower layer and its parents.
    pub(super) below: Vec<Arc<Layer>>,
    /// If the upper layer is the top.
    pub(super) routing: Option<Arc<Routing>>,
    /// Nobody uses the disk: all processors copy, and all of a batch is announced at once.
    pub(super) alone: bool,
    pub(super) pace: Mutex<Pace>,
    pub(super) moved: AtomicU64,
    pub(super) since_writeback: AtomicU64,
    /// Wakes the thread that tells the device to begin.
    pub(super) writeback: Option<SyncSender<()>>,
    /// Bytes of `moved` that occupied space.
    pub(super) data_moved: AtomicU64,
    /// Places of moved blocks that still occupy space, and that nobody reads.
    pub(super) owed: Vec<FileSpan>,
}

/// The scope waits for its thread however the merge ends, so nothing may keep that waiting.
struct EndsWriteback<'m, 'a>(&'m mut Mover<'a>);

impl Drop for EndsWriteback<'_, '_> {
    fn drop(&mut self) {
        self.0.writeback = None;
    }
}

impl Mover<'_> {
    /// Moves everything. What was moved gives its space back where that helps, also if the merge ends early.
    pub(super) fn run(&mut self) -> Result<(), MergeError> {
        let file = Arc::clone(&self.lower()?.file);
        let (wake, woken) = mpsc::sync_channel(1);
        thread::scope(|scope| {
            // Handing pages to the device takes a processor as long as copying them does.
            let begin = move || woken.iter().for_each(|()| file.start_writeback(0, i64::MAX.unsigned_abs()));
            let thread = thread::Builder::new().name("merge writeback".into()).spawn_scoped(scope, begin);
            self.writeback = thread.is_ok().then_some(wake);
            EndsWriteback(self).0.run_to_the_end()
        })
    }

    fn run_to_the_end(&mut self) -> Result<(), MergeError> {
        let mut moved = self.move_all();
        if matches!(moved, Err(MergeError::NoSpace { .. })) && !self.owed.is_empty() {
            self.give_back();
            moved = self.move_all();
        }
        // The next merge does not know any more what this one owes.
        if moved.is_err() && self.room_is_short(2) {
            self.give_back();
        }
        moved
    }

    fn move_all(&mut self) -> Result<(), MergeError> {
        let mut left = self.image()?.held_blocks();
        self.control.begin(left.len() as u64);
        self.control.step(MergeStep::Begun);
        while !left.is_empty() {
            let before = left.len();
            self.pass(&left)?;
            left = self.image()?.held_blocks();
            if left.len() >= before {
                // Each of them was dropped from its batch because the lower layer refused a write.
                let refused = io::Error::other("its parent refuses writes");
                return Err(self.failed(self.lower()?, "write to", refused));
            }
        }
        self.control.step(MergeStep::Emptied);
        Ok(())
    }

    fn pass(&mut self, blocks: &[u32]) -> Result<(), MergeError> {
        let mut rest = blocks;
        while !rest.is_empty() {
            let mut bytes = 0;
            let mut count = 0;
            // A crash loses at most a second's progress of a merge with a limit.
            let most = self.control.rate().unwrap_or(BATCH).min(BATCH);
            for block in rest.iter().take(self.control.batch_blocks(BATCH_BLOCKS)) {
                if bytes >= most {
                    break;
                }
                let held = self.image()?.held_bytes(*block);
                bytes += held.map_err(|error| self.failed(&self.upper, "read", error.into()))?;
                count += 1;
            }
            let (batch, behind) = rest.split_at(count);
            rest = behind;
            self.keeps_reserve(batch)?;
            let done = self.batch(batch);
            if let Some(routing) = &self.routing {
                routing.keep(batch);
                routing.lower_counts(false);
            }
            done?;
        }
        Ok(())
    }

    fn batch(&mut self, batch: &[u32]) -> Result<(), MergeError> {
        let announced = match self.alone {
            true => batch.len(),
            false => as_usize(ANNOUNCED / u64::from(self.upper.block_size().max(512))),
        };
        for blocks in batch.chunks(announced.max(1)) {
            if let Some(routing) = &self.routing {
                routing.copy(blocks);
                self.wait_for_leavers()?;
            }
            self.copy_blocks(blocks)?;
        }
        let mut batch = batch.to_vec();
        if let Some(routing) = &self.routing {
            routing.lower_counts(true);
            self.wait_for_leavers()?;
            batch.retain(|block| routing.is_copying(*block));
        }
        if self.stopped() {
            return Err(self.why_stopped());
        }
        let spans = self.hand_over(&batch)?;
        self.control.blocks_done(batch.len() as u64);
        self.control.step(MergeStep::Release);
        self.release(spans)
    }

    /// Steps 4 to 7.
    fn hand_over(&self, batch: &[u32]) -> Result<Vec<FileSpan>, MergeError> {
        let (image, lower) = (self.image()?, self.lower()?);
        self.control.step(MergeStep::LowerFlush);
        let flushed = match &self.routing {
            Some(routing) => routing.flush_lower_now(lower),
            None => lower.flush(),
        };
        flushed.map_err(|error| self.failed(lower, "flush", error))?;
        self.control.step(MergeStep::Clear);
        let cleared = image.clear_entries(batch);
        cleared.map_err(|error| self.failed(&self.upper, "write to", error.into()))?;
        self.control.step(MergeStep::UpperFlush);
        self.upper.flush().map_err(|error| self.failed(&self.upper, "flush", error))?;
        self.control.step(MergeStep::Redirect);
        Ok(match &self.routing {
            None => image.drop_blocks(batch),
            Some(routing) => {
                let drop = |block: &u32| routing.moved(*block, || image.drop_blocks(&[*block]));
                batch.iter().flat_map(drop).collect()
            }
        })
    }

    pub(super) fn wait_for_leavers(&self) -> Result<(), MergeError> {
        match self.disk.chain.wait_for_leavers(&|| self.stopped()) {
            true => Ok(()),
            false => Err(self.why_stopped()),
        }
    }

    pub(super) fn stopped(&self) -> bool {
        self.control.is_cancelled() || self.disk.merging.closing()
    }

    pub(super) fn why_stopped(&self) -> MergeError {
        let upper = self.upper.path.clone();
        match self.disk.merging.closing() {
            true => MergeError::Closed { upper },
            false => MergeError::Cancelled { upper },
        }
    }

    pub(super) fn image(&self) -> Result<&dyn LayerFormat, MergeError> {
        self.upper.image().ok_or_else(|| MergeError::NoParent { upper: self.upper.path.clone() })
    }

    pub(super) fn lower(&self) -> Result<&Layer, MergeError> {
        let lower = self.below.first().map(AsRef::as_ref);
        lower.ok_or_else(|| MergeError::NoParent { upper: self.upper.path.clone() })
    }

    pub(super) fn failed(&self, layer: &Layer, action: &'static str, source: io::Error) -> MergeError {
        MergeError::Io { path: layer.path.clone(), action, source }
    }

    pub(super) fn lower_failed(&self, source: io::Error) -> MergeError {
        let upper = self.upper.path.clone();
        let lower = match self.lower() {
            Ok(lower) => lower.path.clone(),
            Err(error) => return error,
        };
        let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
        if !full.contains(&source.kind()) {
            return MergeError::Io { path: lower, action: "write to", source };
        }
        let size = u64::from(self.upper.block_size());
        let left = self.upper.image().map_or(0, |image| image.held_blocks().len()) as u64 * size;
        MergeError::NoSpace { upper, lower, left, source }
    }
}

pub(super) fn as_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

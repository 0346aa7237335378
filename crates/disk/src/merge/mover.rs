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
use crate::{
    backend::ZeroMode,
    disk::Disk,
    layer::Layer,
    status::data_runs,
    write::{write_layers, zero_layers},
};
use backstay_vhd::{FileSpan, LayerFormat, ReadExtent, Source};
use std::{
    io::{self, ErrorKind},
    sync::{
        Arc,
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
/// Bytes copied at once; a write to the same block waits that long at most.
const PIECE: u64 = 256 << 10;
/// Bytes after which the device is told to begin.
const WRITEBACK: u64 = 4 << 20;
/// Runs up to this length on average are cheaper to read with what is between them.
const SMALL: u64 = 4096;
/// Data is looked through for holes from this size on.
const LOOK_FOR_HOLES: u64 = 64 << 10;

pub(super) struct Mover<'a> {
    pub(super) disk: &'a Disk,
    pub(super) control: &'a MergeControl,
    pub(super) upper: Arc<Layer>,
    /// The lower layer and its parents.
    pub(super) below: Vec<Arc<Layer>>,
    /// If the upper layer is the top.
    pub(super) routing: Option<Arc<Routing>>,
    pub(super) pace: Pace,
    pub(super) buf: Vec<u8>,
    pub(super) moved: u64,
    pub(super) since_writeback: u64,
    /// Wakes the thread that tells the device to begin.
    pub(super) writeback: Option<SyncSender<()>>,
    /// Bytes of `moved` that occupied space.
    pub(super) data_moved: u64,
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

/// A part of a piece that the upper layer holds.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Offset in the piece.
    at: u64,
    len: u64,
    zero: bool,
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
        let announced = as_usize(ANNOUNCED / u64::from(self.upper.block_size().max(512))).max(1);
        for blocks in batch.chunks(announced) {
            if let Some(routing) = &self.routing {
                routing.copy(blocks);
                self.wait_for_leavers()?;
            }
            blocks.iter().try_for_each(|block| self.copy_block(*block))?;
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

    fn copy_block(&mut self, block: u32) -> Result<(), MergeError> {
        let size = u64::from(self.upper.block_size());
        let start = u64::from(block) * size;
        let end = (start + size).min(self.upper.size);
        let mut at = start;
        while at < end {
            let len = PIECE.min(end - at);
            self.copy_piece(block, at, len)?;
            at += len;
        }
        Ok(())
    }

    /// Copies what the upper layer holds of a range in one block.
    fn copy_piece(&mut self, block: u32, at: u64, len: u64) -> Result<(), MergeError> {
        // Read before writers are kept out; if one came, again.
        let version = self.routing.as_ref().map(|routing| routing.version(block));
        let mut runs = self.read(at, len)?;
        if runs.is_empty() {
            return Ok(());
        }
        let bytes: u64 = runs.iter().map(|run| run.len).sum();
        let (disk, control) = (self.disk, self.control);
        self.pace.wait(control, bytes, &|| control.is_cancelled() || disk.merging.closing());
        if self.stopped() {
            return Err(self.why_stopped());
        }
        let routing = self.routing.clone();
        let alone = routing.as_ref().map(|routing| routing.lock(block));
        if let Some(routing) = &routing {
            if !routing.is_copying(block) {
                return Ok(());
            }
            if version != Some(routing.version(block)) {
                runs = self.read(at, len)?;
            }
        }
        for run in &runs {
            self.write(at, *run).map_err(|error| self.lower_failed(error))?;
        }
        drop(alone);
        self.moved += bytes;
        self.data_moved += runs.iter().filter(|run| !run.zero).map(|run| run.len).sum::<u64>();
        self.control.moved(bytes);
        self.since_writeback += bytes;
        if self.since_writeback >= WRITEBACK {
            self.since_writeback = 0;
            if let Some(writeback) = &self.writeback {
                let _is_at_it_already = writeback.try_send(());
            }
        }
        self.control.step(MergeStep::Copied);
        Ok(())
    }

    /// Reads what the upper layer holds of a range into the buffer, at its place in the range.
    fn read(&mut self, at: u64, len: u64) -> Result<Vec<Run>, MergeError> {
        let upper = Arc::clone(&self.upper);
        let failed = |error: io::Error| self.failed(&upper, "read", error);
        let mut extents: Vec<ReadExtent> = Vec::new();
        upper.resolve(at, len, &mut extents).map_err(|error| failed(error.into()))?;
        let mut runs = Vec::new();
        let mut places = Vec::new();
        let mut within = 0;
        for extent in extents {
            match extent.source {
                Source::Data { file_offset } => {
                    find_runs(&upper, within, file_offset, extent.len, &mut runs).map_err(failed)?;
                    places.push((within, extent.len, file_offset));
                }
                // What a VHDX has as zeros hides what the parent has.
                Source::Zero => runs.push(Run { at: within, len: extent.len, zero: true }),
                Source::Parent => {}
            }
            within += extent.len;
        }
        self.buf.resize(as_usize(len), 0);
        // Blocks lie in the file as on the disk, so that one read gets many runs and what is between them.
        if let (Some(first), Some(last)) = (places.first(), places.last()) {
            let span = last.0 + last.1 - first.0;
            let held: u64 = places.iter().map(|place| place.1).sum();
            let one_run = last.2.checked_sub(first.2) == Some(last.0 - first.0);
            let small = held / places.len() as u64 <= SMALL;
            if one_run && (held >= span / 2 || (small && held >= span / 8)) {
                places = vec![(first.0, span, first.2)];
            }
        }
        for (within, len, file_offset) in places {
            let part = self.buf.get_mut(as_usize(within)..as_usize(within + len)).unwrap_or_default();
            let read = upper.read_data(part, file_offset, true);
            read.map_err(|error| self.failed(&upper, "read", error))?;
        }
        Ok(runs)
    }

    fn write(&self, at: u64, run: Run) -> io::Result<()> {
        if run.zero {
            let mode = ZeroMode { may_unmap: true, fast_only: false };
            return zero_layers(&self.below, at + run.at, run.len, mode);
        }
        let data = self.buf.get(as_usize(run.at)..as_usize(run.at + run.len)).unwrap_or_default();
        write_layers(&self.below, at + run.at, data)
    }

    pub(super) fn wait_for_leavers(&self) -> Result<(), MergeError> {
        match self.disk.chain.wait_for_leavers(&|| self.stopped()) {
            true => Ok(()),
            false => Err(self.why_stopped()),
        }
    }

    fn stopped(&self) -> bool {
        self.control.is_cancelled() || self.disk.merging.closing()
    }

    fn why_stopped(&self) -> MergeError {
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

/// Splits data into what was written and what is a hole of the file.
fn find_runs(layer: &Layer, at: u64, file_offset: u64, len: u64, runs: &mut Vec<Run>) -> io::Result<()> {
    if len < LOOK_FOR_HOLES {
        runs.push(Run { at, len, zero: false });
        return Ok(());
    }
    let mut done = 0;
    data_runs(layer, file_offset, len, &mut |len, data| {
        runs.push(Run { at: at + done, len, zero: !data });
        done += len;
        Ok(())
    })
}

pub(super) fn as_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

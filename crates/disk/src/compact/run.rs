//! The work of a compaction.

use super::{CompactError, Holds, empty::Looking, io_error};
use crate::{
    disk::Disk,
    layer::Layer,
    merge::{MergeControl, MergeStep, Pace},
    share::{CopyError, WORTH_SHARING, copy, fill},
    status::data_runs,
    threads,
    volume::FreeMap,
};
use backstay_vhd::{
    FileSpan, LayerFormat,
    compact::{Empty, Item, Move},
};
use std::{
    io::{self, ErrorKind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Bytes moved with one round of flushes.
const BATCH: u64 = 64 << 20;
/// The same while somebody may write to them.
const SERVED_BATCH: u64 = 8 << 20;
/// Empty blocks that lose their places with one round of flushes.
const EMPTY_BATCH: usize = 256;
/// Blocks that each thread looks at before those that are empty are gathered.
const LOOKED_AT: usize = 8;
/// Holes that stay are given back to the file system from this size on.
const WORTH_PUNCHING: u64 = 64 << 10;

pub(super) struct Compactor<'a> {
    disk: &'a Disk,
    control: &'a MergeControl,
    layers: Vec<Arc<Layer>>,
    holds: &'a Holds,
    /// What no file system on the disk needs.
    free: Option<&'a FreeMap>,
    /// Most bytes in a batch.
    batch: u64,
    /// That read and copy. A guest needs the other processors.
    threads: usize,
    pace: Pace,
    dropped: u64,
    moved: u64,
    bytes: AtomicU64,
}

impl<'a> Compactor<'a> {
    pub(super) fn new(
        disk: &'a Disk,
        control: &'a MergeControl,
        layers: Vec<Arc<Layer>>,
        holds: &'a Holds,
        free: Option<&'a FreeMap>,
        alone: bool,
    ) -> Self {
        let (batch, threads) = if alone { (BATCH, threads::for_copying()) } else { (SERVED_BATCH, 1) };
        let threads = control.threads(threads);
        let (pace, bytes) = (Pace::new(), AtomicU64::new(0));
        Self { disk, control, layers, holds, free, batch, threads, pace, dropped: 0, moved: 0, bytes }
    }

    /// Blocks dropped, blocks moved, bytes moved.
    pub(super) fn done(&self) -> (u64, u64, u64) {
        (self.dropped, self.moved, self.bytes.load(Relaxed))
    }

    pub(super) fn run(&mut self) -> Result<(), CompactError> {
        self.control.step(MergeStep::Begun);
        if self.free.is_some() {
            // What others know this disk by must not outlive a change of what it reads, though nobody needs that.
            let settled = self.image()?.settle_identity();
            settled.map_err(|error| self.failed("write to", error.into(), 0))?;
        }
        self.drop_empty()?;
        self.pack()?;
        self.control.step(MergeStep::Packed);
        self.punch_holes()?;
        self.control.step(MergeStep::Emptied);
        Ok(())
    }

    /// Blocks that hold nothing lose their places.
    fn drop_empty(&mut self) -> Result<(), CompactError> {
        let items = self.image()?.layout().items;
        let blocks: Vec<u32> = items
            .iter()
            .filter_map(|(item, _)| match item {
                Item::Block(block) => Some(*block),
                Item::Bitmap(_) => None,
            })
            .collect();
        self.control.begin(blocks.len() as u64);
        let mut found = Vec::new();
        let held_at_once = usize::try_from(self.batch / u64::from(self.top()?.block_size()).max(1));
        let most = self.control.batch_blocks(held_at_once.unwrap_or(1).clamp(1, EMPTY_BATCH));
        for some in blocks.chunks(LOOKED_AT * self.threads.max(1)) {
            for (block, how) in self.empty_of(some)? {
                if how.is_some() {
                    found.push(block);
                }
                if found.len() >= most {
                    self.forget(&std::mem::take(&mut found))?;
                }
                self.control.blocks_done(1);
            }
        }
        self.forget(&found)
    }

    /// How each of the blocks can be stored without a place, in their order.
    fn empty_of(&self, blocks: &[u32]) -> Result<Vec<(u32, Option<Empty>)>, CompactError> {
        let found = Mutex::new(Vec::with_capacity(blocks.len()));
        threads::each(self.threads, blocks.len(), |index, buf| {
            self.give_up_if_asked()?;
            let Some(block) = blocks.get(index) else { return Ok(()) };
            let mut looking = Looking { layers: &self.layers, free: self.free, buf: std::mem::take(buf) };
            let how = looking.empty(self.image()?, *block);
            *buf = looking.buf;
            let how = how.map_err(|error| self.read_failed(error))?;
            found.lock().unwrap_or_else(PoisonError::into_inner).push((index, *block, how));
            Ok(())
        })?;
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_unstable_by_key(|(index, _, _)| *index);
        Ok(found.into_iter().map(|(_, block, how)| (block, how)).collect())
    }

    fn read_failed(&self, error: io::Error) -> CompactError {
        self.top().map_or_else(|ended| ended, |top| io_error(top, "read", error))
    }

    /// Looks again while nobody writes to them.
    fn forget(&mut self, blocks: &[u32]) -> Result<(), CompactError> {
        if blocks.is_empty() {
            return Ok(());
        }
        let held = self.holds.hold(blocks.iter().copied());
        self.wait_for_leavers()?;
        self.flush()?;
        let looked = self.empty_of(blocks)?;
        let empty: Vec<(u32, Empty)> =
            looked.into_iter().filter_map(|(block, how)| Some((block, how?))).collect();
        self.control.step(MergeStep::Clear);
        let spans = self.image()?.forget_blocks(&empty);
        let spans = spans.map_err(|error| self.failed("write to", error.into(), 0))?;
        self.control.step(MergeStep::UpperFlush);
        self.flush()?;
        drop(held);
        self.control.step(MergeStep::Release);
        self.wait_for_leavers()?;
        for span in &spans {
            self.punch(*span);
        }
        self.image()?.free_places(&spans);
        self.dropped += empty.len() as u64;
        if self.free.is_some() {
            let size = u64::from(self.top()?.block_size());
            for (block, _) in &empty {
                let at = u64::from(*block) * size;
                self.disk.changed(at, size.min(self.top()?.size - at));
            }
        }
        Ok(())
    }

    /// The last blocks go into the holes.
    fn pack(&mut self) -> Result<(), CompactError> {
        // A hole may be taken by a new block between the look and the move: then it is looked again.
        let mut vain = 0;
        while vain < 8 {
            self.give_up_if_asked()?;
            let most = self.control.rate().unwrap_or(self.batch).min(self.batch);
            let mut moves = self.image()?.layout().moves(most);
            moves.truncate(self.control.batch_blocks(usize::MAX));
            if moves.is_empty() {
                return Ok(());
            }
            let bytes = moves.iter().map(|step| step.from.len).sum();
            let (disk, control) = (self.disk, self.control);
            // Before anybody is kept out.
            self.pace.wait(control, bytes, &|| control.is_cancelled() || disk.merging.closing());
            self.give_up_if_asked()?;
            let image = self.image()?;
            moves.retain(|step| image.take_place(step.to));
            vain = if moves.is_empty() { vain + 1 } else { 0 };
            let done = self.move_items(&moves);
            if let Err((error, untouched)) = done {
                // Their bytes are nobody's once what took them back is durable.
                if self.flush().is_ok() {
                    self.image()?.free_places(&untouched);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// On failure the places that are nobody's.
    fn move_items(&mut self, moves: &[Move]) -> Result<(), (CompactError, Vec<FileSpan>)> {
        let (blocks, bitmaps): (Vec<Move>, Vec<Move>) =
            moves.iter().copied().partition(|step| matches!(step.item, Item::Block(_)));
        let targets = |moves: &[Move]| moves.iter().map(|step| step.to).collect::<Vec<_>>();
        self.move_blocks(&blocks).map_err(|(error, untouched)| {
            let mut free = if untouched { targets(&blocks) } else { Vec::new() };
            free.extend(targets(&bitmaps));
            (error, free)
        })?;
        for (index, step) in bitmaps.iter().enumerate() {
            let rest = || targets(bitmaps.get(index + 1..).unwrap_or_default());
            self.move_bitmap(*step).map_err(|error| (error, rest()))?;
        }
        Ok(())
    }

    fn move_bitmap(&mut self, step: Move) -> Result<(), CompactError> {
        let Item::Bitmap(chunk) = step.item else { return Ok(()) };
        let moved = self.image()?.move_bitmap(chunk, step.to);
        moved.map_err(|error| self.failed("write to", error.into(), step.to.len))?;
        self.control.step(MergeStep::Release);
        self.wait_for_leavers()?;
        self.image()?.free_places(&[step.from]);
        self.bytes.fetch_add(step.from.len, Relaxed);
        Ok(())
    }

    /// With a failure comes whether the new places are still nobody's.
    fn move_blocks(&mut self, moves: &[Move]) -> Result<(), (CompactError, bool)> {
        let block = |step: &Move| match step.item {
            Item::Block(block) => Some(block),
            Item::Bitmap(_) => None,
        };
        if moves.is_empty() {
            return Ok(());
        }
        let held = self.holds.hold(moves.iter().filter_map(block));
        self.copy(moves).map_err(|error| (error, true))?;
        self.control.step(MergeStep::Clear);
        let image = self.image().map_err(|error| (error, true))?;
        image.set_places(moves).map_err(|error| (self.failed("write to", error.into(), 0), true))?;
        let rest = (|| -> Result<(), CompactError> {
            self.control.step(MergeStep::UpperFlush);
            self.flush()?;
            drop(held);
            self.control.step(MergeStep::Release);
            self.wait_for_leavers()?;
            let old: Vec<FileSpan> = moves.iter().map(|step| step.from).collect();
            self.image()?.free_places(&old);
            Ok(())
        })();
        rest.map_err(|error| (error, false))?;
        self.moved += moves.len() as u64;
        Ok(())
    }

    /// Steps 1 to 4.
    fn copy(&self, moves: &[Move]) -> Result<(), CompactError> {
        self.wait_for_leavers()?;
        self.flush()?;
        // Each has a place of its own, and none counts before the flush.
        threads::each(self.threads, moves.len(), |index, buf| {
            let Some(step) = moves.get(index) else { return Ok(()) };
            self.copy_span(*step, buf)?;
            self.control.step(MergeStep::Copied);
            self.give_up_if_asked()
        })?;
        self.control.step(MergeStep::LowerFlush);
        self.flush()
    }

    /// Brings what is not a hole into the new place, shared with the old one where the file system can, which goes afterwards.
    /// The rest reads as zeros in the new place too.
    fn copy_span(&self, step: Move, buf: &mut Vec<u8>) -> Result<(), CompactError> {
        let top = self.top()?;
        let Move { from, to, .. } = step;
        top.file.zero_range(to.offset, to.len).map_err(|error| self.failed("write to", error, to.len))?;
        let mut runs = Vec::new();
        let mut at = 0;
        data_runs(top, from.offset, from.len, &mut |len, data| {
            if data {
                runs.push((at, len));
            }
            at += len;
            Ok(())
        })
        .map_err(|error| self.read_failed(error))?;
        for (at, len) in runs {
            let (target, source) = ((top.file.as_ref(), to.offset + at), (top.as_ref(), from.offset + at));
            let done = match len < WORTH_SHARING {
                true => copy(target, source, len, buf),
                false => fill(target, source, len, buf).map(drop),
            };
            done.map_err(|error| match error {
                CopyError::Read(error) => self.read_failed(error),
                CopyError::Write(error) => self.failed("write to", error, to.len),
            })?;
            self.bytes.fetch_add(len, Relaxed);
            self.control.moved(len);
        }
        Ok(())
    }

    /// What stays a hole of the file gives its space back.
    fn punch_holes(&mut self) -> Result<(), CompactError> {
        let image = self.image()?;
        for hole in image.layout().holes.into_iter().filter(|hole| hole.len >= WORTH_PUNCHING) {
            if image.take_place(hole) {
                self.punch(hole);
                image.free_places(&[hole]);
            }
        }
        Ok(())
    }

    /// A failure costs space and nothing else.
    fn punch(&self, span: FileSpan) {
        let Ok(top) = self.top() else { return };
        if !top.file.punches() {
            return;
        }
        match top.file.zero_range(span.offset, span.len) {
            Ok(()) => self.control.freed(span.len),
            Err(error) => {
                tracing::warn!(path = %top.path.display(), %error, "cannot free the space of a hole");
            }
        }
    }

    fn flush(&self) -> Result<(), CompactError> {
        let top = self.top()?;
        top.flush().map_err(|error| io_error(top, "flush", error))
    }

    fn wait_for_leavers(&self) -> Result<(), CompactError> {
        match self.disk.chain.wait_for_leavers(&|| self.stopped()) {
            true => Ok(()),
            false => Err(self.why_stopped()),
        }
    }

    fn give_up_if_asked(&self) -> Result<(), CompactError> {
        if self.stopped() { Err(self.why_stopped()) } else { Ok(()) }
    }

    fn stopped(&self) -> bool {
        self.control.is_cancelled() || self.disk.merging.closing()
    }

    fn why_stopped(&self) -> CompactError {
        let path = self.layers.first().map(|top| top.path.clone()).unwrap_or_default();
        match self.disk.merging.closing() {
            true => CompactError::Closed { path },
            false => CompactError::Cancelled { path },
        }
    }

    fn top(&self) -> Result<&Arc<Layer>, CompactError> {
        self.layers.first().ok_or_else(|| self.why_stopped())
    }

    fn image(&self) -> Result<&dyn LayerFormat, CompactError> {
        let top = self.top()?;
        top.image().ok_or_else(|| CompactError::Raw { path: top.path.clone() })
    }

    fn failed(&self, action: &'static str, source: io::Error, needed: u64) -> CompactError {
        let path = self.layers.first().map(|top| top.path.clone()).unwrap_or_default();
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                CompactError::NoSpace { path, needed, source }
            }
            _ => CompactError::Io { path, action, source },
        }
    }
}

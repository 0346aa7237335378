//! Step 2 of the move: what the upper layer holds of some blocks is copied into the lower one, or shared with it.
//!
//! *Sharing* lets the file system give the lower file the space of the upper one. It keeps the order of the steps: the bytes are the
//! lower layer's, for good, after the flush that follows, as copied ones are. It takes both files for itself as long as it lasts,
//! though, and writes out what is new in the range. So the top of a disk in use is copied, for the guest writes to both files; a
//! layer further down is shared, for the guest only reads there.

use super::{
    MergeError, MergeStep,
    mover::{Mover, as_usize},
};
use crate::{
    backend::ZeroMode,
    layer::Layer,
    share::{CopyError, WORTH_SHARING, fill_layers},
    status::data_runs,
    threads,
    write::{write_layers, zero_layers},
};
use backstay_vhd::{ReadExtent, Source};
use std::{
    io,
    sync::{PoisonError, atomic::Ordering::Relaxed},
};

/// Bytes copied at once; a write to the same block waits that long at most.
const PIECE: u64 = 256 << 10;
/// Bytes shared at once.
const SHARED_PIECE: u64 = 4 << 20;
/// Bytes after which the device is told to begin.
const WRITEBACK: u64 = 4 << 20;
/// Runs up to this length on average are cheaper to read with what is between them.
const SMALL: u64 = 4096;
/// Data is looked through for holes from this size on.
const LOOK_FOR_HOLES: u64 = 64 << 10;
/// Each thread should have so many pieces at least.
const PIECES: usize = 8;

/// A part of a piece that the upper layer holds.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Offset in the piece.
    at: u64,
    len: u64,
    /// Where it is in the file; none: zeros.
    file_offset: Option<u64>,
}

/// What a piece consists of.
#[derive(Debug, Default)]
struct Runs {
    /// Are read and written, or are zeros.
    copied: Vec<Run>,
    shared: Vec<Run>,
}

impl Runs {
    fn all(&self) -> impl Iterator<Item = &Run> {
        self.copied.iter().chain(&self.shared)
    }
}

/// A range in one block.
#[derive(Clone, Copy, Debug)]
struct Piece {
    block: u32,
    /// Offset in the disk.
    at: u64,
    len: u64,
}

impl Mover<'_> {
    /// Copies what the upper layer holds of some blocks, in any order if nobody uses the disk.
    pub(super) fn copy_blocks(&self, blocks: &[u32]) -> Result<(), MergeError> {
        let pieces: Vec<Piece> = blocks.iter().flat_map(|block| self.pieces(*block)).collect();
        let best = match self.alone && self.control.rate().is_none() {
            true => threads::for_copying().min(pieces.len() / PIECES),
            false => 1,
        };
        threads::each(self.control.threads(best), pieces.len(), |index, buf| {
            pieces.get(index).map_or(Ok(()), |piece| self.copy_piece(*piece, buf))
        })
    }

    fn pieces(&self, block: u32) -> impl Iterator<Item = Piece> + use<> {
        let size = u64::from(self.upper.block_size());
        let most = if self.shares() { SHARED_PIECE } else { PIECE };
        let start = u64::from(block) * size;
        let end = (start + size).min(self.upper.size);
        let mut next = start;
        std::iter::from_fn(move || {
            let (at, len) = (next, most.min(end.checked_sub(next)?));
            next += len;
            (len > 0).then_some(Piece { block, at, len })
        })
    }

    /// Whether pieces are shared, as far as is known by now.
    fn shares(&self) -> bool {
        let quiet = self.alone || self.routing.is_none();
        quiet && self.lower().is_ok_and(|lower| lower.file.may_share(self.upper.file.as_ref()))
    }

    /// Copies what the upper layer holds of a range in one block.
    fn copy_piece(&self, piece: Piece, buf: &mut Vec<u8>) -> Result<(), MergeError> {
        let Piece { block, at, .. } = piece;
        // Read before writers are kept out; if one came, again.
        let version = self.routing.as_ref().map(|routing| routing.version(block));
        let mut runs = self.read(piece, buf)?;
        let bytes: u64 = runs.all().map(|run| run.len).sum();
        if bytes == 0 {
            return Ok(());
        }
        let (disk, control) = (self.disk, self.control);
        {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.wait(control, bytes, &|| control.is_cancelled() || disk.merging.closing());
        }
        if self.stopped() {
            return Err(self.why_stopped());
        }
        let alone = self.routing.as_ref().map(|routing| routing.lock(block));
        if let Some(routing) = &self.routing {
            if !routing.is_copying(block) {
                return Ok(());
            }
            if version != Some(routing.version(block)) {
                runs = self.read(piece, buf)?;
            }
        }
        for run in &runs.copied {
            self.write(at, *run, buf).map_err(|error| self.lower_failed(error))?;
        }
        for run in &runs.shared {
            self.share(at, *run, buf)?;
        }
        drop(alone);
        let data = runs.all().filter(|run| run.file_offset.is_some()).map(|run| run.len).sum();
        self.count(bytes, data);
        self.control.step(MergeStep::Copied);
        Ok(())
    }

    fn count(&self, bytes: u64, data: u64) {
        self.moved.fetch_add(bytes, Relaxed);
        self.data_moved.fetch_add(data, Relaxed);
        self.control.moved(bytes);
        let before = self.since_writeback.fetch_add(bytes, Relaxed);
        if before / WRITEBACK != (before + bytes) / WRITEBACK
            && let Some(writeback) = &self.writeback
        {
            let _is_at_it_already = writeback.try_send(());
        }
    }

    /// Finds what the upper layer holds of a range, and reads what is to be copied into the buffer, at its place in the range.
    fn read(&self, piece: Piece, buf: &mut Vec<u8>) -> Result<Runs, MergeError> {
        let failed = |error: io::Error| self.failed(&self.upper, "read", error);
        let mut extents: Vec<ReadExtent> = Vec::new();
        self.upper.resolve(piece.at, piece.len, &mut extents).map_err(|error| failed(error.into()))?;
        let shares = self.shares();
        let mut runs = Runs::default();
        let mut add = |run: Run| match run.file_offset {
            Some(_) if shares && run.len >= WORTH_SHARING => runs.shared.push(run),
            _ => runs.copied.push(run),
        };
        let mut within = 0;
        for extent in extents {
            match extent.source {
                Source::Data { file_offset } => {
                    find_runs(&self.upper, within, file_offset, extent.len, &mut add).map_err(failed)?;
                }
                // What a VHDX has as zeros hides what the parent has.
                Source::Zero => add(Run { at: within, len: extent.len, file_offset: None }),
                Source::Parent => {}
            }
            within += extent.len;
        }
        buf.resize(as_usize(piece.len), 0);
        for (within, len, file_offset) in places(&runs.copied) {
            let part = buf.get_mut(as_usize(within)..as_usize(within + len)).unwrap_or_default();
            self.upper.read_data(part, file_offset, true).map_err(failed)?;
        }
        Ok(runs)
    }

    fn write(&self, at: u64, run: Run, buf: &[u8]) -> io::Result<()> {
        if run.file_offset.is_none() {
            let mode = ZeroMode { may_unmap: true, fast_only: false };
            return zero_layers(&self.below, at + run.at, run.len, mode);
        }
        let data = buf.get(as_usize(run.at)..as_usize(run.at + run.len)).unwrap_or_default();
        write_layers(&self.below, at + run.at, data)
    }

    fn share(&self, at: u64, run: Run, buf: &mut Vec<u8>) -> Result<(), MergeError> {
        let Some(file_offset) = run.file_offset else { return Ok(()) };
        let from = (self.upper.as_ref(), file_offset);
        let filled = fill_layers(&self.below, at + run.at, from, run.len, buf);
        filled.map(drop).map_err(|error| match error {
            CopyError::Read(error) => self.failed(&self.upper, "read", error),
            CopyError::Write(error) => self.lower_failed(error),
        })
    }
}

/// What is read for some runs: offset in the piece, length, and where in the file. Blocks lie in the file as on the disk, so that
/// one read gets many runs and what is between them.
fn places(runs: &[Run]) -> Vec<(u64, u64, u64)> {
    let all = runs.iter().filter_map(|run| Some((run.at, run.len, run.file_offset?)));
    let places: Vec<(u64, u64, u64)> = all.collect();
    if let (Some(first), Some(last)) = (places.first(), places.last()) {
        let span = last.0 + last.1 - first.0;
        let held: u64 = places.iter().map(|place| place.1).sum();
        let one_run = last.2.checked_sub(first.2) == Some(last.0 - first.0);
        let small = held / places.len() as u64 <= SMALL;
        if one_run && (held >= span / 2 || (small && held >= span / 8)) {
            return vec![(first.0, span, first.2)];
        }
    }
    places
}

/// Splits data into what was written and what is a hole of the file.
fn find_runs(layer: &Layer, at: u64, file_offset: u64, len: u64, add: &mut dyn FnMut(Run)) -> io::Result<()> {
    if len < LOOK_FOR_HOLES {
        add(Run { at, len, file_offset: Some(file_offset) });
        return Ok(());
    }
    let mut done = 0;
    data_runs(layer, file_offset, len, &mut |len, data| {
        add(Run { at: at + done, len, file_offset: data.then_some(file_offset + done) });
        done += len;
        Ok(())
    })
}

//! New blocks come from an extent that is reserved, complete with bitmaps and footer, and durable before any table entry
//! may point into it. From then on it does not matter when an entry becomes durable: the block reads as before.

use std::{io, sync::Arc};

use crate::{
    Storage,
    errors::{IoContext, MetaError},
    format::{
        SECTOR,
        bat::{ABSENT, Blocks},
        footer::FOOTER_LEN,
    },
};

/// An extent grows to this many bytes of block data: each one costs a sync, which all writers of new blocks wait for.
const MAX_EXTENT: u64 = 256 << 20;
/// An extent has this many times the blocks of the one before.
const GROWTH: u32 = 4;

const FOOTER: u64 = FOOTER_LEN as u64;

/// Hands out places for blocks. Lives behind a mutex.
#[derive(Debug)]
pub(crate) struct Allocator {
    storage: Arc<dyn Storage>,
    blocks: Blocks,
    footer: [u8; FOOTER_LEN],
    /// Bitmaps of new blocks are all ones (dynamic disks) rather than zeros (differencing ones).
    full_bitmaps: bool,
    /// First byte that belongs to nothing that is in use.
    free: u64,
    /// First byte behind the structures at the start of the file.
    metadata_end: u64,
    /// Places left in the extent.
    left: u32,
    /// Blocks of the next extent.
    step: u32,
    /// Where the footer is; unless `stale`.
    footer_at: u64,
    /// Bytes of unknown origin lie beyond `free`: what an earlier process reserved or a crash left.
    stale: bool,
    /// Blocks not in the file.
    absent: u32,
    /// The end of the file is ours to tidy up when it closes.
    tidy_at_close: bool,
    /// Places in use for something else than blocks: start and end.
    kept: Vec<(u64, u64)>,
}

/// What an allocator has to know of the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) footer: [u8; FOOTER_LEN],
    pub(crate) full_bitmaps: bool,
    pub(crate) free: u64,
    pub(crate) metadata_end: u64,
    /// The footer lies at `free` and ends the file.
    pub(crate) tidy: bool,
    pub(crate) absent: u32,
    /// Files of other programs keep what lies behind their last block unless space is needed.
    pub(crate) tidy_at_close: bool,
}

impl Allocator {
    pub(crate) fn new(storage: Arc<dyn Storage>, blocks: Blocks, start: Start) -> Self {
        let Start { footer, full_bitmaps, free, metadata_end, tidy, absent, tidy_at_close } = start;
        Self {
            storage,
            blocks,
            footer,
            full_bitmaps,
            free,
            metadata_end,
            left: 0,
            step: 1,
            footer_at: free,
            stale: !tidy,
            absent,
            tidy_at_close,
            kept: Vec::new(),
        }
    }

    /// A place for one block, its bitmap and zeros durable there; the sector of its bitmap.
    pub(crate) fn take(&mut self) -> Result<u32, MetaError> {
        if self.left == 0 {
            self.reserve()?;
        }
        let start = self.blocks.place(self.free).ok_or(MetaError::TooLarge)?;
        let sector = u32::try_from(start / SECTOR).map_err(|_| MetaError::TooLarge)?;
        self.free = start + self.blocks.stored_len();
        self.left -= 1;
        self.absent = self.absent.saturating_sub(1);
        Ok(sector)
    }

    /// Takes back a place that [`Allocator::take`] gave and that reads as durable zeros again.
    pub(crate) fn give_back(&mut self, sector: u32) {
        self.absent += 1;
        let start = u64::from(sector) * SECTOR;
        // In the middle of the file it costs no space but that of a hole.
        if self.free == start + self.blocks.stored_len() {
            self.free = start;
            self.left += 1;
        }
    }

    /// A place that [`Allocator::take`] gave is in use for something else than a block.
    pub(crate) fn keep(&mut self, sector: u32) {
        let start = u64::from(sector) * SECTOR;
        let end = start + self.blocks.stored_len();
        self.metadata_end = self.metadata_end.max(end);
        self.kept.push((start, end));
    }

    /// Places that [`Allocator::keep`] told of.
    pub(crate) fn kept(&self) -> &[(u64, u64)] {
        &self.kept
    }

    /// Blocks at the end were given away, durably; the last one that is left ends at `blocks_end`.
    pub(crate) fn give_back_tail(&mut self, blocks_end: u64) {
        let free = self.metadata_end.max(blocks_end);
        if free < self.free {
            (self.free, self.left) = (free, 0);
        }
    }

    /// The file is cut where its last block ends when it closes, whoever made it.
    pub(crate) fn tidy_at_close(&mut self) {
        self.tidy_at_close = true;
    }

    /// The footer, wherever it is written next.
    pub(crate) fn footer(&self) -> [u8; FOOTER_LEN] {
        self.footer
    }

    /// Replaces the footer at the end of the file, which a [`Allocator::take`] has made sure of.
    pub(crate) fn set_footer(&mut self, footer: [u8; FOOTER_LEN]) -> Result<(), MetaError> {
        let old = std::mem::replace(&mut self.footer, footer);
        let at = self.footer_at;
        if self.stale {
            return Ok(());
        }
        self.storage
            .write_at(&footer, at)
            .meta_context("write the footer", at)
            .inspect_err(|_| self.footer = old)
    }

    fn reserve(&mut self) -> Result<(), MetaError> {
        let most = u32::try_from(MAX_EXTENT / self.blocks.block_size).unwrap_or(u32::MAX).max(1);
        let wanted = self.step.min(most).min(self.absent.max(1));
        let done = match self.try_extent(wanted) {
            Err(error) if wanted > 1 && retry_smaller(&error) => self.try_extent(1).map(|()| 1),
            other => other.map(|()| wanted),
        };
        let count = done.map_err(|error| match error {
            MetaError::Io { source, .. } if is_full(&source) => MetaError::NoSpace(source),
            other => other,
        })?;
        self.left = count;
        self.step = count.saturating_mul(GROWTH);
        Ok(())
    }

    fn try_extent(&mut self, count: u32) -> Result<(), MetaError> {
        let mut places = Vec::with_capacity(count as usize);
        let mut end = self.free;
        for _ in 0..count {
            let start = self.blocks.place(end).ok_or(MetaError::TooLarge)?;
            end = start + self.blocks.stored_len();
            places.push(start);
        }
        // Entries are 32-bit sector numbers, and the largest means "absent".
        if end.div_ceil(SECTOR) >= u64::from(ABSENT) {
            return Err(MetaError::TooLarge);
        }
        match self.write_extent(&places, end) {
            Ok(()) => {
                self.footer_at = end;
                self.stale = false;
                self.tidy_at_close = true;
                Ok(())
            }
            Err(error) => {
                self.undo();
                Err(error)
            }
        }
    }

    fn write_extent(&mut self, places: &[u64], end: u64) -> Result<(), MetaError> {
        let storage = &self.storage;
        if self.stale {
            // Cut off what lies there, so that the extent reads as zeros. The copy at the start stands in for the footer.
            storage.set_len(self.free).meta_context("cut the end of the file to", self.free)?;
        }
        storage.set_len(end + FOOTER).meta_context("grow the file to", end + FOOTER)?;
        storage.write_at(&self.footer, end).meta_context("write the footer", end)?;
        if !self.stale {
            // The old footer lies where a bitmap, data or padding belongs.
            storage
                .write_at(&[0; FOOTER_LEN], self.footer_at)
                .meta_context("clear the old footer", self.footer_at)?;
        }
        if self.full_bitmaps {
            let bitmap = vec![0xff; usize::try_from(self.blocks.bitmap_len).unwrap_or(FOOTER_LEN)];
            for place in places {
                storage.write_at(&bitmap, *place).meta_context("write a bitmap", *place)?;
            }
        }
        storage.flush().map_err(|source| MetaError::Io { action: FLUSH, offset: end, source })
    }

    /// Puts length and footer back after a failure. What does not work now, the next extent or the next open repairs.
    fn undo(&mut self) {
        let storage = &self.storage;
        let restored = if self.stale {
            storage
                .set_len(self.free)
                .and_then(|()| storage.set_len(self.free + FOOTER))
                .and_then(|()| storage.write_at(&self.footer, self.free))
        } else {
            storage
                .write_at(&self.footer, self.footer_at)
                .and_then(|()| storage.set_len(self.footer_at + FOOTER))
        };
        if self.stale && restored.is_ok() {
            self.footer_at = self.free;
        }
        self.stale = restored.is_err();
    }

    /// Ends the file where its last block ends. Returns whether anything was written.
    pub(crate) fn trim_tail(&mut self) -> Result<bool, MetaError> {
        if !self.tidy_at_close || (!self.stale && self.footer_at == self.free) {
            return Ok(false);
        }
        let storage = &self.storage;
        // Two footers for a moment: whichever length survives a crash, one is at the end.
        let len = storage.len().meta_context("read the length of the file", 0)?;
        if len < self.free + FOOTER {
            storage.set_len(self.free + FOOTER).meta_context("grow the file to", self.free + FOOTER)?;
        }
        match storage.write_at(&self.footer, self.free) {
            // A hole that a full volume has no room for. The file ends with a footer as it is.
            Err(source) if is_full(&source) && !self.stale => return Ok(false),
            written => written.meta_context("write the footer", self.free)?,
        }
        storage.flush().meta_context(FLUSH, self.free)?;
        storage.set_len(self.free + FOOTER).meta_context("cut the end of the file to", self.free + FOOTER)?;
        storage.flush().meta_context(FLUSH, self.free)?;
        self.footer_at = self.free;
        self.stale = false;
        self.left = 0;
        Ok(true)
    }
}

/// The action in the error of a failed flush.
pub(crate) const FLUSH: &str = "make the metadata durable";

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

fn retry_smaller(error: &MetaError) -> bool {
    match error {
        MetaError::TooLarge => true,
        MetaError::Io { source, action, .. } => *action != FLUSH && is_full(source),
        _ => false,
    }
}

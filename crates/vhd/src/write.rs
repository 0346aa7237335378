//! Where writes, zeros and trims go; when they become visible; when they become durable.

use std::sync::{
    PoisonError,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    alloc::FLUSH,
    bitmap::BlockBits,
    errors::{IoContext, MetaError},
    flush::EarlierFailure,
    format::{SECTOR, bat::ABSENT},
    image::{Differencing, Image, Part, ReadExtent, Source, SparseImage, SparseKind},
};

/// One part of a write: where in the file it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteExtent {
    /// Offset in the disk, in bytes.
    pub disk_offset: u64,
    /// Bytes.
    pub len: u64,
    /// Offset in the file, in bytes.
    pub file_offset: u64,
}

/// A write or zeroing under way. Dropping it without [`Image::complete_write`] aborts.
#[derive(Clone, Debug, Default)]
pub struct WriteTicket {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) extents: Vec<WriteExtent>,
}

impl WriteTicket {
    /// An empty one; it can be used again and again.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The parts in order. After [`Image::begin_write`] they cover the range without gaps.
    #[must_use]
    pub fn extents(&self) -> &[WriteExtent] {
        &self.extents
    }

    pub(crate) fn reset(&mut self, offset: u64, len: u64) {
        self.offset = offset;
        self.len = len;
        self.extents.clear();
    }
}

impl From<EarlierFailure> for MetaError {
    fn from(_: EarlierFailure) -> Self {
        Self::FlushFailed
    }
}

impl Image {
    /// Finds where `offset..offset + len` goes, adding blocks where needed. The caller writes its data to
    /// `ticket.extents()` and then calls [`Image::complete_write`]; else the disk reads as before (in a differencing
    /// disk; elsewhere each sector that was written is new).
    ///
    /// # Errors
    /// If the range is not whole sectors inside the disk, the disk is not writable, there is no space, or the metadata
    /// cannot be written.
    pub fn begin_write(&self, offset: u64, len: u64, ticket: &mut WriteTicket) -> Result<(), MetaError> {
        self.begin(offset, len, ticket, Absent::Add)
    }

    /// Like [`Image::begin_write`] for a write of zeros: the caller makes `ticket.extents()` read as zeros (a hole will
    /// do) and calls [`Image::complete_write`]. What is zero for lack of a block is left out.
    ///
    /// # Errors
    /// As [`Image::begin_write`].
    pub fn begin_zero(&self, offset: u64, len: u64, ticket: &mut WriteTicket) -> Result<(), MetaError> {
        self.begin(offset, len, ticket, Absent::SkipIfZero)
    }

    fn begin(
        &self,
        offset: u64,
        len: u64,
        ticket: &mut WriteTicket,
        absent: Absent,
    ) -> Result<(), MetaError> {
        ticket.reset(offset, len);
        self.check_writable()?;
        self.check_range(offset, len)?;
        let Some(sparse) = &self.sparse else {
            push(&mut ticket.extents, WriteExtent { disk_offset: offset, len, file_offset: offset });
            return Ok(());
        };
        let mut at = offset;
        for part in sparse.blocks.parts(offset, len) {
            let mut entry = sparse.entry(part.block);
            if entry == ABSENT {
                if absent == Absent::SkipIfZero && matches!(sparse.kind, SparseKind::Dynamic { .. }) {
                    at += part.len;
                    continue;
                }
                entry = self.add_block(sparse, part.block)?;
            }
            if let SparseKind::Dynamic { full } = &sparse.kind {
                self.fill_bitmap(sparse, full, part.block, entry)?;
            }
            let file_offset = sparse.data_offset(entry) + part.within;
            push(&mut ticket.extents, WriteExtent { disk_offset: at, len: part.len, file_offset });
            at += part.len;
        }
        Ok(())
    }

    /// Makes a finished write visible. From here on it survives the death of this process; after the next
    /// [`Image::flush`] it survives power loss.
    ///
    /// # Errors
    /// If the metadata cannot be kept; the write must not be acknowledged then.
    pub fn complete_write(&self, ticket: &WriteTicket) -> Result<(), MetaError> {
        self.check_writable()?;
        let Some(sparse) = &self.sparse else { return Ok(()) };
        let SparseKind::Differencing(diff) = &sparse.kind else { return Ok(()) };
        let (mut synced, mut unshadowed) = (false, false);
        for part in sparse.blocks.parts(ticket.offset, ticket.len) {
            let entry = sparse.entry(part.block);
            let bits = self.bits(sparse, diff, part.block, entry)?;
            let (start, end) = part.sectors();
            if bits.all(start, end) {
                continue;
            }
            match &diff.shadow {
                Some(shadow) => {
                    let mut pending = bits.lock();
                    let (first, bytes) = bits.bytes_with(start, end);
                    // No room there is no reason to fail the write: its bits then reach the file by a flush.
                    unshadowed |= shadow.put(part.block, entry, first, &bytes).is_err();
                    // Pending before live: whoever sees a live bit that is not pending knows that its data was there
                    // before the last flush began.
                    if bits.pend(&mut pending, start, end) {
                        diff.dirty().push(part.block);
                    }
                    bits.publish(start, end);
                }
                None => {
                    if !synced {
                        self.sync_file(0)?;
                        synced = true;
                    }
                    self.write_through(bits, entry, &part)?;
                }
            }
        }
        if unshadowed { self.flush() } else { Ok(()) }
    }

    /// Without a shadow: the data is durable, so the bits go to the file now.
    fn write_through(&self, bits: &BlockBits, entry: u32, part: &Part) -> Result<(), MetaError> {
        let (start, end) = part.sectors();
        let bitmap = u64::from(entry) * SECTOR;
        let pending = bits.lock();
        let (first, bytes) = bits.bytes_with(start, end);
        let at = bitmap + first as u64;
        self.storage.write_at(&bytes, at).meta_context("write a bitmap", at)?;
        bits.publish(start, end);
        drop(pending);
        Ok(())
    }

    /// Appends the parts of a range that are stored in this file and may be punched out to trim it: afterwards they
    /// read as zeros, and the rest of the range as before. Empty for a fixed disk, which keeps its space.
    ///
    /// # Errors
    /// As [`Image::resolve_read`], or if the disk is not writable.
    pub fn trim_extents(&self, offset: u64, len: u64, out: &mut Vec<WriteExtent>) -> Result<(), MetaError> {
        self.check_writable()?;
        self.check_range(offset, len)?;
        if self.sparse.is_none() {
            return Ok(());
        }
        let mut parts: Vec<ReadExtent> = Vec::new();
        self.resolve_read(offset, len, &mut parts)?;
        let mut at = offset;
        for part in parts {
            if let Source::Data { file_offset } = part.source {
                out.push(WriteExtent { disk_offset: at, len: part.len, file_offset });
            }
            at += part.len;
        }
        Ok(())
    }

    /// Returns when everything completed before the call is durable. Calls at the same time share the work.
    ///
    /// # Errors
    /// If that failed now or ever before: then nothing is known about earlier writes, and no later call succeeds.
    pub fn flush(&self) -> Result<(), MetaError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(MetaError::Closed);
        }
        self.commit.run(|| self.flush_round())
    }

    fn flush_round(&self) -> Result<(), MetaError> {
        let taken = match self.differencing() {
            Some((_, diff)) => {
                let dirty = std::mem::take(&mut *diff.dirty());
                dirty
                    .into_iter()
                    .filter_map(|block| Some((block, diff.bits.get(block)?.take_pending()?)))
                    .collect::<Vec<_>>()
            }
            None => Vec::new(),
        };
        self.storage.flush().meta_context("make data durable", 0)?;
        let Some((sparse, diff)) = self.differencing().filter(|_| !taken.is_empty()) else { return Ok(()) };
        for (block, words) in &taken {
            let Some(bits) = diff.bits.get(*block) else { continue };
            let entry = sparse.entry(*block);
            if entry == ABSENT {
                continue; // given away meanwhile, with its content
            }
            let bitmap = u64::from(entry) * SECTOR;
            for (within, sector) in bits.sectors_to_write(words) {
                let at = bitmap + within;
                self.storage.write_at(&sector, at).meta_context("write a bitmap", at)?;
            }
        }
        self.storage.flush().meta_context(FLUSH, 0)
    }

    /// Flushes, ends the file where its last block ends, and refuses all later writes and flushes. Closing twice is fine.
    ///
    /// # Errors
    /// As [`Image::flush`].
    pub fn close(&self) -> Result<(), MetaError> {
        if self.closed.swap(true, Ordering::AcqRel) || !self.writable {
            return Ok(());
        }
        self.commit.run(|| self.flush_round())?;
        if let Some(sparse) = &self.sparse {
            let mut allocator = sparse.allocator.lock().unwrap_or_else(PoisonError::into_inner);
            let ends = (0..sparse.blocks.count).map(|block| sparse.entry(block)).filter(|e| *e != ABSENT);
            let last = ends.map(|entry| u64::from(entry) * SECTOR + sparse.blocks.stored_len()).max();
            allocator.give_back_tail(last.unwrap_or(0));
            allocator.trim_tail().inspect_err(|_| self.commit.fail())?;
        }
        self.clear_shadow()
    }

    /// Closes a disk whose blocks have all been given away: as [`Image::close`], but the space behind the last block stays
    /// taken, for a file that is removed next.
    ///
    /// # Errors
    /// As [`Image::flush`].
    pub fn retire(&self) -> Result<(), MetaError> {
        if self.closed.swap(true, Ordering::AcqRel) || !self.writable {
            return Ok(());
        }
        self.commit.run(|| self.flush_round())?;
        self.clear_shadow()
    }

    fn clear_shadow(&self) -> Result<(), MetaError> {
        match self.differencing() {
            Some((_, Differencing { shadow: Some(shadow), .. })) => {
                shadow.clear().meta_context("clear the shadow", 0)
            }
            _ => Ok(()),
        }
    }

    /// Refuses writes and flushes from now on, as after a failed flush: what was written to a parent may be lost.
    pub fn fail(&self) {
        self.commit.fail();
    }

    pub(crate) fn check_writable(&self) -> Result<(), MetaError> {
        if !self.writable {
            return Err(MetaError::ReadOnly);
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(MetaError::Closed);
        }
        if self.commit.has_failed() {
            return Err(MetaError::FlushFailed);
        }
        Ok(())
    }

    /// Gives a block its place; the entry of the table. Another thread may have been first.
    fn add_block(&self, sparse: &SparseImage, block: u32) -> Result<u32, MetaError> {
        let mut allocator = sparse.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        // `close` gives the unused part of the extent back under this lock.
        self.check_writable()?;
        let entry = sparse.entry(block);
        if entry != ABSENT {
            return Ok(entry);
        }
        let entry = allocator.take().inspect_err(|error| {
            if matches!(error, MetaError::Io { action, .. } if *action == FLUSH) {
                self.commit.fail();
            }
        })?;
        match &sparse.kind {
            SparseKind::Dynamic { full } => mark(full, block),
            SparseKind::Differencing(diff) => {
                let known = diff.bits.insert(block, BlockBits::empty(sparse.blocks.bitmap_len_usize()));
                // It may have been here before, and been given away.
                known.into_iter().for_each(BlockBits::reset);
            }
        }
        // If this fails the place is given up: the entry may or may not have reached the file.
        self.write_entry(sparse, block, entry)?;
        if let Some(slot) = sparse.table.get(block as usize) {
            slot.store(entry, Ordering::Release);
        }
        Ok(entry)
    }

    /// The first write into a block that was there at open sets its whole bitmap: programs that look at the bitmaps of
    /// dynamic disks (Virtual PC, Xen) would otherwise not see the data, and what was never written is zeros anyway.
    fn fill_bitmap(
        &self,
        sparse: &SparseImage,
        full: &[AtomicU64],
        block: u32,
        entry: u32,
    ) -> Result<(), MetaError> {
        let known = full.get((block / 64) as usize).map_or(0, |word| word.load(Ordering::Acquire));
        if known & (1 << (block % 64)) != 0 {
            return Ok(());
        }
        let at = u64::from(entry) * SECTOR;
        let mut bitmap = vec![0; sparse.blocks.bitmap_len_usize()];
        self.storage.read_at(&mut bitmap, at).meta_context("read a bitmap", at)?;
        if bitmap.iter().any(|byte| *byte != 0xff) {
            bitmap.fill(0xff);
            self.storage.write_at(&bitmap, at).meta_context("write a bitmap", at)?;
        }
        mark(full, block);
        Ok(())
    }
}

/// What to do about blocks that are not in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    Add,
    SkipIfZero,
}

fn mark(full: &[AtomicU64], block: u32) {
    if let Some(word) = full.get((block / 64) as usize) {
        word.fetch_or(1 << (block % 64), Ordering::AcqRel);
    }
}

pub(crate) fn push(out: &mut Vec<WriteExtent>, extent: WriteExtent) {
    if let Some(last) = out.last_mut()
        && last.file_offset + last.len == extent.file_offset
        && last.disk_offset + last.len == extent.disk_offset
    {
        last.len += extent.len;
        return;
    }
    if extent.len > 0 {
        out.push(extent);
    }
}

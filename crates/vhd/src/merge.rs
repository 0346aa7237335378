//! What a differencing disk gives away: whole blocks, once the parent holds their content for good.
//!
//! The order is the caller's, and everything depends on it:
//! 1. the parent has the content of the block, durable;
//! 2. [`Image::clear_entries`], then [`Image::flush`]: from now on a crash finds the parent's content;
//! 3. [`Image::drop_blocks`]: from now on readers do;
//! 4. when nobody reads there any more, the space that the blocks had may be punched out.
//!
//! No block of the disk may be added, and none of the given ones written to, from 2 to the end of 3, unless the writes also go to the
//! parent.

use std::sync::{PoisonError, atomic::Ordering};

use crate::{
    alloc::FLUSH,
    compact::{Empty, Item, Layout, Move},
    errors::{IoContext, MetaError},
    format::{
        SECTOR,
        bat::{ABSENT, DATA_ALIGN},
        footer::FOOTER_LEN,
        header::HEADER_LEN,
    },
    image::{Image, SparseImage, SparseKind},
};

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileSpan {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Image {
    /// The blocks that a differencing disk has in its file, in the order in which they lie there: what is given away together
    /// is then one piece of the file. Empty for the other kinds, which give nothing away.
    #[must_use]
    pub fn held_blocks(&self) -> Vec<u32> {
        let Some((sparse, _)) = self.differencing() else { return Vec::new() };
        let all = 0..sparse.blocks.count;
        let mut held: Vec<u32> = all.filter(|block| sparse.entry(*block) != ABSENT).collect();
        held.sort_by_key(|block| sparse.entry(*block));
        held
    }

    /// Bytes of the block's sectors that a differencing disk holds.
    ///
    /// # Errors
    /// If the bitmap cannot be read.
    pub fn held_bytes(&self, block: u32) -> Result<u64, MetaError> {
        let Some((sparse, diff)) = self.differencing() else { return Ok(0) };
        let entry = sparse.entry(block);
        if entry == ABSENT {
            return Ok(0);
        }
        let sectors = sparse.blocks.used_len(block) / SECTOR;
        Ok(self.bits(sparse, diff, block, entry)?.count(sectors) * SECTOR)
    }

    /// Clears the table entries of these blocks in the file, not for readers. Without a flush afterwards each of them may
    /// come back after a power cut.
    ///
    /// # Errors
    /// If the file cannot be written. The entries are as before then, or if even that fails the disk takes no more writes.
    pub fn clear_entries(&self, blocks: &[u32]) -> Result<(), MetaError> {
        self.check_writable()?;
        let Some(sparse) = &self.sparse else { return Ok(()) };
        for (index, block) in blocks.iter().enumerate() {
            if let Err(error) = self.write_entry(sparse, *block, ABSENT) {
                let back = blocks.iter().take(index + 1);
                // What the file says and what readers are told must not stay different.
                for block in back {
                    if self.write_entry(sparse, *block, sparse.entry(*block)).is_err() {
                        self.commit.fail();
                    }
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// From now on readers find these blocks in the parent; without one they are zeros. Returns the places they had.
    pub fn drop_blocks(&self, blocks: &[u32]) -> Vec<FileSpan> {
        let Some(sparse) = &self.sparse else { return Vec::new() };
        // Nobody adds a block meanwhile.
        let _allocator = sparse.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let len = sparse.blocks.stored_len();
        let place = |block: &u32| {
            let entry = sparse.table.get(*block as usize)?.swap(ABSENT, Ordering::AcqRel);
            (entry != ABSENT).then(|| FileSpan { offset: u64::from(entry) * SECTOR, len })
        };
        blocks.iter().filter_map(place).collect()
    }

    /// What lies where in the file, for a compaction.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let mut layout =
            Layout { items: Vec::new(), holes: Vec::new(), fixed_end: 0, lead: 0, align: DATA_ALIGN };
        let Some(sparse) = &self.sparse else { return layout };
        let blocks = sparse.blocks;
        layout.lead = blocks.bitmap_len;
        // A place that is handed out and not in the table yet would look like a hole.
        let allocator = sparse.allocator();
        let mut taken: Vec<(u64, u64)> = sparse.regions.iter().chain(allocator.kept()).copied().collect();
        layout.fixed_end = taken.iter().map(|(_, end)| *end).max().unwrap_or(0);
        for block in 0..blocks.count {
            let entry = sparse.entry(block);
            if entry != ABSENT {
                let span = FileSpan { offset: u64::from(entry) * SECTOR, len: blocks.stored_len() };
                layout.items.push((Item::Block(block), span));
            }
        }
        layout.items.sort_unstable_by_key(|(_, span)| span.offset);
        // The place of the header, wherever it is now.
        taken.push((0, (FOOTER_LEN + HEADER_LEN) as u64));
        taken.extend(layout.items.iter().map(|(_, span)| (span.offset, span.offset + span.len)));
        layout.holes = Layout::holes_between(taken, 0);
        layout
    }

    /// Takes a hole for a block. New blocks go behind all others, so nobody else does.
    #[must_use]
    pub fn take_place(&self, _place: FileSpan) -> bool {
        self.sparse.is_some()
    }

    /// Places that nothing needs any more are found by looking at the table.
    pub fn free_places(&self, _places: &[FileSpan]) {
        if let Some(sparse) = &self.sparse {
            sparse.allocator().tidy_at_close();
        }
    }

    /// Blocks lose their places. The places they had, which are free after a flush and when nobody reads there.
    ///
    /// # Errors
    /// As [`Image::clear_entries`].
    pub fn forget_blocks(&self, blocks: &[(u32, Empty)]) -> Result<Vec<FileSpan>, MetaError> {
        // What hides a parent cannot be said without a block.
        let blocks: Vec<u32> =
            blocks.iter().filter(|(_, how)| *how == Empty::Absent).map(|(block, _)| *block).collect();
        self.forget_shadow(&blocks)?;
        self.clear_entries(&blocks)?;
        Ok(self.drop_blocks(&blocks))
    }

    /// Blocks are somewhere else: their bytes are there, durably. A flush makes it so for good.
    ///
    /// # Errors
    /// As [`Image::clear_entries`].
    pub fn set_places(&self, moves: &[Move]) -> Result<(), MetaError> {
        self.check_writable()?;
        let Some(sparse) = &self.sparse else { return Ok(()) };
        let moved: Vec<(u32, u32)> = moves
            .iter()
            .filter_map(|step| match step.item {
                Item::Block(block) => Some((block, u32::try_from(step.to.offset / SECTOR).ok()?)),
                Item::Bitmap(_) => None,
            })
            .collect();
        self.forget_shadow(&moved.iter().map(|(block, _)| *block).collect::<Vec<_>>())?;
        for (index, (block, entry)) in moved.iter().enumerate() {
            if let Err(error) = self.write_entry(sparse, *block, *entry) {
                for (block, _) in moved.iter().take(index + 1) {
                    if self.write_entry(sparse, *block, sparse.entry(*block)).is_err() {
                        self.commit.fail();
                    }
                }
                return Err(error);
            }
        }
        for (block, entry) in moved {
            if let Some(slot) = sparse.table.get(block as usize) {
                slot.store(entry, Ordering::Release);
            }
        }
        Ok(())
    }

    /// A VHD has no sector bitmap blocks.
    ///
    /// # Errors
    /// Never.
    pub fn move_bitmap(&self, _chunk: u32, _to: FileSpan) -> Result<(), MetaError> {
        Ok(())
    }

    /// Bits beside the file are known by the place of their block, and are in the file since the last flush.
    fn forget_shadow(&self, blocks: &[u32]) -> Result<(), MetaError> {
        let Some(shadow) = self.differencing().and_then(|(_, diff)| diff.shadow.as_ref()) else {
            return Ok(());
        };
        blocks.iter().try_for_each(|block| shadow.forget(*block).meta_context("clear the shadow", 0))
    }

    pub(crate) fn write_entry(&self, sparse: &SparseImage, block: u32, entry: u32) -> Result<(), MetaError> {
        let at = sparse.table_offset + u64::from(block) * 4;
        self.storage.write_at(&entry.to_be_bytes(), at).meta_context("write the block allocation table", at)
    }

    /// Syncs the file; a failure is remembered.
    pub(crate) fn sync_file(&self, offset: u64) -> Result<(), MetaError> {
        self.storage.flush().meta_context(FLUSH, offset).inspect_err(|_| self.commit.fail())
    }

    /// The state of a differencing disk.
    pub(crate) fn differencing(&self) -> Option<(&SparseImage, &crate::image::Differencing)> {
        match &self.sparse {
            Some(sparse) => match &sparse.kind {
                SparseKind::Differencing(diff) => Some((sparse, diff)),
                SparseKind::Dynamic { .. } => None,
            },
            None => None,
        }
    }
}

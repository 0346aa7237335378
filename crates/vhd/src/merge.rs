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
    errors::{IoContext, MetaError},
    format::{SECTOR, bat::ABSENT},
    image::{Image, SparseImage, SparseKind},
};

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        let Some((sparse, _)) = self.differencing() else { return Ok(()) };
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

    /// From now on readers find these blocks in the parent. Returns the places they had.
    pub fn drop_blocks(&self, blocks: &[u32]) -> Vec<FileSpan> {
        let Some((sparse, _)) = self.differencing() else { return Vec::new() };
        // Nobody adds a block meanwhile.
        let _allocator = sparse.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let len = sparse.blocks.stored_len();
        let place = |block: &u32| {
            let entry = sparse.table.get(*block as usize)?.swap(ABSENT, Ordering::AcqRel);
            (entry != ABSENT).then(|| FileSpan { offset: u64::from(entry) * SECTOR, len })
        };
        blocks.iter().filter_map(place).collect()
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

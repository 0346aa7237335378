//! What a differencing disk gives away: whole blocks, once the parent holds their content for good. The same calls in the same
//! order as [`crate::Image::clear_entries`] and its neighbours; a block that reads as zeros is held too, since the parent
//! may have something else.

use std::sync::atomic::Ordering;

use crate::{FileSpan, MetaError};

use super::{
    bat::{Entry, State},
    image::Image,
    session::Level,
};

impl Image {
    /// The blocks that do not read as the parent, in order. Empty for disks without a parent, which give nothing away.
    #[must_use]
    pub fn held_blocks(&self) -> Vec<u32> {
        if self.diff.is_none() {
            return Vec::new();
        }
        let held = self.table.iter().filter(|(_, entry)| entry.state != State::NotPresent);
        held.map(|(block, _)| block).collect()
    }

    /// Bytes of the block's sectors that do not come from the parent.
    ///
    /// # Errors
    /// If the sector bitmap cannot be read.
    pub fn held_bytes(&self, block: u32) -> Result<u64, MetaError> {
        let Some(diff) = &self.diff else { return Ok(0) };
        let used = self.geometry.used_len(block);
        match self.table.get(block).state {
            State::NotPresent => Ok(0),
            State::Partial => {
                let sector = self.geometry.sector;
                Ok(self.bits(diff, block)?.count(used / sector) * sector)
            }
            State::Full | State::Zero | State::Unmapped | State::Undefined => Ok(used),
        }
    }

    /// Clears the table entries of these blocks in the log, not for readers. Without a flush afterwards each of them may
    /// come back after a power cut. What a user sees does not change, and neither does the DataWriteGuid.
    ///
    /// # Errors
    /// If the log cannot be written. The entries are as before then, or if even that fails the disk takes no more writes.
    pub fn clear_entries(&self, blocks: &[u32]) -> Result<(), MetaError> {
        self.check_writable()?;
        if self.diff.is_none() || blocks.is_empty() {
            return Ok(());
        }
        self.begin_session(Level::File)?;
        let result = self.log_entries(blocks, |_| Entry::ABSENT);
        // What the file says and what readers are told must not stay different.
        if result.is_err() && self.log_entries(blocks, |block| self.table.get(block)).is_err() {
            self.commit.fail();
        }
        result
    }

    pub(crate) fn log_entries(&self, blocks: &[u32], entry: impl Fn(u32) -> Entry) -> Result<(), MetaError> {
        let Some(mut session) = self.lock_session() else { return Err(MetaError::ReadOnly) };
        self.check_writable()?;
        let changed = (|| {
            session.begin_change()?;
            for block in blocks {
                if !session.fits_block() {
                    session.commit()?;
                    session.begin_change()?;
                }
                session.set_block(*block, entry(*block))?;
            }
            session.commit()
        })();
        changed.inspect_err(|error| self.note_failure(error))
    }

    /// From now on readers find these blocks in the parent. Returns the places they had, which are not used again before the
    /// disk is closed.
    pub fn drop_blocks(&self, blocks: &[u32]) -> Vec<FileSpan> {
        if self.diff.is_none() {
            return Vec::new();
        }
        // Nobody adds a block meanwhile.
        let _session = self.lock_session();
        let place = |block: &u32| {
            let entry = self.table.get(*block);
            self.table.set(*block, Entry::ABSENT);
            (entry.mib != 0).then(|| FileSpan { offset: entry.offset(), len: self.geometry.block_size })
        };
        blocks.iter().filter_map(place).collect()
    }

    /// Refuses writes and flushes from now on, as after a failed flush: what was written to a parent may be lost.
    pub fn fail(&self) {
        self.commit.fail();
    }

    /// First byte behind everything that is in use now.
    pub(crate) fn used_end(&self) -> u64 {
        let blocks = self.table.iter().filter(|(_, entry)| entry.mib != 0);
        let blocks = blocks.map(|(_, entry)| entry.offset() + self.geometry.block_size).max();
        let bitmaps = self.diff.as_ref().and_then(|diff| {
            let places = (0..self.geometry.chunks).filter_map(|chunk| diff.bitmap(chunk));
            places.max().map(|place| place + super::layout::BITMAP_BLOCK_LEN)
        });
        blocks.into_iter().chain(bitmaps).fold(self.regions_end.load(Ordering::Acquire), u64::max)
    }
}

//! Another size for a VHDX that nobody makes requests to meanwhile.
//!
//! The size is one item of the metadata and changes in one entry of the log; so do, in the same entry, the region tables
//! if the block allocation table has to go where more entries fit. What that entry makes visible (a longer table, the blocks of a
//! fixed disk) is durable before; what it makes invisible (entries of blocks behind the end) is cleared after it.

use std::fmt;

use super::{
    bat::{Entry, Geometry, State},
    image::Image,
    layout::{BAT_REGION, MAX_SIZE, MIB, PAGE_LEN, REGION_TABLE_LEN, REGION_TABLES_AT, round_up, to_usize},
    region::{self, Region},
    session::{Level, Session},
};
use crate::{DiskType, MetaError, Storage, errors::IoContext, resize::ResizeError};
use std::sync::atomic::Ordering;

/// What another size needs; printable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizePlan {
    /// Size now, in bytes.
    pub old: u64,
    /// Size afterwards.
    pub new: u64,
    /// Blocks now.
    pub old_blocks: u32,
    /// Blocks afterwards.
    pub new_blocks: u32,
    /// Length of a new region for the block allocation table, if the present one is too short.
    pub new_table: Option<u32>,
    /// Bytes of the blocks that a fixed disk gets.
    pub reserve: u64,
}

impl fmt::Display for ResizePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(len) = self.new_table {
            writeln!(f, "  copy the block allocation table into a new region of {len} bytes")?;
        }
        if self.reserve > 0 {
            writeln!(f, "  add blocks of {} bytes", self.reserve)?;
        }
        if self.old != self.new {
            writeln!(f, "  log: the size is {} bytes, in {} blocks", self.new, self.new_blocks)?;
        }
        if self.new_blocks < self.old_blocks {
            writeln!(f, "  log: the blocks from {} on are absent", self.new_blocks)?;
        }
        Ok(())
    }
}

impl Image {
    /// Plans another size. For a disk that gets smaller: what lies behind the new end is lost.
    ///
    /// # Errors
    /// If the disk cannot have that size.
    pub fn plan_resize(&self, size: u64) -> Result<ResizePlan, ResizeError> {
        let now = self.geometry;
        if size == 0 || !size.is_multiple_of(now.sector) {
            return Err(ResizeError::Unaligned { size, sector: self.info.logical_sector });
        }
        if size > MAX_SIZE {
            return Err(ResizeError::TooLarge { size, format: "VHDX", limit: MAX_SIZE });
        }
        let then = self.geometry_for(size);
        let needed = then.entries() * 8;
        let new_table = match needed > u64::from(self.bat.length) {
            false => None,
            true => Some(u32::try_from(round_up(needed, MIB)).unwrap_or(u32::MAX)),
        };
        let added = match self.info.disk_type {
            DiskType::Fixed => then.blocks.saturating_sub(now.blocks),
            DiskType::Dynamic | DiskType::Differencing => 0,
        };
        if size > now.size && self.last_block_is_cut() {
            return Err(ResizeError::LastBlockCut);
        }
        Ok(ResizePlan {
            old: now.size,
            new: size,
            old_blocks: now.blocks,
            new_blocks: then.blocks,
            new_table,
            reserve: u64::from(added) * now.block_size,
        })
    }

    fn geometry_for(&self, size: u64) -> Geometry {
        Geometry::new(size, self.info.block_size, self.info.logical_sector, self.diff.is_some())
    }

    /// Whether something else lies where the unused end of the last block is, as the format allows.
    fn last_block_is_cut(&self) -> bool {
        let last = self.geometry.blocks.saturating_sub(1);
        let entry = self.table.get(last);
        if !entry.state.is_stored() {
            return false;
        }
        let (from, end) =
            (entry.offset() + self.geometry.used_len(last), entry.offset() + self.geometry.block_size);
        let meets = |start: u64, len: u64| start < end && from < start + len;
        self.regions.iter().any(|region| meets(region.offset, u64::from(region.length)))
            || self.table.iter().any(|(block, other)| {
                block != last && other.mib != 0 && meets(other.offset(), self.geometry.block_size)
            })
            || self.diff.iter().any(|diff| {
                (0..self.geometry.chunks).filter_map(|chunk| diff.bitmap(chunk)).any(|at| meets(at, MIB))
            })
    }

    /// Carries a plan of [`Image::plan_resize`] out, durably. No request may be under way, and none may follow: the disk
    /// is to be closed and opened again, whether or not this succeeds. [`Image::info`] stays as of the opening.
    ///
    /// # Errors
    /// [`MetaError`]; the disk has the old or the new size then, and its content.
    pub fn resize(&self, plan: &ResizePlan) -> Result<(), MetaError> {
        self.check_writable()?;
        if plan.old == plan.new {
            return Ok(());
        }
        // Bits of writes, too: what they are for may be somewhere else afterwards.
        self.flush()?;
        self.begin_session(Level::Data)?;
        if plan.new > plan.old { self.grow(plan) } else { self.shrink(plan) }
    }

    fn grow(&self, plan: &ResizePlan) -> Result<(), MetaError> {
        let then = self.geometry_for(plan.new);
        self.clear_last_block()?;
        self.clear_last_chunk()?;
        let bat = match plan.new_table {
            Some(length) => self.copy_table(length)?,
            None => {
                self.clear_entries_between(self.geometry.entries(), then.entries())?;
                self.bat
            }
        };
        if plan.reserve > 0 {
            self.add_fixed_blocks(plan, bat, &then)?;
        }
        self.flush()?;
        self.store_size(plan.new, bat)?;
        self.flush()
    }

    fn shrink(&self, plan: &ResizePlan) -> Result<(), MetaError> {
        self.store_size(plan.new, self.bat)?;
        self.flush()?;
        let gone: Vec<u32> =
            self.table.iter().map(|(block, _)| block).filter(|block| *block >= plan.new_blocks).collect();
        let at = |block: &u32| self.bat.offset + self.geometry.entry_at(*block);
        let mut words: Vec<u64> = gone.iter().map(at).collect();
        let chunks = self.geometry_for(plan.new).chunks;
        if let Some(diff) = &self.diff {
            let bitmaps = (chunks..self.geometry.chunks).filter(|chunk| diff.bitmap(*chunk).is_some());
            words.extend(bitmaps.map(|chunk| self.bat.offset + self.geometry.bitmap_entry_at(chunk)));
        }
        self.log_words(words.iter().map(|at| (*at, [0; 8])))?;
        self.flush()?;
        self.clear_behind(plan.new)?;
        // The file ends where the last of the others ends.
        gone.iter().for_each(|block| self.table.set(*block, Entry::ABSENT));
        if let Some(diff) = &self.diff {
            diff.bitmaps.iter().skip(chunks as usize).for_each(|slot| slot.store(0, Ordering::Release));
        }
        Ok(())
    }

    /// What a block holds behind the end of the disk counts once the disk is larger.
    fn clear_last_block(&self) -> Result<(), MetaError> {
        let last = self.geometry.blocks.saturating_sub(1);
        let (entry, used) = (self.table.get(last), self.geometry.used_len(last));
        if !entry.state.is_stored() || used == self.geometry.block_size {
            return Ok(());
        }
        let (at, len) = (entry.offset() + used, self.geometry.block_size - used);
        let storage = &self.view.storage;
        storage.zero_range(at, len).meta_context("zero the end of the last block", at)?;
        if self.info.disk_type != DiskType::Fixed {
            return Ok(());
        }
        // That keeps its space.
        match storage.allocate(at, len) {
            Err(source) if crate::alloc::is_full(&source) => Err(MetaError::NoSpace(source)),
            _ => Ok(()),
        }
    }

    /// What the last block keeps behind the end of a disk that got smaller goes too: another program that makes it larger again may
    /// not clear it, and somebody may have wanted it gone.
    fn clear_behind(&self, size: u64) -> Result<(), MetaError> {
        let then = self.geometry_for(size);
        let last = then.blocks.saturating_sub(1);
        let (entry, used) = (self.table.get(last), then.used_len(last));
        // The last block of the larger disk may be stored without its end.
        let end = self.geometry.used_len(last);
        if !entry.state.is_stored() || used >= end {
            return Ok(());
        }
        let at = entry.offset() + used;
        self.view.storage.zero_range(at, end - used).meta_context("zero the end of the last block", at)
    }

    /// A longer copy of the table in a new region, which nothing names yet.
    fn copy_table(&self, length: u32) -> Result<Region, MetaError> {
        const PART: u64 = 1 << 20;
        let Some(mut session) = self.lock_session() else { return Err(MetaError::ReadOnly) };
        self.check_writable()?;
        let offset = session.space.take(u64::from(length)).inspect_err(|error| self.note_failure(error))?;
        self.regions_end.fetch_max(offset + u64::from(length), Ordering::AcqRel);
        let end = self.geometry.entries() * 8;
        let mut bytes = vec![0; to_usize(PART)];
        let mut at = 0;
        while at < end {
            let part = bytes.get_mut(..to_usize(PART.min(end - at))).unwrap_or_default();
            session.read(part, self.bat.offset + at)?;
            for (page, bytes) in (at..).step_by(PAGE_LEN).zip(part.chunks(PAGE_LEN)) {
                if bytes.iter().any(|byte| *byte != 0) {
                    write(self.view.storage.as_ref(), bytes, offset + page)?;
                }
            }
            at += part.len() as u64;
        }
        Ok(Region { id: BAT_REGION, offset, length })
    }

    /// Entries that an earlier, larger size of the disk left behind.
    fn clear_entries_between(&self, from: u64, end: u64) -> Result<(), MetaError> {
        const PART: u64 = 1 << 20;
        let mut at = from * 8;
        let mut bytes = vec![0; to_usize(PART)];
        while at < end * 8 {
            let part = bytes.get_mut(..to_usize(PART.min(end * 8 - at))).unwrap_or_default();
            match self.lock_session() {
                Some(session) => session.read(part, self.bat.offset + at)?,
                None => return Err(MetaError::ReadOnly),
            }
            let words = (at..).step_by(8).zip(part.as_chunks::<8>().0).filter(|(_, word)| **word != [0; 8]);
            self.log_words(words.map(|(at, _)| (self.bat.offset + at, [0; 8])))?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// The same in the last chunk of a differencing disk, which has entries for blocks that the disk has not.
    fn clear_last_chunk(&self) -> Result<(), MetaError> {
        let end = self.geometry.chunks.saturating_mul(self.geometry.chunk_ratio);
        let mut found = Vec::new();
        if let Some(session) = self.lock_session().filter(|_| self.diff.is_some()) {
            let mut word = [0; 8];
            for block in self.geometry.blocks..end {
                let at = self.bat.offset + self.geometry.entry_at(block);
                session.read(&mut word, at)?;
                if word != [0; 8] {
                    found.push((at, [0; 8]));
                }
            }
        }
        self.log_words(found.into_iter())
    }

    /// The blocks of a fixed disk: their places, and their entries in the table, which does not count them yet.
    fn add_fixed_blocks(&self, plan: &ResizePlan, bat: Region, then: &Geometry) -> Result<(), MetaError> {
        let first = {
            let Some(mut session) = self.lock_session() else { return Err(MetaError::ReadOnly) };
            session.space.take(plan.reserve).inspect_err(|error| self.note_failure(error))?
        };
        self.regions_end.fetch_max(first + plan.reserve, Ordering::AcqRel);
        match self.view.storage.allocate(first, plan.reserve) {
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {}
            other => other.map_err(|source| no_space("reserve space for blocks", first, source))?,
        }
        let entry = |block: u32| {
            let place = first + u64::from(block - plan.old_blocks) * self.geometry.block_size;
            (bat.offset + then.entry_at(block), Entry::at(State::Full, place).to_bytes())
        };
        let entries = (plan.old_blocks..plan.new_blocks).map(entry);
        if bat.offset == self.bat.offset {
            return self.log_words(entries);
        }
        // Nothing names the new table yet: no need for the log.
        let mut run: Option<(u64, Vec<u8>)> = None;
        for (at, word) in entries {
            match &mut run {
                Some((start, bytes)) if *start + bytes.len() as u64 == at && bytes.len() < 1 << 20 => {
                    bytes.extend(word);
                }
                _ => {
                    if let Some((start, bytes)) = run.replace((at, word.to_vec())) {
                        write(self.view.storage.as_ref(), &bytes, start)?;
                    }
                }
            }
        }
        run.map_or(Ok(()), |(start, bytes)| write(self.view.storage.as_ref(), &bytes, start))
    }

    /// Words of metadata, in as few entries of the log as hold them.
    fn log_words(&self, words: impl Iterator<Item = (u64, [u8; 8])>) -> Result<(), MetaError> {
        let mut words = words.peekable();
        if words.peek().is_none() {
            return Ok(());
        }
        let Some(mut session) = self.lock_session() else { return Err(MetaError::ReadOnly) };
        self.check_writable()?;
        let changed = (|| {
            session.begin_change()?;
            for (at, word) in words {
                if !session.fits_page() {
                    session.commit()?;
                    session.begin_change()?;
                }
                session.edit(at, &word)?;
            }
            session.commit()
        })();
        changed.inspect_err(|error| self.note_failure(error))
    }

    /// The one entry of the log that counts.
    fn store_size(&self, size: u64, bat: Region) -> Result<(), MetaError> {
        let Some(mut session) = self.lock_session() else { return Err(MetaError::ReadOnly) };
        self.check_writable()?;
        let changed = (|| {
            session.begin_change()?;
            session.edit(self.size_at, &size.to_le_bytes())?;
            if bat != self.bat {
                edit_region_tables(&mut session, bat)?;
            }
            session.commit()
        })();
        changed.inspect_err(|error| self.note_failure(error))
    }
}

/// Both tables name the new region; one that was damaged becomes a copy of the other.
fn edit_region_tables(session: &mut Session, bat: Region) -> Result<(), MetaError> {
    let mut tables = [vec![0; REGION_TABLE_LEN], vec![0; REGION_TABLE_LEN]];
    for (bytes, at) in tables.iter_mut().zip(REGION_TABLES_AT) {
        session.read(bytes, at)?;
    }
    // The one that counts, as in opening the file.
    let new = tables.iter().find_map(|table| region::with_bat(table, bat)).unwrap_or_default();
    for (old, at) in tables.iter().zip(REGION_TABLES_AT) {
        for ((old, new), at) in old.chunks(PAGE_LEN).zip(new.chunks(PAGE_LEN)).zip((at..).step_by(PAGE_LEN)) {
            if old != new {
                session.edit(at, new)?;
            }
        }
    }
    Ok(())
}

fn write(storage: &dyn Storage, bytes: &[u8], at: u64) -> Result<(), MetaError> {
    storage.write_at(bytes, at).map_err(|source| no_space("write the block allocation table", at, source))
}

fn no_space(action: &'static str, offset: u64, source: std::io::Error) -> MetaError {
    match crate::alloc::is_full(&source) {
        true => MetaError::NoSpace(source),
        false => MetaError::Io { action, offset, source },
    }
}

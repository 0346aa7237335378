//! Where writes, zeros and trims go; when they become visible; when they become durable.

use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::{
    bat::{Entry, Part, State},
    image::{Differencing, Image},
    session::{Level, Session},
};
use crate::{
    DiskType, MetaError, ReadExtent, Source, WriteExtent, WriteTicket, alloc::FLUSH, bitmap::BlockBits,
    errors::IoContext, write::push,
};

/// What to do about blocks that are not in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    Add,
    SkipIfZero,
}

/// A change of one block's entry.
#[derive(Clone, Copy)]
enum Change {
    /// It gets a place.
    Add(u32),
    /// It reads as zeros and needs no place.
    Zero(u32),
}

/// A change that is in the log: what readers are to see, and what it took.
struct Changed {
    block: u32,
    entry: Entry,
    /// A sector bitmap block was added for its chunk.
    bitmap: Option<u64>,
    /// The place is from `Space`.
    taken: bool,
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
    /// do) and calls [`Image::complete_write`]. What is zero without data in the file is left out; whole blocks that were
    /// the parent's become so at once.
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
        self.begin_session(Level::Data)?;
        let changes: Vec<Change> =
            self.geometry.parts(offset, len).filter_map(|part| self.change_for(&part, absent)).collect();
        if !changes.is_empty() {
            self.change(&changes)?;
        }
        let mut at = offset;
        for part in self.geometry.parts(offset, len) {
            let entry = self.table.get(part.block);
            if entry.state.is_stored() {
                let file_offset = entry.offset() + part.within;
                push(&mut ticket.extents, WriteExtent { disk_offset: at, len: part.len, file_offset });
            }
            at += part.len;
        }
        Ok(())
    }

    fn change_for(&self, part: &Part, absent: Absent) -> Option<Change> {
        let state = self.table.get(part.block).state;
        match absent {
            _ if state.is_stored() => None,
            Absent::Add => Some(Change::Add(part.block)),
            Absent::SkipIfZero if self.diff.is_none() || state != State::NotPresent => None,
            Absent::SkipIfZero if part.len >= self.geometry.used_len(part.block) => {
                Some(Change::Zero(part.block))
            }
            Absent::SkipIfZero => Some(Change::Add(part.block)),
        }
    }

    /// Changes entries of the table: as few entries of the log as hold them. On return readers see the changes, and they
    /// survive the death of this process.
    fn change(&self, changes: &[Change]) -> Result<(), MetaError> {
        let Some(mut session) = self.lock_session() else { return Err(MetaError::ReadOnly) };
        // `close` ends the session under this lock.
        self.check_writable()?;
        let mut rest = changes;
        while !rest.is_empty() {
            let mut done = Vec::new();
            let result = self.change_some(&mut session, &mut rest, &mut done);
            if let Err(error) = result {
                for changed in done.iter().filter(|changed| changed.taken) {
                    session.space.put_back(changed.entry.offset(), self.geometry.block_size);
                }
                for bitmap in done.iter().filter_map(|changed| changed.bitmap) {
                    session.space.put_back(bitmap, super::layout::BITMAP_BLOCK_LEN);
                }
                self.note_failure(&error);
                return Err(error);
            }
            for changed in done {
                self.publish(&changed);
            }
        }
        Ok(())
    }

    /// One entry of the log with as many changes as fit.
    fn change_some(
        &self,
        session: &mut Session,
        rest: &mut &[Change],
        done: &mut Vec<Changed>,
    ) -> Result<(), MetaError> {
        session.begin_change()?;
        while let Some((change, others)) = rest.split_first() {
            if !session.fits_block() {
                break;
            }
            *rest = others;
            match *change {
                Change::Add(block) if !self.table.get(block).state.is_stored() => {
                    self.add_block(session, block, done)?;
                }
                Change::Zero(block) if self.table.get(block).state == State::NotPresent => {
                    let entry = Entry { state: State::Zero, mib: 0 };
                    session.set_block(block, entry)?;
                    done.push(Changed { block, entry, bitmap: None, taken: false });
                }
                // Another thread was first. If it gave a block of zeros a place, the caller zeroes it there.
                Change::Add(_) | Change::Zero(_) => {}
            }
        }
        session.commit()
    }

    /// Gives a block its place.
    fn add_block(&self, session: &mut Session, block: u32, done: &mut Vec<Changed>) -> Result<(), MetaError> {
        let old = self.table.get(block);
        let len = self.geometry.block_size;
        let taken = old.mib == 0;
        let place = match taken {
            true => session.space.take(len)?,
            false => {
                session.space.clean(old.offset(), len)?;
                old.offset()
            }
        };
        let partial = self.diff.is_some() && old.state == State::NotPresent;
        let entry = Entry::at(if partial { State::Partial } else { State::Full }, place);
        done.push(Changed { block, entry, bitmap: None, taken });
        if let Some(diff) = self.diff.as_ref().filter(|_| partial) {
            let chunk = self.geometry.chunk(block);
            let added = done
                .iter()
                .find_map(|changed| changed.bitmap.filter(|_| self.geometry.chunk(changed.block) == chunk));
            match diff.bitmap(chunk) {
                Some(bitmap) => session.clear_bits(bitmap, block)?,
                // All clear already.
                None if added.is_some() => {}
                None => {
                    let bitmap = session.add_bitmap(chunk)?;
                    if let Some(changed) = done.last_mut() {
                        changed.bitmap = Some(bitmap);
                    }
                }
            }
        }
        session.set_block(block, entry)
    }

    /// Shows a change to readers: bitmap before bits before block.
    fn publish(&self, changed: &Changed) {
        if let Some(diff) = &self.diff {
            if let Some(bitmap) = changed.bitmap
                && let Some(slot) = diff.bitmaps.get(self.geometry.chunk(changed.block) as usize)
            {
                slot.store(Entry::at(State::Full, bitmap).mib, Ordering::Release);
            }
            if changed.entry.state == State::Partial {
                let len = usize::try_from(self.geometry.bitmap_len()).unwrap_or(0);
                let known = diff.bits.insert(changed.block, BlockBits::empty(len));
                // It may have been here before, and been given away.
                known.into_iter().for_each(BlockBits::reset);
            }
        }
        self.table.set(changed.block, changed.entry);
    }

    /// Makes a finished write visible. From here on it survives the death of this process; after the next
    /// [`Image::flush`] it survives power loss.
    ///
    /// # Errors
    /// If the metadata cannot be kept; the write must not be acknowledged then.
    pub fn complete_write(&self, ticket: &WriteTicket) -> Result<(), MetaError> {
        self.check_writable()?;
        let Some(diff) = &self.diff else { return Ok(()) };
        let (mut unshadowed, mut wait) = (false, Vec::new());
        for part in self.geometry.parts(ticket.offset, ticket.len) {
            let entry = self.table.get(part.block);
            if entry.state != State::Partial {
                continue;
            }
            let bits = self.bits(diff, part.block)?;
            let sector = self.geometry.sector;
            let (start, end) = (part.within / sector, (part.within + part.len) / sector);
            if bits.all(start, end) {
                continue;
            }
            match &diff.shadow {
                Some(shadow) => {
                    let mut pending = bits.lock();
                    let (first, bytes) = bits.bytes_with(start, end);
                    // No room there is no reason to fail the write: its bits then reach the file by a flush.
                    let place = super::image::shadow_place(entry);
                    unshadowed |= shadow.put(part.block, place, first, &bytes).is_err();
                    // Pending before live: whoever sees a live bit that is not pending knows that its data was there
                    // before the last flush began.
                    if bits.pend(&mut pending, start, end) {
                        diff.dirty().push(part.block);
                    }
                    bits.publish(start, end);
                }
                None => wait.push((part.block, start, end)),
            }
        }
        if !wait.is_empty() {
            self.write_through(diff, &wait)?;
        }
        if unshadowed { self.flush() } else { Ok(()) }
    }

    /// Without a shadow: the data is made durable, then the bits go into the log, and only then count for readers.
    fn write_through(&self, diff: &Differencing, parts: &[(u32, u64, u64)]) -> Result<(), MetaError> {
        self.sync()?;
        let Some(mut session) = self.lock_session() else { return Err(MetaError::ReadOnly) };
        self.check_writable()?;
        let mut rest = parts;
        while !rest.is_empty() {
            let some = rest;
            session.begin_change()?;
            while let Some(((block, start, end), others)) = rest.split_first() {
                if !session.fits_block() {
                    break;
                }
                rest = others;
                let Some(bitmap) = diff.bitmap(self.geometry.chunk(*block)) else { continue };
                let (first, mut bytes) = self.bits(diff, *block)?.bytes_with(*start, *end);
                bytes.iter_mut().for_each(|byte| *byte = byte.reverse_bits());
                session.edit(bitmap + self.geometry.bitmap_within(*block) + first as u64, &bytes)?;
            }
            session.commit().inspect_err(|error| self.note_failure(error))?;
            for (block, start, end) in some.iter().take(some.len() - rest.len()) {
                self.bits(diff, *block)?.publish(*start, *end);
            }
        }
        Ok(())
    }

    /// Puts the bits that were taken into the log.
    fn write_bits(
        &self,
        session: &mut Session,
        diff: &Differencing,
        taken: &[(u32, Box<[u64]>)],
    ) -> Result<(), MetaError> {
        session.begin_change()?;
        for (block, words) in taken {
            let Some(bits) = diff.bits.get(*block) else { continue };
            let Some(bitmap) = diff.bitmap(self.geometry.chunk(*block)) else { continue };
            let at = bitmap + self.geometry.bitmap_within(*block);
            for (index, word) in bits.words_to_write(words) {
                if !session.fits_page() {
                    session.commit()?;
                    session.begin_change()?;
                }
                session.edit(at + index * 8, &word.reverse_bits().to_le_bytes())?;
            }
        }
        session.commit()
    }

    /// Appends the parts of a range that are stored in this file and may be punched out to trim it: afterwards they
    /// read as zeros, and the rest of the range as before. Empty for a fixed disk, which keeps its space.
    ///
    /// # Errors
    /// As [`Image::resolve_read`], or if the disk is not writable.
    pub fn trim_extents(&self, offset: u64, len: u64, out: &mut Vec<WriteExtent>) -> Result<(), MetaError> {
        self.check_writable()?;
        self.check_range(offset, len)?;
        if self.info.disk_type == DiskType::Fixed {
            return Ok(());
        }
        self.begin_session(Level::Data)?;
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
        let taken: Vec<(u32, Box<[u64]>)> = match &self.diff {
            Some(diff) => std::mem::take(&mut *diff.dirty())
                .into_iter()
                .filter_map(|block| Some((block, diff.bits.get(block)?.take_pending()?)))
                .collect(),
            None => Vec::new(),
        };
        // One sync for data and for all entries of the log before it.
        self.sync_marked("make data durable")?;
        if let Some(diff) = self.diff.as_ref().filter(|_| !taken.is_empty()) {
            // Adopted bits can come before the first write.
            self.begin_session(Level::File)?;
            if let Some(mut session) = self.lock_session() {
                self.write_bits(&mut session, diff, &taken)?;
            }
            self.sync_marked(FLUSH)?;
        }
        match self.lock_session() {
            Some(mut session) => session.tidy_log(),
            None => Ok(()),
        }
    }

    /// A sync without the lock, so that others can go on changing metadata.
    fn sync_marked(&self, action: &'static str) -> Result<(), MetaError> {
        let mark = self.lock_session().map(|session| session.mark()).unwrap_or_default();
        self.view.storage.flush().meta_context(action, 0)?;
        if let Some(mut session) = self.lock_session() {
            session.synced(mark);
        }
        Ok(())
    }

    /// Flushes; a failure is remembered.
    fn sync(&self) -> Result<(), MetaError> {
        self.sync_marked(FLUSH).inspect_err(|_| self.commit.fail())
    }

    /// Flushes, puts all metadata in their places, empties the log, ends the file where its last block ends, and refuses
    /// all later writes and flushes. Closing twice is fine.
    ///
    /// # Errors
    /// As [`Image::flush`]. The log then keeps what is not in its place.
    pub fn close(&self) -> Result<(), MetaError> {
        if self.closed.swap(true, Ordering::AcqRel) || self.session.is_none() {
            return Ok(());
        }
        self.commit.run(|| self.flush_round())?;
        if let Some(mut session) = self.lock_session() {
            session.space.give_back_tail(self.used_end());
            session.end().inspect_err(|_| self.commit.fail())?;
        }
        if let Some(shadow) = self.diff.as_ref().and_then(|diff| diff.shadow.as_ref()) {
            shadow.clear().meta_context("clear the shadow", 0)?;
        }
        Ok(())
    }

    /// Puts all metadata in their places, durably, so that closing needs no space that was not there before. What comes
    /// later may need some again.
    ///
    /// # Errors
    /// If that failed; the disk can be used as before where it was for lack of space.
    pub fn settle(&self) -> Result<(), MetaError> {
        self.check_writable()?;
        match self.lock_session() {
            Some(mut session) if session.level() > Level::Nothing => {
                session.settle().inspect_err(|error| self.note_failure(error))
            }
            _ => Ok(()),
        }
    }

    /// Begins the session now, so that [`Image::data_write_guid`] stays what it is until the disk is closed: before a
    /// child names this disk as its parent. Nothing happens to a disk that is open for reading.
    ///
    /// # Errors
    /// If the headers cannot be written.
    pub fn settle_identity(&self) -> Result<Uuid, MetaError> {
        if self.session.is_some() && !self.closed.load(Ordering::Acquire) {
            self.check_writable()?;
            self.begin_session(Level::Data)?;
        }
        Ok(self.data_write_guid())
    }

    /// Says in the headers, once, that the file changes.
    pub(crate) fn begin_session(&self, level: Level) -> Result<(), MetaError> {
        if self.level.load(Ordering::Acquire) >= level as u8 {
            return Ok(());
        }
        let Some(mut session) = self.lock_session() else { return Err(MetaError::ReadOnly) };
        session.begin(level).inspect_err(|error| self.note_failure(error))?;
        self.level.store(session.level() as u8, Ordering::Release);
        Ok(())
    }

    pub(crate) fn check_writable(&self) -> Result<(), MetaError> {
        if self.session.is_none() {
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

    /// After a failed sync nothing is known about what was written before.
    pub(crate) fn note_failure(&self, error: &MetaError) {
        if matches!(error, MetaError::Io { action, .. } if *action == FLUSH) {
            self.commit.fail();
        }
    }
}

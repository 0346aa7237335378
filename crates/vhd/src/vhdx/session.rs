//! Everything that changes metadata, behind one lock: headers, log, pages, space.
//!
//! An allocation costs one entry of the log, written and not synced. A process that dies leaves it in the page cache, where
//! the next open replays it; power loss may take it together with the data that was not flushed either.

use std::sync::Arc;

use uuid::Uuid;

use super::{
    bat::{Entry, Geometry, State},
    header::{CurrentHeader, Header},
    layout::{BITMAP_BLOCK_LEN, HEADERS_AT, MIB, PAGE, to_usize},
    log::ring::{LogRing, Mark},
    open::WriteIds,
    pages::Pages,
    space::Space,
};
use crate::{
    MetaError, Storage,
    alloc::{FLUSH, is_full},
    errors::IoContext,
};

/// Most pages that one change of one block needs at once: two of the table, and those of the bits of the largest block.
const PAGES_PER_BLOCK: usize = 20;

/// How much of the file has changed since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Nothing.
    Nothing = 0,
    /// Bytes of the file.
    File = 1,
    /// What a user sees.
    Data = 2,
}

/// The state of a writer.
#[derive(Debug)]
pub(crate) struct Session {
    storage: Arc<dyn Storage>,
    header: Header,
    /// Where `header` is.
    slot: usize,
    ids: WriteIds,
    level: Level,
    /// The session was ended; nothing begins it again.
    ended: bool,
    log: LogRing,
    pub(crate) pages: Pages,
    pub(crate) space: Space,
    /// The file is durably at least this long.
    flushed_len: u64,
    /// Offset of the block allocation table.
    bat_at: u64,
    geometry: Geometry,
}

/// What a sync that begins now will make durable.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SyncMark {
    log: Mark,
    len: u64,
}

impl Session {
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        CurrentHeader { header, slot, .. }: CurrentHeader,
        ids: WriteIds,
        space: Space,
        bat_at: u64,
        geometry: Geometry,
    ) -> Self {
        let log = LogRing::new(header.log_offset.get(), u64::from(header.log_length.get()), ids.log);
        let pages = Pages::default();
        Self {
            storage,
            header,
            slot,
            ids,
            level: Level::Nothing,
            ended: false,
            log,
            pages,
            space,
            flushed_len: 0,
            bat_at,
            geometry,
        }
    }

    /// Identity of the content, as children will name it if nothing is written any more.
    pub(crate) fn data_write_guid(&self) -> Uuid {
        super::layout::guid(self.header.data_write_guid)
    }

    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// Says in the headers that this session changes the file. Comes before every change.
    ///
    /// The first entry of the log is durable before a header names the log: a header that names a log without a valid
    /// entry is a corrupt file.
    pub(crate) fn begin(&mut self, level: Level) -> Result<(), MetaError> {
        if self.level >= level {
            return Ok(());
        }
        if self.ended {
            return Err(MetaError::Closed);
        }
        let mut header = self.header.clone();
        if self.level == Level::Nothing {
            self.space.cut_tail()?;
            let len = self.space.len;
            let storage = Arc::clone(&self.storage);
            let at = header.log_offset.get();
            self.log.append(storage.as_ref(), &[], len, len).meta_context("write the log", at)?;
            self.sync()?;
            self.flushed_len = len;
            header.file_write_guid = self.ids.file_write.to_bytes_le();
            header.log_guid = self.ids.log.to_bytes_le();
        }
        if level == Level::Data {
            header.data_write_guid = self.ids.data_write.to_bytes_le();
        }
        self.write_headers(header)?;
        self.level = level;
        Ok(())
    }

    /// Writes both headers, one after the other: at any moment one of them is whole.
    fn write_headers(&mut self, mut header: Header) -> Result<(), MetaError> {
        for _ in HEADERS_AT {
            let slot = 1 - self.slot;
            let at = HEADERS_AT.get(slot).copied().unwrap_or(0);
            header.sequence.set(header.sequence.get().wrapping_add(1));
            self.storage.write_at(&header.sealed(), at).meta_context("write a header", at)?;
            self.sync()?;
            self.slot = slot;
            self.header = header.clone();
        }
        Ok(())
    }

    /// Before a sync that is done without the lock.
    pub(crate) fn mark(&self) -> SyncMark {
        // Before the session begins the file may still become shorter.
        let len = if self.level == Level::Nothing { 0 } else { self.space.len };
        SyncMark { log: self.log.mark(), len }
    }

    /// After that sync.
    pub(crate) fn synced(&mut self, mark: SyncMark) {
        self.log.synced(mark.log);
        self.flushed_len = self.flushed_len.max(mark.len);
    }

    fn sync(&mut self) -> Result<(), MetaError> {
        let mark = self.mark();
        self.storage.flush().meta_context(FLUSH, 0)?;
        self.synced(mark);
        Ok(())
    }

    /// Makes room for an entry of any size. Comes before the edits that it is for.
    fn make_room(&mut self) -> Result<(), MetaError> {
        if self.log.has_room() {
            return Ok(());
        }
        // Entries, then pages, then the entry that does without them: each durable before the next.
        self.sync()?;
        if self.log.has_room() {
            return Ok(());
        }
        self.put_pages()?;
        self.sync()?;
        self.append(&[])?;
        self.sync()
    }

    /// Puts pages whose entries are durable in their places. They are so durably after the next sync.
    fn put_pages(&mut self) -> Result<(), MetaError> {
        let position = self.log.durable_head();
        self.pages.apply(self.storage.as_ref(), position).map_err(|source| match is_full(&source) {
            true => MetaError::NoSpace(source),
            false => MetaError::Io { action: "write metadata", offset: 0, source },
        })?;
        self.log.applied(position);
        Ok(())
    }

    /// After a flush: gives space of the log back while it is cheap. The syncs that this needs are those of later flushes.
    pub(crate) fn tidy_log(&mut self) -> Result<(), MetaError> {
        if !self.log.is_half_full() {
            return Ok(());
        }
        match self.put_pages() {
            // The log keeps them; whoever needs its space will try again.
            Err(MetaError::NoSpace(_)) => Ok(()),
            other => other,
        }
    }

    /// Puts all metadata in their places, durably. No entry before this is needed after the next one that is durable.
    pub(crate) fn settle(&mut self) -> Result<(), MetaError> {
        self.sync()?;
        self.put_pages()?;
        self.sync()
    }

    /// A sync under the lock.
    pub(crate) fn sync_now(&mut self) -> Result<(), MetaError> {
        self.sync()
    }

    fn append(&mut self, pages: &[(u64, &[u8; super::layout::PAGE_LEN])]) -> Result<(), MetaError> {
        // Never more than is so: a file shorter than this counts as cut off.
        let flushed = self.flushed_len / MIB * MIB;
        let at = self.header.log_offset.get();
        self.log.append(self.storage.as_ref(), pages, flushed, self.space.len).map_err(
            |source| match is_full(&source) {
                true => MetaError::NoSpace(source),
                false => MetaError::Io { action: "write the log", offset: at, source },
            },
        )
    }

    /// Writes the edits as one entry: all of them count, or none.
    pub(crate) fn commit(&mut self) -> Result<(), MetaError> {
        if self.pages.edited_len() == 0 {
            return Ok(());
        }
        let position = self.log.head();
        let edits = std::mem::take(&mut self.pages);
        let result = self.append(&edits.edited());
        self.pages = edits;
        match result {
            Ok(()) => self.pages.logged(position),
            Err(_) => self.pages.forget_edits(),
        }
        result
    }

    /// Begins a change of metadata. Only [`Session::commit`] makes it count.
    pub(crate) fn begin_change(&mut self) -> Result<(), MetaError> {
        self.pages.forget_edits();
        self.make_room()
    }

    /// Whether one more block can be changed in the same entry.
    pub(crate) fn fits_block(&self) -> bool {
        self.pages.edited_len() + PAGES_PER_BLOCK <= LogRing::max_pages()
    }

    /// Whether one more page can be changed in the same entry.
    pub(crate) fn fits_page(&self) -> bool {
        self.pages.edited_len() < LogRing::max_pages()
    }

    /// Reads bytes of metadata as they are after all edits.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), MetaError> {
        self.pages.read(self.storage.as_ref(), buf, offset).meta_context("read metadata", offset)
    }

    /// Edits bytes of metadata.
    pub(crate) fn edit(&mut self, offset: u64, bytes: &[u8]) -> Result<(), MetaError> {
        self.pages.edit(self.storage.as_ref(), offset, bytes).meta_context("read metadata", offset)
    }

    /// Edits a block's entry of the table.
    pub(crate) fn set_block(&mut self, block: u32, entry: Entry) -> Result<(), MetaError> {
        self.edit(self.bat_at + self.geometry.entry_at(block), &entry.to_bytes())
    }

    /// Edits the entry of a chunk's sector bitmap block.
    pub(crate) fn set_bitmap(&mut self, chunk: u32, place: u64) -> Result<(), MetaError> {
        let entry = Entry::at(State::Full, place);
        self.edit(self.bat_at + self.geometry.bitmap_entry_at(chunk), &entry.to_bytes())
    }

    /// Gives a chunk its sector bitmap block, all clear; its place.
    pub(crate) fn add_bitmap(&mut self, chunk: u32) -> Result<u64, MetaError> {
        let place = self.space.take(BITMAP_BLOCK_LEN)?;
        self.set_bitmap(chunk, place)?;
        Ok(place)
    }

    /// Clears the bits of a block, which may be left from an earlier life of it.
    pub(crate) fn clear_bits(&mut self, bitmap: u64, block: u32) -> Result<(), MetaError> {
        let (at, len) = (bitmap + self.geometry.bitmap_within(block), to_usize(self.geometry.bitmap_len()));
        let mut bits = vec![0; len];
        self.pages.read(self.storage.as_ref(), &mut bits, at).meta_context("read a sector bitmap", at)?;
        for (at, part) in (at..).step_by(to_usize(PAGE)).zip(bits.chunks(to_usize(PAGE))) {
            if part.iter().any(|byte| *byte != 0) {
                self.edit(at, &vec![0; part.len()])?;
            }
        }
        Ok(())
    }

    /// Ends the session: metadata in their places, then headers that name no log, then the file without its unused end.
    /// Each is durable before the next.
    pub(crate) fn end(&mut self) -> Result<(), MetaError> {
        self.ended = true;
        if self.level == Level::Nothing {
            return Ok(());
        }
        // A flush has just made all entries durable.
        self.put_pages()?;
        self.sync()?;
        let header = Header { log_guid: [0; 16], ..self.header.clone() };
        self.write_headers(header)?;
        self.level = Level::Nothing;
        self.space.cut_tail()?;
        self.sync()
    }

    /// After a replay into the file: headers that name no log.
    pub(crate) fn forget_log(&mut self) -> Result<(), MetaError> {
        let file_write_guid = self.ids.file_write.to_bytes_le();
        self.write_headers(Header { log_guid: [0; 16], file_write_guid, ..self.header.clone() })
    }
}

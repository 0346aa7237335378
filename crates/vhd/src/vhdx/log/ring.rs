//! Writing the log: positions in the ring, and which of its entries are still needed.

use std::io;

use uuid::Uuid;

use super::entry::{self, NewEntry};
use crate::{
    Storage,
    vhdx::layout::{PAGE, PAGE_LEN, to_usize},
};

/// Most pages in one entry: a quarter of the smallest log.
const MAX_PAGES: usize = 62;

/// A log that this process writes. Positions count all bytes ever written; a place in the file is a position modulo the
/// length of the log.
#[derive(Debug)]
pub(crate) struct LogRing {
    offset: u64,
    len: u64,
    log_guid: Uuid,
    /// Number of the next entry.
    sequence: u64,
    /// Where the next entry goes.
    head: u64,
    /// Oldest entry that is needed, as the next entry will say.
    tail: u64,
    /// Oldest entry that is needed, as the newest entry says.
    written_tail: u64,
    /// Oldest entry that is needed, as the newest durable entry says: nothing from here on may be overwritten.
    durable_tail: u64,
    /// Entries before this are durable.
    durable_head: u64,
    /// Pages that were last logged before this were put in their places.
    applied: u64,
}

/// What a sync that begins now will make durable.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mark {
    head: u64,
    tail: u64,
    applied: u64,
}

impl LogRing {
    pub(crate) fn new(offset: u64, len: u64, log_guid: Uuid) -> Self {
        Self {
            offset,
            len,
            log_guid,
            sequence: 1,
            head: 0,
            tail: 0,
            written_tail: 0,
            durable_tail: 0,
            durable_head: 0,
            applied: 0,
        }
    }

    /// Bytes that may be written.
    fn free(&self) -> u64 {
        self.len - (self.head - self.durable_tail)
    }

    /// Whether the largest entry fits. One page is left for the entry that gives space back.
    pub(crate) fn has_room(&self) -> bool {
        entry::entry_len(MAX_PAGES) + PAGE <= self.free()
    }

    /// Whether so much is in use that pages should be put in their places.
    pub(crate) fn is_half_full(&self) -> bool {
        self.free() < self.len / 2
    }

    /// Most pages in one entry.
    pub(crate) const fn max_pages() -> usize {
        MAX_PAGES
    }

    /// Position of the next entry.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// Entries before this position are durable.
    pub(crate) fn durable_head(&self) -> u64 {
        self.durable_head
    }

    /// Appends an entry. After an error nothing of it counts.
    pub(crate) fn append(
        &mut self,
        storage: &dyn Storage,
        pages: &[(u64, &[u8; PAGE_LEN])],
        flushed_len: u64,
        last_len: u64,
    ) -> io::Result<()> {
        let new = NewEntry {
            sequence: self.sequence,
            tail: self.tail % self.len,
            log_guid: self.log_guid,
            flushed_len,
            last_len,
        };
        let bytes = entry::build(new, pages);
        if bytes.len() as u64 > self.free() {
            return Err(io::Error::other("the entry is larger than what is free in the log"));
        }
        let at = self.head % self.len;
        let (first, rest) = bytes.split_at(to_usize(self.len - at).min(bytes.len()));
        storage.write_at(first, self.offset + at)?;
        if !rest.is_empty() {
            storage.write_at(rest, self.offset)?;
        }
        self.head += bytes.len() as u64;
        self.sequence += 1;
        self.written_tail = self.tail;
        Ok(())
    }

    /// Before a sync.
    pub(crate) fn mark(&self) -> Mark {
        Mark { head: self.head, tail: self.written_tail, applied: self.applied }
    }

    /// After that sync.
    pub(crate) fn synced(&mut self, mark: Mark) {
        self.durable_head = self.durable_head.max(mark.head);
        self.durable_tail = self.durable_tail.max(mark.tail);
        self.tail = self.tail.max(mark.applied);
    }

    /// All pages that were last logged before `position` are in their places, though not durably.
    pub(crate) fn applied(&mut self, position: u64) {
        self.applied = self.applied.max(position);
    }
}

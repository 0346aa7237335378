//! What the entries that count make of the file: held in memory for readers, written into the file for writers.

use std::{collections::BTreeMap, io};

use uuid::Uuid;

use super::{
    entry::{self, Descriptor, EntryInfo, Ring},
    scan,
};
use crate::{
    Storage,
    vhdx::{
        errors::{OpenError, Structure, io_at},
        header::Header,
        layout::{MAX_FILE_LEN, MAX_LOG_LEN, PAGE, PAGE_LEN, REGION_TABLES_AT, to_usize},
    },
};

/// Zeroed ranges that are kept track of. A log names a few.
const MAX_ZEROS: usize = 1 << 16;

/// Where a page of the overlay comes from: its bytes stay in the log.
#[derive(Clone, Copy, Debug)]
struct LoggedPage {
    /// Offset in the file of the data sector.
    sector: u64,
    leading: [u8; 8],
    trailing: [u8; 4],
}

/// The log's effect: pages over zeroed ranges over the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlay {
    pages: BTreeMap<u64, LoggedPage>,
    /// Start and end; they do not overlap.
    zeros: BTreeMap<u64, u64>,
    /// The file must have at least this length.
    pub(crate) last_len: u64,
    /// Entries that were replayed.
    pub(crate) entries: usize,
}

impl Overlay {
    /// Reads the log that the header names; empty if it names none.
    pub(crate) fn load(storage: &dyn Storage, header: &Header, len: u64) -> Result<Self, OpenError> {
        let log_guid = header.log_guid();
        if log_guid.is_nil() {
            return Ok(Self::default());
        }
        let (at, log_len) = (header.log_offset.get(), header.log_length.get());
        let invalid = |rule: String| OpenError::invalid(Structure::Log, at, rule);
        if log_len > MAX_LOG_LEN {
            return Err(invalid(format!("it has {log_len} bytes and entries; at most 1 GiB is replayed")));
        }
        let end = at.saturating_add(u64::from(log_len));
        if end > len {
            return Err(OpenError::Truncated { what: "the log".to_owned(), needed: end, len });
        }
        let ring = Ring { storage, offset: at, len: u64::from(log_len) };
        let entries = scan::active(ring, log_guid).map_err(io_at("read the log", at))?;
        let Some(head) = entries.last() else {
            return Err(invalid(format!(
                "the header says that it has entries ({log_guid}), and it has none"
            )));
        };
        if head.flushed_len > len {
            let what = "what was durable when the last entry of the log was written".to_owned();
            return Err(OpenError::Truncated { what, needed: head.flushed_len, len });
        }
        let mut overlay = Self { entries: entries.len(), ..Self::default() };
        for entry in &entries {
            if entry.last_len > MAX_FILE_LEN {
                return Err(invalid(format!("it asks for a file of {} bytes", entry.last_len)));
            }
            overlay.last_len = overlay.last_len.max(entry.last_len);
        }
        for entry in &entries {
            overlay.add(ring, entry, len)?;
        }
        Ok(overlay)
    }

    fn add(&mut self, ring: Ring<'_>, info: &EntryInfo, len: u64) -> Result<(), OpenError> {
        let at = ring.offset + info.at;
        let descriptors =
            entry::descriptors_of(ring, info).map_err(io_at("read the log", at))?.unwrap_or_default();
        for descriptor in descriptors {
            let (from, bytes) = match descriptor {
                Descriptor::Page { file_offset, .. } => (file_offset, PAGE),
                Descriptor::Zeros { file_offset, len } => (file_offset, len),
            };
            self.check_target(ring, at, from, bytes, len)?;
            match descriptor {
                Descriptor::Page { file_offset, leading, trailing, sector } => {
                    let sector = ring.offset + sector;
                    self.pages.insert(file_offset, LoggedPage { sector, leading, trailing });
                }
                Descriptor::Zeros { file_offset, len } => self.zero(file_offset, len),
            }
        }
        if self.zeros.len() > MAX_ZEROS {
            let rule = format!("it zeroes more than {MAX_ZEROS} ranges");
            return Err(OpenError::invalid(Structure::Log, at, rule));
        }
        Ok(())
    }

    /// A log may describe region tables, metadata, tables and bitmaps; never itself, a header, or what lies elsewhere.
    fn check_target(
        &self,
        ring: Ring<'_>,
        at: u64,
        from: u64,
        bytes: u64,
        len: u64,
    ) -> Result<(), OpenError> {
        let end = from.saturating_add(bytes);
        let [lowest, _] = REGION_TABLES_AT;
        let bad = if from < lowest {
            "the headers"
        } else if from < ring.offset + ring.len && ring.offset < end {
            "the log itself"
        } else if end > self.last_len.max(len) {
            "bytes behind the end of the file"
        } else {
            return Ok(());
        };
        Err(OpenError::invalid(
            Structure::Log,
            at,
            format!("an entry changes {bad} ({bytes} bytes at {from})"),
        ))
    }

    fn zero(&mut self, from: u64, len: u64) {
        let end = from + len;
        let covered: Vec<u64> = self.pages.range(from..end).map(|(page, _)| *page).collect();
        for page in covered {
            self.pages.remove(&page);
        }
        let (mut start, mut stop) = (from, end);
        while let Some((a, b)) = self.zeros.range(..=stop).next_back().map(|(a, b)| (*a, *b)) {
            if b < start {
                break;
            }
            self.zeros.remove(&a);
            (start, stop) = (start.min(a), stop.max(b));
        }
        if start < stop {
            self.zeros.insert(start, stop);
        }
    }

    /// Whether nothing is changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.zeros.is_empty()
    }

    /// Whether anything in `from..end` is changed.
    pub(crate) fn touches(&self, from: u64, end: u64) -> bool {
        self.next_changed(from).is_some_and(|next| next < end)
    }

    /// The first changed byte at or after `from`.
    pub(crate) fn next_changed(&self, from: u64) -> Option<u64> {
        let page =
            self.pages.range(from.saturating_sub(PAGE - 1)..).next().map(|(page, _)| (*page).max(from));
        let within = self.zeros.range(..=from).next_back().filter(|(_, end)| **end > from).map(|_| from);
        let zeros = within.or_else(|| self.zeros.range(from..).next().map(|(start, _)| *start));
        [page, zeros].into_iter().flatten().min()
    }

    /// Puts what the log changed over `buf`, which was read at `offset`.
    pub(crate) fn patch(&self, storage: &dyn Storage, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        let before = self.zeros.range(..offset).next_back();
        for (start, stop) in before.into_iter().chain(self.zeros.range(offset..end)) {
            let (from, to) = ((*start).max(offset), (*stop).min(end));
            if from < to
                && let Some(part) = buf.get_mut(to_usize(from - offset)..to_usize(to - offset))
            {
                part.fill(0);
            }
        }
        for (at, page) in self.pages.range(offset.saturating_sub(PAGE - 1)..end) {
            let bytes = page.read(storage)?;
            let (from, to) = ((*at).max(offset), (at + PAGE).min(end));
            let source = bytes.get(to_usize(from - at)..to_usize(to - at)).unwrap_or_default();
            if let Some(part) = buf.get_mut(to_usize(from - offset)..to_usize(to - offset)) {
                part.copy_from_slice(source);
            }
        }
        Ok(())
    }

    /// Writes everything into the file and makes it durable. Doing it again changes nothing.
    pub(crate) fn apply(&self, storage: &dyn Storage, len: u64) -> Result<(), OpenError> {
        // The log may be in the page cache only: what is written below must not reach the disk before it.
        storage.flush().map_err(io_at("make the log durable", 0))?;
        let end = self.last_len.max(len);
        if end > len {
            storage.set_len(end).map_err(io_at("grow the file to", end))?;
        }
        for (start, stop) in &self.zeros {
            storage.zero_range(*start, stop - start).map_err(io_at("replay the log", *start))?;
        }
        for (at, page) in &self.pages {
            let bytes = page.read(storage).map_err(io_at("read the log", page.sector))?;
            storage.write_at(&bytes, *at).map_err(io_at("replay the log", *at))?;
        }
        storage.flush().map_err(io_at("make the replayed log durable", 0))
    }

    /// Pages that are changed, not counting zeroed ranges.
    pub(crate) fn page_count(&self) -> usize {
        self.pages.len()
    }
}

impl LoggedPage {
    fn read(&self, storage: &dyn Storage) -> io::Result<[u8; PAGE_LEN]> {
        let mut bytes = [0; PAGE_LEN];
        storage.read_at(&mut bytes, self.sector)?;
        entry::page_of(&mut bytes, self.leading, self.trailing);
        Ok(bytes)
    }
}

/// Whether the header names a log with entries.
pub(crate) fn is_pending(header: &Header) -> bool {
    header.log_guid() != Uuid::nil()
}

//! One entry of the log: its bytes, and what makes it valid.

use std::io;

use uuid::Uuid;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::{
    Storage,
    vhdx::layout::{PAGE, PAGE_LEN, guid, to_usize},
};

const SIGNATURE: [u8; 4] = *b"loge";
const ZERO: [u8; 4] = *b"zero";
const DATA: [u8; 4] = *b"desc";
const SECTOR: [u8; 4] = *b"data";
const CHECKSUM_AT: usize = 4;
const HEADER_LEN: usize = 64;
const DESCRIPTOR_LEN: usize = 32;
/// Bytes of a page before those that its data sector holds.
const LEADING: usize = 8;
/// Bytes of a page behind those that its data sector holds.
const TRAILING: usize = 4;

/// Most descriptors that an entry may have. Real ones have a few hundred; the cap bounds memory.
const MAX_DESCRIPTORS: u32 = 1 << 16;

/// Head of an entry.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct EntryHeader {
    signature: [u8; 4],
    checksum: U32,
    length: U32,
    tail: U32,
    sequence: U64,
    descriptors: U32,
    reserved: U32,
    log_guid: [u8; 16],
    flushed_len: U64,
    last_len: U64,
}

/// A page that gets new content, or a range that gets zeros.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDescriptor {
    signature: [u8; 4],
    /// Data: the last four bytes of the page.
    trailing: [u8; 4],
    /// Data: the first eight bytes of the page. Zero: length of the range.
    leading: [u8; 8],
    file_offset: U64,
    sequence: U64,
}

const _: () = assert!(size_of::<EntryHeader>() == HEADER_LEN && size_of::<RawDescriptor>() == DESCRIPTOR_LEN);

/// An entry whose bytes were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryInfo {
    /// Offset in the log.
    pub(crate) at: u64,
    /// Bytes.
    pub(crate) len: u64,
    pub(crate) sequence: u64,
    /// Offset in the log of the oldest entry that is still needed.
    pub(crate) tail: u64,
    /// The file had at least this length, durably.
    pub(crate) flushed_len: u64,
    /// The file must have at least this length.
    pub(crate) last_len: u64,
    descriptors: u32,
}

/// What a descriptor asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Descriptor {
    /// A page gets the content of the data sector at `sector` of the log.
    Page { file_offset: u64, leading: [u8; LEADING], trailing: [u8; TRAILING], sector: u64 },
    /// A range gets zeros.
    Zeros { file_offset: u64, len: u64 },
}

/// The log as bytes in a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring<'a> {
    pub(crate) storage: &'a dyn Storage,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Ring<'_> {
    /// Reads from `at`, around the end if need be.
    pub(crate) fn read(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let first = to_usize(self.len - at).min(buf.len());
        let (head, rest) = buf.split_at_mut(first);
        self.storage.read_at(head, self.offset + at)?;
        if rest.is_empty() { Ok(()) } else { self.storage.read_at(rest, self.offset) }
    }

    /// Where an offset past the end is.
    pub(crate) fn wrap(&self, at: u64) -> u64 {
        at % self.len
    }
}

/// Sectors that hold the header and that many descriptors.
fn descriptor_sectors(descriptors: u32) -> u64 {
    (HEADER_LEN as u64 + u64::from(descriptors) * DESCRIPTOR_LEN as u64).div_ceil(PAGE)
}

/// Bytes of an entry with that many pages and nothing else.
pub(crate) fn entry_len(pages: usize) -> u64 {
    let pages = u32::try_from(pages).unwrap_or(u32::MAX);
    (descriptor_sectors(pages) + u64::from(pages)) * PAGE
}

/// Reads the entry at `at`; `None` if there is no valid one. `budget` is what may still be read and summed.
pub(crate) fn read(
    ring: Ring<'_>,
    at: u64,
    log_guid: Uuid,
    budget: &mut u64,
) -> io::Result<Option<EntryInfo>> {
    let mut first = [0; PAGE_LEN];
    ring.read(&mut first, at)?;
    let Ok((head, _)) = EntryHeader::read_from_prefix(&first) else { return Ok(None) };
    let (len, tail) = (u64::from(head.length.get()), u64::from(head.tail.get()));
    let descriptors = head.descriptors.get();
    let plausible = head.signature == SIGNATURE
        && len.is_multiple_of(PAGE)
        && len <= ring.len
        && tail.is_multiple_of(PAGE)
        && tail < ring.len
        && head.sequence.get() > 0
        && guid(head.log_guid) == log_guid
        && descriptors <= MAX_DESCRIPTORS
        && descriptor_sectors(descriptors) * PAGE <= len;
    if !plausible {
        return Ok(None);
    }
    if *budget < len {
        return Err(io::Error::other("the log asks for more work than its length explains"));
    }
    *budget -= len;
    if sum(ring, at, len, &first)? != head.checksum.get() {
        return Ok(None);
    }
    let info = EntryInfo {
        at,
        len,
        sequence: head.sequence.get(),
        tail,
        flushed_len: head.flushed_len.get(),
        last_len: head.last_len.get(),
        descriptors,
    };
    Ok(descriptors_of(ring, &info)?.is_some().then_some(info))
}

/// CRC-32C of an entry, its own field as zero.
fn sum(ring: Ring<'_>, at: u64, len: u64, first: &[u8; PAGE_LEN]) -> io::Result<u32> {
    const PART: u64 = 1 << 20;
    let mut crc = crate::vhdx::layout::checksum(first, CHECKSUM_AT);
    let mut done = PAGE;
    let mut bytes = vec![0; to_usize(PART.min(len))];
    while done < len {
        let part = bytes.get_mut(..to_usize(PART.min(len - done))).unwrap_or_default();
        ring.read(part, ring.wrap(at + done))?;
        crc = crc32c::crc32c_append(crc, part);
        done += part.len() as u64;
    }
    Ok(crc)
}

/// The descriptors of an entry; `None` if they or their data sectors do not fit it.
pub(crate) fn descriptors_of(ring: Ring<'_>, info: &EntryInfo) -> io::Result<Option<Vec<Descriptor>>> {
    let mut bytes = vec![0; to_usize(descriptor_sectors(info.descriptors) * PAGE)];
    ring.read(&mut bytes, info.at)?;
    let raw = bytes.get(HEADER_LEN..).unwrap_or_default().as_chunks::<DESCRIPTOR_LEN>().0;
    let mut found = Vec::with_capacity(info.descriptors as usize);
    let mut sector = info.at + bytes.len() as u64;
    for bytes in raw.iter().take(info.descriptors as usize) {
        let Ok(raw) = RawDescriptor::read_from_bytes(bytes) else { return Ok(None) };
        let file_offset = raw.file_offset.get();
        if raw.sequence.get() != info.sequence || !file_offset.is_multiple_of(PAGE) {
            return Ok(None);
        }
        match raw.signature {
            DATA if sector < info.at + info.len => {
                let place = ring.wrap(sector);
                if !sector_matches(ring, place, info.sequence)? {
                    return Ok(None);
                }
                let (leading, trailing) = (raw.leading, raw.trailing);
                found.push(Descriptor::Page { file_offset, leading, trailing, sector: place });
                sector += PAGE;
            }
            ZERO => {
                let len = u64::from_le_bytes(raw.leading);
                if !len.is_multiple_of(PAGE) {
                    return Ok(None);
                }
                found.push(Descriptor::Zeros { file_offset, len });
            }
            _ => return Ok(None),
        }
    }
    Ok((sector == info.at + info.len).then_some(found))
}

/// Whether a data sector belongs to an entry of that sequence number.
fn sector_matches(ring: Ring<'_>, at: u64, sequence: u64) -> io::Result<bool> {
    let (mut head, mut end) = ([0; 8], [0; 4]);
    ring.read(&mut head, at)?;
    ring.read(&mut end, at + PAGE - 4)?;
    let [a, b, c, d, high @ ..] = head;
    let number = (u64::from(u32::from_le_bytes(high)) << 32) | u64::from(u32::from_le_bytes(end));
    Ok([a, b, c, d] == SECTOR && number == sequence)
}

/// The page that a data sector and its descriptor make.
pub(crate) fn page_of(sector: &mut [u8; PAGE_LEN], leading: [u8; LEADING], trailing: [u8; TRAILING]) {
    if let Some(head) = sector.first_chunk_mut() {
        *head = leading;
    }
    if let Some(end) = sector.last_chunk_mut() {
        *end = trailing;
    }
}

/// What a new entry says about itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewEntry {
    pub(crate) sequence: u64,
    pub(crate) tail: u64,
    pub(crate) log_guid: Uuid,
    pub(crate) flushed_len: u64,
    pub(crate) last_len: u64,
}

/// The bytes of an entry with those pages.
pub(crate) fn build(new: NewEntry, pages: &[(u64, &[u8; PAGE_LEN])]) -> Vec<u8> {
    let len = entry_len(pages.len());
    let narrow = |value: u64| U32::new(u32::try_from(value).unwrap_or(u32::MAX));
    let head = EntryHeader {
        signature: SIGNATURE,
        checksum: U32::new(0),
        length: narrow(len),
        tail: narrow(new.tail),
        sequence: U64::new(new.sequence),
        descriptors: narrow(pages.len() as u64),
        reserved: U32::new(0),
        log_guid: new.log_guid.to_bytes_le(),
        flushed_len: U64::new(new.flushed_len),
        last_len: U64::new(new.last_len),
    };
    let mut bytes = Vec::with_capacity(to_usize(len));
    bytes.extend_from_slice(head.as_bytes());
    for (file_offset, page) in pages {
        let raw = RawDescriptor {
            signature: DATA,
            trailing: page.last_chunk().copied().unwrap_or_default(),
            leading: page.first_chunk().copied().unwrap_or_default(),
            file_offset: U64::new(*file_offset),
            sequence: U64::new(new.sequence),
        };
        bytes.extend_from_slice(raw.as_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(PAGE_LEN), 0);
    let [a, b, c, d, high @ ..] = new.sequence.to_le_bytes();
    for (_, page) in pages {
        bytes.extend_from_slice(&SECTOR);
        bytes.extend_from_slice(&high);
        bytes.extend_from_slice(page.get(LEADING..PAGE_LEN - TRAILING).unwrap_or_default());
        bytes.extend_from_slice(&[a, b, c, d]);
    }
    let checksum = crate::vhdx::layout::checksum(&bytes, CHECKSUM_AT).to_le_bytes();
    if let Some(slot) = bytes.get_mut(CHECKSUM_AT..CHECKSUM_AT + 4) {
        slot.copy_from_slice(&checksum);
    }
    bytes
}

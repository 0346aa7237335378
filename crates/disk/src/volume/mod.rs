//! File systems and others that own a part of a disk: which there are, how far they reach, and what they say is free. Everything here
//! reads and decides; nothing is written.
//!
//! What is read comes from a guest, so every number is checked before it is used, and what is not understood to the last bit is left
//! alone: a block that counts as free and is not is a lost file.

mod bits;
mod ext;
mod fat;
mod free;
mod fuzz;
mod ntfs;
mod signature;
mod space;

pub(crate) use free::FreeMap;
pub use fuzz::fuzz_volume;
pub(crate) use signature::identify;
pub(crate) use space::free_space;
pub use space::{SpaceState, VolumeSpace};

use std::io;

/// Bytes of a volume, or of a disk without partitions.
pub(crate) struct Volume<'a> {
    /// Fills a buffer from an offset. Both are whole sectors.
    read: &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>,
    /// Bytes.
    len: u64,
    /// Bytes that are read as a whole.
    sector: u64,
}

/// Why nothing of a volume counts as free.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Left {
    /// No file system that is known.
    #[error("it holds nothing that is known")]
    Unknown,
    /// One that is not looked into.
    #[error("it holds {0}, which is not looked into")]
    NotRead(&'static str),
    /// Old signatures beside new ones.
    #[error("it bears the marks of {0}, and which of them counts cannot be told")]
    Several(String),
    /// The machine was not shut down.
    #[error("{0}: start the machine, shut it down and try again")]
    Dirty(String),
    /// A rule is broken, or a feature is used that nobody here knows.
    #[error("{0}")]
    Strange(String),
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

impl From<io::Error> for Left {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

pub(crate) fn strange(words: impl Into<String>) -> Left {
    Left::Strange(words.into())
}

impl<'a> Volume<'a> {
    pub(crate) fn new(read: &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>, len: u64, sector: u64) -> Self {
        Self { read, len, sector }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes at any place; an error behind the end.
    pub(crate) fn bytes(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.len);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let start = offset / self.sector * self.sector;
        // The last sector of a volume may be cut; the disk goes on behind it or ends with a whole one.
        let stop = end.next_multiple_of(self.sector);
        let mut bytes = vec![0; as_usize(stop - start)];
        (self.read)(start, &mut bytes)?;
        bytes.drain(..as_usize(offset - start));
        bytes.truncate(len);
        Ok(bytes)
    }

    /// What there is of a range.
    fn at_most(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let there = self.len.saturating_sub(offset).min(len);
        if there == 0 { Ok(Vec::new()) } else { self.bytes(offset, as_usize(there)) }
    }
}

fn as_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Numbers in bytes that were read; zero behind their end.
mod number {
    fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        at.checked_add(N).and_then(|end| bytes.get(at..end)).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
    }

    pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(take(bytes, at))
    }

    pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(take(bytes, at))
    }

    pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(take(bytes, at))
    }

    pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(take(bytes, at))
    }

    pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
        u64::from_be_bytes(take(bytes, at))
    }
}

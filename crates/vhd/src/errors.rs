//! What can go wrong: opening a file, and using an open one.

use std::io;

use thiserror::Error;

use crate::format::{footer::FooterError, header::HeaderError};

/// Why a file cannot be opened as a VHD.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be read or repaired.
    #[error("cannot {action} at offset {offset}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Neither a footer at the end nor a copy at the start.
    #[error(
        "this is not a VHD: there is no footer at the end of the file and no copy at its start; say the format if it is a raw disk, and copy it again if it is a fixed VHD that was cut off"
    )]
    NotVhd,
    /// A VHDX was given.
    #[error("this is a VHDX, not a VHD: name it .vhdx (.avhdx for a checkpoint's), or say the format")]
    IsVhdx,
    /// Xen's tools stopped in the middle.
    #[error(
        "the disk is marked \"v_poison\": a journaled operation of Xen's tools was interrupted; finish it with `vhd-util revert` there first"
    )]
    Poisoned,
    /// The only footer is damaged.
    #[error("the footer is damaged and there is no good copy")]
    Footer(#[source] FooterError),
    /// A kind that nothing uses.
    #[error("the footer says disk type {0}; only 2 (fixed), 3 (dynamic) and 4 (differencing) are in use")]
    UnsupportedType(u32),
    /// A part of a set of files.
    #[error(
        "this is part of a split disk (name.vhd, name.v01, …), a form from before Virtual Server 2005; join its parts with the program that made them"
    )]
    SplitDisk,
    /// Bytes are missing.
    #[error(
        "the file is incomplete: {what} ends at {needed} but the file at {len}; copy it again (or it is the first part of a split disk)"
    )]
    Truncated {
        /// The structure that is cut off.
        what: String,
        /// First byte after it.
        needed: u64,
        /// Length of the file.
        len: u64,
    },
    /// The dynamic header is damaged.
    #[error("the header at offset {offset} is damaged")]
    Header {
        /// Where the footer says the header is.
        offset: u64,
        /// Why it is not usable.
        #[source]
        source: HeaderError,
    },
    /// Not a size a disk can have.
    #[error("the disk size {0} is not usable; it has to be at least 512")]
    Size(u64),
    /// Not a power of two between 512 and 256 MiB.
    #[error("the block size {0} is not a power of two between 512 bytes and 256 MiB")]
    BlockSize(u32),
    /// The table would be too large.
    #[error("a disk of {size} bytes in blocks of {block_size} has more blocks than this program accepts")]
    TooManyBlocks {
        /// Virtual size.
        size: u64,
        /// Block size.
        block_size: u32,
    },
    /// The table is too short for the disk.
    #[error("the block allocation table has {entries} entries, the disk has {blocks} blocks")]
    TableTooSmall {
        /// Entries by the header.
        entries: u32,
        /// Blocks by the size.
        blocks: u32,
    },
    /// Two structures share bytes.
    #[error(
        "{first} and {second} overlap at offset {offset}: the file is corrupt; `backstay disk check` lists the damage"
    )]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The one that starts inside it.
        second: String,
        /// Where it starts.
        offset: u64,
    },
    /// The bits that a dead process left could not be read.
    #[error("cannot read the list of writes that an earlier process left behind")]
    Shadow(#[source] io::Error),
}

/// Why a request on an open disk failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MetaError {
    /// Past the end of the disk.
    #[error("bytes {offset}..+{len} are not inside the disk of {size} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Virtual size.
        size: u64,
    },
    /// Not whole sectors.
    #[error("bytes {offset}..+{len} are not whole sectors of 512 bytes")]
    Unaligned {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
    },
    /// Not whole sectors of a disk whose sectors are not those of VHD.
    #[error("bytes {offset}..+{len} are not whole sectors of {sector} bytes")]
    UnalignedTo {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Bytes in a sector.
        sector: u32,
    },
    /// Opened for reading.
    #[error("the disk is open read-only")]
    ReadOnly,
    /// After `close`.
    #[error("the disk is closed")]
    Closed,
    /// An earlier flush failed.
    #[error(
        "an earlier flush failed, so the system may have dropped data that was written before it; close the disk and open it again"
    )]
    FlushFailed,
    /// No space for another block.
    #[error("there is no space left for another block")]
    NoSpace(#[source] io::Error),
    /// Sector numbers end.
    #[error(
        "the file would grow past 2 TiB, where VHD block addresses end; convert the disk to raw, which has no such end"
    )]
    TooLarge,
    /// Places in the file end.
    #[error(
        "the file would grow past 512 TiB, the most that is supported; convert the disk, which leaves unused space out"
    )]
    FileLimit,
    /// The parent locator does not fit.
    #[error("the paths to the parent need {0} bytes, at most {max} fit", max = crate::vhdx::MAX_STORED_LOCATOR)]
    LocatorTooLong(usize),
    /// A differencing disk is needed.
    #[error("the disk has no parent")]
    NoParent,
    /// The file could not be read or written.
    #[error("cannot {action} at offset {offset}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl MetaError {
    /// The nearest kind of I/O error.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::OutOfRange { .. }
            | Self::Unaligned { .. }
            | Self::UnalignedTo { .. }
            | Self::LocatorTooLong(_)
            | Self::NoParent => io::ErrorKind::InvalidInput,
            Self::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
            Self::NoSpace(_) => io::ErrorKind::StorageFull,
            Self::TooLarge | Self::FileLimit => io::ErrorKind::FileTooLarge,
            Self::Io { source, .. } => source.kind(),
            Self::Closed | Self::FlushFailed => io::ErrorKind::Other,
        }
    }
}

impl From<MetaError> for io::Error {
    fn from(error: MetaError) -> Self {
        Self::new(error.kind(), error)
    }
}

/// Adds what was tried to an I/O error.
pub(crate) trait IoContext<T> {
    fn open_context(self, action: &'static str, offset: u64) -> Result<T, OpenError>;
    fn meta_context(self, action: &'static str, offset: u64) -> Result<T, MetaError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn open_context(self, action: &'static str, offset: u64) -> Result<T, OpenError> {
        self.map_err(|source| OpenError::Io { action, offset, source })
    }

    fn meta_context(self, action: &'static str, offset: u64) -> Result<T, MetaError> {
        self.map_err(|source| MetaError::Io { action, offset, source })
    }
}

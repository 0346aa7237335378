//! The 1024-byte header of dynamic and differencing disks.

use thiserror::Error;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32, U64},
};

use super::{checksum, footer::VhdTime, locator::LocatorEntry};

/// Bytes in a dynamic header.
pub const HEADER_LEN: usize = 1024;
/// First bytes of a dynamic header.
pub const COOKIE: [u8; 8] = *b"cxsparse";
/// Header version 1.0.
pub const VERSION: u32 = 0x0001_0000;
/// UTF-16 units in the parent's name.
pub const NAME_UNITS: usize = 256;
/// Parent locators in a header.
pub const LOCATORS: usize = 8;

const CHECKSUM_AT: usize = 36;

/// The header as it lies in the file.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// [`COOKIE`].
    pub cookie: [u8; 8],
    /// Unused, all ones.
    pub data_offset: U64,
    /// Offset of the block allocation table.
    pub table_offset: U64,
    /// [`VERSION`].
    pub version: U32,
    /// Entries in the table; at least one per block.
    pub max_table_entries: U32,
    /// Bytes in a block, without its bitmap; a power of two.
    pub block_size: U32,
    /// One's complement of the sum of all other bytes.
    pub checksum: U32,
    /// The parent's unique id.
    pub parent_unique_id: [u8; 16],
    /// The parent's modification time, or 0.
    pub parent_time_stamp: U32,
    /// Unused.
    pub reserved: U32,
    /// The parent's name or path in UTF-16BE, padded with zeros.
    pub parent_name: [U16; NAME_UNITS],
    /// Where the parent may be found.
    pub locators: [LocatorEntry; LOCATORS],
    /// Unused.
    pub reserved_end: [u8; 256],
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);
const _: () = assert!(align_of::<Header>() == 1);

/// Why 1024 bytes are not a usable header.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Another cookie.
    #[error("there is no dynamic disk header here (no \"cxsparse\" cookie)")]
    NotAHeader,
    /// The bytes were damaged.
    #[error("the dynamic disk header's checksum is {stored:#010x}, its content gives {computed:#010x}")]
    BadChecksum {
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    /// Not version 1.x.
    #[error("the dynamic disk header has version {0:#010x}, only 1.0 (0x00010000) is known")]
    UnsupportedVersion(u32),
}

impl Header {
    /// Checks cookie, checksum and version.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let header = Self::read_from_bytes(bytes).map_err(|_| HeaderError::NotAHeader)?;
        if header.cookie != COOKIE {
            return Err(HeaderError::NotAHeader);
        }
        let (stored, computed) = (header.checksum.get(), header.compute_checksum());
        if stored != computed {
            return Err(HeaderError::BadChecksum { stored, computed });
        }
        let version = header.version.get();
        if version >> 16 != VERSION >> 16 {
            return Err(HeaderError::UnsupportedVersion(version));
        }
        Ok(header)
    }

    /// The checksum that belongs to the other fields.
    #[must_use]
    pub fn compute_checksum(&self) -> u32 {
        checksum(self.as_bytes(), CHECKSUM_AT)
    }

    /// Sets the checksum; call it last.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.checksum = U32::new(self.compute_checksum());
        self
    }

    /// The parent's name, up to the first NUL. Unpaired surrogates occur and become U+FFFD.
    #[must_use]
    pub fn name(&self) -> String {
        let units = self.parent_name.iter().map(|unit| unit.get()).take_while(|unit| *unit != 0);
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }

    /// The parent's time stamp as stored; 0 means "not recorded".
    #[must_use]
    pub fn parent_time(&self) -> VhdTime {
        VhdTime(self.parent_time_stamp.get())
    }

    /// An unsealed header without a parent.
    #[must_use]
    pub fn new(table_offset: u64, entries: u32, block_size: u32) -> Self {
        Self {
            cookie: COOKIE,
            data_offset: U64::new(u64::MAX),
            table_offset: U64::new(table_offset),
            version: U32::new(VERSION),
            max_table_entries: U32::new(entries),
            block_size: U32::new(block_size),
            checksum: U32::new(0),
            parent_unique_id: [0; 16],
            parent_time_stamp: U32::new(0),
            reserved: U32::new(0),
            parent_name: [U16::new(0); NAME_UNITS],
            locators: std::array::from_fn(|_| LocatorEntry::default()),
            reserved_end: [0; 256],
        }
    }
}

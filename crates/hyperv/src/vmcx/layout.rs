//! Structures of the file: little-endian, packed.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The larger ones met have some hundred KiB.
pub(super) const MAX_BYTES: usize = 16 << 20;
/// Values and nodes together.
pub(super) const MAX_ENTRIES: usize = 200_000;
/// Nodes below each other.
pub(super) const MAX_DEPTH: usize = 64;
/// Values from this size on are kept outside of the key tables.
pub(super) const OUTSIDE_FROM: usize = 0x800;
/// Both headers are this far apart, and everything is a multiple of it.
pub(super) const PAGE: usize = 0x1000;
/// Where the first object table is.
pub(super) const OBJECT_TABLE: usize = 2 * PAGE;
pub(super) const SIGNATURE: u32 = 0x0128_2014;
pub(super) const OBJECT_SIGNATURE: u32 = 0x0111_0001;
pub(super) const LOG_SIGNATURE: u32 = 0x0111_0003;
pub(super) const KEY_SIGNATURE: u16 = 0x0002;
/// The oldest version whose layout is the one below.
pub(super) const OLDEST: u32 = 0x0300;
/// The version that is written, and the newest that is known.
pub(super) const NEWEST: u32 = 0x0400;

/// File header, at 0 and at 0x1000.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) signature: U32,
    pub(super) checksum: U32,
    pub(super) sequence: U16,
    pub(super) version: U32,
    pub(super) data_version: U32,
    pub(super) flags: U32,
    pub(super) alignment: U32,
    pub(super) log_offset: U64,
    pub(super) log_size: U64,
    pub(super) log_header_size: U32,
}
const _: () = assert!(size_of::<Header>() == 0x2E);

/// Beginning of the replay log.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct LogHeader {
    pub(super) signature: U32,
    pub(super) checksum: U32,
    pub(super) entries: U32,
    pub(super) reserved: u8,
    pub(super) most_entries: U32,
    pub(super) tracking: u8,
    pub(super) tracking_offset: U64,
    pub(super) tracking_size: U32,
    pub(super) tracking_used: U32,
}
const _: () = assert!(size_of::<LogHeader>() == 0x22);
/// Size of one entry of the replay log.
pub(super) const LOG_ENTRY: usize = 0x1C;

/// Beginning of an object table.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ObjectHeader {
    pub(super) signature: U32,
    pub(super) count: U32,
}
const _: () = assert!(size_of::<ObjectHeader>() == 8);

/// One object.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Object {
    pub(super) kind: u8,
    pub(super) checksum: U32,
    pub(super) offset: U64,
    pub(super) size: U32,
    pub(super) flags: u8,
}
const _: () = assert!(size_of::<Object>() == 0x12);

pub(super) const OBJECT_EMPTY: u8 = 0;
pub(super) const OBJECT_OBJECTS: u8 = 1;
pub(super) const OBJECT_KEYS: u8 = 2;
pub(super) const OBJECT_FILE: u8 = 3;

/// Beginning of a key table.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct KeyHeader {
    pub(super) signature: U16,
    pub(super) index: U16,
    pub(super) sequence: U16,
    pub(super) checksum: U32,
}
const _: () = assert!(size_of::<KeyHeader>() == 10);

/// Beginning of an entry of a key table; the name and the value follow.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct KeyEntry {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) size: U32,
    pub(super) parent_table: U16,
    pub(super) parent_offset: U32,
    pub(super) checksum: U32,
    pub(super) insertion: U32,
    pub(super) name_size: u8,
}
const _: () = assert!(size_of::<KeyEntry>() == 21);

pub(super) const KIND_FREE: u8 = 1;
pub(super) const KIND_INT: u8 = 3;
pub(super) const KIND_UINT: u8 = 4;
pub(super) const KIND_DOUBLE: u8 = 5;
pub(super) const KIND_STRING: u8 = 6;
pub(super) const KIND_BYTES: u8 = 7;
pub(super) const KIND_BOOL: u8 = 8;
pub(super) const KIND_NODE: u8 = 9;
/// Flag: the value is elsewhere.
pub(super) const FLAG_OUTSIDE: u8 = 1;

/// A value that is elsewhere.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Outside {
    pub(super) size: U32,
    pub(super) offset: U64,
}
const _: () = assert!(size_of::<Outside>() == 12);

/// What a node carries.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct NodeData {
    pub(super) tracking: U64,
    pub(super) next_insertion: U32,
}
const _: () = assert!(size_of::<NodeData>() == 12);

/// Whether bytes begin as a `.vmcx` does.
#[must_use]
pub fn looks_like(bytes: &[u8]) -> bool {
    header_at(bytes, 0).is_some() || header_at(bytes, PAGE).is_some()
}

/// A header with the right signature.
pub(super) fn header_at(bytes: &[u8], offset: usize) -> Option<Header> {
    let (header, _) = Header::read_from_prefix(bytes.get(offset..)?).ok()?;
    (header.signature.get() == SIGNATURE).then_some(header)
}

/// CRC-32 of ISO 3309 (zlib's), of a structure whose field of four bytes at `at` counts as zero.
pub(super) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let zeroed = |index: usize| index >= at && index < at + 4;
    let bytes = bytes.iter().enumerate().map(|(index, byte)| if zeroed(index) { 0 } else { *byte });
    !bytes.fold(u32::MAX, |crc, byte| CRC_TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8))
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut index = 0u32;
    while index < 256 {
        let mut crc = index;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { 0xEDB8_8320 ^ (crc >> 1) } else { crc >> 1 };
            bit += 1;
        }
        table[index as usize] = crc;
        index += 1;
    }
    table
};

/// Why bytes are no readable `.vmcx`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VmcxError {
    /// Larger than any real file.
    #[error("it has {size} bytes, at most {limit} are read")]
    TooLarge {
        /// Bytes given.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Another format.
    #[error("neither of its headers has the signature of the format")]
    NoHeader,
    /// Before Windows 10 had its final layout, or after what is known.
    #[error(
        "its format has version {0:#06x}, versions from {OLDEST:#06x} to {NEWEST:#06x} are read: use backstay-collect.ps1 on the host"
    )]
    Version(u32),
    /// It was open when it was copied, or its host went down.
    #[error(
        "it was not closed cleanly ({0} changes wait in its log): start and cleanly stop the machine on its host, or use backstay-collect.ps1 there"
    )]
    Dirty(u32),
    /// Something points out of the file, or to the wrong place.
    #[error("it is damaged at {offset:#x}: {reason}")]
    Damaged {
        /// Where, in bytes from the start.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// More values than any real file.
    #[error("it has more than {0} values")]
    TooMany(usize),
    /// Deeper than any real file.
    #[error("its nodes are more than {0} deep")]
    TooDeep(usize),
    /// Something to be written does not fit the format.
    #[error("'{name}' cannot be written: {reason}")]
    Unwritable {
        /// The entry.
        name: String,
        /// The rule.
        reason: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_zlib() {
        // The check value of the algorithm's catalogue.
        assert_eq!(checksum(b"123456789", 100), 0xCBF4_3926);
        assert_eq!(checksum(b"12\xFF\xFF\xFF\xFF789", 2), checksum(b"12\x00\x00\x00\x00789", 100));
    }
}

//! File identifier and headers (MS-VHDX 2.2.1, 2.2.2).

use std::fmt;

use uuid::Uuid;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::{
    errors::{OpenError, io_at},
    layout::{FILE_SIGNATURE, HEADER_LEN, HEADERS_AT, MIB, checksum, guid},
};
use crate::Storage;

const SIGNATURE: [u8; 4] = *b"head";
const CHECKSUM_AT: usize = 4;

/// The first bytes of a file. Never written again.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FileIdentifier {
    /// [`FILE_SIGNATURE`].
    pub signature: [u8; 8],
    /// The program that made the file, UTF-16LE.
    pub creator: [U16; 256],
}

const _: () = assert!(size_of::<FileIdentifier>() == 520);

impl FileIdentifier {
    /// For a new file.
    #[must_use]
    pub fn new(creator: &str) -> Self {
        let mut text = [U16::new(0); 256];
        // The last one stays a terminator.
        for (to, from) in text.iter_mut().take(255).zip(creator.encode_utf16()) {
            *to = U16::new(from);
        }
        Self { signature: FILE_SIGNATURE, creator: text }
    }

    /// The creator up to the first NUL.
    #[must_use]
    pub fn creator(&self) -> String {
        let units = self.creator.iter().map(|unit| unit.get()).take_while(|unit| *unit != 0);
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }
}

/// The part of a header that is used; zeros follow.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// `head`.
    pub signature: [u8; 4],
    /// CRC-32C over 4096 bytes.
    pub checksum: U32,
    /// The header with the larger number counts.
    pub sequence: U64,
    /// New whenever anything in the file changes for the first time after an open.
    pub file_write_guid: [u8; 16],
    /// New whenever what a user sees changes for the first time after an open. Children name their parent by it.
    pub data_write_guid: [u8; 16],
    /// Entries of the log count only if they carry it; zero: the log is empty.
    pub log_guid: [u8; 16],
    /// 0.
    pub log_version: U16,
    /// 1.
    pub version: U16,
    /// Bytes of the log, whole MiB.
    pub log_length: U32,
    /// Offset of the log, whole MiB.
    pub log_offset: U64,
}

const _: () = assert!(size_of::<Header>() == 80);

/// Why bytes are no header that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Other first bytes.
    NotAHeader,
    /// Damaged.
    Checksum {
        /// As stored.
        stored: u32,
        /// As it would have to be.
        computed: u32,
    },
    /// Not version 1.
    Version(u16),
    /// A log of another version has entries.
    LogVersion(u16),
    /// The place of the log is not whole MiB behind the first one.
    LogPlace {
        /// Its offset.
        offset: u64,
        /// Its length.
        length: u32,
    },
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAHeader => f.write_str("it does not begin with \"head\""),
            Self::Checksum { stored, computed } => {
                write!(f, "its checksum is {stored:#010x}, its content has {computed:#010x}")
            }
            Self::Version(version) => write!(f, "its version is {version}, only 1 is known"),
            Self::LogVersion(version) => {
                write!(f, "the log has entries and version {version}, only 0 is known")
            }
            Self::LogPlace { offset, length } => {
                write!(f, "the log ({length} bytes at {offset}) is not whole MiB behind the first one")
            }
        }
    }
}

impl Header {
    /// Checks the bytes of a header.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let (header, _) = Self::read_from_prefix(bytes).map_err(|_| HeaderError::NotAHeader)?;
        if header.signature != SIGNATURE {
            return Err(HeaderError::NotAHeader);
        }
        let (stored, computed) = (header.checksum.get(), checksum(bytes, CHECKSUM_AT));
        if stored != computed {
            return Err(HeaderError::Checksum { stored, computed });
        }
        if header.version.get() != 1 {
            return Err(HeaderError::Version(header.version.get()));
        }
        if header.log_version.get() != 0 && header.log_guid != [0; 16] {
            return Err(HeaderError::LogVersion(header.log_version.get()));
        }
        let (offset, length) = (header.log_offset.get(), header.log_length.get());
        let whole = offset.is_multiple_of(MIB) && u64::from(length).is_multiple_of(MIB);
        if !whole || offset < MIB || length == 0 {
            return Err(HeaderError::LogPlace { offset, length });
        }
        Ok(header)
    }

    /// For a new file.
    #[must_use]
    pub fn new(file_write: Uuid, data_write: Uuid, log_offset: u64, log_length: u32) -> Self {
        Self {
            signature: SIGNATURE,
            checksum: U32::new(0),
            sequence: U64::new(0),
            file_write_guid: file_write.to_bytes_le(),
            data_write_guid: data_write.to_bytes_le(),
            log_guid: [0; 16],
            log_version: U16::new(0),
            version: U16::new(1),
            log_length: U32::new(log_length),
            log_offset: U64::new(log_offset),
        }
    }

    /// The bytes, with the checksum that belongs to them.
    #[must_use]
    pub fn sealed(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let sealed = Self { checksum: U32::new(0), ..self.clone() };
        let fill = |header: &Self, bytes: &mut [u8; HEADER_LEN]| {
            for (to, from) in bytes.iter_mut().zip(header.as_bytes()) {
                *to = *from;
            }
        };
        fill(&sealed, &mut bytes);
        let sealed = Self { checksum: U32::new(checksum(&bytes, CHECKSUM_AT)), ..sealed };
        fill(&sealed, &mut bytes);
        bytes
    }

    /// Identity of the log's entries; nil when the log is empty.
    #[must_use]
    pub fn log_guid(&self) -> Uuid {
        guid(self.log_guid)
    }
}

/// The header that counts.
#[derive(Clone, Debug)]
pub(crate) struct CurrentHeader {
    pub(crate) header: Header,
    /// Which of the two it is.
    pub(crate) slot: usize,
    /// What is wrong with the other one.
    pub(crate) other: Option<HeaderError>,
}

/// Reads the file identifier; the creator.
pub(crate) fn read_identifier(storage: &dyn Storage, len: u64) -> Result<String, OpenError> {
    let mut bytes = [0; size_of::<FileIdentifier>()];
    if len < bytes.len() as u64 {
        return Err(OpenError::NotVhdx);
    }
    storage.read_at(&mut bytes, 0).map_err(io_at("read the file identifier", 0))?;
    match FileIdentifier::read_from_bytes(&bytes) {
        Ok(identifier) if identifier.signature == FILE_SIGNATURE => Ok(identifier.creator()),
        _ => Err(OpenError::NotVhdx),
    }
}

/// Reads both headers and chooses: the valid one with the larger sequence number. Two of one number count only if they
/// are identical, as Disk2vhd writes them.
pub(crate) fn read_current(storage: &dyn Storage, len: u64) -> Result<CurrentHeader, OpenError> {
    let [first_at, second_at] = HEADERS_AT;
    let needed = second_at + HEADER_LEN as u64;
    if len < needed {
        return Err(OpenError::Truncated { what: "the headers".to_owned(), needed, len });
    }
    let mut bytes = [[0; HEADER_LEN]; 2];
    for (bytes, at) in bytes.iter_mut().zip(HEADERS_AT) {
        storage.read_at(bytes, at).map_err(io_at("read a header", at))?;
    }
    let [first, second] = &bytes;
    match (Header::parse(first), Header::parse(second)) {
        (Ok(one), Ok(two)) => {
            if one.sequence == two.sequence && first != second {
                let rule = format!(
                    "both headers have sequence number {} and differ, so neither counts",
                    one.sequence.get()
                );
                return Err(OpenError::invalid(super::Structure::Header, first_at, rule));
            }
            let slot = usize::from(two.sequence.get() > one.sequence.get());
            let header = if slot == 0 { one } else { two };
            Ok(CurrentHeader { header, slot, other: None })
        }
        (Ok(header), Err(error)) => Ok(CurrentHeader { header, slot: 0, other: Some(error) }),
        (Err(error), Ok(header)) => Ok(CurrentHeader { header, slot: 1, other: Some(error) }),
        (Err(first), Err(second)) => {
            Err(OpenError::NoHeader { first: first.to_string(), second: second.to_string() })
        }
    }
}

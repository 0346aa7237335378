//! Parent locators: eight slots in the header that say, platform by platform, where the parent is.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U32, U64},
};

use super::SECTOR;

/// Longest locator that is read, in bytes. Windows reserves 64 KiB.
pub const MAX_LOCATOR_LEN: u32 = 64 << 10;

/// One slot as it lies in the header.
#[derive(Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct LocatorEntry {
    /// Platform code; zeros in an empty slot.
    pub code: [u8; 4],
    /// Reserved space: sectors by the specification, bytes as Windows and Xen write it.
    pub data_space: U32,
    /// Bytes of the text, without a terminator.
    pub data_length: U32,
    /// Zero.
    pub reserved: U32,
    /// Offset of the text in the file.
    pub data_offset: U64,
}

const _: () = assert!(size_of::<LocatorEntry>() == 24);

/// How a locator names the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocatorKind {
    /// `W2ru`: relative path, UTF-16LE.
    Relative,
    /// `W2ku`: absolute Windows path, UTF-16LE. Xen stores a relative one here.
    Absolute,
    /// `Wi2r`: deprecated, relative path in 8-bit characters.
    Relative8Bit,
    /// `Wi2k`: deprecated, absolute path in 8-bit characters.
    Absolute8Bit,
    /// `MacX`: file URL, UTF-8.
    MacUrl,
    /// `Mac `: alias blob.
    MacAlias,
    /// Anything else.
    Unknown([u8; 4]),
}

impl LocatorKind {
    /// Code of [`LocatorKind::Relative`].
    pub const W2RU: [u8; 4] = *b"W2ru";
    /// Code of [`LocatorKind::Absolute`].
    pub const W2KU: [u8; 4] = *b"W2ku";

    /// The kind with that code.
    #[must_use]
    pub fn from_code(code: [u8; 4]) -> Self {
        match &code {
            b"W2ru" => Self::Relative,
            b"W2ku" => Self::Absolute,
            b"Wi2r" => Self::Relative8Bit,
            b"Wi2k" => Self::Absolute8Bit,
            b"MacX" => Self::MacUrl,
            b"Mac " => Self::MacAlias,
            _ => Self::Unknown(code),
        }
    }

    /// The text of a locator of this kind; `None` for those without text. Broken characters become U+FFFD, a
    /// terminator and everything behind it is dropped.
    #[must_use]
    pub fn decode(self, bytes: &[u8]) -> Option<String> {
        let text = match self {
            Self::Relative | Self::Absolute => decode_utf16le(bytes),
            Self::Relative8Bit | Self::Absolute8Bit | Self::MacUrl => {
                String::from_utf8_lossy(bytes).into_owned()
            }
            Self::MacAlias | Self::Unknown(_) => return None,
        };
        Some(match text.find('\0') {
            Some(end) => text.get(..end).unwrap_or_default().to_owned(),
            None => text,
        })
    }
}

fn decode_utf16le(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|pair| match pair {
        [low, high] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    });
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// UTF-16LE bytes of a path, as `W2ru` and `W2ku` hold it.
#[must_use]
pub fn encode_utf16le(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

impl LocatorEntry {
    /// Whether the slot is unused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.code == [0; 4]
    }

    /// Bytes reserved for the text. Values of at least 512 that are whole sectors are bytes (Windows, Xen); smaller ones
    /// are sectors (specification). Never less than the text itself.
    #[must_use]
    pub fn reserved_bytes(&self) -> u64 {
        let space = u64::from(self.data_space.get());
        let bytes = if space >= SECTOR && space.is_multiple_of(SECTOR) {
            space
        } else {
            space.saturating_mul(SECTOR)
        };
        bytes.max(u64::from(self.data_length.get()))
    }
}

//! The parent locator (MS-VHDX 2.6.2.6): what the parent is, and where it may be.

use uuid::Uuid;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

use super::{
    errors::{OpenError, Structure},
    layout::guid,
};

/// The only type of locator there is.
pub const VHDX_LOCATOR: Uuid = Uuid::from_u128(0xb04a_efb7_d19e_4a81_b789_25b8_e944_5913);

/// Key of the parent's DataWriteGuid.
pub const PARENT_LINKAGE: &str = "parent_linkage";
/// Key of the DataWriteGuid that the parent is about to get.
pub const PARENT_LINKAGE2: &str = "parent_linkage2";
/// Key of the path from the child's folder.
pub const RELATIVE_PATH: &str = "relative_path";
/// Key of the path by the id of its volume.
pub const VOLUME_PATH: &str = "volume_path";
/// Key of the path by drive letter or share.
pub const ABSOLUTE_PATH: &str = "absolute_win32_path";

/// Longest key or value: its length is a 16-bit number of bytes, and even.
const MAX_TEXT: usize = 65534;

/// Head of a locator.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct LocatorHeader {
    kind: [u8; 16],
    reserved: U16,
    count: U16,
}

/// One pair of texts.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct LocatorEntry {
    key_offset: U32,
    value_offset: U32,
    key_length: U16,
    value_length: U16,
}

const _: () = assert!(size_of::<LocatorHeader>() == 20 && size_of::<LocatorEntry>() == 12);

/// A child's reference to its parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locator {
    /// The parent's DataWriteGuid. Its identity: has to match.
    pub linkage: Uuid,
    /// The DataWriteGuid that the parent gets when a merge into it begins; matches as well.
    pub linkage2: Option<Uuid>,
    /// From the child's folder, such as `.\base.vhdx`.
    pub relative: Option<String>,
    /// Such as `\\?\Volume{…}\disks\base.vhdx`.
    pub volume: Option<String>,
    /// Such as `C:\disks\base.vhdx`.
    pub absolute: Option<String>,
    /// Pairs that nobody here knows; they are kept.
    pub other: Vec<(String, String)>,
}

/// Parses an item. `at` is its place, for messages.
pub(crate) fn parse(bytes: &[u8], at: u64) -> Result<Locator, OpenError> {
    let invalid = |rule: String| OpenError::invalid(Structure::ParentLocator, at, rule);
    let (head, rest) = LocatorHeader::ref_from_prefix(bytes)
        .map_err(|_| invalid(format!("it has {} bytes, its head alone has 20", bytes.len())))?;
    if guid(head.kind) != VHDX_LOCATOR {
        return Err(invalid(format!("its type is {}, not that of a VHDX parent", guid(head.kind))));
    }
    let count = usize::from(head.count.get());
    let entries = rest.as_chunks::<{ size_of::<LocatorEntry>() }>().0;
    if entries.len() < count {
        return Err(invalid(format!("it has {} bytes, too few for {count} entries", bytes.len())));
    }
    let text = |offset: u32, length: u16| -> Result<String, OpenError> {
        let (from, len) = (offset as usize, usize::from(length));
        let part = from.checked_add(len).and_then(|end| bytes.get(from..end));
        match part {
            Some(part) if from > 0 && len > 0 && len.is_multiple_of(2) => Ok(decode(part)),
            _ => Err(invalid(format!("a text ({len} bytes at {from}) is empty, odd or not inside of it"))),
        }
    };
    let mut pairs: Vec<(String, String)> = Vec::with_capacity(count);
    for bytes in entries.iter().take(count) {
        let Ok(entry) = LocatorEntry::read_from_bytes(bytes) else { continue };
        let key = text(entry.key_offset.get(), entry.key_length.get())?;
        let value = text(entry.value_offset.get(), entry.value_length.get())?;
        pairs.push((key, value));
    }
    let mut keys: Vec<&str> = pairs.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    if let Some([key, _]) = keys.array_windows::<2>().find(|[a, b]| a == b) {
        return Err(invalid(format!("the key {key:?} is there twice")));
    }
    from_pairs(pairs).map_err(invalid)
}

fn from_pairs(pairs: Vec<(String, String)>) -> Result<Locator, String> {
    let mut locator = Locator::default();
    let mut linkage = None;
    let id = |key: &str, text: &str| {
        Uuid::try_parse(text.trim()).map_err(|_| {
            format!("{key} is {:?}, not a GUID in braces", text.chars().take(60).collect::<String>())
        })
    };
    for (key, value) in pairs {
        match key.as_str() {
            PARENT_LINKAGE => linkage = Some(id(&key, &value)?),
            // Zeros, as Windows writes them, are no identity.
            PARENT_LINKAGE2 => locator.linkage2 = Some(id(&key, &value)?).filter(|id| !id.is_nil()),
            RELATIVE_PATH => locator.relative = Some(value),
            VOLUME_PATH => locator.volume = Some(value),
            ABSOLUTE_PATH => locator.absolute = Some(value),
            _ => locator.other.push((key, value)),
        }
    }
    locator.linkage = linkage.ok_or_else(|| format!("it has no {PARENT_LINKAGE}"))?;
    Ok(locator)
}

fn decode(bytes: &[u8]) -> String {
    let units = bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair));
    let text: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    match text.split_once('\0') {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

impl Locator {
    /// Whether a file with that DataWriteGuid is the parent.
    #[must_use]
    pub fn accepts(&self, data_write_guid: Uuid) -> bool {
        data_write_guid == self.linkage
            || (!data_write_guid.is_nil() && self.linkage2 == Some(data_write_guid))
    }

    /// The first text that is too long to be stored, as its number of bytes.
    #[must_use]
    pub fn too_long(&self) -> Option<usize> {
        let lengths = self.pairs().into_iter().map(|(_, value)| value.encode_utf16().count() * 2);
        lengths.into_iter().find(|len| *len > MAX_TEXT)
    }

    /// Keys and values in the order in which Windows writes them.
    fn pairs(&self) -> Vec<(String, String)> {
        let braced = |id: Uuid| id.braced().to_string();
        let mut pairs = vec![
            (PARENT_LINKAGE.to_owned(), braced(self.linkage)),
            (PARENT_LINKAGE2.to_owned(), braced(self.linkage2.unwrap_or_default())),
        ];
        let paths =
            [(RELATIVE_PATH, &self.relative), (VOLUME_PATH, &self.volume), (ABSOLUTE_PATH, &self.absolute)];
        for (key, path) in paths {
            if let Some(path) = path.as_ref().filter(|path| !path.is_empty()) {
                pairs.push((key.to_owned(), path.clone()));
            }
        }
        pairs.extend(self.other.iter().cloned());
        pairs
    }

    /// The bytes of the item.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let pairs = self.pairs();
        let encode = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let mut bytes = LocatorHeader {
            kind: VHDX_LOCATOR.to_bytes_le(),
            reserved: U16::new(0),
            count: U16::new(u16::try_from(pairs.len()).unwrap_or(0)),
        }
        .as_bytes()
        .to_vec();
        let mut texts = Vec::new();
        let texts_at = bytes.len() + pairs.len() * size_of::<LocatorEntry>();
        for (key, value) in &pairs {
            let place = |texts: &mut Vec<u8>, text: &str| {
                let encoded = encode(text);
                let offset = U32::new(u32::try_from(texts_at + texts.len()).unwrap_or(u32::MAX));
                let length = U16::new(u16::try_from(encoded.len()).unwrap_or(u16::MAX));
                texts.extend(encoded);
                (offset, length)
            };
            let (key_offset, key_length) = place(&mut texts, key);
            let (value_offset, value_length) = place(&mut texts, value);
            let entry = LocatorEntry { key_offset, value_offset, key_length, value_length };
            bytes.extend_from_slice(entry.as_bytes());
        }
        bytes.extend(texts);
        bytes
    }
}

//! Region tables (MS-VHDX 2.2.3): where log, metadata and block allocation table are.

use uuid::Uuid;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use super::{
    errors::{OpenError, Structure, io_at},
    header::Header,
    layout::{
        BAT_REGION, MAX_ENTRIES, MAX_FILE_LEN, METADATA_REGION, MIB, REGION_TABLE_LEN, REGION_TABLES_AT,
        checksum, guid,
    },
    view::View,
};

/// What is said of a good table that is not like the other one.
pub(super) const DIFFERS: &str = "it differs from the first one";
const SIGNATURE: [u8; 4] = *b"regi";
const CHECKSUM_AT: usize = 4;
const ENTRIES_AT: u64 = 16;

/// Head of a region table.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TableHeader {
    signature: [u8; 4],
    checksum: U32,
    count: U32,
    reserved: U32,
}

/// One region as it is listed.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TableEntry {
    guid: [u8; 16],
    offset: U64,
    length: U32,
    required: U32,
}

const _: () = assert!(size_of::<TableHeader>() == 16 && size_of::<TableEntry>() == 32);

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What it holds.
    pub id: Uuid,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl Region {
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }

    pub(crate) fn name(&self) -> String {
        match self.id {
            BAT_REGION => "the block allocation table".to_owned(),
            METADATA_REGION => "the metadata region".to_owned(),
            id if id.is_nil() => "the log".to_owned(),
            id => format!("the region {id}"),
        }
    }
}

/// All regions, checked against each other.
#[derive(Clone, Debug)]
pub(crate) struct Regions {
    pub(crate) bat: Region,
    pub(crate) metadata: Region,
    /// Including the log (with a nil id) and those that nobody here understands.
    pub(crate) all: Vec<Region>,
    /// What is wrong with the table that was not used: its offset and why.
    pub(crate) other: Option<(u64, String)>,
}

/// Parses one table. `Err` says what is wrong with its bytes.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<(Region, bool)>, String> {
    let (head, rest) = TableHeader::ref_from_prefix(bytes).map_err(|_| "it is too short".to_owned())?;
    if head.signature != SIGNATURE {
        return Err("it does not begin with \"regi\"".to_owned());
    }
    let (stored, computed) = (head.checksum.get(), checksum(bytes, CHECKSUM_AT));
    if stored != computed {
        return Err(format!("its checksum is {stored:#010x}, its content has {computed:#010x}"));
    }
    let count = head.count.get();
    if count as usize > MAX_ENTRIES {
        return Err(format!("it has {count} entries, at most {MAX_ENTRIES} are allowed"));
    }
    let entries = rest.as_chunks::<{ size_of::<TableEntry>() }>().0.iter().take(count as usize);
    let entries = entries.filter_map(|bytes| TableEntry::read_from_bytes(bytes).ok());
    Ok(entries
        .map(|entry| {
            let region =
                Region { id: guid(entry.guid), offset: entry.offset.get(), length: entry.length.get() };
            (region, entry.required.get() & 1 != 0)
        })
        .collect())
}

/// Reads the tables; the second one stands in for a damaged first one.
pub(crate) fn read(view: &View, header: &Header) -> Result<Regions, OpenError> {
    let mut tables = [vec![0; REGION_TABLE_LEN], vec![0; REGION_TABLE_LEN]];
    let needed = MIB;
    if view.len() < needed {
        return Err(OpenError::Truncated { what: "the region tables".to_owned(), needed, len: view.len() });
    }
    for (bytes, at) in tables.iter_mut().zip(REGION_TABLES_AT) {
        view.read(bytes, at).map_err(io_at("read a region table", at))?;
    }
    let [first, second] = &tables;
    let [first_at, second_at] = REGION_TABLES_AT;
    let (at, entries, other) = match (parse(first), parse(second)) {
        (Ok(entries), Ok(_)) => {
            let differs = first != second;
            (first_at, entries, differs.then(|| (second_at, DIFFERS.to_owned())))
        }
        (Ok(entries), Err(error)) => (first_at, entries, Some((second_at, error))),
        (Err(error), Ok(entries)) => (second_at, entries, Some((first_at, error))),
        (Err(first), Err(second)) => {
            let rule = format!("{first}; and of its copy at {second_at}: {second}");
            return Err(OpenError::invalid(Structure::RegionTable, first_at, rule));
        }
    };
    let mut regions = collect(at, &entries)?;
    regions.all.push(Region {
        id: Uuid::nil(),
        offset: header.log_offset.get(),
        length: header.log_length.get(),
    });
    check_places(&mut regions.all, view.len())?;
    regions.other = other;
    Ok(regions)
}

fn collect(at: u64, entries: &[(Region, bool)]) -> Result<Regions, OpenError> {
    let invalid = |offset, rule: String| OpenError::invalid(Structure::RegionTable, offset, rule);
    let (mut bat, mut metadata) = (None, None);
    let mut all = Vec::with_capacity(entries.len() + 1);
    for (index, (region, required)) in (0u64..).zip(entries) {
        let listed = at + ENTRIES_AT + index * size_of::<TableEntry>() as u64;
        let slot = match region.id {
            BAT_REGION => &mut bat,
            METADATA_REGION => &mut metadata,
            id if *required => return Err(OpenError::Unknown { what: "the region", id, offset: listed }),
            _ => &mut None,
        };
        if slot.replace(*region).is_some() {
            return Err(invalid(listed, format!("{} is listed twice", region.name())));
        }
        let whole = region.offset.is_multiple_of(MIB) && u64::from(region.length).is_multiple_of(MIB);
        if !whole || region.offset < MIB || region.length == 0 || region.end() > MAX_FILE_LEN {
            let rule = format!(
                "{} has {} bytes at {}, which is not whole MiB behind the first one",
                region.name(),
                region.length,
                region.offset
            );
            return Err(invalid(listed, rule));
        }
        all.push(*region);
    }
    let missing = |what: &str| invalid(at, format!("it does not list {what}"));
    let bat = bat.ok_or_else(|| missing("the block allocation table"))?;
    let metadata = metadata.ok_or_else(|| missing("the metadata region"))?;
    Ok(Regions { bat, metadata, all, other: None })
}

fn check_places(regions: &mut [Region], len: u64) -> Result<(), OpenError> {
    regions.sort_unstable_by_key(|region| region.offset);
    for pair in regions.windows(2) {
        if let [a, b] = pair
            && b.offset < a.end()
        {
            return Err(OpenError::Overlap { first: a.name(), second: b.name(), offset: b.offset });
        }
    }
    match regions.last() {
        Some(last) if last.end() > len => {
            Err(OpenError::Truncated { what: last.name(), needed: last.end(), len })
        }
        _ => Ok(()),
    }
}

/// The bytes of a table with metadata and block allocation table.
pub(crate) fn table(metadata: (u64, u32), bat: (u64, u32)) -> Vec<u8> {
    let mut bytes = vec![0; REGION_TABLE_LEN];
    let entry = |id: Uuid, (offset, length): (u64, u32)| TableEntry {
        guid: id.to_bytes_le(),
        offset: U64::new(offset),
        length: U32::new(length),
        required: U32::new(1),
    };
    let mut content = TableHeader {
        signature: SIGNATURE,
        checksum: U32::new(0),
        count: U32::new(2),
        reserved: U32::new(0),
    }
    .as_bytes()
    .to_vec();
    content.extend_from_slice(entry(BAT_REGION, bat).as_bytes());
    content.extend_from_slice(entry(METADATA_REGION, metadata).as_bytes());
    bytes.splice(..content.len(), content);
    reseal(&mut bytes);
    bytes
}

/// A table in which the block allocation table is somewhere else; `None` if it is none.
pub(crate) fn with_bat(table: &[u8], bat: Region) -> Option<Vec<u8>> {
    let index = parse(table).ok()?.iter().position(|(region, _)| region.id == BAT_REGION)?;
    let at = usize::try_from(ENTRIES_AT).ok()? + index * size_of::<TableEntry>();
    let mut bytes = table.to_vec();
    let slot = bytes.get_mut(at..at + size_of::<TableEntry>())?;
    let mut entry = TableEntry::read_from_bytes(slot).ok()?;
    entry.offset.set(bat.offset);
    entry.length.set(bat.length);
    slot.copy_from_slice(entry.as_bytes());
    reseal(&mut bytes);
    Some(bytes)
}

/// Gives a table the checksum that belongs to it.
pub(crate) fn reseal(bytes: &mut [u8]) {
    let sum = checksum(bytes, CHECKSUM_AT).to_le_bytes();
    if let Some(slot) = bytes.get_mut(CHECKSUM_AT..CHECKSUM_AT + 4) {
        slot.copy_from_slice(&sum);
    }
}

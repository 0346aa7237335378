//! The metadata table and its items (MS-VHDX 2.6).

use uuid::Uuid;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

use super::{
    errors::{OpenError, Structure, io_at},
    layout::{
        MAX_BLOCK_SIZE, MAX_ENTRIES, MAX_SIZE, METADATA_TABLE_LEN, MIB, MIN_BLOCK_SIZE, guid, to_usize,
    },
    locator::{self, Locator},
    region::Region,
    view::View,
};

const SIGNATURE: [u8; 8] = *b"metadata";
const IS_USER: u32 = 1;
const IS_VIRTUAL_DISK: u32 = 2;
const IS_REQUIRED: u32 = 4;
const MAX_USER_ENTRIES: usize = 1024;

/// Block size and two flags.
pub const FILE_PARAMETERS: Uuid = Uuid::from_u128(0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b);
/// Virtual size in bytes.
pub const VIRTUAL_DISK_SIZE: Uuid = Uuid::from_u128(0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8);
/// Identity of the disk towards its user (SCSI page 83). A checkpoint keeps it.
pub const VIRTUAL_DISK_ID: Uuid = Uuid::from_u128(0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746);
/// 512 or 4096.
pub const LOGICAL_SECTOR_SIZE: Uuid = Uuid::from_u128(0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f);
/// 512 or 4096.
pub const PHYSICAL_SECTOR_SIZE: Uuid = Uuid::from_u128(0xcda3_48c7_445d_4471_9cc9_e988_5251_c556);
/// Where the parent is.
pub const PARENT_LOCATOR: Uuid = Uuid::from_u128(0xa8d3_5f2d_b30b_454d_abf7_d3d8_4834_ab0c);
/// Set by programs that fill a file and have not finished.
pub const INCOMPLETE_FILE: Uuid = Uuid::from_u128(0x71cc_85f0_1b69_4e28_9558_c3bf_83ae_75d3);

const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;

/// Where [`write_items`] puts the parent locator, from the start of the region: in a page of its own.
pub(crate) const LOCATOR_AT: u32 = 0x1_1000;

/// Head of the table.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TableHeader {
    signature: [u8; 8],
    reserved: U16,
    count: U16,
    reserved2: [u8; 20],
}

/// One item as it is listed.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct TableEntry {
    id: [u8; 16],
    offset: U32,
    length: U32,
    flags: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<TableHeader>() == 32 && size_of::<TableEntry>() == 32);

/// What the metadata say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) block_size: u32,
    pub(crate) leave_blocks_allocated: bool,
    pub(crate) has_parent: bool,
    pub(crate) size: u64,
    /// Where the size is, from the start of the file; 0 in a new one.
    pub(crate) size_at: u64,
    pub(crate) disk_id: Uuid,
    pub(crate) logical_sector: u32,
    pub(crate) physical_sector: u32,
    pub(crate) locator: Option<Locator>,
    /// Where the locator is.
    pub(crate) locator_item: Option<Item>,
    /// First byte of the region that no item uses, from its start.
    pub(crate) free: u32,
}

/// An item's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) id: Uuid,
    /// From the start of the region.
    pub(crate) offset: u32,
    pub(crate) length: u32,
    pub(crate) flags: u32,
    /// Where it is listed, from the start of the region.
    pub(crate) listed: u32,
}

/// Parses the table. `at` is where its region starts, for messages.
pub(crate) fn parse_table(bytes: &[u8], region: &Region) -> Result<Vec<Item>, OpenError> {
    let at = region.offset;
    let invalid = |offset, rule: String| OpenError::invalid(Structure::MetadataTable, offset, rule);
    let (head, rest) = TableHeader::ref_from_prefix(bytes)
        .map_err(|_| invalid(at, "it is shorter than its head".to_owned()))?;
    if head.signature != SIGNATURE {
        return Err(invalid(at, "it does not begin with \"metadata\"".to_owned()));
    }
    let count = usize::from(head.count.get());
    if count > MAX_ENTRIES {
        return Err(invalid(at, format!("it has {count} entries, at most {MAX_ENTRIES} are allowed")));
    }
    let entries = rest.as_chunks::<{ size_of::<TableEntry>() }>().0.iter().take(count);
    let mut items = Vec::with_capacity(count);
    for (listed, bytes) in (32u32..).step_by(size_of::<TableEntry>()).zip(entries) {
        let Ok(entry) = TableEntry::read_from_bytes(bytes) else { continue };
        let item = Item {
            id: guid(entry.id),
            offset: entry.offset.get(),
            length: entry.length.get(),
            flags: entry.flags.get(),
            listed,
        };
        let place = at + u64::from(listed);
        let end = u64::from(item.offset) + u64::from(item.length);
        let bad = match (item.length, item.offset) {
            (0, 0) => None,
            (0, _) => Some("an item without bytes has a place"),
            (_, offset) if (offset as usize) < METADATA_TABLE_LEN => Some("an item lies inside the table"),
            _ if u64::from(item.length) > MIB => Some("an item has more than 1 MiB"),
            _ if end > u64::from(region.length) => Some("an item ends behind the region"),
            _ => None,
        };
        if let Some(rule) = bad {
            return Err(invalid(
                place,
                format!("{rule} ({}: {} bytes at {})", item.id, item.length, item.offset),
            ));
        }
        items.push(item);
    }
    check_items(&items, at)?;
    Ok(items)
}

fn check_items(items: &[Item], at: u64) -> Result<(), OpenError> {
    let invalid = |item: &Item, rule: String| {
        OpenError::invalid(Structure::MetadataTable, at + u64::from(item.listed), rule)
    };
    let mut by_id: Vec<&Item> = items.iter().collect();
    by_id.sort_unstable_by_key(|item| (item.id, item.flags & IS_USER));
    for pair in by_id.windows(2) {
        if let [a, b] = pair
            && (a.id, a.flags & IS_USER) == (b.id, b.flags & IS_USER)
        {
            return Err(invalid(b, format!("the item {} is listed twice", b.id)));
        }
    }
    let mut by_place: Vec<&Item> = items.iter().filter(|item| item.length > 0).collect();
    by_place.sort_unstable_by_key(|item| item.offset);
    for pair in by_place.windows(2) {
        if let [a, b] = pair
            && b.offset < a.offset + a.length
        {
            return Err(invalid(b, format!("the items {} and {} overlap", a.id, b.id)));
        }
    }
    let users = items.iter().filter(|item| item.flags & IS_USER != 0);
    match users.clone().nth(MAX_USER_ENTRIES) {
        Some(item) => {
            Err(invalid(item, format!("there are {} user items, at most 1024 are allowed", users.count())))
        }
        None => Ok(()),
    }
}

/// Reads table and items.
pub(crate) fn read(view: &View, region: &Region) -> Result<Metadata, OpenError> {
    let mut table = vec![0; METADATA_TABLE_LEN.min(to_usize(u64::from(region.length)))];
    view.read(&mut table, region.offset).map_err(io_at("read the metadata table", region.offset))?;
    let items = parse_table(&table, region)?;
    for item in &items {
        let listed = region.offset + u64::from(item.listed);
        match item.id {
            INCOMPLETE_FILE => return Err(OpenError::Incomplete { offset: listed }),
            FILE_PARAMETERS | VIRTUAL_DISK_SIZE | VIRTUAL_DISK_ID | LOGICAL_SECTOR_SIZE
            | PHYSICAL_SECTOR_SIZE | PARENT_LOCATOR
                if item.flags & IS_USER == 0 => {}
            id if item.flags & IS_REQUIRED != 0 => {
                return Err(OpenError::Unknown { what: "the metadata item", id, offset: listed });
            }
            _ => {}
        }
    }
    let items = Items { view, region, items: &items };
    let mut metadata = fixed_items(&items)?;
    if metadata.has_parent {
        let (item, bytes) = items.get(PARENT_LOCATOR, "the parent locator")?;
        let at = region.offset + u64::from(item.offset);
        metadata.locator = Some(locator::parse(&bytes, at)?);
        metadata.locator_item = Some(item);
    }
    let ends = items.items.iter().map(|item| item.offset + item.length);
    metadata.free = ends.max().unwrap_or(0).max(64 << 10);
    Ok(metadata)
}

struct Items<'a> {
    view: &'a View,
    region: &'a Region,
    items: &'a [Item],
}

impl Items<'_> {
    fn get(&self, id: Uuid, name: &str) -> Result<(Item, Vec<u8>), OpenError> {
        let mut items = self.items.iter().filter(|item| item.id == id && item.flags & IS_USER == 0);
        let Some(item) = items.next() else {
            let rule = format!("it does not list {name}");
            return Err(OpenError::invalid(Structure::MetadataTable, self.region.offset, rule));
        };
        let at = self.region.offset + u64::from(item.offset);
        let mut bytes = vec![0; item.length as usize];
        self.view.read(&mut bytes, at).map_err(io_at("read a metadata item", at))?;
        Ok((*item, bytes))
    }

    /// An item of exactly `N` bytes, and where it is.
    fn exact<const N: usize>(&self, id: Uuid, name: &str) -> Result<([u8; N], u64), OpenError> {
        let (item, bytes) = self.get(id, name)?;
        let at = self.region.offset + u64::from(item.offset);
        let found = bytes.len();
        let exact = bytes.try_into().map_err(|_| {
            OpenError::invalid(Structure::MetadataItem, at, format!("{name} has {found} bytes, not {N}"))
        })?;
        Ok((exact, at))
    }

    fn sector_size(&self, id: Uuid, name: &str) -> Result<u32, OpenError> {
        let (bytes, at) = self.exact(id, name)?;
        match u32::from_le_bytes(bytes) {
            size @ (512 | 4096) => Ok(size),
            other => Err(OpenError::invalid(
                Structure::MetadataItem,
                at,
                format!("{name} is {other}, neither 512 nor 4096"),
            )),
        }
    }
}

fn fixed_items(items: &Items<'_>) -> Result<Metadata, OpenError> {
    let invalid = |at, rule| Err(OpenError::invalid(Structure::MetadataItem, at, rule));
    let (bytes, at) = items.exact::<8>(FILE_PARAMETERS, "the file parameters")?;
    let word = u64::from_le_bytes(bytes);
    let block_size = u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
    let flags = u32::try_from(word >> 32).unwrap_or(0);
    if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) {
        return invalid(
            at,
            format!("the block size {block_size} is not a power of two between 1 and 256 MiB"),
        );
    }
    let logical_sector = items.sector_size(LOGICAL_SECTOR_SIZE, "the logical sector size")?;
    let physical_sector = items.sector_size(PHYSICAL_SECTOR_SIZE, "the physical sector size")?;
    let (bytes, at) = items.exact::<8>(VIRTUAL_DISK_SIZE, "the virtual disk size")?;
    let size = u64::from_le_bytes(bytes);
    if size == 0 || size > MAX_SIZE || !size.is_multiple_of(u64::from(logical_sector)) {
        return invalid(
            at,
            format!("the disk size {size} is not a multiple of {logical_sector} above zero and up to 64 TiB"),
        );
    }
    let (id, _) = items.exact::<16>(VIRTUAL_DISK_ID, "the virtual disk id")?;
    Ok(Metadata {
        block_size,
        leave_blocks_allocated: flags & LEAVE_BLOCKS_ALLOCATED != 0,
        has_parent: flags & HAS_PARENT != 0,
        size,
        size_at: at,
        disk_id: guid(id),
        logical_sector,
        physical_sector,
        locator: None,
        locator_item: None,
        free: 0,
    })
}

/// The bytes of the table and of its items, from the start of the region.
pub(crate) fn write_items(metadata: &Metadata) -> Vec<u8> {
    let flags = if metadata.leave_blocks_allocated { LEAVE_BLOCKS_ALLOCATED } else { 0 }
        | if metadata.has_parent { HAS_PARENT } else { 0 };
    let parameters = u64::from(metadata.block_size) | (u64::from(flags) << 32);
    let disk = IS_VIRTUAL_DISK | IS_REQUIRED;
    let mut items: Vec<(Uuid, u32, Vec<u8>)> = vec![
        (FILE_PARAMETERS, IS_REQUIRED, parameters.to_le_bytes().to_vec()),
        (VIRTUAL_DISK_SIZE, disk, metadata.size.to_le_bytes().to_vec()),
        (LOGICAL_SECTOR_SIZE, disk, metadata.logical_sector.to_le_bytes().to_vec()),
        (PHYSICAL_SECTOR_SIZE, disk, metadata.physical_sector.to_le_bytes().to_vec()),
        (VIRTUAL_DISK_ID, disk, metadata.disk_id.to_bytes_le().to_vec()),
    ];
    if let Some(locator) = &metadata.locator {
        items.push((PARENT_LOCATOR, IS_REQUIRED, locator.to_bytes()));
    }
    let mut table = TableHeader {
        signature: SIGNATURE,
        reserved: U16::new(0),
        count: U16::new(u16::try_from(items.len()).unwrap_or(0)),
        reserved2: [0; 20],
    }
    .as_bytes()
    .to_vec();
    let mut content = Vec::new();
    for (id, flags, bytes) in items {
        if id == PARENT_LOCATOR {
            content.resize(LOCATOR_AT as usize - METADATA_TABLE_LEN, 0);
        }
        let offset = METADATA_TABLE_LEN + content.len();
        table.extend_from_slice(entry(id, offset, bytes.len(), flags).as_bytes());
        content.extend(bytes);
    }
    table.resize(METADATA_TABLE_LEN, 0);
    table.extend(content);
    table
}

fn entry(id: Uuid, offset: usize, length: usize, flags: u32) -> TableEntry {
    TableEntry {
        id: id.to_bytes_le(),
        offset: U32::new(u32::try_from(offset).unwrap_or(u32::MAX)),
        length: U32::new(u32::try_from(length).unwrap_or(u32::MAX)),
        flags: U32::new(flags),
        reserved: U32::new(0),
    }
}

/// The table entry of a parent locator of that place.
pub(crate) fn locator_entry(offset: u32, length: u32) -> Vec<u8> {
    entry(PARENT_LOCATOR, offset as usize, length as usize, IS_REQUIRED).as_bytes().to_vec()
}

//! From bytes to a checked description of the file. Nothing is written here and no parent is touched.

use std::sync::Arc;

use uuid::Uuid;
use zerocopy::FromBytes;

use crate::{
    Storage,
    errors::{IoContext, OpenError},
    format::{
        SECTOR,
        bat::{ABSENT, Blocks, BlocksError, XEN_BATMAP_COOKIE, XenBatmap},
        footer::DiskType,
        geometry::SizeRule,
        header::{HEADER_LEN, Header},
        locator::{LocatorEntry, LocatorKind, MAX_LOCATOR_LEN},
    },
    info::{ImageInfo, ParentLink, ParentLocator, Warning},
    locate::{self, Found},
    overlap,
    shadow::Shadow,
};

/// Most bytes that are kept free around a locator's text, whatever its slot claims.
const MAX_LOCATOR_SPACE: u64 = 1 << 20;

/// How to open a file.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Allow writes. A trailing footer that is missing is then written again at once.
    pub writable: bool,
    /// Which field is the size.
    pub size_rule: SizeRule,
    /// The file's name, if it has one: parts of a split disk are known by it.
    pub name: Option<String>,
    /// Where bits of a differencing disk wait for the next flush. Without one every write that sets bits flushes twice.
    pub shadow: Option<Arc<dyn Shadow>>,
}

/// What a file holds.
#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    pub(crate) found: Found,
    pub(crate) info: ImageInfo,
    pub(crate) sparse: Option<Sparse>,
}

/// The part that only dynamic and differencing disks have.
#[derive(Clone, Debug)]
pub(crate) struct Sparse {
    pub(crate) blocks: Blocks,
    pub(crate) header: Header,
    pub(crate) table: Vec<u32>,
    /// Entries that were taken as absent.
    pub(crate) beyond: Vec<u32>,
    pub(crate) regions: Vec<Region>,
    /// First byte that belongs to nothing.
    pub(crate) free: u64,
}

/// A structure's place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) name: String,
    pub(crate) start: u64,
    /// First byte behind its content.
    pub(crate) end: u64,
    /// First byte behind the space it reserves.
    pub(crate) reserved_end: u64,
}

impl Region {
    fn new(name: impl Into<String>, start: u64, len: u64) -> Self {
        let end = start.saturating_add(len);
        Self { name: name.into(), start, end, reserved_end: end }
    }
}

/// What to do about damage that leaves the rest of the file readable.
#[derive(Debug)]
pub(crate) enum Damage {
    /// Refuse.
    Refuse,
    /// Collect it, take damaged blocks as absent and go on: for a check.
    Collect(Vec<OpenError>),
}

impl Damage {
    fn found(&mut self, error: OpenError) -> Result<(), OpenError> {
        match self {
            Self::Refuse => Err(error),
            Self::Collect(list) => {
                if list.len() < MAX_DAMAGE {
                    list.push(error);
                }
                Ok(())
            }
        }
    }
}

/// Damage that is listed one by one.
const MAX_DAMAGE: usize = 100;

/// Reads and checks everything but the bitmaps.
pub(crate) fn parse(
    storage: &dyn Storage,
    options: &OpenOptions,
    damage: &mut Damage,
) -> Result<Parsed, OpenError> {
    if options
        .name
        .as_deref()
        .and_then(|name| name.rsplit_once('.'))
        .is_some_and(|(_, ext)| is_split_extension(ext))
    {
        return Err(OpenError::SplitDisk);
    }
    let len = storage.len().open_context("read the length of the file", 0)?;
    let mut found = locate::footer(storage, len)?;
    let footer = &found.footer;
    let disk_type = footer.kind().ok_or_else(|| OpenError::UnsupportedType(footer.disk_type.get()))?;
    let (stored, size_rule) = options.size_rule.apply(footer);
    let size = stored - stored % SECTOR;
    if size == 0 {
        return Err(OpenError::Size(stored));
    }
    let mut warnings = std::mem::take(&mut found.warnings);
    if size != stored {
        warnings.push(Warning::SizeRounded { stored });
    }
    let mut info = ImageInfo {
        disk_type,
        size,
        size_rule,
        current_size: footer.current_size.get(),
        original_size: footer.original_size.get(),
        geometry: footer.chs(),
        block_size: 0,
        blocks: 0,
        blocks_at_open: 0,
        creator: footer.creator_app,
        creator_version: footer.creator_version.get(),
        creator_os: footer.creator_os,
        unique_id: Uuid::from_bytes(footer.unique_id),
        time_stamp: crate::VhdTime(footer.time_stamp.get()),
        saved_state: footer.saved_state == 1,
        temporary: footer.features.get() & crate::format::footer::FEATURE_TEMPORARY != 0,
        file_len: len,
        end_of_metadata: 0,
        aligned_4k: true,
        parent: None,
        warnings,
    };
    let sparse = match disk_type {
        DiskType::Fixed => {
            complete("the disk", size, found.data_end, len)?;
            None
        }
        DiskType::Dynamic | DiskType::Differencing => Some(parse_sparse(storage, &found, &mut info, damage)?),
    };
    Ok(Parsed { found, info, sparse })
}

/// Header, locators and table.
fn parse_sparse(
    storage: &dyn Storage,
    found: &Found,
    info: &mut ImageInfo,
    damage: &mut Damage,
) -> Result<Sparse, OpenError> {
    let header_at = found.footer.data_offset.get();
    let header = read_header(storage, header_at, found.data_end, info.file_len)?;
    let block_size = header.block_size.get();
    let blocks = Blocks::new(info.size, block_size).map_err(|e| match e {
        BlocksError::BlockSize => OpenError::BlockSize(block_size),
        BlocksError::TooMany => OpenError::TooManyBlocks { size: info.size, block_size },
    })?;
    let entries = header.max_table_entries.get();
    if entries < blocks.count {
        return Err(OpenError::TableTooSmall { entries, blocks: blocks.count });
    }
    let table_at = header.table_offset.get();
    let table_end = table_at.saturating_add(u64::from(entries).saturating_mul(4));
    complete("the block allocation table", table_end, found.data_end, info.file_len)?;

    let mut regions = vec![
        Region::new("the copy of the footer", 0, SECTOR),
        Region::new("the header", header_at, HEADER_LEN as u64),
        Region::new("the block allocation table", table_at, table_end - table_at),
    ];
    let table_space = Blocks::table_len(entries);
    if let Some(table) = regions.last_mut() {
        table.reserved_end = table_at.saturating_add(table_space);
    }
    let mut locators = Vec::new();
    if info.disk_type == DiskType::Differencing {
        info.parent = Some(read_parent(storage, &header, info, &mut locators)?);
    }
    if info.creator == *b"tap\0" {
        regions.extend(xen_batmap(storage, table_at.saturating_add(table_space), found.data_end)?);
    }
    let mut table = read_table(storage, table_at, blocks.count)?;
    let beyond = drop_blocks_beyond_end(&mut table, &blocks, found, info, damage)?;
    keep_locators(locators, &table, &blocks, &mut regions, info);
    let limit = if matches!(damage, Damage::Refuse) { 1 } else { MAX_DAMAGE };
    for overlap in overlap::find(&table, &blocks, &regions, limit) {
        damage.found(overlap.into())?;
    }

    info.block_size = block_size;
    info.blocks = blocks.count;
    info.end_of_metadata = regions.iter().map(|region| region.reserved_end).max().unwrap_or(0);
    let mut last_block_end = 0;
    for entry in table.iter().filter(|entry| **entry != ABSENT) {
        let start = u64::from(*entry) * SECTOR;
        last_block_end = last_block_end.max(start.saturating_add(blocks.stored_len()));
        info.blocks_at_open += 1;
        info.aligned_4k &=
            start.saturating_add(blocks.bitmap_len).is_multiple_of(crate::format::bat::DATA_ALIGN);
    }
    let free = info.end_of_metadata.max(last_block_end);
    Ok(Sparse { blocks, header, table, beyond, regions, free })
}

pub(crate) fn read_header(
    storage: &dyn Storage,
    offset: u64,
    data_end: u64,
    len: u64,
) -> Result<Header, OpenError> {
    complete("the header", offset.saturating_add(HEADER_LEN as u64), data_end, len)?;
    let mut bytes = [0; HEADER_LEN];
    storage.read_at(&mut bytes, offset).open_context("read the header", offset)?;
    Header::parse(&bytes).map_err(|source| OpenError::Header { offset, source })
}

fn read_parent(
    storage: &dyn Storage,
    header: &Header,
    info: &mut ImageInfo,
    regions: &mut Vec<(usize, Region)>,
) -> Result<ParentLink, OpenError> {
    let mut locators = Vec::new();
    for (slot, entry) in header.locators.iter().enumerate().filter(|(_, entry)| !entry.is_empty()) {
        let kind = LocatorKind::from_code(entry.code);
        let offset = entry.data_offset.get();
        let bytes = read_locator(storage, entry, info.file_len)?;
        if bytes.is_none() {
            info.warnings.push(Warning::BadLocator { slot });
        }
        let reserved = entry.reserved_bytes().min(MAX_LOCATOR_SPACE);
        if let Some(bytes) = &bytes {
            let mut region = Region::new(format!("parent locator {slot}"), offset, bytes.len() as u64);
            region.reserved_end = offset.saturating_add(reserved);
            regions.push((slot, region));
        }
        let path = bytes.and_then(|bytes| kind.decode(&bytes));
        locators.push(ParentLocator { slot, kind, path, offset, reserved });
    }
    Ok(ParentLink {
        unique_id: Uuid::from_bytes(header.parent_unique_id),
        time_stamp: header.parent_time(),
        unicode_name: header.name(),
        locators,
    })
}

/// A locator that shares bytes with something else is only a wrong path, no reason to refuse the disk: one that pointed
/// behind the end of the file may come to lie in a block when the file grows.
fn keep_locators(
    locators: Vec<(usize, Region)>,
    table: &[u32],
    blocks: &Blocks,
    regions: &mut Vec<Region>,
    info: &mut ImageInfo,
) {
    for (slot, region) in locators {
        if !overlap::touches(&region, table, blocks, regions) {
            regions.push(region);
            continue;
        }
        info.warnings.push(Warning::BadLocator { slot });
        let stored = info.parent.iter_mut().flat_map(|parent| &mut parent.locators);
        stored.filter(|locator| locator.slot == slot).for_each(|locator| locator.path = None);
    }
}

/// The text of a locator; `None` if it is too long or not inside the file.
fn read_locator(storage: &dyn Storage, entry: &LocatorEntry, len: u64) -> Result<Option<Vec<u8>>, OpenError> {
    let (offset, length) = (entry.data_offset.get(), entry.data_length.get());
    let inside = offset.checked_add(u64::from(length)).is_some_and(|end| end <= len);
    if length > MAX_LOCATOR_LEN || !inside {
        return Ok(None);
    }
    let mut bytes = vec![0; length as usize];
    storage.read_at(&mut bytes, offset).open_context("read a parent locator", offset)?;
    Ok(Some(bytes))
}

/// Xen's block map: not used, but its place is taken.
fn xen_batmap(storage: &dyn Storage, at: u64, data_end: u64) -> Result<Option<Region>, OpenError> {
    if at.saturating_add(SECTOR) > data_end {
        return Ok(None);
    }
    let mut bytes = [0; size_of::<XenBatmap>()];
    storage.read_at(&mut bytes, at).open_context("read Xen's block map", at)?;
    let Ok(map) = XenBatmap::read_from_bytes(&bytes) else { return Ok(None) };
    if map.cookie != XEN_BATMAP_COOKIE {
        return Ok(None);
    }
    let end = map.offset.get().saturating_add(u64::from(map.sectors.get()) * SECTOR).min(data_end);
    let mut region = Region::new("Xen's block map", at, SECTOR);
    region.end = region.end.max(end);
    region.reserved_end = region.end;
    Ok(Some(region))
}

fn read_table(storage: &dyn Storage, offset: u64, count: u32) -> Result<Vec<u32>, OpenError> {
    const CHUNK: usize = 1 << 20;
    let total = count as usize * 4;
    let mut table = Vec::with_capacity(count as usize);
    let mut bytes = vec![0; total.min(CHUNK)];
    let mut at = offset;
    while table.len() < count as usize {
        let left = total - table.len() * 4;
        let part = bytes.get_mut(..left.min(CHUNK)).unwrap_or_default();
        storage.read_at(part, at).open_context("read the block allocation table", at)?;
        table.extend(part.as_chunks::<4>().0.iter().map(|entry| u32::from_be_bytes(*entry)));
        at = at.saturating_add(part.len() as u64);
    }
    Ok(table)
}

/// Blocks that lie wholly behind the data of a file whose footer is in its place: nothing of them can have been stored,
/// so they are as good as absent. If the footer is missing too, or a block is cut, bytes are missing: refused.
fn drop_blocks_beyond_end(
    table: &mut [u32],
    blocks: &Blocks,
    found: &Found,
    info: &mut ImageInfo,
    damage: &mut Damage,
) -> Result<Vec<u32>, OpenError> {
    let mut beyond = Vec::new();
    for (index, entry) in (0u32..).zip(table.iter_mut()) {
        if *entry == ABSENT {
            continue;
        }
        let start = u64::from(*entry) * SECTOR;
        let end = start + blocks.bitmap_len + blocks.used_len(index);
        if end <= found.data_end {
            continue;
        }
        if start < found.data_end || !found.at_end() {
            let what = format!("block {index}");
            damage.found(OpenError::Truncated { what, needed: end, len: info.file_len })?;
        } else {
            beyond.push(index);
        }
        *entry = ABSENT;
    }
    if let Some(first) = beyond.first() {
        let count = u32::try_from(beyond.len()).unwrap_or(u32::MAX);
        info.warnings.push(Warning::BlocksBeyondEnd { count, first: *first, repaired: false });
    }
    Ok(beyond)
}

fn complete(what: &str, needed: u64, data_end: u64, len: u64) -> Result<(), OpenError> {
    if needed <= data_end {
        return Ok(());
    }
    Err(OpenError::Truncated { what: what.to_owned(), needed, len })
}

/// Whether a file name's extension is that of a later part of a split disk: `v01` to `v64`.
#[must_use]
pub fn is_split_extension(extension: &str) -> bool {
    match extension.as_bytes() {
        [b'v' | b'V', tens, ones] => tens.is_ascii_digit() && ones.is_ascii_digit(),
        _ => false,
    }
}

//! From bytes to a checked description of the file. Nothing is written here and no parent is touched.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use uuid::Uuid;

use super::{
    bat::{self, BitmapTable, Entry, Geometry, Slot, State, Table, bitmap_block_len},
    errors::{OpenError, Structure, io_at},
    header::{self, CurrentHeader},
    info::{ImageInfo, Warning},
    layout::{HEADERS_AT, MAX_FILE_LEN, MIB, PAGE, guid, to_usize},
    log::replay,
    metadata::{self, Metadata},
    places::{self, Extent, Owner, Places},
    region::{self, Region, Regions},
    view::View,
};
use crate::{DiskType, Kinship, Shadow, Storage};

/// How to open a file.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Allow writes: the ids that the session will use. A log that was left is then replayed into the file at once.
    pub write: Option<WriteIds>,
    /// Where bits of a differencing disk wait for the next flush. Without one every write that sets bits flushes first.
    pub shadow: Option<Arc<dyn Shadow>>,
}

/// New random ids, each used for one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteIds {
    /// FileWriteGuid from the first change of the file on.
    pub file_write: Uuid,
    /// DataWriteGuid from the first write of the user on.
    pub data_write: Uuid,
    /// Identity of the session's log.
    pub log: Uuid,
}

impl WriteIds {
    fn check(&self) -> Result<(), OpenError> {
        let Self { file_write, data_write, log } = *self;
        let nil = file_write.is_nil() || data_write.is_nil() || log.is_nil();
        if nil || file_write == data_write || data_write == log || log == file_write {
            return Err(OpenError::Ids);
        }
        Ok(())
    }
}

/// What a file holds.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) header: CurrentHeader,
    pub(crate) view: View,
    pub(crate) bat: Region,
    /// All of them.
    pub(crate) regions: Vec<Region>,
    pub(crate) metadata_region: Region,
    pub(crate) metadata: Metadata,
    pub(crate) geometry: Geometry,
    pub(crate) table: Table,
    pub(crate) bitmaps: BitmapTable,
    pub(crate) places: Places,
    pub(crate) info: ImageInfo,
}

/// What to do about damage that leaves the rest of the file readable.
#[derive(Debug)]
pub(crate) enum Damage {
    /// Refuse.
    Refuse,
    /// Collect it, take damaged blocks as absent and go on: for a check.
    Collect(Vec<OpenError>),
}

/// Damage that is listed one by one.
const MAX_DAMAGE: usize = 100;

impl Damage {
    pub(crate) fn found(&mut self, error: OpenError) -> Result<(), OpenError> {
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

/// Reads and checks everything but the sector bitmaps.
pub(crate) fn parse(
    storage: &Arc<dyn Storage>,
    options: &OpenOptions,
    damage: &mut Damage,
) -> Result<Parsed, OpenError> {
    if let Some(ids) = &options.write {
        ids.check()?;
    }
    let len = storage.len().map_err(io_at("read the length of the file", 0))?;
    let creator = header::read_identifier(storage.as_ref(), len)?;
    let header = header::read_current(storage.as_ref(), len)?;
    let view = View::open(storage, &header.header, len)?;
    let regions = region::read(&view, &header.header)?;
    let mut metadata = metadata::read(&view, &regions.metadata)?;
    let geometry =
        Geometry::new(metadata.size, metadata.block_size, metadata.logical_sector, metadata.has_parent);
    let mut info = describe(creator, &header, &view, &regions, &mut metadata);
    info.blocks = geometry.blocks;
    let mut loading = Loading::new(&view, geometry, &regions.bat)?;
    loading.load(damage)?;
    let Loading { table, bitmaps, mut extents, anchors, zeros_with_offset, stored, .. } = loading;
    info.blocks_at_open = stored;
    if let Some((count, first)) = zeros_with_offset {
        info.warnings.push(Warning::ZeroBlocksWithOffset { count, first });
    }
    extents.extend(regions.all.iter().map(places::of_region));
    let places = places::arrange(extents, anchors, &regions.all, &geometry, damage)?;
    places.kept_anchors(|block, entry| table.set(block, entry));
    check_log_targets(&view, &places, damage)?;
    Ok(Parsed {
        header,
        view,
        bat: regions.bat,
        regions: regions.all,
        metadata_region: regions.metadata,
        metadata,
        geometry,
        table,
        bitmaps,
        places,
        info,
    })
}

/// Only the ids of the disk and of its parent.
pub(crate) fn kinship(storage: &Arc<dyn Storage>) -> Result<Kinship, OpenError> {
    let len = storage.len().map_err(io_at("read the length of the file", 0))?;
    let header = header::read_current(storage.as_ref(), len)?;
    let view = View::open(storage, &header.header, len)?;
    let regions = region::read(&view, &header.header)?;
    let locator = metadata::read(&view, &regions.metadata)?.locator;
    let parents = locator.into_iter().flat_map(|locator| [Some(locator.linkage), locator.linkage2]);
    Ok(Kinship { identity: guid(header.header.data_write_guid), parents: parents.flatten().collect() })
}

fn describe(
    creator: String,
    header: &CurrentHeader,
    view: &View,
    regions: &Regions,
    metadata: &mut Metadata,
) -> ImageInfo {
    let mut warnings = Vec::new();
    if let Some(error) = &header.other {
        let offset = HEADERS_AT.get(1 - header.slot).copied().unwrap_or(0);
        warnings.push(Warning::HeaderBad { offset, error: error.to_string() });
    }
    if let Some((offset, error)) = &regions.other {
        warnings.push(Warning::RegionTableBad { offset: *offset, error: error.clone() });
    }
    if replay::is_pending(&header.header) && !view.overlay.is_empty() {
        let (entries, pages) = (view.overlay.entries, view.overlay.page_count());
        warnings.push(Warning::LogReplayed { entries, pages, written: false });
    }
    let parent = metadata.locator.clone();
    if parent.as_ref().is_some_and(|p| p.relative.is_none() && p.volume.is_none() && p.absolute.is_none()) {
        warnings.push(Warning::NoParentPath);
    }
    let disk_type = match (metadata.has_parent, metadata.leave_blocks_allocated) {
        (true, _) => DiskType::Differencing,
        (false, true) => DiskType::Fixed,
        (false, false) => DiskType::Dynamic,
    };
    ImageInfo {
        disk_type,
        size: metadata.size,
        block_size: metadata.block_size,
        blocks: 0,
        blocks_at_open: 0,
        logical_sector: metadata.logical_sector,
        physical_sector: metadata.physical_sector,
        disk_id: metadata.disk_id,
        data_write_guid: guid(header.header.data_write_guid),
        file_write_guid: guid(header.header.file_write_guid),
        creator,
        file_len: view.len(),
        log_len: header.header.log_length.get(),
        parent,
        warnings,
    }
}

/// Reading the block allocation table.
struct Loading<'a> {
    view: &'a View,
    geometry: Geometry,
    /// Offset of the table.
    at: u64,
    table: Table,
    bitmaps: BitmapTable,
    extents: Vec<Extent>,
    /// Places that blocks without data still claim.
    anchors: Vec<Extent>,
    zeros_with_offset: Option<(u32, u32)>,
    stored: u32,
}

impl<'a> Loading<'a> {
    fn new(view: &'a View, geometry: Geometry, bat: &Region) -> Result<Self, OpenError> {
        let needed = geometry.entries() * 8;
        if needed > u64::from(bat.length) {
            let rule =
                format!("{} entries are needed, {} fit into its region", geometry.entries(), bat.length / 8);
            return Err(OpenError::invalid(Structure::Bat, bat.offset, rule));
        }
        let chunks = if geometry.differencing { geometry.chunks } else { 0 };
        Ok(Self {
            view,
            geometry,
            at: bat.offset,
            table: Table::new(geometry.blocks),
            bitmaps: (0..chunks).map(|_| AtomicU32::new(0)).collect(),
            extents: Vec::new(),
            anchors: Vec::new(),
            zeros_with_offset: None,
            stored: 0,
        })
    }

    /// Reads what is not a hole, a part at a time.
    fn load(&mut self, damage: &mut Damage) -> Result<(), OpenError> {
        const PART: u64 = 1 << 20;
        let end = self.at + self.geometry.entries() * 8;
        let mut bytes = vec![0; to_usize(PART)];
        let mut at = self.at;
        while at < end {
            at = self.view.next_data(at, end) / PAGE * PAGE;
            let at_least = at.max(self.at);
            let part = bytes.get_mut(..to_usize(PART.min(end - at_least))).unwrap_or_default();
            self.view.read(part, at_least).map_err(io_at("read the block allocation table", at_least))?;
            let first = (at_least - self.at) / 8;
            for (index, word) in (first..).zip(part.as_chunks::<8>().0) {
                let word = u64::from_le_bytes(*word);
                if word != 0
                    && let Some(slot) = self.geometry.slot(index)
                {
                    match slot {
                        Slot::Block(block) => self.block(block, word, damage)?,
                        Slot::Bitmap(chunk) => self.bitmap(chunk, word, damage)?,
                    }
                }
            }
            at = at_least + part.len() as u64;
            if part.is_empty() {
                break;
            }
        }
        self.check_bitmaps(damage)
    }

    /// A block that is here in parts needs the sector bitmap that tells which.
    fn check_bitmaps(&self, damage: &mut Damage) -> Result<(), OpenError> {
        for (block, entry) in self.table.iter().filter(|(_, entry)| entry.state == State::Partial) {
            let chunk = self.geometry.chunk(block);
            let bitmap = self.bitmaps.get(chunk as usize).map_or(0, |slot| slot.load(Ordering::Acquire));
            if bitmap == 0 {
                let rule =
                    format!("block {block} is partly present and its chunk {chunk} has no sector bitmap");
                let at = self.at + self.geometry.entry_at(block);
                damage.found(OpenError::invalid(Structure::Bat, at, rule))?;
                self.table.set(block, Entry { mib: entry.mib, ..Entry::ABSENT });
            }
        }
        Ok(())
    }

    fn block(&mut self, block: u32, word: u64, damage: &mut Damage) -> Result<(), OpenError> {
        let entry_at = self.at + self.geometry.entry_at(block);
        let invalid = |rule: String| OpenError::invalid(Structure::Bat, entry_at, rule);
        let (state, mib) = bat::split(word);
        let Some(state) = state else {
            return damage
                .found(invalid(format!("block {block} has state {}, which does not exist", word & 7)));
        };
        let offset = mib.saturating_mul(MIB);
        if !state.is_stored() {
            if state == State::Zero && mib != 0 {
                let (count, first) = self.zeros_with_offset.unwrap_or((0, block));
                self.zeros_with_offset = Some((count + 1, first));
            }
            let whole = offset.saturating_add(self.geometry.block_size) <= self.view.len();
            let anchored = matches!(state, State::Undefined | State::Unmapped);
            self.table.set(block, Entry { state, mib: 0 });
            if anchored && mib > 0 && whole && offset < MAX_FILE_LEN {
                self.anchors.push(Extent::block(block, Entry::at(state, offset), &self.geometry));
            }
            return Ok(());
        }
        if mib == 0 || offset >= MAX_FILE_LEN {
            return damage.found(invalid(format!("block {block} lies at {offset}, where no block can be")));
        }
        let needed = offset + self.geometry.used_len(block);
        if needed > self.view.len() {
            let what = format!("block {block}");
            return damage.found(OpenError::Truncated { what, needed, len: self.view.len() });
        }
        // Without a parent there is nothing to tell apart.
        let partial = state == State::Partial && self.geometry.differencing;
        let entry = Entry::at(if partial { State::Partial } else { State::Full }, offset);
        self.table.set(block, entry);
        self.extents.push(Extent::block(block, entry, &self.geometry));
        self.stored += 1;
        Ok(())
    }

    fn bitmap(&mut self, chunk: u32, word: u64, damage: &mut Damage) -> Result<(), OpenError> {
        if !self.geometry.differencing {
            return Ok(());
        }
        let entry_at = self.at + self.geometry.bitmap_entry_at(chunk);
        let invalid = |rule: String| OpenError::invalid(Structure::Bat, entry_at, rule);
        let (state, mib) = bat::split(word);
        match state {
            Some(State::NotPresent) => return Ok(()),
            Some(State::Full) => {}
            _ => {
                let rule = format!("the sector bitmap {chunk} has state {}, neither 0 nor 6", word & 7);
                return damage.found(invalid(rule));
            }
        }
        let offset = mib.saturating_mul(MIB);
        if mib == 0 || offset >= MAX_FILE_LEN {
            let rule = format!("the sector bitmap {chunk} lies at {offset}, where it cannot be");
            return damage.found(invalid(rule));
        }
        let needed = offset + bitmap_block_len();
        if needed > self.view.len() {
            let what = format!("the sector bitmap {chunk}");
            return damage.found(OpenError::Truncated { what, needed, len: self.view.len() });
        }
        let entry = Entry::at(State::Full, offset);
        if let Some(slot) = self.bitmaps.get(chunk as usize) {
            slot.store(entry.mib, Ordering::Release);
        }
        self.extents.push(Extent { start: entry.mib, len: 1, owner: Owner::Bitmap(chunk) });
        Ok(())
    }
}

/// A log describes metadata. One that changes the data of a block would make readers and writers see different disks.
fn check_log_targets(view: &View, places: &Places, damage: &mut Damage) -> Result<(), OpenError> {
    if view.overlay.is_empty() {
        return Ok(());
    }
    for extent in &places.used {
        let (from, end) = (extent.from(), extent.end());
        if let Owner::Block(block) = extent.owner
            && view.overlay.touches(from, end)
        {
            let rule = format!("the log changes the data of block {block}");
            damage.found(OpenError::invalid(Structure::Log, from, rule))?;
        }
    }
    Ok(())
}

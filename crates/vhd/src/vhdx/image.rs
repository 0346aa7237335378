//! An open disk: what it is, and where reads go.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

use uuid::Uuid;

use super::{
    bat::{BitmapTable, Entry, Geometry, State, Table},
    errors::OpenError,
    info::{ImageInfo, Warning},
    layout::{MIB, to_usize},
    locator::Locator,
    log::replay,
    metadata::Item,
    open::{self, Damage, OpenOptions, Parsed},
    region::Region,
    session::Session,
    space::Space,
    view::View,
};
use crate::{
    DiskType, MetaError, ReadExtent, Shadow, Source, Storage,
    bitmap::{BitmapIndex, BlockBits},
    errors::IoContext,
    flush::GroupCommit,
};

/// An open VHDX file. Answers where data is and where it goes; the caller moves the bytes.
///
/// All methods may be called from many threads at once. Reads take no lock. Overlapping writes at the same time give
/// either's data, sector by sector.
pub struct Image {
    pub(crate) view: View,
    pub(crate) info: ImageInfo,
    pub(crate) geometry: Geometry,
    pub(crate) table: Table,
    pub(crate) closed: AtomicBool,
    pub(crate) commit: GroupCommit,
    /// Only in a differencing disk.
    pub(crate) diff: Option<Differencing>,
    /// Only in a disk that is open for writing.
    pub(crate) session: Option<Mutex<Session>>,
    /// The session's level, for those who only look.
    pub(crate) level: AtomicU8,
    pub(crate) parent: Mutex<ParentPlace>,
    /// Regions, the log among them.
    pub(crate) regions: Box<[Region]>,
    /// That of the block allocation table.
    pub(crate) bat: Region,
    /// Where the virtual size is stored.
    pub(crate) size_at: u64,
    /// First byte behind all regions, and behind what a resize has added.
    pub(crate) regions_end: AtomicU64,
}

/// What only a differencing disk has.
pub(crate) struct Differencing {
    /// Places of sector bitmap blocks in MiB; 0: none.
    pub(crate) bitmaps: BitmapTable,
    pub(crate) bits: BitmapIndex,
    /// Blocks with pending bits.
    pub(crate) dirty: Mutex<Vec<u32>>,
    pub(crate) shadow: Option<Arc<dyn Shadow>>,
}

/// The parent locator and where it is stored.
#[derive(Clone, Debug)]
pub(crate) struct ParentPlace {
    pub(crate) locator: Option<Locator>,
    pub(crate) item: Option<Item>,
    pub(crate) region: Region,
    /// First byte of the region that no item uses.
    pub(crate) free: u32,
}

impl Differencing {
    pub(crate) fn dirty(&self) -> MutexGuard<'_, Vec<u32>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a chunk's sector bitmap block is.
    pub(crate) fn bitmap(&self, chunk: u32) -> Option<u64> {
        let mib = self.bitmaps.get(chunk as usize).map_or(0, |slot| slot.load(Ordering::Acquire));
        (mib != 0).then(|| u64::from(mib) * MIB)
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("disk_type", &self.info.disk_type)
            .field("size", &self.info.size)
            .field("data_write_guid", &self.info.data_write_guid)
            .field("writable", &self.session.is_some())
            .finish_non_exhaustive()
    }
}

impl Image {
    /// Opens a file: checks its structures, never touches its parent. A log that was left is replayed, for a reader in
    /// memory.
    ///
    /// # Errors
    /// If the file is not a VHDX that can be used; [`OpenError`] names what is wrong, where, and which rule it breaks.
    pub fn open(storage: &Arc<dyn Storage>, options: &OpenOptions) -> Result<Self, OpenError> {
        let parsed = open::parse(storage, options, &mut Damage::Refuse)?;
        let Parsed {
            header,
            mut view,
            bat,
            regions,
            metadata_region,
            metadata,
            geometry,
            table,
            bitmaps,
            places,
            mut info,
        } = parsed;
        let regions_end = places.regions_end();
        let session = match options.write {
            None => None,
            Some(ids) => {
                let pending = replay::is_pending(&header.header);
                if pending {
                    view.settle()?;
                }
                let gaps = places.gaps();
                let space = Space::new(Arc::clone(storage), view.stored_len, places.free, gaps);
                let mut session = Session::new(Arc::clone(storage), header, ids, space, bat.offset, geometry);
                if pending {
                    session.forget_log().map_err(write_error)?;
                }
                mark_replayed(&mut info);
                Some(Mutex::new(session))
            }
        };
        let diff = (info.disk_type == DiskType::Differencing).then(|| Differencing {
            bitmaps,
            bits: BitmapIndex::new(geometry.blocks),
            dirty: Mutex::default(),
            shadow: options.shadow.clone(),
        });
        let parent = ParentPlace {
            locator: metadata.locator,
            item: metadata.locator_item,
            region: metadata_region,
            free: metadata.free,
        };
        let mut image = Self {
            view,
            info,
            geometry,
            table,
            closed: AtomicBool::new(false),
            commit: GroupCommit::default(),
            diff,
            session,
            level: AtomicU8::new(0),
            parent: Mutex::new(parent),
            regions: regions.into_boxed_slice(),
            bat,
            size_at: metadata.size_at,
            regions_end: AtomicU64::new(regions_end),
        };
        image.adopt_shadow()?;
        Ok(image)
    }

    /// What the file says about itself, as of its opening.
    #[must_use]
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// The file.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.view.storage
    }

    /// Where the parent is, as it is stored now; only in a differencing disk.
    #[must_use]
    pub fn parent(&self) -> Option<Locator> {
        self.parent.lock().unwrap_or_else(PoisonError::into_inner).locator.clone()
    }

    /// Identity of the content as of now. It changes once more if nothing was written since the disk was opened for
    /// writing and something will be; [`Image::settle_identity`] rules that out.
    #[must_use]
    pub fn data_write_guid(&self) -> Uuid {
        self.lock_session().map_or(self.info.data_write_guid, |session| session.data_write_guid())
    }

    /// Appends where each part of `offset..offset + len` is read from. Neighbours of one kind are merged, in the file too.
    ///
    /// Takes no lock and allocates nothing but room in `out`, except that the first look into a block that is here in
    /// parts reads its bits from the file.
    ///
    /// # Errors
    /// If the range is not whole sectors inside the disk, or a sector bitmap cannot be read.
    pub fn resolve_read(&self, offset: u64, len: u64, out: &mut Vec<ReadExtent>) -> Result<(), MetaError> {
        self.check_range(offset, len)?;
        let differencing = self.diff.is_some();
        for part in self.geometry.parts(offset, len) {
            let entry = self.table.get(part.block);
            match (entry.state, &self.diff) {
                (State::Full, _) | (State::Partial, None) => {
                    self.push_data(out, entry.offset() + part.within, part.len);
                }
                (State::Partial, Some(diff)) => {
                    let bits = self.bits(diff, part.block)?;
                    let sector_len = self.geometry.sector;
                    let (mut sector, end) = (part.within / sector_len, (part.within + part.len) / sector_len);
                    while sector < end {
                        let (present, run) = bits.run(sector, end);
                        if present {
                            self.push_data(out, entry.offset() + sector * sector_len, run * sector_len);
                        } else {
                            push(out, run * sector_len, Source::Parent);
                        }
                        sector += run;
                    }
                }
                (State::NotPresent, _) if differencing => push(out, part.len, Source::Parent),
                // Never the parent.
                (State::NotPresent | State::Undefined | State::Zero | State::Unmapped, _) => {
                    push(out, part.len, Source::Zero);
                }
            }
        }
        Ok(())
    }

    /// Data in the file. A reader of a disk that was not closed may find blocks behind the end of the file, which the log
    /// makes longer: they are zeros.
    fn push_data(&self, out: &mut Vec<ReadExtent>, file_offset: u64, len: u64) {
        let inside = match self.session {
            Some(_) => len,
            None => {
                self.view.stored_len.saturating_sub(file_offset).min(len) / self.geometry.sector
                    * self.geometry.sector
            }
        };
        if inside > 0 {
            push(out, inside, Source::Data { file_offset });
        }
        if len > inside {
            push(out, len - inside, Source::Zero);
        }
    }

    /// Blocks that are in the file now.
    #[must_use]
    pub fn allocated_blocks(&self) -> u32 {
        let stored = self.table.iter().filter(|(_, entry)| entry.state.is_stored()).count();
        u32::try_from(stored).unwrap_or(u32::MAX)
    }

    /// Whether the disk holds nothing of its own: a dynamic disk without blocks, a differencing disk that reads as its
    /// parent everywhere. Never true for a fixed disk.
    ///
    /// # Errors
    /// If a sector bitmap cannot be read.
    pub fn is_blank(&self) -> Result<bool, MetaError> {
        for (block, entry) in self.table.iter() {
            let own = match (entry.state, &self.diff) {
                (State::NotPresent, _) => false,
                (State::Partial, Some(diff)) => self.bits(diff, block)?.any(),
                (state, None) => state.is_stored(),
                // Zeros are not what the parent has.
                (_, Some(_)) => true,
            };
            if own {
                return Ok(false);
            }
        }
        Ok(self.info.disk_type != DiskType::Fixed)
    }

    /// The bits of a block, from memory or from the file.
    pub(crate) fn bits<'a>(&self, diff: &'a Differencing, block: u32) -> Result<&'a BlockBits, MetaError> {
        if let Some(bits) = diff.bits.get(block) {
            return Ok(bits);
        }
        let bitmap = diff.bitmap(self.geometry.chunk(block)).unwrap_or(0);
        let offset = bitmap + self.geometry.bitmap_within(block);
        let mut bytes = vec![0; to_usize(self.geometry.bitmap_len())];
        self.view.read(&mut bytes, offset).meta_context("read a sector bitmap", offset)?;
        let bits = diff.bits.insert(block, BlockBits::from_lsb_bytes(&bytes));
        bits.ok_or(MetaError::OutOfRange { offset, len: 0, size: self.info.size })
    }

    pub(crate) fn check_range(&self, offset: u64, len: u64) -> Result<(), MetaError> {
        let sector = self.geometry.sector;
        if !offset.is_multiple_of(sector) || !len.is_multiple_of(sector) {
            return Err(MetaError::UnalignedTo { offset, len, sector: self.info.logical_sector });
        }
        if offset.checked_add(len).is_none_or(|end| end > self.info.size) {
            return Err(MetaError::OutOfRange { offset, len, size: self.info.size });
        }
        Ok(())
    }

    pub(crate) fn lock_session(&self) -> Option<MutexGuard<'_, Session>> {
        self.session.as_ref().map(|session| session.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over bits that a dead process acknowledged: they are present for readers at once and durable by the next flush.
    fn adopt_shadow(&mut self) -> Result<(), OpenError> {
        let Some(diff) = &self.diff else { return Ok(()) };
        let Some(shadow) = &diff.shadow else { return Ok(()) };
        let mut adopted = 0;
        for slot in shadow.load().map_err(OpenError::Shadow)? {
            let entry = self.table.get(slot.block);
            let blank = slot.bits.iter().all(|byte| *byte == 0);
            if entry.state != State::Partial || entry.mib != slot.bat_sector {
                // The block was given away, or the slot is another file's. It may get the same place again, and would find
                // these bits there.
                if self.session.is_some() {
                    shadow.forget(slot.block).map_err(OpenError::Shadow)?;
                }
                continue;
            }
            if blank {
                continue;
            }
            let bits = self.bits(diff, slot.block).map_err(|error| match error {
                MetaError::Io { action, offset, source } => OpenError::Io { action, offset, source },
                other => OpenError::Shadow(other.into()),
            })?;
            if bits.adopt(&slot.bits) {
                diff.dirty().push(slot.block);
                adopted += 1;
            }
        }
        if adopted > 0 {
            self.info.warnings.push(Warning::WritesAdopted { blocks: adopted });
        }
        Ok(())
    }
}

/// Appends a part, merged with the last one where possible.
fn push(out: &mut Vec<ReadExtent>, len: u64, source: Source) {
    if let Some(last) = out.last_mut() {
        let joins = match (last.source, source) {
            (Source::Data { file_offset: a }, Source::Data { file_offset: b }) => a + last.len == b,
            (a, b) => a == b,
        };
        if joins {
            last.len += len;
            return;
        }
    }
    out.push(ReadExtent { len, source });
}

/// A writer has put into the file what a reader holds in memory.
fn mark_replayed(info: &mut ImageInfo) {
    for warning in &mut info.warnings {
        if let Warning::LogReplayed { written, .. } = warning {
            *written = true;
        }
    }
}

fn write_error(error: MetaError) -> OpenError {
    match error {
        MetaError::Io { action, offset, source } => OpenError::Io { action, offset, source },
        other => OpenError::Io { action: "empty the log", offset: 0, source: other.into() },
    }
}

/// A place for a block, in MiB, as the shadow names it.
pub(crate) fn shadow_place(entry: Entry) -> u32 {
    entry.mib
}

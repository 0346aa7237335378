//! An open disk: what it is, and where reads go.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use crate::{
    Storage,
    alloc::{Allocator, Start},
    bitmap::{BitmapIndex, BlockBits},
    errors::{IoContext, MetaError, OpenError},
    flush::GroupCommit,
    format::{
        SECTOR,
        bat::{ABSENT, Blocks},
        footer::{CREATOR, DiskType, FOOTER_LEN, Footer},
    },
    info::{ImageInfo, Warning},
    locate::{Found, Place},
    open::{self, Damage, OpenOptions, Parsed, Sparse},
    shadow::Shadow,
};

/// Where a part of a read comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From the file.
    Data {
        /// Offset in the file, in bytes.
        file_offset: u64,
    },
    /// Zeros.
    Zero,
    /// From the parent at the same offset; zeros behind its end.
    Parent,
}

/// One part of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadExtent {
    /// Bytes.
    pub len: u64,
    /// Where they come from.
    pub source: Source,
}

/// An open VHD file. Answers where data is and where it goes; the caller moves the bytes.
///
/// All methods may be called from many threads at once. Reads take no lock. Overlapping writes at the same time give
/// either's data, sector by sector.
pub struct Image {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) info: ImageInfo,
    pub(crate) writable: bool,
    pub(crate) closed: AtomicBool,
    pub(crate) commit: GroupCommit,
    pub(crate) sparse: Option<SparseImage>,
}

/// State of a dynamic or differencing disk.
pub(crate) struct SparseImage {
    pub(crate) blocks: Blocks,
    pub(crate) table_offset: u64,
    /// First byte behind everything, as of the opening.
    pub(crate) first_free: u64,
    /// Where the structures other than blocks are: start and end.
    pub(crate) regions: Box<[(u64, u64)]>,
    /// The block allocation table.
    pub(crate) table: Box<[AtomicU32]>,
    pub(crate) allocator: Mutex<Allocator>,
    pub(crate) kind: SparseKind,
}

/// What the bitmaps are good for.
pub(crate) enum SparseKind {
    /// Nothing. One bit per block: its bitmap in the file is known to be all ones.
    Dynamic { full: Box<[AtomicU64]> },
    /// They tell the disk's sectors from the parent's.
    Differencing(Differencing),
}

pub(crate) struct Differencing {
    pub(crate) bits: BitmapIndex,
    /// Blocks with pending bits.
    pub(crate) dirty: Mutex<Vec<u32>>,
    pub(crate) shadow: Option<Arc<dyn Shadow>>,
}

impl Differencing {
    pub(crate) fn dirty(&self) -> MutexGuard<'_, Vec<u32>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("disk_type", &self.info.disk_type)
            .field("size", &self.info.size)
            .field("unique_id", &self.info.unique_id)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

impl Image {
    /// Opens a file: checks its structures, never touches its parent.
    ///
    /// # Errors
    /// If the file is not a VHD that can be used; [`OpenError`] names what is wrong.
    pub fn open(storage: Arc<dyn Storage>, options: &OpenOptions) -> Result<Self, OpenError> {
        let parsed = open::parse(storage.as_ref(), options, &mut Damage::Refuse)?;
        let Parsed { found, mut info, sparse } = parsed;
        if options.writable {
            match &sparse {
                Some(sparse) => repair_at_open(storage.as_ref(), &found, sparse, &mut info)?,
                None if found.place == Place::Inside => {
                    cut_behind_footer(storage.as_ref(), &found, &mut info)?
                }
                None => {}
            }
        }
        let footer = found.footer.to_bytes();
        let sparse = match sparse {
            None => None,
            Some(sparse) => {
                let tidy = storage.len().open_context("read the length of the file", 0)?
                    == sparse.free + FOOTER_LEN as u64
                    && found.place != Place::ShortEnd
                    && (found.place == Place::End || options.writable);
                Some(SparseImage::new(&storage, sparse, footer, tidy, &info, options))
            }
        };
        let mut image = Self {
            storage,
            info,
            writable: options.writable,
            closed: AtomicBool::new(false),
            commit: GroupCommit::default(),
            sparse,
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
        &self.storage
    }

    /// Appends where each part of `offset..offset + len` is read from. Neighbours of one kind are merged, in the file too.
    ///
    /// Takes no lock and allocates nothing but room in `out`, except that the first look into a block of a differencing
    /// disk reads its bitmap from the file.
    ///
    /// # Errors
    /// If the range is not whole sectors inside the disk, or a bitmap cannot be read.
    pub fn resolve_read(&self, offset: u64, len: u64, out: &mut Vec<ReadExtent>) -> Result<(), MetaError> {
        self.check_range(offset, len)?;
        let Some(sparse) = &self.sparse else {
            push(out, len, Source::Data { file_offset: offset });
            return Ok(());
        };
        for part in sparse.blocks.parts(offset, len) {
            let entry = sparse.entry(part.block);
            match &sparse.kind {
                SparseKind::Dynamic { .. } if entry == ABSENT => push(out, part.len, Source::Zero),
                SparseKind::Dynamic { .. } => {
                    push(
                        out,
                        part.len,
                        Source::Data { file_offset: sparse.data_offset(entry) + part.within },
                    );
                }
                SparseKind::Differencing(_) if entry == ABSENT => push(out, part.len, Source::Parent),
                SparseKind::Differencing(diff) => {
                    let bits = self.bits(sparse, diff, part.block, entry)?;
                    let (mut sector, end) = part.sectors();
                    while sector < end {
                        let (present, run) = bits.run(sector, end);
                        let source = if present {
                            Source::Data { file_offset: sparse.data_offset(entry) + sector * SECTOR }
                        } else {
                            Source::Parent
                        };
                        push(out, run * SECTOR, source);
                        sector += run;
                    }
                }
            }
        }
        Ok(())
    }

    /// Blocks that are in the file now; 0 for a fixed disk.
    #[must_use]
    pub fn allocated_blocks(&self) -> u32 {
        let count = |sparse: &SparseImage| {
            sparse.table.iter().filter(|entry| entry.load(Ordering::Acquire) != ABSENT).count()
        };
        self.sparse.as_ref().map_or(0, |sparse| u32::try_from(count(sparse)).unwrap_or(u32::MAX))
    }

    /// Whether the disk holds nothing of its own: a dynamic disk without blocks, a differencing disk without a written
    /// sector. Never true for a fixed disk.
    ///
    /// # Errors
    /// If a bitmap cannot be read.
    pub fn is_blank(&self) -> Result<bool, MetaError> {
        let Some(sparse) = &self.sparse else { return Ok(false) };
        for block in 0..sparse.blocks.count {
            let entry = sparse.entry(block);
            if entry == ABSENT {
                continue;
            }
            let SparseKind::Differencing(diff) = &sparse.kind else { return Ok(false) };
            if self.bits(sparse, diff, block, entry)?.any() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The block's bitmap, from memory or from the file.
    pub(crate) fn bits<'a>(
        &self,
        sparse: &SparseImage,
        diff: &'a Differencing,
        block: u32,
        entry: u32,
    ) -> Result<&'a BlockBits, MetaError> {
        if let Some(bits) = diff.bits.get(block) {
            return Ok(bits);
        }
        let offset = u64::from(entry) * SECTOR;
        let mut bytes = vec![0; sparse.blocks.bitmap_len_usize()];
        self.storage.read_at(&mut bytes, offset).meta_context("read a bitmap", offset)?;
        let bits = diff.bits.insert(block, BlockBits::from_bytes(&bytes));
        bits.ok_or(MetaError::OutOfRange { offset, len: 0, size: self.info.size })
    }

    pub(crate) fn check_range(&self, offset: u64, len: u64) -> Result<(), MetaError> {
        if !offset.is_multiple_of(SECTOR) || !len.is_multiple_of(SECTOR) {
            return Err(MetaError::Unaligned { offset, len });
        }
        if offset.checked_add(len).is_none_or(|end| end > self.info.size) {
            return Err(MetaError::OutOfRange { offset, len, size: self.info.size });
        }
        Ok(())
    }

    /// Takes over bits that a dead process acknowledged: they are present for readers at once and durable by the next flush.
    fn adopt_shadow(&mut self) -> Result<(), OpenError> {
        let Some(sparse) = &self.sparse else { return Ok(()) };
        let SparseKind::Differencing(diff) = &sparse.kind else { return Ok(()) };
        let Some(shadow) = &diff.shadow else { return Ok(()) };
        let mut adopted = 0;
        for slot in shadow.load().map_err(OpenError::Shadow)? {
            let entry = sparse.table.get(slot.block as usize).map_or(ABSENT, |e| e.load(Ordering::Acquire));
            if entry == ABSENT || entry != slot.bat_sector {
                // The block was given away. Another one could come to lie in its place, and the slot be believed.
                if self.writable {
                    shadow.forget(slot.block).map_err(OpenError::Shadow)?;
                }
                continue;
            }
            if slot.bits.iter().all(|byte| *byte == 0) {
                continue;
            }
            let bits = self.bits(sparse, diff, slot.block, entry).map_err(|error| match error {
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

impl SparseImage {
    fn new(
        storage: &Arc<dyn Storage>,
        sparse: Sparse,
        footer: [u8; FOOTER_LEN],
        tidy: bool,
        info: &ImageInfo,
        options: &OpenOptions,
    ) -> Self {
        let Sparse { blocks, header, table, free, regions, .. } = sparse;
        let dynamic = info.disk_type == DiskType::Dynamic;
        let kind = if dynamic {
            SparseKind::Dynamic { full: (0..blocks.count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
        } else {
            SparseKind::Differencing(Differencing {
                bits: BitmapIndex::new(blocks.count),
                dirty: Mutex::default(),
                shadow: options.shadow.clone(),
            })
        };
        let start = Start {
            footer,
            full_bitmaps: dynamic,
            free,
            metadata_end: info.end_of_metadata,
            tidy,
            absent: blocks.count - info.blocks_at_open,
            tidy_at_close: info.creator == CREATOR,
        };
        let allocator = Allocator::new(Arc::clone(storage), blocks, start);
        Self {
            blocks,
            table_offset: header.table_offset.get(),
            first_free: free,
            regions: regions.iter().map(|region| (region.start, region.reserved_end)).collect(),
            table: table.into_iter().map(AtomicU32::new).collect(),
            allocator: Mutex::new(allocator),
            kind,
        }
    }

    /// The lock under which blocks get their places.
    pub(crate) fn allocator(&self) -> MutexGuard<'_, Allocator> {
        self.allocator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table entry of a block; absent past the end.
    pub(crate) fn entry(&self, block: u32) -> u32 {
        self.table.get(block as usize).map_or(ABSENT, |entry| entry.load(Ordering::Acquire))
    }

    /// Where the data of the block with that entry starts in the file.
    pub(crate) fn data_offset(&self, entry: u32) -> u64 {
        u64::from(entry) * SECTOR + self.blocks.bitmap_len
    }
}

/// The part of a request that lies in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) block: u32,
    /// Offset in the block's data.
    pub(crate) within: u64,
    pub(crate) len: u64,
}

impl Part {
    /// First sector in the block, and the one behind the last.
    pub(crate) fn sectors(&self) -> (u64, u64) {
        (self.within / SECTOR, (self.within + self.len) / SECTOR)
    }
}

impl Blocks {
    /// Splits a checked range at the borders of blocks.
    pub(crate) fn parts(self, offset: u64, len: u64) -> impl Iterator<Item = Part> {
        let (shift, mask) = (self.block_size.trailing_zeros(), self.block_size - 1);
        let end = offset + len;
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let within = at & mask;
            let len = (self.block_size - within).min(end - at);
            let block = u32::try_from(at >> shift).unwrap_or(u32::MAX);
            at += len;
            Some(Part { block, within, len })
        })
    }

    pub(crate) fn bitmap_len_usize(&self) -> usize {
        usize::try_from(self.bitmap_len).unwrap_or(usize::MAX)
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

/// What a writable open puts right at once, because a later crash would turn it into damage: a missing footer at the end,
/// and table entries that a growing file would make valid.
fn repair_at_open(
    storage: &dyn Storage,
    found: &Found,
    sparse: &Sparse,
    info: &mut ImageInfo,
) -> Result<(), OpenError> {
    let (footer, place) = (&found.footer.to_bytes(), found.place);
    let mut repaired_any = false;
    // What it tells of may be overwritten, and then it must not be the only footer that is left.
    if info.warnings.contains(&Warning::FooterCopyDiffers) && copy_is_dangerous(storage, found)? {
        storage.write_at(footer, 0).open_context("write the copy of the footer", 0)?;
        info.warnings.retain(|warning| *warning != Warning::FooterCopyDiffers);
        repaired_any = true;
    }
    for index in &sparse.beyond {
        let at = sparse.header.table_offset.get() + u64::from(*index) * 4;
        storage.write_at(&ABSENT.to_be_bytes(), at).open_context("correct the block allocation table", at)?;
        repaired_any = true;
    }
    if place == Place::Start {
        let end = sparse.free;
        storage.set_len(end).open_context("cut the end of the file to", end)?;
        storage.set_len(end + FOOTER_LEN as u64).open_context("grow the file to", end)?;
        storage.write_at(footer, end).open_context("write the footer", end)?;
        repaired_any = true;
    }
    if repaired_any {
        storage.flush().open_context("make repairs durable", 0)?;
    }
    mark_repaired(info);
    Ok(())
}

/// Whether the copy of the footer tells of another size, or of a header in another place: what a resize or a change of the
/// parent leaves that was cut off.
fn copy_is_dangerous(storage: &dyn Storage, found: &Found) -> Result<bool, OpenError> {
    let mut copy = [0; FOOTER_LEN];
    storage.read_at(&mut copy, 0).open_context("read the copy of the footer", 0)?;
    Ok(Footer::parse(&copy).is_ok_and(|copy| {
        // One with another id is not believed anyway.
        copy.unique_id == found.footer.unique_id
            && (copy.current_size, copy.data_offset) != (found.footer.current_size, found.footer.data_offset)
    }))
}

/// A fixed disk ends with its footer.
fn cut_behind_footer(storage: &dyn Storage, found: &Found, info: &mut ImageInfo) -> Result<(), OpenError> {
    let end = found.data_end + FOOTER_LEN as u64;
    storage.set_len(end).open_context("cut the end of the file to", end)?;
    storage.flush().open_context("make repairs durable", 0)?;
    mark_repaired(info);
    Ok(())
}

fn mark_repaired(info: &mut ImageInfo) {
    for warning in &mut info.warnings {
        if let Warning::TrailingFooterBad { repaired }
        | Warning::TrailingFooterForeign { repaired }
        | Warning::BlocksBeyondEnd { repaired, .. } = warning
        {
            *repaired = true;
        }
    }
}

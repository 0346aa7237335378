//! Another size for a VHD that nobody has open, in place. At every instant a crash leaves the disk of the old size or that of
//! the new one.
//!
//! The size is in the footer, one sector, and so is the place of the header that tells where the block allocation table
//! is and how many entries it has. A table with more entries goes to another place unless what lies behind it is free:
//! 1. the table, a header for it and the present footer go behind the end of the file, and are made durable;
//! 2. the footer there, then its copy at the start, get the new size and point to that header: the disk has its new size;
//! 3. the header is written in its usual place, both footers point there, and the file is cut behind what it needs.
//!
//! A fixed disk has one footer, at its end:
//! - growing, the present footer is repeated at the new end, then cleared in its old place, then given the new size;
//! - shrinking, the footer is given the new size, then repeated at the new end, then the file is cut.

use std::fmt;

use zerocopy::{
    IntoBytes,
    big_endian::{U16, U32, U64},
};

use crate::{
    OpenError, Storage,
    format::{
        MAX_SIZE, SECTOR, align_up,
        bat::{ABSENT, Blocks, DATA_ALIGN},
        footer::{CREATOR, DiskType, FOOTER_LEN, Footer},
        geometry::Chs,
        header::HEADER_LEN,
    },
    locate::{Found, Place},
    merge::FileSpan,
    open::{self, Damage, OpenOptions, Parsed, Sparse},
    plan::{self, Content, PlanError, Step},
};

const FOOTER: u64 = FOOTER_LEN as u64;
const HEADER: u64 = HEADER_LEN as u64;
/// Where the header is in the files of all programs.
const HOME: u64 = FOOTER;

/// Why a disk cannot have that size.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// It cannot be read.
    #[error("cannot read the disk's metadata")]
    Open(#[source] OpenError),
    /// Zero or not whole sectors.
    #[error("the size {size} is not a multiple of {sector} bytes above zero")]
    Unaligned {
        /// Asked for.
        size: u64,
        /// Bytes in a sector.
        sector: u32,
    },
    /// Past the limit.
    #[error("the size {size} is more than a {format} can hold ({limit} bytes)")]
    TooLarge {
        /// Asked for.
        size: u64,
        /// "VHD" or "VHDX".
        format: &'static str,
        /// Most.
        limit: u64,
    },
    /// A footer of old programs, or damage.
    #[error(
        "the file does not end with a whole footer: repair it with `backstay disk check --repair`, or convert it with `backstay disk convert`"
    )]
    Untidy,
    /// Foreign files.
    #[error(
        "the last block of the disk is stored without its end, and something else lies there: convert the disk with `backstay disk convert`"
    )]
    LastBlockCut,
}

/// What is written to give a disk another size; printable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResizePlan {
    /// Size now, in bytes.
    pub old: u64,
    /// Size afterwards.
    pub new: u64,
    /// Space that a fixed disk needs behind the present end of its file. It can be reserved at any time before.
    pub reserve: Option<FileSpan>,
    /// The steps; none if there is nothing to do.
    pub steps: Vec<Step>,
}

impl fmt::Display for ResizePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(span) = self.reserve {
            writeln!(f, "  reserve space for {} bytes at {:#x}", span.len, span.offset)?;
        }
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step}"))
    }
}

impl ResizePlan {
    /// Carries the plan out. The file must not be in use.
    ///
    /// # Errors
    /// At the first step that fails. The disk has the old or the new size then; opening it for writing tidies it up.
    pub fn execute(&self, storage: &dyn Storage) -> Result<(), PlanError> {
        plan::execute(&self.steps, storage)
    }
}

/// Checks a size.
///
/// # Errors
/// If a VHD cannot have it.
pub fn check_size(size: u64) -> Result<(), ResizeError> {
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(ResizeError::Unaligned { size, sector: 512 });
    }
    if size > MAX_SIZE {
        return Err(ResizeError::TooLarge { size, format: "VHD", limit: MAX_SIZE });
    }
    Ok(())
}

/// Plans it for a file that is closed: what lies behind the new end of a disk that gets smaller is lost.
///
/// # Errors
/// If the disk cannot have that size, or its file needs a repair first.
pub fn plan(storage: &dyn Storage, options: &OpenOptions, size: u64) -> Result<ResizePlan, ResizeError> {
    check_size(size)?;
    let parsed = open::parse(storage, options, &mut Damage::Refuse).map_err(ResizeError::Open)?;
    let Parsed { found, info, sparse } = &parsed;
    if found.place != Place::End || sparse.as_ref().is_some_and(|sparse| !sparse.beyond.is_empty()) {
        return Err(ResizeError::Untidy);
    }
    let footer = footer_for(&found.footer, info.size, size);
    let mut plan = ResizePlan { old: info.size, new: size, reserve: None, steps: Vec::new() };
    match sparse {
        None => fixed(&mut plan, found, &footer),
        Some(sparse) => {
            let copy_is_right = !info.warnings.iter().any(|warning| {
                matches!(warning, crate::Warning::FooterCopyDiffers | crate::Warning::FooterCopyBad)
            });
            Sizing::new(found, sparse, footer, size)?.plan(&mut plan, copy_is_right)?;
        }
    }
    Ok(plan)
}

/// The footer with another size. A geometry that stands for "see the size field" stays; that of programs which take the
/// geometry for the size becomes so, because no geometry is exact.
fn footer_for(old: &Footer, now: u64, size: u64) -> Footer {
    if now == size {
        return old.clone();
    }
    let mut footer = old.clone();
    footer.current_size = U64::new(size);
    let by_size = old.chs() == Chs::MAX || [*b"vpc ", *b"qemu", CREATOR].contains(&old.creator_app);
    let chs = if by_size { Chs::MAX } else { Chs::for_size(size) };
    footer.cylinders = U16::new(chs.cylinders);
    footer.heads = chs.heads;
    footer.sectors = chs.sectors;
    footer.sealed()
}

fn write(what: &str, offset: u64, bytes: &[u8]) -> Step {
    Step::Write { what: what.to_owned(), offset, content: Content::Bytes(bytes.to_vec()) }
}

fn fixed(plan: &mut ResizePlan, found: &Found, footer: &Footer) {
    let (old, new) = (plan.old, plan.new);
    let steps = &mut plan.steps;
    // What an earlier resize left, or another program, between the end of the disk and the footer.
    if found.data_end != old {
        steps.push(write("the footer where the disk ends", old, found.footer.as_bytes()));
        steps.push(Step::Flush);
        steps.push(Step::SetLen(old + FOOTER));
        steps.push(Step::Flush);
    }
    if new > old {
        plan.reserve = Some(FileSpan { offset: old + FOOTER, len: new - old });
        steps.push(write("the footer at the new end", new, found.footer.as_bytes()));
        steps.push(Step::Flush);
        let content = Content::Fill { byte: 0, len: FOOTER };
        steps.push(Step::Write { what: "zeros over the old footer".to_owned(), offset: old, content });
        steps.push(Step::Flush);
        steps.push(write("the new size into the footer", new, footer.as_bytes()));
        steps.push(Step::Flush);
    } else if new < old {
        steps.push(write("the new size into the footer", old, footer.as_bytes()));
        steps.push(Step::Flush);
        steps.push(write("the footer at the new end", new, footer.as_bytes()));
        steps.push(Step::Flush);
        steps.push(Step::SetLen(new + FOOTER));
        steps.push(Step::Flush);
    }
}

/// A dynamic or differencing disk on its way.
struct Sizing<'a> {
    found: &'a Found,
    sparse: &'a Sparse,
    /// With the new size; points to the present header.
    footer: Footer,
    blocks: Blocks,
}

/// Where the table is afterwards.
#[derive(Clone, Copy, Debug)]
struct TablePlace {
    offset: u64,
    /// The place is another one, or the table reaches further.
    moved: bool,
    /// It lies behind the end of the file.
    at_end: bool,
}

impl<'a> Sizing<'a> {
    fn new(found: &'a Found, sparse: &'a Sparse, footer: Footer, size: u64) -> Result<Self, ResizeError> {
        let block_size = sparse.header.block_size.get();
        let too_large = || ResizeError::TooLarge { size, format: "VHD", limit: MAX_SIZE };
        let blocks = Blocks::new(size, block_size).map_err(|_| too_large())?;
        Ok(Self { found, sparse, footer, blocks })
    }

    fn plan(self, plan: &mut ResizePlan, copy_is_right: bool) -> Result<(), ResizeError> {
        if !copy_is_right && plan.new != plan.old {
            plan.steps.push(write("the copy of the footer", 0, self.found.footer.as_bytes()));
            plan.steps.push(Step::Flush);
        }
        if plan.new > plan.old {
            self.clear_last_block(plan)?;
        }
        let entries = self.sparse.header.max_table_entries.get();
        let home = self.home();
        let at_home = home == self.found.footer.data_offset.get();
        if at_home && plan.new == plan.old {
            return Ok(());
        }
        if at_home && entries == self.blocks.count {
            plan.steps.push(Step::Flush);
            self.point(plan, self.found.data_end, home);
        } else {
            self.move_header(plan, home)?;
        }
        if plan.new < plan.old {
            self.clear_behind(plan);
        }
        Ok(())
    }

    /// What the last block keeps behind the end of a disk that got smaller goes too: another program that makes it larger again may
    /// not clear it, and somebody may have wanted it gone.
    fn clear_behind(&self, plan: &mut ResizePlan) {
        let (old, last) = (&self.sparse.blocks, self.blocks.count.saturating_sub(1));
        // The last block of the larger disk may be stored without its end.
        let (used, end) = (self.blocks.used_len(last), old.used_len(last));
        let Some(entry) = self.sparse.table.get(last as usize).filter(|entry| **entry != ABSENT) else {
            return;
        };
        if used < end {
            let offset = u64::from(*entry) * SECTOR + old.bitmap_len + used;
            let what = "zeros behind the end of the disk".to_owned();
            plan.steps.push(Step::Write {
                what,
                offset,
                content: Content::Fill { byte: 0, len: end - used },
            });
            plan.steps.push(Step::Flush);
        }
    }

    /// What a block holds behind the end of the disk counts once the disk is larger.
    fn clear_last_block(&self, plan: &mut ResizePlan) -> Result<(), ResizeError> {
        let old = &self.sparse.blocks;
        let last = old.count.saturating_sub(1);
        let used = old.used_len(last);
        let Some(entry) = self.sparse.table.get(last as usize).filter(|entry| **entry != ABSENT) else {
            return Ok(());
        };
        if used == old.block_size {
            return Ok(());
        }
        let start = u64::from(*entry) * SECTOR;
        let (from, end) = (start + old.bitmap_len + used, start + old.stored_len());
        if end > self.found.data_end || self.structures().iter().any(|(a, b)| *a < end && from < *b) {
            return Err(ResizeError::LastBlockCut);
        }
        let content = Content::Fill { byte: 0, len: end - from };
        let what = "zeros into the unused end of the last block".to_owned();
        plan.steps.push(Step::Write { what, offset: from, content });
        Ok(())
    }

    /// All structures but the part of the last block that is not used, as start and end, in order.
    fn structures(&self) -> Vec<(u64, u64)> {
        let old = &self.sparse.blocks;
        let regions = self.sparse.regions.iter().map(|region| (region.start, region.reserved_end));
        let blocks = (0u32..).zip(&self.sparse.table).filter(|(_, entry)| **entry != ABSENT);
        let blocks = blocks.map(|(index, entry)| {
            let start = u64::from(*entry) * SECTOR;
            (start, start + old.bitmap_len + old.used_len(index))
        });
        let mut all: Vec<(u64, u64)> = regions.chain(blocks).collect();
        all.sort_unstable();
        all
    }

    /// Where the header goes: its usual place if that is free or its own.
    fn home(&self) -> u64 {
        let now = self.found.footer.data_offset.get();
        let end = HOME + HEADER;
        let others = self.structures();
        let mut others = others.iter().filter(|(start, _)| *start != now);
        if others.all(|(start, stop)| *stop <= HOME || end <= *start) { HOME } else { now }
    }

    /// Where the table goes: where it is, between two structures, or behind the end of the file.
    fn table_place(&self) -> TablePlace {
        let now = self.sparse.header.table_offset.get();
        let (have, need) = (
            Blocks::table_len(self.sparse.header.max_table_entries.get()),
            Blocks::table_len(self.blocks.count),
        );
        if need <= have {
            return TablePlace { offset: now, moved: false, at_end: false };
        }
        let mut taken = self.structures();
        // Where the header will be, and the footer.
        taken.push((HOME, HOME + HEADER));
        taken.push((self.found.data_end, u64::MAX));
        taken.sort_unstable();
        let next = taken.iter().map(|(start, _)| *start).find(|start| *start > now).unwrap_or(0);
        if now + need <= next {
            return TablePlace { offset: now, moved: true, at_end: false };
        }
        let mut at = 0;
        for (start, end) in taken {
            let place = align_up(at, DATA_ALIGN).unwrap_or(u64::MAX);
            if place.saturating_add(need) <= start {
                return TablePlace { offset: place, moved: true, at_end: false };
            }
            at = at.max(end);
        }
        let offset = align_up(self.found.data_end + FOOTER, DATA_ALIGN).unwrap_or(u64::MAX);
        TablePlace { offset, moved: true, at_end: true }
    }

    /// Another header, and perhaps table, by way of a header behind the end of the file.
    fn move_header(&self, plan: &mut ResizePlan, home: u64) -> Result<(), ResizeError> {
        let place = self.table_place();
        let table_len = Blocks::table_len(self.blocks.count);
        let old_end = self.found.data_end;
        let scratch = if place.at_end { place.offset + table_len } else { old_end + FOOTER };
        let footer_at = scratch + HEADER;
        if footer_at / SECTOR >= u64::from(ABSENT) {
            return Err(ResizeError::TooLarge { size: plan.new, format: "VHD", limit: MAX_SIZE });
        }
        let mut header = self.sparse.header.clone();
        header.table_offset = U64::new(place.offset);
        header.max_table_entries = U32::new(self.blocks.count);
        let header = header.sealed();

        let steps = &mut plan.steps;
        steps.push(Step::SetLen(footer_at + FOOTER));
        // Entries that a larger size of the disk left are behind those of this one.
        if place.moved || self.blocks.count > self.sparse.blocks.count {
            self.write_table(steps, place);
        }
        steps.push(write("the new header, for now", scratch, header.as_bytes()));
        steps.push(write("the footer behind it", footer_at, self.found.footer.as_bytes()));
        steps.push(Step::Flush);
        self.point(plan, footer_at, scratch);
        plan.steps.push(write("the header", home, header.as_bytes()));
        plan.steps.push(Step::Flush);
        self.point(plan, footer_at, home);
        let end = self.end(place, plan.new < plan.old);
        let steps = &mut plan.steps;
        steps.push(write("the footer where the file will end", end, self.footer_to(home).as_bytes()));
        steps.push(Step::Flush);
        steps.push(Step::SetLen(end + FOOTER));
        steps.push(Step::Flush);
        Ok(())
    }

    /// The whole table in a new place, or its longer end in the old one.
    fn write_table(&self, steps: &mut Vec<Step>, place: TablePlace) {
        let len = Blocks::table_len(self.blocks.count);
        let known = self.sparse.table.len() as u64 * 4;
        if place.offset == self.sparse.header.table_offset.get() {
            let content = Content::Fill { byte: 0xff, len: len - known };
            let (what, offset) = ("\"absent\" for the new blocks".to_owned(), place.offset + known);
            steps.push(Step::Write { what, offset, content });
            return;
        }
        let mut table: Vec<u8> = self.sparse.table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        table.resize(usize::try_from(len).unwrap_or(table.len()), 0xff);
        steps.push(write("the block allocation table", place.offset, &table));
    }

    /// Where the footer is at the end of it all.
    fn end(&self, place: TablePlace, shrinks: bool) -> u64 {
        if place.at_end {
            return place.offset + Blocks::table_len(self.blocks.count);
        }
        if !shrinks {
            return self.found.data_end;
        }
        // Blocks behind the new end of the disk are gone.
        let old = &self.sparse.blocks;
        let regions = self.sparse.regions.iter().map(|region| region.reserved_end);
        let kept =
            self.sparse.table.iter().take(self.blocks.count as usize).filter(|entry| **entry != ABSENT);
        let kept = kept.map(|entry| u64::from(*entry) * SECTOR + old.stored_len());
        regions.chain(kept).chain([HOME + HEADER]).max().unwrap_or(0).min(self.found.data_end)
    }

    /// The footer at the end, then its copy: each is one sector, and each tells of a whole disk.
    fn point(&self, plan: &mut ResizePlan, at: u64, header: u64) {
        let footer = self.footer_to(header);
        plan.steps.push(write("the new footer", at, footer.as_bytes()));
        plan.steps.push(Step::Flush);
        plan.steps.push(write("the copy of the new footer", 0, footer.as_bytes()));
        plan.steps.push(Step::Flush);
    }

    fn footer_to(&self, header: u64) -> Footer {
        let mut footer = self.footer.clone();
        footer.data_offset = U64::new(header);
        debug_assert_ne!(footer.kind(), Some(DiskType::Fixed), "fixed disks have no header");
        footer.sealed()
    }
}

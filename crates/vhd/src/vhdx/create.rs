//! Plans for new files, laid out as Windows does: log, metadata, block allocation table, blocks.

use std::fmt;

use thiserror::Error;
use uuid::Uuid;
use zerocopy::IntoBytes;

use super::{
    bat::{Entry, Geometry, Slot, State},
    header::{FileIdentifier, Header},
    layout::{
        HEADERS_AT, MAX_BLOCK_SIZE, MAX_SIZE, METADATA_TABLE_LEN, MIB, MIN_BLOCK_SIZE, REGION_TABLES_AT,
        round_up,
    },
    linkage::MAX_STORED_LOCATOR,
    locator::Locator,
    metadata::{self, Metadata},
    region,
};
use crate::{
    DiskType, Storage,
    plan::{self, Content, PlanError, Step},
};

/// Block size of a dynamic disk, as Windows chooses it.
pub const DYNAMIC_BLOCK_SIZE: u32 = 32 << 20;
/// Block size of fixed and differencing disks, as Windows chooses it.
pub const SMALL_BLOCK_SIZE: u32 = 2 << 20;
/// The creator in files that this crate makes.
pub const CREATOR: &str = "Backstay";

const LOG_AT: u64 = MIB;
const LOG_LEN: u32 = 1 << 20;
const METADATA_AT: u64 = 2 * MIB;
const METADATA_LEN: u32 = 1 << 20;
pub(crate) const BAT_AT: u64 = 3 * MIB;
/// A table up to this long gets its space at once.
const RESERVED_BAT: u64 = 4 * MIB;
/// Fixed disks from this size on have larger blocks, so that their tables stay small.
const LARGE_FIXED: u64 = 2 << 40;

/// What to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Virtual size in bytes: a multiple of the logical sector size, at most 64 TiB.
    pub size: u64,
    /// Kind of disk.
    pub kind: CreateKind,
    /// Bytes in a block: a power of two, 1–256 MiB. `None`: as Windows, 32 MiB dynamic, else 2 MiB.
    pub block_size: Option<u32>,
    /// Unit of addresses in bytes: 512 or 4096. A child needs that of its parent.
    pub logical_sector: u32,
    /// Sector size that the guest is told: 512 or 4096.
    pub physical_sector: u32,
    /// Identity towards the guest. A checkpoint keeps that of its parent.
    pub disk_id: Uuid,
    /// New random id.
    pub file_write_guid: Uuid,
    /// New random id: children will name the disk by it.
    pub data_write_guid: Uuid,
}

/// Kinds of disk and what they need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateKind {
    /// All space at once.
    Fixed,
    /// Grows.
    Dynamic,
    /// Holds what differs from a parent. `linkage` is the parent's DataWriteGuid.
    Differencing(Locator),
}

/// Why such a disk cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CreateError {
    /// Zero or not whole sectors.
    #[error("the size {size} is not a multiple of {sector} bytes above zero")]
    UnalignedSize {
        /// Asked for.
        size: u64,
        /// Logical sector size.
        sector: u32,
    },
    /// Past the limit.
    #[error("the size {0} is more than a VHDX can hold (64 TiB, {MAX_SIZE} bytes); make it smaller")]
    TooLarge(u64),
    /// Not usable.
    #[error("the block size {0} is not a power of two between 1 and 256 MiB")]
    BlockSize(u32),
    /// Not usable.
    #[error("the sector size {0} is neither 512 nor 4096")]
    SectorSize(u32),
    /// A conversion writes a whole disk.
    #[error("a differencing disk cannot be the target of a conversion: create it and write to it")]
    DifferencingTarget,
    /// A zero id.
    #[error("a new disk needs ids that are not zero")]
    Ids,
    /// Does not fit.
    #[error("the paths to the parent are too long to be stored ({0} bytes, at most {MAX_STORED_LOCATOR})")]
    PathTooLong(usize),
}

/// Everything that makes a new file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatePlan {
    /// Kind of disk.
    pub disk_type: DiskType,
    /// Length of the file.
    pub file_len: u64,
    /// The steps, for a file that is new and empty.
    pub steps: Vec<Step>,
}

impl fmt::Display for CreatePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "make a {} VHDX in a file of {} bytes:", self.disk_type, self.file_len)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step}"))
    }
}

impl CreatePlan {
    /// Carries the plan out on an empty file and makes it durable. The caller gives the file its name afterwards.
    ///
    /// # Errors
    /// At the first step that fails; the file is then to be thrown away.
    pub fn execute(&self, storage: &dyn Storage) -> Result<(), PlanError> {
        plan::execute(&self.steps, storage)
    }
}

/// The block size of a new disk for which none was asked for.
#[must_use]
pub fn default_block_size(kind: &CreateKind, size: u64) -> u32 {
    match kind {
        CreateKind::Dynamic => DYNAMIC_BLOCK_SIZE,
        CreateKind::Fixed if size > LARGE_FIXED => DYNAMIC_BLOCK_SIZE,
        CreateKind::Fixed | CreateKind::Differencing(_) => SMALL_BLOCK_SIZE,
    }
}

/// Plans a new disk.
///
/// # Errors
/// If a size or an id cannot be used or a path is too long.
pub fn plan(options: &CreateOptions) -> Result<CreatePlan, CreateError> {
    let block_size = check(options)?;
    let (disk_type, locator) = match &options.kind {
        CreateKind::Fixed => (DiskType::Fixed, None),
        CreateKind::Dynamic => (DiskType::Dynamic, None),
        CreateKind::Differencing(locator) => (DiskType::Differencing, Some(locator.clone())),
    };
    let differencing = locator.is_some();
    let geometry = Geometry::new(options.size, block_size, options.logical_sector, differencing);
    let metadata = Metadata {
        block_size,
        leave_blocks_allocated: disk_type == DiskType::Fixed,
        has_parent: differencing,
        size: options.size,
        size_at: 0,
        disk_id: options.disk_id,
        logical_sector: options.logical_sector,
        physical_sector: options.physical_sector,
        locator,
        locator_item: None,
        free: 0,
    };
    let bat_len = round_up(geometry.entries() * 8, MIB);
    let bat_end = BAT_AT + bat_len;
    let blocks_end = match disk_type {
        DiskType::Fixed => bat_end + u64::from(geometry.blocks) * geometry.block_size,
        DiskType::Dynamic | DiskType::Differencing => bat_end,
    };
    let reserved = match disk_type {
        DiskType::Fixed => blocks_end,
        // Metadata, log and a small table: what is changed later must not find the disk full.
        _ if bat_len <= RESERVED_BAT => bat_end,
        _ => BAT_AT,
    };
    let mut steps = vec![Step::SetLen(blocks_end), Step::Allocate(reserved)];
    steps.push(write("the file identifier", 0, FileIdentifier::new(CREATOR).as_bytes()));
    let items = metadata::write_items(&metadata);
    let (table, items) = items.split_at(METADATA_TABLE_LEN);
    let used = table.len() - table.iter().rev().take_while(|byte| **byte == 0).count();
    steps.push(write("the metadata table", METADATA_AT, table.get(..used).unwrap_or(table)));
    steps.push(write("the metadata items", METADATA_AT + METADATA_TABLE_LEN as u64, items));
    if disk_type == DiskType::Fixed {
        steps.extend(full_table(&geometry, bat_end));
    }
    let bat_length = u32::try_from(bat_len).map_err(|_| CreateError::TooLarge(options.size))?;
    let regions = region::table((METADATA_AT, METADATA_LEN), (BAT_AT, bat_length));
    for at in REGION_TABLES_AT {
        steps.push(write("a region table", at, &regions));
    }
    let mut header = Header::new(options.file_write_guid, options.data_write_guid, LOG_AT, LOG_LEN);
    for (sequence, at) in (1..).zip(HEADERS_AT) {
        header.sequence.set(sequence);
        steps.push(write("a header", at, &header.sealed()));
    }
    steps.push(Step::Flush);
    Ok(CreatePlan { disk_type, file_len: blocks_end, steps })
}

/// Checks what was asked for; the block size.
fn check(options: &CreateOptions) -> Result<u32, CreateError> {
    for size in [options.logical_sector, options.physical_sector] {
        if size != 512 && size != 4096 {
            return Err(CreateError::SectorSize(size));
        }
    }
    let (size, sector) = (options.size, options.logical_sector);
    if size == 0 || !size.is_multiple_of(u64::from(sector)) {
        return Err(CreateError::UnalignedSize { size, sector });
    }
    if size > MAX_SIZE {
        return Err(CreateError::TooLarge(size));
    }
    let block_size = options.block_size.unwrap_or_else(|| default_block_size(&options.kind, size));
    if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) {
        return Err(CreateError::BlockSize(block_size));
    }
    if options.file_write_guid.is_nil() || options.data_write_guid.is_nil() || options.disk_id.is_nil() {
        return Err(CreateError::Ids);
    }
    if let CreateKind::Differencing(locator) = &options.kind {
        if locator.linkage.is_nil() {
            return Err(CreateError::Ids);
        }
        let len = locator.to_bytes().len();
        if len > MAX_STORED_LOCATOR {
            return Err(CreateError::PathTooLong(locator.too_long().unwrap_or(len)));
        }
    }
    Ok(block_size)
}

/// The table of a fixed disk: every block in its place, one after the other.
fn full_table(geometry: &Geometry, first: u64) -> Vec<Step> {
    const PART: u64 = MIB / 8;
    let entries = geometry.entries();
    let part = |from: u64| {
        let bytes = (from..entries.min(from + PART)).flat_map(|index| match geometry.slot(index) {
            Some(Slot::Block(block)) => {
                Entry::at(State::Full, first + u64::from(block) * geometry.block_size).to_bytes()
            }
            _ => [0; 8],
        });
        Step::Write {
            what: format!("the block allocation table from entry {from} on"),
            offset: BAT_AT + from * 8,
            content: Content::Bytes(bytes.collect()),
        }
    };
    (0..entries).step_by(usize::try_from(PART).unwrap_or(1)).map(part).collect()
}

fn write(what: &str, offset: u64, bytes: &[u8]) -> Step {
    Step::Write { what: what.to_owned(), offset, content: Content::Bytes(bytes.to_vec()) }
}

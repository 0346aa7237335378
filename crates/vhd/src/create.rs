//! Plans for new files.

use std::fmt;

use thiserror::Error;
use uuid::Uuid;
use zerocopy::{
    IntoBytes,
    big_endian::{U16, U32, U64},
};

use crate::{
    Storage, VhdTime,
    format::{
        DEFAULT_BLOCK_SIZE, MAX_BLOCK_SIZE, MAX_SIZE, MIN_BLOCK_SIZE, SECTOR, align_up,
        bat::{Blocks, DATA_ALIGN},
        footer::{DiskType, FOOTER_LEN, Footer},
        header::{HEADER_LEN, Header, NAME_UNITS},
        locator::{LocatorEntry, LocatorKind, MAX_LOCATOR_LEN, encode_utf16le},
    },
    plan::{self, Content, PlanError, Step},
};

/// Where the table of a dynamic disk is: right behind copy and header, as everywhere.
const DYNAMIC_TABLE_AT: u64 = (FOOTER_LEN + HEADER_LEN) as u64;
/// Where the first locator of a differencing disk is, as Windows places it: absolute path, table, relative path.
const ABSOLUTE_AT: u64 = 0x1000;
/// Bytes that Windows reserves for the relative path.
const RELATIVE_SPACE: u64 = 64 << 10;

/// What to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Virtual size in bytes; a multiple of 512, at most 2040 GiB.
    pub size: u64,
    /// Kind of disk.
    pub kind: CreateKind,
    /// Identity of the disk.
    pub unique_id: Uuid,
    /// Time of creation.
    pub time_stamp: VhdTime,
}

/// Kinds of disk and what they need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateKind {
    /// All space at once.
    Fixed,
    /// Grows.
    Dynamic {
        /// Bytes in a block: a power of two, 512 KiB–64 MiB.
        block_size: u32,
    },
    /// Holds what differs from a parent.
    Differencing {
        /// Bytes in a block: a power of two, 512 KiB–64 MiB.
        block_size: u32,
        /// The parent.
        parent: ParentSpec,
    },
}

impl CreateKind {
    /// A dynamic disk with blocks of 2 MiB.
    #[must_use]
    pub fn dynamic() -> Self {
        Self::Dynamic { block_size: DEFAULT_BLOCK_SIZE }
    }

    /// A differencing disk with blocks of 2 MiB.
    #[must_use]
    pub fn differencing(parent: ParentSpec) -> Self {
        Self::Differencing { block_size: DEFAULT_BLOCK_SIZE, parent }
    }
}

/// How a differencing disk refers to its parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentSpec {
    /// The parent's unique id.
    pub unique_id: Uuid,
    /// The parent's modification time, or 0 like Windows 10: a time that differs only makes warnings.
    pub time_stamp: VhdTime,
    /// "Parent Unicode Name". Windows writes the full path; if it is too long for the field, the file name is kept.
    pub name: String,
    /// Absolute path (`W2ku`), if it should be kept.
    pub absolute: Option<String>,
    /// Path from the folder of the child (`W2ru`), if it should be kept; see [`relative_text`].
    pub relative: Option<String>,
}

/// Why such a disk cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CreateError {
    /// Zero or not whole sectors.
    #[error("the size {0} is not a multiple of 512 bytes above zero")]
    UnalignedSize(u64),
    /// Past the limit.
    #[error("the size {0} is more than a VHD can hold (2040 GiB, {MAX_SIZE} bytes); make it smaller, or raw")]
    TooLarge(u64),
    /// Not usable.
    #[error("the block size {0} is not a power of two between 512 KiB and 64 MiB")]
    BlockSize(u32),
    /// A conversion writes a whole disk.
    #[error("a differencing disk cannot be the target of a conversion: create it and write to it")]
    DifferencingTarget,
    /// Does not fit.
    #[error("the parent's path is too long to be stored ({0} bytes in UTF-16, at most 65536)")]
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
        writeln!(f, "make a {} disk in a file of {} bytes:", self.disk_type, self.file_len)?;
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

/// Plans a new disk.
///
/// # Errors
/// If a size is out of range or a path too long.
pub fn plan(options: &CreateOptions) -> Result<CreatePlan, CreateError> {
    check_size(options.size)?;
    let footer = |kind| Footer::new(kind, options.size, *options.unique_id.as_bytes(), options.time_stamp);
    match &options.kind {
        CreateKind::Fixed => Ok(fixed(options.size, &footer(DiskType::Fixed))),
        CreateKind::Dynamic { block_size } => {
            let blocks = check_blocks(options.size, *block_size)?;
            let header = Header::new(DYNAMIC_TABLE_AT, blocks.count, *block_size).sealed();
            Ok(sparse(DiskType::Dynamic, &footer(DiskType::Dynamic), &header, &[], 0))
        }
        CreateKind::Differencing { block_size, parent } => {
            let blocks = check_blocks(options.size, *block_size)?;
            differencing(&footer(DiskType::Differencing), blocks, *block_size, parent)
        }
    }
}

fn check_size(size: u64) -> Result<(), CreateError> {
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(CreateError::UnalignedSize(size));
    }
    if size > MAX_SIZE {
        return Err(CreateError::TooLarge(size));
    }
    Ok(())
}

fn check_blocks(size: u64, block_size: u32) -> Result<Blocks, CreateError> {
    if !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) {
        return Err(CreateError::BlockSize(block_size));
    }
    Blocks::new(size, block_size).map_err(|_| CreateError::BlockSize(block_size))
}

fn fixed(size: u64, footer: &Footer) -> CreatePlan {
    let file_len = size + FOOTER_LEN as u64;
    let steps = vec![
        Step::SetLen(file_len),
        Step::Allocate(file_len),
        write("the footer", size, footer.as_bytes()),
        Step::Flush,
    ];
    CreatePlan { disk_type: DiskType::Fixed, file_len, steps }
}

/// A locator's text and its place.
struct Placed {
    name: &'static str,
    offset: u64,
    bytes: Vec<u8>,
}

fn differencing(
    footer: &Footer,
    blocks: Blocks,
    block_size: u32,
    parent: &ParentSpec,
) -> Result<CreatePlan, CreateError> {
    let absolute = parent.absolute.as_deref().map(encode_utf16le).unwrap_or_default();
    let relative =
        parent.relative.as_deref().map(relative_text).as_deref().map(encode_utf16le).unwrap_or_default();
    for text in [&absolute, &relative] {
        if text.len() > MAX_LOCATOR_LEN as usize {
            return Err(CreateError::PathTooLong(text.len()));
        }
    }
    let page = |len: u64| align_up(len, DATA_ALIGN).unwrap_or(u64::MAX).max(DATA_ALIGN);
    let absolute_space = page(absolute.len() as u64);
    let table_at = ABSOLUTE_AT + absolute_space;
    let relative_at = table_at + page(Blocks::table_len(blocks.count));

    let mut header = Header::new(table_at, blocks.count, block_size);
    header.parent_unique_id = *parent.unique_id.as_bytes();
    header.parent_time_stamp = U32::new(parent.time_stamp.0);
    for (to, from) in header.parent_name.iter_mut().zip(name_units(&parent.name)) {
        *to = U16::new(from);
    }
    let mut placed = Vec::new();
    let mut entries = Vec::new();
    // Slots in the order of Windows.
    if !absolute.is_empty() {
        entries.push(entry(LocatorKind::W2KU, absolute_space, absolute.len(), ABSOLUTE_AT));
        placed.push(Placed { name: "the absolute parent locator", offset: ABSOLUTE_AT, bytes: absolute });
    }
    if !relative.is_empty() {
        entries.push(entry(LocatorKind::W2RU, RELATIVE_SPACE, relative.len(), relative_at));
        placed.push(Placed { name: "the relative parent locator", offset: relative_at, bytes: relative });
    }
    for (slot, entry) in header.locators.iter_mut().zip(entries) {
        *slot = entry;
    }
    let end = relative_at + RELATIVE_SPACE;
    Ok(sparse(DiskType::Differencing, footer, &header.sealed(), &placed, end))
}

fn entry(code: [u8; 4], space: u64, len: usize, offset: u64) -> LocatorEntry {
    LocatorEntry {
        code,
        // Bytes, as Windows and Xen write and expect it.
        data_space: U32::new(u32::try_from(space).unwrap_or(u32::MAX)),
        data_length: U32::new(u32::try_from(len).unwrap_or(u32::MAX)),
        reserved: U32::new(0),
        data_offset: U64::new(offset),
    }
}

/// A relative path as Windows writes it: back-slashes, and `.\` in front of a name. A path with back-slashes in its names
/// cannot be written so and keeps its slashes, with `./` in front; one that is in Windows' form already stays.
#[must_use]
pub fn relative_text(path: &str) -> String {
    let windows = path.starts_with(".\\") || path.starts_with("..\\");
    let native = path.starts_with("./") || path.starts_with("../");
    match (path.contains('\\'), windows, native) {
        (true, true, _) | (true, _, true) => path.to_owned(),
        (true, false, false) => format!("./{path}"),
        (false, _, true) => path.replace('/', "\\"),
        (false, _, false) => format!(".\\{}", path.replace('/', "\\")),
    }
}

/// What of the name goes into the header: all of it, or the file name, or its beginning.
pub(crate) fn name_units(name: &str) -> Vec<u16> {
    let fits = |text: &str| text.encode_utf16().count() < NAME_UNITS;
    let kept = if fits(name) { name } else { name.rsplit(['/', '\\']).next().unwrap_or(name) };
    kept.encode_utf16().take(NAME_UNITS - 1).collect()
}

fn sparse(
    disk_type: DiskType,
    footer: &Footer,
    header: &Header,
    locators: &[Placed],
    end_of_locators: u64,
) -> CreatePlan {
    let table_at = header.table_offset.get();
    let table_len = Blocks::table_len(header.max_table_entries.get());
    let footer_at = (table_at + table_len).max(end_of_locators);
    let file_len = footer_at + FOOTER_LEN as u64;
    let mut steps = vec![
        Step::SetLen(file_len),
        write("the copy of the footer", 0, footer.as_bytes()),
        write("the header", FOOTER_LEN as u64, header.as_bytes()),
        Step::Write {
            what: "the block allocation table".to_owned(),
            offset: table_at,
            content: Content::Fill { byte: 0xff, len: table_len },
        },
    ];
    steps.extend(locators.iter().map(|text| write(text.name, text.offset, &text.bytes)));
    steps.push(write("the footer", footer_at, footer.as_bytes()));
    steps.push(Step::Flush);
    CreatePlan { disk_type, file_len, steps }
}

fn write(what: &str, offset: u64, bytes: &[u8]) -> Step {
    Step::Write { what: what.to_owned(), offset, content: Content::Bytes(bytes.to_vec()) }
}

//! Plans for writing a whole disk into a new file, laid out in order. The caller moves the bytes.

use std::{fmt, ops::Range};

use zerocopy::IntoBytes;

use crate::{
    create::{self, CreateError, CreateKind, CreateOptions},
    format::{
        SECTOR,
        bat::{ABSENT, Blocks},
        footer::{DiskType, FOOTER_LEN, Footer},
        header::{HEADER_LEN, Header},
    },
    plan::{Content, Step},
};

/// What the new file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A raw image of that size.
    Raw {
        /// Bytes.
        size: u64,
    },
    /// A fixed or dynamic disk.
    Vhd(CreateOptions),
}

/// Bytes to copy from the old disk to the new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRange {
    /// Offset in the disk.
    pub disk_offset: u64,
    /// Offset in the new file.
    pub file_offset: u64,
    /// Bytes.
    pub len: u64,
}

/// How to make the new file: `before`, then the copies in any order, then `after`. Until `after` is done the file is no
/// valid disk, so an interrupted conversion cannot be taken for a finished one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertPlan {
    /// Length of the new file.
    pub file_len: u64,
    /// First steps, on an empty file.
    pub before: Vec<Step>,
    /// What to copy. Zeros may be left out: the new file reads as zeros there.
    pub copies: Vec<CopyRange>,
    /// Last steps.
    pub after: Vec<Step>,
}

impl fmt::Display for ConvertPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: u64 = self.copies.iter().map(|copy| copy.len).sum();
        writeln!(f, "make a file of {} bytes:", self.file_len)?;
        self.before.iter().try_for_each(|step| writeln!(f, "  {step}"))?;
        writeln!(f, "  copy {bytes} bytes in {} ranges", self.copies.len())?;
        self.after.iter().try_for_each(|step| writeln!(f, "  {step}"))
    }
}

/// Plans a conversion. `data` are the ranges of the old disk that may hold something else than zeros: ascending, not
/// overlapping, of any alignment; what lies behind the size of the target is left out.
///
/// # Errors
/// If the target cannot be made.
pub fn plan(target: &Target, data: &[Range<u64>]) -> Result<ConvertPlan, CreateError> {
    match target {
        Target::Raw { size } => Ok(ConvertPlan {
            file_len: *size,
            before: vec![Step::SetLen(*size)],
            copies: straight(data, *size),
            after: vec![Step::Flush],
        }),
        Target::Vhd(options) => {
            let created = create::plan(options)?;
            match &options.kind {
                CreateKind::Fixed => Ok(fixed(options, created.file_len, data)),
                CreateKind::Dynamic { block_size } => dynamic(options, *block_size, data),
                CreateKind::Differencing { .. } => Err(CreateError::DifferencingTarget),
            }
        }
    }
}

fn straight(data: &[Range<u64>], size: u64) -> Vec<CopyRange> {
    clipped(data, size)
        .map(|range| CopyRange {
            disk_offset: range.start,
            file_offset: range.start,
            len: range.end - range.start,
        })
        .collect()
}

fn clipped(data: &[Range<u64>], size: u64) -> impl Iterator<Item = Range<u64>> {
    data.iter()
        .map(move |range| range.start.min(size)..range.end.min(size))
        .filter(|range| range.start < range.end)
}

fn footer(options: &CreateOptions, kind: DiskType) -> Footer {
    Footer::new(kind, options.size, *options.unique_id.as_bytes(), options.time_stamp)
}

fn write(what: &str, offset: u64, bytes: &[u8]) -> Step {
    Step::Write { what: what.to_owned(), offset, content: Content::Bytes(bytes.to_vec()) }
}

fn fixed(options: &CreateOptions, file_len: u64, data: &[Range<u64>]) -> ConvertPlan {
    let footer = footer(options, DiskType::Fixed);
    ConvertPlan {
        file_len,
        before: vec![Step::SetLen(file_len), Step::Allocate(file_len)],
        copies: straight(data, options.size),
        after: vec![write("the footer", options.size, footer.as_bytes()), Step::Flush],
    }
}

fn dynamic(
    options: &CreateOptions,
    block_size: u32,
    data: &[Range<u64>],
) -> Result<ConvertPlan, CreateError> {
    let blocks = Blocks::new(options.size, block_size).map_err(|_| CreateError::BlockSize(block_size))?;
    let table_at = (FOOTER_LEN + HEADER_LEN) as u64;
    let mut table = vec![ABSENT; blocks.count as usize];
    let mut free = table_at + Blocks::table_len(blocks.count);
    let mut bitmaps = Vec::new();
    let mut copies: Vec<CopyRange> = Vec::new();
    for range in clipped(data, options.size) {
        let mut disk_offset = range.start;
        for part in blocks.parts(range.start, range.end - range.start) {
            let Some(entry) = table.get_mut(part.block as usize) else { continue };
            if *entry == ABSENT {
                let start = blocks.place(free).ok_or(CreateError::TooLarge(options.size))?;
                *entry = u32::try_from(start / SECTOR).map_err(|_| CreateError::TooLarge(options.size))?;
                free = start + blocks.stored_len();
                bitmaps.push(Step::Write {
                    what: format!("the bitmap of block {}", part.block),
                    offset: start,
                    content: Content::Fill { byte: 0xff, len: blocks.bitmap_len },
                });
            }
            let file_offset = u64::from(*entry) * SECTOR + blocks.bitmap_len + part.within;
            copies.push(CopyRange { disk_offset, file_offset, len: part.len });
            disk_offset += part.len;
        }
    }
    let mut table_bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    table_bytes.resize(table_bytes.len().next_multiple_of(FOOTER_LEN), 0xff);
    let footer = footer(options, DiskType::Dynamic);
    let header = Header::new(table_at, blocks.count, block_size).sealed();
    let file_len = free + FOOTER_LEN as u64;
    let mut before =
        vec![Step::SetLen(file_len), write("the block allocation table", table_at, &table_bytes)];
    before.extend(bitmaps);
    let after = vec![
        write("the header", FOOTER_LEN as u64, header.as_bytes()),
        write("the footer", free, footer.as_bytes()),
        Step::Flush,
        write("the copy of the footer", 0, footer.as_bytes()),
        Step::Flush,
    ];
    Ok(ConvertPlan { file_len, before, copies, after })
}

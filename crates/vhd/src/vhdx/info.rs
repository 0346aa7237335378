//! What an open file says about itself.

use std::fmt;

use uuid::Uuid;

use super::locator::Locator;
use crate::DiskType;

/// Everything about a disk but its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Kind of disk.
    pub disk_type: DiskType,
    /// Virtual size in bytes, a multiple of the logical sector size.
    pub size: u64,
    /// Bytes in a block.
    pub block_size: u32,
    /// Number of blocks.
    pub blocks: u32,
    /// Blocks that were in the file when it was opened.
    pub blocks_at_open: u32,
    /// Unit of addresses in bytes: 512 or 4096.
    pub logical_sector: u32,
    /// Sector size that the guest is told: 512 or 4096.
    pub physical_sector: u32,
    /// Identity of the disk towards its user. Checkpoints of one disk have the same.
    pub disk_id: Uuid,
    /// Identity of the content as of the opening: children name their parent by it. It changes with the first write after
    /// an open; [`super::Image::data_write_guid`] tells the one of now.
    pub data_write_guid: Uuid,
    /// Identity of the file's bytes as of the opening.
    pub file_write_guid: Uuid,
    /// The program that made the file.
    pub creator: String,
    /// Length of the file when it was opened, its log replayed.
    pub file_len: u64,
    /// Bytes of the log.
    pub log_len: u32,
    /// Where the parent is; only in a differencing disk.
    pub parent: Option<Locator>,
    /// What is not as it should be.
    pub warnings: Vec<Warning>,
}

/// Something that is not as it should be but does not keep the disk from being used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// One of the headers is damaged. The next write heals it.
    HeaderBad {
        /// Where it is, in bytes.
        offset: u64,
        /// What is wrong with it.
        error: String,
    },
    /// One of the region tables is damaged or differs from the one that was used.
    RegionTableBad {
        /// Where it is, in bytes.
        offset: u64,
        /// What is wrong with it.
        error: String,
    },
    /// The disk was not closed; its log was replayed.
    LogReplayed {
        /// Entries.
        entries: usize,
        /// Pages of metadata that they change.
        pages: usize,
        /// Whether the file was brought up to date, and not only what is in memory.
        written: bool,
    },
    /// Blocks in state "zero" have an offset, for which Hyper-V refuses the disk.
    ZeroBlocksWithOffset {
        /// How many.
        count: u32,
        /// One of them.
        first: u32,
    },
    /// The parent locator names no path.
    NoParentPath,
    /// Writes that an earlier process acknowledged but could not flush were taken over.
    WritesAdopted {
        /// Blocks they are in.
        blocks: u32,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderBad { offset, error } => {
                write!(f, "the header at offset {offset} is damaged ({error}); the other one was used")
            }
            Self::RegionTableBad { offset, error } => {
                write!(f, "the region table at offset {offset} is not used: {error}")
            }
            Self::LogReplayed { entries, pages, written } => {
                let how = if *written { "written into the file" } else { "held in memory" };
                write!(f, "the disk was not closed; {entries} log entries with {pages} pages were {how}")
            }
            Self::ZeroBlocksWithOffset { count, first } => write!(
                f,
                "{count} blocks in state \"zero\" (the first is block {first}) have an offset; Hyper-V refuses such a disk"
            ),
            Self::NoParentPath => {
                f.write_str("the disk stores no path to its parent, so the parent has to be named")
            }
            Self::WritesAdopted { blocks } => {
                write!(f, "writes of a process that died were taken over in {blocks} blocks")
            }
        }
    }
}

//! What an open file says about itself.

use std::fmt;

use uuid::Uuid;

use crate::format::{
    footer::{DiskType, VhdTime},
    geometry::{Chs, SizeRule},
    locator::LocatorKind,
};

/// Everything about a disk but its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Kind of disk.
    pub disk_type: DiskType,
    /// Virtual size in bytes, a multiple of 512.
    pub size: u64,
    /// The rule that gave the size.
    pub size_rule: SizeRule,
    /// Size field of the footer.
    pub current_size: u64,
    /// Size when the disk was made, by its footer.
    pub original_size: u64,
    /// Geometry in the footer.
    pub geometry: Chs,
    /// Bytes in a block; 0 for a fixed disk.
    pub block_size: u32,
    /// Number of blocks; 0 for a fixed disk.
    pub blocks: u32,
    /// Blocks that were in the file when it was opened; 0 for a fixed disk.
    pub blocks_at_open: u32,
    /// Four characters that name the program that made the file.
    pub creator: [u8; 4],
    /// Its version, major in the upper half.
    pub creator_version: u32,
    /// The host system it ran on.
    pub creator_os: [u8; 4],
    /// Identity of the disk.
    pub unique_id: Uuid,
    /// When the disk was made.
    pub time_stamp: VhdTime,
    /// A virtual machine was saved while it used the disk: it must not be compacted, resized or merged.
    pub saved_state: bool,
    /// Marked as temporary.
    pub temporary: bool,
    /// Length of the file when it was opened.
    pub file_len: u64,
    /// First byte behind all metadata; 0 for a fixed disk.
    pub end_of_metadata: u64,
    /// Block data lies at multiples of 4096 in the file (of the blocks that were there at open).
    pub aligned_4k: bool,
    /// Where the parent is; only in a differencing disk.
    pub parent: Option<ParentLink>,
    /// What is not as it should be.
    pub warnings: Vec<Warning>,
}

impl ImageInfo {
    /// The creator in printable characters.
    #[must_use]
    pub fn creator_text(&self) -> String {
        String::from_utf8_lossy(&self.creator).trim_end_matches([' ', '\0']).to_owned()
    }
}

/// A differencing disk's reference to its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLink {
    /// The parent's unique id. Its identity: has to match.
    pub unique_id: Uuid,
    /// The parent's modification time when the child was made; 0 if not recorded. A difference is worth a warning only.
    pub time_stamp: VhdTime,
    /// "Parent Unicode Name": a file name by the specification, a full path as Windows writes it.
    pub unicode_name: String,
    /// The parent locators in the order of their slots.
    pub locators: Vec<ParentLocator>,
}

impl ParentLink {
    /// The text of the first locator of that kind.
    #[must_use]
    pub fn locator(&self, kind: LocatorKind) -> Option<&str> {
        self.locators.iter().find(|l| l.kind == kind).and_then(|l| l.path.as_deref())
    }
}

/// One parent locator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLocator {
    /// Slot in the header, 0–7.
    pub slot: usize,
    /// What it holds.
    pub kind: LocatorKind,
    /// Its text; `None` if it has none or it could not be read.
    pub path: Option<String>,
    /// Where the text is in the file.
    pub offset: u64,
    /// Bytes reserved there.
    pub reserved: u64,
}

/// Something that is not as it should be but does not keep the disk from being used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The footer at the end is missing or damaged; the copy at the start was used.
    TrailingFooterBad {
        /// Whether a new one was written.
        repaired: bool,
    },
    /// The footer at the end belongs to another disk; the copy at the start was used.
    TrailingFooterForeign {
        /// Whether the right one was written.
        repaired: bool,
    },
    /// The copy at the start is missing or damaged.
    FooterCopyBad,
    /// Both are good but differ; the one at the end was used.
    FooterCopyDiffers,
    /// Table entries point behind the end of the file, where nothing can be; they are taken as absent.
    BlocksBeyondEnd {
        /// How many.
        count: u32,
        /// One of them.
        first: u32,
        /// Whether the table was corrected.
        repaired: bool,
    },
    /// The size field is not a multiple of 512 and was rounded down.
    SizeRounded {
        /// As stored.
        stored: u64,
    },
    /// A parent locator points outside of the file or into other structures, or is too long.
    BadLocator {
        /// Its slot, 0–7.
        slot: usize,
    },
    /// Writes that an earlier process acknowledged but could not flush were taken over.
    WritesAdopted {
        /// Blocks they are in.
        blocks: u32,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cured = |repaired: &bool| {
            if *repaired { "; repaired" } else { "; `backstay disk check --repair` writes it again" }
        };
        match self {
            Self::TrailingFooterBad { repaired } => {
                write!(
                    f,
                    "the footer at the end of the file is missing or damaged, its copy at the start was used{}",
                    cured(repaired)
                )
            }
            Self::TrailingFooterForeign { repaired } => {
                write!(
                    f,
                    "the footer at the end of the file is another disk's, the copy at the start was used{}",
                    cured(repaired)
                )
            }
            Self::FooterCopyBad => {
                f.write_str("the copy of the footer at the start of the file is missing or damaged")
            }
            Self::FooterCopyDiffers => {
                f.write_str("the footer and its copy at the start of the file differ; the footer was used")
            }
            Self::BlocksBeyondEnd { count, first, repaired } => write!(
                f,
                "{count} table entries (the first is block {first}) point behind the end of the file and are taken as absent{}",
                if *repaired { "; the table was corrected" } else { "" }
            ),
            Self::SizeRounded { stored } => {
                write!(f, "the size field {stored} is not a multiple of 512 and was rounded down")
            }
            Self::BadLocator { slot } => {
                write!(
                    f,
                    "parent locator {slot} points outside of the file or into other structures, or is too long"
                )
            }
            Self::WritesAdopted { blocks } => {
                write!(f, "writes of a process that died were taken over in {blocks} blocks")
            }
        }
    }
}

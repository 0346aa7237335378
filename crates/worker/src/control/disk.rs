//! What is said of disks.

use backstay_model::{DriveSlot, IoLimit};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A disk's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimit {
    /// Which disk.
    pub slot: DriveSlot,
    /// Its limit from now on.
    pub limit: IoLimit,
}

/// How far the move of a disk is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "stage")]
pub enum MoveOutcome {
    /// This worker never heard of it: the tops of its disks tell whether it came about.
    Unknown,
    /// It goes on.
    Running {
        /// Bytes of the old file that were passed.
        done: u64,
        /// Bytes that it has.
        total: u64,
    },
    /// The disk is in the new file; the old one is nobody's.
    Complete,
    /// The disk is where it was.
    Failed {
        /// Why.
        message: String,
    },
}

/// How far the compaction of a disk is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "stage")]
pub enum CompactOutcome {
    /// This worker never heard of it.
    Unknown,
    /// It goes on.
    Running {
        /// Blocks that are looked at; 0 before that is known.
        blocks_total: u64,
        /// Those of them that were.
        blocks_done: u64,
        /// Bytes copied so far.
        bytes_moved: u64,
    },
    /// The file is as small as its content allows.
    Complete {
        /// Blocks that held nothing and lost their places.
        dropped_blocks: u64,
        /// Blocks that moved to the front.
        moved_blocks: u64,
        /// Bytes copied for that.
        bytes_moved: u64,
        /// Length of the file before.
        old_len: u64,
        /// Length of the file now.
        new_len: u64,
        /// Bytes of the volume that the file gave back.
        freed: u64,
    },
    /// It was cancelled; what is done stays done, and another one goes on from there.
    Stopped,
    /// It failed; the disk reads as before.
    Failed {
        /// Why.
        message: String,
        /// Whether trying again may help.
        kind: FailureKind,
    },
}

/// What kind of failure ended work on files, for those who decide whether to try again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Somebody has a file, or other work on the disk goes on.
    InUse,
    /// A volume is full.
    NoSpace,
    /// A file is not what it should be.
    Damaged,
    /// It is against a rule, and will be the next time too.
    Refused,
    /// Storage that fails, or anything else that may pass; also what this version does not know.
    #[default]
    #[serde(other)]
    Trouble,
}

/// One disk of a running machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Where it is attached.
    pub slot: DriveSlot,
    /// Bytes the guest sees.
    pub size: u64,
    /// Files of the chain, top first.
    pub chain: Vec<PathBuf>,
    /// Requests and bytes since the worker started.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// How much the guest may ask of it.
    #[serde(default)]
    pub limit: IoLimit,
}

/// A part of a disk's map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMap {
    /// Bytes the guest sees.
    pub size: u64,
    /// Files of the chain, top first.
    pub chain: Vec<PathBuf>,
    /// In order and without gaps.
    pub ranges: Vec<MapRange>,
}

/// Where a range of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRange {
    /// Offset in the disk, in bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// How it is kept.
    pub kind: MapKind,
    /// Which file of the chain, 0 is the top; for `data` and `hole`.
    #[serde(default)]
    pub depth: Option<usize>,
    /// Offset in that file, in bytes.
    #[serde(default)]
    pub file_offset: Option<u64>,
}

/// How a range of a disk is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MapKind {
    /// In a file.
    Data,
    /// It has a place in a file but takes no space, and reads as zeros.
    Hole,
    /// In no file: it reads as zeros.
    Zero,
    /// In a parent that was not asked about.
    Parent,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCheck {
    /// The disk can be used.
    pub usable: bool,
    /// Blocks in the top file.
    pub blocks: u32,
    /// Bytes of the file that nothing refers to.
    pub unused_bytes: u64,
    /// Worst first.
    pub findings: Vec<DiskFinding>,
}

/// One finding of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFinding {
    /// `note`, `warning` or `error`.
    pub severity: String,
    /// The rule that is broken, a short name.
    pub rule: String,
    /// A repair loses nothing.
    pub repairable: bool,
    /// In words.
    pub text: String,
}

//! Disk files as the daemon sees them.

use crate::schema;
use backstay_model::{DriveSlot, IoLimit, VmId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use utoipa::{IntoParams, ToSchema};

/// One virtual hard disk of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmDisk {
    /// Where it is attached.
    #[schema(value_type = schema::DriveSlot)]
    pub slot: DriveSlot,
    /// Top file of its chain.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Bytes the guest sees; none when the chain cannot be opened.
    pub size: Option<u64>,
    /// Files of the chain, top first.
    #[schema(value_type = Vec<String>)]
    pub chain: Vec<PathBuf>,
    /// Requests since the worker started; none while the machine is off.
    #[serde(default)]
    pub stats: Option<DiskStats>,
    /// Why the chain cannot be opened.
    #[serde(default)]
    pub error: Option<String>,
    /// How much the machine may ask of it; none: as much as it can.
    #[serde(default)]
    pub limit: Option<DiskLimit>,
}

/// How much a machine may ask of a disk, reads and writes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskLimit {
    /// Requests per second.
    #[serde(default)]
    pub iops: Option<u64>,
    /// Bytes per second.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
}

impl DiskLimit {
    /// As the API shows it; none where nothing is limited.
    #[must_use]
    pub fn shown(limit: IoLimit) -> Option<Self> {
        let IoLimit { iops, bytes_per_second } = limit;
        (!limit.is_unlimited()).then_some(Self { iops, bytes_per_second })
    }
}

impl From<DiskLimit> for IoLimit {
    fn from(limit: DiskLimit) -> Self {
        Self { iops: limit.iops, bytes_per_second: limit.bytes_per_second }
    }
}

/// Another limit for a disk; what is not given stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskLimitChange {
    /// Which disk.
    #[schema(value_type = schema::DriveSlot)]
    pub slot: DriveSlot,
    /// Requests per second, at least 10; 0: as many as it can.
    #[serde(default)]
    pub iops: Option<u64>,
    /// Bytes per second, at least 1,048,576; 0: as many as it can.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
}

impl DiskLimitChange {
    /// The limit after the change.
    #[must_use]
    pub fn apply(&self, limit: IoLimit) -> IoLimit {
        let changed = |to: Option<u64>, from| to.map_or(from, |to| (to > 0).then_some(to));
        IoLimit {
            iops: changed(self.iops, limit.iops),
            bytes_per_second: changed(self.bytes_per_second, limit.bytes_per_second),
        }
    }
}

/// Requests and bytes since the worker started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskStats {
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// Disks of a machine, in slot order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DiskList {
    /// The disks.
    pub items: Vec<VmDisk>,
}

/// Which file.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DiskQuery {
    /// Absolute path.
    #[param(value_type = String)]
    pub path: PathBuf,
}

/// A disk file: who holds it, and its chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DiskFile {
    /// The file.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Machines whose configuration or checkpoints refer to it (as a top or as a part of a chain).
    pub used_by: Vec<DiskHolder>,
    /// Bytes the guest sees.
    pub size: Option<u64>,
    /// Files of the chain, top first.
    pub chain: Vec<DiskLayer>,
    /// Why the chain cannot be opened.
    #[serde(default)]
    pub error: Option<String>,
}

/// One file of a chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DiskLayer {
    /// The file.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// `fixed`, `dynamic` or `differencing`.
    pub kind: String,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Length of the file in bytes.
    pub file_size: u64,
}

/// A disk that is to become larger while the machine that uses it is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskResize {
    /// Absolute path of the file that the machine writes to.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Bytes the guest is to see: a multiple of its sectors, not less than now.
    pub size: u64,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskResized {
    /// The file.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Bytes before.
    pub old_size: u64,
    /// Bytes now.
    pub size: u64,
    /// Why the guest does not see it before its next start; none: it has been told.
    #[serde(default)]
    pub unseen: Option<String>,
}

/// A disk whose file is to become smaller while the machine that uses it is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskCompact {
    /// Absolute path of the file that the machine writes to.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Most bytes moved per second; none: as fast as it goes.
    #[serde(default)]
    pub rate: Option<u64>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskCompacted {
    /// The file.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Blocks that held nothing and lost their places.
    pub dropped_blocks: u64,
    /// Blocks that moved to the front.
    pub moved_blocks: u64,
    /// Bytes copied for that.
    pub bytes_moved: u64,
    /// Length of the file in bytes before; what was done before an interruption counts as before.
    pub old_len: u64,
    /// Length of the file in bytes now.
    pub new_len: u64,
    /// Bytes that the volume got back.
    pub freed: u64,
}

/// Which part of a disk's map.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DiskMapQuery {
    /// Absolute path of the top file.
    #[param(value_type = String)]
    pub path: PathBuf,
    /// Only what the named file holds; the rest is `parent`.
    #[serde(default)]
    pub layer: bool,
    /// From here on, in bytes.
    #[serde(default)]
    pub offset: u64,
    /// At most so many ranges, 1–100000; 10000 unless given.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// Where the ranges of a disk are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskMap {
    /// Bytes the guest sees.
    pub size: u64,
    /// In order and without gaps.
    pub ranges: Vec<DiskRange>,
    /// The offset to ask for next; none at the end.
    pub next: Option<u64>,
}

/// A range of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskRange {
    /// Offset in the disk, in bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// `data`; `hole`: it has a place in a file but takes no space; `zero`: in no file; `parent`: in a parent that was not
    /// asked about.
    pub kind: String,
    /// Place in the chain of the file that holds it, 0 is the named one; for `data` and `hole`.
    pub depth: Option<usize>,
    /// That file.
    #[schema(value_type = Option<String>)]
    pub file: Option<PathBuf>,
    /// Offset in that file, in bytes.
    pub file_offset: Option<u64>,
}

/// What a check of a disk found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskCheck {
    /// The file.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// The disk can be used.
    pub usable: bool,
    /// Blocks in the file.
    pub blocks: u32,
    /// Bytes of the file that nothing refers to.
    pub unused_bytes: u64,
    /// Worst first.
    pub findings: Vec<DiskFinding>,
}

/// One finding of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// A machine that refers to a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskHolder {
    /// The machine.
    #[schema(value_type = Uuid)]
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// Where the file is used: `ide:0:0`, or the checkpoint's name.
    pub place: String,
    /// Whether the file is open now.
    pub open: bool,
    /// Whether its content is needed as it is now: it is a checkpoint's, or a parent of the top file.
    #[serde(default)]
    pub frozen: bool,
}

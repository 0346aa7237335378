//! Checkpoints.

use crate::schema;
use backstay_model::{CheckpointId, DriveSlot, MemoryMethod, TaskId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use utoipa::ToSchema;

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointInfo {
    /// Its GUID.
    #[schema(value_type = Uuid)]
    pub id: CheckpointId,
    /// Display name.
    pub name: String,
    /// Free text.
    pub notes: String,
    /// The checkpoint it was taken on top of.
    #[schema(value_type = Option<Uuid>)]
    pub parent: Option<CheckpointId>,
    /// When it was taken.
    #[schema(value_type = schema::Timestamp)]
    pub created: Timestamp,
    /// Whether memory was saved with it.
    pub has_memory: bool,
    /// How memory was captured.
    #[schema(value_type = Option<schema::MemoryMethod>)]
    pub method: Option<MemoryMethod>,
    /// Bytes of its memory file.
    pub memory_bytes: u64,
    /// Its disks at that instant.
    pub disks: Vec<CheckpointDiskInfo>,
    /// Bytes that its memory and its disks' files take on disk. Files below those are counted where they belong.
    #[serde(default)]
    pub bytes_on_disk: u64,
    /// What is wrong with it: files that are missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// One disk of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointDiskInfo {
    /// Where it was attached.
    #[schema(value_type = schema::DriveSlot)]
    pub slot: DriveSlot,
    /// The file that holds its content at that instant.
    #[schema(value_type = String)]
    pub file: PathBuf,
    /// Length of that file in bytes.
    pub file_size: u64,
}

/// A machine's checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointList {
    /// The checkpoints, oldest first.
    pub items: Vec<CheckpointInfo>,
    /// The checkpoint Now continues from: where `revert` goes.
    #[schema(value_type = Option<Uuid>)]
    pub now_parent: Option<CheckpointId>,
    /// The tree, line by line, ending in Now.
    pub tree: Vec<CheckpointLine>,
    /// Bytes that the files which Now writes to take on disk.
    #[serde(default)]
    pub now_bytes_on_disk: u64,
    /// The machine can have so many checkpoints.
    #[serde(default)]
    pub limit: u32,
    /// Files of deleted checkpoints that are still to be merged or deleted.
    #[serde(default)]
    pub merge_pending: Vec<PendingFile>,
    /// The task that does so now.
    #[serde(default)]
    #[schema(value_type = Option<Uuid>)]
    pub merge_task: Option<TaskId>,
    /// What deserves attention: long rows, old checkpoints, the limit.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A file of a deleted checkpoint that is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingFile {
    /// The file.
    #[schema(value_type = String)]
    pub file: PathBuf,
    /// Bytes it takes on disk.
    pub bytes_on_disk: u64,
}

/// One line of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointLine {
    /// Branch drawing in front of the name.
    pub prefix: String,
    /// The checkpoint; none is Now.
    #[schema(value_type = Option<Uuid>)]
    pub checkpoint: Option<CheckpointId>,
    /// Its name; `Now` for Now.
    pub name: String,
}

/// Take a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointCreate {
    /// Display name, 1–100 characters; without one, the machine's name and the time.
    #[serde(default)]
    pub name: Option<String>,
    /// Free text.
    #[serde(default)]
    pub notes: String,
}

/// Go to a checkpoint (`apply`), or to the latest one (`revert`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointApply {
    /// Take a checkpoint of Now first, so that nothing is lost. Unless given: `true` for `apply`, `false` for `revert`.
    #[serde(default)]
    pub checkpoint_first: Option<bool>,
    /// Bring back configuration and disks only; the machine stays off.
    #[serde(default)]
    pub without_memory: bool,
}

/// What a `checkpoint.create` task has to tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointResult {
    /// The new checkpoint.
    #[schema(value_type = Uuid)]
    pub checkpoint: CheckpointId,
    /// Its name.
    pub name: String,
    /// How long the guest stood still, in microseconds; 0 when it was off.
    pub pause_us: u64,
    /// From the request to the end, in microseconds.
    pub total_us: u64,
    /// Bytes of the memory file.
    pub memory_bytes: u64,
    /// How memory was captured; none when the machine was off.
    #[schema(value_type = Option<schema::MemoryMethod>)]
    pub method: Option<MemoryMethod>,
    /// Why that way.
    pub method_reason: String,
}

/// Change what a checkpoint is called.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointUpdate {
    /// New display name, 1–100 characters.
    #[serde(default)]
    pub name: Option<String>,
    /// New free text.
    #[serde(default)]
    pub notes: Option<String>,
}

/// How a checkpoint is deleted.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, utoipa::IntoParams,
)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct CheckpointDelete {
    /// Answer with the plan and do nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Also everything that hangs below it.
    #[serde(default)]
    pub subtree: bool,
    /// Merge at most so many bytes per second until all is merged; unless given, as fast as merges that are not finished.
    #[serde(default)]
    pub rate: Option<u64>,
}

/// What a `checkpoint.delete` task has to tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointDeleted {
    /// Names of the checkpoints that are gone.
    pub deleted: Vec<String>,
    /// The task that merges their files and gives back their space.
    #[schema(value_type = Option<Uuid>)]
    pub merge_task: Option<TaskId>,
}

/// Merge the files of deleted checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointMerge {
    /// At most so many bytes per second from now on; as fast as it goes unless given.
    #[serde(default)]
    pub rate: Option<u64>,
}

/// What a `checkpoint.merge` task has to tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MergeResult {
    /// Files that were merged into their parent.
    pub merged: u32,
    /// Files that were deleted, those that were merged included.
    pub deleted: u32,
    /// Bytes copied.
    pub bytes_moved: u64,
    /// Files of deleted checkpoints that stay for now.
    pub kept: Vec<KeptFile>,
}

/// A file of a deleted checkpoint that stays for now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeptFile {
    /// The file.
    #[schema(value_type = String)]
    pub file: PathBuf,
    /// Why.
    pub reason: String,
}

/// Write a checkpoint as a machine of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointExport {
    /// The new folder: absolute, must not exist or must be empty.
    #[schema(value_type = String)]
    pub folder: PathBuf,
    /// Leave out its memory: the machine then boots from its disks.
    #[serde(default)]
    pub without_memory: bool,
    /// Go on where sectors of a disk cannot be read: they become zeros, and the result lists them.
    #[serde(default)]
    pub skip_bad: bool,
}

/// A part of an exported disk that could not be read and is zeros in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnreadableRange {
    /// The disk that was written.
    #[schema(value_type = String)]
    pub disk: PathBuf,
    /// Offset in the disk, in bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The file that could not be read.
    #[schema(value_type = String)]
    pub file: PathBuf,
    /// Where in that file, in bytes; none: the tables that would tell cannot be read either.
    pub file_offset: Option<u64>,
}

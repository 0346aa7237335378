//! Checkpoints.

use crate::schema;
use backstay_model::{CheckpointId, DriveSlot, MemoryMethod};
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
    /// Take a checkpoint of Now first, so that nothing is lost.
    #[serde(default)]
    pub checkpoint_first: bool,
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

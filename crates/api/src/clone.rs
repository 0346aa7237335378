//! Clones and templates.

use backstay_model::CheckpointId;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use utoipa::ToSchema;

/// A machine made from another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmClone {
    /// Display name of the new machine, 1–100 characters.
    pub name: String,
    /// Differencing disks on the source's disks instead of copies. The source is a template or a checkpoint.
    #[serde(default)]
    pub linked: bool,
    /// As the source was at this checkpoint; as it is now unless given, which needs it off.
    #[serde(default)]
    #[schema(value_type = Option<Uuid>)]
    pub checkpoint: Option<CheckpointId>,
    /// Absolute path of the folder for the new machine; it is registered. The daemon's state folder unless given.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub folder: Option<PathBuf>,
}

/// Whether a machine is a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmTemplate {
    /// `true`: it is cloned, and never started or changed. `false`: a machine like any other again.
    pub template: bool,
}

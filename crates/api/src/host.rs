//! The host.

use crate::schema;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use utoipa::ToSchema;

/// What this host is and can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Host name.
    pub name: String,
    /// Version of Backstay.
    pub version: String,
    /// The daemon's process.
    pub daemon_pid: u32,
    /// When the daemon was started.
    #[schema(value_type = schema::Timestamp)]
    pub daemon_started: Timestamp,
    /// QEMU's executable.
    #[schema(value_type = String)]
    pub qemu: PathBuf,
    /// Its version, or none when it does not run; `qemu_reason` says why.
    pub qemu_version: Option<String>,
    /// Why QEMU's version is not known.
    #[serde(default)]
    pub qemu_reason: Option<String>,
    /// `kvm` or `tcg`: what `accel=auto` gives.
    pub accelerator: String,
    /// Why.
    pub accelerator_reason: String,
    /// Whether checkpoints of running machines can pause them for milliseconds only.
    pub background_snapshot: bool,
    /// Why, or why not.
    pub background_snapshot_reason: String,
    /// Processors of the host.
    pub cpus: u32,
    /// Memory of the host in bytes.
    pub memory_bytes: u64,
    /// Memory that could be given to machines now, in bytes.
    pub memory_available_bytes: u64,
    /// Memory of the machines that are on, in bytes.
    pub memory_assigned_bytes: u64,
    /// Where configurations, disks and checkpoints are kept.
    #[schema(value_type = String)]
    pub state_dir: PathBuf,
    /// Where sockets are.
    #[schema(value_type = String)]
    pub run_dir: PathBuf,
    /// Free bytes on the file system of `state_dir`.
    pub state_dir_free_bytes: u64,
    /// Machines by what they do: total number.
    pub vms: u32,
    /// Machines that are on.
    pub vms_active: u32,
    /// What deserves attention.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What the daemon logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogLevel {
    /// `error`, `warn`, `info`, `debug`, `trace`, or one for each part: `info,backstay_daemon::workers=debug`.
    pub level: String,
}

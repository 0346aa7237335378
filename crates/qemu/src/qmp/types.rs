//! Hand-written shapes of the few answers that are used. Unknown fields and words are kept out of the way, so that a
//! newer QEMU is no error.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// What QEMU says when a client connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Major, minor, micro.
    pub version: (u32, u32, u32),
    /// The distribution's addition, for example `Debian 1:10.0.2+ds-2`.
    pub package: String,
    /// Whether out-of-band commands are possible.
    pub oob: bool,
}

impl Greeting {
    /// `10.0.2`.
    #[must_use]
    pub fn version_text(&self) -> String {
        let (major, minor, micro) = self.version;
        format!("{major}.{minor}.{micro}")
    }
}

/// Something that QEMU tells by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct QmpEvent {
    /// `STOP`, `RESUME`, `SHUTDOWN`, `BLOCK_IO_ERROR` …
    pub name: String,
    /// Its fields.
    pub data: Value,
    /// QEMU's clock: microseconds since the Unix epoch; 0 if QEMU had no clock.
    pub at_unix_us: u64,
}

/// QEMU's run state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RunState {
    /// The guest executes.
    Running,
    /// Stopped by `stop` or loaded from a state saved while stopped.
    Paused,
    /// Started with `-S`, never ran.
    Prelaunch,
    /// Waiting for, or loading, a state.
    Inmigrate,
    /// Stopped after a state was saved.
    Postmigrate,
    /// In the last round of a live save.
    FinishMigrate,
    /// A disk request failed.
    IoError,
    /// The accelerator cannot continue.
    InternalError,
    /// The guest reported a panic.
    GuestPanicked,
    /// The guest is off, QEMU about to end.
    Shutdown,
    /// A word this version does not use.
    Other(String),
}

impl RunState {
    fn from_word(word: &str) -> Self {
        match word {
            "running" => Self::Running,
            "paused" => Self::Paused,
            "prelaunch" => Self::Prelaunch,
            "inmigrate" => Self::Inmigrate,
            "postmigrate" => Self::Postmigrate,
            "finish-migrate" => Self::FinishMigrate,
            "io-error" => Self::IoError,
            "internal-error" => Self::InternalError,
            "guest-panicked" => Self::GuestPanicked,
            "shutdown" => Self::Shutdown,
            other => Self::Other(other.to_owned()),
        }
    }

    /// QEMU's word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Prelaunch => "prelaunch",
            Self::Inmigrate => "inmigrate",
            Self::Postmigrate => "postmigrate",
            Self::FinishMigrate => "finish-migrate",
            Self::IoError => "io-error",
            Self::InternalError => "internal-error",
            Self::GuestPanicked => "guest-panicked",
            Self::Shutdown => "shutdown",
            Self::Other(word) => word,
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<'de> Deserialize<'de> for RunState {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_word(&String::deserialize(deserializer)?))
    }
}

/// Answer of `query-status`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StatusInfo {
    /// Whether processors execute.
    pub running: bool,
    /// Why not, or `running`.
    pub status: RunState,
}

/// Progress of a migration, a save or a background snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    /// None was started.
    #[default]
    None,
    /// Connecting, taking device state.
    Setup,
    /// Being cancelled.
    Cancelling,
    /// Cancelled.
    Cancelled,
    /// Memory is on its way.
    Active,
    /// The guest is stopped and its disks are flushed; waits for `migrate-continue`.
    PreSwitchover,
    /// Device state is on its way.
    Device,
    /// All is written.
    Completed,
    /// It failed; see the error text.
    Failed,
    /// A state this version does not use.
    #[serde(other)]
    Other,
}

impl MigrationStatus {
    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// Memory counters of `query-migrate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RamInfo {
    /// Bytes written.
    pub transferred: u64,
    /// Bytes to go.
    pub remaining: u64,
    /// Bytes of guest memory.
    pub total: u64,
    /// Pages written in full.
    pub normal: u64,
    /// Pages that were all one byte (usually zero).
    pub duplicate: u64,
}

/// Answer of `query-migrate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrateInfo {
    /// How far.
    pub status: MigrationStatus,
    /// Memory counters, once there are any.
    pub ram: Option<RamInfo>,
    /// Milliseconds the guest stood still, at the end.
    pub downtime: Option<u64>,
    /// Milliseconds in all, at the end.
    pub total_time: Option<u64>,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// Why it cannot start now.
    pub blocked_reasons: Vec<String>,
}

impl MigrateInfo {
    /// Whether the first page has been saved. In a background snapshot the device state is taken and writes are
    /// tracked from then on, so that `cont` is safe; before, QEMU would stop the guest again by itself.
    #[must_use]
    pub fn first_page_saved(&self) -> bool {
        self.status == MigrationStatus::Completed
            || self.ram.is_some_and(|ram| ram.normal + ram.duplicate > 0)
    }
}

/// A migration capability and whether it is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// `background-snapshot`, `mapped-ram`, `multifd`, `events` …
    pub capability: &'static str,
    /// On or off.
    pub state: bool,
}

/// Migration parameters; `None` leaves QEMU's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrateParameters {
    /// Bytes per second; 0 is unlimited (QEMU's own value is 128 MiB/s).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    /// Milliseconds the guest may stand still in the last round of a live save.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    /// Parallel channels with `multifd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_channels: Option<u8>,
}

/// One virtual processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuThread {
    /// 0, 1, 2 …
    pub cpu_index: u32,
    /// Its thread; the same for all where one thread runs them all.
    pub thread_id: u32,
}

/// One guest device of `query-block`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BlockDevice {
    /// Id or path of the device.
    #[serde(default)]
    pub qdev: String,
    /// `ok`, `failed` or `nospace` when the last stop was this device's.
    #[serde(rename = "io-status", default)]
    pub io_status: Option<String>,
    /// What is in it.
    #[serde(default)]
    pub inserted: Option<Value>,
}

//! Events: what happened, who did it, why, and what it was before and after.

use crate::schema;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// What an event or a task is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ObjectRef {
    /// What kind of thing.
    pub kind: ObjectKind,
    /// Its id, where it has one.
    #[serde(default)]
    pub id: Option<Uuid>,
    /// Its name at that time.
    pub name: String,
}

/// Kinds of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectKind {
    /// A virtual machine.
    Vm,
    /// The host and its daemon.
    Host,
}

impl ObjectKind {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Host => "host",
        }
    }
}

/// How much an event asks for attention.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// What was asked for, or what is as it should be.
    #[default]
    Info,
    /// Somebody should look at it when there is time.
    Warning,
    /// A guest stands still or has ended, or the host's hardware fails.
    Error,
}

impl Severity {
    /// Every severity, the mildest first.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Error];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One value that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// Which: `memory_mib`, `cpu.count`, `drives.scsi:0:1` …
    pub field: String,
    /// What it was; none: it did not exist.
    #[serde(default)]
    pub before: Option<String>,
    /// What it is now; none: it does not exist any more.
    #[serde(default)]
    pub after: Option<String>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number; numbers only grow.
    pub seq: u64,
    /// When it happened.
    #[schema(value_type = schema::Timestamp)]
    pub at: Timestamp,
    /// What it is about.
    pub object: ObjectRef,
    /// What happened: `vm.state`, `vm.created`, `checkpoint.created`, `worker.respawned` … `backstay explain` knows each.
    pub kind: String,
    /// How much it asks for attention.
    #[serde(default)]
    pub severity: Severity,
    /// Who did it: a user name, `guest`, or `backstay`.
    pub who: String,
    /// Why, for people.
    pub reason: String,
    /// What it was.
    #[serde(default)]
    pub before: Option<String>,
    /// What it is now.
    #[serde(default)]
    pub after: Option<String>,
    /// Every value that changed, where settings were changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// Events, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    /// The events.
    pub items: Vec<Event>,
    /// Pass as `after` to go on from here.
    pub next: u64,
}

/// Which events.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Only those of this machine (name or GUID).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Only those at or after this time (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub since: Option<Timestamp>,
    /// Only those before this time (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub until: Option<Timestamp>,
    /// Only these, separated by commas: `vm.state` is one type, `vm` all that begin with `vm.`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Only those of this severity or a higher one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// Only those that this user did; `backstay` and `guest` are what happened by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// Only those numbered above this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// At most so many, 1–10000; without `after` and `since` the newest are listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

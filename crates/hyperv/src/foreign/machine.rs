//! A machine as another host describes it.

use super::hardware::Settings;
use backstay_model::{HostStartAction, HostStopAction, VirtualHardware};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Which form a description was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A configuration of Windows Server 2008 to 2012 R2.
    Xml,
    /// A configuration of this product: it pins a machine type. Virtio disks and cards, limits and what else only exists
    /// here are not part of a [`Machine`]: whoever wants them reads the file as [`VmConfig`](crate::VmConfig).
    Own,
    /// An export of Windows Server 2008 or 2008 R2.
    Exp,
    /// A configuration of Windows Server 2016 or later. Reading it is best effort: no specification is published.
    Vmcx,
    /// What `backstay-collect.ps1` wrote.
    Collector,
}

/// Where a description comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The form.
    pub kind: SourceKind,
    /// The configuration's version as the source counts, major and minor: `5.0` is 2012 R2, `8.0` 2016. None where the
    /// source does not say.
    pub version: Option<String>,
    /// The host that wrote it, where the source names it.
    pub host: Option<String>,
}

/// What one file or one collected host says: a machine, or a checkpoint in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Document {
    /// A machine.
    Machine(Box<Machine>),
    /// A checkpoint whose machine is described elsewhere ([`Checkpoint::machine`] names it, where the file does).
    Checkpoint(Box<Checkpoint>),
}

/// A virtual machine, neutral of the form it was read from. Texts and paths are as written; a text that is not there is
/// empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Where this was read.
    pub source: Source,
    /// The machine's GUID; none when the source has none that can be read.
    pub id: Option<Uuid>,
    /// Display name; may break the rules of ours.
    pub name: String,
    /// Free text.
    pub notes: String,
    /// When the machine was made, in milliseconds since the Unix epoch.
    pub created_unix_ms: Option<i64>,
    /// Generation 1 or 2.
    pub generation: VirtualHardware,
    /// The state of now: memory, processors, devices.
    pub settings: Settings,
    /// What happens to it with its host.
    pub actions: Actions,
    /// Whether it was a resource of a failover cluster.
    pub clustered: bool,
    /// The authorization scope of the source's domain (`ScopeOfResidence`), empty where there is none. Nothing here uses
    /// it; on another domain's Hyper-V a value that is not empty makes the import fail.
    pub scope_of_residence: String,
    /// Folders that the source names.
    pub roots: DataRoots,
    /// Saved memory of the state of now.
    pub saved_state: Option<SavedState>,
    /// Whether disks of deleted checkpoints wait to be merged.
    pub merge_pending: bool,
    /// The checkpoint that now continues from, where the source says it. The disks' own parent links are the better
    /// witness.
    pub now_parent: Option<Uuid>,
    /// Checkpoints that this source describes, or that were put here by [`Machine::adopt`].
    pub checkpoints: Vec<Checkpoint>,
    /// GUIDs of checkpoints that the source names without describing them: they lie in files of their own.
    pub named_checkpoints: Vec<Uuid>,
    /// What was not understood.
    pub not_understood: Vec<NotUnderstood>,
}

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Where this was read.
    pub source: Source,
    /// Its GUID; none when neither the source nor the file's name has one.
    pub id: Option<Uuid>,
    /// The machine it belongs to, where the source says it.
    pub machine: Option<Uuid>,
    /// Display name.
    pub name: String,
    /// Free text.
    pub notes: String,
    /// The checkpoint it was taken on top of, where the source says it.
    pub parent: Option<Uuid>,
    /// When it was taken, in milliseconds since the Unix epoch.
    pub created_unix_ms: Option<i64>,
    /// What was caught.
    pub kind: CheckpointKind,
    /// Generation 1 or 2.
    pub generation: VirtualHardware,
    /// Memory, processors and devices at that instant.
    pub settings: Settings,
    /// Saved memory.
    pub saved_state: Option<SavedState>,
    /// What was not understood.
    pub not_understood: Vec<NotUnderstood>,
}

/// What a checkpoint holds beside the disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointKind {
    /// The source does not say.
    #[default]
    Unknown,
    /// Memory where the machine ran.
    Standard,
    /// File systems were frozen, no memory.
    Production,
    /// Made by a backup program, and meant to go again.
    Recovery,
    /// Made by a replica.
    Replica,
}

/// What happens to the machine with its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actions {
    /// When the host starts.
    pub start: HostStartAction,
    /// Seconds to wait before that.
    pub start_delay_s: u64,
    /// When the host shuts down.
    pub stop: HostStopAction,
    /// When the machine's process ends by itself.
    pub recovery: Recovery,
}

/// What happens when the machine's process ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recovery {
    /// Stay off.
    None,
    /// Start it again.
    #[default]
    Restart,
    /// Apply a checkpoint.
    Revert,
}

/// Folders that the source names, as written; empty where it names none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataRoots {
    /// The folder that holds `Virtual Machines`.
    pub configuration: String,
    /// The folder that holds `Snapshots`.
    pub snapshots: String,
}

/// Memory that another hypervisor saved. Nobody else can resume it: the disks are then as after a power cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedState {
    /// Its files as written (`.bin`, `.vsv`, `.vmrs`); empty when the source only says that there is one.
    pub files: Vec<String>,
}

/// Something in a source that is not part of [`Machine`]: nothing is dropped in silence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotUnderstood {
    /// Where it stands in the source, in the source's own terms.
    pub path: String,
    /// As written, at most 200 characters of it.
    pub value: String,
    /// Why it was not taken.
    pub why: String,
}

impl NotUnderstood {
    /// An entry; a long value is cut.
    #[must_use]
    pub fn new(path: impl Into<String>, value: impl AsRef<str>, why: impl Into<String>) -> Self {
        const MOST: usize = 200;
        let value = value.as_ref();
        let mut kept: String = value.chars().take(MOST).collect();
        if kept.len() < value.len() {
            kept.push('…');
        }
        Self { path: path.into(), value: kept, why: why.into() }
    }
}

/// Cuts a list that somebody's file made long; what is left out is counted.
pub(super) fn limit(notes: &mut Vec<NotUnderstood>) {
    const MOST: usize = 300;
    let left = notes.len().saturating_sub(MOST);
    if left > 0 {
        notes.truncate(MOST);
        notes.push(NotUnderstood::new("", left.to_string(), "further values that were not understood"));
    }
}

impl Machine {
    /// A machine of which nothing is known yet.
    #[must_use]
    pub fn empty(kind: SourceKind) -> Self {
        Self {
            source: Source { kind, version: None, host: None },
            id: None,
            name: String::new(),
            notes: String::new(),
            created_unix_ms: None,
            generation: VirtualHardware::Gen1,
            settings: Settings::default(),
            actions: Actions::default(),
            clustered: false,
            scope_of_residence: String::new(),
            roots: DataRoots::default(),
            saved_state: None,
            merge_pending: false,
            now_parent: None,
            checkpoints: Vec::new(),
            named_checkpoints: Vec::new(),
            not_understood: Vec::new(),
        }
    }

    /// The checkpoint with this GUID.
    #[must_use]
    pub fn checkpoint(&self, id: Uuid) -> Option<&Checkpoint> {
        self.checkpoints.iter().find(|checkpoint| checkpoint.id == Some(id))
    }
}

impl Checkpoint {
    /// A checkpoint of which nothing is known yet.
    #[must_use]
    pub fn empty(kind: SourceKind) -> Self {
        Self {
            source: Source { kind, version: None, host: None },
            id: None,
            machine: None,
            name: String::new(),
            notes: String::new(),
            parent: None,
            created_unix_ms: None,
            kind: CheckpointKind::default(),
            generation: VirtualHardware::Gen1,
            settings: Settings::default(),
            saved_state: None,
            not_understood: Vec::new(),
        }
    }
}

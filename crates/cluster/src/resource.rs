//! Resources: what a group is made of, with Windows' common properties and their defaults.

use crate::{Dependencies, NodeName, ResourceName, RestartPolicy, StorageName, SwitchName};
use backstay_model::Cores;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// `CLUSTER_RESOURCE_STATE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ResourceState {
    /// -1: its owner cannot be asked.
    Unknown,
    /// 0: the same as another resource's.
    Inherited,
    /// 1: being prepared; counts as pending.
    Initializing,
    /// 2: in service.
    Online,
    /// 3: out of service.
    #[default]
    Offline,
    /// 4: it failed and nobody is restarting it.
    Failed,
    /// 128: on its way somewhere.
    Pending,
    /// 129: being brought online.
    OnlinePending,
    /// 130: being taken offline.
    OfflinePending,
}

impl ResourceState {
    /// Windows' number for it.
    #[must_use]
    pub fn value(self) -> i32 {
        match self {
            Self::Unknown => -1,
            Self::Inherited => 0,
            Self::Initializing => 1,
            Self::Online => 2,
            Self::Offline => 3,
            Self::Failed => 4,
            Self::Pending => 128,
            Self::OnlinePending => 129,
            Self::OfflinePending => 130,
        }
    }

    /// On its way to another state.
    #[must_use]
    pub fn is_pending(self) -> bool {
        matches!(self, Self::Initializing | Self::Pending | Self::OnlinePending | Self::OfflinePending)
    }

    /// Not in service, and nothing of it is left.
    #[must_use]
    pub fn is_down(self) -> bool {
        matches!(self, Self::Offline | Self::Failed)
    }
}

impl fmt::Display for ResourceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unknown => "Unknown",
            Self::Inherited => "Inherited",
            Self::Initializing => "Initializing",
            Self::Online => "Online",
            Self::Offline => "Offline",
            Self::Failed => "Failed",
            Self::Pending => "Pending",
            Self::OnlinePending => "OnlinePending",
            Self::OfflinePending => "OfflinePending",
        })
    }
}

impl From<backstay_model::VmState> for ResourceState {
    /// The state of a virtual machine as its resource shows it. A paused machine is Online.
    fn from(state: backstay_model::VmState) -> Self {
        use backstay_model::VmState as V;
        match state {
            V::Off | V::Saved => Self::Offline,
            V::Starting => Self::OnlinePending,
            V::Stopping | V::Saving => Self::OfflinePending,
            V::Running | V::Paused | V::PausedCritical => Self::Online,
            V::Failed => Self::Failed,
        }
    }
}

/// `OfflineAction` of a virtual machine: what Offline and Move do to the guest. Live and quick migration and unplanned
/// failover do not ask it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OfflineAction {
    /// 0: pull the plug.
    TurnOff,
    /// 1: write memory and stop.
    #[default]
    Save,
    /// 2: ask the guest; if it does not, the resource stays online.
    Shutdown,
    /// 3: ask the guest, pull the plug if it does not.
    ShutdownForced,
}

impl fmt::Display for OfflineAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::TurnOff => "turn off",
            Self::Save => "save",
            Self::Shutdown => "shut down",
            Self::ShutdownForced => "shut down, forced",
        })
    }
}

/// `EmbeddedFailureAction`: what a critical failure of an application inside the guest leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmbeddedFailureAction {
    /// 0: nothing.
    None,
    /// 1: an entry in the log.
    Log,
    /// 2: restart the machine gracefully; the next time within the restart period fail the group over.
    #[default]
    Recover,
}

/// Properties of a virtual machine's resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSettings {
    /// What Offline and Move do.
    pub offline_action: OfflineAction,
    /// `CheckHeartbeat`: a guest without heartbeat for a minute has failed, unless it is rebooting.
    pub check_heartbeat: bool,
    /// What a critical application in the guest leads to.
    pub embedded_failure: EmbeddedFailureAction,
}

impl Default for VmSettings {
    fn default() -> Self {
        Self {
            offline_action: OfflineAction::Save,
            check_heartbeat: true,
            embedded_failure: EmbeddedFailureAction::Recover,
        }
    }
}

/// What a resource is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResourceKind {
    /// A virtual machine.
    VirtualMachine(VmSettings),
    /// A virtual machine's configuration.
    VmConfiguration,
    /// A LUN that moves with its group.
    ClusterDisk,
    /// A folder shared over the network.
    SharedFolder,
    /// A command that runs in the foreground.
    Command,
}

impl ResourceKind {
    /// The kind as consoles name it.
    #[must_use]
    pub fn title(&self) -> &'static str {
        match self {
            Self::VirtualMachine(_) => "Virtual Machine",
            Self::VmConfiguration => "Virtual Machine Configuration",
            Self::ClusterDisk => "Cluster Disk",
            Self::SharedFolder => "Shared Folder",
            Self::Command => "Generic Command",
        }
    }

    /// The interval of the cheap check where the resource names none.
    #[must_use]
    pub fn looks_alive_ms(&self) -> u64 {
        5_000
    }

    /// The interval of the thorough check where the resource names none.
    #[must_use]
    pub fn is_alive_ms(&self) -> u64 {
        60_000
    }
}

/// What a resource needs of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Memory, all that is around the guest included, in MiB.
    pub memory_mib: u64,
    /// Reserved processor time.
    pub cores: Cores,
    /// Virtual processors: at most as many as the node's logical ones.
    pub processors: u32,
    /// Storages its disks lie on, those of parents and of CD images included.
    pub storages: BTreeSet<StorageName>,
    /// Switches its network adapters are connected to.
    pub switches: BTreeSet<SwitchName>,
}

/// One resource, with Windows' common properties.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Unique within the group.
    pub name: ResourceName,
    /// What it is.
    pub kind: ResourceKind,
    /// What has to be online before it.
    pub depends_on: Dependencies,
    /// Where it can be at all; none: everywhere. A hard restriction.
    pub possible_owners: Option<BTreeSet<NodeName>>,
    /// What follows a failure.
    pub restart: RestartPolicy,
    /// `PersistentState`: whether bringing the group online brings this one online.
    pub persistent_state: bool,
    /// `PendingTimeout`: the longest silence between two reports of progress, in milliseconds. No cap on the whole time.
    pub pending_timeout_ms: u64,
    /// `DeadlockTimeout`: the longest a call may hang, in milliseconds.
    pub deadlock_timeout_ms: u64,
    /// `LooksAlivePollInterval` in milliseconds; none: the kind's.
    pub looks_alive_ms: Option<u64>,
    /// `IsAlivePollInterval` in milliseconds; none: the kind's.
    pub is_alive_ms: Option<u64>,
    /// What it needs of its node.
    pub needs: Needs,
}

impl Resource {
    /// A resource with every property at its default.
    #[must_use]
    pub fn new(name: ResourceName, kind: ResourceKind) -> Self {
        Self {
            name,
            kind,
            depends_on: Dependencies::default(),
            possible_owners: None,
            restart: RestartPolicy::default(),
            persistent_state: true,
            pending_timeout_ms: 180_000,
            deadlock_timeout_ms: 300_000,
            looks_alive_ms: None,
            is_alive_ms: None,
            needs: Needs::default(),
        }
    }

    /// The longest silence while pending: `PendingTimeout` or `DeadlockTimeout`, whichever is shorter.
    #[must_use]
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.pending_timeout_ms.min(self.deadlock_timeout_ms))
    }

    /// The interval of the cheap check.
    #[must_use]
    pub fn looks_alive(&self) -> Duration {
        Duration::from_millis(self.looks_alive_ms.unwrap_or(self.kind.looks_alive_ms()))
    }

    /// The interval of the thorough check. 0 is illegal and counts as the kind's.
    #[must_use]
    pub fn is_alive(&self) -> Duration {
        let own = self.is_alive_ms.filter(|ms| *ms > 0);
        Duration::from_millis(own.unwrap_or(self.kind.is_alive_ms()))
    }

    /// A virtual machine's properties.
    #[must_use]
    pub fn vm(&self) -> Option<&VmSettings> {
        match &self.kind {
            ResourceKind::VirtualMachine(settings) => Some(settings),
            _ => None,
        }
    }

    /// Whether it can be on `node` as far as its possible owners go.
    #[must_use]
    pub fn possible_on(&self, node: &NodeName) -> bool {
        self.possible_owners.as_ref().is_none_or(|owners| owners.contains(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_model::VmState;

    #[test]
    fn the_states_of_a_machine_as_windows_maps_them() {
        let mapped = |state| ResourceState::from(state).value();
        assert_eq!([mapped(VmState::Off), mapped(VmState::Saved), mapped(VmState::Starting)], [3, 3, 129]);
        assert_eq!(
            [mapped(VmState::Stopping), mapped(VmState::Saving), mapped(VmState::Paused)],
            [130, 130, 2]
        );
        assert_eq!([mapped(VmState::PausedCritical), mapped(VmState::Failed)], [2, 4]);
    }

    #[test]
    fn the_defaults_are_windows() {
        let disk = Resource::new(ResourceName::new("Cluster Disk 1").unwrap(), ResourceKind::ClusterDisk);
        assert_eq!(disk.patience(), Duration::from_secs(180));
        assert_eq!(disk.looks_alive(), Duration::from_secs(5));
        assert_eq!(Resource { is_alive_ms: Some(0), ..disk }.is_alive(), Duration::from_secs(60));
    }
}

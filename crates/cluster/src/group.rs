//! Groups: resources that move together, with Windows' group properties and their defaults.

use crate::{
    Dependencies, Failback, FailbackWindow, FencingClass, GroupName, MoveKind, NameError, Needs, NodeName,
    OfflineAction, Policy, Resource, ResourceKind, ResourceName, ResourceState, VmSettings,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// `Priority`: order of starting, placing and draining, and who is taken offline when memory is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Priority(pub u32);

impl Priority {
    /// No automatic start.
    pub const NO_AUTO_START: Self = Self(0);
    /// 1000.
    pub const LOW: Self = Self(1000);
    /// 2000, the default.
    pub const MEDIUM: Self = Self(2000);
    /// 3000.
    pub const HIGH: Self = Self(3000);
}

impl Default for Priority {
    fn default() -> Self {
        Self::MEDIUM
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NO_AUTO_START => f.pad("No Auto Start"),
            Self::LOW => f.pad("Low"),
            Self::MEDIUM => f.pad("Medium"),
            Self::HIGH => f.pad("High"),
            Self(other) => write!(f, "{other}"),
        }
    }
}

/// `CLUSTER_GROUP_STATE`, and the display state of a group whose node is isolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GroupState {
    /// -1: its owner cannot be asked.
    Unknown,
    /// 0: all resources are online.
    Online,
    /// 1: all are offline, or there are none.
    Offline,
    /// 2: at least one failed.
    Failed,
    /// 3: at least one is online, and not all; none is pending or failed.
    PartialOnline,
    /// 4: at least one is pending, none failed.
    Pending,
    /// Its node is isolated: it may be running.
    Unmonitored,
}

impl GroupState {
    /// The state that follows from the resources': Failed before Pending before PartialOnline.
    #[must_use]
    pub fn of(resources: &[ResourceState]) -> Self {
        use ResourceState as R;
        if resources.contains(&R::Unknown) {
            Self::Unknown
        } else if resources.contains(&R::Failed) {
            Self::Failed
        } else if resources.iter().any(|s| s.is_pending()) {
            Self::Pending
        } else if resources.iter().all(|s| *s == R::Offline) {
            Self::Offline
        } else if resources.iter().all(|s| *s == R::Online) {
            Self::Online
        } else {
            Self::PartialOnline
        }
    }
}

impl fmt::Display for GroupState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unknown => "Unknown",
            Self::Online => "Online",
            Self::Offline => "Offline",
            Self::Failed => "Failed",
            Self::PartialOnline => "PartialOnline",
            Self::Pending => "Pending",
            Self::Unmonitored => "Unmonitored",
        })
    }
}

/// One group with its properties.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Unique in the cluster.
    pub name: GroupName,
    /// What moves together.
    pub resources: Vec<Resource>,
    /// Order and precedence.
    pub priority: Priority,
    /// `PreferredOwners`, the best first. Does not restrict.
    pub preferred: Vec<NodeName>,
    /// `FailoverThreshold`; none: one less than there are nodes.
    pub failover_threshold: Option<u32>,
    /// `FailoverPeriod` in hours, 0 to 1193.
    pub failover_period_h: u32,
    /// `AutoFailbackType`.
    pub failback: Failback,
    /// `FailbackWindowStart` and `FailbackWindowEnd`; none: at any time.
    pub failback_window: Option<FailbackWindow>,
    /// `AntiAffinityClassNames`: groups that share one avoid each other's node.
    pub anti_affinity: BTreeSet<String>,
    /// `ResiliencyPeriod` in seconds; none: the cluster's.
    pub resiliency_period_s: Option<u32>,
}

impl Group {
    /// An empty group with every property at its default.
    #[must_use]
    pub fn new(name: GroupName) -> Self {
        Self {
            name,
            resources: Vec::new(),
            priority: Priority::MEDIUM,
            preferred: Vec::new(),
            failover_threshold: None,
            failover_period_h: 6,
            failback: Failback::Prevent,
            failback_window: None,
            anti_affinity: BTreeSet::new(),
            resiliency_period_s: None,
        }
    }

    /// The group of one virtual machine as the wizard makes it: the machine depends on its configuration.
    ///
    /// # Errors
    /// A name that cannot be one.
    pub fn virtual_machine(name: &str) -> Result<Self, NameError> {
        let mut group = Self::new(GroupName::new(name)?);
        let configuration = ResourceName::new("config")?;
        group.resources.push(Resource::new(configuration.clone(), ResourceKind::VmConfiguration));
        let kind = ResourceKind::VirtualMachine(VmSettings::default());
        let mut machine = Resource::new(ResourceName::new("vm")?, kind);
        machine.depends_on = Dependencies::all([configuration]);
        group.resources.push(machine);
        Ok(group)
    }

    /// What its resources need together.
    #[must_use]
    pub fn needs(&self) -> Needs {
        let mut sum = Needs::default();
        for needs in self.resources.iter().map(|r| &r.needs) {
            sum.memory_mib = sum.memory_mib.saturating_add(needs.memory_mib);
            sum.cores = sum.cores + needs.cores;
            sum.processors = sum.processors.max(needs.processors);
            sum.storages.extend(needs.storages.iter().cloned());
            sum.switches.extend(needs.switches.iter().cloned());
        }
        sum
    }

    /// Whether every resource can be on `node` as far as possible owners go.
    #[must_use]
    pub fn possible_on(&self, node: &NodeName) -> bool {
        self.resources.iter().all(|r| r.possible_on(node))
    }

    /// The class of its most dangerous storage. Storage that the policy does not know is of class N.
    #[must_use]
    pub fn fencing(&self, policy: &Policy) -> FencingClass {
        let storages = self.resources.iter().flat_map(|r| &r.needs.storages);
        storages
            .map(|s| policy.storages.get(s).copied().unwrap_or(FencingClass::N))
            .max()
            .unwrap_or(FencingClass::S)
    }

    /// Whether it holds a virtual machine.
    #[must_use]
    pub fn has_vm(&self) -> bool {
        self.resources.iter().any(|r| r.vm().is_some())
    }

    /// How a drain moves it: machines of at least `live_from` live, others by saving them; what is no machine by taking it
    /// offline.
    #[must_use]
    pub fn drain_kind(&self, live_from: Priority) -> MoveKind {
        match self.has_vm() {
            false => MoveKind::Offline,
            true if self.priority >= live_from => MoveKind::Live,
            true => MoveKind::Quick,
        }
    }

    /// What taking resource `i` offline does to it. `None`: it has no such choice.
    #[must_use]
    pub fn offline_action(&self, i: usize) -> Option<OfflineAction> {
        self.resources[i].vm().map(|vm| vm.offline_action)
    }

    /// Whether the two share an anti-affinity class.
    #[must_use]
    pub fn avoids(&self, other: &Self) -> bool {
        self.name != other.name && self.anti_affinity.intersection(&other.anti_affinity).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_before_pending_before_partial() {
        use ResourceState as R;
        for (states, group) in [
            (&[][..], GroupState::Offline),
            (&[R::Online, R::Online], GroupState::Online),
            (&[R::Offline, R::Online], GroupState::PartialOnline),
            (&[R::Offline, R::Online, R::OfflinePending], GroupState::Pending),
            (&[R::Initializing, R::Offline], GroupState::Pending),
            (&[R::OnlinePending, R::Failed, R::Online], GroupState::Failed),
            (&[R::Offline], GroupState::Offline),
            (&[R::Unknown, R::Failed], GroupState::Unknown),
        ] {
            assert_eq!(GroupState::of(states), group, "{states:?}");
        }
    }
}

//! What administrators want: the cluster's settings, its nodes, storages and groups.

use crate::{FencingClass, Group, GroupName, NodeName, Priority, Quarantine, StorageName, heartbeat::Timing};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Where room for lost nodes is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// On every node a little.
    #[default]
    Spread,
    /// On nodes that are marked as reserve and take groups only when no other can.
    Reserve,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Spread => "spread",
            Self::Reserve => "reserve-node",
        })
    }
}

/// How a group moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoveKind {
    /// The guest runs on.
    Live,
    /// Saved, moved, restored.
    Quick,
    /// The guest shuts down and boots elsewhere.
    Shutdown,
    /// Each resource goes offline as its `OfflineAction` says.
    Offline,
}

impl fmt::Display for MoveKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Live => "live",
            Self::Quick => "quick",
            Self::Shutdown => "shutdown",
            Self::Offline => "offline",
        })
    }
}

/// Whether the cluster acts by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arming {
    /// It does.
    #[default]
    Armed,
    /// Maintenance: nothing is fenced, taken over or moved by itself.
    Disarmed,
}

/// One node's settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePolicy {
    /// Kept free under [`Strategy::Reserve`].
    pub reserve: bool,
}

/// All of it. One value is one revision of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Members, whether they are there or not.
    pub nodes: BTreeMap<NodeName, NodePolicy>,
    /// Fencing class of each shared storage.
    pub storages: BTreeMap<StorageName, FencingClass>,
    /// Groups.
    pub groups: BTreeMap<GroupName, Group>,
    /// Whether the cluster acts by itself.
    pub arming: Arming,
    /// Where room for lost nodes is kept.
    pub strategy: Strategy,
    /// `ClusterEnforcedAntiAffinity`: anti-affinity is a hard rule.
    pub enforced_anti_affinity: bool,
    /// `MoveTypeThreshold`: a drain moves machines of at least this priority live.
    pub move_type_threshold: Priority,
    /// Moves that a node takes part in at once.
    pub moves_at_once: u32,
    /// `ResiliencyDefaultPeriod` in seconds: how long an unreachable node stays isolated before its groups are taken.
    pub resiliency_period_s: u32,
    /// Nodes that leave again and again.
    pub quarantine: Quarantine,
    /// Heartbeats.
    pub timing: Timing,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            nodes: BTreeMap::new(),
            storages: BTreeMap::new(),
            groups: BTreeMap::new(),
            arming: Arming::Armed,
            strategy: Strategy::Spread,
            enforced_anti_affinity: false,
            move_type_threshold: Priority::MEDIUM,
            moves_at_once: 2,
            // Windows: 240 s. A lost node is fenced before anything is taken, so waiting longer protects nothing.
            resiliency_period_s: 0,
            quarantine: Quarantine::default(),
            timing: Timing::default(),
        }
    }
}

impl Policy {
    /// The resiliency period of `group`, in seconds.
    #[must_use]
    pub fn resiliency_s(&self, group: &Group) -> u32 {
        group.resiliency_period_s.unwrap_or(self.resiliency_period_s)
    }

    /// The groups, those of the highest priority first, and by name within one priority.
    #[must_use]
    pub fn by_priority(&self) -> Vec<&Group> {
        let mut groups: Vec<_> = self.groups.values().collect();
        groups.sort_by_key(|g| std::cmp::Reverse(g.priority));
        groups
    }
}

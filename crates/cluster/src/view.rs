//! What is: the coordinator's picture of nodes and groups, as far as decisions need it.

use crate::{
    DrainStatus, Failure, FencingClass, Group, GroupName, GroupState, MoveKind, NodeName, NodeState, Policy,
    ResourceName, ResourceState, StorageName, SwitchName, Time, Uid,
};
use backstay_model::Cores;
use std::collections::{BTreeMap, BTreeSet};

/// Which groups return to a node that is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeFailback {
    /// None.
    No,
    /// Exactly those that the drain moved away, at once.
    Immediate,
    /// Those that the drain moved away, within each group's failback window.
    Policy,
}

/// Why a node is not a member, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Since when, wall-clock time.
    pub since: Time,
    /// Heartbeats missed until it was given up.
    pub missed: u32,
    /// It said so itself: nothing of it is left.
    pub clean: bool,
    /// Groups up to this class may be taken; none: not yet fenced.
    pub safe_for: Option<FencingClass>,
    /// Somebody confirmed that it is off: `the hook said so`, `an administrator said so`.
    pub confirmed: Option<String>,
}

impl Lost {
    /// Whether a group of `class` may be taken from the node.
    #[must_use]
    pub fn releases(&self, class: FencingClass) -> bool {
        self.clean || self.confirmed.is_some() || self.safe_for.is_some_and(|safe| class <= safe)
    }
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its state.
    pub state: NodeState,
    /// How far its drain has come.
    pub drain: DrainStatus,
    /// What is known of its loss, while it is isolated or down.
    pub lost: Option<Lost>,
    /// A resume that still has groups to bring back.
    pub resume: Option<ResumeFailback>,
    /// Memory that can be promised to groups, in MiB.
    pub memory_mib: u64,
    /// Processor time that can be promised.
    pub cores: Cores,
    /// Logical processors.
    pub processors: u32,
    /// Storages it reaches.
    pub storages: BTreeSet<StorageName>,
    /// Switches it has.
    pub switches: BTreeSet<SwitchName>,
}

impl Default for NodeView {
    fn default() -> Self {
        Self {
            state: NodeState::Up,
            drain: DrainStatus::NotInitiated,
            lost: None,
            resume: None,
            memory_mib: 16_384,
            cores: Cores::whole(8),
            processors: 8,
            storages: BTreeSet::new(),
            switches: BTreeSet::new(),
        }
    }
}

/// What a group is wanted to be (`PersistentState`: set by users, never by failures).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// In service.
    #[default]
    Online,
    /// Out of service.
    Offline,
}

/// Its owner says that the group failed: a resource ran out of restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which resource.
    pub resource: ResourceName,
    /// When it is tried again where it is; none: never.
    pub retry_at: Option<Time>,
    /// Whether it asks for another node.
    pub fail_over: bool,
}

/// Something under way. Nothing else is planned for the group meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doing {
    /// The step's id.
    pub uid: Uid,
    /// The node it is moving or being brought to, where it needs room too.
    pub to: Option<NodeName>,
}

/// A user asked for a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveRequest {
    /// How.
    pub kind: MoveKind,
    /// Where to; none: the best node.
    pub to: Option<NodeName>,
}

/// One group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupView {
    /// Where it is, running or not; none: nowhere yet.
    pub owner: Option<NodeName>,
    /// Raised by every change of owner.
    pub epoch: u64,
    /// The owner's life that owned it is over: the node is back, as another incarnation.
    pub orphaned: bool,
    /// What users want.
    pub wanted: Wanted,
    /// States of the resources, in the group's order; missing ones are offline.
    pub resources: Vec<ResourceState>,
    /// Its owner gave up on it.
    pub verdict: Option<Verdict>,
    /// Failures, the latest last.
    pub failures: Vec<Failure>,
    /// Under way.
    pub doing: Option<Doing>,
    /// A user's wish.
    pub request: Option<MoveRequest>,
    /// A drain of this node moved it away.
    pub drained_from: Option<NodeName>,
    /// Targets to which a move failed since the owner changed.
    pub refused_by: BTreeSet<NodeName>,
    /// It was taken offline for the sake of others, and comes back when there is room.
    pub preempted: bool,
}

impl GroupView {
    /// The state that follows from its resources'.
    #[must_use]
    pub fn state(&self, group: &Group) -> GroupState {
        if self.resources.is_empty() && !group.resources.is_empty() {
            return GroupState::Offline;
        }
        GroupState::of(&self.resources)
    }

    /// Whether it uses its owner's memory and processors.
    #[must_use]
    pub fn uses_owner(&self) -> bool {
        self.resources.iter().any(|s| !s.is_down())
    }
}

/// The whole picture.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The store's revision that it shows; a plan is void when a record it read has changed.
    pub revision: u64,
    /// Wall-clock time.
    pub now: Time,
    /// The hour of the cluster's local time, 0 to 23.
    pub local_hour: u8,
    /// Nodes.
    pub nodes: BTreeMap<NodeName, NodeView>,
    /// Groups.
    pub groups: BTreeMap<GroupName, GroupView>,
}

impl View {
    /// The state of `group` as consoles show it: Unmonitored while its node is isolated; while its node is down and it cannot be
    /// taken yet Unknown, and Failed where that needs an administrator (class N).
    #[must_use]
    pub fn shown_state(&self, policy: &Policy, group: &Group) -> GroupState {
        let Some(view) = self.groups.get(&group.name) else { return GroupState::Offline };
        let owner = view.owner.as_ref().and_then(|n| self.nodes.get(n));
        match owner.map(|n| n.state).filter(|_| view.uses_owner()) {
            Some(NodeState::Isolated) => GroupState::Unmonitored,
            Some(NodeState::Down) if !group.fencing(policy).automatic() => GroupState::Failed,
            Some(NodeState::Down) => GroupState::Unknown,
            _ => view.state(group),
        }
    }

    /// Members that are there, for what depends on their number.
    #[must_use]
    pub fn node_count(&self, policy: &Policy) -> usize {
        policy.nodes.len()
    }
}

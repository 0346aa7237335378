//! The order of decisions: groups without owner first, then failures, users' wishes, drains, returns.

use super::{Action, Hold, Plan, Reason};
use crate::placement::{Ask, Fleet};
use crate::{
    Arming, DrainStatus, Group, GroupName, GroupState, GroupView, NodeName, NodeState, NodeView, Policy,
    Priority, ResumeFailback, View, Wanted,
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What one call of [`plan`] works on.
pub(super) struct Work<'a> {
    pub policy: &'a Policy,
    pub view: &'a View,
    /// Room, with the steps planned so far taken into account.
    pub fleet: Fleet,
    pub plan: Plan,
    /// Moves that each node takes part in, planned ones included.
    pub moves: HashMap<NodeName, u32>,
    /// Owned groups of each node that is being emptied: steps planned or under way, and stuck ones.
    pub leaving: BTreeMap<NodeName, Leaving>,
    /// Groups with a step.
    pub planned: HashSet<GroupName>,
}

#[derive(Default)]
pub(super) struct Leaving {
    pub under_way: usize,
    pub stuck: Vec<Hold>,
}

/// What is to be done now.
///
/// Equal arguments give equal plans. Nothing is planned for a group for which something is under way.
#[must_use]
pub fn plan(policy: &Policy, view: &View) -> Plan {
    let mut work = Work {
        policy,
        view,
        fleet: Fleet::new(policy, view),
        plan: Plan { revision: view.revision, ..Plan::default() },
        moves: HashMap::new(),
        leaving: BTreeMap::new(),
        planned: HashSet::new(),
    };
    for node in view.nodes.iter().filter(|(_, n)| n.drain == DrainStatus::InProgress) {
        work.leaving.insert(node.0.clone(), Leaving::default());
    }
    let groups = policy.by_priority();
    let nothing = GroupView::default();
    let state = |group: &Group| view.groups.get(&group.name).unwrap_or(&nothing);
    for group in &groups {
        work.count_under_way(state(group));
    }
    work.homeless(&groups);
    for group in &groups {
        let now = state(group);
        if now.doing.is_none() && !work.planned.contains(&group.name) {
            work.one(group, now);
        }
    }
    work.ends();
    work.plan
}

impl<'a> Work<'a> {
    pub(super) fn push(&mut self, action: Action, reason: Reason) {
        self.planned.extend(action.group().cloned());
        self.plan.push(action, reason);
    }

    fn count_under_way(&mut self, state: &GroupView) {
        let (Some(doing), Some(owner)) = (&state.doing, &state.owner) else { return };
        if let Some(leaving) = self.leaving.get_mut(owner) {
            leaving.under_way += 1;
        }
        if let Some(to) = &doing.to {
            *self.moves.entry(owner.clone()).or_default() += 1;
            if to != owner {
                *self.moves.entry(to.clone()).or_default() += 1;
            }
        }
    }

    pub(super) fn node(&self, name: &NodeName) -> Option<&'a NodeView> {
        self.view.nodes.get(name)
    }

    pub(super) fn armed(&self) -> bool {
        self.policy.arming == Arming::Armed
    }

    /// One group with an owner that can be told things.
    fn one(&mut self, group: &Group, state: &GroupView) {
        let Some(owner) = &state.owner else { return };
        let Some(node) = self.node(owner) else { return };
        if !node.state.is_member() || state.orphaned {
            return;
        }
        let ask = self.fleet.ask(group);
        if self.failed(group, state, owner, &ask)
            || self.requested(group, state, owner, &ask)
            || self.emptied(group, state, owner, node, &ask)
        {
            return;
        }
        if state.wanted == Wanted::Online && state.state(group) == GroupState::Offline {
            self.bring_online(group, state, owner, node, ask);
            return;
        }
        if node.state == NodeState::Up && self.armed() {
            let _ = self.resumed(group, state, owner, &ask) || self.fail_back(group, state, owner, &ask);
        }
    }

    /// It is offline, wanted online, and its owner is there.
    fn bring_online(
        &mut self,
        group: &Group,
        state: &GroupView,
        owner: &NodeName,
        node: &NodeView,
        ask: Ask,
    ) {
        if group.priority == Priority::NO_AUTO_START || !self.armed() || group.resources.is_empty() {
            return;
        }
        if self.fleet.fits(owner, &ask) {
            self.fleet.occupy(owner, &ask);
            self.push(Action::Online { group: group.name.clone(), on: owner.clone() }, Reason::Wanted);
            return;
        }
        let reason = if node.state == NodeState::Up {
            Reason::NoRoom(owner.clone())
        } else {
            Reason::OwnerClosed(owner.clone())
        };
        let target = self.target(group, state, &ask, &[owner]);
        match target {
            Some(to) => {
                let kind = crate::MoveKind::Offline;
                self.fleet.occupy(&to, &ask);
                let (group, from) = (group.name.clone(), owner.clone());
                self.push(Action::Move { group, from, to, kind }, reason);
            }
            None => self.make_room(group, &ask),
        }
    }

    /// Ends of drains and resumes.
    fn ends(&mut self) {
        for (node, leaving) in std::mem::take(&mut self.leaving) {
            let owned = self.view.groups.values().filter(|g| g.owner.as_ref() == Some(&node)).count();
            let status = match (owned, leaving.under_way, leaving.stuck.first()) {
                (0, ..) => Some((DrainStatus::Completed, Reason::Empty)),
                (_, 0, Some(stuck)) => Some((DrainStatus::Failed, Reason::Stuck(stuck.to_string()))),
                _ => None,
            };
            if let Some((status, reason)) = status {
                self.push(Action::Drained { node, status }, reason);
            }
        }
        for (node, view) in &self.view.nodes {
            let Some(resume) = view.resume else { continue };
            let waiting = self.view.groups.values().any(|g| g.drained_from.as_ref() == Some(node));
            if resume == ResumeFailback::No || !waiting {
                self.push(Action::Resumed { node: node.clone() }, Reason::Returned);
            }
        }
    }
}

//! Checks a plan against the rules, by other means than those that made it.

use crate::plan::{Action, Plan, Reason, Then};
use crate::{
    Arming, DrainStatus, Failback, Group, GroupName, GroupView, Needs, NodeName, NodeState, Policy, Priority,
    Uid, View, Wanted,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A step that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The step.
    pub uid: Uid,
    /// The rule, with what breaks it.
    pub rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: {}", self.uid, self.rule)
    }
}

struct Check<'a> {
    policy: &'a Policy,
    view: &'a View,
    found: Vec<Violation>,
    /// What is used on each node once all steps are done: memory in MiB, hundredths of cores, groups.
    used: BTreeMap<&'a NodeName, (u64, u64, Vec<&'a Group>)>,
}

/// All the ways in which `plan` breaks the rules; none for a plan that [`crate::plan`] made.
///
/// Rules: one step per group; nothing for a group with something under way; a group is taken only from an owner that is gone
/// and safe for its fencing class; the epoch goes up by one; targets take groups, are possible owners, reach storage and
/// switches, have room, and respect enforced anti-affinity; failover thresholds and failback windows are kept; only lower
/// priorities make room; a disarmed cluster does nothing by itself.
#[must_use]
pub fn check(policy: &Policy, view: &View, plan: &Plan) -> Vec<Violation> {
    let mut check = Check { policy, view, found: Vec::new(), used: BTreeMap::new() };
    let mut seen = BTreeSet::new();
    check.count_used(plan);
    for step in &plan.steps {
        let Some(name) = step.action.group() else {
            check.node_step(step.uid, &step.action);
            continue;
        };
        if !seen.insert(name) {
            check.fail(step.uid, format!("'{name}' has two steps"));
        }
        let Some(group) = policy.groups.get(name) else {
            check.fail(step.uid, format!("there is no group '{name}'"));
            continue;
        };
        let nothing = GroupView::default();
        let state = view.groups.get(name).unwrap_or(&nothing);
        if state.doing.is_some() {
            check.fail(step.uid, format!("something is under way for '{name}'"));
        }
        check.group_step(step.uid, &step.action, &step.reason, group, state);
    }
    check.room(plan);
    check.found
}

impl<'a> Check<'a> {
    fn fail(&mut self, uid: Uid, rule: String) {
        self.found.push(Violation { uid, rule });
    }

    fn group_step(&mut self, uid: Uid, action: &Action, reason: &Reason, group: &Group, state: &GroupView) {
        if self.policy.arming == Arming::Disarmed
            && !matches!(reason, Reason::Asked | Reason::Drain(_) | Reason::Resume(_))
        {
            self.fail(uid, "the cluster is disarmed".into());
        }
        match action {
            Action::Place { from, to, epoch, then, .. } => {
                self.placed(uid, group, state, from.as_ref(), *epoch);
                if *then == Then::Online && group.priority == Priority::NO_AUTO_START {
                    self.fail(uid, format!("'{}' is not started automatically", group.name));
                }
                if *then == Then::Online && state.wanted == Wanted::Offline {
                    self.fail(uid, format!("'{}' is wanted offline", group.name));
                }
                self.target(uid, group, to);
            }
            Action::Online { on, .. } => {
                self.owned_by(uid, group, state, on);
                self.target(uid, group, on);
            }
            Action::MakeRoom { on, .. } => {
                self.owned_by(uid, group, state, on);
                let other = match reason {
                    Reason::RoomFor(other) => self.policy.groups.get(other),
                    _ => None,
                };
                if other.is_none_or(|o| o.priority <= group.priority) {
                    self.fail(uid, format!("'{}' makes room for none of higher priority", group.name));
                }
            }
            Action::Move { from, to, .. } => {
                self.owned_by(uid, group, state, from);
                self.target(uid, group, to);
                if from == to {
                    self.fail(uid, format!("'{}' moves to where it is", group.name));
                }
                if let Reason::Failback(_) = reason {
                    self.failback(uid, group, from, to);
                }
            }
            Action::FailOver { from, to, .. } => {
                self.owned_by(uid, group, state, from);
                self.target(uid, group, to);
                self.threshold(uid, group, state);
            }
            Action::Drained { .. } | Action::Resumed { .. } => {}
        }
    }

    fn placed(&mut self, uid: Uid, group: &Group, state: &GroupView, from: Option<&NodeName>, epoch: u64) {
        if state.owner.as_ref() != from {
            self.fail(uid, format!("the owner of '{}' is another", group.name));
        }
        if epoch != state.epoch + 1 {
            self.fail(uid, format!("the next epoch of '{}' is {}", group.name, state.epoch + 1));
        }
        if state.orphaned {
            return;
        }
        let Some((node, owner)) = from.and_then(|f| Some((f, self.view.nodes.get(f)?))) else { return };
        let safe = owner.lost.as_ref().is_some_and(|l| l.releases(group.fencing(self.policy)));
        if owner.state.is_member() || !safe {
            self.fail(
                uid,
                format!("'{}' is taken from {node}, which is not known to have stopped", group.name),
            );
        }
    }

    fn owned_by(&mut self, uid: Uid, group: &Group, state: &GroupView, node: &NodeName) {
        let member = self.view.nodes.get(node).is_some_and(|n| n.state.is_member());
        if state.owner.as_ref() != Some(node) || !member {
            self.fail(uid, format!("{node} does not own '{}', or cannot be told", group.name));
        }
    }

    fn target(&mut self, uid: Uid, group: &Group, to: &NodeName) {
        let Some(node) = self.view.nodes.get(to) else {
            return self.fail(uid, format!("there is no node {to}"));
        };
        let needs = group.needs();
        let broken = [
            (node.state != NodeState::Up, "takes no groups"),
            (!group.resources.iter().all(|r| r.possible_on(to)), "is no possible owner"),
            (!needs.storages.is_subset(&node.storages), "does not reach its storage"),
            (!needs.switches.is_subset(&node.switches), "does not have its switches"),
            (needs.processors > node.processors, "has too few processors"),
        ];
        for (_, what) in broken.iter().filter(|(broken, _)| *broken) {
            self.fail(uid, format!("{to} {what}: '{}'", group.name));
        }
    }

    fn failback(&mut self, uid: Uid, group: &Group, from: &NodeName, to: &NodeName) {
        let rank = |n: &NodeName| group.preferred.iter().position(|p| p == n).unwrap_or(usize::MAX);
        if group.failback != Failback::Allow || rank(to) >= rank(from) {
            self.fail(uid, format!("'{}' does not prefer {to} to {from}", group.name));
        }
        if group.failback_window.is_some_and(|w| !w.is_open(self.view.local_hour)) {
            self.fail(uid, format!("the failback window of '{}' is closed", group.name));
        }
    }

    fn threshold(&mut self, uid: Uid, group: &Group, state: &GroupView) {
        let nodes = u32::try_from(self.policy.nodes.len()).unwrap_or(u32::MAX);
        let most = group.failover_threshold.unwrap_or(nodes.saturating_sub(1).max(1));
        let period = u64::from(group.failover_period_h.min(1193)) * 3_600_000_000;
        let young = |at: u64| at + period > self.view.now.0;
        let moved = state.failures.iter().filter(|f| f.moved && young(f.at.0)).count();
        if u32::try_from(moved).is_ok_and(|moved| moved >= most) {
            self.fail(uid, format!("'{}' has had its {most} failovers", group.name));
        }
    }

    fn node_step(&mut self, uid: Uid, action: &Action) {
        if let Action::Drained { node, status: DrainStatus::Completed } = action
            && self.view.groups.values().any(|g| g.owner.as_ref() == Some(node))
        {
            self.fail(uid, format!("{node} is said to be drained and has groups"));
        }
    }

    /// Who is where when the plan has been carried out. During a move both nodes count.
    fn count_used(&mut self, plan: &'a Plan) {
        let mut here: BTreeMap<&GroupName, BTreeSet<&NodeName>> = BTreeMap::new();
        for (name, state) in &self.view.groups {
            let owner = state.owner.as_ref().filter(|_| state.uses_owner());
            let to = state.doing.as_ref().and_then(|d| d.to.as_ref());
            here.entry(name).or_default().extend(owner.into_iter().chain(to));
        }
        for action in plan.steps.iter().map(|s| &s.action) {
            match action {
                Action::Place { group, to, then: Then::Online, .. } => drop(here.insert(group, [to].into())),
                Action::Place { group, then: Then::Offline, .. } | Action::MakeRoom { group, .. } => {
                    here.remove(group);
                }
                Action::Online { group, on } => drop(here.entry(group).or_default().insert(on)),
                Action::FailOver { group, to, .. } => drop(here.insert(group, [to].into())),
                Action::Move { group, to, .. } => {
                    let up = self
                        .view
                        .groups
                        .get(group)
                        .is_some_and(|g| g.uses_owner() || g.wanted == Wanted::Online);
                    if up {
                        here.entry(group).or_default().insert(to);
                    }
                }
                Action::Drained { .. } | Action::Resumed { .. } => {}
            }
        }
        for (name, nodes) in here {
            let Some(group) = self.policy.groups.get(name) else { continue };
            let Needs { memory_mib, cores, .. } = group.needs();
            for node in nodes {
                let used = self.used.entry(node).or_default();
                used.0 += memory_mib;
                used.1 += cores.0;
                used.2.push(group);
            }
        }
    }

    /// Nodes that the plan brings groups to have room for all they then have.
    fn room(&mut self, plan: &Plan) {
        for step in &plan.steps {
            let (Action::Place { to, group, .. }
            | Action::Online { on: to, group }
            | Action::Move { to, group, .. }
            | Action::FailOver { to, group, .. }) = &step.action
            else {
                continue;
            };
            let Some((node, group)) = self.view.nodes.get(to).zip(self.policy.groups.get(group)) else {
                continue;
            };
            let Some((memory, cores, groups)) = self.used.get(to).cloned() else { continue };
            let needs = group.needs();
            if needs.memory_mib > 0 && memory > node.memory_mib && groups.contains(&group) {
                self.fail(step.uid, format!("{to} has {} MiB and gets {memory}", node.memory_mib));
            }
            if needs.cores.0 > 0 && cores > node.cores.0 && groups.contains(&group) {
                self.fail(
                    step.uid,
                    format!("{to} has {} cores and {cores} hundredths are promised", node.cores),
                );
            }
            let near = groups.iter().find(|other| other.avoids(group)).map(|other| other.name.clone());
            if let Some(near) = near.filter(|_| self.policy.enforced_anti_affinity && groups.contains(&group))
            {
                self.fail(step.uid, format!("'{}' meets '{near}' on {to}", group.name));
            }
        }
    }
}

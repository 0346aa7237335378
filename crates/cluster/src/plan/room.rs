//! Memory is short: groups of lower priority go offline for one of higher priority.

use super::decide::Work;
use super::{Action, Reason};
use crate::placement::Ask;
use crate::{Group, NodeName, Priority};
use backstay_model::Cores;
use std::cmp::Reverse;

/// What would have to go on one node.
struct Sacrifice<'a> {
    node: &'a NodeName,
    /// Lowest priority first.
    groups: Vec<(&'a Group, Ask)>,
}

impl<'a> Work<'a> {
    /// `group` has found no node. Where groups of lower priority can make room they are taken offline, as few and as
    /// unimportant ones as possible; it is started when they are gone.
    pub(super) fn make_room(&mut self, group: &Group, ask: &Ask) {
        let view = self.view;
        if let Some(node) = self.room_being_made(group, ask) {
            self.plan.hold(&group.name, format!("room is being made on {node}"));
            return;
        }
        let mut best: Option<(Priority, usize, Sacrifice<'a>)> = None;
        for node in view.nodes.keys() {
            let Some(sacrifice) = self.sacrifice(group, ask, node) else { continue };
            let worst = sacrifice.groups.iter().map(|(g, _)| g.priority).max().unwrap_or_default();
            let key = (worst, sacrifice.groups.len());
            if best.as_ref().is_none_or(|b| key < (b.0, b.1)) {
                best = Some((key.0, key.1, sacrifice));
            }
        }
        let Some((.., sacrifice)) = best.filter(|b| b.1 > 0) else {
            let why = self.why_nowhere(group, None);
            self.plan.hold(&group.name, why);
            return;
        };
        for (victim, ask) in &sacrifice.groups {
            self.fleet.vacate(sacrifice.node, ask);
            let action = Action::MakeRoom { group: victim.name.clone(), on: sacrifice.node.clone() };
            self.push(action, Reason::RoomFor(group.name.clone()));
        }
        // The room is spoken for: a second group must not count on it.
        self.fleet.occupy(sacrifice.node, ask);
        self.plan.hold(&group.name, format!("room is being made on {}", sacrifice.node));
    }

    /// A node where groups on their way out will leave enough room.
    fn room_being_made(&mut self, group: &Group, ask: &Ask) -> Option<NodeName> {
        let view = self.view;
        for node in view.nodes.keys() {
            let (mut memory, mut cores) = (0, 0);
            for (name, state) in &view.groups {
                let leaving = state.preempted && state.uses_owner() && state.owner.as_ref() == Some(node);
                if leaving
                    && *name != group.name
                    && let Some(other) = self.policy.groups.get(name)
                {
                    let other = self.fleet.ask(other);
                    memory += other.memory;
                    cores += other.cores;
                }
            }
            if memory + cores > 0 && self.fleet.would_fit(node, ask, memory, cores) {
                // Spoken for.
                self.fleet.occupy(node, ask);
                return Some(node.clone());
            }
        }
        None
    }

    fn sacrifice(&mut self, group: &Group, ask: &Ask, node: &'a NodeName) -> Option<Sacrifice<'a>> {
        let (policy, view) = (self.policy, self.view);
        // Most nodes fall out here: even empty they would not do.
        if !self.fleet.would_fit(node, ask, i64::MAX / 4, i64::MAX / 4) {
            return None;
        }
        let mut lower: Vec<&'a Group> = Vec::new();
        for (name, state) in &view.groups {
            let here = state.owner.as_ref() == Some(node) && state.uses_owner() && state.doing.is_none();
            if let Some(other) = policy.groups.get(name)
                && here
                && other.priority < group.priority
                && !self.planned.contains(name)
            {
                lower.push(other);
            }
        }
        lower.sort_by_cached_key(|g| (g.priority, Reverse(g.needs().memory_mib)));
        let mut groups: Vec<(&'a Group, Ask)> = Vec::new();
        let (mut memory, mut cores) = (0, 0);
        for other in lower {
            if self.fleet.would_fit(node, ask, memory, cores) {
                break;
            }
            let other_ask = self.fleet.ask(other);
            memory += other_ask.memory;
            cores += other_ask.cores;
            groups.push((other, other_ask));
        }
        self.fleet.would_fit(node, ask, memory, cores).then_some(Sacrifice { node, groups })
    }

    /// Why no node but `never` takes it, in words for one line of the log.
    pub(super) fn why_nowhere(&self, group: &Group, never: Option<&NodeName>) -> String {
        let needs = group.needs();
        let open = self.view.nodes.iter().filter(|(name, n)| n.state.takes_groups() && Some(*name) != never);
        let mut left: Vec<_> = open.filter(|(name, _)| group.possible_on(name)).collect();
        if left.is_empty() {
            let other = if never.is_some() { "other " } else { "" };
            return format!("no {other}node that can own it takes groups");
        }
        left.retain(|(_, n)| needs.storages.is_subset(&n.storages) && needs.switches.is_subset(&n.switches));
        if left.is_empty() {
            return "no node that could take it reaches its storage and switches".into();
        }
        let memory = left.iter().map(|(name, _)| self.fleet.memory_free(name)).max().unwrap_or(0).max(0);
        if i64::try_from(needs.memory_mib).is_ok_and(|n| n > memory) {
            let n = needs.memory_mib;
            return format!(
                "no node has room: it needs {n} MiB of memory, at most {memory} are free on one node"
            );
        }
        let cores = left.iter().map(|(name, _)| self.fleet.cores_free(name)).max().unwrap_or(0);
        let cores = Cores(u64::try_from(cores).unwrap_or(0));
        if needs.cores > cores {
            return format!(
                "no node has room: it reserves {:.2} cores, at most {cores:.2} are free on one node",
                needs.cores
            );
        }
        if left.iter().all(|(_, n)| needs.processors > n.processors) {
            return format!("no node has {} logical processors", needs.processors);
        }
        if self.policy.enforced_anti_affinity && !group.anti_affinity.is_empty() {
            return "anti-affinity is enforced, and every node has a group it avoids".into();
        }
        "no node has room for its memory and its processors together".into()
    }
}

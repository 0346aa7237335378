//! Moves between living nodes: failures, users' wishes, drains, quarantine, returns.

use super::decide::Work;
use super::{Action, Reason};
use crate::placement::Ask;
use crate::{
    DrainStatus, Group, GroupState, GroupView, MoveKind, NodeName, NodeState, NodeView, ResumeFailback,
    Wanted,
};

impl Work<'_> {
    /// A resource ran out of restarts: another node, if the threshold allows and there is one.
    pub(super) fn failed(&mut self, group: &Group, state: &GroupView, owner: &NodeName, ask: &Ask) -> bool {
        let Some(verdict) = state.verdict.as_ref().filter(|v| v.fail_over) else { return false };
        if state.wanted == Wanted::Offline || !self.armed() {
            return false;
        }
        let (nodes, now) = (self.view.node_count(self.policy), self.view.now);
        let of = group.failovers_max(nodes);
        let count = group.recent(&state.failures, now).filter(|f| f.moved).count();
        if !group.may_fail_over(&state.failures, nodes, now) {
            let period = crate::Span(group.failover_period());
            self.plan.hold(
                &group.name,
                format!("{count} of {of} failovers within {period} are used up: it stays failed on {owner}"),
            );
            return true;
        }
        let Some(to) = self.target(group, state, ask, &[owner]) else {
            self.plan.hold(
                &group.name,
                format!("it failed on {owner}, and {}", self.why_nowhere(group, Some(owner))),
            );
            return true;
        };
        self.fleet.vacate(owner, ask);
        self.fleet.occupy(&to, ask);
        let (resource, node) = (verdict.resource.clone(), owner.clone());
        let reason = Reason::ResourceFailed { resource, node, count: count + 1, of };
        self.push(Action::FailOver { group: group.name.clone(), from: owner.clone(), to }, reason);
        true
    }

    /// A user asked for a move.
    pub(super) fn requested(
        &mut self,
        group: &Group,
        state: &GroupView,
        owner: &NodeName,
        ask: &Ask,
    ) -> bool {
        let Some(request) = &state.request else { return false };
        let offline = state.state(group) == GroupState::Offline;
        let ask = if offline { ask.clone().offline() } else { ask.clone() };
        let target = match &request.to {
            Some(to) => Some(to.clone()).filter(|to| to != owner && self.fleet.fits(to, &ask)),
            None => self.target(group, state, &ask, &[owner]),
        };
        let Some(to) = target else {
            let why = match &request.to {
                Some(to) if to == owner => format!("it is on {owner} already"),
                Some(to) => format!("{to} cannot take it: {}", self.why_not(group, to)),
                None => self.why_nowhere(group, Some(owner)),
            };
            self.plan.hold(&group.name, why);
            return true;
        };
        let kind = if offline { MoveKind::Offline } else { request.kind };
        self.start_move(group, owner, to, kind, &ask, Reason::Asked)
    }

    /// Its node is to be empty.
    pub(super) fn emptied(
        &mut self,
        group: &Group,
        state: &GroupView,
        owner: &NodeName,
        node: &NodeView,
        ask: &Ask,
    ) -> bool {
        let reason = match (node.state, node.drain) {
            (NodeState::Paused, DrainStatus::InProgress) => Reason::Drain(owner.clone()),
            (NodeState::Quarantined, _) if self.armed() => Reason::Quarantine(owner.clone()),
            _ => return false,
        };
        let up = state.uses_owner();
        let ask = if up { ask.clone() } else { ask.clone().offline() };
        let kind = if up { group.drain_kind(self.policy.move_type_threshold) } else { MoveKind::Offline };
        if let Some(to) = self.target(group, state, &ask, &[owner]) {
            return self.start_move(group, owner, to, kind, &ask, reason);
        }
        let why = if state.refused_by.is_empty() {
            self.why_nowhere(group, Some(owner))
        } else {
            let names: Vec<_> = state.refused_by.iter().map(ToString::to_string).collect();
            format!("moving it to {} failed", names.join(", "))
        };
        self.plan.hold(&group.name, why);
        if let (Some(hold), Some(leaving)) = (self.plan.holds.last().cloned(), self.leaving.get_mut(owner)) {
            leaving.stuck.push(hold);
        }
        true
    }

    /// Plans a move, unless one of the two nodes takes part in enough moves already: then it waits for its turn.
    fn start_move(
        &mut self,
        group: &Group,
        from: &NodeName,
        to: NodeName,
        kind: MoveKind,
        ask: &Ask,
        reason: Reason,
    ) -> bool {
        let most = self.policy.moves_at_once.max(1);
        let busy = |node: &NodeName| self.moves.get(node).copied().unwrap_or(0) >= most;
        let wait = busy(from) || busy(&to);
        if let Some(leaving) = self.leaving.get_mut(from) {
            leaving.under_way += 1;
        }
        // Also a move that has to wait keeps its room, so that a less important group does not get it.
        self.fleet.occupy(&to, ask);
        if !wait {
            *self.moves.entry(from.clone()).or_default() += 1;
            *self.moves.entry(to.clone()).or_default() += 1;
            let (group, from) = (group.name.clone(), from.clone());
            self.push(Action::Move { group, from, to, kind }, reason);
        }
        true
    }

    /// It was drained from a node that is back.
    pub(super) fn resumed(&mut self, group: &Group, state: &GroupView, owner: &NodeName, ask: &Ask) -> bool {
        let Some(home) = state.drained_from.as_ref().filter(|h| *h != owner) else { return false };
        let Some(node) = self.node(home).filter(|n| n.state == NodeState::Up) else { return false };
        let open = group.failback_window.is_none_or(|w| w.is_open(self.view.local_hour));
        let due = match node.resume {
            Some(ResumeFailback::Immediate) => true,
            Some(ResumeFailback::Policy) => open,
            Some(ResumeFailback::No) | None => false,
        };
        if !due {
            return false;
        }
        let ask = if state.uses_owner() { ask.clone() } else { ask.clone().offline() };
        if !self.fleet.fits(home, &ask) || state.refused_by.contains(home) {
            self.plan.hold(&group.name, format!("it cannot return to {home}: {}", self.why_not(group, home)));
            return true;
        }
        let kind = if state.uses_owner() {
            group.drain_kind(self.policy.move_type_threshold)
        } else {
            MoveKind::Offline
        };
        self.start_move(group, owner, home.clone(), kind, &ask, Reason::Resume(home.clone()))
    }

    /// A preferred owner that is better than the present one takes groups again.
    pub(super) fn fail_back(
        &mut self,
        group: &Group,
        state: &GroupView,
        owner: &NodeName,
        ask: &Ask,
    ) -> bool {
        if state.state(group) != GroupState::Online {
            return false;
        }
        let failed = |n: &NodeName| group.recent(&state.failures, self.view.now).any(|f| f.node == *n);
        let mut better = group.failback_targets(owner, self.view.local_hour).iter();
        let fit = |n: &&NodeName| self.fleet.fits(n, ask) && !failed(n) && !state.refused_by.contains(*n);
        let Some(to) = better.find(fit).cloned() else { return false };
        let kind = if group.has_vm() { MoveKind::Live } else { MoveKind::Offline };
        let reason = Reason::Failback(to.clone());
        self.start_move(group, owner, to, kind, ask, reason)
    }

    /// Why `to` cannot take it, in words.
    fn why_not(&self, group: &Group, to: &NodeName) -> String {
        let ratings = crate::placement::rate(self.policy, self.view, group);
        let rating = ratings.into_iter().find(|r| r.node == *to);
        let refusals: Vec<_> = rating.into_iter().flat_map(|r| r.refusals).map(|r| r.to_string()).collect();
        match refusals.is_empty() {
            true if !self.view.nodes.contains_key(to) => "there is no such node".into(),
            true => "its room is spoken for, or a move to it failed".into(),
            false => refusals.join(", "),
        }
    }
}

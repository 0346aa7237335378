//! Groups without a living owner: new ones, and those of lost nodes.

use super::decide::Work;
use super::{Action, Reason, Then};
use crate::placement::{Ask, Packing, SEARCH, Wish, pack};
use crate::{FencingClass, Group, GroupView, Lost, NodeName, NodeState, Priority, Wanted};
use std::time::Duration;

impl<'a> Work<'a> {
    /// Whether its owner is none or not there.
    pub(super) fn is_homeless(&self, state: &GroupView) -> bool {
        if state.orphaned {
            return true;
        }
        let owner = state.owner.as_ref().and_then(|o| self.node(o));
        owner.is_none_or(|n| matches!(n.state, NodeState::Down | NodeState::Isolated | NodeState::Joining))
    }

    /// Places them, those of the highest priority first. If that leaves some without a node, looks for a way to place all.
    pub(super) fn homeless(&mut self, groups: &[&Group]) {
        let nothing = GroupView::default();
        let mut waiting: Vec<(&Group, &GroupView, Ask, Then)> = Vec::new();
        for group in groups {
            let state = self.view.groups.get(&group.name).unwrap_or(&nothing);
            if state.doing.is_some()
                || !self.is_homeless(state)
                || !self.armed()
                || !self.released(group, state)
            {
                continue;
            }
            let ask = self.fleet.ask(group);
            // No Auto Start, or offline by a user's wish: an owner, and no more.
            if group.priority == Priority::NO_AUTO_START || state.wanted == Wanted::Offline {
                waiting.push((group, state, ask.offline(), Then::Offline));
            } else {
                waiting.push((group, state, ask, Then::Online));
            }
        }
        let before = self.fleet.clone();
        let mut places: Vec<Option<NodeName>> = Vec::new();
        for (group, state, ask, _) in &waiting {
            let place = self.fleet.choose(ask, &self.wish(group, state));
            if let Some(node) = &place {
                self.fleet.occupy(node, ask);
            }
            places.push(place);
        }
        if places.iter().any(Option::is_none) {
            let asks: Vec<Ask> = waiting.iter().map(|w| w.2.clone()).collect();
            if let Packing::Found(found) = pack(&before, &asks, &mut { SEARCH }) {
                self.fleet = before;
                waiting.iter().zip(&found).for_each(|(w, node)| self.fleet.occupy(node, &w.2));
                places = found.into_iter().map(Some).collect();
            }
        }
        for ((group, state, ask, then), place) in waiting.iter().zip(places) {
            match place {
                Some(to) => self.place(group, state, to, *then),
                None => self.make_room(group, ask),
            }
        }
    }

    fn place(&mut self, group: &Group, state: &GroupView, to: NodeName, then: Then) {
        let epoch = state.epoch + 1;
        let lost = state.owner.as_ref().and_then(|o| Some((o, self.node(o)?.lost.clone()?)));
        let reason = match &lost {
            _ if state.orphaned => state.owner.clone().map_or(Reason::Wanted, Reason::NodeRestarted),
            None if then == Then::Offline => Reason::Ownerless,
            None => Reason::Wanted,
            Some((node, lost)) if lost.clean => Reason::NodeLeft((*node).clone()),
            Some((node, Lost { confirmed: Some(by), .. })) => {
                Reason::NodeOff { node: (*node).clone(), by: by.clone() }
            }
            Some((node, lost)) => Reason::NodeLost { node: (*node).clone(), missed: lost.missed, epoch },
        };
        let (name, from) = (group.name.clone(), state.owner.clone());
        self.push(Action::Place { group: name, from, to, epoch, then }, reason);
    }

    /// Whether the group may be taken from its owner. Says why not.
    fn released(&mut self, group: &Group, state: &GroupView) -> bool {
        let Some(owner) = state.owner.as_ref().filter(|_| !state.orphaned) else { return true };
        // A node that was evicted left cleanly or was confirmed off, or it could not have been.
        let Some(node) = self.node(owner) else { return true };
        let class = group.fencing(self.policy);
        let Some(lost) = &node.lost else { return false };
        if node.state == NodeState::Joining && !lost.clean && lost.safe_for.is_none() {
            return false;
        }
        if !lost.releases(class) {
            if class == FencingClass::N {
                self.plan.hold(
                    &group.name,
                    format!("owner unreachable, fencing not confirmed: its storage is of class N; power {owner} off and confirm it"),
                );
            } else if class == FencingClass::C && lost.safe_for.is_some() {
                self.plan.hold(
                    &group.name,
                    format!("waiting for the STONITH hook to confirm that {owner} is off"),
                );
            }
            return false;
        }
        let period = Duration::from_secs(u64::from(self.policy.resiliency_s(group)));
        let known = lost.clean || lost.confirmed.is_some();
        known || self.view.now.since(lost.since) >= period
    }

    /// Nodes where it failed lately are avoided.
    pub(super) fn wish<'g>(&self, group: &Group, state: &'g GroupView) -> Wish<'g> {
        let avoid = group.recent(&state.failures, self.view.now).map(|f| &f.node).collect();
        Wish { never: Vec::new(), avoid }
    }

    /// The best node for it, but none of `never`, nor one that a move to failed.
    pub(super) fn target(
        &self,
        group: &Group,
        state: &GroupView,
        ask: &Ask,
        never: &[&NodeName],
    ) -> Option<NodeName> {
        let mut wish = self.wish(group, state);
        wish.never.extend_from_slice(never);
        wish.never.extend(state.refused_by.iter());
        self.fleet.choose(ask, &wish)
    }
}

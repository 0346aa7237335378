//! The invariants I1 to I12. I1 is checked where writes land.

use super::store::{GROUPS, Key, Order, Own, Record, Txn};
use super::world::World;
use crate::heartbeat::Standing;
use crate::{DrainStatus, Failback, Plan, Reason, ResourceState, Uid, View};
use std::collections::BTreeSet;

#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    executed: BTreeSet<(Uid, u64)>,
}

impl World {
    /// I2: at most one running machine. A node that stood still with its clock, and has not noticed, cannot know better: there
    /// only the storage helps.
    pub(super) fn check_after_event(&mut self) {
        for g in 0..GROUPS {
            let runs = |n: &usize| {
                let node = &self.nodes[*n];
                let here = node.locals[g].as_ref().and_then(|l| l.instance.as_ref());
                node.on && !node.halted && !node.stale_clock && here.is_some_and(|i| i.running)
            };
            let running: Vec<usize> = self.everybody().filter(runs).collect();
            if running.len() > 1 {
                self.broken("I2", format!("group {g} runs on nodes {running:?}"));
            }
        }
    }

    pub(super) fn owns_before(&self, _n: usize, txn: &Txn) -> Vec<(usize, Option<Own>)> {
        let own = |(key, _): &(Key, Record)| match key {
            Key::Own(g) => Some((*g, self.store.now.own(*g).map(|(own, _)| own.clone()))),
            _ => None,
        };
        txn.puts.iter().filter_map(own).collect()
    }

    /// I3: ownership changes by compare-and-swap, with the next epoch, by the owner or after its life. I9: a drained node is
    /// empty. I7: failovers.
    pub(super) fn judge_commit(&mut self, n: usize, txn: &Txn, before: &[(usize, Option<Own>)]) {
        for (g, old) in before {
            let Some(new) = self.store.now.own(*g).map(|(own, _)| own.clone()) else { continue };
            if !txn.compares.iter().any(|(key, _)| *key == Key::Own(*g)) {
                self.broken("I3", format!("the owner of group {g} was written without compare"));
            }
            let group = &self.policy.groups[&self.group_names[*g]];
            let most = group.failovers_max(self.policy.nodes.len());
            if new.failures.len() > most as usize {
                self.broken("I7", format!("group {g} failed over {} times", new.failures.len()));
            }
            self.judge_owner(n, *g, old.as_ref(), &new);
        }
        for (key, record) in &txn.puts {
            match (key, record) {
                (Key::Member(_), Record::Member(m)) if m.standing == Standing::Fenced => {
                    self.outcome.fenced += 1
                }
                (Key::Node(m), Record::Node(record)) if record.drain == DrainStatus::Completed => {
                    let left = (0..GROUPS).find(|g| {
                        self.store.now.own(*g).is_some_and(|(own, _)| own.owner.node == self.node_names[*m])
                    });
                    match left {
                        Some(g) => {
                            self.broken("I9", format!("node {m} is said to be drained and owns group {g}"))
                        }
                        None => self.outcome.drains += 1,
                    }
                }
                _ => {}
            }
        }
    }

    fn judge_owner(&mut self, n: usize, g: usize, old: Option<&Own>, new: &Own) {
        let Some(old) = old else { return };
        let (was, is) = (&old.owner, &new.owner);
        if was.node == is.node && was.incarnation == is.incarnation && was.epoch == is.epoch {
            return;
        }
        if is.epoch != was.epoch + 1 {
            return self
                .broken("I3", format!("the epoch of group {g} went from {} to {}", was.epoch, is.epoch));
        }
        let owner = self.node_index(&was.node);
        if n == owner && matches!(old.order, Order::Hand { .. }) {
            match old.order {
                Order::Hand { kind: None, .. } => self.outcome.failovers += 1,
                _ => self.outcome.moves += 1,
            }
            return;
        }
        let life = self.store.now.member(owner);
        let over = life.is_none_or(|(m, _)| m.incarnation > was.incarnation || m.standing != Standing::Alive);
        if !over {
            return self
                .broken("I3", format!("group {g} was taken from node {owner}, whose life is not over"));
        }
        match life {
            Some((m, _)) if m.standing != Standing::Alive && m.incarnation == was.incarnation => {
                self.outcome.takeovers += 1;
            }
            _ => self.outcome.restarts += 1,
        }
    }

    /// I4: what was acknowledged is there. I6: only possible owners.
    pub(super) fn check_opened(&mut self, n: usize, g: usize, counter: u64) {
        let acknowledged = self.disks[g].acknowledged;
        if counter < acknowledged {
            self.broken(
                "I4",
                format!("group {g} reads back {counter} on node {n}, {acknowledged} was acknowledged"),
            );
        }
        let group = &self.policy.groups[&self.group_names[g]];
        if !group.possible_on(&self.node_names[n]) {
            self.broken("I6", format!("node {n} is no possible owner of group {g}"));
        }
    }

    /// I6: memory.
    pub(super) fn check_room(&mut self, n: usize, _g: usize) {
        let here =
            (0..GROUPS).filter(|g| self.nodes[n].locals[*g].as_ref().is_some_and(|l| l.instance.is_some()));
        let used: u64 = here.map(|g| self.policy.groups[&self.group_names[g]].needs().memory_mib).sum();
        if used > Self::NODE_MEMORY {
            self.broken("I6", format!("node {n} runs machines of {used} MiB"));
        }
    }

    /// I5: nothing is online before what it depends on.
    pub(super) fn check_dependencies(&mut self, n: usize, g: usize) {
        let Some(local) = &self.nodes[n].locals[g] else { return };
        let (group, states) = (local.runner.group(), local.runner.states());
        let orphan =
            (0..states.len()).find(|i| states[*i] == ResourceState::Online && !group.provided(*i, states));
        if let Some(i) = orphan {
            self.broken(
                "I5",
                format!("resource {i} of group {g} is online on node {n} without its provider"),
            );
        }
    }

    /// I7: restarts.
    pub(super) fn count_restart(&mut self, n: usize, g: usize) {
        let vm = self.vm_of(g);
        let Some(local) = &mut self.nodes[n].locals[g] else { return };
        local.restarts += 1;
        // The first is the start; providers restart at most as often and take the machine with them.
        let threshold: u32 = local.runner.group().resources.iter().map(|r| r.restart.threshold).sum();
        let most = 1 + threshold.min(local.runner.group().resources[vm].restart.threshold);
        if local.restarts > most {
            let count = local.restarts;
            self.broken("I7", format!("group {g} was started {count} times on node {n}"));
        }
    }

    /// I8: failback only to a preferred owner, in its window.
    pub(super) fn check_failbacks(&mut self, plan: &Plan, view: &View) {
        for step in &plan.steps {
            let (Reason::Failback(to), Some(name)) = (&step.reason, step.action.group()) else { continue };
            let group = &self.policy.groups[name];
            let open = group.failback_window.is_none_or(|w| w.is_open(view.local_hour));
            if group.failback != Failback::Allow || !open || !group.preferred.contains(to) {
                self.broken("I8", format!("'{name}' fails back to {to}"));
            }
        }
    }

    /// I10: every order is carried out at most once by each owner.
    pub(super) fn check_uid(&mut self, own: &Own) {
        if !self.rules.executed.insert((own.uid, own.owner.epoch)) {
            self.broken("I10", format!("step {} is carried out twice", own.uid));
        }
    }

    /// I11: what the watch has built is what a list says.
    pub(super) fn check_cache(&mut self, n: usize) {
        let cache = &self.nodes[n].cache;
        if cache.revision == self.store.now.revision && *cache != self.store.now {
            self.broken(
                "I11",
                format!("the cache of node {n} differs from the store at revision {}", cache.revision),
            );
        }
    }

    /// A group that does not run on any node, and was not given up.
    fn down(&self, g: usize) -> bool {
        let online = |n: usize| {
            let node = &self.nodes[n];
            node.locals[g].as_ref().is_some_and(|l| {
                let gave_up = l.runner.verdict().is_some();
                let up = l.runner.states().iter().all(|s| *s == ResourceState::Online);
                gave_up || up && l.instance.as_ref().is_some_and(|i| i.running)
            })
        };
        !self.everybody().any(online)
    }

    /// All nodes are members, all groups run, nobody is on the move: nothing will happen any more.
    pub(super) fn is_quiet(&self) -> bool {
        let still = |g: usize| self.store.now.own(g).is_some_and(|(own, _)| own.order == Order::Online);
        self.everybody().all(|n| self.nodes[n].on && self.holds(n))
            && (0..GROUPS).all(|g| still(g) && !self.down(g))
    }

    /// I12: when all faults have ended every group that is to run does.
    pub(super) fn check_liveness(&mut self) {
        if let Some(g) = (0..GROUPS).find(|g| self.down(*g)) {
            self.broken("I12", format!("group {g} does not run although all faults have ended"));
        }
    }
}

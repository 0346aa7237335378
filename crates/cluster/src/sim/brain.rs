//! The elected coordinator: what it sees, what it plans, and the transactions that carry it out.

use super::node::Purpose;
use super::rng::Rng;
use super::store::{GROUPS, Key, NODES, NodeRecord, Order, Own, Record, Txn};
use super::world::{MS, Reply, Request, World};
use super::{Config, Protocol};
use crate::heartbeat::{Owner, Presence, Standing};
use crate::{
    Action, Dependencies, Doing, DrainStatus, Failback, FailbackWindow, Failure, Group, GroupView, Lost,
    NodeName, NodePolicy, NodeState, NodeView, Plan, Policy, Priority, Reason, Resource, ResourceKind,
    ResourceName, ResourceState, Step, StorageName, Time, Verdict, View,
};

/// The hour in all runs: within no failback window.
const HOUR: u8 = 12;

/// Three nodes and four machines: with a disk of its own and failback, with a failback window that is closed, with possible
/// owners, and of high priority; the last two avoid each other.
pub(super) fn policy(config: &Config, rng: &mut Rng) -> Policy {
    let mut policy = Policy { timing: config.timing, ..Policy::default() };
    let name = |n: &str| NodeName::new(n).ok();
    for node in ["node-a", "node-b", "node-c"].into_iter().filter_map(name) {
        policy.nodes.insert(node, NodePolicy::default());
    }
    let storage = StorageName::new("shared").ok();
    policy.storages.extend(storage.clone().map(|s| (s, config.class)));
    for g in 0..GROUPS {
        let Ok(mut group) = Group::virtual_machine(&format!("vm-{g}")) else { continue };
        for resource in &mut group.resources {
            resource.needs.storages.extend(storage.clone());
        }
        if let Some(machine) = group.resources.last_mut() {
            machine.needs.memory_mib = 2_048;
        }
        shape(g, &mut group, rng);
        policy.groups.insert(group.name.clone(), group);
    }
    policy
}

fn shape(g: usize, group: &mut Group, rng: &mut Rng) {
    let node = |n: &str| NodeName::new(n).ok();
    match g {
        0 => {
            if let Ok(disk) = ResourceName::new("disk") {
                group.resources[0].depends_on = Dependencies::all([disk.clone()]);
                group.resources.push(Resource::new(disk, ResourceKind::ClusterDisk));
            }
            (group.preferred, group.failback) = (node("node-a").into_iter().collect(), Failback::Allow);
        }
        1 => {
            (group.preferred, group.failback) = (node("node-b").into_iter().collect(), Failback::Allow);
            group.failback_window = FailbackWindow::new(3, 4).ok();
        }
        2 => {
            let owners = ["node-a", "node-b"].into_iter().filter_map(node).collect();
            group.resources[1].possible_owners = Some(owners);
            group.anti_affinity.insert("web".into());
        }
        _ => {
            group.anti_affinity.insert("web".into());
            group.priority = if rng.chance(500) { Priority::HIGH } else { Priority::LOW };
        }
    }
}

impl World {
    /// The memory of a node, in MiB: three machines.
    pub(super) const NODE_MEMORY: u64 = 6_144;

    pub(super) fn view(&self, n: usize) -> View {
        let node = &self.nodes[n];
        let mut view =
            View { revision: node.cache.revision, now: Time(self.now), local_hour: HOUR, ..View::default() };
        for m in 0..NODES {
            view.nodes.insert(self.node_names[m].clone(), self.node_view(n, m));
        }
        for g in 0..GROUPS {
            let group = self.group_view(n, g);
            view.groups.insert(self.group_names[g].clone(), group);
        }
        view
    }

    fn node_view(&self, n: usize, m: usize) -> NodeView {
        let node = &self.nodes[n];
        let record = node.cache.node(m).map(|r| r.0.clone());
        let paused = record.as_ref().is_some_and(|r| r.paused);
        let mut shown = NodeView { memory_mib: Self::NODE_MEMORY, ..NodeView::default() };
        shown.storages.extend(self.policy.storages.keys().cloned());
        shown.drain = record.as_ref().map_or(DrainStatus::NotInitiated, |r| r.drain);
        shown.resume = record.as_ref().and_then(|r| r.resume);
        let (missed, confirmed) = node.taker.loss(&self.node_names[m]);
        let lost = Lost { missed, confirmed: confirmed.map(ToOwned::to_owned), ..Lost::default() };
        let presence = if n == m { Some(Presence::Alive) } else { self.presence(n, m) };
        let lease = self.config.protocol == Protocol::LeaseKeepalive;
        (shown.state, shown.lost) = match presence {
            None => (NodeState::Joining, None),
            Some(Presence::Silent) if !lease => (NodeState::Isolated, Some(lost)),
            Some(Presence::Alive | Presence::Silent) if paused => (NodeState::Paused, None),
            Some(Presence::Alive | Presence::Silent) => (NodeState::Up, None),
            Some(Presence::Fenced(safe_for)) => (NodeState::Down, Some(Lost { safe_for, ..lost })),
            Some(Presence::Left) => (NodeState::Down, Some(Lost { clean: true, ..lost })),
        };
        shown
    }

    fn group_view(&self, n: usize, g: usize) -> GroupView {
        let cache = &self.nodes[n].cache;
        let Some((own, _)) = cache.own(g) else { return GroupView::default() };
        let count = self.policy.groups[&self.group_names[g]].resources.len();
        let status = cache.status(g).filter(|s| s.epoch == own.owner.epoch);
        let owner = self.node_index(&own.owner.node);
        let life = cache.member(owner).map_or(0, |m| m.0.incarnation);
        let verdict: Option<Verdict> = status.and_then(|s| s.verdict.clone());
        let doing = match own.order {
            Order::Online => None,
            Order::Hand { to, .. } => Some(Doing { uid: own.uid, to: Some(self.node_names[to].clone()) }),
        };
        let orphaned = life > own.owner.incarnation;
        let gone = orphaned || !matches!(self.presence(n, owner), Some(Presence::Alive) | None) && n != owner;
        GroupView {
            owner: Some(own.owner.node.clone()),
            epoch: own.owner.epoch,
            orphaned,
            resources: status.map_or(vec![ResourceState::OnlinePending; count], |s| s.states.clone()),
            verdict,
            failures: own.failures.clone(),
            // An order of an owner that is gone ends with it.
            doing: doing.filter(|_| !gone),
            drained_from: own.drained_from.map(|m| self.node_names[m].clone()),
            refused_by: own.refused_by.iter().map(|m| self.node_names[*m].clone()).collect(),
            ..GroupView::default()
        }
    }

    /// Claims the office where it is vacant, and plans.
    pub(super) fn coordinate(&mut self, n: usize) {
        let node = &self.nodes[n];
        let busy = node
            .requests
            .values()
            .any(|(p, _)| matches!(p, Purpose::Plan(_) | Purpose::Claim | Purpose::NodeStep));
        if !self.holds(n) || busy || node.cache.revision == 0 {
            return;
        }
        let incarnation = node.agent.incarnation();
        let office = node.cache.coordinator();
        let mine = office.is_some_and(|(c, i, _)| c == n && i == incarnation);
        if !mine || node.reclaim {
            let vacant = office.is_none_or(|(c, i, _)| {
                let life = node.cache.member(c);
                c == n || life.is_none_or(|(m, _)| m.incarnation > i || m.standing != Standing::Alive)
            });
            if vacant {
                let puts = vec![(Key::Coordinator, Record::Coordinator(n, incarnation))];
                let txn = Txn { compares: vec![(Key::Coordinator, office.map(|o| o.2))], puts };
                self.send(n, Purpose::Claim, Request::Txn(txn));
            }
            return;
        }
        if node.cache.revision < node.plan_after || self.now < node.planned_at + 200 * MS {
            return;
        }
        self.nodes[n].planned_at = self.now;
        let view = self.view(n);
        let plan = crate::plan(&self.policy, &view);
        if let Some(violation) = crate::check(&self.policy, &view, &plan).first() {
            return self.broken("I6", format!("the plan breaks a rule: {violation}"));
        }
        self.check_failbacks(&plan, &view);
        self.carry_out(n, &plan);
    }

    pub(super) fn plan_answered(&mut self, n: usize, purpose: Purpose, reply: Option<&Reply>) {
        let node = &mut self.nodes[n];
        match reply {
            Some(Reply::Committed(revision)) => {
                node.plan_after = node.plan_after.max(*revision);
                if purpose == Purpose::Claim {
                    node.reclaim = false;
                }
            }
            Some(_) => {}
            // It may be committed at any later time: only a new claim makes it void.
            None => node.reclaim = true,
        }
    }

    fn carry_out(&mut self, n: usize, plan: &Plan) {
        let Some((_, _, office)) = self.nodes[n].cache.coordinator() else { return };
        for step in &plan.steps {
            let group = step.action.group().and_then(|name| self.group_names.iter().position(|g| g == name));
            let Some((mut compares, puts)) = (match group {
                Some(g) => self.group_step(n, g, step),
                None => self.node_step(n, &step.action),
            }) else {
                continue;
            };
            self.log(|| format!("coordinator {n}: {step}"));
            compares.push((Key::Coordinator, Some(office)));
            let purpose = group.map_or(Purpose::NodeStep, Purpose::Plan);
            self.send(n, purpose, Request::Txn(Txn { compares, puts }));
        }
    }

    fn group_step(&self, n: usize, g: usize, step: &Step) -> Option<Change> {
        let cache = &self.nodes[n].cache;
        let before = cache.own(g);
        let mut compares = vec![(Key::Own(g), before.map(|b| b.1))];
        let old = before.map(|b| b.0.clone());
        let life = |m: usize| match m == n {
            true => Some(self.nodes[n].agent.incarnation()),
            false => cache.member(m).map(|(member, _)| member.incarnation),
        };
        let own = match &step.action {
            Action::Place { from, to, epoch, .. } => {
                let to = self.node_index(to);
                let lost = from.as_ref().map(|f| self.node_index(f));
                let record = lost.and_then(|m| Some((m, cache.member(m)?)));
                if let Some((m, (member, revision))) = record
                    && member.standing != Standing::Alive
                {
                    compares.push((Key::Member(m), Some(revision)));
                }
                let owner =
                    Owner { node: self.node_names[to].clone(), incarnation: life(to)?, epoch: *epoch };
                let (failures, drained_from) =
                    old.map_or((Vec::new(), None), |o| (o.failures, o.drained_from));
                let (order, refused_by) = (Order::Online, Vec::new());
                Own { owner, order, uid: step.uid, live: false, drained_from, failures, refused_by }
            }
            Action::Online { .. } => Own { order: Order::Online, uid: step.uid, ..old? },
            Action::Move { to, kind, .. } => {
                let to = self.node_index(to);
                let order = Order::Hand { to, incarnation: life(to)?, kind: Some(*kind) };
                let old = old?;
                let drained_from = match &step.reason {
                    Reason::Drain(node) => Some(self.node_index(node)),
                    Reason::Resume(_) => None,
                    _ => old.drained_from,
                };
                Own { order, uid: step.uid, drained_from, ..old }
            }
            Action::FailOver { from, to, .. } => {
                let to = self.node_index(to);
                let mut old = old?;
                old.failures.push(Failure { at: Time(self.now), node: from.clone(), moved: true });
                Own { order: Order::Hand { to, incarnation: life(to)?, kind: None }, uid: step.uid, ..old }
            }
            Action::MakeRoom { .. } | Action::Drained { .. } | Action::Resumed { .. } => return None,
        };
        Some((compares, vec![(Key::Own(g), Record::Own(own))]))
    }

    fn node_step(&self, n: usize, action: &Action) -> Option<Change> {
        let (node, change): (&NodeName, fn(NodeRecord, DrainStatus) -> NodeRecord) = match action {
            Action::Drained { node, .. } => (node, |record, drain| NodeRecord { drain, ..record }),
            Action::Resumed { node } => (node, |record, _| NodeRecord { resume: None, ..record }),
            _ => return None,
        };
        let status = match action {
            Action::Drained { status, .. } => *status,
            _ => DrainStatus::NotInitiated,
        };
        let m = self.node_index(node);
        let (record, revision) = self.nodes[n].cache.node(m)?;
        let record = change(record.clone(), status);
        Some((vec![(Key::Node(m), Some(revision))], vec![(Key::Node(m), Record::Node(record))]))
    }
}

type Change = (Vec<(Key, Option<u64>)>, Vec<(Key, Record)>);

//! The event queue and what is common to all parts.

use super::disk::{Disk, Write};
use super::node::{Node, Purpose};
use super::rng::Rng;
use super::rules::Rules;
use super::store::{GROUPS, Key, NODES, NodeRecord, Record, Records, Store, Txn};
use super::{Broken, Config, Outcome};
use crate::heartbeat::{Agent, Member, Standing, Taker};
use crate::{GroupName, NodeName, Policy};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

pub(super) const MS: u64 = 1_000;
pub(super) const SECOND: u64 = 1_000 * MS;

#[derive(Clone, Debug)]
pub(super) enum Request {
    Txn(Txn),
    Read(Key),
    /// Lease protocol: keep the lease, or mark the life as over.
    KeepAlive(usize),
}

#[derive(Clone, Debug)]
pub(super) enum Reply {
    Committed(u64),
    Refused,
    Record(Option<(Record, u64)>),
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A request reaches the store.
    Arrive { node: usize, life: u32, id: u64, request: Box<Request>, answer: bool },
    /// An answer reaches the node.
    Answer { node: usize, life: u32, id: u64, reply: Box<Reply> },
    /// The sender gives up waiting.
    Timeout { node: usize, life: u32, id: u64 },
    /// Changes of the store reach the node.
    Watch { node: usize, life: u32 },
    /// The agent's timer.
    Wake { node: usize, life: u32, at: u64 },
    /// The agent looks at its groups and the whole.
    Look { node: usize, life: u32 },
    /// A worker looks at the deadline when it comes.
    AtDeadline { node: usize, life: u32, armed: u64 },
    /// The kernel's timer that kills.
    DeadMan { node: usize, life: u32, armed: u64 },
    /// The watchdog runs out.
    Watchdog { node: usize, life: u32, fed: u64 },
    /// A guest wants to write.
    Guest { node: usize, life: u32, group: usize, generation: u64 },
    /// A worker submits what it has checked.
    Submit { node: usize, life: u32, group: usize, generation: u64 },
    /// A write reaches the disk.
    Land(Write),
    /// A resource did what it was told: online or offline.
    Resource { node: usize, life: u32, group: usize, epoch: u64, resource: usize, up: bool },
    /// A runner's timer.
    Tick { node: usize, life: u32, group: usize, epoch: u64 },
    /// A move has got on.
    Moving { node: usize, life: u32, group: usize, epoch: u64 },
    /// All of a fenced life has ended.
    Ended { node: usize, life: u32 },
    /// The STONITH hook answers.
    Stonith { node: usize, life: u32, target: usize, incarnation: u64 },
    /// The store is asked whether a lease is over.
    LeaseOver { node: usize, stamp: u64 },
    /// Something goes wrong, or right again.
    Nemesis(super::nemesis::Blow),
}

impl Event {
    /// The process that it waits for.
    pub(super) fn waits_for(&self) -> Option<(usize, u32, Waits)> {
        Some(match *self {
            Self::Answer { node, life, .. }
            | Self::Timeout { node, life, .. }
            | Self::Watch { node, life }
            | Self::Wake { node, life, .. }
            | Self::Look { node, life }
            | Self::Tick { node, life, .. }
            | Self::Moving { node, life, .. }
            | Self::Stonith { node, life, .. }
            | Self::Ended { node, life } => (node, life, Waits::Agent),
            Self::Submit { node, life, .. } | Self::AtDeadline { node, life, .. } => {
                (node, life, Waits::Worker)
            }
            Self::Guest { node, life, .. } | Self::Resource { node, life, .. } => (node, life, Waits::Worker),
            Self::DeadMan { node, life, .. } | Self::Watchdog { node, life, .. } => {
                (node, life, Waits::Kernel)
            }
            Self::Arrive { .. } | Self::Land(_) | Self::Nemesis(_) | Self::LeaseOver { .. } => return None,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    Agent,
    Worker,
    Kernel,
}

struct Queued(u64, u64, Event);

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub(super) struct World {
    pub config: Config,
    pub now: u64,
    /// When all faults have ended.
    pub heal_at: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    queued: u64,
    pub rng: Rng,
    pub policy: Policy,
    pub node_names: Vec<NodeName>,
    pub group_names: Vec<GroupName>,
    pub nodes: Vec<Node>,
    pub store: Store,
    pub disks: Vec<Disk>,
    pub rules: Rules,
    pub outcome: Outcome,
    pub generation: u64,
    /// Lease protocol: when each node's lease was kept last.
    pub leases: Vec<u64>,
    /// Until when a stale leader confirms everything to this node.
    pub stale_leader: Vec<u64>,
    keep_log: bool,
}

impl World {
    pub fn new(seed: u64, config: &Config, keep_log: bool) -> Self {
        let mut rng = Rng::new(seed);
        let policy = super::brain::policy(config, &mut rng);
        let mut world = Self {
            config: *config,
            now: 0,
            heal_at: if config.class == crate::FencingClass::S { 22 } else { 32 } * SECOND,
            queue: BinaryHeap::new(),
            queued: 0,
            node_names: policy.nodes.keys().cloned().collect(),
            group_names: policy.groups.keys().cloned().collect(),
            policy,
            nodes: Vec::new(),
            store: Store::default(),
            disks: vec![Disk { enforces: config.enforces, ..Disk::default() }; GROUPS],
            rules: Rules::default(),
            outcome: Outcome::default(),
            generation: 0,
            leases: vec![0; NODES],
            stale_leader: vec![0; NODES],
            rng,
            keep_log,
        };
        for n in 0..NODES {
            let node = world.fresh_node();
            world.nodes.push(node);
            let record = NodeRecord { paused: false, drain: crate::DrainStatus::NotInitiated, resume: None };
            let txn = Txn { compares: vec![], puts: vec![(Key::Node(n), Record::Node(record))] };
            world.store.commit(&txn);
            world.boot(n);
        }
        world.schedule_faults();
        world
    }

    fn fresh_node(&mut self) -> Node {
        let drift = self.config.drift_ppm.unsigned_abs();
        let ppm = i64::try_from(self.rng.within(0, 2 * drift)).unwrap_or(0) - self.config.drift_ppm;
        Node {
            clock: super::clock::Clock::new(self.rng.within(0, 1_000 * SECOND), ppm),
            on: true,
            life: 0,
            agent: Agent::new(self.config.timing),
            taker: Taker::new(self.config.timing),
            cache: Records::default(),
            locals: [const { None }; GROUPS],
            agent_stopped: false,
            workers_stopped: false,
            halted: false,
            stale_clock: false,
            backlog: Vec::new(),
            cut_to: false,
            cut_from: false,
            watch_under_way: false,
            watch_lags_until: 0,
            stalled_until: 0,
            deadline: None,
            wake: 0,
            armed: 0,
            fed: 0,
            next_request: 0,
            requests: std::collections::BTreeMap::new(),
            plan_after: 0,
            planned_at: 0,
            in_flight: 0,
            agent_down: false,
            fed_until: crate::Time::default(),
            given: [0; GROUPS],
            reclaim: false,
            joined: false,
        }
    }

    /// The node's software starts: nothing of an earlier life is left.
    pub fn boot(&mut self, n: usize) {
        let timing = self.config.timing;
        let node = &mut self.nodes[n];
        node.on = true;
        node.life += 1;
        node.agent = Agent::new(timing);
        node.taker = Taker::new(timing);
        node.cache = Records::default();
        node.locals = [const { None }; GROUPS];
        (node.agent_stopped, node.workers_stopped, node.halted) = (false, false, false);
        (node.agent_down, node.stale_clock, node.joined) = (false, false, false);
        node.given = [0; GROUPS];
        node.backlog.clear();
        node.requests.clear();
        node.deadline = None;
        node.watch_under_way = false;
        (node.plan_after, node.planned_at, node.wake) = (0, 0, 0);
        node.reclaim = true;
        let life = node.life;
        self.after(self.now + MS, Event::Look { node: n, life });
        self.poke(n);
        self.notify(n);
    }

    pub fn after(&mut self, at: u64, event: Event) {
        self.queued += 1;
        self.queue.push(Reverse(Queued(at.max(self.now), self.queued, event)));
    }

    pub fn log(&mut self, text: impl FnOnce() -> String) {
        if self.keep_log {
            let line = format!("{:>9.3} {}", self.now as f64 / 1e6, text());
            self.outcome.log.push(line);
        }
    }

    pub fn broken(&mut self, invariant: &'static str, what: String) {
        self.log(|| format!("BROKEN {invariant}: {what}"));
        if self.outcome.broken.is_none() {
            self.outcome.broken = Some(Broken { invariant, at_ms: self.now / MS, what });
        }
    }

    pub fn run(mut self) -> Outcome {
        let class_wait = match self.config.class {
            crate::FencingClass::S => self.config.timing.wait,
            _ => self.config.timing.wait_watchdog(),
        };
        // After healing: two waits, a boot of the nodes and one of the guests, and some transactions.
        let settle = 2 * crate::time::micros(class_wait) + 12 * SECOND;
        let end = self.heal_at + settle;
        let mut quiet = self.heal_at + 4 * SECOND;
        while let Some(Reverse(Queued(at, _, event))) = self.queue.pop() {
            if at > end || self.outcome.broken.is_some() {
                break;
            }
            if at >= quiet {
                if self.is_quiet() {
                    break;
                }
                quiet = at + SECOND;
            }
            self.now = at;
            self.outcome.events += 1;
            self.dispatch(event);
            self.check_after_event();
        }
        if self.outcome.broken.is_none() {
            self.check_liveness();
        }
        for disk in &self.disks {
            self.outcome.writes += disk.landed;
            self.outcome.refused += disk.refused;
        }
        self.outcome
    }

    pub fn dispatch(&mut self, event: Event) {
        if let Some((n, life, waits)) = event.waits_for() {
            let node = &mut self.nodes[n];
            if !node.on || node.life != life {
                return;
            }
            let runs = match waits {
                Waits::Agent => node.agent_runs(),
                Waits::Worker => node.workers_run(),
                Waits::Kernel => !node.halted,
            };
            if !runs {
                // A restarting agent has lost its timers and connections; the rest waits.
                if !(waits == Waits::Agent && node.agent_down && !node.halted) {
                    node.backlog.push(event);
                }
                return;
            }
            if waits == Waits::Agent && self.nodes[n].stale_clock {
                self.clock_jumped(n);
            }
        }
        match event {
            Event::Arrive { node, life, id, request, answer } => {
                self.arrive(node, life, id, *request, answer)
            }
            Event::Answer { node, id, reply, .. } => self.answered(node, id, Some(*reply)),
            Event::Timeout { node, id, .. } => self.answered(node, id, None),
            Event::Watch { node, .. } => self.watched(node),
            Event::Wake { node, at, .. } => self.woken(node, at),
            Event::Look { node, life } => self.look(node, life),
            Event::AtDeadline { node, armed, .. } => self.at_deadline(node, armed),
            Event::DeadMan { node, armed, .. } => self.dead_man(node, armed),
            Event::Watchdog { node, fed, .. } => self.watchdog(node, fed),
            Event::Guest { node, group, generation, .. } => self.guest_writes(node, group, generation),
            Event::Submit { node, group, generation, .. } => self.submit(node, group, generation),
            Event::Land(write) => self.land(write),
            Event::Resource { node, group, epoch, resource, up, .. } => {
                self.resource_done(node, group, epoch, resource, up);
            }
            Event::Tick { node, group, epoch, .. } => self.runner_tick(node, group, epoch),
            Event::Moving { node, group, epoch, .. } => self.moving(node, group, epoch),
            Event::Ended { node, .. } => self.life_ended(node),
            Event::Stonith { node, target, incarnation, .. } => self.stonith_done(node, target, incarnation),
            Event::LeaseOver { node, stamp } => self.lease_over(node, stamp),
            Event::Nemesis(blow) => self.blow(blow),
        }
    }

    /// Sends a request to the store. The answer, or that there is none, comes back to [`Self::answered`].
    pub fn send(&mut self, n: usize, purpose: Purpose, request: Request) {
        let timeout = crate::time::micros(self.config.timing.transaction);
        let node = &mut self.nodes[n];
        node.next_request += 1;
        let (id, life) = (node.next_request, node.life);
        node.requests.insert(id, (purpose, self.now));
        let lost = node.cut_to;
        let there = self.now + self.rng.within(300, 4 * MS);
        if !lost {
            let request = Box::new(request);
            self.after(there, Event::Arrive { node: n, life, id, request, answer: true });
        }
        self.after(self.now + timeout, Event::Timeout { node: n, life, id });
    }

    fn arrive(&mut self, n: usize, life: u32, id: u64, request: Request, answer: bool) {
        if self.now < self.store.leaderless_until {
            // Lost with the old leader, or carried out by the new one when the sender has long given up.
            if !matches!(request, Request::KeepAlive(_)) && self.rng.chance(300) {
                self.outcome.late_commits += 1;
                let at = self.store.leaderless_until + self.rng.within(0, 900 * MS);
                self.after(
                    at,
                    Event::Arrive { node: n, life, id, request: Box::new(request), answer: false },
                );
            }
            return;
        }
        let reply = match request {
            Request::Txn(txn) => self.commit(n, &txn),
            Request::Read(key) => Reply::Record(self.store.now.get(key).cloned()),
            Request::KeepAlive(node) => self.keep_alive(node),
        };
        if answer && !self.nodes[n].cut_from {
            let at = self.now + self.rng.within(300, 4 * MS);
            self.after(at, Event::Answer { node: n, life, id, reply: Box::new(reply) });
        }
    }

    fn commit(&mut self, n: usize, txn: &Txn) -> Reply {
        let before = self.owns_before(n, txn);
        match self.store.commit(txn) {
            None => Reply::Refused,
            Some(revision) => {
                self.judge_commit(n, txn, &before);
                (0..NODES).for_each(|n| self.notify(n));
                Reply::Committed(revision)
            }
        }
    }

    /// Tells a node's watch that there is something.
    pub fn notify(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.watch_under_way || node.cut_from || !node.on {
            return;
        }
        node.watch_under_way = true;
        let (life, lag) = (node.life, node.watch_lags_until.saturating_sub(self.now));
        let at = self.now + lag + self.rng.within(500, 6 * MS);
        self.after(at, Event::Watch { node: n, life });
    }

    /// Lease protocol: an expired lease fences its node.
    fn lease_over(&mut self, n: usize, stamp: u64) {
        if self.leases[n] != stamp {
            return;
        }
        if let Some((member, revision)) =
            self.store.now.member(n).filter(|(m, _)| m.standing == Standing::Alive)
        {
            let fenced = Member { standing: Standing::Fenced, ..member };
            let puts = vec![(Key::Member(n), Record::Member(fenced))];
            let txn = Txn { compares: vec![(Key::Member(n), Some(revision))], puts };
            self.log(|| format!("lease of node {n} is over"));
            self.commit(n, &txn);
        }
    }

    fn keep_alive(&mut self, n: usize) -> Reply {
        let alive = self.store.now.member(n).is_some_and(|(m, _)| m.standing == Standing::Alive);
        if self.now < self.stale_leader[n] {
            return Reply::Committed(self.store.now.revision);
        }
        if !alive {
            return Reply::Refused;
        }
        self.leases[n] = self.now;
        let over = self.now + crate::time::micros(self.config.timing.lease);
        self.after(over, Event::LeaseOver { node: n, stamp: self.now });
        Reply::Committed(self.store.now.revision)
    }
}

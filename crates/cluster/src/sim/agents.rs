//! Drives each node's agent and taker: heartbeats, deadline, dead-man timer, watchdog, fencing.

use super::Protocol;
use super::node::Purpose;
use super::store::{Key, NODES, Record, Records, Txn};
use super::world::{Event, MS, Reply, Request, World};
use crate::heartbeat::{Agent, AgentEffect, AgentEvent, Presence, Rung, Taker, TakerEffect};
use crate::time::micros;
use crate::{FencingClass, Time};

impl World {
    pub(super) fn node_index(&self, name: &crate::NodeName) -> usize {
        self.node_names.iter().position(|n| n == name).unwrap_or(0)
    }

    pub(super) fn holds(&self, n: usize) -> bool {
        self.nodes[n].gate(self.now, self.config.timing.stall)
    }

    pub(super) fn clock_jumped(&mut self, n: usize) {
        self.log(|| format!("node {n} notices that its clock stood still"));
        self.nodes[n].stale_clock = false;
        self.agent(n, AgentEvent::ClockJumped);
    }

    pub(super) fn poke(&mut self, n: usize) {
        self.agent(n, AgentEvent::Tick);
    }

    pub(super) fn woken(&mut self, n: usize, at: u64) {
        if self.nodes[n].wake == at {
            self.nodes[n].wake = 0;
            self.poke(n);
        }
    }

    pub(super) fn agent(&mut self, n: usize, event: AgentEvent) {
        if self.config.protocol == Protocol::LeaseKeepalive && self.nodes[n].joined {
            return self.keep_lease(n);
        }
        let node = &mut self.nodes[n];
        let local = node.clock.at(self.now);
        let effects = node.agent.step(event, local);
        if node.agent.deadline().is_none() {
            node.deadline = None;
        }
        for effect in effects {
            self.agent_effect(n, effect);
        }
        self.feed(n);
        let node = &mut self.nodes[n];
        let next = node.clock.when(node.agent.next_tick()).max(self.now + 100);
        if node.agent.rung() != Rung::Fenced && (node.wake == 0 || next < node.wake) {
            node.wake = next;
            let life = node.life;
            self.after(next, Event::Wake { node: n, life, at: next });
        }
    }

    fn agent_effect(&mut self, n: usize, effect: AgentEffect) {
        match effect {
            AgentEffect::Put { member, expect } => {
                let key = Key::Member(n);
                let txn = Txn { compares: vec![(key, expect)], puts: vec![(key, Record::Member(member))] };
                self.send(n, Purpose::Heartbeat(member.sequence), Request::Txn(txn));
            }
            AgentEffect::Read => self.send(n, Purpose::ReadMember, Request::Read(Key::Member(n))),
            AgentEffect::Deadline(deadline) => self.publish(n, deadline),
            AgentEffect::Stall | AgentEffect::Left => {}
            AgentEffect::Pause => self.pause_guests(n),
            AgentEffect::Resume => {
                self.log(|| format!("node {n} holds the lease"));
                if self.config.protocol == Protocol::LeaseKeepalive {
                    self.nodes[n].joined = true;
                    self.leases[n] = self.now;
                    let over = self.now + micros(self.config.timing.lease);
                    self.after(over, Event::LeaseOver { node: n, stamp: self.now });
                    self.keep_lease(n);
                }
                self.resume_guests(n);
            }
            AgentEffect::End => {
                self.log(|| format!("node {n} learns that it was fenced"));
                self.end_all(n);
                let life = self.nodes[n].life;
                self.after(self.now + 20 * MS, Event::Ended { node: n, life });
            }
        }
    }

    /// Lease protocol: keep-alives instead of heartbeats.
    fn keep_lease(&mut self, n: usize) {
        let under_way = self.nodes[n].requests.values().any(|(p, _)| *p == Purpose::KeepAlive);
        if !under_way {
            self.send(n, Purpose::KeepAlive, Request::KeepAlive(n));
            let (life, at) = (self.nodes[n].life, self.now + micros(self.config.timing.interval));
            self.nodes[n].wake = at;
            self.after(at, Event::Wake { node: n, life, at });
        }
    }

    fn publish(&mut self, n: usize, deadline: Time) {
        let node = &mut self.nodes[n];
        node.deadline = Some(node.deadline.map_or(deadline, |d| d.max(deadline)));
        node.armed += 1;
        let (life, armed) = (node.life, node.armed);
        let (at, kill) = (node.clock.when(deadline), node.clock.when(deadline + self.config.timing.dead_man));
        self.after(at, Event::AtDeadline { node: n, life, armed });
        if self.config.dead_man {
            self.after(kill, Event::DeadMan { node: n, life, armed });
        }
    }

    /// A worker sees the deadline pass: its guest stands still, whatever has become of the agent.
    pub(super) fn at_deadline(&mut self, n: usize, armed: u64) {
        let node = &self.nodes[n];
        let Some(deadline) = node.deadline.filter(|_| node.armed == armed) else { return };
        if node.clock.at(self.now) < deadline {
            let (at, life) = (node.clock.when(deadline), node.life);
            return self.after(at, Event::AtDeadline { node: n, life, armed });
        }
        self.pause_guests(n);
    }

    pub(super) fn dead_man(&mut self, n: usize, armed: u64) {
        let node = &self.nodes[n];
        let Some(deadline) = node.deadline.filter(|_| node.armed == armed) else { return };
        let due = deadline + self.config.timing.dead_man;
        if node.clock.at(self.now) < due {
            let (at, life) = (node.clock.when(due), node.life);
            return self.after(at, Event::DeadMan { node: n, life, armed });
        }
        self.log(|| format!("node {n}: dead-man timer"));
        self.kill_workers(n);
    }

    /// The agent feeds the watchdog whenever it runs and may.
    fn feed(&mut self, n: usize) {
        if !self.config.watchdog {
            return;
        }
        let node = &mut self.nodes[n];
        let local = node.clock.at(self.now);
        let guests = node.locals.iter().flatten().any(|l| l.instance.is_some());
        if node.agent.feeds_watchdog(local, guests) {
            node.fed += 1;
            node.fed_until = local + self.config.timing.watchdog;
            let (life, fed, at) = (node.life, node.fed, node.clock.when(node.fed_until));
            self.after(at, Event::Watchdog { node: n, life, fed });
        }
    }

    pub(super) fn watchdog(&mut self, n: usize, fed: u64) {
        let node = &self.nodes[n];
        if node.fed != fed {
            return;
        }
        if node.clock.at(self.now) < node.fed_until {
            let (at, life) = (node.clock.when(node.fed_until), node.life);
            return self.after(at, Event::Watchdog { node: n, life, fed });
        }
        self.log(|| format!("node {n}: watchdog reset"));
        self.outcome.resets += 1;
        self.power_off(n);
        let back = self.now + self.rng.within(2_000, 5_000) * MS;
        self.after(back, Event::Nemesis(super::nemesis::Blow::PowerOn(n)));
    }

    /// All that belonged to the fenced life has to be gone, writes in the kernel included.
    pub(super) fn life_ended(&mut self, n: usize) {
        let life = self.nodes[n].life;
        if self.nodes[n].in_flight > 0 {
            return self.after(self.now + 50 * MS, Event::Ended { node: n, life });
        }
        self.agent(n, AgentEvent::Ended);
    }

    /// The agent alone was restarted; workers and guests went on with the deadline they had.
    pub(super) fn agent_back(&mut self, n: usize) {
        let timing = self.config.timing;
        let node = &mut self.nodes[n];
        let incarnation = node.agent.incarnation();
        node.agent_down = false;
        node.agent = match node.deadline {
            Some(deadline) if node.agent.rung() < Rung::Fenced => {
                Agent::resume(timing, incarnation, deadline)
            }
            // Without lease nothing runs: the agent ends what is left and joins anew.
            _ => Agent::new(timing),
        };
        let fresh = node.agent.incarnation() == 0;
        node.taker = Taker::new(timing);
        node.cache = Records::default();
        (node.watch_under_way, node.reclaim, node.wake) = (false, true, 0);
        node.requests.clear();
        let life = node.life;
        if fresh {
            self.end_all(n);
        }
        self.forget_requests(n);
        for g in 0..super::store::GROUPS {
            self.with_runner(n, g, crate::Runner::tick);
        }
        self.poke(n);
        self.notify(n);
        self.after(self.now + MS, Event::Look { node: n, life });
    }

    /// Changes of the store.
    pub(super) fn watched(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.watch_under_way = false;
        if node.cut_from {
            return;
        }
        let revision = self.store.now.revision;
        if !self.store.watch(&mut node.cache, revision) {
            node.cache = self.store.now.clone();
        }
        let local = node.clock.at(self.now);
        for (m, name) in self.node_names.iter().enumerate() {
            if m != n
                && let Some((member, revision)) = node.cache.member(m)
            {
                node.taker.saw(name, member, revision, local);
            }
        }
        self.check_cache(n);
        self.reconcile(n);
    }

    /// Every quarter of a second: fencing, planning, groups.
    pub(super) fn look(&mut self, n: usize, life: u32) {
        let again = self.now + self.rng.within(200, 300) * MS;
        self.after(again, Event::Look { node: n, life });
        self.notify(n);
        if self.config.protocol == Protocol::Heartbeat {
            self.fence(n);
        }
        self.reconcile(n);
        self.coordinate(n);
    }

    fn fence(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let local = node.clock.at(self.now);
        let mine = node.agent.revision(local);
        let head = node.cache.coordinator().is_some_and(|c| c.0 == n);
        let class = if head { self.config.class } else { FencingClass::S };
        let effects = node.taker.step(mine, |_| class, local);
        for effect in effects {
            match effect {
                TakerEffect::Fence { node: lost, member, expect, mine } => {
                    let m = self.node_index(&lost);
                    if self.nodes[n].requests.values().any(|(p, _)| *p == Purpose::Fence(m)) {
                        continue;
                    }
                    let compares = vec![(Key::Member(m), Some(expect)), (Key::Member(n), Some(mine))];
                    let puts = vec![(Key::Member(m), Record::Member(member))];
                    self.send(n, Purpose::Fence(m), Request::Txn(Txn { compares, puts }));
                }
                TakerEffect::Stonith { node: lost, incarnation } => {
                    let target = self.node_index(&lost);
                    let at = self.now + self.rng.within(500, 2_000) * MS;
                    let life = self.nodes[n].life;
                    self.after(at, Event::Stonith { node: n, life, target, incarnation });
                }
            }
        }
    }

    pub(super) fn stonith_done(&mut self, n: usize, target: usize, incarnation: u64) {
        self.log(|| format!("node {n} has node {target} turned off"));
        if self.nodes[target].on && self.nodes[target].agent.incarnation() <= incarnation {
            self.power_off(target);
            let back = self.now + self.rng.within(2_000, 5_000) * MS;
            self.after(back, Event::Nemesis(super::nemesis::Blow::PowerOn(target)));
        }
        let name = self.node_names[target].clone();
        self.nodes[n].taker.confirm(&name, incarnation, "the hook");
    }

    pub(super) fn presence(&self, n: usize, other: usize) -> Option<Presence> {
        let node = &self.nodes[n];
        node.taker.presence(&self.node_names[other], node.clock.at(self.now))
    }

    /// An answer, or none.
    pub(super) fn answered(&mut self, n: usize, id: u64, reply: Option<Reply>) {
        let Some((purpose, _)) = self.nodes[n].requests.remove(&id) else { return };
        match purpose {
            Purpose::Heartbeat(sequence) => {
                let event = match reply {
                    Some(Reply::Committed(revision)) => AgentEvent::Committed { sequence, revision },
                    Some(_) => AgentEvent::Refused,
                    None => AgentEvent::Unknown,
                };
                self.agent(n, event);
            }
            Purpose::ReadMember => {
                let event = match reply {
                    Some(Reply::Record(Some((Record::Member(m), revision)))) => {
                        AgentEvent::Read(Some((m, revision)))
                    }
                    Some(Reply::Record(None)) => AgentEvent::Read(None),
                    _ => AgentEvent::Unknown,
                };
                self.agent(n, event);
            }
            Purpose::KeepAlive => self.kept(n, reply.as_ref()),
            Purpose::Claim | Purpose::Plan(_) | Purpose::NodeStep => {
                self.plan_answered(n, purpose, reply.as_ref())
            }
            Purpose::Status(g) => {
                if !matches!(reply, Some(Reply::Committed(_)))
                    && let Some(local) = &mut self.nodes[n].locals[g]
                {
                    local.reported = None;
                }
            }
            Purpose::Hand(g) => self.hand_answered(n, g, reply.as_ref()),
            Purpose::ReadOwn(g) => self.own_read(n, g, reply),
            Purpose::Back(g) => self.back_answered(n, g, reply.as_ref()),
            Purpose::Fence(_) => {}
        }
    }

    /// Lease protocol: the deadline moves with every answer that says yes.
    fn kept(&mut self, n: usize, reply: Option<&Reply>) {
        match reply {
            Some(Reply::Committed(_)) => {
                let deadline = self.nodes[n].clock.at(self.now) + self.config.timing.lease;
                self.publish(n, deadline);
                self.resume_guests(n);
            }
            Some(Reply::Refused) => {
                self.end_all(n);
                self.power_off(n);
                self.boot(n);
            }
            _ => {}
        }
    }

    pub(super) fn power_off(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.on = false;
        node.backlog.clear();
        node.in_flight = 0;
        node.halted = false;
        node.clock.thaw_if_frozen(self.now);
        node.locals.iter_mut().for_each(|l| *l = None);
    }

    pub(super) fn everybody(&self) -> std::ops::Range<usize> {
        0..NODES
    }
}

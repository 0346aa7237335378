//! What goes wrong, and when.

use super::node::Handing;
use super::store::{GROUPS, Key, NODES, NodeRecord, Record, Txn};
use super::world::{Event, MS, SECOND, World};
use crate::{DrainStatus, ResumeFailback};

/// One thing that happens to the cluster.
#[derive(Clone, Copy, Debug)]
pub(super) enum Blow {
    Cut {
        node: usize,
        to: bool,
        from: bool,
    },
    Joined(usize),
    Stop {
        node: usize,
        agent: bool,
        workers: bool,
    },
    Go(usize),
    /// The whole node stands still, with its clock or without.
    Halt {
        node: usize,
        clock: bool,
    },
    Run(usize),
    PowerOff(usize),
    PowerOn(usize),
    AgentDies(usize),
    AgentBack(usize),
    KillGuest(usize),
    Stall {
        node: usize,
        until: u64,
    },
    Leaderless(u64),
    StaleLeader {
        node: usize,
        until: u64,
    },
    Compact,
    Lag {
        node: usize,
        until: u64,
    },
    Drain(usize),
    Resume(usize),
    Heal,
}

impl World {
    pub(super) fn schedule_faults(&mut self) {
        let heal = self.heal_at;
        let count = self.rng.within(2, 6);
        for _ in 0..count {
            let at = self.rng.within(4 * SECOND, heal - 2 * SECOND);
            // Long enough for a takeover.
            let long = if self.config.class == crate::FencingClass::S { 12 } else { 22 };
            let longest = if self.rng.chance(500) { 2 } else { long } * SECOND;
            let end = (at + self.rng.within(150 * MS, longest)).min(heal);
            self.schedule_one(at, end);
        }
        self.after(heal, Event::Nemesis(Blow::Heal));
    }

    fn schedule_one(&mut self, at: u64, end: u64) {
        let node = self.rng.pick(NODES);
        let faults = self.config.faults;
        let (first, last) = match self.rng.within(0, 15) {
            0..=3 => {
                let way = self.rng.within(0, 5);
                (Blow::Cut { node, to: way != 0, from: way != 1 }, Some(Blow::Joined(node)))
            }
            4 => (Blow::PowerOff(node), Some(Blow::PowerOn(node))),
            5 => (Blow::AgentDies(node), Some(Blow::AgentBack(node))),
            6 => (Blow::KillGuest(self.rng.pick(GROUPS)), None),
            7 => (Blow::Leaderless((end - at).min(2 * SECOND)), None),
            8 if faults.stale_leader => (Blow::StaleLeader { node, until: end }, None),
            8 => (Blow::Compact, Some(Blow::Lag { node, until: end })),
            9 => (Blow::Drain(node), Some(Blow::Resume(node))),
            10 | 11 if faults.pauses => {
                let which = self.rng.within(0, 2);
                (Blow::Stop { node, agent: which != 0, workers: which != 1 }, Some(Blow::Go(node)))
            }
            12 if faults.pauses => (Blow::Halt { node, clock: false }, Some(Blow::Run(node))),
            13 if faults.freezes => (Blow::Halt { node, clock: true }, Some(Blow::Run(node))),
            14 if faults.stalls => {
                // A stall matters when the node is lost meanwhile.
                self.after(at + 100 * MS, Event::Nemesis(Blow::Cut { node, to: true, from: true }));
                self.after(end, Event::Nemesis(Blow::Joined(node)));
                (Blow::Stall { node, until: end }, None)
            }
            _ => (Blow::Cut { node, to: true, from: true }, Some(Blow::Joined(node))),
        };
        self.outcome.faults += 1;
        self.after(at, Event::Nemesis(first));
        if let Some(last) = last {
            self.after(end, Event::Nemesis(last));
        }
    }

    pub(super) fn blow(&mut self, blow: Blow) {
        self.log(|| format!("nemesis: {blow:?}"));
        match blow {
            Blow::Cut { node, to, from } => {
                (self.nodes[node].cut_to, self.nodes[node].cut_from) = (to, from);
            }
            Blow::Joined(n) => self.join(n),
            Blow::Stop { node, agent, workers } => self.stop(node, agent, workers),
            Blow::Go(n) => {
                (self.nodes[n].agent_stopped, self.nodes[n].workers_stopped) = (false, false);
                self.replay(n);
            }
            Blow::Halt { node, clock } => self.halt(node, clock),
            Blow::Run(n) => self.unhalt(n),
            Blow::PowerOff(n) => self.power_off(n),
            Blow::PowerOn(n) => {
                if !self.nodes[n].on {
                    self.boot(n);
                }
            }
            Blow::AgentDies(n) => {
                let node = &mut self.nodes[n];
                if node.on && !node.agent_down {
                    node.agent_down = true;
                    node.requests.clear();
                }
            }
            Blow::AgentBack(n) => {
                if self.nodes[n].on && self.nodes[n].agent_down {
                    self.agent_back(n);
                }
            }
            Blow::KillGuest(g) => self.kill_guest(g),
            Blow::Stall { node, until } => self.nodes[node].stalled_until = until,
            Blow::Leaderless(span) => {
                let floor = self.now + 200 * MS;
                self.store.leaderless_until = (self.now + span).max(floor);
            }
            Blow::StaleLeader { node, until } => {
                self.stale_leader[node] = until;
            }
            Blow::Compact => self.store.compacted = self.store.now.revision,
            Blow::Lag { node, until } => self.nodes[node].watch_lags_until = until.min(self.now + 3 * SECOND),
            Blow::Drain(n) => self.admin(n, true, DrainStatus::InProgress, None),
            Blow::Resume(n) => {
                let back =
                    if self.rng.chance(500) { ResumeFailback::Immediate } else { ResumeFailback::Policy };
                self.admin(n, false, DrainStatus::NotInitiated, Some(back));
            }
            Blow::Heal => self.heal(),
        }
    }

    fn join(&mut self, n: usize) {
        (self.nodes[n].cut_to, self.nodes[n].cut_from) = (false, false);
        self.nodes[n].watch_under_way = false;
        self.notify(n);
    }

    /// Half of the time the worker is caught between its look at the deadline and the submission.
    fn stop(&mut self, n: usize, agent: bool, workers: bool) {
        let open = self.holds(n) && self.nodes[n].workers_run();
        let life = self.nodes[n].life;
        (self.nodes[n].agent_stopped, self.nodes[n].workers_stopped) = (agent, workers);
        for g in 0..GROUPS {
            let caught = self.rng.chance(500);
            let node = &mut self.nodes[n];
            let Some(instance) = node.locals[g].as_mut().and_then(|l| l.instance.as_mut()) else { continue };
            if workers && open && caught && instance.running && instance.worker {
                instance.in_flight += 1;
                let generation = instance.generation;
                node.backlog.push(Event::Submit { node: n, life, group: g, generation });
            }
        }
    }

    fn halt(&mut self, n: usize, clock: bool) {
        let open = self.holds(n) && self.nodes[n].workers_run();
        if !self.nodes[n].on || self.nodes[n].halted {
            return;
        }
        if open {
            let (agent, workers) = (self.nodes[n].agent_stopped, self.nodes[n].workers_stopped);
            self.stop(n, true, true);
            (self.nodes[n].agent_stopped, self.nodes[n].workers_stopped) = (agent, workers);
        }
        self.nodes[n].halted = true;
        if clock {
            self.nodes[n].clock.freeze(self.now);
            self.nodes[n].stale_clock = true;
        }
    }

    fn unhalt(&mut self, n: usize) {
        if self.nodes[n].on && self.nodes[n].halted {
            self.nodes[n].halted = false;
            self.nodes[n].clock.thaw_if_frozen(self.now);
            self.replay(n);
        }
    }

    /// What waited happens now, the kernel's timers first.
    fn replay(&mut self, n: usize) {
        let mut waiting = std::mem::take(&mut self.nodes[n].backlog);
        let kernel = |e: &Event| !matches!(e, Event::DeadMan { .. } | Event::Watchdog { .. });
        waiting.sort_by_key(kernel);
        for event in waiting {
            self.dispatch(event);
        }
    }

    fn kill_guest(&mut self, g: usize) {
        let vm = self.vm_of(g);
        for n in 0..NODES {
            let life = self.nodes[n].life;
            let Some(local) = &mut self.nodes[n].locals[g] else { continue };
            if local.instance.is_some() && local.handing == Handing::No {
                local.instance = None;
                let epoch = local.epoch;
                self.after(
                    self.now,
                    Event::Resource { node: n, life, group: g, epoch, resource: vm, up: false },
                );
                // Often enough to use up its restarts.
                if self.now + 3 * SECOND < self.heal_at && self.rng.chance(700) {
                    let again = self.now + self.rng.within(1_500, 2_500) * MS;
                    self.after(again, Event::Nemesis(Blow::KillGuest(g)));
                }
                return;
            }
        }
    }

    /// An administrator's command, which reaches the store.
    fn admin(&mut self, n: usize, paused: bool, drain: DrainStatus, resume: Option<ResumeFailback>) {
        let record = NodeRecord { paused, drain, resume };
        let txn = Txn { compares: vec![], puts: vec![(Key::Node(n), Record::Node(record))] };
        self.store.commit(&txn);
        (0..NODES).for_each(|n| self.notify(n));
    }

    fn heal(&mut self) {
        self.store.leaderless_until = self.now;
        for n in 0..NODES {
            self.stale_leader[n] = 0;
            self.nodes[n].stalled_until = self.now;
            self.nodes[n].watch_lags_until = 0;
            self.unhalt(n);
            (self.nodes[n].agent_stopped, self.nodes[n].workers_stopped) = (false, false);
            self.replay(n);
            if !self.nodes[n].on {
                self.boot(n);
            }
            if self.nodes[n].agent_down {
                self.agent_back(n);
            }
            self.join(n);
            if self.store.now.node(n).is_some_and(|(r, _)| r.paused) {
                self.admin(n, false, DrainStatus::NotInitiated, Some(ResumeFailback::Immediate));
            }
        }
    }
}

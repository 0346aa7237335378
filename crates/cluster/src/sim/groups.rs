//! What a node does with the groups it owns: starting, watching, guests and their writes.

use super::disk::{Landing, Write};
use super::node::{Handing, Instance, Local, Purpose};
use super::store::{GROUPS, Key, Order, Own, Record, Status, Txn};
use super::world::{Event, MS, Request, World};
use crate::heartbeat::Rung;
use crate::{Ending, Goal, Report, ResourceState, Runner, RunnerEffect};
use std::sync::Arc;

impl World {
    pub(super) fn vm_of(&self, g: usize) -> usize {
        let group = &self.policy.groups[&self.group_names[g]];
        group.resources.iter().position(|r| r.vm().is_some()).unwrap_or(0)
    }

    /// Compares what the store says about each group with what is here.
    pub(super) fn reconcile(&mut self, n: usize) {
        for g in 0..GROUPS {
            let Some((own, _)) = self.nodes[n].cache.own(g) else { continue };
            let own = own.clone();
            let node = &self.nodes[n];
            let member = node.joined || node.agent.rung() < Rung::Fenced;
            let mine = member
                && own.owner.node == self.node_names[n]
                && own.owner.incarnation == node.agent.incarnation()
                && own.owner.epoch > node.given[g];
            match &node.locals[g] {
                // A cache that is behind says nothing about what came later.
                Some(local) if local.epoch > own.owner.epoch => {}
                Some(local) if !mine || local.epoch < own.owner.epoch => self.drop_local(n, g),
                Some(_) => self.obey(n, g, &own),
                None if mine && self.holds(n) => self.adopt(n, g, &own),
                None => {}
            }
            self.report_status(n, g);
        }
    }

    /// The group is new here.
    fn adopt(&mut self, n: usize, g: usize, own: &Own) {
        let group = Arc::new(self.policy.groups[&self.group_names[g]].clone());
        let count = group.resources.len();
        let Ok(mut runner) = Runner::new(group) else { return };
        let local_now = self.nodes[n].clock.at(self.now);
        if own.live {
            runner.adopt(&vec![ResourceState::Online; count], local_now);
        }
        let epoch = own.owner.epoch;
        let (handing, uid) = (Handing::No, own.uid);
        self.nodes[n].locals[g] =
            Some(Local { epoch, runner, instance: None, handing, uid, restarts: 0, reported: None });
        self.log(|| {
            format!("node {n} takes group {g} at epoch {epoch}{}", if own.live { ", live" } else { "" })
        });
        if own.live {
            self.start_guest(n, g);
        } else {
            self.with_runner(n, g, |runner, now| runner.set_goal(Goal::Online, now));
        }
        if own.order != Order::Online {
            self.begin_hand(n, g, own);
        }
    }

    /// The group is here already: is there a new order?
    fn obey(&mut self, n: usize, g: usize, own: &Own) {
        let Some(local) = &mut self.nodes[n].locals[g] else { return };
        if local.uid == own.uid || local.handing != Handing::No {
            return;
        }
        local.uid = own.uid;
        match own.order {
            Order::Online => self.with_runner(n, g, |runner, now| runner.set_goal(Goal::Online, now)),
            Order::Hand { .. } => self.begin_hand(n, g, own),
        }
    }

    /// Lets the runner act, and carries out what it says.
    pub(super) fn with_runner(
        &mut self,
        n: usize,
        g: usize,
        act: impl FnOnce(&mut Runner, crate::Time) -> Vec<RunnerEffect>,
    ) {
        let now = self.nodes[n].clock.at(self.now);
        let Some(local) = &mut self.nodes[n].locals[g] else { return };
        let effects = act(&mut local.runner, now);
        for effect in effects {
            self.runner_effect(n, g, effect);
        }
        let Some(local) = &self.nodes[n].locals[g] else { return };
        let (epoch, down) = (local.epoch, local.runner.is_down());
        if let Some(next) = local.runner.next_tick() {
            let (life, at) = (self.nodes[n].life, self.nodes[n].clock.when(next).max(self.now + MS));
            self.after(at, Event::Tick { node: n, life, group: g, epoch });
        }
        self.check_dependencies(n, g);
        if down && self.nodes[n].locals[g].as_ref().is_some_and(|l| l.handing == Handing::Working) {
            let life = self.nodes[n].life;
            self.after(self.now, Event::Moving { node: n, life, group: g, epoch });
        }
        self.report_status(n, g);
    }

    fn runner_effect(&mut self, n: usize, g: usize, effect: RunnerEffect) {
        let vm = self.vm_of(g);
        let life = self.nodes[n].life;
        let epoch = self.nodes[n].locals[g].as_ref().map_or(0, |l| l.epoch);
        let later = |world: &mut Self, resource: usize, up: bool, ms: (u64, u64)| {
            let at = world.now + world.rng.within(ms.0, ms.1) * MS;
            world.after(at, Event::Resource { node: n, life, group: g, epoch, resource, up });
        };
        match effect {
            RunnerEffect::Start(i) if i == vm => {
                // The worker opens the disk at once, the boot comes after.
                later(self, i, true, (5, 60));
                self.count_restart(n, g);
            }
            RunnerEffect::Start(i) => later(self, i, true, (5, 30)),
            RunnerEffect::Stop(i, _) => later(self, i, false, (50, 400)),
            RunnerEffect::Terminate(i) => {
                if i == vm
                    && let Some(local) = &mut self.nodes[n].locals[g]
                {
                    local.instance = None;
                }
                later(self, i, false, (5, 20));
            }
            RunnerEffect::LooksAlive(i) => {
                self.with_runner(n, g, |r, now| r.report(i, Report::LooksAlive(true), now))
            }
            RunnerEffect::IsAlive(i) => {
                self.with_runner(n, g, |r, now| r.report(i, Report::IsAlive(true), now))
            }
            RunnerEffect::Note(text) => self.log(|| format!("node {n} group {g}: {text}")),
        }
    }

    pub(super) fn resource_done(&mut self, n: usize, g: usize, epoch: u64, i: usize, up: bool) {
        let is_vm = i == self.vm_of(g);
        let Some(local) = self.nodes[n].locals[g].as_mut().filter(|l| l.epoch == epoch) else { return };
        if !up {
            if is_vm {
                local.instance = None;
            }
            return self.with_runner(n, g, |r, now| r.report(i, Report::Offline, now));
        }
        let starting = local.runner.states().get(i) == Some(&ResourceState::OnlinePending);
        if is_vm && starting && !self.start_guest(n, g) {
            return self
                .with_runner(n, g, |r, now| r.report(i, Report::Failed("the disk refuses it".into()), now));
        }
        self.with_runner(n, g, |r, now| r.report(i, Report::Online, now));
    }

    pub(super) fn runner_tick(&mut self, n: usize, g: usize, epoch: u64) {
        if self.nodes[n].locals[g].as_ref().is_some_and(|l| l.epoch == epoch) {
            self.with_runner(n, g, Runner::tick);
        }
    }

    /// Opens the disk for the epoch and lets the guest run. False: the storage refuses the epoch.
    fn start_guest(&mut self, n: usize, g: usize) -> bool {
        let Some(epoch) = self.nodes[n].locals[g].as_ref().map(|l| l.epoch) else { return false };
        let Some(counter) = self.disks[g].open(epoch) else {
            self.log(|| format!("node {n}: the storage refuses epoch {epoch} of group {g}"));
            return false;
        };
        self.check_opened(n, g, counter);
        self.generation += 1;
        let (generation, running) = (self.generation, self.holds(n));
        let guest = Instance { epoch, running, worker: true, counter, in_flight: 0, generation };
        if let Some(local) = &mut self.nodes[n].locals[g] {
            local.instance = Some(guest);
        }
        self.check_room(n, g);
        let life = self.nodes[n].life;
        self.after(self.now + 10 * MS, Event::Guest { node: n, life, group: g, generation });
        true
    }

    fn instance(&mut self, n: usize, g: usize, generation: u64) -> Option<&mut Instance> {
        let local = self.nodes[n].locals[g].as_mut()?;
        local.instance.as_mut().filter(|i| i.generation == generation)
    }

    /// The worker checks the deadline, and submits a moment later.
    pub(super) fn guest_writes(&mut self, n: usize, g: usize, generation: u64) {
        let open = self.holds(n);
        let life = self.nodes[n].life;
        let window = if self.rng.chance(20) { 300 } else { self.rng.within(2, 20) };
        let again = self.now + self.rng.within(120, 220) * MS;
        let now = self.now;
        let Some(instance) = self.instance(n, g, generation) else { return };
        if instance.running && instance.worker && open && instance.in_flight < 4 {
            instance.in_flight += 1;
            self.after(now + window, Event::Submit { node: n, life, group: g, generation });
        }
        self.after(again, Event::Guest { node: n, life, group: g, generation });
    }

    pub(super) fn submit(&mut self, n: usize, g: usize, generation: u64) {
        let (now, life, stalled) = (self.now, self.nodes[n].life, self.nodes[n].stalled_until);
        let Some(instance) = self.instance(n, g, generation) else { return };
        if !instance.worker {
            return;
        }
        instance.counter += 1;
        let (epoch, counter) = (instance.epoch, instance.counter);
        let mut at = now + self.rng.within(300, 3 * MS);
        if stalled > now {
            at = stalled + self.rng.within(0, 200) * MS;
            if self.config.io_timeout_ms.is_some_and(|t| at > now + t * MS) {
                // It fails in time: the guest sees a stall, the storage never sees it.
                if let Some(instance) = self.instance(n, g, generation) {
                    instance.in_flight -= 1;
                }
                return;
            }
        }
        self.nodes[n].in_flight += 1;
        self.after(at, Event::Land(Write { group: g, node: n, life, epoch, counter, submitted: now }));
    }

    pub(super) fn land(&mut self, write: Write) {
        let (n, g) = (write.node, write.group);
        let same_life = self.nodes[n].life == write.life && self.nodes[n].on;
        if same_life {
            self.nodes[n].in_flight = self.nodes[n].in_flight.saturating_sub(1);
        } else if self.now - write.submitted > 100 * MS {
            // It was held back in the node's own kernel, which is gone.
            return;
        }
        match self.disks[g].land(&write) {
            Landing::Refused => {
                self.log(|| format!("the storage refuses a write of epoch {} to group {g}", write.epoch));
            }
            Landing::Stale => {
                let opened = self.disks[g].opened;
                let what = format!(
                    "a write of epoch {} by node {n} landed on the disk of group {g} after epoch {opened} opened it",
                    write.epoch
                );
                self.broken("I1", what);
            }
            Landing::Ok if same_life => self.acknowledge(n, g, &write),
            Landing::Ok => {}
        }
    }

    fn acknowledge(&mut self, n: usize, g: usize, write: &Write) {
        let Some(local) = &mut self.nodes[n].locals[g] else { return };
        let Some(instance) = local.instance.as_mut().filter(|i| i.epoch == write.epoch) else { return };
        instance.in_flight = instance.in_flight.saturating_sub(1);
        let disk = &mut self.disks[g];
        disk.acknowledged = disk.acknowledged.max(write.counter);
    }

    pub(super) fn pause_guests(&mut self, n: usize) {
        for local in self.nodes[n].locals.iter_mut().flatten() {
            local.instance.iter_mut().for_each(|i| i.running = false);
        }
    }

    pub(super) fn resume_guests(&mut self, n: usize) {
        for local in self.nodes[n].locals.iter_mut().flatten() {
            let quiet = !matches!(local.handing, Handing::No | Handing::Working);
            if let Some(instance) = &mut local.instance {
                if !instance.worker {
                    // A new worker takes over; what the old one had under way is sent again by the guest.
                    (instance.worker, instance.in_flight) = (true, 0);
                }
                instance.running = !quiet;
            }
        }
        self.reconcile(n);
    }

    /// The dead-man timer: workers die, and guests that still run.
    pub(super) fn kill_workers(&mut self, n: usize) {
        let life = self.nodes[n].life;
        for g in 0..GROUPS {
            let vm = self.vm_of(g);
            let Some(local) = &mut self.nodes[n].locals[g] else { continue };
            let epoch = local.epoch;
            let Some(instance) = &mut local.instance else { continue };
            self.outcome.dead_men += 1;
            instance.worker = false;
            if instance.running && self.config.guest_guard {
                local.instance = None;
                let ended = Event::Resource { node: n, life, group: g, epoch, resource: vm, up: false };
                self.after(self.now + MS, ended);
            }
        }
    }

    /// All guests of the node end now.
    pub(super) fn end_all(&mut self, n: usize) {
        for g in 0..GROUPS {
            self.drop_local(n, g);
        }
    }

    pub(super) fn drop_local(&mut self, n: usize, g: usize) {
        if let Some(local) = self.nodes[n].locals[g].take() {
            self.log(|| format!("node {n} drops group {g} of epoch {}", local.epoch));
        }
    }

    /// Tells the coordinator how the group is, when that has changed.
    pub(super) fn report_status(&mut self, n: usize, g: usize) {
        if !self.nodes[n].agent_runs() || !self.holds(n) {
            return;
        }
        let Some(local) = &mut self.nodes[n].locals[g] else { return };
        let (states, verdict) = (local.runner.states().to_vec(), local.runner.verdict().cloned());
        let status = Status { epoch: local.epoch, states, verdict };
        if local.reported.as_ref() == Some(&status) {
            return;
        }
        local.reported = Some(status.clone());
        let txn = Txn { compares: vec![], puts: vec![(Key::Status(g), Record::Status(status))] };
        self.send(n, Purpose::Status(g), Request::Txn(txn));
    }

    pub(super) fn ending(kind: Option<crate::MoveKind>) -> Goal {
        match kind {
            None => Goal::Offline(Ending::Terminate),
            Some(_) => Goal::Offline(Ending::ByAction),
        }
    }
}

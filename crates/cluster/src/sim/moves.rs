//! Handing a group over: the source stands still, one transaction changes the owner, the target goes on.
//!
//! The source never goes on after a transaction of which it does not know the end: it first commits one of its own on the same
//! record, after which the other can no longer be committed.

use super::node::{Handing, Purpose};
use super::store::{Key, Order, Own, Record, Txn};
use super::world::{Event, MS, Reply, Request, World};
use crate::heartbeat::Owner;
use crate::{Goal, MoveKind};

impl World {
    pub(super) fn begin_hand(&mut self, n: usize, g: usize, own: &Own) {
        let Order::Hand { kind, .. } = own.order else { return };
        self.check_uid(own);
        let Some(local) = &mut self.nodes[n].locals[g] else { return };
        local.handing = Handing::Working;
        local.uid = own.uid;
        let (epoch, live) = (local.epoch, kind == Some(MoveKind::Live) && local.instance.is_some());
        self.log(|| format!("node {n} hands group {g} over: {:?}", own.order));
        if live {
            let (life, at) = (self.nodes[n].life, self.now + self.rng.within(200, 1_500) * MS);
            self.after(at, Event::Moving { node: n, life, group: g, epoch });
        } else {
            self.with_runner(n, g, |runner, now| runner.set_goal(Self::ending(kind), now));
        }
    }

    /// The order that is being carried out, as the cache shows it.
    fn order(&self, n: usize, g: usize) -> Option<(Own, u64)> {
        let (own, revision) = self.nodes[n].cache.own(g)?;
        let local = self.nodes[n].locals[g].as_ref()?;
        (own.owner.epoch == local.epoch && own.uid == local.uid).then(|| (own.clone(), revision))
    }

    pub(super) fn moving(&mut self, n: usize, g: usize, epoch: u64) {
        let Some((own, revision)) = self.order(n, g) else { return };
        let Order::Hand { to, incarnation, .. } = own.order else { return };
        let fails = self.rng.chance(40);
        let Some(local) = self.nodes[n].locals[g].as_mut().filter(|l| l.epoch == epoch) else { return };
        match local.handing {
            Handing::Working if local.instance.is_some() && fails => return self.take_back(n, g),
            Handing::Working => local.handing = Handing::Quiet,
            Handing::Quiet => {}
            _ => return,
        }
        let live = local.instance.is_some();
        if let Some(instance) = &mut local.instance {
            instance.running = false;
            if instance.in_flight > 0 {
                let life = self.nodes[n].life;
                return self.after(self.now + 5 * MS, Event::Moving { node: n, life, group: g, epoch });
            }
        }
        local.handing = Handing::Asked;
        let owner = Owner { node: self.node_names[to].clone(), incarnation, epoch: epoch + 1 };
        let next = Own { owner, order: Order::Online, live, refused_by: Vec::new(), ..own };
        let puts = vec![(Key::Own(g), Record::Own(next))];
        let txn = Txn { compares: vec![(Key::Own(g), Some(revision))], puts };
        self.send(n, Purpose::Hand(g), Request::Txn(txn));
    }

    pub(super) fn hand_answered(&mut self, n: usize, g: usize, reply: Option<&Reply>) {
        let Some(local) = &self.nodes[n].locals[g] else { return };
        if let Some(Reply::Committed(_)) = reply {
            let epoch = local.epoch;
            self.gone(n, g, epoch);
        } else {
            self.take_back(n, g);
        }
    }

    fn gone(&mut self, n: usize, g: usize, epoch: u64) {
        self.nodes[n].given[g] = self.nodes[n].given[g].max(epoch);
        self.drop_local(n, g);
    }

    /// Finds out what the record says.
    pub(super) fn take_back(&mut self, n: usize, g: usize) {
        if let Some(local) = &mut self.nodes[n].locals[g] {
            local.handing = Handing::Doubt;
            self.send(n, Purpose::ReadOwn(g), Request::Read(Key::Own(g)));
        }
    }

    pub(super) fn own_read(&mut self, n: usize, g: usize, reply: Option<Reply>) {
        let Some(local) = &mut self.nodes[n].locals[g] else { return };
        if local.handing != Handing::Doubt {
            return;
        }
        let Some(Reply::Record(Some((Record::Own(own), revision)))) = reply else {
            return self.take_back(n, g);
        };
        let epoch = local.epoch;
        if own.owner.node != self.node_names[n] || own.owner.epoch != epoch {
            return self.gone(n, g, epoch);
        }
        local.handing = Handing::Back;
        let mut next = Own { order: Order::Online, ..own };
        if let Order::Hand { to, .. } = own.order {
            next.refused_by.push(to);
        }
        local.uid = next.uid;
        let puts = vec![(Key::Own(g), Record::Own(next))];
        let txn = Txn { compares: vec![(Key::Own(g), Some(revision))], puts };
        self.send(n, Purpose::Back(g), Request::Txn(txn));
    }

    pub(super) fn back_answered(&mut self, n: usize, g: usize, reply: Option<&Reply>) {
        let Some(local) = &mut self.nodes[n].locals[g] else { return };
        if local.handing != Handing::Back {
            return;
        }
        if !matches!(reply, Some(Reply::Committed(_))) {
            return self.take_back(n, g);
        }
        local.handing = Handing::No;
        local.restarts = 0;
        self.log(|| format!("node {n} keeps group {g}"));
        let holds = self.holds(n);
        let mut up = false;
        if let Some(instance) = self.nodes[n].locals[g].as_mut().and_then(|l| l.instance.as_mut()) {
            instance.running = holds && instance.worker;
            up = true;
        }
        if !up {
            self.with_runner(n, g, |runner, now| runner.set_goal(Goal::Online, now));
        }
    }

    /// The agent was restarted: requests it had under way have no one to answer to.
    pub(super) fn forget_requests(&mut self, n: usize) {
        for g in 0..super::store::GROUPS {
            let Some(local) = &mut self.nodes[n].locals[g] else { continue };
            local.reported = None;
            if matches!(local.handing, Handing::Asked | Handing::Doubt | Handing::Back) {
                self.take_back(n, g);
            }
        }
    }
}

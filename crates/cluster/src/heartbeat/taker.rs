//! The other nodes' side: watching heartbeats, waiting, fencing.

use super::{Member, Standing, Timing};
use crate::{FencingClass, NodeName, Release, Time};
use std::collections::BTreeMap;

/// How a node looks from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Its heartbeats come.
    Alive,
    /// They stay away for longer than its lease: its guests stand still.
    Silent,
    /// Declared lost; groups up to this class may be taken.
    Fenced(Option<FencingClass>),
    /// It left and said so.
    Left,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TakerEffect {
    /// One transaction: if the node's record is still at `expect` and our own at `mine`, put `member`.
    Fence {
        /// The lost node.
        node: NodeName,
        /// Its record, fenced.
        member: Member,
        /// The revision of the last heartbeat.
        expect: u64,
        /// Our own record's.
        mine: u64,
    },
    /// Ask the STONITH hook to turn the node off.
    Stonith {
        /// The lost node.
        node: NodeName,
        /// Which life of it.
        incarnation: u64,
    },
}

#[derive(Clone, Debug)]
struct Seen {
    member: Member,
    revision: u64,
    /// When its last heartbeat was first seen.
    since: Time,
    confirmed: Option<String>,
    stonith: bool,
    missed: u32,
}

/// Watches the other nodes. All times are this node's `CLOCK_BOOTTIME`.
#[derive(Clone, Debug)]
pub struct Taker {
    timing: Timing,
    seen: BTreeMap<NodeName, Seen>,
}

impl Taker {
    /// Has seen nobody yet.
    #[must_use]
    pub fn new(timing: Timing) -> Self {
        Self { timing, seen: BTreeMap::new() }
    }

    /// `node`'s record was seen at `now`, in whatever way: a watch, a list, a stale read. Older revisions are ignored.
    pub fn saw(&mut self, node: &NodeName, member: Member, revision: u64, now: Time) {
        let fresh = Seen { member, revision, since: now, confirmed: None, stonith: false, missed: 0 };
        let Some(seen) = self.seen.get_mut(node) else {
            self.seen.insert(node.clone(), fresh);
            return;
        };
        if revision <= seen.revision {
            return;
        }
        // A fencing says which heartbeat was the last. If that is the one we know, we have waited since it already; one that a
        // gap in the watch hid from us starts the wait anew.
        let same_life = member.incarnation == seen.member.incarnation;
        let known =
            member.standing != Standing::Alive && same_life && member.sequence == seen.member.sequence;
        let kept = Seen { since: seen.since, missed: seen.missed, ..fresh.clone() };
        let confirmed = seen.confirmed.take().filter(|_| same_life && member.standing != Standing::Alive);
        let stonith = seen.stonith && same_life && member.standing != Standing::Alive;
        *seen = Seen { confirmed, stonith, ..if known { kept } else { fresh } };
    }

    /// The node was removed from the cluster.
    pub fn forget(&mut self, node: &NodeName) {
        self.seen.remove(node);
    }

    /// Somebody answers for `node` being off, in that life: the hook, or an administrator. `by` goes into the reason.
    pub fn confirm(&mut self, node: &NodeName, incarnation: u64, by: &str) {
        if let Some(seen) = self.seen.get_mut(node).filter(|s| s.member.incarnation == incarnation) {
            seen.confirmed = Some(by.to_owned());
        }
    }

    /// What is due at `now`. `mine`: the revision of our own record, if we have the right to write ([`super::Agent::revision`]).
    /// `class`: the highest fencing class of the groups that a node owns.
    pub fn step(
        &mut self,
        mine: Option<u64>,
        class: impl Fn(&NodeName) -> FencingClass,
        now: Time,
    ) -> Vec<TakerEffect> {
        let Some(mine) = mine else { return Vec::new() };
        let mut effects = Vec::new();
        for (node, seen) in &mut self.seen {
            let waited = now.since(seen.since);
            if seen.member.standing == Standing::Left
                || (waited < self.timing.wait && seen.confirmed.is_none())
            {
                continue;
            }
            if seen.member.standing == Standing::Alive {
                let missed = waited.as_millis() / self.timing.interval.as_millis().max(1);
                seen.missed = u32::try_from(missed).unwrap_or(u32::MAX);
                let member = Member { standing: Standing::Fenced, ..seen.member };
                effects.push(TakerEffect::Fence { node: node.clone(), member, expect: seen.revision, mine });
            } else if class(node) == FencingClass::C && seen.confirmed.is_none() && !seen.stonith {
                seen.stonith = true;
                effects
                    .push(TakerEffect::Stonith { node: node.clone(), incarnation: seen.member.incarnation });
            }
        }
        effects
    }

    /// The hook failed or gave no answer: ask again.
    pub fn stonith_failed(&mut self, node: &NodeName) {
        if let Some(seen) = self.seen.get_mut(node) {
            seen.stonith = false;
        }
    }

    /// How `node` looks at `now`; none if it was never seen.
    #[must_use]
    pub fn presence(&self, node: &NodeName, now: Time) -> Option<Presence> {
        let seen = self.seen.get(node)?;
        let waited = now.since(seen.since);
        Some(match seen.member.standing {
            Standing::Left => Presence::Left,
            Standing::Alive if waited < self.timing.lease => Presence::Alive,
            Standing::Alive => Presence::Silent,
            Standing::Fenced if seen.confirmed.is_some() => Presence::Fenced(Some(FencingClass::N)),
            Standing::Fenced => {
                let ready = |class: &FencingClass| match class.release(&self.timing) {
                    Release::After(wait) => waited >= wait,
                    Release::Confirmed => false,
                };
                Presence::Fenced(FencingClass::ALL.into_iter().rev().find(ready))
            }
        })
    }

    /// Heartbeats that it had missed when it was given up, and who confirmed that it is off.
    #[must_use]
    pub fn loss(&self, node: &NodeName) -> (u32, Option<&str>) {
        self.seen.get(node).map_or((0, None), |s| (s.missed, s.confirmed.as_deref()))
    }

    /// The last record of `node` that was seen, with its revision.
    #[must_use]
    pub fn member(&self, node: &NodeName) -> Option<(Member, u64)> {
        self.seen.get(node).map(|s| (s.member, s.revision))
    }

    /// When [`step`](Self::step) has something to do next, if nothing is seen until then.
    #[must_use]
    pub fn next_tick(&self) -> Option<Time> {
        let alive = self.seen.values().filter(|s| s.member.standing == Standing::Alive);
        alive.map(|s| s.since + self.timing.wait).min()
    }
}

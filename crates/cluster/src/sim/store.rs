//! The store: records with revisions, transactions, a watch. It may be without leader, commit late, and be compacted.

use crate::heartbeat::{Member, Owner};
use crate::{DrainStatus, Failure, MoveKind, ResourceState, ResumeFailback, Uid, Verdict};

/// Records by number of node or group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Member(usize),
    Node(usize),
    Own(usize),
    Status(usize),
    Coordinator,
}

pub(super) const NODES: usize = 3;
pub(super) const GROUPS: usize = 4;
const KEYS: usize = 2 * NODES + 2 * GROUPS + 1;

impl Key {
    pub fn index(self) -> usize {
        match self {
            Self::Member(n) => n,
            Self::Node(n) => NODES + n,
            Self::Own(g) => 2 * NODES + g,
            Self::Status(g) => 2 * NODES + GROUPS + g,
            Self::Coordinator => KEYS - 1,
        }
    }
}

/// What the owner is to do with its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Online,
    /// Hand it over.
    Hand {
        to: usize,
        incarnation: u64,
        /// None: it failed and is ended.
        kind: Option<MoveKind>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    pub owner: Owner,
    pub order: Order,
    pub uid: Uid,
    /// It arrived live: the guest runs on.
    pub live: bool,
    pub drained_from: Option<usize>,
    pub failures: Vec<Failure>,
    pub refused_by: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub epoch: u64,
    pub states: Vec<ResourceState>,
    pub verdict: Option<Verdict>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeRecord {
    pub paused: bool,
    pub drain: DrainStatus,
    pub resume: Option<ResumeFailback>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Member(Member),
    Node(NodeRecord),
    Own(Own),
    Status(Status),
    Coordinator(usize, u64),
}

/// A copy of all records as of a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Records {
    pub revision: u64,
    slots: Vec<Option<(Record, u64)>>,
}

impl Default for Records {
    fn default() -> Self {
        Self { revision: 0, slots: vec![None; KEYS] }
    }
}

impl Records {
    pub fn get(&self, key: Key) -> Option<&(Record, u64)> {
        self.slots[key.index()].as_ref()
    }

    pub fn put(&mut self, key: Key, record: Record, revision: u64) {
        self.slots[key.index()] = Some((record, revision));
        self.revision = self.revision.max(revision);
    }

    pub fn own(&self, group: usize) -> Option<(&Own, u64)> {
        match self.get(Key::Own(group)) {
            Some((Record::Own(own), revision)) => Some((own, *revision)),
            _ => None,
        }
    }

    pub fn member(&self, node: usize) -> Option<(Member, u64)> {
        match self.get(Key::Member(node)) {
            Some((Record::Member(member), revision)) => Some((*member, *revision)),
            _ => None,
        }
    }

    pub fn status(&self, group: usize) -> Option<&Status> {
        match self.get(Key::Status(group)) {
            Some((Record::Status(status), _)) => Some(status),
            _ => None,
        }
    }

    pub fn node(&self, node: usize) -> Option<(&NodeRecord, u64)> {
        match self.get(Key::Node(node)) {
            Some((Record::Node(record), revision)) => Some((record, *revision)),
            _ => None,
        }
    }

    pub fn coordinator(&self) -> Option<(usize, u64, u64)> {
        match self.get(Key::Coordinator) {
            Some((Record::Coordinator(node, incarnation), revision)) => {
                Some((*node, *incarnation, *revision))
            }
            _ => None,
        }
    }

    fn revision_of(&self, key: Key) -> Option<u64> {
        self.get(key).map(|r| r.1)
    }
}

/// All compares hold, or nothing is put.
#[derive(Clone, Debug)]
pub(super) struct Txn {
    /// The revision that a record must have; none: it must not exist.
    pub compares: Vec<(Key, Option<u64>)>,
    pub puts: Vec<(Key, Record)>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    pub now: Records,
    /// Every put since the beginning.
    pub history: Vec<(u64, Key, Record)>,
    /// Revisions up to this one can no longer be watched.
    pub compacted: u64,
    /// Nothing is committed before this global instant.
    pub leaderless_until: u64,
}

impl Store {
    /// Carries `txn` out. `None`: a compare failed.
    pub fn commit(&mut self, txn: &Txn) -> Option<u64> {
        if txn.compares.iter().any(|(key, revision)| self.now.revision_of(*key) != *revision) {
            return None;
        }
        let revision = self.now.revision + 1;
        for (key, record) in &txn.puts {
            self.now.put(*key, record.clone(), revision);
            self.history.push((revision, *key, record.clone()));
        }
        Some(revision)
    }

    /// Brings `cache` up to `revision` by the history, as a watch does. False: it is compacted, a list is needed.
    pub fn watch(&self, cache: &mut Records, revision: u64) -> bool {
        if cache.revision < self.compacted {
            return false;
        }
        let from = self.history.partition_point(|(r, ..)| *r <= cache.revision);
        for (r, key, record) in self.history[from..].iter().take_while(|(r, ..)| *r <= revision) {
            cache.put(*key, record.clone(), *r);
        }
        true
    }
}

//! Quorum as Windows shows it: votes, dynamic quorum, the witness.
//!
//! The store has a quorum of its own, which is what counts; this says in an administrator's words what the store can lose, who
//! should have a vote there, and why a cluster stands still.

use crate::NodeName;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The modes by their names of 2008.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuorumMode {
    /// Votes of the nodes only.
    NodeMajority,
    /// Nodes and a witness that holds a copy of the cluster's database (here: a voter of the store on a third machine).
    NodeAndWitnessMajority,
}

impl fmt::Display for QuorumMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NodeMajority => "Node Majority",
            Self::NodeAndWitnessMajority => "Node Majority with Witness",
        })
    }
}

/// One node's vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// `NodeWeight`: as configured.
    pub configured: bool,
    /// `DynamicWeight`: as it is now.
    pub dynamic: bool,
    /// The node is there.
    pub present: bool,
}

/// The witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness {
    /// It answers.
    pub online: bool,
    /// It votes now.
    pub votes: bool,
}

/// Votes and who is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    nodes: BTreeMap<NodeName, Vote>,
    witness: Option<Witness>,
    fixed: bool,
    /// `LowerQuorumPriorityNodeID`: loses its vote first where there is a tie to break.
    lower_priority: Option<NodeName>,
    forced: bool,
}

impl Quorum {
    /// All nodes present, each with a vote.
    #[must_use]
    pub fn new(nodes: impl IntoIterator<Item = NodeName>) -> Self {
        let vote = Vote { configured: true, dynamic: true, present: true };
        let mut quorum = Self { nodes: nodes.into_iter().map(|n| (n, vote)).collect(), ..Self::default() };
        quorum.adjust();
        quorum
    }

    /// With a witness.
    pub fn set_witness(&mut self, witness: bool) {
        self.witness = witness.then_some(Witness { online: true, votes: true });
        self.adjust();
    }

    /// Dynamic quorum on (the default) or off.
    pub fn set_dynamic(&mut self, dynamic: bool) {
        self.fixed = !dynamic;
        self.adjust();
    }

    /// `NodeWeight`.
    pub fn set_weight(&mut self, node: &NodeName, votes: bool) {
        if let Some(vote) = self.nodes.get_mut(node) {
            vote.configured = votes;
        }
        self.adjust();
    }

    /// `LowerQuorumPriorityNodeID`.
    pub fn set_lower_priority(&mut self, node: Option<NodeName>) {
        self.lower_priority = node;
        self.adjust();
    }

    /// These nodes were lost at the same moment; `clean`: they said so first and gave back their votes.
    pub fn lose(&mut self, lost: &BTreeSet<NodeName>, clean: bool) {
        for node in lost {
            if let Some(vote) = self.nodes.get_mut(node) {
                vote.present = false;
                vote.dynamic &= !clean || self.fixed;
            }
        }
        self.adjust();
    }

    /// A node is back. Without quorum it may bring it back.
    pub fn join(&mut self, node: &NodeName) {
        if let Some(vote) = self.nodes.get_mut(node) {
            vote.present = true;
        }
        self.adjust();
    }

    /// The witness answers again, or no longer.
    pub fn witness_online(&mut self, online: bool) {
        if let Some(witness) = &mut self.witness {
            witness.online = online;
        }
        self.adjust();
    }

    /// `ForceQuorum`: whoever is there goes on alone. The administrator answers for the others being off.
    pub fn force(&mut self) {
        self.forced = true;
        for vote in self.nodes.values_mut() {
            vote.dynamic = vote.present && vote.configured;
        }
        self.adjust();
        self.forced = false;
    }

    /// Votes that count and votes that are there.
    #[must_use]
    pub fn votes(&self) -> (usize, usize) {
        let witness = self.witness.filter(|w| w.votes);
        let total = self.nodes.values().filter(|v| v.dynamic).count() + usize::from(witness.is_some());
        let present = self.nodes.values().filter(|v| v.dynamic && v.present).count();
        (total, present + usize::from(witness.is_some_and(|w| w.online)))
    }

    /// A majority of the votes is there.
    #[must_use]
    pub fn quorate(&self) -> bool {
        let (total, present) = self.votes();
        total > 0 && present * 2 > total
    }

    /// How many of the votes that are there can be lost at the same moment.
    #[must_use]
    pub fn tolerates(&self) -> usize {
        let (total, present) = self.votes();
        present.saturating_sub(total / 2 + 1)
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> QuorumMode {
        match self.witness {
            Some(_) => QuorumMode::NodeAndWitnessMajority,
            None => QuorumMode::NodeMajority,
        }
    }

    /// One node's vote.
    #[must_use]
    pub fn vote(&self, node: &NodeName) -> Option<Vote> {
        self.nodes.get(node).copied()
    }

    /// All nodes with their votes.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeName, &Vote)> {
        self.nodes.iter()
    }

    /// The witness.
    #[must_use]
    pub fn witness(&self) -> Option<Witness> {
        self.witness
    }

    /// Dynamic quorum and witness: as long as there is a majority, those who are gone lose their votes, and the number of votes is
    /// made odd, by the witness or by taking one node's.
    fn adjust(&mut self) {
        if self.fixed {
            self.nodes.values_mut().for_each(|v| v.dynamic = v.configured);
            if let Some(witness) = &mut self.witness {
                witness.votes = true;
            }
            return;
        }
        if !self.quorate() && !self.forced {
            return;
        }
        self.nodes.values_mut().for_each(|v| v.dynamic = v.configured && v.present);
        let even = self.nodes.values().filter(|v| v.dynamic).count() % 2 == 0;
        match &mut self.witness {
            Some(witness) if witness.online => witness.votes = even,
            witness => {
                if let Some(witness) = witness {
                    witness.votes = false;
                }
                if even {
                    self.break_tie();
                }
            }
        }
    }

    /// With an even number of votes and no witness one node gives up its own: the one of lower priority, else the last.
    fn break_tie(&mut self) {
        let voters = self.nodes.iter().filter(|(_, v)| v.dynamic).map(|(n, _)| n);
        let chosen = match &self.lower_priority {
            Some(low) if self.nodes.get(low).is_some_and(|v| v.dynamic) => Some(low.clone()),
            _ => voters.max().cloned(),
        };
        if let Some(vote) = chosen.and_then(|n| self.nodes.get_mut(&n)) {
            vote.dynamic = false;
        }
    }
}

impl fmt::Display for Quorum {
    /// One line: `Node Majority: 3 of 3 votes, can lose 1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (total, present) = self.votes();
        write!(f, "{}: {present} of {total} votes", self.mode())?;
        match self.quorate() {
            false => write!(f, ", no quorum: {} more needed", (total / 2 + 1).saturating_sub(present)),
            true => write!(f, ", can lose {}", self.tolerates()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &str) -> BTreeSet<NodeName> {
        names.split(' ').map(|n| NodeName::new(n).unwrap()).collect()
    }

    #[test]
    fn one_after_the_other_down_to_the_last() {
        let mut quorum = Quorum::new(names("a b c d e"));
        for (lost, votes) in [("e", (3, 3)), ("d", (3, 3)), ("c", (1, 1))] {
            quorum.lose(&names(lost), false);
            assert_eq!((quorum.votes(), quorum.quorate()), (votes, true), "{lost}");
        }
        quorum.lose(&names("b"), false);
        assert!(quorum.quorate(), "a has the last vote");
    }

    #[test]
    fn a_majority_at_once_is_the_end() {
        let mut quorum = Quorum::new(names("a b c"));
        quorum.lose(&names("b c"), false);
        assert!(!quorum.quorate());
        assert_eq!(quorum.to_string(), "Node Majority: 1 of 3 votes, no quorum: 1 more needed");
        quorum.join(&NodeName::new("b").unwrap());
        assert!(quorum.quorate());
    }

    #[test]
    fn the_witness_votes_with_an_even_number_of_nodes() {
        let mut quorum = Quorum::new(names("a b"));
        assert_eq!(quorum.votes(), (1, 1), "without witness one of two gives up its vote");
        quorum.set_witness(true);
        assert_eq!((quorum.votes(), quorum.tolerates()), ((3, 3), 1));
        quorum.lose(&names("a"), false);
        assert!(quorum.quorate());
        assert!(!quorum.witness().unwrap().votes, "odd: the witness has no vote");
    }
}

//! Plans: what the coordinator wants done, each step with its reason in words.
//!
//! [`plan`] is a function of policy and view and of nothing else. A step is carried out by a compare-and-swap on the group's
//! record as the view showed it, so a plan that is out of date does nothing.

mod decide;
mod homeless;
mod moves;
mod reason;
mod room;

pub use decide::plan;
pub use reason::{Hold, Reason};

use crate::{DrainStatus, GroupName, MoveKind, NodeName};
use serde::{Deserialize, Serialize};
use std::fmt;

/// One step's id: the revision its plan was made from, and its place. Every step is carried out at most once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Uid {
    /// The store's revision that the plan was made from.
    pub revision: u64,
    /// The step's place in the plan, from 1.
    pub step: u32,
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.revision, self.step)
    }
}

/// Whether a group is brought online where it is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// It is brought online.
    Online,
    /// It only gets an owner.
    Offline,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A group without a living owner gets one, with the next epoch.
    Place {
        /// The group.
        group: GroupName,
        /// The lost owner.
        from: Option<NodeName>,
        /// The new owner.
        to: NodeName,
        /// The epoch it gets.
        epoch: u64,
        /// What the new owner does with it.
        then: Then,
    },
    /// Its owner brings it online.
    Online {
        /// The group.
        group: GroupName,
        /// The owner.
        on: NodeName,
    },
    /// Its owner takes it offline to make room. It comes back by itself.
    MakeRoom {
        /// The group.
        group: GroupName,
        /// The owner.
        on: NodeName,
    },
    /// Its owner hands it over.
    Move {
        /// The group.
        group: GroupName,
        /// The owner.
        from: NodeName,
        /// The next owner.
        to: NodeName,
        /// How.
        kind: MoveKind,
    },
    /// It failed; its owner ends it and hands it over.
    FailOver {
        /// The group.
        group: GroupName,
        /// The owner.
        from: NodeName,
        /// The next owner.
        to: NodeName,
    },
    /// A drain has ended.
    Drained {
        /// The node.
        node: NodeName,
        /// How.
        status: DrainStatus,
    },
    /// Every group that was to return to the node has.
    Resumed {
        /// The node.
        node: NodeName,
    },
}

impl Action {
    /// The group it is about.
    #[must_use]
    pub fn group(&self) -> Option<&GroupName> {
        match self {
            Self::Place { group, .. }
            | Self::Online { group, .. }
            | Self::MakeRoom { group, .. }
            | Self::Move { group, .. }
            | Self::FailOver { group, .. } => Some(group),
            Self::Drained { .. } | Self::Resumed { .. } => None,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place { group, to, then: Then::Online, .. } => write!(f, "start '{group}' on {to}"),
            Self::Place { group, to, then: Then::Offline, .. } => {
                write!(f, "give '{group}' to {to}, offline")
            }
            Self::Online { group, on } => write!(f, "start '{group}' on {on}"),
            Self::MakeRoom { group, on } => write!(f, "take '{group}' offline on {on}"),
            Self::Move { group, from, to, kind } => write!(f, "move '{group}' from {from} to {to}, {kind}"),
            Self::FailOver { group, from, to } => write!(f, "fail '{group}' over from {from} to {to}"),
            Self::Drained { node, status } => write!(f, "drain of {node}: {status}"),
            Self::Resumed { node } => write!(f, "{node} is resumed"),
        }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its id.
    pub uid: Uid,
    /// What is done.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.action, self.reason)
    }
}

/// What is to be done, in order, and what is not done and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The store's revision it was made from.
    pub revision: u64,
    /// Steps; no two of one group.
    pub steps: Vec<Step>,
    /// Groups that something stands in the way of.
    pub holds: Vec<Hold>,
}

impl Plan {
    pub(crate) fn push(&mut self, action: Action, reason: Reason) {
        let step = u32::try_from(self.steps.len() + 1).unwrap_or(u32::MAX);
        self.steps.push(Step { uid: Uid { revision: self.revision, step }, action, reason });
    }

    pub(crate) fn hold(&mut self, group: &GroupName, why: impl Into<String>) {
        self.holds.push(Hold { group: group.clone(), why: why.into() });
    }
}

impl fmt::Display for Plan {
    /// One line per step and per hold.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        for hold in &self.holds {
            writeln!(f, "hold {hold}")?;
        }
        Ok(())
    }
}

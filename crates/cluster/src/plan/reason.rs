//! Why, in words that answer "why did it move?".

use crate::{GroupName, NodeName, ResourceName};
use std::fmt;

/// Why a step is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is to be online and is not.
    Wanted,
    /// It has no owner yet.
    Ownerless,
    /// A user asked.
    Asked,
    /// Its node is gone and fenced.
    NodeLost {
        /// The node.
        node: NodeName,
        /// Heartbeats it missed.
        missed: u32,
        /// The epoch that the group gets.
        epoch: u64,
    },
    /// Somebody confirmed that its node is off.
    NodeOff {
        /// The node.
        node: NodeName,
        /// Who.
        by: String,
    },
    /// Its node left the cluster.
    NodeLeft(NodeName),
    /// Its node has started anew.
    NodeRestarted(NodeName),
    /// A resource ran out of restarts.
    ResourceFailed {
        /// The resource.
        resource: ResourceName,
        /// Where.
        node: NodeName,
        /// This is failover number ...
        count: usize,
        /// ... of so many in the period.
        of: u32,
    },
    /// It returns to a node it prefers.
    Failback(NodeName),
    /// Its node is drained.
    Drain(NodeName),
    /// The node it was drained from is back.
    Resume(NodeName),
    /// Its node left the cluster too often.
    Quarantine(NodeName),
    /// There is no room where it is.
    NoRoom(NodeName),
    /// Its owner takes no groups.
    OwnerClosed(NodeName),
    /// A group of higher priority needs the room.
    RoomFor(GroupName),
    /// The node is empty.
    Empty,
    /// No group is left to return.
    Returned,
    /// Something cannot be done.
    Stuck(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wanted => write!(f, "it is to be online"),
            Self::Ownerless => write!(f, "it needs an owner"),
            Self::Asked => write!(f, "a user asked"),
            Self::NodeLost { node, missed, epoch } => {
                let s = if *missed == 1 { "" } else { "s" };
                write!(f, "{node} missed {missed} heartbeat{s}, fenced at epoch {epoch}")
            }
            Self::NodeOff { node, by } => write!(f, "{node} is off, {by} said so"),
            Self::NodeRestarted(node) => write!(f, "{node} has started anew, what ran there is gone"),
            Self::NodeLeft(node) => write!(f, "{node} left the cluster"),
            Self::ResourceFailed { resource, node, count, of } => {
                write!(f, "{resource} failed on {node}, failover {count} of {of}")
            }
            Self::Failback(node) => write!(f, "failback, it prefers {node}"),
            Self::Drain(node) => write!(f, "{node} is drained"),
            Self::Resume(node) => write!(f, "{node} is back, it was drained from there"),
            Self::Quarantine(node) => write!(f, "{node} is in quarantine"),
            Self::NoRoom(node) => write!(f, "{node} has no room for it"),
            Self::OwnerClosed(node) => write!(f, "{node} takes no groups"),
            Self::RoomFor(group) => write!(f, "'{group}' has a higher priority and needs the room"),
            Self::Empty => write!(f, "no group is left on it"),
            Self::Returned => write!(f, "no group is left to return"),
            Self::Stuck(why) => write!(f, "{why}"),
        }
    }
}

/// A group for which nothing is done, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The group.
    pub group: GroupName,
    /// What stands in the way, and the cure.
    pub why: String,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}': {}", self.group, self.why)
    }
}

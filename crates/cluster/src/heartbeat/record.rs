//! Records of the protocol in the store.

use crate::NodeName;
use serde::{Deserialize, Serialize};

/// Whether a member is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It writes its heartbeats.
    Alive,
    /// Others declared it lost.
    Fenced,
    /// It left, and nothing of it was running.
    Left,
}

/// A node's own record. Written by the node, and once by whoever fences it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Counts the lives of the node's agent; what an earlier life owned is lost.
    pub incarnation: u64,
    /// Counts heartbeats within one life. A fencing keeps the number of the last heartbeat.
    pub sequence: u64,
    /// Whether it is one.
    pub standing: Standing,
}

/// Who owns a group. Changes only by compare-and-swap, each time with the next epoch: by the owner itself, or after its life
/// was fenced or is over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The node.
    pub node: NodeName,
    /// Which life of it.
    pub incarnation: u64,
    /// Raised by every change.
    pub epoch: u64,
}

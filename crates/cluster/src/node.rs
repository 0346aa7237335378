//! Nodes: their states, and quarantine for those that leave again and again.

use crate::{Policy, Time};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The state of a node, Windows' values 0 to 3 and the two that came in 2016.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NodeState {
    /// 0: a member; takes groups.
    Up,
    /// 1: not a member.
    #[default]
    Down,
    /// 2: a member that takes no groups.
    Paused,
    /// 3: becoming a member.
    Joining,
    /// Not heard of, and not yet given up: its machines are Unmonitored.
    Isolated,
    /// It left too often: a member that takes no groups, and gives away those it has, for a while.
    Quarantined,
}

impl NodeState {
    /// Can be asked and told things.
    #[must_use]
    pub fn is_member(self) -> bool {
        matches!(self, Self::Up | Self::Paused | Self::Quarantined)
    }

    /// Takes groups.
    #[must_use]
    pub fn takes_groups(self) -> bool {
        self == Self::Up
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "Up",
            Self::Down => "Down",
            Self::Paused => "Paused",
            Self::Joining => "Joining",
            Self::Isolated => "Isolated",
            Self::Quarantined => "Quarantined",
        })
    }
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DrainStatus {
    /// Nobody asked.
    #[default]
    NotInitiated,
    /// Groups are leaving.
    InProgress,
    /// The node has no group.
    Completed,
    /// Something cannot leave.
    Failed,
}

impl fmt::Display for DrainStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NotInitiated => "NotInitiated",
            Self::InProgress => "InProgress",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
        })
    }
}

/// When nodes that leave are kept out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// `QuarantineThreshold`: so many leaves within an hour; 0 switches quarantine off.
    pub threshold: u32,
    /// `QuarantineDuration`, in seconds.
    pub duration_s: u64,
    /// At most so many percent of the nodes are in quarantine at once.
    pub percent_max: u32,
}

impl Default for Quarantine {
    fn default() -> Self {
        Self { threshold: 3, duration_s: 7_200, percent_max: 20 }
    }
}

/// The time within which leaves count.
const LEAVES_COUNT_FOR: Duration = Duration::from_secs(3_600);

/// How often a node left without saying so, and whether it is kept out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attendance {
    /// Unannounced leaves, wall-clock time.
    leaves: Vec<Time>,
    until: Option<Time>,
}

impl Attendance {
    /// The node left at `now` without saying so. A clean leave does not count.
    ///
    /// `others`: other nodes that are in quarantine now.
    pub fn left(&mut self, policy: &Policy, others: usize, now: Time) {
        let rule = &policy.quarantine;
        self.leaves.retain(|at| now.since(*at) < LEAVES_COUNT_FOR);
        self.leaves.push(now);
        let enough = rule.threshold > 0 && self.leaves.len() >= rule.threshold as usize;
        // Below five nodes 20 % is none; one node may always be kept out as long as others remain.
        let nodes = policy.nodes.len();
        let room = (nodes * rule.percent_max as usize / 100).max(usize::from(nodes > 1));
        if enough && others < room {
            self.until = Some(now + Duration::from_secs(rule.duration_s));
        }
    }

    /// The end of the quarantine that holds at `now`.
    #[must_use]
    pub fn quarantined(&self, now: Time) -> Option<Time> {
        self.until.filter(|until| now < *until)
    }

    /// An administrator lets the node in again.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeName;

    fn policy(nodes: usize) -> Policy {
        let mut policy = Policy::default();
        for i in 0..nodes {
            policy.nodes.insert(NodeName::new(&format!("n{i}")).unwrap(), crate::NodePolicy::default());
        }
        policy
    }

    #[test]
    fn the_third_leave_within_an_hour_keeps_it_out_for_two() {
        let (policy, mut node) = (policy(3), Attendance::default());
        for minute in [0, 20] {
            node.left(&policy, 0, Time::from_secs(minute * 60));
            assert_eq!(node.quarantined(Time::from_secs(minute * 60)), None);
        }
        let third = Time::from_secs(59 * 60);
        node.left(&policy, 0, third);
        assert_eq!(node.quarantined(third), Some(third + Duration::from_secs(7_200)));
        assert_eq!(node.quarantined(third + Duration::from_secs(7_200)), None);
        node.clear();
        assert_eq!(node.quarantined(third), None);
    }

    #[test]
    fn leaves_an_hour_ago_and_crowds_do_not_count() {
        let mut slow = Attendance::default();
        for hour in 0..5 {
            slow.left(&policy(3), 0, Time::from_secs(hour * 1_801));
            assert_eq!(slow.quarantined(Time::from_secs(hour * 1_801)), None, "{hour}");
        }
        let mut late = Attendance::default();
        for _ in 0..3 {
            late.left(&policy(10), 2, Time::from_secs(9));
        }
        assert_eq!(late.quarantined(Time::from_secs(9)), None, "20 % of 10 are in quarantine already");
    }
}

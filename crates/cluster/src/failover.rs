//! Failover: how often a group that fails may move.

use crate::{Group, NodeName, Time};
use std::time::Duration;

/// One failure of a group, that is: of a resource that ran out of restarts. The loss of a node is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When, wall-clock time.
    pub at: Time,
    /// Where.
    pub node: NodeName,
    /// Whether it moved because of it.
    pub moved: bool,
}

impl Group {
    /// Failovers allowed within the period. `nodes`: members of the cluster. At least 1 unless it is set to 0.
    #[must_use]
    pub fn failovers_max(&self, nodes: usize) -> u32 {
        let default = u32::try_from(nodes.saturating_sub(1)).unwrap_or(u32::MAX).max(1);
        self.failover_threshold.unwrap_or(default)
    }

    /// The failover period; Windows caps it at 1193 hours.
    #[must_use]
    pub fn failover_period(&self) -> Duration {
        Duration::from_secs(u64::from(self.failover_period_h.min(1193)) * 3600)
    }

    /// Failures that still count at `now`: those within the period, which slides. A period of 0 forgets at once.
    pub fn recent<'a>(&self, failures: &'a [Failure], now: Time) -> impl Iterator<Item = &'a Failure> {
        let period = self.failover_period();
        failures.iter().filter(move |f| now.since(f.at) < period)
    }

    /// Whether one more failover is allowed at `now`.
    #[must_use]
    pub fn may_fail_over(&self, failures: &[Failure], nodes: usize, now: Time) -> bool {
        let moved = self.recent(failures, now).filter(|f| f.moved).count();
        u32::try_from(moved).is_ok_and(|moved| moved < self.failovers_max(nodes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GroupName;

    #[test]
    fn as_many_as_other_nodes_within_six_hours() {
        let group = Group::new(GroupName::new("g").unwrap());
        assert_eq!([1, 2, 3, 16].map(|n| group.failovers_max(n)), [1, 1, 2, 15]);
        let node = NodeName::new("a").unwrap();
        let failure = |h: u64| Failure { at: Time::from_secs(h * 3600), node: node.clone(), moved: true };
        let failures = [failure(1), failure(2)];
        assert!(!group.may_fail_over(&failures, 3, Time::from_secs(7 * 3600 - 1)));
        assert!(group.may_fail_over(&failures, 3, Time::from_secs(7 * 3600)));
        let never = Group { failover_threshold: Some(0), ..group };
        assert!(!never.may_fail_over(&[], 3, Time::default()));
    }
}

//! What follows when a resource fails: restart it, fail its group over, or leave it failed.

use crate::Time;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `RestartAction` (values 0, 1, 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartAction {
    /// 0: stay failed.
    DontRestart,
    /// 1: restart, and never fail the group over because of this resource.
    RestartNoNotify,
    /// 2: restart; more than the threshold fails the group over.
    #[default]
    RestartNotify,
}

/// A resource's restart properties, with Windows' names and defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// `RestartAction`.
    pub action: RestartAction,
    /// `RestartThreshold`: restarts allowed within the period.
    pub threshold: u32,
    /// `RestartPeriod`, in milliseconds.
    pub period_ms: u64,
    /// `RestartDelay`: wait before a restart, in milliseconds.
    pub delay_ms: u64,
    /// `RetryPeriodOnFailure`, in milliseconds; none: never. Never shorter than the restart period: a shorter value counts as
    /// the restart period.
    pub retry_ms: Option<u64>,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            action: RestartAction::RestartNotify,
            threshold: 3,
            period_ms: 900_000,
            delay_ms: 500,
            retry_ms: Some(3_600_000),
        }
    }
}

impl RestartPolicy {
    /// How long the resource stays failed before it is tried again; none: for ever.
    #[must_use]
    pub fn retry(&self) -> Option<Duration> {
        if self.action == RestartAction::DontRestart {
            return None;
        }
        self.retry_ms.map(|ms| Duration::from_millis(ms.max(self.period_ms)))
    }
}

/// The restarts of one resource in the current period. The period begins with the first failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestartCount {
    since: Option<Time>,
    restarts: u32,
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// Restart it at this time.
    Restart(Time),
    /// The group has failed and wants another node.
    FailOver,
    /// It stays failed; the group stays where it is.
    StayFailed,
}

impl RestartCount {
    /// Counts a failure at `now` and decides.
    pub fn failed(&mut self, policy: &RestartPolicy, now: Time) -> AfterFailure {
        if policy.action == RestartAction::DontRestart {
            return AfterFailure::StayFailed;
        }
        let period = Duration::from_millis(policy.period_ms);
        match self.since {
            Some(since) if now.since(since) < period => {}
            _ => *self = Self { since: Some(now), restarts: 0 },
        }
        if self.restarts < policy.threshold {
            self.restarts += 1;
            return AfterFailure::Restart(now + Duration::from_millis(policy.delay_ms));
        }
        match policy.action {
            RestartAction::RestartNotify => AfterFailure::FailOver,
            RestartAction::RestartNoNotify | RestartAction::DontRestart => AfterFailure::StayFailed,
        }
    }

    /// Restarts in the current period.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.restarts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failure_after_the_threshold_escalates_and_the_period_starts_anew() {
        let policy = RestartPolicy::default();
        let mut count = RestartCount::default();
        for second in [0, 10, 20] {
            let now = Time::from_secs(second);
            let delay = Duration::from_millis(500);
            assert_eq!(count.failed(&policy, now), AfterFailure::Restart(now + delay));
        }
        assert_eq!(count.failed(&policy, Time::from_secs(899)), AfterFailure::FailOver);
        assert!(matches!(count.failed(&policy, Time::from_secs(900)), AfterFailure::Restart(_)));
        assert_eq!(count.restarts(), 1);
    }

    #[test]
    fn the_other_actions_never_move_the_group() {
        let now = Time::from_secs(1);
        let dont = RestartPolicy { action: RestartAction::DontRestart, ..RestartPolicy::default() };
        assert_eq!(RestartCount::default().failed(&dont, now), AfterFailure::StayFailed);
        assert_eq!(dont.retry(), None);
        let quiet = RestartPolicy {
            action: RestartAction::RestartNoNotify,
            threshold: 0,
            retry_ms: Some(1),
            ..RestartPolicy::default()
        };
        assert_eq!(RestartCount::default().failed(&quiet, now), AfterFailure::StayFailed);
        assert_eq!(quiet.retry(), Some(Duration::from_secs(900)), "not below the restart period");
    }
}

//! What happens when QEMU ends without being asked: pure.

use backstay_model::RecoveryAction;
use std::time::Duration;

/// Starts within [`WINDOW`] before the worker gives up.
const LIMIT: usize = 5;
/// Milliseconds after which a start no longer counts.
const WINDOW_MS: i64 = 10 * 60 * 1000;

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Start it again after this time.
    Restart {
        /// Longer each time.
        after: Duration,
    },
    /// Leave it failed.
    GiveUp {
        /// Why, in words.
        why: String,
    },
}

impl Recovery {
    /// The decision in words.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Restart { after } if after.is_zero() => "start the machine again now".into(),
            Self::Restart { after } => format!("start the machine again in {} s", after.as_secs()),
            Self::GiveUp { why } => why.clone(),
        }
    }
}

/// Decides by the configured action and the former starts (milliseconds since the Unix epoch).
#[must_use]
pub fn decide(action: RecoveryAction, former: &[i64], now_ms: i64) -> Recovery {
    if action == RecoveryAction::None {
        return Recovery::GiveUp { why: "stay off, as configured".into() };
    }
    let recent = former.iter().filter(|&&at| now_ms.saturating_sub(at) < WINDOW_MS).count();
    if recent >= LIMIT {
        return Recovery::GiveUp { why: format!("stay off: it ended {LIMIT} times within 10 minutes") };
    }
    let after = match recent {
        0 => 0,
        n => 1 << (n - 1),
    };
    Recovery::Restart { after: Duration::from_secs(after) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_later_ones_wait_and_a_crash_loop_ends() {
        let seconds = |former: &[i64], now| match decide(RecoveryAction::Restart, former, now) {
            Recovery::Restart { after } => Some(after.as_secs()),
            Recovery::GiveUp { .. } => None,
        };
        let former: Vec<i64> = (0..5).map(|n| n * 20_000).collect();
        let waits: Vec<_> = (0..=5).map(|n| seconds(&former[..n], 100_000)).collect();
        assert_eq!(waits, [Some(0), Some(1), Some(2), Some(4), Some(8), None]);
        assert_eq!(seconds(&former, 20 * 60 * 1000), Some(0), "old starts are forgotten");
        assert!(matches!(decide(RecoveryAction::None, &[], 0), Recovery::GiveUp { .. }));
    }
}

//! Fencing classes: what makes sure that a lost node no longer writes, and so how long a taker waits.

use crate::heartbeat::Timing;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What stops a stale writer, from the quickest to take over to the slowest. A group is of the highest class of its storages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FencingClass {
    /// The storage itself refuses the old epoch.
    #[default]
    S,
    /// A watchdog resets the node that lost its lease.
    W,
    /// A STONITH hook confirms that the node is off.
    C,
    /// Nothing: no automatic failover; an administrator confirms that the node is powered off.
    N,
}

/// When a group of a lost node may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// So long after the node's last heartbeat was first seen, on the taker's clock.
    After(Duration),
    /// Once somebody confirmed that the node is off.
    Confirmed,
}

impl FencingClass {
    /// All classes in order.
    pub const ALL: [Self; 4] = [Self::S, Self::W, Self::C, Self::N];

    /// When a group of this class may be taken. A confirmation does for every class.
    #[must_use]
    pub fn release(self, timing: &Timing) -> Release {
        match self {
            Self::S => Release::After(timing.wait),
            Self::W => Release::After(timing.wait_watchdog()),
            Self::C | Self::N => Release::Confirmed,
        }
    }

    /// Whether a node's loss alone leads to a failover.
    #[must_use]
    pub fn automatic(self) -> bool {
        self != Self::N
    }

    /// The letter.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::S => 'S',
            Self::W => 'W',
            Self::C => 'C',
            Self::N => 'N',
        }
    }

    /// What it rests on, in words for reports.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::S => "the storage refuses writes of an older epoch",
            Self::W => "a watchdog resets a node that lost its lease",
            Self::C => "a STONITH hook confirms that the node is off",
            Self::N => "nothing stops a lost node: automatic failover is off",
        }
    }
}

impl fmt::Display for FencingClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_sets_the_wait() {
        let timing = Timing::default();
        assert_eq!(FencingClass::S.release(&timing), Release::After(Duration::from_millis(3_750)));
        assert_eq!(FencingClass::W.release(&timing), Release::After(Duration::from_secs(14)));
        assert_eq!(FencingClass::C.release(&timing), Release::Confirmed);
        assert!(FencingClass::C.automatic() && !FencingClass::N.automatic());
    }
}

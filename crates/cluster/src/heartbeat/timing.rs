//! The protocol's times and what must hold between them.

use crate::Span;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// All of the protocol's times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// L: how long after it was sent a committed heartbeat gives the right to write.
    pub lease: Duration,
    /// I: between two heartbeats.
    pub interval: Duration,
    /// W for class S: from the last heartbeat seen to the fencing.
    pub wait: Duration,
    /// Before the deadline: new writes stall.
    pub stall: Duration,
    /// e: after the deadline the kernel kills whoever could not be asked to stop.
    pub dead_man: Duration,
    /// Time until a node's watchdog, no longer fed, resets it.
    pub watchdog: Duration,
    /// Longest wait for one transaction of the store.
    pub transaction: Duration,
    /// How long the store may be without leader before guests notice.
    pub leaderless: Duration,
    /// ρ: how wrong a clock may run, in millionths.
    pub drift_ppm: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_millis(3_000),
            interval: Duration::from_millis(500),
            wait: Duration::from_millis(3_750),
            stall: Duration::from_millis(250),
            dead_man: Duration::from_millis(400),
            watchdog: Duration::from_secs(10),
            transaction: Duration::from_millis(350),
            leaderless: Duration::from_millis(1_800),
            drift_ppm: 1_000,
        }
    }
}

/// Times that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// A lost node could still write when it is taken over.
    #[error(
        "the wait of {wait} is not safe: with clocks wrong by up to {ppm} ppm a write may land {last} after the last heartbeat; raise the wait or lower the lease"
    )]
    Unsafe {
        /// W.
        wait: Span,
        /// ρ.
        ppm: u32,
        /// The latest write.
        last: Span,
    },
    /// Too little room for clocks that are worse than believed.
    #[error(
        "between lease ({lease}) and wait ({wait}) there must be 20 % of the lease: raise the wait to {cure}"
    )]
    Margin {
        /// L.
        lease: Span,
        /// W.
        wait: Span,
        /// W that would do.
        cure: Span,
    },
    /// Every change of the store's leader would stall guests.
    #[error("a lease of {lease} does not outlast a change of the store's leader: raise it to {cure}")]
    Short {
        /// L.
        lease: Span,
        /// L that would do.
        cure: Span,
    },
    /// Writes would stall between two heartbeats.
    #[error(
        "an interval of {interval} is too long for a lease of {lease}: at least three heartbeats must fit"
    )]
    Interval {
        /// I.
        interval: Span,
        /// L.
        lease: Span,
    },
}

impl Timing {
    /// Short times for dedicated disks and an election timeout of 500 ms.
    #[must_use]
    pub fn fast() -> Self {
        Self {
            lease: Duration::from_millis(1_500),
            interval: Duration::from_millis(300),
            wait: Duration::from_millis(2_000),
            dead_man: Duration::from_millis(200),
            transaction: Duration::from_millis(200),
            leaderless: Duration::from_millis(800),
            ..Self::default()
        }
    }

    /// W for class W: the watchdog has reset the node by then.
    #[must_use]
    pub fn wait_watchdog(&self) -> Duration {
        self.lease + self.watchdog + Duration::from_secs(1)
    }

    /// The latest time after a heartbeat was sent at which its node may still submit a write, on the taker's clock.
    #[must_use]
    pub fn last_write(&self) -> Duration {
        let own = self.lease + self.dead_man;
        own + own * 2 * self.drift_ppm / 1_000_000
    }

    /// Checks what must hold.
    ///
    /// # Errors
    /// The first rule that is broken, with the value that would do.
    pub fn check(&self) -> Result<(), TimingError> {
        if self.wait <= self.last_write() {
            return Err(TimingError::Unsafe {
                wait: Span(self.wait),
                ppm: self.drift_ppm,
                last: Span(self.last_write()),
            });
        }
        let margin = self.lease + self.lease / 5;
        if self.wait < margin {
            let (lease, wait) = (Span(self.lease), Span(self.wait));
            return Err(TimingError::Margin { lease, wait, cure: Span(margin) });
        }
        if self.interval * 3 > self.lease.saturating_sub(self.stall) {
            return Err(TimingError::Interval { interval: Span(self.interval), lease: Span(self.lease) });
        }
        let needed = self.interval + self.leaderless + self.transaction * 2;
        if self.lease < needed {
            return Err(TimingError::Short { lease: Span(self.lease), cure: Span(needed) });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_profiles_hold_and_each_rule_bites() {
        assert_eq!(Timing::default().check(), Ok(()));
        assert_eq!(Timing::fast().check(), Ok(()));
        let ms = Duration::from_millis;
        let short = Timing { wait: ms(3_405), ..Timing::default() }.check().unwrap_err();
        assert!(short.to_string().contains("a write may land 3.406 s after the last heartbeat"), "{short}");
        let slim = Timing { wait: ms(3_450), ..Timing::default() }.check().unwrap_err();
        assert!(slim.to_string().ends_with("raise the wait to 3.6 s"), "{slim}");
        let hasty = Timing { lease: ms(2_500), ..Timing::default() }.check().unwrap_err();
        assert!(hasty.to_string().ends_with("raise it to 3 s"), "{hasty}");
        assert!(Timing { interval: ms(1_000), ..Timing::default() }.check().is_err());
        let wild = Timing { drift_ppm: 60_000, ..Timing::default() };
        assert!(wild.check().is_err(), "clocks wrong by 6 % are not safe");
    }
}

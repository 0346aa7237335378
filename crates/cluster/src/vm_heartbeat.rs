//! `CheckHeartbeat`: a guest whose heartbeat stays away has failed, unless it is rebooting or shutting down by itself.

use crate::Time;
use std::time::Duration;

/// A guest without heartbeat for so long has failed.
pub const HEARTBEAT_MISSING: Duration = Duration::from_secs(60);

/// A guest that announced its shutdown may be silent for so long (updates take minutes); after that it hangs.
pub const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(1_800);

/// What is seen of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestSign {
    /// Its heartbeat.
    Heartbeat,
    /// It said that it is shutting down or rebooting (the agent's event, or QEMU's SHUTDOWN by the guest).
    ShuttingDown,
    /// The virtual machine was reset: a boot begins.
    Reset,
    /// The virtual processors are stopped on purpose (paused, storage stalled, being migrated).
    Stopped,
    /// The virtual processors run again.
    Resumed,
}

/// What is known of one guest's heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestWatch {
    /// The last heartbeat of this boot. None: it has not said a word since it booted, and need not (no agent, still booting).
    last: Option<Time>,
    shutting_down: Option<Time>,
    stopped: Option<Time>,
}

impl GuestWatch {
    /// Takes a sign that was seen at `now`.
    pub fn see(&mut self, sign: GuestSign, now: Time) {
        match sign {
            GuestSign::Heartbeat => *self = Self { last: Some(now), shutting_down: None, stopped: None },
            GuestSign::ShuttingDown => self.shutting_down = Some(now),
            GuestSign::Reset => *self = Self::default(),
            GuestSign::Stopped => self.stopped = self.stopped.or(Some(now)),
            GuestSign::Resumed => {
                // The time it stood still is not the guest's silence.
                if let (Some(stopped), Some(last)) = (self.stopped.take(), self.last) {
                    self.last = Some(last + now.since(stopped));
                }
            }
        }
    }

    /// When the guest will have failed if nothing is seen until then; none: nothing is expected of it.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        match (self.stopped, self.last, self.shutting_down) {
            (Some(_), ..) | (None, None, _) => None,
            (None, Some(_), Some(since)) => Some(since + SHUTDOWN_PATIENCE),
            (None, Some(last), None) => Some(last + HEARTBEAT_MISSING),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_reboot_is_no_failure() {
        let mut guest = GuestWatch::default();
        assert_eq!(guest.deadline(), None, "a guest without agent is not expected to speak");
        guest.see(GuestSign::Heartbeat, Time::from_secs(10));
        assert_eq!(guest.deadline(), Some(Time::from_secs(70)));
        guest.see(GuestSign::ShuttingDown, Time::from_secs(20));
        assert_eq!(guest.deadline(), Some(Time::from_secs(1_820)));
        guest.see(GuestSign::Reset, Time::from_secs(200));
        assert_eq!(guest.deadline(), None, "booting");
        guest.see(GuestSign::Heartbeat, Time::from_secs(400));
        assert_eq!(guest.deadline(), Some(Time::from_secs(460)));
    }

    #[test]
    fn standing_still_on_purpose_is_not_silence() {
        let mut guest = GuestWatch::default();
        guest.see(GuestSign::Heartbeat, Time::from_secs(10));
        guest.see(GuestSign::Stopped, Time::from_secs(40));
        assert_eq!(guest.deadline(), None);
        guest.see(GuestSign::Resumed, Time::from_secs(1_040));
        assert_eq!(guest.deadline(), Some(Time::from_secs(1_070)));
    }
}

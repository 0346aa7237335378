//! What goes into the state machine and what comes out.

use crate::qmp::{QmpEvent, RunState};
use backstay_model::{RecoveryAction, VmState};
use std::time::Duration;

/// What a user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserRequest {
    /// Stop the processors.
    Pause,
    /// Continue.
    Resume,
    /// Reset button.
    Reset,
    /// ACPI power button.
    Shutdown,
    /// Pull the plug.
    TurnOff,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// QEMU is up, its state (if any) is loaded and the processors stand still; `run`: they are to execute.
    Ready {
        /// False for a machine that is started paused or was saved paused.
        run: bool,
    },
    /// A QEMU of a former worker was taken over.
    Adopted {
        /// Answer of `query-status`.
        status: RunState,
        /// As the former worker recorded it.
        paused_by_user: bool,
    },
    /// QEMU could not be started. There is no process.
    StartFailed {
        /// In words.
        reason: String,
    },
    /// QEMU's `STOP`.
    Stopped,
    /// QEMU's `RESUME`.
    Resumed,
    /// QEMU's `RESET`.
    WasReset,
    /// QEMU's `SHUTDOWN`.
    ShutDown {
        /// `guest-shutdown`, `host-qmp-quit`, `host-signal` …
        reason: String,
    },
    /// QEMU's `BLOCK_IO_ERROR` with action `stop`.
    IoError {
        /// Node or device.
        node: String,
        /// QEMU's words.
        reason: String,
    },
    /// Answer to [`Effect::QueryStatus`].
    Status(RunState),
    /// The control connection ended although QEMU has not.
    QmpLost,
    /// It is there again; with the answer of `query-status`.
    QmpBack(RunState),
    /// QEMU ended. Feed what it said before this.
    Exited {
        /// In words.
        reason: String,
        /// It ended in order, as far as its status or its pid file tell.
        orderly: bool,
    },
    /// A user's wish.
    User(UserRequest),
    /// From here on a checkpoint stops and continues the guest; it leaves the guest running exactly if
    /// [`super::Lifecycle::wants_to_run`].
    CheckpointBegin,
    /// The guest is no longer stopped by the checkpoint, whatever became of it.
    CheckpointEnd,
    /// From here on memory is written out to be kept while the machine is off; the guest is stopped for it.
    SaveBegin,
    /// The end of it: with `saved`, all is durable and QEMU may end; else the machine goes on.
    SaveEnd {
        /// Whether the state is complete.
        saved: bool,
    },
    /// The guest has to stand still for a reason outside of it, or need no longer; the user's wish stays what it is.
    Hold {
        /// Why; none: it may go on.
        reason: Option<String>,
    },
    /// The clock reached [`super::Lifecycle::next_deadline`].
    Tick,
}

impl Event {
    /// The meaning of an event of QEMU's; none if it has none here.
    #[must_use]
    pub fn from_qmp(event: &QmpEvent) -> Option<Self> {
        let text = |key: &str| event.data[key].as_str().unwrap_or_default().to_owned();
        match event.name.as_str() {
            "STOP" => Some(Self::Stopped),
            "RESUME" => Some(Self::Resumed),
            "RESET" => Some(Self::WasReset),
            "SHUTDOWN" => Some(Self::ShutDown { reason: text("reason") }),
            "BLOCK_IO_ERROR" if event.data["action"] == "stop" => {
                let node = text("node-name");
                let node = if node.is_empty() { text("device") } else { node };
                let full = event.data["nospace"] == true;
                let reason = if full { "no space is left".to_owned() } else { text("reason") };
                Some(Self::IoError { node, reason })
            }
            _ => None,
        }
    }
}

/// A control command without arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `cont`
    Cont,
    /// `stop`
    Stop,
    /// `system_reset`
    SystemReset,
    /// `system_powerdown`
    SystemPowerdown,
    /// `quit`
    Quit,
}

/// Something to do. Commands are sent in this order; their failures need no report, what matters shows in events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send to QEMU.
    Send(Command),
    /// Ask `query-status` after the commands before it, answer with [`Event::Status`].
    QueryStatus,
    /// Connect again, answer with [`Event::QmpBack`] on success.
    ReconnectQmp,
    /// Kill QEMU.
    Kill,
    /// Start a new QEMU, answer with [`Event::Ready`] or [`Event::StartFailed`].
    Restart,
    /// Tell the world.
    Publish {
        /// Before.
        from: VmState,
        /// After.
        to: VmState,
        /// Why.
        reason: String,
    },
    /// A disk request failed and the guest was stopped before it could see it.
    StorageStalled {
        /// Node or device.
        node: String,
        /// QEMU's words.
        reason: String,
    },
    /// The guest runs again after [`Effect::StorageStalled`].
    StorageRecovered,
    /// QEMU ended without being asked.
    Died {
        /// How.
        reason: String,
        /// What follows.
        action: String,
    },
    /// Close the disks and end the worker.
    Finish {
        /// [`VmState::Off`], [`VmState::Saved`] or [`VmState::Failed`].
        state: VmState,
        /// Why.
        reason: String,
    },
}

/// What happens when QEMU ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryPolicy {
    /// Restart or not.
    pub action: RecoveryAction,
    /// A machine that ran for so long since its last restart starts to count anew.
    pub quiet: Duration,
}

impl RecoveryPolicy {
    /// Waits before the first restart, the second … in seconds; after the last one it stays off.
    pub const WAITS_S: [u64; 6] = [0, 10, 30, 60, 120, 300];

    /// The waits above; ten minutes of quiet forget them.
    #[must_use]
    pub fn new(action: RecoveryAction) -> Self {
        Self { action, quiet: Duration::from_secs(600) }
    }

    /// How many of the former restarts count at `now`: those since it last ran quietly.
    #[must_use]
    pub fn recent(&self, former: &[Duration], now: Duration) -> usize {
        let mut count = 0;
        for (index, at) in former.iter().enumerate() {
            count += 1;
            // It ran from this restart until it died: before the next restart, which waited first.
            let waited = Self::WAITS_S.get(count).copied().unwrap_or(0);
            let died =
                former.get(index + 1).map_or(now, |next| next.saturating_sub(Duration::from_secs(waited)));
            if died.saturating_sub(*at) >= self.quiet {
                count = 0;
            }
        }
        count
    }

    /// How long to wait before the next restart, or why there is none. `former`: when it was restarted before, oldest
    /// first, on the clock of `now`.
    ///
    /// # Errors
    /// The words for giving up.
    pub fn decide(&self, former: &[Duration], now: Duration) -> Result<Duration, String> {
        if self.action == RecoveryAction::None {
            return Err("stays off, as its recovery action says".to_owned());
        }
        let recent = self.recent(former, now);
        match Self::WAITS_S.get(recent) {
            Some(wait) => Ok(Duration::from_secs(*wait)),
            None => Err(format!(
                "stays off: it was started again {recent} times and never ran for {} minutes",
                self.quiet.as_secs() / 60
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The history of a machine that dies `life` seconds after each of its starts, until it stays off.
    fn waits(life: u64) -> Vec<u64> {
        let policy = RecoveryPolicy::new(RecoveryAction::Restart);
        let (mut now, mut former, mut waits) = (at(1_000_000), Vec::new(), Vec::new());
        while let Ok(wait) = policy.decide(&former, now) {
            waits.push(wait.as_secs());
            now += wait;
            former.push(now);
            now += at(life);
            if waits.len() > 20 {
                break;
            }
        }
        waits
    }

    #[test]
    fn each_restart_waits_longer_and_the_last_one_is_followed_by_none() {
        assert_eq!(waits(1), [0, 10, 30, 60, 120, 300]);
        assert_eq!(waits(599), [0, 10, 30, 60, 120, 300]);
    }

    #[test]
    fn ten_quiet_minutes_forget_what_was_before() {
        assert!(waits(600).iter().all(|wait| *wait == 0));
        let policy = RecoveryPolicy::new(RecoveryAction::Restart);
        // Two quick deaths, a quiet time, and one more.
        let former = [at(100), at(110), at(900)];
        assert_eq!(policy.recent(&former, at(905)), 1);
        assert_eq!(policy.decide(&former, at(905)), Ok(at(10)));
        assert_eq!(policy.decide(&former, at(1500)), Ok(at(0)));
    }

    #[test]
    fn a_clock_that_went_back_counts_as_recent() {
        let policy = RecoveryPolicy::new(RecoveryAction::Restart);
        assert_eq!(policy.recent(&[at(500)], at(400)), 1);
    }

    #[test]
    fn without_the_action_it_stays_off() {
        assert!(RecoveryPolicy::new(RecoveryAction::None).decide(&[], at(1)).is_err());
    }
}

//! QEMU's end: what it means for the machine, and whether it is started again.

use super::{Effect, Ending, Lifecycle, Phase, Turn};
use backstay_model::VmState;

impl Turn<'_> {
    /// QEMU has ended, or never came up.
    pub(super) fn gone(&mut self, reason: String, orderly: bool) {
        let first_start = self.life.phase == Phase::Starting { again: false };
        let fault = match std::mem::replace(&mut self.life.phase, Phase::Live) {
            Phase::Ending(Ending::Wanted(why)) => return self.finish(VmState::Off, why),
            Phase::Ending(Ending::Saved) => return self.finish(VmState::Saved, "saved".to_owned()),
            Phase::Ending(Ending::Fault(why)) => why,
            Phase::Live if orderly => return self.finish(VmState::Off, reason),
            Phase::Waiting { restart_at } => {
                self.life.phase = Phase::Waiting { restart_at };
                return;
            }
            _ => reason,
        };
        if first_start {
            // The user waits for the answer; a configuration that does not start would not start the next time.
            return self.finish(VmState::Failed, fault);
        }
        match self.life.policy.decide(&self.life.restarts, self.now) {
            Ok(wait) => {
                let action = match wait.as_secs() {
                    0 => "starts again now".to_owned(),
                    seconds => format!("starts again in {seconds} s"),
                };
                self.reason = format!("{fault}; {action}");
                self.effects.push(Effect::Died { reason: fault, action });
                self.forget_process();
                self.life.phase = Phase::Waiting { restart_at: self.now + wait };
                self.publish();
                self.restart_when_due();
            }
            Err(action) => {
                self.effects.push(Effect::Died { reason: fault.clone(), action: action.clone() });
                self.finish(VmState::Failed, format!("{fault}; {action}"));
            }
        }
    }

    pub(super) fn finish(&mut self, state: VmState, reason: String) {
        let wants_to_run = self.life.wants_to_run;
        self.forget_process();
        self.life.wants_to_run = wants_to_run;
        self.life.phase = Phase::Ended(state);
        self.reason.clone_from(&reason);
        self.publish();
        self.effects.push(Effect::Finish { state, reason });
    }

    /// Nothing that was known about a QEMU holds for the next one. A pause does not survive either: the memory that
    /// it kept is gone.
    pub(super) fn forget_process(&mut self) {
        let (policy, shown, hold) = (self.life.policy, self.life.shown, self.life.hold.take());
        let restarts = std::mem::take(&mut self.life.restarts);
        *self.life = Lifecycle { shown, hold, ..Lifecycle::new(policy, restarts) };
    }

    pub(super) fn restart_when_due(&mut self) {
        if let Phase::Waiting { restart_at } = self.life.phase
            && restart_at <= self.now
        {
            self.life.phase = Phase::Starting { again: true };
            self.life.restarts.push(self.now);
            self.effects.push(Effect::Restart);
        }
    }
}

//! Failures of resources on the node that owns them.

use super::slot::{Progress, RunnerEffect};
use super::{Ending, Goal, Runner};
use crate::{AfterFailure, EmbeddedFailureAction, OfflineAction, ResourceState, Time, Verdict};
use std::time::Duration;

/// What a failed resource may have left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Nothing,
    Something,
}

impl Runner {
    /// Resource `i` failed. What depends on it goes in the same step, so that nothing is ever online without its provider.
    ///
    /// Where something of it may be left it is terminated, and is not started again before it is gone.
    pub(super) fn fail(
        &mut self,
        i: usize,
        why: &str,
        left: Left,
        now: Time,
        effects: &mut Vec<RunnerEffect>,
    ) {
        let name = self.group.resources[i].name.clone();
        let started = self.slots[i].progress != Progress::Idle || self.states[i] == ResourceState::Online;
        if !started {
            return;
        }
        effects.push(RunnerEffect::Note(format!("{name} failed: {why}")));
        match left {
            Left::Nothing => self.slots[i].begin(Progress::Idle, now),
            Left::Something => {
                self.slots[i].begin(Progress::Stopping, now);
                self.slots[i].terminated = true;
                effects.push(RunnerEffect::Terminate(i));
            }
        }
        if self.goal != Goal::Online {
            // It was to end anyway.
            let gone = left == Left::Nothing;
            self.states[i] = if gone { ResourceState::Offline } else { ResourceState::OfflinePending };
            return;
        }
        self.states[i] = ResourceState::Failed;
        self.slots[i].guest = crate::GuestWatch::default();
        self.terminate_dependents(now, effects);
        let policy = self.group.resources[i].restart.clone();
        match self.slots[i].restarts.failed(&policy, now) {
            AfterFailure::Restart(at) => {
                self.states[i] = ResourceState::OnlinePending;
                self.slots[i].restart_at = Some(at);
                let count = self.slots[i].restarts.restarts();
                let text = format!("{name} is restarted here, {count} of {}", policy.threshold);
                effects.push(RunnerEffect::Note(text));
            }
            AfterFailure::FailOver => self.give_up(i, true, now),
            AfterFailure::StayFailed => self.give_up(i, false, now),
        }
    }

    fn give_up(&mut self, i: usize, fail_over: bool, now: Time) {
        let resource = &self.group.resources[i];
        let retry_at = resource.restart.retry().map(|after| now + after);
        if self.states[i] == ResourceState::Failed {
            self.slots[i].retry_at = retry_at;
        }
        // A verdict that asks for another node is not replaced by one that does not.
        if fail_over || self.verdict.is_none() {
            self.verdict = Some(Verdict { resource: resource.name.clone(), retry_at, fail_over });
        }
    }

    /// Ends whatever is up and has lost what it depends on, to the top.
    fn terminate_dependents(&mut self, now: Time, effects: &mut Vec<RunnerEffect>) {
        loop {
            let lost = |i: &usize| {
                let up = matches!(self.states[*i], ResourceState::Online)
                    || self.slots[*i].progress == Progress::Starting;
                up && !self.group.provided(*i, &self.states)
            };
            let Some(i) = self.order.iter().copied().find(lost) else { return };
            self.states[i] = ResourceState::OfflinePending;
            self.slots[i].begin(Progress::Stopping, now);
            self.slots[i].terminated = true;
            effects.push(RunnerEffect::Terminate(i));
        }
    }

    /// No progress for longer than `PendingTimeout`.
    pub(super) fn pending_too_long(&mut self, i: usize, now: Time, effects: &mut Vec<RunnerEffect>) {
        let name = self.group.resources[i].name.clone();
        match self.slots[i].progress {
            Progress::Starting => {
                self.fail(i, "no progress within its pending timeout", Left::Something, now, effects);
            }
            // Ending is not given up: the process may not be there when another node is told so.
            Progress::Stopping | Progress::Idle => {
                effects.push(RunnerEffect::Terminate(i));
                self.slots[i].heard = now;
                self.slots[i].terminated = true;
                effects.push(RunnerEffect::Note(format!("{name} does not end: it is terminated")));
            }
        }
    }

    /// Nothing of `i` is left.
    pub(super) fn went_offline(&mut self, i: usize, now: Time, effects: &mut Vec<RunnerEffect>) {
        match self.slots[i].progress {
            Progress::Stopping => {
                let online = self.goal == Goal::Online;
                let failed = matches!(self.states[i], ResourceState::Failed | ResourceState::OnlinePending);
                if !(online && failed) {
                    self.states[i] = ResourceState::Offline;
                }
                let slot = &mut self.slots[i];
                slot.progress = Progress::Idle;
                slot.terminated = false;
                slot.again &= online;
            }
            Progress::Starting => self.fail(i, "it ended while it was starting", Left::Nothing, now, effects),
            Progress::Idle if self.states[i] == ResourceState::Online => {
                self.fail(i, "it ended by itself", Left::Nothing, now, effects);
            }
            Progress::Idle => {}
        }
    }

    /// `OfflineAction` 2, and the guest did not: the resource stays online, and so does the group.
    pub(super) fn shutdown_refused(&mut self, i: usize, now: Time, effects: &mut Vec<RunnerEffect>) {
        if self.slots[i].progress != Progress::Stopping || self.slots[i].terminated {
            return;
        }
        let name = self.group.resources[i].name.clone();
        self.states[i] = ResourceState::Online;
        self.slots[i].begin(Progress::Idle, now);
        let resource = &self.group.resources[i];
        self.slots[i].came_online(resource, now);
        let forced = matches!(self.goal, Goal::Offline(Ending::Once(OfflineAction::ShutdownForced)))
            || self.goal == Goal::Offline(Ending::ByAction)
                && self.group.offline_action(i) == Some(OfflineAction::ShutdownForced);
        if forced {
            effects.push(RunnerEffect::Note(format!("{name} did not shut down: it is turned off")));
            self.states[i] = ResourceState::OfflinePending;
            self.slots[i].begin(Progress::Stopping, now);
            self.slots[i].terminated = true;
            effects.push(RunnerEffect::Terminate(i));
        } else {
            effects.push(RunnerEffect::Note(format!("{name} did not shut down: the group stays online")));
            self.goal = Goal::Online;
        }
    }

    /// `EmbeddedFailureAction`: a graceful restart, and the next time within the restart period another node.
    pub(super) fn application_critical(&mut self, i: usize, now: Time, effects: &mut Vec<RunnerEffect>) {
        let resource = &self.group.resources[i];
        let (Some(vm), ResourceState::Online) = (resource.vm(), self.states[i]) else { return };
        let name = &resource.name;
        match vm.embedded_failure {
            EmbeddedFailureAction::None => {}
            EmbeddedFailureAction::Log => {
                effects.push(RunnerEffect::Note(format!("{name}: an application in the guest failed")));
            }
            EmbeddedFailureAction::Recover => {
                let period = Duration::from_millis(resource.restart.period_ms);
                let slot = &mut self.slots[i];
                let before = slot.application_failed.replace(now);
                if before.is_some_and(|at| now.since(at) < period) {
                    effects.push(RunnerEffect::Note(format!(
                        "{name}: an application in the guest failed again"
                    )));
                    self.give_up(i, true, now);
                    return;
                }
                let text = format!("{name}: an application in the guest failed: it is restarted");
                effects.push(RunnerEffect::Note(text));
                self.states[i] = ResourceState::OfflinePending;
                slot.begin(Progress::Stopping, now);
                slot.again = true;
                effects.push(RunnerEffect::Stop(i, Some(OfflineAction::ShutdownForced)));
            }
        }
    }
}

//! The resources of one group on the node that owns it: brought online bottom-up, watched, restarted, taken offline top-down.
//!
//! A state machine without a clock: it is told what happened and at what time, and answers with what to do.

mod fail;
mod slot;
#[cfg(test)]
mod tests;

pub use slot::{Report, RunnerEffect};

use crate::{DependencyError, Group, GuestSign, OfflineAction, ResourceState, Time, Verdict};
use fail::Left;
use slot::{Progress, Slot};
use std::sync::Arc;

/// What is wanted of the group on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// In service.
    Online,
    /// Out of service.
    Offline(Ending),
}

/// How resources end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Each as its properties say.
    ByAction,
    /// Virtual machines in this way, once (`CLUSCTL_RESOURCE_VM_SET_NEXT_OFFLINE_ACTION`).
    Once(OfflineAction),
    /// At once: another node is waiting, and the guest is lost anyway.
    Terminate,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Runner {
    group: Arc<Group>,
    order: Vec<usize>,
    slots: Vec<Slot>,
    states: Vec<ResourceState>,
    goal: Goal,
    verdict: Option<Verdict>,
}

impl Runner {
    /// All resources offline.
    ///
    /// # Errors
    /// Dependencies that make no sense.
    pub fn new(group: Arc<Group>) -> Result<Self, DependencyError> {
        let order = group.online_order()?;
        let count = group.resources.len();
        Ok(Self {
            group,
            order,
            slots: vec![Slot::default(); count],
            states: vec![ResourceState::Offline; count],
            goal: Goal::Offline(Ending::ByAction),
            verdict: None,
        })
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// States of the resources, in the group's order.
    #[must_use]
    pub fn states(&self) -> &[ResourceState] {
        &self.states
    }

    /// What is wanted.
    #[must_use]
    pub fn goal(&self) -> Goal {
        self.goal
    }

    /// Its judgement that the group has failed.
    #[must_use]
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// Nothing of the group is left on this node.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.states.iter().all(|s| s.is_down()) && self.slots.iter().all(|s| s.progress == Progress::Idle)
    }

    /// The resources run already: their machine arrived by live migration, or outlived the agent.
    pub fn adopt(&mut self, states: &[ResourceState], now: Time) {
        self.goal = Goal::Online;
        for (i, state) in states.iter().enumerate().take(self.states.len()) {
            self.states[i] = *state;
            if *state == ResourceState::Online {
                self.slots[i].came_online(&self.group.resources[i], now);
            }
        }
    }

    /// Changes what is wanted. A user's Online or Offline forgets failures.
    pub fn set_goal(&mut self, goal: Goal, now: Time) -> Vec<RunnerEffect> {
        let mut effects = Vec::new();
        self.goal = goal;
        self.verdict = None;
        for (state, slot) in self.states.iter_mut().zip(&mut self.slots) {
            let waiting = slot.restart_at.take().is_some() || std::mem::take(&mut slot.restart_due);
            if *state == ResourceState::Failed || waiting {
                let gone = slot.progress == Progress::Idle;
                *state = if gone { ResourceState::Offline } else { ResourceState::OfflinePending };
            }
            slot.retry_at = None;
            slot.again = false;
        }
        self.advance(now, &mut effects);
        effects
    }

    /// Something was seen of resource `i`.
    pub fn report(&mut self, i: usize, report: Report, now: Time) -> Vec<RunnerEffect> {
        let mut effects = Vec::new();
        if i >= self.slots.len() {
            return effects;
        }
        match report {
            Report::Progress => self.slots[i].heard = now,
            Report::Online if self.slots[i].progress == Progress::Starting => {
                self.states[i] = ResourceState::Online;
                let resource = &self.group.resources[i];
                self.slots[i].came_online(resource, now);
            }
            Report::Offline => self.went_offline(i, now, &mut effects),
            Report::Failed(why) => self.fail(i, &why, Left::Nothing, now, &mut effects),
            Report::ShutdownRefused => self.shutdown_refused(i, now, &mut effects),
            Report::LooksAlive(alive) if self.states[i] == ResourceState::Online => {
                self.slots[i].asked = None;
                if !alive {
                    self.ask(i, RunnerEffect::IsAlive(i), now, &mut effects);
                }
            }
            Report::IsAlive(alive) if self.states[i] == ResourceState::Online => {
                self.slots[i].asked = None;
                if !alive {
                    self.fail(i, "it does not answer its check", Left::Something, now, &mut effects);
                }
            }
            Report::Guest(sign) => self.guest(i, sign, now),
            Report::ApplicationCritical => self.application_critical(i, now, &mut effects),
            // Answers to questions that no longer matter.
            Report::Online | Report::LooksAlive(_) | Report::IsAlive(_) => {}
        }
        self.advance(now, &mut effects);
        effects
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Time) -> Vec<RunnerEffect> {
        let mut effects = Vec::new();
        for i in 0..self.slots.len() {
            self.tick_one(i, now, &mut effects);
        }
        self.advance(now, &mut effects);
        effects
    }

    /// When [`tick`](Self::tick) is needed next.
    #[must_use]
    pub fn next_tick(&self) -> Option<Time> {
        let slots = self.slots.iter().zip(&self.group.resources).zip(&self.states);
        slots.filter_map(|((slot, resource), state)| slot.next(resource, *state)).min()
    }

    fn guest(&mut self, i: usize, sign: GuestSign, now: Time) {
        if self.group.resources[i].vm().is_some_and(|vm| vm.check_heartbeat) {
            self.slots[i].guest.see(sign, now);
        }
    }

    fn tick_one(&mut self, i: usize, now: Time, effects: &mut Vec<RunnerEffect>) {
        let resource = &self.group.resources[i];
        let slot = &mut self.slots[i];
        if slot.progress != Progress::Idle && slot.heard + resource.patience() <= now {
            return self.pending_too_long(i, now, effects);
        }
        if slot.restart_at.is_some_and(|at| at <= now) {
            (slot.restart_at, slot.restart_due) = (None, true);
        }
        if slot.retry_at.is_some_and(|at| at <= now) && self.goal == Goal::Online {
            slot.retry_at = None;
            slot.restarts = crate::RestartCount::default();
            self.verdict = None;
            self.states[i] = ResourceState::Offline;
            return;
        }
        if self.states[i] != ResourceState::Online {
            return;
        }
        if slot.asked.is_some_and(|at| at + resource.patience_for_calls() <= now) {
            return self.fail(i, "its check hangs", Left::Something, now, effects);
        }
        if slot.guest.deadline().is_some_and(|at| at <= now) {
            return self.fail(i, "the guest's heartbeat stays away", Left::Something, now, effects);
        }
        if slot.asked.is_some() {
            return;
        }
        if slot.is_alive_at <= now {
            self.ask(i, RunnerEffect::IsAlive(i), now, effects);
        } else if slot.looks_alive_at <= now {
            self.ask(i, RunnerEffect::LooksAlive(i), now, effects);
        }
    }

    fn ask(&mut self, i: usize, question: RunnerEffect, now: Time, effects: &mut Vec<RunnerEffect>) {
        let resource = &self.group.resources[i];
        let slot = &mut self.slots[i];
        slot.asked = Some(now);
        slot.looks_alive_at = now + resource.looks_alive();
        if question == RunnerEffect::IsAlive(i) {
            slot.is_alive_at = now + resource.is_alive();
        }
        effects.push(question);
    }

    /// Starts and stops what can be now.
    fn advance(&mut self, now: Time, effects: &mut Vec<RunnerEffect>) {
        match self.goal {
            Goal::Online => {
                for at in 0..self.order.len() {
                    self.start_if_ready(self.order[at], now, effects);
                }
            }
            Goal::Offline(ending) => {
                for at in (0..self.order.len()).rev() {
                    self.stop_if_ready(self.order[at], ending, now, effects);
                }
            }
        }
    }

    fn start_if_ready(&mut self, i: usize, now: Time, effects: &mut Vec<RunnerEffect>) {
        let slot = &self.slots[i];
        let due = match self.states[i] {
            ResourceState::Offline => self.group.resources[i].persistent_state || slot.again,
            ResourceState::OnlinePending => slot.restart_due || slot.restart_at.is_some_and(|at| at <= now),
            _ => false,
        };
        let free = self.group.dependents(i).all(|d| self.states[d] != ResourceState::OfflinePending);
        if !due || slot.progress != Progress::Idle || !free || !self.group.provided(i, &self.states) {
            return;
        }
        self.states[i] = ResourceState::OnlinePending;
        self.slots[i].begin(Progress::Starting, now);
        effects.push(RunnerEffect::Start(i));
    }

    fn stop_if_ready(&mut self, i: usize, ending: Ending, now: Time, effects: &mut Vec<RunnerEffect>) {
        let slot = &self.slots[i];
        let stoppable = match slot.progress {
            Progress::Idle => self.states[i] == ResourceState::Online,
            Progress::Starting => true,
            // What is stopping gently is not waited for when there is no time.
            Progress::Stopping => ending == Ending::Terminate && !slot.terminated,
        };
        if !stoppable || !self.group.dependents(i).all(|d| self.gone(d)) {
            return;
        }
        let action = match ending {
            Ending::ByAction => self.group.offline_action(i),
            Ending::Once(action) => self.group.offline_action(i).map(|_| action),
            Ending::Terminate => None,
        };
        // A guest that is still starting has nothing worth saving.
        let terminate = ending == Ending::Terminate || self.states[i] == ResourceState::OnlinePending;
        self.states[i] = ResourceState::OfflinePending;
        self.slots[i].begin(Progress::Stopping, now);
        self.slots[i].terminated = terminate;
        effects.push(if terminate { RunnerEffect::Terminate(i) } else { RunnerEffect::Stop(i, action) });
    }

    fn gone(&self, i: usize) -> bool {
        self.states[i].is_down() && self.slots[i].progress == Progress::Idle
    }
}

impl crate::Resource {
    /// How long a call may hang before its monitor is killed.
    fn patience_for_calls(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.deadlock_timeout_ms)
    }
}

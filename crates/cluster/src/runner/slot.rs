//! What the runner knows of one resource.

use crate::{GuestSign, GuestWatch, OfflineAction, Resource, ResourceState, RestartCount, Time};

/// What was seen of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// It is pending and getting on.
    Progress,
    /// It is in service.
    Online,
    /// Nothing of it is left.
    Offline,
    /// It ended or could not start; why.
    Failed(String),
    /// The guest did not do what it was asked to (`OfflineAction` 2).
    ShutdownRefused,
    /// The answer to [`RunnerEffect::LooksAlive`].
    LooksAlive(bool),
    /// The answer to [`RunnerEffect::IsAlive`].
    IsAlive(bool),
    /// Something of the guest.
    Guest(GuestSign),
    /// An application in the guest failed and its own recovery actions are used up.
    ApplicationCritical,
}

/// What to do. Numbers are places in the group's list of resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunnerEffect {
    /// Bring it online.
    Start(usize),
    /// Take it offline; a virtual machine in this way.
    Stop(usize, Option<OfflineAction>),
    /// End it at once, whatever it is doing.
    Terminate(usize),
    /// Ask the cheap question.
    LooksAlive(usize),
    /// Ask the thorough question.
    IsAlive(usize),
    /// Tell the log.
    Note(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Progress {
    #[default]
    Idle,
    Starting,
    Stopping,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub progress: Progress,
    /// The last report of progress.
    pub heard: Time,
    /// It was told to end at once.
    pub terminated: bool,
    /// It is started again after a graceful stop.
    pub again: bool,
    pub restarts: RestartCount,
    pub restart_at: Option<Time>,
    /// The restart's time has come; it may have to wait for others.
    pub restart_due: bool,
    pub retry_at: Option<Time>,
    pub looks_alive_at: Time,
    pub is_alive_at: Time,
    /// A question without answer.
    pub asked: Option<Time>,
    pub guest: GuestWatch,
    /// The last critical failure of an application in the guest.
    pub application_failed: Option<Time>,
}

impl Slot {
    pub fn begin(&mut self, progress: Progress, now: Time) {
        self.progress = progress;
        self.heard = now;
        self.restart_at = None;
        self.restart_due = false;
        self.asked = None;
        self.terminated = false;
    }

    pub fn came_online(&mut self, resource: &Resource, now: Time) {
        self.progress = Progress::Idle;
        self.again = false;
        self.asked = None;
        self.guest = GuestWatch::default();
        self.looks_alive_at = now + resource.looks_alive();
        self.is_alive_at = now + resource.is_alive();
    }

    pub fn next(&self, resource: &Resource, state: ResourceState) -> Option<Time> {
        if self.progress != Progress::Idle {
            return Some(self.heard + resource.patience());
        }
        if let Some(at) = self.restart_at.or(self.retry_at) {
            return Some(at);
        }
        if state != ResourceState::Online {
            return None;
        }
        let check = match self.asked {
            Some(at) => at + std::time::Duration::from_millis(resource.deadlock_timeout_ms),
            None => self.looks_alive_at.min(self.is_alive_at),
        };
        Some(self.guest.deadline().map_or(check, |guest| guest.min(check)))
    }
}

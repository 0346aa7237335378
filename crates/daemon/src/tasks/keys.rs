//! Which task a repeated call belongs to, from the moment its task is accepted; the database knows it only later.

use super::lock;
use crate::failure::Failure;
use backstay_model::TaskId;
use std::collections::VecDeque;
use std::sync::Mutex;
use tokio::sync::watch;

/// Calls that are remembered here; older ones are in the database.
const RECENT: usize = 256;

/// The task that a key stands for.
#[derive(Clone, Debug)]
pub(super) struct Former {
    key: String,
    request: String,
    task: TaskId,
    accepted: watch::Receiver<()>,
}

impl Former {
    /// Waits until the task can be shown.
    pub(super) async fn accepted(mut self) -> TaskId {
        // The other end is dropped when the task runs.
        while self.accepted.changed().await.is_ok() {}
        self.task
    }
}

/// What came of claiming a key.
#[derive(Debug)]
pub(super) enum Claim<T> {
    /// It is new; the sender is dropped when the task can be shown.
    New(T, watch::Sender<()>),
    /// A task has it.
    Taken(Former),
}

/// Keys of the last calls.
#[derive(Debug, Default)]
pub(super) struct Keys {
    recent: Mutex<VecDeque<Former>>,
}

/// The refusal of a key that belongs to another call.
pub(super) fn foreign(key: &str) -> Failure {
    Failure::invalid(format!("the Idempotency-Key '{key}' was used for another call: choose a new one"))
}

fn find(recent: &VecDeque<Former>, key: &str, request: &str) -> Result<Option<Former>, Failure> {
    match recent.iter().find(|former| former.key == key) {
        Some(former) if former.request == request => Ok(Some(former.clone())),
        Some(_) => Err(foreign(key)),
        None => Ok(None),
    }
}

impl Keys {
    /// The task of the same call.
    ///
    /// # Errors
    /// `invalid` when the key belongs to another call.
    pub(super) fn find(&self, key: &str, request: &str) -> Result<Option<Former>, Failure> {
        find(&lock(&self.recent), key, request)
    }

    /// Gives the key to `task` if nobody has it and `take` succeeds; both at one instant.
    ///
    /// # Errors
    /// `invalid` when the key belongs to another call; as `take`.
    pub(super) fn claim<T>(
        &self,
        key: &str,
        request: &str,
        task: TaskId,
        take: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<Claim<T>, Failure> {
        let mut recent = lock(&self.recent);
        if let Some(former) = find(&recent, key, request)? {
            return Ok(Claim::Taken(former));
        }
        let taken = take()?;
        let (sender, accepted) = watch::channel(());
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(Former { key: key.into(), request: request.into(), task, accepted });
        Ok(Claim::New(taken, sender))
    }
}

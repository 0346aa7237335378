//! What a running task can do with itself.

use super::{Running, store_failure};
use crate::failure::Failure;
use crate::store::{Store, TaskNote};
use backstay_api::ProblemCode;
use backstay_model::TaskId;
use std::sync::Arc;

/// A running task's view of itself.
#[derive(Clone, Debug)]
pub struct TaskContext {
    running: Arc<Running>,
    store: Store,
}

impl TaskContext {
    pub(super) fn new(running: Arc<Running>, store: Store) -> Self {
        Self { running, store }
    }

    /// The task's id.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.running.record.borrow().id
    }

    /// Who asked.
    #[must_use]
    pub fn who(&self) -> String {
        self.running.record.borrow().who.clone()
    }

    /// Tells how far it is: percent (0–100) and what it is doing.
    pub fn progress(&self, percent: u8, message: &str) {
        self.running.record.send_if_modified(|task| {
            let percent = percent.min(99);
            if task.progress == percent && task.message == message {
                return false;
            }
            task.progress = percent;
            task.message = message.into();
            task.revision += 1;
            true
        });
    }

    /// Tells something the user should know although it goes on.
    pub fn warn(&self, message: impl Into<String>) {
        let message = message.into();
        self.running.record.send_modify(|task| {
            task.warnings.push(message);
            task.revision += 1;
        });
    }

    /// Says from here on whether cancelling is possible.
    ///
    /// # Errors
    /// `cancelled` when somebody cancelled before.
    pub fn cancellable(&self, possible: bool) -> Result<(), Failure> {
        let mut cancelling = false;
        self.running.record.send_if_modified(|task| {
            cancelling = task.state == backstay_api::TaskState::Cancelling;
            let changed = task.cancellable != possible && !cancelling;
            if changed {
                task.cancellable = possible;
                task.revision += 1;
            }
            changed
        });
        if cancelling { Err(cancelled()) } else { Ok(()) }
    }

    /// Waits until somebody cancels; for ever if nobody does.
    pub async fn cancelled(&self) {
        let mut cancel = self.running.cancel.subscribe();
        if cancel.wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Writes down what the next daemon needs to take this task up. If that fails only words are lost: what was done is
    /// told by the machine's folder.
    pub async fn note(&self, note: &TaskNote) {
        if let Err(error) = self.store.note_task(self.id(), note).await {
            self.warn(store_failure(error).full_message());
        }
    }
}

/// The end of a task that was cancelled.
#[must_use]
pub fn cancelled() -> Failure {
    Failure::new(ProblemCode::Cancelled, "the task was cancelled")
}

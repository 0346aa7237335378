//! Tasks: everything that changes something, from the moment it was accepted.

use crate::{ObjectRef, Problem, schema};
use backstay_model::TaskId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskState {
    /// It works.
    Running,
    /// It was asked to stop and is putting things in order.
    Cancelling,
    /// Done.
    Succeeded,
    /// It failed; `error` says why.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl TaskState {
    /// Whether it will not change any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One task. It runs to its end whether or not anybody waits for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Its id.
    #[schema(value_type = Uuid)]
    pub id: TaskId,
    /// What it does: `vm.start`, `checkpoint.create` …
    pub operation: String,
    /// What it works on.
    pub object: ObjectRef,
    /// Where it is.
    pub state: TaskState,
    /// Percent, 0–100.
    pub progress: u8,
    /// What it is doing, for people.
    pub message: String,
    /// Whether cancelling is possible now.
    pub cancellable: bool,
    /// Who asked: a user name, or `backstay` for what happens by itself.
    pub who: String,
    /// When it was accepted.
    #[schema(value_type = schema::Timestamp)]
    pub created: Timestamp,
    /// When it ended.
    #[serde(default)]
    #[schema(value_type = Option<schema::Timestamp>)]
    pub finished: Option<Timestamp>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<Problem>,
    /// What came of it, for operations that have something to tell (for example a checkpoint's pause).
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
    /// Things the user should know although it succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Counts changes of this record; waiting for the next one names the last one seen.
    pub revision: u64,
}

impl Task {
    /// Begins the message of a task that can do nothing until something changes; the reason follows.
    pub const WAITING: &str = "waiting: ";

    /// Why it can do nothing now.
    #[must_use]
    pub fn waits_for(&self) -> Option<&str> {
        if self.state.is_final() { None } else { self.message.strip_prefix(Self::WAITING) }
    }
}

/// Tasks, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskList {
    /// The tasks.
    pub items: Vec<Task>,
}

/// Which tasks to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TaskQuery {
    /// Only those of this machine (name or GUID).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Only those that are not finished.
    #[serde(default)]
    pub active: bool,
    /// At most so many, 1–1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// How to wait for a task.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TaskWaitQuery {
    /// Answer as soon as the task's revision is above this one, or it is final.
    #[serde(default)]
    pub after: u64,
    /// Answer anyhow after so many seconds, 1–60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u32>,
}

//! The typed client: one method per call, over the daemon's unix socket.

mod calls;
mod console;
mod events;
mod transport;

pub use console::{ConsoleKind, ConsoleStream};
pub use events::EventStream;

use crate::{Plan, Problem, ProblemCode, Task};
use backstay_model::{CheckpointId, VmId};
use std::path::{Path, PathBuf};

/// A connection to a daemon. Cheap to clone; connections are pooled.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    socket: PathBuf,
}

/// What a call that changes something answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was accepted; the task tells how it goes.
    Task(Box<Task>),
    /// It was a dry run.
    Plan(Plan),
}

/// Options of a call that changes something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallOptions {
    /// Answer with the plan and do nothing.
    pub dry_run: bool,
    /// A repeated call with the same key answers with the first call's task.
    pub idempotency_key: Option<String>,
}

/// Which tasks [`Client::tasks`] lists.
pub type TaskFilter = crate::TaskQuery;

/// Which events [`Client::events`] lists.
pub type EventFilter = crate::EventQuery;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error(
        "no Backstay daemon answers at {}: start it with `backstay daemon`, or name its socket in BACKSTAY_SOCKET",
        .socket.display()
    )]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The socket exists but this user may not use it.
    #[error(
        "the socket {} may not be used by you: join its group, or run as root",
        .socket.display()
    )]
    Denied {
        /// The socket.
        socket: PathBuf,
    },
    /// The daemon refused or failed.
    #[error("{0}")]
    Problem(Problem),
    /// The connection broke or the answer made no sense.
    #[error("the daemon's answer to {call} could not be read")]
    Transport {
        /// Method and path.
        call: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The daemon answered something that this client does not understand.
    #[error("the daemon answered {call} with {what}: are daemon and command of one version?")]
    Unexpected {
        /// Method and path.
        call: String,
        /// What came.
        what: String,
    },
    /// A name that stands for several things.
    #[error("'{name}' names several {what}: use a GUID: {ids}")]
    Ambiguous {
        /// The name.
        name: String,
        /// Kind of thing.
        what: &'static str,
        /// The candidates.
        ids: String,
    },
}

impl ClientError {
    /// The problem, if the daemon told one.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }

    /// What the command line exits with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Problem(problem) => problem.code.exit_code(),
            Self::Denied { .. } => ProblemCode::Denied.exit_code(),
            Self::Ambiguous { .. } => ProblemCode::Precondition.exit_code(),
            _ => 1,
        }
    }
}

impl Client {
    /// A client for the daemon behind `socket`. Nothing is sent yet.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn new(socket: impl AsRef<Path>) -> Result<Self, ClientError> {
        let socket = socket.as_ref().to_path_buf();
        let http = reqwest::Client::builder()
            .unix_socket(socket.clone())
            .build()
            .map_err(|source| ClientError::Transport { call: "set up".into(), source })?;
        Ok(Self { http, socket })
    }

    /// The machine that `text` (name or GUID) stands for.
    ///
    /// # Errors
    /// `not-found`, and as every call.
    pub async fn resolve_vm(&self, text: &str) -> Result<VmId, ClientError> {
        if let Ok(id) = text.parse::<VmId>() {
            return Ok(id);
        }
        let found = self.vms(&crate::VmQuery { name: Some(text.into()), state: None }).await?;
        match found.items.as_slice() {
            [one] => Ok(one.id),
            [] => Err(ClientError::Problem(Problem::new(
                ProblemCode::NotFound,
                format!("there is no virtual machine '{text}': `backstay vm list` shows all"),
            ))),
            many => Err(ClientError::Ambiguous {
                name: text.into(),
                what: "virtual machines",
                ids: many.iter().map(|vm| vm.id.to_string()).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// The checkpoint of `vm` that `text` (name or GUID) stands for.
    ///
    /// # Errors
    /// `not-found`, [`ClientError::Ambiguous`], and as every call.
    pub async fn resolve_checkpoint(&self, vm: VmId, text: &str) -> Result<CheckpointId, ClientError> {
        let list = self.checkpoints(vm).await?;
        if let Ok(id) = text.parse::<CheckpointId>()
            && list.items.iter().any(|c| c.id == id)
        {
            return Ok(id);
        }
        let found: Vec<_> = list.items.iter().filter(|c| c.name == text).collect();
        match found.as_slice() {
            [one] => Ok(one.id),
            [] => Err(ClientError::Problem(Problem::new(
                ProblemCode::NotFound,
                format!("there is no checkpoint '{text}': `backstay checkpoint list` shows all"),
            ))),
            many => Err(ClientError::Ambiguous {
                name: text.into(),
                what: "checkpoints",
                ids: many.iter().map(|c| c.id.to_string()).collect::<Vec<_>>().join(", "),
            }),
        }
    }
}

//! The database: tasks, events, registered folders and what ran last. It is an index and a history; the truth about a
//! machine is its folder. One thread owns the connection, so writes never meet.

mod events;
mod folders;
mod schema;
mod tasks;

pub use events::NewEvent;
pub(crate) use events::{Late, Writing};
pub(crate) use tasks::Idempotency;
pub use tasks::{StoredTask, TaskNote};

use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use tokio::sync::oneshot;

/// A database call that failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or set up.
    #[error("the database {path} cannot be opened: move it away to start with an empty history")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// Made by a newer version.
    #[error(
        "the database {path} has schema version {found}, this version knows up to {known}: install the newer version"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A statement failed.
    #[error("the database refused a call")]
    Call(#[source] rusqlite::Error),
    /// A record that does not read back.
    #[error("a record of the database cannot be read")]
    Record(#[source] serde_json::Error),
    /// The database thread has ended.
    #[error("the database is closed")]
    Closed,
}

impl StoreError {
    /// Whether it failed for want of space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Call(source) | Self::Open { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            _ => false,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(source: rusqlite::Error) -> Self {
        Self::Call(source)
    }
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The way to the database thread. Cheap to clone; the thread ends with the last clone.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
}

impl Store {
    /// Opens or makes the database and starts its thread.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::Newer`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = schema::open(path)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let failed = |source: std::io::Error| StoreError::Open {
            path: path.into(),
            source: rusqlite::Error::ToSqlConversionFailure(Box::new(source)),
        };
        std::thread::Builder::new()
            .name("database".into())
            .spawn(move || {
                while let Ok(job) = queue.recv() {
                    job(&mut connection);
                }
            })
            .map_err(failed)?;
        Ok(Self { jobs })
    }

    /// Runs `work` on the database thread.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let _ = sender.send(work(connection));
        });
        self.jobs.send(job).map_err(|_| StoreError::Closed)?;
        receiver.await.map_err(|_| StoreError::Closed)?
    }
}

//! Workers: one process per machine that is on. They outlive the daemon; each is followed by a task that starts it
//! again when it dies before its machine has ended.

mod ended;
mod ingest;
mod outlived;
mod supervise;

pub use ended::hear_the_end;
pub use supervise::supervise;

use crate::failure::Failure;
use crate::inventory::blocking;
use crate::qemu_user::QemuUser;
use backstay_api::ProblemCode;
use backstay_model::VmId;
use backstay_worker::client::{ClientError, WorkerClient};
use backstay_worker::control::{LaunchRecord, Reply, Request, WorkerErrorCode};
use backstay_worker::spawn::{self, SpawnError};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a call waits for a worker that is being started again.
const RECONNECT: Duration = Duration::from_secs(15);

/// The worker's control socket in a run folder.
const CONTROL_SOCKET: &str = "worker.sock";

/// What to run; the worker renames it when the machine has ended.
pub const LAUNCH_RECORD: &str = "launch.json";

/// What that record is called then.
const ENDED_RECORD: &str = "ended.json";

/// All events of the worker.
const EVENT_SPOOL: &str = "events.jsonl";

type Connection = watch::Sender<Option<Arc<WorkerClient>>>;

/// The workers of this host.
#[derive(Debug)]
pub struct Workers {
    executable: PathBuf,
    folder: PathBuf,
    connections: Mutex<BTreeMap<VmId, Arc<Connection>>>,
    restarts: Mutex<BTreeMap<VmId, u64>>,
    /// The users that were given away last.
    given: Mutex<BTreeMap<VmId, u32>>,
    /// Held while a worker is told the limits of its disks.
    limits: tokio::sync::Mutex<()>,
}

impl Workers {
    /// Workers started from `executable`, with run folders below `folder`.
    #[must_use]
    pub fn new(executable: PathBuf, folder: PathBuf) -> Self {
        Self {
            executable,
            folder,
            connections: Mutex::default(),
            restarts: Mutex::default(),
            given: Mutex::default(),
            limits: tokio::sync::Mutex::default(),
        }
    }

    /// A machine's run folder.
    #[must_use]
    pub fn run_folder(&self, vm: VmId) -> PathBuf {
        self.folder.join(vm.to_string())
    }

    /// The user that the machine's QEMU is to run as.
    ///
    /// # Errors
    /// `precondition` when none is left; the run folders cannot be read.
    pub async fn user_for(&self, vm: VmId, user: &QemuUser) -> Result<Option<(u32, u32)>, Failure> {
        let mut taken = self.users_of_others(vm).await?;
        // Machines that are being started at this moment have no record yet.
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        taken.extend(given.iter().filter(|(other, _)| **other != vm).map(|(_, uid)| *uid));
        let ids = user.for_vm(vm, &taken)?;
        if let Some((uid, _)) = ids {
            given.insert(vm, uid);
        }
        Ok(ids)
    }

    async fn users_of_others(&self, vm: VmId) -> Result<BTreeSet<u32>, Failure> {
        let (folder, own) = (self.folder.clone(), vm.to_string());
        blocking(move || {
            let entries = std::fs::read_dir(&folder).map_err(|e| Failure::file("listing", &folder, e))?;
            let others = entries.flatten().filter(|entry| entry.file_name().to_str() != Some(own.as_str()));
            // A record that cannot be read is one of a machine that does not run.
            let user = |entry: std::fs::DirEntry| -> Option<u32> {
                let text = std::fs::read(entry.path().join(LAUNCH_RECORD)).ok()?;
                serde_json::from_slice::<LaunchRecord>(&text).ok()?.qemu_uid_gid.map(|(uid, _)| uid)
            };
            Ok(others.filter_map(user).collect())
        })
        .await
    }

    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<VmId, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn restart_counts(&self) -> std::sync::MutexGuard<'_, BTreeMap<VmId, u64>> {
        self.restarts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn to tell workers the limits of their disks.
    pub(crate) async fn limits_turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.limits.lock().await
    }

    /// How often a machine's worker was started again, because the former one had died, since the daemon was started.
    #[must_use]
    pub fn restarts(&self, vm: VmId) -> u64 {
        self.restart_counts().get(&vm).copied().unwrap_or(0)
    }

    /// Whether a machine's worker can be asked now.
    #[must_use]
    pub fn is_connected(&self, vm: VmId) -> bool {
        self.table().get(&vm).is_some_and(|connection| connection.borrow().is_some())
    }

    /// Asks a machine's worker.
    ///
    /// # Errors
    /// `unavailable` when there is no worker, `timeout`, or what the worker answers.
    pub async fn call(&self, vm: VmId, request: Request, patience: Duration) -> Result<Reply, Failure> {
        let connection = self.table().get(&vm).cloned();
        let Some(connection) = connection else {
            return Err(Failure::new(
                ProblemCode::Unavailable,
                "the machine has no worker process: it is off",
            ));
        };
        let mut watched = connection.subscribe();
        // The borrow of the watched value must end before the call begins.
        let connected =
            async { watched.wait_for(Option::is_some).await.ok().and_then(|client| client.clone()) };
        let client = tokio::time::timeout(RECONNECT, connected).await.unwrap_or_default();
        let Some(client) = client else {
            return Err(Failure::new(
                ProblemCode::Unavailable,
                "the machine's worker process does not answer: see worker.log in its run folder",
            ));
        };
        client.call(request, patience).await.map_err(call_failure)
    }

    /// Writes the launch record and starts a worker for it. Waits for the end of a former one.
    ///
    /// # Errors
    /// `unavailable`, `precondition`.
    pub async fn launch(&self, vm: VmId, record: LaunchRecord) -> Result<(), Failure> {
        let (executable, folder) = (self.executable.clone(), self.run_folder(vm));
        blocking(move || {
            let patience = Instant::now() + Duration::from_secs(10);
            loop {
                match spawn::launch(&executable, &folder, &record) {
                    Ok(_) => return Ok(()),
                    Err(SpawnError::Running(_)) if Instant::now() < patience => {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    Err(error) => {
                        let code = match &error {
                            SpawnError::QemuLives { .. } | SpawnError::Running(_) => {
                                ProblemCode::Precondition
                            }
                            _ => ProblemCode::Unavailable,
                        };
                        return Err(Failure::because(code, "the machine's worker cannot be started", error));
                    }
                }
            }
        })
        .await
    }
}

fn call_failure(error: ClientError) -> Failure {
    match error {
        ClientError::Worker(error) if error.code == WorkerErrorCode::Unknown => Failure::new(
            ProblemCode::Precondition,
            "the machine runs under a worker of an older version that cannot do this: turn it off and on, or save and \
             start it, and it runs under this one",
        ),
        ClientError::Worker(error) => {
            let code = match error.code {
                WorkerErrorCode::Precondition => ProblemCode::Precondition,
                WorkerErrorCode::Failed => ProblemCode::Internal,
                WorkerErrorCode::Unknown => ProblemCode::Unavailable,
            };
            Failure::new(code, error.message)
        }
        timeout @ ClientError::Timeout { .. } => {
            Failure::because(ProblemCode::Timeout, "the machine's worker did not answer", timeout)
        }
        lost => {
            Failure::because(ProblemCode::Unavailable, "the machine's worker was lost during the call", lost)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_worker::control::WorkerError;

    #[test]
    fn a_worker_of_the_previous_release_is_told_from_a_failure() {
        let error = WorkerError { code: WorkerErrorCode::Unknown, message: "unknown variant `x`".into() };
        let failure = call_failure(ClientError::Worker(error));
        assert_eq!(failure.code(), ProblemCode::Precondition);
        assert!(failure.full_message().contains("turn it off and on"), "{}", failure.full_message());
    }
}

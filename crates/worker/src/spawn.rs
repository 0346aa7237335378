//! Starting a worker process that does not depend on its starter.

use crate::control::LaunchRecord;
use crate::durable;
use crate::lock::{self, LockError};
use crate::run_dir::RunDir;
use backstay_qemu::paths::PathError;
use backstay_qemu::process::AdoptError;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Event files larger than this start anew with the next launch.
const MAX_EVENTS_LEN: u64 = 1 << 20;

/// How long a worker that has told its last event may take to exit.
const ENDING: Duration = Duration::from_secs(5);

/// A worker that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Bad folder name.
    #[error("the run folder cannot hold sockets")]
    Folder(#[source] PathError),
    /// A worker runs already.
    #[error("a worker runs in {0} already: connect to its control socket")]
    Running(PathBuf),
    /// The former machine of this folder is not over.
    #[error(
        "QEMU (process {pid}) of the former run in {folder} still lives: start a worker without a new launch record to take it over"
    )]
    QemuLives {
        /// The run folder.
        folder: PathBuf,
        /// Its process.
        pid: u32,
    },
    /// Whether the former machine of this folder is over cannot be told.
    #[error("it is not clear whether QEMU of a former run still lives")]
    Unclear(#[source] AdoptError),
    /// A file or the process could not be made.
    #[error("{what} {path} failed")]
    Io {
        /// The step.
        what: &'static str,
        /// Its object.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Puts a new launch record into the run folder and starts a worker for it.
///
/// What a former run left there (its QEMU record, its switched tops) is removed: `record` names the files to use now.
/// Event numbers go on. Returns the worker's process id. Blocks for some milliseconds; for up to 5 s when a former worker
/// is just ending.
///
/// # Errors
/// [`SpawnError`]; nothing was started then.
pub fn launch(executable: &Path, folder: &Path, record: &LaunchRecord) -> Result<u32, SpawnError> {
    let run = RunDir::new(folder).map_err(SpawnError::Folder)?;
    let failed = |what, path: &Path| {
        let path = path.to_path_buf();
        move |source| SpawnError::Io { what, path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed("creating", folder))?;
    let guard = hold(&run)?;
    if let Some(pid) = crate::instance::living(&run).map_err(SpawnError::Unclear)? {
        return Err(SpawnError::QemuLives { folder: folder.into(), pid });
    }
    for stale in [run.instance(), run.process_record(), run.pid(), run.tops(), run.intent(), run.ended()] {
        durable::remove(&stale).map_err(failed("removing", &stale))?;
    }
    let events = run.events();
    crate::events::shorten(&events, MAX_EVENTS_LEN).map_err(failed("shortening", &events))?;
    durable::replace_json(&run.launch(), record).map_err(failed("writing", &run.launch()))?;
    drop(guard);
    start(executable, &run)
}

/// Starts a worker again for the launch record that is in the folder: after the death of a worker. It takes over a
/// living QEMU. A machine that has ended cleanly is not started again.
///
/// # Errors
/// [`SpawnError`].
pub fn respawn(executable: &Path, folder: &Path) -> Result<u32, SpawnError> {
    let run = RunDir::new(folder).map_err(SpawnError::Folder)?;
    drop(hold(&run)?);
    start(executable, &run)
}

/// Takes the folder's lock. A worker that listens has it for long; one that no longer does is ending.
fn hold(run: &RunDir) -> Result<lock::Held, SpawnError> {
    let deadline = Instant::now() + ENDING;
    loop {
        match lock::take(&run.lock()) {
            Ok(held) => return Ok(held),
            Err(LockError::Io(source)) => {
                return Err(SpawnError::Io { what: "locking", path: run.lock(), source });
            }
            Err(LockError::Taken) if answers(&run.worker()) || Instant::now() > deadline => {
                return Err(SpawnError::Running(run.dir().into()));
            }
            Err(LockError::Taken) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Whether a worker listens and does not just hang up, as the kernel does for one that was killed.
fn answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let asked = stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .and_then(|()| stream.write_all(b"{\"id\":0,\"request\":{\"do\":\"hello\"}}\n"));
    if asked.is_err() {
        return false;
    }
    match stream.read(&mut [0]) {
        Ok(len) => len > 0,
        // Alive and slow.
        Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
    }
}

fn start(executable: &Path, run: &RunDir) -> Result<u32, SpawnError> {
    let failed = |what, path: PathBuf| move |source| SpawnError::Io { what, path, source };
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(run.worker_log())
        .map_err(failed("opening", run.worker_log()))?;
    let error_log = log.try_clone().map_err(failed("opening", run.worker_log()))?;
    let mut child = std::process::Command::new(executable)
        .arg("worker")
        .arg("--run-dir")
        .arg(run.dir())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(error_log)
        .spawn()
        .map_err(failed("starting", executable.into()))?;
    let pid = child.id();
    // The worker makes its own session; all that is left of the tie is that someone must collect its exit status.
    std::thread::Builder::new()
        .name(format!("reap {pid}"))
        .stack_size(64 << 10)
        .spawn(move || child.wait())
        .map_err(failed("watching", executable.into()))?;
    Ok(pid)
}

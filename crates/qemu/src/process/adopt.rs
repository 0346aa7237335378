//! Finding the QEMU that a former worker started.

use super::{ProcessRecord, QemuProcess, proc_fs, watch};
use crate::paths::RunPaths;
use std::io;
use std::path::PathBuf;

/// It cannot be told whether this machine's QEMU runs; starting another could run the machine twice.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The record exists but cannot be read.
    #[error("cannot read QEMU's process record {path}: if no QEMU of this machine runs, remove the file")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process exists but cannot be inspected.
    #[error("cannot inspect process {pid}, which may be this machine's QEMU")]
    Inspect {
        /// Its number.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// How the last QEMU of a run folder ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastExit {
    /// None was started here.
    NeverStarted,
    /// It removed its pid file: the guest shut down, or QEMU was asked to end.
    InOrder,
    /// It left its pid file: it was killed or crashed.
    Crashed,
}

/// Finds this machine's QEMU, if it runs. A process counts only if its number and start time are the recorded ones (or
/// its number is in QEMU's own pid file, for a worker that died before it could record) and its command line names
/// this run folder's pid file.
///
/// # Errors
/// See [`AdoptError`].
pub fn adopt(paths: &RunPaths) -> Result<Option<QemuProcess>, AdoptError> {
    if let Some(record) = read_record(paths)?
        && let Some(process) = candidate(paths, record.pid)?
        && process.record == record
    {
        return Ok(Some(process));
    }
    match read_pid_file(paths) {
        Some(pid) => candidate(paths, pid),
        None => Ok(None),
    }
}

/// How the last QEMU ended; meaningful only when [`adopt`] found none.
#[must_use]
pub fn last_exit(paths: &RunPaths) -> LastExit {
    match (paths.pid().exists(), paths.process_record().exists()) {
        (true, _) => LastExit::Crashed,
        (false, true) => LastExit::InOrder,
        (false, false) => LastExit::NeverStarted,
    }
}

fn read_record(paths: &RunPaths) -> Result<Option<ProcessRecord>, AdoptError> {
    let path = paths.process_record();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(AdoptError::Record { path, source }),
    };
    serde_json::from_str(&text).map(Some).map_err(|error| AdoptError::Record { path, source: error.into() })
}

fn read_pid_file(paths: &RunPaths) -> Option<u32> {
    std::fs::read_to_string(paths.pid()).ok()?.trim().parse().ok()
}

/// The process with this number if it is this machine's QEMU. The pidfd is opened first: what is read afterwards can
/// only be about the same process or fail, and a process that ended meanwhile is none.
fn candidate(paths: &RunPaths, pid: u32) -> Result<Option<QemuProcess>, AdoptError> {
    let gone = |error: &io::Error| {
        error.kind() == io::ErrorKind::NotFound
            || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
    };
    let process = match watch(pid) {
        Ok(process) => process,
        Err(error) if gone(&error) => return Ok(None),
        Err(source) => return Err(AdoptError::Inspect { pid, source }),
    };
    let arguments = match proc_fs::command_line(pid) {
        Ok(arguments) => arguments,
        Err(error) if gone(&error) => return Ok(None),
        Err(source) => return Err(AdoptError::Inspect { pid, source }),
    };
    let pid_file = paths.pid().to_string_lossy().into_owned();
    let ours = arguments.windows(2).any(|pair| pair[0] == "-pidfile" && pair[1] == pid_file);
    // A number that passed to another process between the two reads shows up as another start time.
    let same = proc_fs::start_time(pid).is_ok_and(|start| start == process.record.start_time);
    Ok((ours && same && process.try_wait().is_none()).then_some(process))
}

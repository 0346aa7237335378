//! Why a checkpoint did not come about, in words a user can act on.

use super::memory_file::MemoryError;
use crate::disks::DisksError;
use crate::guard::Volume;
use backstay_qemu::qmp::QmpError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long QEMU may take from the stop to the first saved page. Milliseconds are normal.
pub(super) const FIRST_PAGE: Duration = Duration::from_secs(30);

/// Why no checkpoint came about.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The memory file.
    #[error("the memory file cannot be written")]
    Memory(#[source] MemoryError),
    /// A file in the run folder.
    #[error("{path} cannot be written")]
    RunFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disks.
    #[error("the disks cannot step onto new files")]
    Disks(#[source] DisksError),
    /// A command.
    #[error("QEMU did not {step}")]
    Qemu {
        /// What it should have done.
        step: &'static str,
        /// Why it did not.
        #[source]
        source: QmpError,
    },
    /// QEMU gave up.
    #[error("QEMU could not save memory: {0}")]
    Save(String),
    /// Our end of the stream.
    #[error("memory could not be written to {path}")]
    Receive {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// On request.
    #[error("it was cancelled")]
    Cancelled,
    /// Nothing happened.
    #[error("QEMU saved no page within {} s", FIRST_PAGE.as_secs())]
    Stuck,
}

/// Less room than this in a volume means that it is full: QEMU writes in pieces up to this size.
const FULL: u64 = 1 << 20;

/// QEMU says "Input/output error" where it had no room, which nobody could act on.
pub(super) fn told_if_full(error: JobError, written: &Path, wanted: &Path) -> JobError {
    let full = || {
        let volume = written.parent().and_then(|folder| Volume::of(folder).ok());
        volume.is_some_and(|volume| volume.free < FULL)
    };
    match error {
        JobError::Save(_) if full() => {
            JobError::Receive { path: wanted.into(), source: io::ErrorKind::StorageFull.into() }
        }
        error => error,
    }
}

pub(super) fn qemu(step: &'static str) -> impl Fn(QmpError) -> JobError {
    move |source| JobError::Qemu { step, source }
}

//! One worker per run folder.

use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A lock that is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("another worker runs in this folder")]
    Taken,
    /// The file could not be opened.
    #[error("the lock file could not be opened")]
    Io(#[source] io::Error),
}

/// Holds the lock until dropped.
#[derive(Debug)]
pub struct Held {
    _file: File,
}

/// Takes the lock, without waiting.
///
/// # Errors
/// [`LockError::Taken`] while another process lives that holds it.
pub fn take(path: &Path) -> Result<Held, LockError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(path)
        .map_err(LockError::Io)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Held { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::Taken),
        Err(error) => Err(LockError::Io(error.into())),
    }
}

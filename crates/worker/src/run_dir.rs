//! Names of the files and sockets in a machine's run folder.

use std::path::{Path, PathBuf};

/// Longest run folder path, in bytes: socket addresses hold 107 bytes, and names below the folder take up to 24.
const MAX_PATH_LEN: usize = 83;

/// A run folder whose path is too long for the sockets in it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the run folder {path} has a path of {len} bytes: socket addresses allow {MAX_PATH_LEN}; use a shorter path such as /run/backstay"
)]
pub struct PathTooLong {
    path: PathBuf,
    len: usize,
}

/// One machine's run folder: lives as long as the machine runs, on a file system in memory.
#[derive(Clone, Debug)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Names the folder; touches nothing.
    ///
    /// # Errors
    /// [`PathTooLong`].
    pub fn new(root: &Path) -> Result<Self, PathTooLong> {
        let len = root.as_os_str().len();
        if len > MAX_PATH_LEN {
            return Err(PathTooLong { path: root.into(), len });
        }
        Ok(Self { root: root.into() })
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What to run: [`crate::control::LaunchRecord`].
    #[must_use]
    pub fn launch(&self) -> PathBuf {
        self.root.join("launch.json")
    }

    /// The launch record of a machine that has ended: a worker that is started by mistake finds nothing to run.
    #[must_use]
    pub fn ended(&self) -> PathBuf {
        self.root.join("ended.json")
    }

    /// Held by the one worker of this folder.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.root.join("worker.lock")
    }

    /// The control socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.root.join("worker.sock")
    }

    /// All events, one JSON object per line.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// Which file is the top of each disk that has been switched since the launch record was written.
    #[must_use]
    pub fn tops(&self) -> PathBuf {
        self.root.join("tops.json")
    }

    /// The QEMU process that belongs to this folder.
    #[must_use]
    pub fn instance(&self) -> PathBuf {
        self.root.join("qemu.json")
    }

    /// The checkpoint that is being taken.
    #[must_use]
    pub fn intent(&self) -> PathBuf {
        self.root.join("checkpoint.json")
    }

    /// Serial console for any number of clients.
    #[must_use]
    pub fn console_socket(&self) -> PathBuf {
        self.root.join("console.sock")
    }

    /// The disks, one NBD export each.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.root.join("nbd.sock")
    }

    /// Memory streams from and to QEMU.
    #[must_use]
    pub fn stream_socket(&self) -> PathBuf {
        self.root.join("stream.sock")
    }

    /// Bitmaps of acknowledged writes that survive the death of the worker.
    #[must_use]
    pub fn shadow(&self) -> PathBuf {
        self.root.join("shadow")
    }

    /// Output of the worker.
    #[must_use]
    pub fn worker_log(&self) -> PathBuf {
        self.root.join("worker.log")
    }

    /// The only folder below this one that QEMU's user may write to.
    #[must_use]
    pub fn qemu(&self) -> PathBuf {
        self.root.join("qemu")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_sockets_cannot_hold_is_refused_with_the_limit() {
        let error = RunDir::new(Path::new(&format!("/{}", "x".repeat(90)))).unwrap_err();
        assert!(error.to_string().contains("91 bytes") && error.to_string().contains("83"), "{error}");
    }
}

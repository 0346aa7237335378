//! A machine's run folder: QEMU's files as [`RunPaths`] names them, and the worker's own.

use backstay_qemu::paths::{PathError, RunPaths};
use rustix::fs::Mode;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// One machine's run folder: lives as long as the machine runs, on a file system in memory.
#[derive(Clone, Debug)]
pub struct RunDir {
    paths: RunPaths,
}

impl Deref for RunDir {
    type Target = RunPaths;

    fn deref(&self) -> &RunPaths {
        &self.paths
    }
}

impl RunDir {
    /// Names the folder; touches nothing.
    ///
    /// # Errors
    /// A path that sockets cannot hold.
    pub fn new(root: &Path) -> Result<Self, PathError> {
        Ok(Self { paths: RunPaths::new(root)? })
    }

    /// The launch record of a machine that has ended: a worker that is started by mistake finds nothing to run.
    #[must_use]
    pub fn ended(&self) -> PathBuf {
        self.dir().join("ended.json")
    }

    /// The machine is over: a worker that is started for this folder finds nothing to run or to take over.
    pub fn put_away(&self) {
        for stale in [self.instance(), self.process_record(), self.pid()] {
            let _ = crate::durable::remove(&stale);
        }
        if let Err(error) = std::fs::rename(self.launch(), self.ended()) {
            tracing::error!(%error, "the launch record could not be put away");
        }
    }

    /// Held by the one worker of this folder.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.dir().join("worker.lock")
    }

    /// What the next worker has to know: [`crate::instance::Instance`].
    #[must_use]
    pub fn instance(&self) -> PathBuf {
        self.dir().join("instance.json")
    }

    /// The checkpoint that is being taken.
    #[must_use]
    pub fn intent(&self) -> PathBuf {
        self.dir().join("checkpoint.json")
    }

    /// Output of the worker.
    #[must_use]
    pub fn worker_log(&self) -> PathBuf {
        self.dir().join("worker.log")
    }

    /// Where QEMU writes a picture of the screen.
    #[must_use]
    pub fn screenshot(&self) -> PathBuf {
        self.dir().join("screen.png")
    }

    /// Lets QEMU, running as `gid`, make its sockets and logs here. The sticky bit keeps it from replacing our files.
    ///
    /// # Errors
    /// As the file system.
    pub fn open_to_qemu(&self, gid: Option<u32>) -> io::Result<()> {
        let Some(gid) = gid else { return Ok(()) };
        std::os::unix::fs::chown(self.dir(), None, Some(gid))?;
        std::fs::set_permissions(self.dir(), std::fs::Permissions::from_mode(0o1770))?;
        // QEMU's log is opened here and inherited; the serial log is QEMU's own.
        Ok(())
    }
}

/// Removes what a QEMU of another user left in the run folder, in an earlier run or under an earlier release: the sticky bit
/// keeps the next one from replacing it. It is not given away instead, because what lies there may be a link to anything.
///
/// # Errors
/// As the file system.
pub fn clear_for_qemu(run: &RunDir, uid_gid: Option<(u32, u32)>) -> io::Result<()> {
    let Some((uid, _)) = uid_gid else { return Ok(()) };
    let sockets = [run.qmp(), run.qmp_debug(), run.serial(), run.vnc()];
    let files = [run.trace_log(), run.serial_log(), run.pid(), run.screenshot()];
    for left in sockets.into_iter().chain(files) {
        match std::fs::symlink_metadata(&left) {
            Ok(found) if found.uid() != uid => crate::durable::remove(&left)?,
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// From now on new files are for user and group only.
pub fn restrict_new_files() {
    rustix::process::umask(Mode::from_raw_mode(0o007));
}

/// Gives a socket or file of ours to QEMU's group.
///
/// # Errors
/// As the file system.
pub fn share_with(path: &Path, gid: Option<u32>) -> io::Result<()> {
    if gid.is_some() {
        std::os::unix::fs::chown(path, None, gid)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
}

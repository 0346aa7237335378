//! Where one machine's sockets and files are.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longest path of a unix socket in bytes: `sun_path` has 108 bytes including the final zero.
pub const SOCKET_PATH_MAX: usize = 107;

/// Longest socket name in a run folder.
const LONGEST_SOCKET: &str = "console.sock";

/// A run folder that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PathError {
    /// The kernel's limit of socket names.
    #[error(
        "the socket path {path} has {bytes} bytes, a unix socket allows {SOCKET_PATH_MAX}: \
         use a run folder with a shorter path"
    )]
    TooLong {
        /// The socket's path.
        path: PathBuf,
        /// Its length in bytes.
        bytes: usize,
    },
    /// QEMU is started in another folder.
    #[error("the run folder {0} is not an absolute path: give it from /")]
    Relative(PathBuf),
    /// QEMU's options are UTF-8.
    #[error("the run folder {0:?} is not valid UTF-8: QEMU's options cannot name it, use another folder")]
    NotUtf8(PathBuf),
}

/// The files and sockets in the run folder of one machine. Nothing is created here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPaths {
    dir: PathBuf,
}

impl RunPaths {
    /// Checks that every socket in `run_dir` has a path that the kernel accepts.
    ///
    /// # Errors
    /// A relative path, one that is not UTF-8, or one too long for a socket.
    pub fn new(run_dir: impl Into<PathBuf>) -> Result<Self, PathError> {
        let dir = run_dir.into();
        if !dir.is_absolute() {
            return Err(PathError::Relative(dir));
        }
        if dir.to_str().is_none() {
            return Err(PathError::NotUtf8(dir));
        }
        let path = dir.join(LONGEST_SOCKET);
        let bytes = path.as_os_str().as_bytes().len();
        if bytes > SOCKET_PATH_MAX {
            return Err(PathError::TooLong { path, bytes });
        }
        Ok(Self { dir })
    }

    /// The folder itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    /// QEMU's control socket; only the worker connects to it.
    #[must_use]
    pub fn qmp(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }
    /// A second control socket for people and diagnosis.
    #[must_use]
    pub fn qmp_debug(&self) -> PathBuf {
        self.dir.join("qmp2.sock")
    }
    /// The disk server's socket; QEMU connects to it.
    #[must_use]
    pub fn nbd(&self) -> PathBuf {
        self.dir.join("nbd.sock")
    }
    /// The guest's first serial port; QEMU listens and takes one client, the worker.
    #[must_use]
    pub fn serial(&self) -> PathBuf {
        self.dir.join("serial.sock")
    }
    /// The worker's fan-out of the serial port to any number of clients.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.dir.join("console.sock")
    }
    /// The graphical console (RFB); QEMU listens.
    #[must_use]
    pub fn vnc(&self) -> PathBuf {
        self.dir.join("vnc.sock")
    }
    /// The memory stream of a checkpoint; the worker listens, QEMU connects.
    #[must_use]
    pub fn stream(&self) -> PathBuf {
        self.dir.join("stream.sock")
    }
    /// QEMU's own pid file: locked while it lives, removed when it ends in order.
    #[must_use]
    pub fn pid(&self) -> PathBuf {
        self.dir.join("qemu.pid")
    }
    /// Pid and start time of QEMU as its starter saw them.
    #[must_use]
    pub fn process_record(&self) -> PathBuf {
        self.dir.join("qemu.json")
    }
    /// What QEMU says on its standard error.
    #[must_use]
    pub fn qemu_log(&self) -> PathBuf {
        self.dir.join("qemu.log")
    }
    /// QEMU's trace output, empty unless someone turns it on. Not `qemu.log`, which it would truncate.
    #[must_use]
    pub fn trace_log(&self) -> PathBuf {
        self.dir.join("qemu-trace.log")
    }
    /// Everything the guest wrote to its serial port.
    #[must_use]
    pub fn serial_log(&self) -> PathBuf {
        self.dir.join("serial.log")
    }
    /// The worker's control socket.
    #[must_use]
    pub fn worker(&self) -> PathBuf {
        self.dir.join("worker.sock")
    }
    /// The worker's numbered events.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.dir.join("events.jsonl")
    }
    /// What the daemon asked the worker to start.
    #[must_use]
    pub fn launch(&self) -> PathBuf {
        self.dir.join("launch.json")
    }
    /// Which file is the top of each disk's chain.
    #[must_use]
    pub fn tops(&self) -> PathBuf {
        self.dir.join("tops.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_folder_is_accepted_up_to_the_kernels_limit_and_refused_beyond_by_name() {
        let room = SOCKET_PATH_MAX - "/console.sock".len();
        let longest = format!("/{}", "x".repeat(room - 1));
        let paths = RunPaths::new(&longest).unwrap();
        for socket in [
            paths.qmp(),
            paths.qmp_debug(),
            paths.nbd(),
            paths.serial(),
            paths.console(),
            paths.vnc(),
            paths.stream(),
            paths.worker(),
        ] {
            assert!(socket.as_os_str().len() <= SOCKET_PATH_MAX, "{}", socket.display());
        }
        let message = RunPaths::new(format!("{longest}x")).unwrap_err().to_string();
        assert!(message.contains("console.sock has 108 bytes") && message.contains("shorter"), "{message}");
    }

    #[test]
    fn a_socket_at_the_limit_really_binds() {
        let base = tempfile::tempdir().unwrap();
        let room = SOCKET_PATH_MAX - "/console.sock".len() - base.path().as_os_str().len() - 1;
        let paths = RunPaths::new(base.path().join("y".repeat(room))).unwrap();
        std::fs::create_dir(paths.dir()).unwrap();
        std::os::unix::net::UnixListener::bind(paths.console()).unwrap();
    }

    #[test]
    fn relative_folders_are_refused() {
        assert!(matches!(RunPaths::new("run/vm"), Err(PathError::Relative(_))));
    }
}

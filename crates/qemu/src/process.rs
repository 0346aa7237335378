//! QEMU as a process: started in a session of its own so that it outlives the worker, found again by a later worker,
//! watched and ended through a pidfd, which never hits a stranger that got the same number.

mod adopt;
mod exit;
mod proc_fs;

pub use adopt::{AdoptError, LastExit, adopt, last_exit};
pub use exit::{ExitReason, log_tail};

use crate::paths::RunPaths;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getrlimit, pidfd_open,
    pidfd_send_signal, setrlimit, waitid,
};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// util-linux, in every installation: gives QEMU a session of its own, keeping pid and parent.
const SETSID: &str = "setsid";
/// util-linux as well: becomes another user with just the groups it is told, keeping pid and parent.
const SETPRIV: &str = "setpriv";
/// What QEMU needs for hardware virtualization.
const KVM: &str = "/dev/kvm";

/// How to start QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spawn {
    /// Executable; searched in PATH when it has no slash.
    pub qemu: PathBuf,
    /// From [`crate::argv::command_line`].
    pub args: Vec<String>,
    /// User and group that QEMU runs as; none: as this process. The group is the one that may open `/dev/userfaultfd` and
    /// the sockets of the run folder. All other groups are given up except the one that may open `/dev/kvm`.
    pub uid_gid: Option<(u32, u32)>,
    /// Groups it gets in addition, for devices; only with `uid_gid`.
    pub groups: Vec<u32>,
    /// Put before all that: a command that becomes the one behind it, in a view of its own.
    pub launcher: Vec<String>,
}

/// QEMU could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Its log cannot be written.
    #[error("cannot open QEMU's log {path}")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No such executable, or no right to run it or to become its user.
    #[error("cannot start QEMU ({qemu}, through '{SETSID}' and '{SETPRIV}' of util-linux)")]
    Start {
        /// The executable.
        qemu: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It runs but cannot be watched; it was killed again.
    #[error("cannot watch QEMU's process {pid}")]
    Watch {
        /// Its number.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A later worker could not find it; it was killed again.
    #[error("cannot record QEMU's process in {path}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a later worker needs to be sure that a process is this machine's QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Process number.
    pub pid: u32,
    /// Clock ticks since boot when it was started (field 22 of `/proc/PID/stat`); with the number unique until reboot.
    pub start_time: u64,
}

/// A QEMU that runs, or has just ended.
#[derive(Debug)]
pub struct QemuProcess {
    record: ProcessRecord,
    pidfd: OwnedFd,
    own_child: bool,
    exit: OnceLock<ExitReason>,
}

impl QemuProcess {
    /// Starts QEMU and records it in the run folder. Its standard error goes to the end of `qemu.log`.
    ///
    /// # Errors
    /// See [`SpawnError`]; nothing runs then.
    pub fn spawn(paths: &RunPaths, spawn: &Spawn) -> Result<Self, SpawnError> {
        let path = paths.qemu_log();
        let log = open_log(&path).map_err(|source| SpawnError::Log { path, source })?;
        raise_open_files_limit();
        let start = |source| SpawnError::Start { qemu: spawn.qemu.clone(), source };
        let log_too = log.try_clone().map_err(start)?;
        let mut command = Command::new(SETSID);
        command.args(&spawn.launcher);
        if let Some((uid, gid)) = spawn.uid_gid {
            let groups: Vec<u32> = spawn.groups.iter().copied().chain(device_group(Path::new(KVM))).collect();
            command.arg(SETPRIV).args(become_user(uid, gid, &groups));
        }
        command.arg(&spawn.qemu).args(&spawn.args);
        command.stdin(Stdio::null()).stdout(log_too).stderr(log).current_dir("/");
        let mut child = command.spawn().map_err(start)?;
        let pid = child.id();
        // Until somebody waits for the child its number cannot be used again, so opening by number is safe here.
        let watched = watch(pid).map_err(|source| SpawnError::Watch { pid, source }).and_then(|process| {
            let path = paths.process_record();
            proc_fs::write_record(&path, process.record)
                .map(|()| process)
                .map_err(|source| SpawnError::Record { path, source })
        });
        if watched.is_err() {
            // Best effort: the error that matters is the first one.
            let _ = child.kill();
            let _ = child.wait();
        }
        watched.map(|process| Self { own_child: true, ..process })
    }

    /// Process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.record.pid
    }

    /// Number and start time.
    #[must_use]
    pub fn record(&self) -> ProcessRecord {
        self.record
    }

    /// Whether this process started it, so that its exit status will be known.
    #[must_use]
    pub fn is_own_child(&self) -> bool {
        self.own_child
    }

    /// Returns when QEMU has ended. Can be called any number of times and dropped at any time.
    pub async fn wait(&self) -> ExitReason {
        if let Some(reason) = self.exit.get() {
            return *reason;
        }
        if let Err(error) = self.ended().await {
            tracing::error!(pid = self.pid(), %error, "cannot wait for QEMU's pidfd");
            // Without the pidfd there is only polling left.
            while proc_fs::start_time(self.pid()).is_ok_and(|start| start == self.record.start_time) {
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
        }
        *self.exit.get_or_init(|| self.reap())
    }

    /// Whether QEMU has ended, without waiting.
    #[must_use]
    pub fn try_wait(&self) -> Option<ExitReason> {
        if let Some(reason) = self.exit.get() {
            return Some(*reason);
        }
        let mut fds = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut fds, Some(&now)) {
            Ok(ready) if ready > 0 => Some(*self.exit.get_or_init(|| self.reap())),
            _ => None,
        }
    }

    /// Ends QEMU at once (SIGKILL). No error if it has already ended.
    ///
    /// # Errors
    /// The signal is not permitted.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn ended(&self) -> io::Result<()> {
        // A duplicate, so that several callers can wait at once.
        #[expect(
            deprecated,
            reason = "the replacement is unsafe for owners that could lie; OwnedFd keeps its promise"
        )]
        let fd = AsyncFd::with_interest(self.pidfd.try_clone()?, Interest::READABLE)?;
        fd.readable().await.map(drop)
    }

    fn reap(&self) -> ExitReason {
        if !self.own_child {
            return ExitReason::Unknown;
        }
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => ExitReason::from_wait(&status),
            Ok(None) | Err(_) => ExitReason::Unknown,
        }
    }
}

/// Options of `setpriv`. Capabilities go with the change of the user, and nothing brings them back.
fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Vec<String> {
    let mut options = vec![format!("--reuid={uid}"), format!("--regid={gid}")];
    let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
    options.push(match groups.as_slice() {
        [] => "--clear-groups".into(),
        groups => format!("--groups={}", groups.join(",")),
    });
    options.extend(["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"].map(str::to_owned));
    options
}

/// The group that may open a device and must be given for it: not root's, and only where not everybody may open it.
#[must_use]
pub fn device_group(device: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let node = std::fs::metadata(device).ok()?;
    let (group, others) = (node.mode() & 0o060 == 0o060, node.mode() & 0o006 == 0o006);
    (group && !others && node.gid() != 0).then(|| node.gid())
}

/// Opens a pidfd for a process that cannot vanish meanwhile, or whose identity the caller checks afterwards.
fn watch(pid: u32) -> io::Result<QemuProcess> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let raw = raw.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a process number"))?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
    let start_time = proc_fs::start_time(pid)?;
    Ok(QemuProcess {
        record: ProcessRecord { pid, start_time },
        pidfd,
        own_child: false,
        exit: OnceLock::new(),
    })
}

/// A link in its place is not followed: QEMU may make files there.
fn open_log(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    OpenOptions::new().create(true).append(true).custom_flags(nofollow).open(path)
}

/// Raises this process's limit of open files, and with it that of those it starts. Each disk costs QEMU a descriptor or two, and
/// its server several; a machine can have 260, and the usual limit is 1024.
pub fn raise_open_files_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(1 << 20, |most| most.min(1 << 20));
    if limit.current.is_some_and(|current| current < wanted)
        && let Err(error) =
            setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_a_group_that_is_needed_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("kvm");
        assert_eq!(device_group(&device), None);
        std::fs::write(&device, "").unwrap();
        if std::os::unix::fs::chown(&device, None, Some(4242)).is_err() {
            return println!("skipped: giving a file to another group needs root");
        }
        for (mode, group) in [(0o600, None), (0o660, Some(4242)), (0o666, None), (0o640, None)] {
            std::fs::set_permissions(&device, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(device_group(&device), group, "{mode:o}");
        }
        std::os::unix::fs::chown(&device, None, Some(0)).unwrap();
        std::fs::set_permissions(&device, std::fs::Permissions::from_mode(0o660)).unwrap();
        assert_eq!(device_group(&device), None, "never root's group");
    }

    /// As QEMU is started: the same pid, the user, the groups, and no capability left.
    #[test]
    fn another_user_gets_just_its_groups() {
        let shown = |more: &[u32]| {
            let output = Command::new(SETSID)
                .arg(SETPRIV)
                .args(become_user(65534, 65533, more))
                .args(["cat", "/proc/self/status"])
                .output()
                .unwrap();
            output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
        };
        let Some(status) = shown(&[4242, 4243]) else {
            return println!("skipped: becoming another user needs root");
        };
        let field = |status: &str, name: &str| -> Vec<String> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(field(&status, "Uid:"), ["65534"; 4]);
        assert_eq!(field(&status, "Gid:"), ["65533"; 4]);
        assert_eq!(field(&status, "Groups:"), ["4242", "4243"]);
        assert_eq!(field(&status, "NoNewPrivs:"), ["1"]);
        assert_eq!(field(&status, "CapBnd:"), ["0000000000000000"]);
        assert_eq!(field(&status, "CapPrm:"), ["0000000000000000"]);
        assert!(field(&shown(&[]).unwrap(), "Groups:").is_empty());
    }
}

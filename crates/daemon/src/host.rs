//! What this host is and can do.

use crate::config::{QemuConfig, SandboxMode};
use crate::durable;
use crate::failure::Failure;
use crate::inventory::blocking;
use crate::qemu_user::{QemuUser, sandbox};
use backstay_api::{HostCapacity, HostInfo, ProblemCode};
use backstay_model::{AccelPolicy, VirtualHardware, VmId};
use backstay_qemu::accel::{self, Choice};
use backstay_qemu::version::{self, Version};
use backstay_worker::sandbox::SandboxOptions;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tokio::sync::{Notify, OnceCell};

/// Facts that stay while the daemon runs are looked up once.
#[derive(Debug)]
pub struct Host {
    qemu: PathBuf,
    user: QemuUser,
    sandbox_mode: SandboxMode,
    read_only: Vec<PathBuf>,
    probe_cache: PathBuf,
    accel: OnceCell<accel::HostFacts>,
    watched: Mutex<Watched>,
    started: Timestamp,
    boot_id: String,
    /// In the run folder: that machines were started with this boot.
    started_mark: PathBuf,
    to_start: ToStart,
    /// Told whenever a machine gave its memory back.
    room: Notify,
}

/// What is known of how the host's storage is watched.
#[derive(Clone, Debug, Default)]
struct Watched {
    kernel_log: String,
    disk_health: String,
}

impl Host {
    /// Looks up QEMU's user; everything else when it is asked for.
    ///
    /// # Errors
    /// `invalid` when the user does not exist.
    pub fn new(qemu: &QemuConfig, state_dir: &Path, run_dir: &Path) -> Result<Self, Failure> {
        let user = QemuUser::new(qemu, rustix::process::geteuid().is_root())?;
        let (boot_id, started_mark) = (boot_of(run_dir), run_dir.join("started"));
        if !boot_id.contains(':') && !started_mark.exists() {
            // An older version wrote the boot's mark when it had started the machines.
            let _ = std::fs::write(&started_mark, &boot_id);
        }
        Ok(Self {
            qemu: qemu.executable.clone(),
            user,
            sandbox_mode: qemu.sandbox,
            read_only: qemu.read_only.clone(),
            probe_cache: state_dir.join("accelerator.json"),
            accel: OnceCell::new(),
            watched: Mutex::default(),
            started: Timestamp::now(),
            to_start: ToStart::read(run_dir.join("to-start.json"), &boot_id),
            boot_id,
            started_mark,
            room: Notify::new(),
        })
    }

    /// QEMU's executable.
    #[must_use]
    pub fn qemu(&self) -> &Path {
        &self.qemu
    }

    /// Whom QEMU runs as.
    #[must_use]
    pub fn qemu_user(&self) -> &QemuUser {
        &self.user
    }

    /// How QEMU is shut in; none: it sees what its user may see.
    ///
    /// # Errors
    /// `precondition` when it has to be and cannot.
    pub fn sandbox(&self) -> Result<Option<SandboxOptions>, Failure> {
        match (sandbox(self.sandbox_mode), self.sandbox_mode) {
            ((true, _), _) => Ok(Some(SandboxOptions { read_only: self.read_only.clone() })),
            ((false, reason), SandboxMode::On) => {
                Err(Failure::precondition(format!("[qemu] sandbox is 'on' and cannot be had: {reason}")))
            }
            ((false, _), _) => Ok(None),
        }
    }

    /// Whether machines have not yet been started as their start actions say since the host was booted.
    #[must_use]
    pub fn is_first_since_boot(&self) -> bool {
        std::fs::read_to_string(&self.started_mark).map_or(true, |mark| mark != self.boot_id)
    }

    /// They have been.
    pub fn note_started(&self) {
        if let Err(error) = std::fs::write(&self.started_mark, &self.boot_id) {
            tracing::warn!(%error, "that machines were started with the host cannot be written down");
        }
        self.to_start.forget();
    }

    /// The machines that are still to be started with this boot; none before it was decided which.
    #[must_use]
    pub fn to_start(&self) -> Option<BTreeSet<VmId>> {
        self.to_start.left()
    }

    /// Decides which machines are started with this boot.
    pub fn set_to_start(&self, machines: BTreeSet<VmId>) {
        self.to_start.set(&self.boot_id, machines);
    }

    /// A machine was started, could not be, or has been on and off since: it is none of those any more.
    pub fn started(&self, vm: VmId) {
        self.to_start.remove(&self.boot_id, vm);
    }

    /// A machine gave its memory back.
    pub fn note_room(&self) {
        self.room.notify_waiters();
    }

    /// Waits until one does.
    pub async fn room(&self) {
        self.room.notified().await;
    }

    /// Changes with every boot of the host.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Says whether the kernel's messages are followed.
    pub fn set_kernel_log(&self, words: String) {
        self.watched().kernel_log = words;
    }

    /// Says what the disks tell of themselves.
    pub fn set_disk_health(&self, words: String) {
        self.watched().disk_health = words;
    }

    /// QEMU's version; asked each time, because packages are upgraded while the daemon runs.
    ///
    /// # Errors
    /// `unavailable` when QEMU cannot be run.
    pub async fn qemu_version(&self) -> Result<Version, Failure> {
        let qemu = self.qemu.clone();
        blocking(move || {
            version::probe(&qemu)
                .map_err(|error| Failure::because(ProblemCode::Unavailable, "QEMU cannot be used", error))
        })
        .await
    }

    /// The newest machine type of the QEMU here.
    ///
    /// # Errors
    /// `unavailable` when QEMU cannot be run.
    pub async fn default_machine_type(&self, hardware: VirtualHardware) -> Result<String, Failure> {
        let version = self.qemu_version().await?;
        let family = match hardware {
            VirtualHardware::Gen1 => "pc-i440fx",
            VirtualHardware::Gen2 => "pc-q35",
        };
        Ok(format!("{family}-{}.{}", version.major, version.minor))
    }

    /// The accelerator for `policy`.
    ///
    /// # Errors
    /// `precondition` when KVM is demanded and does not work.
    pub async fn accelerator(&self, policy: AccelPolicy) -> Result<Choice, Failure> {
        let facts =
            self.accel.get_or_init(|| async { accel::host_facts(&self.qemu, &self.probe_cache).await }).await;
        accel::choose(policy, &facts.for_user(self.user.example()))
            .map_err(|refusal| Failure::precondition(refusal.to_string()))
    }

    /// Whether QEMU may track writes of a running guest, and why (not).
    #[must_use]
    pub fn userfaultfd(&self) -> (bool, String) {
        let ids = self
            .user
            .example()
            .or_else(|| Some((rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())));
        let (uid, gid) = ids.unwrap_or((0, 0));
        if uid == 0 {
            return (true, "QEMU runs as root".into());
        }
        if std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|t| t.trim() == "1") {
            return (true, "vm.unprivileged_userfaultfd is 1".into());
        }
        match std::fs::metadata("/dev/userfaultfd") {
            Ok(node) => {
                let mode = node.mode();
                let may = (node.uid() == uid && mode & 0o600 == 0o600)
                    || ((node.gid() == gid || self.user.groups().contains(&node.gid()))
                        && mode & 0o060 == 0o060)
                    || mode & 0o006 == 0o006;
                if may {
                    (true, "QEMU's user may open /dev/userfaultfd".into())
                } else {
                    (false, "QEMU's user may not open /dev/userfaultfd: give that file to its group".into())
                }
            }
            Err(error) => (
                false,
                format!("/dev/userfaultfd cannot be used ({error}) and vm.unprivileged_userfaultfd is not 1"),
            ),
        }
    }

    /// Everything about this host but its capacity. `active` is what is on: number of machines and their memory in bytes.
    pub async fn info(&self, state_dir: &Path, run_dir: &Path, vms: u32, active: (u32, u64)) -> HostInfo {
        let version = self.qemu_version().await;
        let (accelerator, accelerator_reason) = match self.accelerator(AccelPolicy::Auto).await {
            Ok(choice) => (choice.accel.as_str().to_owned(), choice.reason),
            Err(failure) => ("none".to_owned(), failure.full_message()),
        };
        let (background_snapshot, background_snapshot_reason) = self.userfaultfd();
        let memory = crate::memory::look();
        let mut warnings = Vec::new();
        if accelerator == "tcg" {
            warnings.push(format!("machines run slowly: {accelerator_reason}"));
        }
        if !background_snapshot {
            warnings
                .push(format!("checkpoints pause running machines for longer: {background_snapshot_reason}"));
        }
        let (sandbox, sandbox_reason) = sandbox(self.sandbox_mode);
        if !sandbox && rustix::process::geteuid().is_root() {
            warnings.push(format!("QEMU has no view of the host of its own: {sandbox_reason}"));
        }
        let watched = self.watched().clone();
        let qemu_reason = version.as_ref().err().map(Failure::full_message);
        warnings.extend(qemu_reason.clone());
        HostInfo {
            name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION").into(),
            daemon_pid: std::process::id(),
            daemon_started: self.started,
            qemu: self.qemu.clone(),
            qemu_version: version.ok().map(|v| v.to_string()),
            qemu_reason,
            accelerator,
            accelerator_reason,
            background_snapshot,
            background_snapshot_reason,
            sandbox,
            sandbox_reason,
            kernel_log: watched.kernel_log,
            disk_health: watched.disk_health,
            cpus: std::thread::available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(0)),
            memory_bytes: memory.total,
            memory_available_bytes: memory.available,
            memory_assigned_bytes: active.1,
            state_dir: state_dir.into(),
            run_dir: run_dir.into(),
            state_dir_free_bytes: rustix::fs::statvfs(state_dir).map_or(0, |s| s.f_bavail * s.f_frsize),
            vms,
            vms_active: active.0,
            capacity: HostCapacity::default(),
            warnings,
        }
    }
}

/// The machines that are still to be started with this boot, also for the next daemon: one that a user has turned off since is not
/// started again.
#[derive(Debug)]
struct ToStart {
    file: PathBuf,
    left: Mutex<Option<BTreeSet<VmId>>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ToStartRecord {
    boot: String,
    left: BTreeSet<VmId>,
}

impl ToStart {
    fn read(file: PathBuf, boot: &str) -> Self {
        let text = std::fs::read(&file).ok();
        let record = text.and_then(|text| serde_json::from_slice::<ToStartRecord>(&text).ok());
        let left = record.filter(|record| record.boot == boot).map(|record| record.left);
        Self { file, left: Mutex::new(left) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<BTreeSet<VmId>>> {
        self.left.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn left(&self) -> Option<BTreeSet<VmId>> {
        self.lock().clone()
    }

    fn set(&self, boot: &str, left: BTreeSet<VmId>) {
        self.write(&mut self.lock(), boot, left);
    }

    fn remove(&self, boot: &str, vm: VmId) {
        let mut now = self.lock();
        if let Some(mut left) = now.clone()
            && left.remove(&vm)
        {
            self.write(&mut now, boot, left);
        }
    }

    fn write(&self, now: &mut Option<BTreeSet<VmId>>, boot: &str, left: BTreeSet<VmId>) {
        let record = ToStartRecord { boot: boot.into(), left };
        let written = serde_json::to_vec(&record).map_err(std::io::Error::other);
        if let Err(error) = written.and_then(|text| durable::replace(&self.file, &text)) {
            tracing::warn!(%error, "which machines are still to be started with the host cannot be written down");
        }
        *now = Some(record.left);
    }

    fn forget(&self) {
        let mut now = self.lock();
        let _ = durable::remove(&self.file);
        *now = None;
    }
}

/// The boot this is: the kernel's id, and a number of the run folder's, which goes with every boot and, in a container,
/// with every start of it.
fn boot_of(run_dir: &Path) -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let kernel = kernel.trim();
    let mark = run_dir.join("booted");
    if let Ok(known) = std::fs::read_to_string(&mark)
        && known.starts_with(kernel)
        && !known.is_empty()
    {
        return known;
    }
    let boot = format!("{kernel}:{}", uuid::Uuid::new_v4());
    if let Err(error) = std::fs::write(&mark, &boot) {
        tracing::warn!(%error, "the mark of this boot cannot be written");
    }
    boot
}

/// User and group id of a local user, by name or number.
pub(crate) fn user_ids(name: &str) -> Option<(u32, u32)> {
    passwd(|fields| fields.first() == Some(&name) || fields.get(2) == Some(&name))
        .and_then(|fields| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)))
}

/// The name of a local user; the number where there is none.
#[must_use]
pub fn user_name(uid: u32) -> String {
    let number = uid.to_string();
    passwd(|fields| fields.get(2) == Some(&number.as_str()))
        .and_then(|fields| fields.first().cloned())
        .unwrap_or_else(|| format!("uid {uid}"))
}

fn passwd(wanted: impl Fn(&[&str]) -> bool) -> Option<Vec<String>> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| wanted(fields))
        .map(|fields| fields.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_run_folder_is_a_new_boot() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = boot_of(a.path());
        assert_eq!(boot_of(a.path()), first);
        assert_ne!(boot_of(b.path()), first);
        std::fs::write(a.path().join("booted"), "another boot").unwrap();
        assert_ne!(boot_of(a.path()), first);
    }

    #[test]
    fn the_next_daemon_of_a_boot_goes_on_with_what_is_left_to_start() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("to-start.json");
        let [a, b] = [1, 2].map(|n| VmId(uuid::Uuid::from_u128(n)));
        let first = ToStart::read(file.clone(), "boot");
        assert_eq!(first.left(), None, "nothing was decided yet");
        first.set("boot", BTreeSet::from([a, b]));
        first.set("boot", BTreeSet::from([b]));
        assert_eq!(ToStart::read(file.clone(), "boot").left(), Some(BTreeSet::from([b])));
        assert_eq!(ToStart::read(file.clone(), "another").left(), None);
        first.forget();
        assert_eq!(ToStart::read(file, "boot").left(), None);
    }

    #[test]
    fn local_users_have_names_and_numbers() {
        assert_eq!(user_name(0), "root");
        assert_eq!(user_ids("root"), Some((0, 0)));
        assert_eq!(user_name(4_000_000_000), "uid 4000000000");
        assert_eq!(user_ids("no such user"), None);
    }
}

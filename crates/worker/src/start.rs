//! Starting QEMU, or finding the one that runs.

use crate::checkpoint::descriptor::{
    Descriptor, DescriptorError, HostFacts, Reason, StreamFormat, check_restorable, read_descriptor,
};
use crate::checkpoint::{hardware, qmp as migration, stream};
use crate::control::{LaunchRecord, RestoreFrom};
use crate::durable;
use crate::run_dir::{RunDir, clear_for_qemu};
use crate::sandbox::View;
use backstay_model::DriveSlot;
use backstay_qemu::accel::Choice;
use backstay_qemu::argv::{self, ArgvError, Begin, LaunchFacts};
use backstay_qemu::process::{QemuProcess, Spawn, SpawnError};
use backstay_qemu::qmp::{Qmp, QmpError};
use backstay_qemu::version::{self, VersionError};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long QEMU may take until its control socket answers.
const READY: Duration = Duration::from_secs(60);

/// A QEMU that runs, and the way to talk to it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The process.
    pub process: Arc<QemuProcess>,
    /// Its control connection.
    pub qmp: Qmp,
}

/// A QEMU that was just started; the processors are stopped.
#[derive(Debug)]
pub struct Started {
    /// QEMU.
    pub machine: Machine,
    /// The saved state was of a running guest (or there was none): it may run.
    pub run: bool,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Why the machine does not run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration does not work here.
    #[error("the machine cannot run as it is configured")]
    Argv(#[source] ArgvError),
    /// What a former QEMU left is in the way.
    #[error("the run folder {path} cannot be cleared for QEMU's user")]
    RunFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No process.
    #[error("QEMU could not be started")]
    Spawn(#[source] SpawnError),
    /// It does not talk.
    #[error("QEMU did not come up")]
    Qmp(#[source] QmpError),
    /// It ended at once.
    #[error("{reason}{log}")]
    Ended {
        /// How.
        reason: String,
        /// Its last words.
        log: LogTail,
    },
    /// It cannot tell its version.
    #[error("the version of QEMU is unknown")]
    Version(#[source] VersionError),
    /// The descriptor of the saved state.
    #[error("the saved state cannot be used")]
    Descriptor(#[source] DescriptorError),
    /// It does not fit.
    #[error("the saved state cannot be loaded: {0}")]
    NotRestorable(Reasons),
    /// The memory file cannot be read.
    #[error("the memory file {path} cannot be read")]
    Memory {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// QEMU refused the state.
    #[error("QEMU could not load the saved state")]
    Load(#[source] QmpError),
    /// On request.
    #[error("turned off while starting")]
    Cancelled,
}

/// The end of a log, for messages.
#[derive(Debug)]
pub struct LogTail(pub Vec<String>);

impl std::fmt::Display for LogTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.as_slice() {
            [] => Ok(()),
            lines => write!(f, ": {}", lines.join(" / ")),
        }
    }
}

/// Several reasons in one sentence.
#[derive(Debug)]
pub struct Reasons(pub Vec<Reason>);

impl std::fmt::Display for Reasons {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&words.join("; "))
    }
}

/// Starts QEMU for the record; with `restore`, loads that state. `sectors` are of hard disks whose sectors are not of 512 bytes. Ends it again on failure and when `cancel` becomes true.
///
/// # Errors
/// [`StartError`]; no QEMU runs then.
pub async fn start(
    run: &RunDir,
    record: &LaunchRecord,
    accel: &Choice,
    restore: Option<&RestoreFrom>,
    sectors: BTreeMap<DriveSlot, u32>,
    mut cancel: watch::Receiver<bool>,
) -> Result<Started, StartError> {
    let descriptor = restore.map(|from| check(record, accel, from)).transpose()?;
    let mut facts = LaunchFacts::new(accel.accel);
    facts.sectors = sectors;
    facts.begin = if descriptor.is_some() { Begin::Incoming } else { Begin::Boot };
    let line = argv::command_line(&record.spec, run, &facts).map_err(StartError::Argv)?;
    clear_for_qemu(run, record.qemu_uid_gid)
        .map_err(|source| StartError::RunFolder { path: run.dir().into(), source })?;
    let spawn = Spawn {
        qemu: record.qemu.clone(),
        args: line.args,
        uid_gid: record.qemu_uid_gid,
        groups: record.qemu_groups.clone(),
        launcher: launcher(run, record),
    };
    let process = Arc::new(QemuProcess::spawn(run, &spawn).map_err(StartError::Spawn)?);
    let bring_up = async {
        let qmp = Qmp::connect(&run.qmp(), READY).await.map_err(StartError::Qmp)?;
        if let (Some(descriptor), Some(from)) = (&descriptor, restore) {
            load(run, &qmp, descriptor, from).await?;
        }
        for card in &line.links_down {
            qmp.set_link(card, false).await.map_err(StartError::Qmp)?;
        }
        Ok(qmp)
    };
    let result = tokio::select! {
        result = bring_up => result,
        reason = process.wait() => Err(ended(run, reason)),
        () = wished(&mut cancel) => Err(StartError::Cancelled),
    };
    match result {
        Ok(qmp) => {
            let run = descriptor.is_none_or(|d| d.running);
            Ok(Started { machine: Machine { process, qmp }, run, warnings: line.warnings })
        }
        Err(error) => {
            // A refused state shows as a lost connection; QEMU's last words say more.
            let error = match (error, tokio::time::timeout(Duration::from_secs(1), process.wait()).await) {
                (StartError::Load(_) | StartError::Qmp(_), Ok(reason)) => ended(run, reason),
                (error, _) => error,
            };
            if let Err(error) = process.kill() {
                tracing::error!(%error, "QEMU could not be ended");
            }
            process.wait().await;
            Err(error)
        }
    }
}

/// What shuts QEMU in.
fn launcher(run: &RunDir, record: &LaunchRecord) -> Vec<String> {
    let Some(options) = &record.sandbox else { return Vec::new() };
    // By number: an upgrade may have replaced the file that this process was started from.
    let program = format!("/proc/{}/exe", std::process::id());
    View::plan(&record.spec, run, &found_in_path(&record.qemu), options).launcher(&program)
}

/// Where an executable is that is named without a folder.
fn found_in_path(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file());
    found.unwrap_or_else(|| program.into())
}

async fn wished(cancel: &mut watch::Receiver<bool>) {
    let _ = cancel.wait_for(|cancel| *cancel).await;
}

fn ended(run: &RunDir, reason: impl ToString) -> StartError {
    StartError::Ended { reason: reason.to_string(), log: LogTail(last_words(run)) }
}

/// The last lines of QEMU's log.
#[must_use]
pub fn last_words(run: &RunDir) -> Vec<String> {
    backstay_qemu::process::log_tail(&run.qemu_log(), 5).unwrap_or_default()
}

/// Everything that can speak against the state, before QEMU is started for it.
fn check(record: &LaunchRecord, accel: &Choice, from: &RestoreFrom) -> Result<Descriptor, StartError> {
    let descriptor = read_descriptor(&from.descriptor_file).map_err(StartError::Descriptor)?;
    let memory = |source| StartError::Memory { path: from.memory_file.clone(), source };
    let host = HostFacts {
        qemu_version: version::probe(&record.qemu).map_err(StartError::Version)?.to_string(),
        accelerator: accel.accel.as_str().into(),
        hardware: hardware(&record.spec, accel.accel),
        memory_file: stream::file_facts(&from.memory_file).map_err(memory)?,
    };
    match check_restorable(&descriptor, &host) {
        Ok(()) => Ok(descriptor),
        Err(reasons) => Err(StartError::NotRestorable(Reasons(reasons))),
    }
}

async fn load(
    run: &RunDir,
    qmp: &Qmp,
    descriptor: &Descriptor,
    from: &RestoreFrom,
) -> Result<(), StartError> {
    let capabilities: Vec<&str> = match descriptor.stream {
        // The receiving side of a background snapshot is an ordinary one.
        StreamFormat::Zstd => Vec::new(),
        StreamFormat::MappedRam => descriptor.capabilities.iter().map(String::as_str).collect(),
    };
    migration::set_up(qmp, &capabilities).await.map_err(StartError::Load)?;
    let feeder = match descriptor.stream {
        StreamFormat::Zstd => {
            let socket = run.stream();
            durable::remove(&socket).map_err(|source| StartError::Memory { path: socket, source })?;
            Some(feed(run, &from.memory_file))
        }
        StreamFormat::MappedRam => None,
    };
    let uri = match descriptor.stream {
        StreamFormat::Zstd => format!("unix:{}", run.stream().display()),
        StreamFormat::MappedRam => {
            let memory = std::fs::File::open(&from.memory_file)
                .map_err(|source| StartError::Memory { path: from.memory_file.clone(), source })?;
            migration::hand_over(qmp, memory).await.map_err(StartError::Load)?
        }
    };
    let loaded = async {
        qmp.migrate_incoming(&uri).await?;
        qmp.wait_loaded().await
    };
    loaded.await.map_err(StartError::Load)?;
    migration::take_back(qmp).await;
    if let Some(feeder) = feeder {
        let fed = feeder.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        fed.map_err(|source| StartError::Memory { path: from.memory_file.clone(), source })?;
    }
    Ok(())
}

type Feeder = tokio::task::JoinHandle<io::Result<()>>;

/// Expands the memory file towards whoever listens on the stream socket: with `migrate-incoming unix:` QEMU listens.
fn feed(run: &RunDir, memory: &Path) -> Feeder {
    let (socket, memory) = (run.stream(), memory.to_path_buf());
    tokio::spawn(async move {
        let stream = connect_patiently(&socket).await?.into_std()?;
        stream.set_nonblocking(false)?;
        tokio::task::spawn_blocking(move || stream::send(&memory, stream))
            .await
            .unwrap_or_else(|panic| Err(io::Error::other(panic)))
    })
}

async fn connect_patiently(socket: &Path) -> io::Result<tokio::net::UnixStream> {
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        match tokio::net::UnixStream::connect(socket).await {
            Err(_) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            result => return result,
        }
    }
}

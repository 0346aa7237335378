//! The worker process: from the run folder to the end of the machine.

use crate::console;
use crate::control::{LaunchRecord, WorkerEvent};
use crate::disks::{DiskSet, DisksError};
use crate::durable;
use crate::events::Spool;
use crate::instance;
use crate::lock;
use crate::logs;
use crate::owner::{End, Owner, Parts};
use crate::report::chain_of;
use crate::run_dir::{RunDir, restrict_new_files, share_with};
use crate::server;
use anyhow::{Context, Result, bail};
use backstay_model::VmState;
use backstay_qemu::accel::{self, Choice};
use backstay_qemu::process::{QemuProcess, adopt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tracing_subscriber::EnvFilter;

/// Requests that may wait for the owner.
const CALL_QUEUE: usize = 64;
/// How long a living QEMU's disks may fail to open before this worker gives up.
const REOPEN_PATIENCE: Duration = Duration::from_secs(30);
/// How long clients may take to read their last answers.
const FAREWELL: Duration = Duration::from_secs(2);

/// Runs the machine of a run folder: starts it, or takes it over from a worker that died. Returns when it is over.
///
/// # Errors
/// When the folder holds nothing to run, another worker has it, or it cannot be used; the machine was not touched then.
pub fn run(run_dir: &Path) -> Result<ExitCode> {
    let run = RunDir::new(run_dir).context("the run folder cannot be used")?;
    let filter = EnvFilter::try_from_env("BACKSTAY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A caller that has set up logging before keeps its own.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .try_init();
    // Fails only if we lead a group already, as when started from a shell; then the session is the user's choice.
    let _ = rustix::process::setsid();
    restrict_new_files();
    let _held = lock::take(&run.lock()).with_context(|| format!("{}", run.lock().display()))?;
    let record: LaunchRecord = durable::read_json(&run.launch())
        .with_context(|| format!("{} cannot be read", run.launch().display()))?
        .with_context(|| format!("{} does not exist: there is nothing to run", run.launch().display()))?;
    if record.version > 1 {
        bail!("{} has version {}, this worker reads 1", run.launch().display(), record.version);
    }
    // Disk requests have threads of their own; these only pass messages.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let end = runtime.block_on(serve(run, record));
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(match end? {
        End::Done | End::HandOver => ExitCode::SUCCESS,
        End::Failed => ExitCode::FAILURE,
    })
}

async fn serve(run: RunDir, record: LaunchRecord) -> Result<End> {
    let gid = record.qemu_uid_gid.map(|(_, gid)| gid);
    run.open_to_qemu(gid).context("the run folder cannot be given to QEMU's group")?;
    let spool = Spool::open(&run.events()).with_context(|| format!("{}", run.events().display()))?;
    let spool = Arc::new(spool);
    let (calls, received) = mpsc::channel(CALL_QUEUE);
    let (ending, ended) = watch::channel(false);
    let control = listen(&run.worker())?;
    let server = tokio::spawn(server::serve(control, calls, Arc::clone(&spool), ended));
    tokio::spawn(logs::keep_short(run.clone()));
    let end = run_machine(run, record, Arc::clone(&spool), received).await;
    ending.send_replace(true);
    let _ = tokio::time::timeout(FAREWELL, server).await;
    end
}

async fn run_machine(
    run: RunDir,
    record: LaunchRecord,
    spool: Arc<Spool>,
    calls: mpsc::Receiver<server::Call>,
) -> Result<End> {
    let found = adopt(&run).context("QEMU of this run folder cannot be found")?;
    let instance = instance::read(&run)
        .with_context(|| format!("{} cannot be read", run.instance().display()))?
        .unwrap_or_default();
    let accel = match choose_accel(&run, &record).await {
        Ok(accel) => accel,
        Err(error) if found.is_none() => return Ok(fail_early(&run, &spool, &chain_of(error.as_ref()))),
        Err(error) => return Err(error),
    };
    let disks = match open_disks(&run, &record, found.as_ref(), &spool).await {
        Ok(disks) => disks,
        Err(error) if found.is_none() => return Ok(fail_early(&run, &spool, &chain_of(&error))),
        Err(error) => return Err(error).context("QEMU lives, but its disks cannot be served"),
    };
    let (serial, port) = watch::channel(None);
    let past = found.as_ref().map(|_| console::past_of(&run.serial_log())).unwrap_or_default();
    tokio::spawn(console::serve(listen(&run.console())?, port, past));
    let parts = Parts { run, record, spool, disks: Arc::new(disks), accel, instance, serial, calls };
    Ok(Owner::new(parts).run(found).await)
}

async fn choose_accel(run: &RunDir, record: &LaunchRecord) -> Result<Choice> {
    let facts = accel::host_facts(&record.qemu, &accel_cache(run)).await;
    Ok(accel::choose(record.spec.accel, &facts.for_user(record.qemu_uid_gid))?)
}

/// The result of the probe is the host's, not the machine's: next to all run folders.
fn accel_cache(run: &RunDir) -> PathBuf {
    run.dir().parent().unwrap_or(run.dir()).join("kvm-probe.json")
}

/// The first opening must succeed. For a living QEMU the disks are worth waiting for: its guest is stopped, not lost.
async fn open_disks(
    run: &RunDir,
    record: &LaunchRecord,
    living: Option<&QemuProcess>,
    spool: &Spool,
) -> Result<DiskSet, DisksError> {
    let deadline = tokio::time::Instant::now() + REOPEN_PATIENCE;
    let gid = record.qemu_uid_gid.map(|(_, gid)| gid);
    let mut told = false;
    loop {
        let (run, spec) = (run.clone(), record.spec.clone());
        let opened = tokio::task::spawn_blocking(move || DiskSet::open(&run, &spec, gid)).await;
        let error = match opened {
            Ok(Ok(disks)) => return Ok(disks),
            Ok(Err(error)) => error,
            Err(panic) => DisksError::Failed(panic.to_string()),
        };
        if living.is_none() || tokio::time::Instant::now() > deadline {
            return Err(error);
        }
        if !std::mem::replace(&mut told, true) {
            spool.append(now_unix_ms(), WorkerEvent::Warning { message: chain_of(&error) });
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Nothing was started: says why and puts the record away.
fn fail_early(run: &RunDir, spool: &Spool, reason: &str) -> End {
    tracing::error!(reason, "the machine cannot be started");
    let (from, to) = (VmState::Starting, VmState::Failed);
    spool.append(now_unix_ms(), WorkerEvent::State { from, to, reason: reason.to_owned() });
    if let Err(error) = std::fs::rename(run.launch(), run.ended()) {
        tracing::error!(%error, "the launch record could not be put away");
    }
    End::Failed
}

fn listen(socket: &Path) -> Result<UnixListener> {
    let context = || format!("{} cannot be opened", socket.display());
    durable::remove(socket).with_context(context)?;
    let listener = UnixListener::bind(socket).with_context(context)?;
    share_with(socket, None).with_context(context)?;
    Ok(listener)
}

fn now_unix_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

//! The worker process: from the run folder to the end of the machine.

use crate::console;
use crate::control::LaunchRecord;
use crate::durable;
use crate::events::Spool;
use crate::instance;
use crate::lock;
use crate::logs;
use crate::opening::Opening;
use crate::owner::{End, Owner, Parts};
use crate::report::chain_of;
use crate::run_dir::{RunDir, restrict_new_files, share_with};
use crate::server;
use anyhow::{Context, Result, bail};
use backstay_qemu::accel::{self, Choice};
use backstay_qemu::process::adopt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tracing_subscriber::EnvFilter;

/// Requests that may wait for the owner.
const CALL_QUEUE: usize = 64;
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
    // A worker that takes over a QEMU starts none, and opens as many disks.
    backstay_qemu::process::raise_open_files_limit();
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
    let process = adopt(&run).context("QEMU of this run folder cannot be found")?;
    let instance = instance::read(&run)
        .with_context(|| format!("{} cannot be read", run.instance().display()))?
        .unwrap_or_default();
    let accel = choose_accel(&run, &record).await;
    if process.is_none() && !instance.ran {
        crate::saved_state::unmark(&record).await;
    }
    let mut opening = Opening::new(run, record, spool, instance, calls, process);
    let accel = match accel {
        Ok(accel) => accel,
        Err(error) if opening.process.is_none() => return Ok(opening.fail(&chain_of(error.as_ref()))),
        Err(error) => return Err(error),
    };
    let disks = match opening.disks().await {
        Ok(disks) => Arc::new(disks),
        Err(end) => return Ok(end),
    };
    let Opening { run, record, spool, instance, calls, process, .. } = opening;
    let (serial, port) = watch::channel(None);
    let past = process.as_ref().map(|_| console::past_of(&run.serial_log())).unwrap_or_default();
    tokio::spawn(console::serve(listen(&run.console())?, port, past));
    let parts = Parts { run, record, spool, disks, accel, instance, serial, calls };
    Ok(Owner::new(parts).run(process).await)
}

async fn choose_accel(run: &RunDir, record: &LaunchRecord) -> Result<Choice> {
    let facts = accel::host_facts(&record.qemu, &accel_cache(run)).await;
    Ok(accel::choose(record.spec.accel, &facts.for_user(record.qemu_uid_gid))?)
}

/// The result of the probe is the host's, not the machine's: next to all run folders.
fn accel_cache(run: &RunDir) -> PathBuf {
    run.dir().parent().unwrap_or(run.dir()).join("kvm-probe.json")
}

fn listen(socket: &Path) -> Result<UnixListener> {
    let context = || format!("{} cannot be opened", socket.display());
    durable::remove(socket).with_context(context)?;
    let listener = UnixListener::bind(socket).with_context(context)?;
    share_with(socket, None).with_context(context)?;
    Ok(listener)
}

//! The one task that owns the machine: selects an event, applies it, ends with the invariants restored.
//!
//! ```text
//!   control socket ─ calls ──┐
//!   QEMU ─ events, death ────┤
//!   checkpoint job ──────────┼─► select ─► apply ─► state, events, replies
//!   commands under way ──────┤
//!   timers ──────────────────┘
//! ```
//! What may take long (starting QEMU, commands that wait for disks, checkpoints) runs in tasks of its own that report
//! back, so that this task always answers.

mod calls;
mod checkpoints;
mod death;
mod guest;
mod select;

use crate::checkpoint::job::Progress;
use crate::checkpoint::plan::Plan;
use crate::console::SerialPort;
use crate::control::{CheckpointOutcome, LaunchRecord, Reply, WorkerError, WorkerErrorCode, WorkerEvent};
use crate::disks::DiskSet;
use crate::events::Spool;
use crate::instance::{self, Instance};
use crate::report::chain_of;
use crate::run_dir::RunDir;
use crate::server::Call;
use crate::start::{Machine, StartError, Started, start};
use backstay_model::{CheckpointId, DriveSlot, VmState};
use backstay_qemu::accel::Choice;
use backstay_qemu::process::QemuProcess;
use backstay_qemu::qmp::{Qmp, QmpError, QmpEvent};
use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

type Answer = Result<Reply, WorkerError>;
type ReplyTo = oneshot::Sender<Answer>;

/// How the worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The machine is off or saved.
    Done,
    /// The machine failed.
    Failed,
    /// The machine goes on; another worker will take it over.
    HandOver,
}

/// What the owner needs from the start.
#[derive(Debug)]
pub struct Parts {
    /// The run folder.
    pub run: RunDir,
    /// What to run.
    pub record: LaunchRecord,
    /// Where events go.
    pub spool: Arc<Spool>,
    /// The open drives.
    pub disks: Arc<DiskSet>,
    /// The accelerator for the next start.
    pub accel: Choice,
    /// What a former worker left.
    pub instance: Instance,
    /// Tells the console where the serial port is.
    pub serial: watch::Sender<SerialPort>,
    /// Requests.
    pub calls: mpsc::Receiver<Call>,
}

struct Starting {
    task: JoinHandle<Result<Started, StartError>>,
    cancel: watch::Sender<bool>,
}

/// A checkpoint or save under way.
struct ActiveJob {
    plan: Plan,
    progress: Arc<Progress>,
    task: JoinHandle<CheckpointOutcome>,
    /// Fires when the guest runs again; taken when it has.
    running: Option<oneshot::Receiver<()>>,
    reply: Option<ReplyTo>,
}

impl ActiveJob {
    /// QEMU is stopped and continued by the job: its state says nothing about the machine's.
    fn holds_guest(&self) -> bool {
        self.running.is_some()
    }
}

/// The guest is stopped because a disk request failed.
struct Stall {
    slot: Option<DriveSlot>,
    next_try: Instant,
    interval: Duration,
    /// Errors since the last attempt to continue.
    errors: u32,
}

/// The guest was asked to shut down.
struct AskedToStop {
    patience: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Pause,
    Resume,
    Reset,
    Shutdown,
}

struct VerbDone {
    verb: Verb,
    result: Result<(), QmpError>,
    reply: ReplyTo,
}

/// The owner.
pub struct Owner {
    run: RunDir,
    record: LaunchRecord,
    spool: Arc<Spool>,
    disks: Arc<DiskSet>,
    accel: Choice,
    instance: Instance,
    serial: watch::Sender<SerialPort>,
    calls: mpsc::Receiver<Call>,

    state: VmState,
    reason: Option<String>,
    starting: Option<Starting>,
    machine: Option<Machine>,
    guest_events: Option<broadcast::Receiver<QmpEvent>>,
    /// The last save by QEMU itself locked the paused state.
    postmigrate: bool,
    stall: Option<Stall>,
    asked_to_stop: Option<AskedToStop>,
    /// Why QEMU is about to end in order, as its `SHUTDOWN` event said.
    shutdown_cause: Option<String>,
    /// Callers of turn-off; once there is one, the machine ends.
    turning_off: Option<Vec<ReplyTo>>,
    /// The save is complete: the end of QEMU is no failure.
    saved: bool,
    job: Option<ActiveJob>,
    outcomes: HashMap<CheckpointId, CheckpointOutcome>,
    verbs: JoinSet<VerbDone>,
    restart_at: Option<Instant>,
    terminate: Option<Signal>,
    end: Option<End>,
}

impl Owner {
    /// An owner of a machine that does not run yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { run, record, spool, disks, accel, instance, serial, calls } = parts;
        let outcomes = checkpoints::remembered(&spool);
        Self {
            run,
            record,
            spool,
            disks,
            accel,
            instance,
            serial,
            calls,
            state: VmState::Off,
            reason: None,
            starting: None,
            machine: None,
            guest_events: None,
            postmigrate: false,
            stall: None,
            asked_to_stop: None,
            shutdown_cause: None,
            turning_off: None,
            saved: false,
            job: None,
            outcomes,
            verbs: JoinSet::new(),
            restart_at: None,
            terminate: select::terminate_signal(),
            end: None,
        }
    }

    /// Runs the machine to its end. `found`: QEMU of a former worker.
    pub async fn run(mut self, found: Option<QemuProcess>) -> End {
        for message in self.disks.warnings() {
            self.tell(WorkerEvent::Warning { message });
        }
        match found {
            Some(process) => self.take_over(process).await,
            None => self.first_start().await,
        }
        loop {
            if let Some(end) = self.end {
                return end;
            }
            let event = self.select().await;
            self.apply(event).await;
        }
    }

    fn tell(&self, event: WorkerEvent) {
        tracing::info!(event = %serde_json::to_string(&event).unwrap_or_default(), "event");
        self.spool.append(now_unix_ms(), event);
    }

    fn set_state(&mut self, to: VmState, reason: &str) {
        self.reason = Some(reason.to_owned());
        if to != self.state {
            let from = std::mem::replace(&mut self.state, to);
            self.tell(WorkerEvent::State { from, to, reason: reason.to_owned() });
        }
    }

    fn remember(&self) {
        if let Err(error) = instance::write(&self.run, &self.instance) {
            tracing::error!(%error, "the next worker will not know this machine's history");
        }
    }

    fn qmp(&self) -> Option<Qmp> {
        self.machine.as_ref().map(|machine| machine.qmp.clone())
    }

    /// No QEMU lives: start one. A saved state is loaded only if the guest has not run since.
    async fn first_start(&mut self) {
        use backstay_qemu::process::{LastExit, last_exit};
        if self.instance.ran && last_exit(&self.run) != LastExit::NeverStarted {
            // QEMU ended while no worker watched.
            self.clean_up_after_job(None).await;
            return self.ended_unwatched(last_exit(&self.run)).await;
        }
        self.instance = Instance::default();
        self.begin_start("starting");
    }

    fn begin_start(&mut self, reason: &str) {
        self.set_state(VmState::Starting, reason);
        self.instance.accelerator = self.accel.accel.as_str().into();
        self.instance.accelerator_reason.clone_from(&self.accel.reason);
        self.instance.started_unix_ms = now_unix_ms();
        self.remember();
        let (run, record, accel) = (self.run.clone(), self.record.clone(), self.accel.clone());
        let restore = self.record.restore.clone().filter(|_| !self.instance.ran);
        let (cancel, cancelled) = watch::channel(false);
        let task =
            tokio::spawn(async move { start(&run, &record, &accel, restore.as_ref(), cancelled).await });
        self.starting = Some(Starting { task, cancel });
    }

    async fn started(&mut self, result: Result<Started, StartError>) {
        self.starting = None;
        let started = match result {
            Ok(started) => started,
            Err(StartError::Cancelled) => return self.finish(VmState::Off, "turned off", End::Done).await,
            Err(error) => {
                let reason = chain_of(&error);
                return self.finish(VmState::Failed, &reason, End::Failed).await;
            }
        };
        for message in started.warnings {
            self.tell(WorkerEvent::Warning { message });
        }
        if self.accel.warning && self.instance.recoveries.is_empty() {
            let message = format!("the guest runs much slower than this host could: {}", self.accel.reason);
            self.tell(WorkerEvent::Warning { message });
        }
        self.hold(started.machine);
        if self.turning_off.is_some() {
            return self.quit_qemu();
        }
        if started.run && !self.record.start_paused {
            self.let_guest_run().await;
        } else {
            self.set_state(VmState::Paused, "started without running");
        }
    }

    /// The first time the guest executes its saved state is used up.
    async fn let_guest_run(&mut self) {
        self.instance.ran = true;
        self.remember();
        let Some(qmp) = self.qmp() else { return };
        if let Err(error) = qmp.cont().await {
            self.tell(WorkerEvent::Warning { message: chain_of(&error) });
        }
        self.refresh("started").await;
    }

    fn hold(&mut self, machine: Machine) {
        self.instance.qemu_version = machine.qmp.greeting().version_text();
        self.remember();
        self.guest_events = Some(machine.qmp.events());
        self.machine = Some(machine);
        self.serial.send_replace(Some(self.run.serial()));
    }

    /// A QEMU of a former worker lives: its disks are served again already.
    async fn take_over(&mut self, process: QemuProcess) {
        self.state = VmState::Starting;
        let pid = process.pid();
        // While its disks were away QEMU may have hung in a command; it answers when the disks are back.
        let qmp = match Qmp::connect(&self.run.qmp(), Duration::from_secs(30)).await {
            Ok(qmp) => qmp,
            Err(error) => {
                let reason = format!("QEMU (process {pid}) does not answer: {}", chain_of(&error));
                let _ = process.kill();
                process.wait().await;
                return self.finish(VmState::Failed, &reason, End::Failed).await;
            }
        };
        let machine = Machine { process: Arc::new(process), qmp };
        if !self.instance.ran {
            // It was being started, perhaps half through a saved state: nothing is lost by starting anew.
            let _ = machine.process.kill();
            machine.process.wait().await;
            return self.begin_start("starting");
        }
        self.hold(machine);
        self.tell(WorkerEvent::Adopted { qemu_pid: pid, gap_ms: None });
        let qmp = self.qmp();
        self.clean_up_after_job(qmp.as_ref()).await;
        self.refresh("taken over from a former worker").await;
    }

    /// The machine is over: closes the disks, tells everyone, ends the worker.
    async fn finish(&mut self, state: VmState, reason: &str, end: End) {
        self.machine = None;
        self.guest_events = None;
        if let Some(job) = self.job.take() {
            job.progress.cancel();
            let outcome = job.task.await.unwrap_or_else(|panic| checkpoints::panicked(&panic));
            self.conclude(&job.plan, job.reply, outcome);
        }
        let disks = Arc::clone(&self.disks);
        let troubles = tokio::task::spawn_blocking(move || disks.close()).await.unwrap_or_default();
        for message in troubles {
            self.tell(WorkerEvent::Warning { message });
        }
        self.set_state(state, reason);
        for stale in [self.run.instance(), self.run.process_record(), self.run.pid()] {
            let _ = crate::durable::remove(&stale);
        }
        if let Err(error) = std::fs::rename(self.run.launch(), self.run.ended()) {
            tracing::error!(%error, "the launch record could not be put away");
        }
        for reply in self.turning_off.take().into_iter().flatten() {
            let _ = reply.send(Ok(Reply::Done));
        }
        self.end = Some(end);
    }

    /// Another worker takes over: closes the disks and leaves QEMU alone.
    async fn hand_over(&mut self) {
        if let Some(job) = self.job.take() {
            job.progress.cancel();
            let outcome = job.task.await.unwrap_or_else(|panic| checkpoints::panicked(&panic));
            self.conclude(&job.plan, job.reply, outcome);
        }
        let disks = Arc::clone(&self.disks);
        let _ = tokio::task::spawn_blocking(move || disks.close()).await;
        self.end = Some(End::HandOver);
    }
}

fn now_unix_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn refuse(message: impl Into<String>) -> Answer {
    Err(WorkerError { code: WorkerErrorCode::Precondition, message: message.into() })
}

fn fail(error: &dyn Error) -> Answer {
    Err(WorkerError { code: WorkerErrorCode::Failed, message: chain_of(error) })
}

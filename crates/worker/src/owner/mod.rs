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
mod compact;
mod grow;
mod hardware;
mod machine;
mod merge;
mod plug;
mod relocate;
mod saved;
mod select;
mod space;
mod steps;

use crate::checkpoint::job::Progress;
use crate::checkpoint::plan::Plan;
use crate::console::SerialPort;
use crate::control::{
    CheckpointOutcome, CompactOutcome, LaunchRecord, MergeOutcome, MoveOutcome, Reply, WorkerError,
    WorkerErrorCode, WorkerEvent,
};
use crate::disks::DiskSet;
use crate::events::Spool;
use crate::guard::Guard;
use crate::instance::{self, Instance};
use crate::processors::{Control, ProcessorOrder};
use crate::report::chain_of;
use crate::run_dir::RunDir;
use crate::server::Call;
use crate::start::{Machine, StartError, Started};
use backstay_model::{CheckpointId, DriveSlot, VmState};
use backstay_qemu::accel::Choice;
use backstay_qemu::lifecycle::{Lifecycle, RecoveryPolicy};
use backstay_qemu::process::QemuProcess;
use backstay_qemu::qmp::{Qmp, QmpEvent};
use checkpoints::Asking;
use space::Looking;
use std::collections::HashMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use steps::{Commander, Done};
use tokio::signal::unix::Signal;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use plug::Plugging;
pub(crate) use select::{terminate_signal, terminated};

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
    guard: Guard,
    looking: Looking,

    /// What QEMU's events and the user's wishes mean.
    life: Lifecycle,
    clock: Clock,
    /// Keeps the virtual processors where they belong.
    processors: Control,
    /// What was told last.
    state: VmState,
    reason: Option<String>,
    starting: Option<Starting>,
    machine: Option<Machine>,
    commander: Option<Commander>,
    /// Answers of commands, of any QEMU so far.
    done: mpsc::UnboundedReceiver<Done>,
    done_sender: mpsc::UnboundedSender<Done>,
    guest_events: Option<broadcast::Receiver<QmpEvent>>,
    reconnecting: Option<JoinHandle<Option<Qmp>>>,
    /// Callers of turn-off.
    turning_off: Vec<ReplyTo>,
    /// The descriptor of a save that is durable: the end of QEMU is what was wanted.
    saved: Option<PathBuf>,
    /// The guest has executed, or may have under a former worker.
    executed: bool,
    /// The guest was seen to execute, and what its saved state left was removed.
    state_spent: bool,
    asking: Option<Asking>,
    job: Option<ActiveJob>,
    outcomes: HashMap<CheckpointId, CheckpointOutcome>,
    merge: Option<merge::ActiveMerge>,
    plug: Option<plug::ActivePlug>,
    moving: Option<relocate::ActiveMove>,
    /// How the last move ended.
    moved: Option<(PathBuf, MoveOutcome)>,
    compact: Option<compact::ActiveCompact>,
    /// How the last compaction ended.
    compacted: Option<(DriveSlot, CompactOutcome)>,
    /// How the last merge ended.
    merged: HashMap<PathBuf, MergeOutcome>,
    terminate: Option<Signal>,
    end: Option<End>,
}

/// The lifecycle's time: since the Unix epoch when the worker starts, then by a clock that nobody sets.
#[derive(Clone, Copy, Debug)]
struct Clock {
    started: Instant,
    offset: Duration,
}

impl Clock {
    fn start() -> Self {
        let offset = Duration::from_millis(u64::try_from(now_unix_ms()).unwrap_or(0));
        Self { started: Instant::now(), offset }
    }

    fn now(self) -> Duration {
        self.offset + self.started.elapsed()
    }

    fn instant(self, at: Duration) -> Instant {
        self.started + at.saturating_sub(self.offset)
    }
}

impl Owner {
    /// An owner of a machine that does not run yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { run, record, spool, disks, accel, instance, serial, calls } = parts;
        let outcomes = checkpoints::remembered(&spool);
        let executed = instance.ran;
        let state = spool.last_state().unwrap_or(VmState::Off);
        let policy = RecoveryPolicy::new(record.spec.recovery);
        let restarts = instance.recoveries.iter().map(|&ms| Duration::from_millis(ms)).collect();
        let (done_sender, done) = mpsc::unbounded_channel();
        let processors = Control::start(record.processors.clone(), record.spec.id, Arc::clone(&spool));
        Self {
            run,
            guard: Guard::new(record.guard, instance.low_space),
            looking: Looking::new(),
            record,
            spool,
            disks,
            accel,
            instance,
            serial,
            calls,
            life: Lifecycle::new(policy, restarts),
            clock: Clock::start(),
            processors,
            state,
            reason: None,
            starting: None,
            machine: None,
            commander: None,
            done,
            done_sender,
            guest_events: None,
            reconnecting: None,
            turning_off: Vec::new(),
            saved: None,
            executed,
            state_spent: false,
            asking: None,
            job: None,
            outcomes,
            merge: None,
            plug: None,
            moving: None,
            moved: None,
            compact: None,
            compacted: None,
            merged: HashMap::new(),
            terminate: select::terminate_signal(),
            end: None,
        }
    }

    /// Runs the machine to its end. `found`: QEMU of a former worker.
    pub async fn run(mut self, found: Option<QemuProcess>) -> End {
        for message in self.disks.warnings() {
            self.tell(WorkerEvent::Warning { message });
        }
        self.look_first().await;
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

    /// What the next worker is better off knowing.
    fn remember(&self) {
        if let Err(error) = instance::write(&self.run, &self.instance) {
            tracing::error!(%error, "the next worker will not know this machine's history");
        }
    }

    /// What the next worker must know: changes the record, or says why it stays as it is.
    fn note(&mut self, change: impl FnOnce(&mut Instance)) -> Result<(), String> {
        let mut next = self.instance.clone();
        change(&mut next);
        if next != self.instance {
            instance::write(&self.run, &next).map_err(|error| {
                let path = self.run.instance();
                format!("{} cannot be written, and without it the guest would not survive the death of its worker: {error}; make space there", path.display())
            })?;
            self.instance = next;
        }
        Ok(())
    }

    /// What the processors get now.
    fn processor_order(&self) -> ProcessorOrder {
        let at_launch = ProcessorOrder { control: self.record.spec.cpu, weight: self.record.cpu_weight };
        self.instance.processors.unwrap_or(at_launch)
    }

    fn qmp(&self) -> Option<Qmp> {
        self.machine.as_ref().map(|machine| machine.qmp.clone())
    }

    /// The machine is over: closes the disks, tells everyone, ends the worker.
    async fn finish(&mut self, state: VmState, reason: &str) {
        self.end_plug().await;
        self.let_go();
        self.end_job().await;
        self.end_merge().await;
        self.end_move().await;
        self.end_compact().await;
        self.processors.remove().await;
        let disks = Arc::clone(&self.disks);
        let files = disks.files();
        let troubles = tokio::task::spawn_blocking(move || disks.close()).await.unwrap_or_default();
        for message in troubles {
            self.tell(WorkerEvent::Warning { message });
        }
        let state = self.seal(state, files).await;
        self.set_state(state, reason);
        self.run.put_away();
        for reply in self.turning_off.drain(..) {
            let _ = reply.send(Ok(Reply::Done));
        }
        self.end = Some(if state == VmState::Failed { End::Failed } else { End::Done });
    }

    async fn end_job(&mut self) {
        self.stop_asking();
        let Some(job) = self.job.take() else { return };
        job.progress.cancel();
        let outcome = job.task.await.unwrap_or_else(|panic| checkpoints::panicked(&panic));
        if job.plan.save && matches!(outcome, CheckpointOutcome::Complete { .. }) {
            self.saved = Some(job.plan.descriptor_file.clone());
        }
        self.conclude(&job.plan, job.reply, outcome);
    }

    /// Another worker takes over: closes the disks and leaves QEMU alone.
    async fn hand_over(&mut self) {
        self.leave_plug();
        self.end_job().await;
        self.end_merge().await;
        self.end_move().await;
        self.end_compact().await;
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

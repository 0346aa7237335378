//! Before there is an owner: opening the disks. A machine that is started needs them now. For a QEMU that lives they are
//! worth any wait, because its guest stands still and is not lost; meanwhile it can be looked at and turned off.

use crate::checkpoint::descriptor::read_descriptor;
use crate::checkpoint::job::Intent;
use crate::control::{
    CheckpointOutcome, LaunchRecord, PROTOCOL_VERSION, Reply, Request, WorkerError, WorkerErrorCode,
    WorkerEvent, WorkerStatus,
};
use crate::disks::{DiskSet, DisksError};
use crate::durable;
use crate::events::Spool;
use crate::instance::Instance;
use crate::owner::{End, terminate_signal, terminated};
use crate::report::chain_of;
use crate::run_dir::RunDir;
use crate::server::Call;
use crate::start::last_words;
use backstay_model::{CheckpointId, MemoryMethod, VmState};
use backstay_qemu::process::{ExitReason, QemuProcess};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How long a disk may be locked by somebody who only looks at it, or not answer, before that is told.
const MOMENT: Duration = Duration::from_secs(2);
/// Between two attempts within that time.
const SOON: Duration = Duration::from_millis(50);
/// Between two attempts after it.
const LATER: Duration = Duration::from_millis(500);
/// How long a killed QEMU may take to end.
const KILLED: Duration = Duration::from_secs(20);

type Attempt = JoinHandle<Result<DiskSet, DisksError>>;

/// What a machine has before its disks are open.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) run: RunDir,
    pub(crate) record: LaunchRecord,
    pub(crate) spool: Arc<Spool>,
    pub(crate) instance: Instance,
    pub(crate) calls: mpsc::Receiver<Call>,
    /// QEMU of a former worker.
    pub(crate) process: Option<QemuProcess>,
    /// How that QEMU ended while its disks could not be opened.
    died: Option<ExitReason>,
    /// Why the guest stands still. Until it does, requests wait for the owner.
    stalled: Option<String>,
}

enum Next {
    Opened(Result<DiskSet, DisksError>),
    QemuEnded(ExitReason),
    Terminate,
    Slow,
    Call(Call),
}

impl Opening {
    pub(crate) fn new(
        run: RunDir,
        record: LaunchRecord,
        spool: Arc<Spool>,
        instance: Instance,
        calls: mpsc::Receiver<Call>,
        process: Option<QemuProcess>,
    ) -> Self {
        Self { run, record, spool, instance, calls, process, died: None, stalled: None }
    }

    /// Opens the disks. An error is how the machine ended, or that another worker is to go on.
    pub(crate) async fn disks(&mut self) -> Result<DiskSet, End> {
        let mut terminate = terminate_signal();
        let mut deadline = Instant::now() + MOMENT;
        let mut attempt = self.attempt(Duration::ZERO);
        loop {
            match self.next(&mut attempt, &mut terminate, deadline).await {
                Next::Opened(Ok(disks)) => return Ok(disks),
                Next::Opened(Err(error)) => {
                    let brief = error.is_in_use() && Instant::now() < deadline;
                    let reason = chain_of(&error);
                    tracing::info!(reason, "the disks cannot be opened yet");
                    match (brief, &self.process) {
                        (true, _) => {}
                        (false, Some(_)) => self.stand_still(reason),
                        (false, None) => return Err(self.fail(&reason)),
                    }
                    attempt = self.attempt(if brief { SOON } else { LATER });
                }
                Next::Slow => self.stand_still("the storage of its disks does not answer".into()),
                // Whether it is started again is for the owner to decide, if the disks can be opened now.
                Next::QemuEnded(reason) => {
                    (self.process, self.died) = (None, Some(reason));
                    deadline = Instant::now() + MOMENT;
                }
                Next::Terminate => return Err(End::HandOver),
                Next::Call(call) => self.answer(call).await?,
            }
        }
    }

    fn attempt(&self, after: Duration) -> Attempt {
        let (run, spec) = (self.run.clone(), self.record.spec.clone());
        let (gid, cache) = (self.record.qemu_uid_gid.map(|(_, gid)| gid), self.record.disk_cache);
        tokio::spawn(async move {
            sleep(after).await;
            let opened = tokio::task::spawn_blocking(move || DiskSet::open(&run, &spec, gid, cache)).await;
            opened.unwrap_or_else(|panic| Err(DisksError::Failed(panic.to_string())))
        })
    }

    async fn next(
        &mut self,
        attempt: &mut Attempt,
        terminate: &mut Option<Signal>,
        deadline: Instant,
    ) -> Next {
        let process = self.process.as_ref();
        let ended = async {
            match process {
                Some(process) => process.wait().await,
                None => pending().await,
            }
        };
        let (lives, stalled) = (process.is_some(), self.stalled.is_some());
        tokio::select! {
            biased;
            opened = attempt => {
                Next::Opened(opened.unwrap_or_else(|panic| Err(DisksError::Failed(panic.to_string()))))
            }
            reason = ended => Next::QemuEnded(reason),
            () = terminated(terminate) => Next::Terminate,
            () = sleep_until(deadline), if lives && !stalled => Next::Slow,
            call = self.calls.recv(), if stalled => call.map_or(Next::Terminate, Next::Call),
        }
    }

    /// Told once; what hinders the disks later is in the status only.
    fn stand_still(&mut self, reason: String) {
        if self.stalled.replace(reason.clone()).is_none() {
            self.tell(WorkerEvent::State { from: self.told(), to: VmState::PausedCritical, reason });
        }
    }

    fn told(&self) -> VmState {
        self.spool.last_state().unwrap_or(VmState::Off)
    }

    fn tell(&self, event: WorkerEvent) {
        tracing::info!(event = %serde_json::to_string(&event).unwrap_or_default(), "event");
        self.spool.append(jiff::Timestamp::now().as_millisecond(), event);
    }

    /// No QEMU runs and none can: says why and puts the record away.
    pub(crate) fn fail(&self, reason: &str) -> End {
        if let Some(died) = self.died {
            let action = "stays off: its disks cannot be opened".to_owned();
            let log = last_words(&self.run);
            self.tell(WorkerEvent::QemuDied { reason: died.to_string(), log, action });
        }
        let from = if self.stalled.is_some() { self.told() } else { VmState::Starting };
        self.tell(WorkerEvent::State { from, to: VmState::Failed, reason: reason.to_owned() });
        self.run.put_away();
        End::Failed
    }

    async fn answer(&mut self, call: Call) -> Result<(), End> {
        let Call { request, reply } = call;
        let answer = match request {
            Request::Hello => Ok(Reply::Hello {
                protocol: PROTOCOL_VERSION,
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
            }),
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::CheckpointStatus { checkpoint } => Ok(Reply::Checkpoint(self.checkpoint(checkpoint))),
            Request::TurnOff => match self.turn_off().await {
                Ok(()) => {
                    let _ = reply.send(Ok(Reply::Done));
                    return Err(End::Done);
                }
                Err(message) => Err(WorkerError { code: WorkerErrorCode::Failed, message }),
            },
            _ => {
                let (name, why) = (&self.record.spec.name, self.stalled.as_deref().unwrap_or_default());
                let message = format!(
                    "the guest of '{name}' stands still until its disks can be opened, or it is turned off: {why}"
                );
                Err(WorkerError { code: WorkerErrorCode::Precondition, message })
            }
        };
        let _ = reply.send(answer);
        Ok(())
    }

    fn status(&self) -> WorkerStatus {
        WorkerStatus {
            state: VmState::PausedCritical,
            reason: self.stalled.clone(),
            spec: self.record.spec.clone(),
            qemu_pid: self.process.as_ref().map(QemuProcess::pid),
            accelerator: self.instance.accelerator.clone(),
            accelerator_reason: self.instance.accelerator_reason.clone(),
            qemu_version: self.instance.qemu_version.clone(),
            started_unix_ms: self.instance.started_unix_ms,
            recoveries: 0,
            last_event: self.spool.last(),
            console_socket: self.run.console(),
            processors: String::new(),
            vnc_socket: self.run.vnc(),
        }
    }

    /// What became of one that the former worker was taking is decided when the disks are open.
    fn checkpoint(&self, checkpoint: CheckpointId) -> CheckpointOutcome {
        let finished =
            self.spool.after(0).unwrap_or_default().into_iter().find_map(|frame| match frame.event {
                WorkerEvent::CheckpointFinished { checkpoint: id, outcome } if id == checkpoint => {
                    Some(outcome)
                }
                _ => None,
            });
        let begun = || match durable::read_json::<Intent>(&self.run.intent()) {
            Ok(intent) => intent.is_some_and(|intent| intent.checkpoint == checkpoint),
            Err(_) => true,
        };
        match finished {
            Some(outcome) => outcome,
            None if begun() => CheckpointOutcome::Writing {
                pause_us: 0,
                written: 0,
                total: self.record.spec.memory_mib << 20,
                method: MemoryMethod::Background,
                method_reason: "its worker died; it is settled when the disks can be opened".into(),
            },
            None => CheckpointOutcome::Unknown,
        }
    }

    /// Pulls the plug of a guest that stands still. Its disks are as it left them.
    async fn turn_off(&self) -> Result<(), String> {
        if let Some(process) = &self.process {
            let pid = process.pid();
            process.kill().map_err(|error| format!("QEMU (process {pid}) cannot be ended: {error}"))?;
            if timeout(KILLED, process.wait()).await.is_err() {
                return Err(format!("QEMU (process {pid}) was killed and has not ended yet: try again"));
            }
        }
        if let Ok(Some(intent)) = durable::read_json::<Intent>(&self.run.intent()) {
            let whole =
                read_descriptor(&intent.descriptor_file).is_ok_and(|d| d.checkpoint == intent.checkpoint);
            if !whole {
                intent.remove_memory();
            }
        }
        self.tell(WorkerEvent::State { from: self.told(), to: VmState::Off, reason: "turned off".into() });
        self.run.put_away();
        Ok(())
    }
}

//! QEMU coming and going.

use super::{ActiveJob, Owner, Starting, now_unix_ms};
use crate::control::WorkerEvent;
use crate::instance::Instance;
use crate::report::chain_of;
use crate::start::{Machine, StartError, Started, start};
use backstay_model::VmState;
use backstay_qemu::lifecycle::Event as Life;
use backstay_qemu::process::{ExitReason, LastExit, QemuProcess, last_exit};
use backstay_qemu::qmp::{Qmp, RunState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long a QEMU that was found may take to answer: while its disks were away it may have hung in a command.
const ADOPT_PATIENCE: Duration = Duration::from_secs(30);
/// How long the control groups of the host may take before the guest runs without them.
const CONFINED: Duration = Duration::from_secs(30);
/// How long QEMU's last words may be on their way after its end.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Owner {
    /// No QEMU lives: start one, unless one has ended here while no worker watched.
    pub(super) async fn first_start(&mut self) {
        let last = last_exit(&self.run);
        self.clean_up_after_job(None).await;
        if self.saved.is_some() {
            return self.finish(VmState::Saved, "saved").await;
        }
        if self.instance.ran && last != LastExit::NeverStarted {
            let paused_by_user = self.instance.paused;
            self.feed(Life::Adopted { status: RunState::Running, paused_by_user }).await;
            let (reason, orderly) = match last {
                LastExit::InOrder => ("the guest shut down while no worker watched", true),
                _ => ("QEMU ended while no worker watched", false),
            };
            return self.feed(Life::Exited { reason: reason.into(), orderly }).await;
        }
        // Of a machine that may have run nothing is loaded twice.
        let spent = self.instance.ran && self.record.restore.as_ref().is_some_and(|from| from.once);
        self.instance = Instance {
            ran: spent,
            processors: self.instance.processors,
            removed: std::mem::take(&mut self.instance.removed),
            ..Instance::default()
        };
        self.begin_start("starting");
    }

    pub(super) fn begin_start(&mut self, reason: &str) {
        self.set_state(self.life.state(), reason);
        self.drop_plug();
        // Only if the guest has not run since.
        let restore = self.state_to_load();
        self.instance.accelerator = self.accel.accel.as_str().into();
        self.instance.accelerator_reason.clone_from(&self.accel.reason);
        self.instance.started_unix_ms = now_unix_ms();
        self.remember();
        let (run, record, accel) = (self.run.clone(), self.record.clone(), self.accel.clone());
        let (cancel, cancelled) = watch::channel(false);
        let (processors, order) = (self.processors.clone(), self.processor_order());
        let sectors = self.disks.large_sectors();
        let task = tokio::spawn(async move {
            let started = start(&run, &record, &accel, restore.as_ref(), sectors, cancelled).await?;
            // Before the first instruction of the guest. What hinders it is told there; the machine runs without.
            let Machine { process, qmp } = &started.machine;
            let _ = tokio::time::timeout(CONFINED, processors.apply(qmp.clone(), process.pid(), order)).await;
            Ok(started)
        });
        self.starting = Some(Starting { task, cancel });
    }

    pub(super) async fn started(&mut self, result: Result<Started, StartError>) {
        self.starting = None;
        let started = match result {
            Ok(started) => started,
            Err(error) => return self.feed(Life::StartFailed { reason: chain_of(&error) }).await,
        };
        for message in started.warnings {
            self.tell(WorkerEvent::Warning { message });
        }
        if self.accel.warning && self.instance.recoveries.is_empty() {
            let message = format!("the guest runs much slower than this host could: {}", self.accel.reason);
            self.tell(WorkerEvent::Warning { message });
        }
        let run = started.run && (self.instance.ran || !self.record.start_paused);
        if run
            && self.life.should_run()
            && let Err(reason) = self.about_to_run()
        {
            let _ = started.machine.process.kill();
            started.machine.process.wait().await;
            return self.feed(Life::StartFailed { reason }).await;
        }
        self.hold(started.machine);
        self.feed(Life::Ready { run }).await;
    }

    fn hold(&mut self, machine: Machine) {
        self.instance.qemu_version = machine.qmp.greeting().version_text();
        self.remember();
        self.talk_by(&machine.qmp);
        self.machine = Some(machine);
        self.serial.send_replace(Some(self.run.serial()));
    }

    /// Puts the virtual processors where they belong, once more: threads may be new.
    pub(super) fn confine(&self) {
        if let Some(Machine { process, qmp }) = &self.machine {
            drop(self.processors.apply(qmp.clone(), process.pid(), self.processor_order()));
        }
    }

    fn talk_by(&mut self, qmp: &Qmp) {
        self.guest_events = Some(qmp.events());
        self.commander =
            Some(super::Commander::start(qmp.clone(), Arc::clone(&self.disks), self.done_sender.clone()));
    }

    pub(super) fn let_go(&mut self) {
        self.machine = None;
        self.commander = None;
        self.guest_events = None;
        self.reconnecting = None;
        self.serial.send_replace(None);
    }

    /// A QEMU of a former worker lives: its disks are served again already.
    pub(super) async fn take_over(&mut self, process: QemuProcess) {
        let pid = process.pid();
        if !self.instance.ran {
            // It was being started, perhaps half through a saved state: nothing is lost by starting anew.
            let _ = process.kill();
            process.wait().await;
            return self.begin_start("starting");
        }
        let qmp = match Qmp::connect(&self.run.qmp(), ADOPT_PATIENCE).await {
            Ok(qmp) => qmp,
            Err(error) => {
                let _ = process.kill();
                process.wait().await;
                let paused_by_user = self.instance.paused;
                self.feed(Life::Adopted { status: RunState::Running, paused_by_user }).await;
                let reason =
                    format!("QEMU (process {pid}) did not answer and was killed: {}", chain_of(&error));
                return self.feed(Life::Exited { reason, orderly: false }).await;
            }
        };
        self.hold(Machine { process: Arc::new(process), qmp: qmp.clone() });
        self.tell(WorkerEvent::Adopted { qemu_pid: pid });
        self.confine();
        self.clean_up_after_job(Some(&qmp)).await;
        self.settle_plug(&qmp).await;
        self.settle_sizes(&qmp);
        if self.saved.is_some() {
            // All that was left to do is its end.
            if let Some(machine) = self.machine.clone() {
                let _ = machine.process.kill();
                machine.process.wait().await;
            }
            return self.finish(VmState::Saved, "saved").await;
        }
        match qmp.query_status().await {
            Ok(info) => {
                let paused_by_user = self.instance.paused;
                self.feed(Life::Adopted { status: info.status, paused_by_user }).await;
            }
            // It ended right now, which its process tells: it had run, so that is a case for the recovery action.
            Err(error) => {
                tracing::warn!(error = %chain_of(&error), "QEMU does not tell its state");
                let paused_by_user = self.instance.paused;
                self.feed(Life::Adopted { status: RunState::Running, paused_by_user }).await;
            }
        }
    }

    /// QEMU's process is over.
    pub(super) async fn ended(&mut self, reason: ExitReason) {
        self.read_last_words().await;
        self.end_save().await;
        self.end_plug().await;
        self.let_go();
        let orderly = match reason {
            ExitReason::Unknown => last_exit(&self.run) == LastExit::InOrder,
            known => known.is_success(),
        };
        self.feed(Life::Exited { reason: reason.to_string(), orderly }).await;
    }

    /// The reason of the end may still be on its way when the process is gone already.
    async fn read_last_words(&mut self) {
        let (Some(machine), Some(mut events)) = (self.machine.clone(), self.guest_events.take()) else {
            return;
        };
        let _ = tokio::time::timeout(LAST_WORDS, machine.qmp.closed()).await;
        while let Ok(event) = events.try_recv() {
            self.guest_event(&event).await;
        }
    }

    /// Events were missed, or the connection broke while QEMU lives.
    pub(super) async fn guest_unclear(&mut self) {
        let Some(machine) = self.machine.clone() else {
            self.guest_events = None;
            return;
        };
        if !machine.qmp.is_closed() {
            // Missed some: QEMU's state says what they were about.
            if let (Some(commander), false) =
                (&self.commander, self.job.as_ref().is_some_and(ActiveJob::holds_guest))
            {
                commander.query_after_loss();
            }
            return;
        }
        self.guest_events = None;
        // Usually QEMU is ending, which its process tells at once.
        if tokio::time::timeout(LAST_WORDS, machine.process.wait()).await.is_err() {
            self.commander = None;
            self.feed(Life::QmpLost).await;
        }
    }

    pub(super) fn reconnect(&mut self) {
        let path = self.run.qmp();
        self.reconnecting =
            Some(tokio::spawn(async move { Qmp::connect(&path, Duration::from_secs(5)).await.ok() }));
    }

    pub(super) async fn reconnected(&mut self, qmp: Option<Qmp>) {
        self.reconnecting = None;
        let (Some(qmp), Some(machine)) = (qmp, self.machine.clone()) else { return };
        self.talk_by(&qmp);
        self.machine = Some(Machine { qmp: qmp.clone(), ..machine });
        self.confine();
        if let Ok(info) = qmp.query_status().await {
            self.feed(Life::QmpBack(info.status)).await;
        }
    }
}

//! Requests from the control socket.

use super::{Answer, AskedToStop, Owner, ReplyTo, Verb, VerbDone, fail, refuse};
use crate::control::{
    CheckpointOutcome, PROTOCOL_VERSION, Reply, Request, WorkerError, WorkerErrorCode, WorkerEvent,
    WorkerStatus,
};
use crate::server::Call;
use backstay_model::VmState;
use backstay_qemu::qmp::Qmp;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a guest that was asked to shut down counts as stopping.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(120);
/// How long QEMU may take to quit before it is killed.
const QUIT_PATIENCE: Duration = Duration::from_secs(3);

impl Owner {
    pub(super) async fn call(&mut self, call: Call) {
        let Call { request, reply } = call;
        let answer = match request {
            Request::Hello => Ok(Reply::Hello {
                protocol: PROTOCOL_VERSION,
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
            }),
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::Pause => return self.verb(Verb::Pause, reply),
            Request::Resume => return self.verb(Verb::Resume, reply),
            Request::Reset => return self.verb(Verb::Reset, reply),
            Request::Shutdown => return self.verb(Verb::Shutdown, reply),
            Request::TurnOff => return self.turn_off(reply).await,
            Request::Screenshot { path } => return self.screenshot(path, reply),
            Request::Checkpoint(request) => return self.checkpoint(request, reply).await,
            Request::Save(request) => return self.save(request, reply).await,
            Request::CheckpointStatus { checkpoint } => Ok(Reply::Checkpoint(match &self.job {
                Some(job) if job.plan.checkpoint == checkpoint => job.progress.outcome(&job.plan),
                _ => self.outcomes.get(&checkpoint).cloned().unwrap_or(CheckpointOutcome::Unknown),
            })),
            Request::CancelCheckpoint { checkpoint } => match &self.job {
                Some(job) if job.plan.checkpoint == checkpoint => {
                    job.progress.cancel();
                    Ok(Reply::Done)
                }
                _ => refuse(format!(
                    "checkpoint {checkpoint} is not being written: there is nothing to cancel"
                )),
            },
            Request::Disks => return self.disks(reply),
            // The control socket answers it.
            Request::Subscribe { .. } => Ok(Reply::Done),
        };
        let _ = reply.send(answer);
    }

    fn status(&self) -> WorkerStatus {
        WorkerStatus {
            state: self.state,
            reason: self.reason.clone(),
            spec: self.record.spec.clone(),
            qemu_pid: self.machine.as_ref().map(|machine| machine.process.pid()),
            accelerator: self.instance.accelerator.clone(),
            accelerator_reason: self.instance.accelerator_reason.clone(),
            qemu_version: self.instance.qemu_version.clone(),
            started_unix_ms: self.instance.started_unix_ms,
            last_event: self.spool.last(),
            console_socket: self.run.console(),
            vnc_socket: self.run.vnc(),
        }
    }

    fn disks(&self, reply: ReplyTo) {
        let disks = Arc::clone(&self.disks);
        tokio::task::spawn_blocking(move || reply.send(Ok(Reply::Disks { disks: disks.status() })));
    }

    /// Whether a verb fits; `Ok(None)`: it is so already.
    fn verb_allowed(&self, verb: Verb) -> Result<Option<Qmp>, WorkerError> {
        let precondition = |message: String| WorkerError { code: WorkerErrorCode::Precondition, message };
        let model_verb = match verb {
            Verb::Pause => backstay_model::VmVerb::Pause,
            Verb::Resume => backstay_model::VmVerb::Resume,
            Verb::Reset => backstay_model::VmVerb::Reset,
            Verb::Shutdown => backstay_model::VmVerb::Shutdown,
        };
        let name = &self.record.spec.name;
        if !backstay_model::allowed(name, self.state, model_verb).map_err(|e| precondition(e.to_string()))? {
            return Ok(None);
        }
        if self.job.as_ref().is_some_and(super::ActiveJob::holds_guest) {
            return Err(precondition(format!(
                "a checkpoint of '{name}' is being taken: try again in a moment"
            )));
        }
        if !self.verbs.is_empty() || self.turning_off.is_some() {
            return Err(precondition(format!(
                "another command for '{name}' is being carried out: try again in a moment"
            )));
        }
        match self.qmp() {
            Some(qmp) => Ok(Some(qmp)),
            None => Err(precondition(format!("'{name}' has no QEMU now: wait until it is started"))),
        }
    }

    fn verb(&mut self, verb: Verb, reply: ReplyTo) {
        let qmp = match self.verb_allowed(verb) {
            Ok(Some(qmp)) => qmp,
            Ok(None) => return drop(reply.send(Ok(Reply::Done))),
            Err(error) => return drop(reply.send(Err(error))),
        };
        if verb == Verb::Resume {
            // Before it executes: whoever takes over must not load the saved state again.
            self.instance.ran = true;
            self.remember();
        }
        self.verbs.spawn(async move {
            let result = match verb {
                Verb::Pause => qmp.stop().await,
                Verb::Resume => qmp.cont().await,
                Verb::Reset => qmp.system_reset().await,
                Verb::Shutdown => qmp.system_powerdown().await,
            };
            VerbDone { verb, result, reply }
        });
    }

    pub(super) async fn verb_done(&mut self, done: VerbDone) {
        let VerbDone { verb, result, reply } = done;
        let answer: Answer = match &result {
            Ok(()) => Ok(Reply::Done),
            Err(error) => fail(error),
        };
        if result.is_ok() && verb == Verb::Shutdown {
            self.asked_to_stop = Some(AskedToStop { patience: Instant::now() + SHUTDOWN_PATIENCE });
            self.set_state(VmState::Stopping, "the guest was asked to shut down");
        }
        if verb == Verb::Reset {
            self.asked_to_stop = None;
        }
        self.refresh(match verb {
            Verb::Pause => "paused",
            Verb::Resume => "resumed",
            Verb::Reset => "reset",
            Verb::Shutdown => "the guest was asked to shut down",
        })
        .await;
        let _ = reply.send(answer);
    }

    pub(super) async fn out_of_patience(&mut self) {
        self.asked_to_stop = None;
        let message = "the guest did not shut down within 2 minutes; it may wait for its user, or not listen: turn it off instead";
        self.tell(WorkerEvent::Warning { message: message.into() });
        self.refresh("the guest did not shut down").await;
    }

    /// Pulls the plug: nothing may delay it for long.
    async fn turn_off(&mut self, reply: ReplyTo) {
        if let Some(waiting) = &mut self.turning_off {
            return waiting.push(reply);
        }
        self.turning_off = Some(vec![reply]);
        self.restart_at = None;
        if let Some(job) = &self.job {
            job.progress.cancel();
        }
        if let Some(starting) = &self.starting {
            starting.cancel.send_replace(true);
            return;
        }
        if self.machine.is_some() {
            self.set_state(VmState::Stopping, "turned off");
            return self.quit_qemu();
        }
        self.finish(VmState::Off, "turned off", super::End::Done).await;
    }

    /// Asks QEMU to end and kills it if it does not; its end comes as an event.
    pub(super) fn quit_qemu(&self) {
        let Some(machine) = self.machine.clone() else { return };
        tokio::spawn(async move {
            let _ = tokio::time::timeout(QUIT_PATIENCE, machine.qmp.quit()).await;
            let gone = tokio::time::timeout(QUIT_PATIENCE, machine.process.wait()).await;
            if gone.is_err()
                && let Err(error) = machine.process.kill()
            {
                tracing::error!(%error, "QEMU could not be killed");
            }
        });
    }

    fn screenshot(&self, path: PathBuf, reply: ReplyTo) {
        let Some(qmp) = self.qmp() else {
            return drop(reply.send(refuse("there is no screen: the machine has no QEMU now")));
        };
        let own = self.run.screenshot();
        tokio::spawn(async move {
            let answer = match qmp.screendump(&own).await {
                Err(error) => fail(&error),
                Ok(()) => match deliver(&own, &path) {
                    Ok(()) => Ok(Reply::Done),
                    Err(error) => refuse(format!("{} cannot be written: {error}", path.display())),
                },
            };
            let _ = reply.send(answer);
        });
    }
}

/// Copies under a temporary name, because the target may be on another file system.
fn deliver(from: &Path, to: &Path) -> io::Result<()> {
    let temporary = crate::durable::temporary(to);
    let result = std::fs::copy(from, &temporary).and_then(|_| std::fs::rename(&temporary, to));
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    let _ = std::fs::remove_file(from);
    result
}

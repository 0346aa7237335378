//! Checkpoints and saves: one at a time, each a job of its own.

use super::compact::has_ended;
use super::{ActiveJob, Answer, Owner, ReplyTo, refuse};
use crate::checkpoint::descriptor::read_descriptor;
use crate::checkpoint::hardware;
use crate::checkpoint::job::{Intent, Job, JobError, Progress, SavedFacts};
use crate::checkpoint::plan::{Activity, Plan, PlanError, Situation, plan, plan_save};
use crate::checkpoint::qmp::end_migration;
use crate::control::{
    CheckpointOutcome, CheckpointRequest, Reply, SaveRequest, WorkerError, WorkerErrorCode, WorkerEvent,
};
use crate::durable;
use crate::events::Spool;
use crate::report::chain_of;
use backstay_model::{CheckpointId, VmState};
use backstay_qemu::lifecycle::{Event as Life, UserRequest};
use backstay_qemu::qmp::{Qmp, RunState};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};

/// What former workers of this run told about their checkpoints.
pub(super) fn remembered(spool: &Spool) -> HashMap<CheckpointId, CheckpointOutcome> {
    let events = spool.after(0).unwrap_or_default();
    let finished = events.into_iter().filter_map(|frame| match frame.event {
        WorkerEvent::CheckpointFinished { checkpoint, outcome } => Some((checkpoint, outcome)),
        _ => None,
    });
    finished.collect()
}

pub(super) fn panicked(panic: &JoinError) -> CheckpointOutcome {
    CheckpointOutcome::Failed { message: format!("the worker failed: {panic}"), kept_layers: Vec::new() }
}

/// What was asked for.
pub(super) enum Wish {
    Checkpoint(CheckpointRequest),
    Save(SaveRequest),
}

impl Wish {
    fn id(&self) -> CheckpointId {
        match self {
            Self::Checkpoint(request) => request.checkpoint,
            Self::Save(request) => request.id,
        }
    }
}

/// What QEMU says before a way is chosen.
pub(super) struct Seen {
    status: RunState,
    no_background: Option<String>,
}

/// A checkpoint or save that is about to begin: QEMU is being asked, which takes long if it hangs.
pub(super) struct Asking {
    wish: Wish,
    reply: ReplyTo,
    pub(super) task: JoinHandle<Result<Seen, WorkerError>>,
}

async fn see(
    qmp: Qmp,
    probe: bool,
    compacting: Option<tokio::sync::watch::Receiver<()>>,
) -> Result<Seen, WorkerError> {
    has_ended(compacting).await;
    let failed = |error| WorkerError { code: WorkerErrorCode::Failed, message: chain_of(&error) };
    let status = qmp.query_status().await.map_err(failed)?.status;
    let no_background =
        if probe { qmp.probe_background_snapshot().await.map_err(failed)?.err() } else { None };
    Ok(Seen { status, no_background })
}

impl Owner {
    /// Asks QEMU how it is; [`Owner::asked`] goes on.
    pub(super) fn ask(&mut self, wish: Wish, reply: ReplyTo) {
        let job = self.job.as_ref().map(|job| job.plan.checkpoint);
        if let Some(busy) = job.or(self.asking.as_ref().map(|asking| asking.wish.id())) {
            return drop(reply.send(refuse(PlanError::Busy(busy).to_string())));
        }
        let Some(qmp) = self.qmp() else {
            return drop(reply.send(refuse(PlanError::State.to_string())));
        };
        if self.is_plugging() || self.is_moving() {
            let words = "a disk is being attached, detached or moved: try again when that is done";
            return drop(reply.send(refuse(words)));
        }
        if matches!(wish, Wish::Save(_)) && self.keeps_saved_state() {
            let words = "the guest has not run since its saved memory was loaded, and that is still on disk: turn it off, \
                         and it is saved as before";
            return drop(reply.send(refuse(words)));
        }
        let compacting = self.stop_compacting();
        let probe = matches!(wish, Wish::Checkpoint(_)) && !self.record.avoid_background;
        self.asking = Some(Asking { wish, reply, task: tokio::spawn(see(qmp, probe, compacting)) });
    }

    pub(super) async fn asked(&mut self, seen: Result<Seen, WorkerError>) {
        let Some(Asking { wish, reply, .. }) = self.asking.take() else { return };
        let situation = match seen.map_err(Err).and_then(|seen| self.situation(seen)) {
            Ok(situation) => situation,
            Err(answer) => return drop(reply.send(answer)),
        };
        match wish {
            Wish::Checkpoint(request) => self.begin(plan(&request, &situation), reply).await,
            Wish::Save(request) => {
                self.begin(plan_save(&request, &situation), reply).await;
                if self.job.as_ref().is_some_and(|job| job.plan.checkpoint == request.id) {
                    self.set_state(VmState::Saving, "memory is being saved");
                }
            }
        }
    }

    /// Whether `checkpoint` is about to begin.
    pub(super) fn is_asking_for(&self, checkpoint: CheckpointId) -> bool {
        self.asking.as_ref().is_some_and(|asking| asking.wish.id() == checkpoint)
    }

    /// Ends what has not begun yet. QEMU finishes its answer all the same: half of a probe would leave it changed.
    pub(super) fn stop_asking(&mut self) {
        if let Some(asking) = self.asking.take() {
            let _ = asking.reply.send(refuse(JobError::Cancelled.to_string()));
        }
    }

    /// Nothing but the disk-space guard keeps the guest from running.
    fn is_only_held(&self) -> bool {
        self.guard.stands() && self.life.wants_to_run() && !self.life.is_stalled()
    }

    fn situation(&self, seen: Seen) -> Result<Situation, Answer> {
        let activity = match self.state {
            // One that was asked to shut down and does not follow can be saved.
            VmState::Running | VmState::Stopping if seen.status == RunState::Running => Activity::Running,
            VmState::Running => {
                return Err(refuse("another command is being carried out: try again in a moment"));
            }
            VmState::Paused if seen.status == RunState::Postmigrate => Activity::PausedAfterSave,
            VmState::Paused => Activity::Paused,
            VmState::PausedCritical if self.is_only_held() && seen.status == RunState::Paused => {
                Activity::Held
            }
            VmState::PausedCritical => Activity::Stalled,
            _ => Activity::Other,
        };
        let switched_off =
            || self.record.avoid_background.then(|| "switched off for this machine".to_owned());
        let no_background = seen.no_background.or_else(switched_off);
        Ok(Situation { activity, busy: None, tops: self.disks.tops(), no_background })
    }

    async fn begin(&mut self, plan: Result<Plan, PlanError>, reply: ReplyTo) {
        let (plan, qmp) = match (plan, self.qmp()) {
            (Ok(plan), Some(qmp)) => (plan, qmp),
            (Ok(_), None) => return drop(reply.send(refuse(PlanError::State.to_string()))),
            (Err(error), _) => return drop(reply.send(refuse(error.to_string()))),
        };
        let spec = &self.record.spec;
        let progress = Arc::new(Progress::new(spec.memory_mib << 20));
        let job = Job {
            plan: plan.clone(),
            qmp,
            disks: Arc::clone(&self.disks),
            run: self.run.clone(),
            facts: SavedFacts {
                vm: spec.id,
                qemu_version: self.instance.qemu_version.clone(),
                accelerator: self.instance.accelerator.clone(),
                hardware: hardware(spec, self.accel.accel),
                qemu_uid_gid: self.record.qemu_uid_gid,
            },
            progress: Arc::clone(&progress),
        };
        let (sender, running) = oneshot::channel();
        let task = tokio::spawn(job.run(sender));
        self.job = Some(ActiveJob { plan, progress, task, running: Some(running), reply: Some(reply) });
        self.feed(Life::CheckpointBegin).await;
    }

    /// The guest runs again; memory is still on its way.
    pub(super) async fn job_running(&mut self) {
        if let Some(job) = &mut self.job {
            job.running = None;
            if let Some(reply) = job.reply.take() {
                let _ = reply.send(Ok(Reply::Checkpoint(job.progress.outcome(&job.plan))));
            }
        }
        self.feed(Life::CheckpointEnd).await;
    }

    pub(super) async fn job_done(&mut self, outcome: CheckpointOutcome) {
        let Some(job) = self.job.take() else { return };
        let (held, save) = (job.holds_guest(), job.plan.save);
        if save && matches!(outcome, CheckpointOutcome::Complete { .. }) {
            self.saved = Some(job.plan.descriptor_file.clone());
        }
        self.conclude(&job.plan, job.reply, outcome);
        if save && self.saved.is_none() && self.state == VmState::Saving {
            self.set_state(self.life.state(), "the machine could not be saved");
        }
        if held {
            self.feed(Life::CheckpointEnd).await;
        }
        if self.saved.is_some() {
            self.feed(Life::User(UserRequest::TurnOff)).await;
        }
    }

    pub(super) fn conclude(&mut self, plan: &Plan, reply: Option<ReplyTo>, outcome: CheckpointOutcome) {
        let checkpoint = plan.checkpoint;
        self.outcomes.insert(checkpoint, outcome.clone());
        self.tell(WorkerEvent::CheckpointFinished { checkpoint, outcome: outcome.clone() });
        let Some(reply) = reply else { return };
        let answer = match outcome {
            CheckpointOutcome::Failed { message, .. } => {
                Err(WorkerError { code: WorkerErrorCode::Failed, message })
            }
            outcome => Ok(Reply::Checkpoint(outcome)),
        };
        let _ = reply.send(answer);
    }

    /// A former worker died in the middle of a checkpoint or save: ends what QEMU still does for it, keeps the checkpoint if it is
    /// whole, else removes its memory. The disks stay on their new files, which the guest may have written to.
    /// A whole save is noted in `saved`: the guest must not execute again.
    pub(super) async fn clean_up_after_job(&mut self, qmp: Option<&Qmp>) {
        let intent: Intent = match durable::read_json(&self.run.intent()) {
            Ok(Some(intent)) => intent,
            Ok(None) => return,
            Err(error) => return tracing::error!(%error, "the record of an unfinished checkpoint is damaged"),
        };
        let whole =
            read_descriptor(&intent.descriptor_file).ok().filter(|d| d.checkpoint == intent.checkpoint);
        if intent.save && whole.is_some() {
            self.saved = Some(intent.descriptor_file.clone());
        } else if let Some(qmp) = qmp {
            end_migration(qmp).await;
            let stopped = match qmp.query_status().await {
                Ok(info) => matches!(info.status, RunState::Paused | RunState::Postmigrate),
                Err(_) => false,
            };
            if intent.running
                && stopped
                && let Err(error) = qmp.cont().await
            {
                tracing::warn!(%error, "the guest could not be continued");
            }
        }
        let outcome = match whole {
            Some(descriptor) => CheckpointOutcome::Complete {
                pause_us: 0,
                total_us: 0,
                memory_bytes: descriptor.file_len,
                method: descriptor.method,
                method_reason: "finished shortly before its worker died".into(),
            },
            None => {
                intent.remove_memory();
                let tops = self.disks.tops();
                let stepped = intent.switches.iter().filter(|s| tops.contains(&(s.slot, s.to.clone())));
                CheckpointOutcome::Failed {
                    message: "the worker died while the checkpoint was being taken".into(),
                    kept_layers: stepped.map(|switch| switch.slot).collect(),
                }
            }
        };
        self.outcomes.insert(intent.checkpoint, outcome.clone());
        self.tell(WorkerEvent::CheckpointFinished { checkpoint: intent.checkpoint, outcome });
        if self.saved.is_none() {
            let _ = durable::remove(&self.run.intent());
        }
        let _ = durable::remove(&self.run.stream());
    }
}

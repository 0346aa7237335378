//! What can happen next.

use super::checkpoints::Seen;
use super::space::{View, blind};
use super::{Done, Owner};
use crate::control::{CheckpointOutcome, WorkerError, WorkerErrorCode};
use crate::server::Call;
use crate::start::{StartError, Started};
use backstay_qemu::lifecycle::Event as Life;
use backstay_qemu::process::ExitReason;
use backstay_qemu::qmp::{Qmp, QmpEvent};
use std::future::{Future, pending};
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep_until};

pub(super) enum Event {
    Call(Call),
    Started(Result<Started, StartError>),
    /// QEMU's process is over.
    Ended(ExitReason),
    Guest(QmpEvent),
    /// Guest events were missed, or the connection broke while QEMU lives.
    GuestUnclear,
    /// QEMU told what a checkpoint has to know first.
    Asked(Result<Seen, WorkerError>),
    /// The job let the guest run again.
    JobRunning,
    JobDone(CheckpointOutcome),
    MergeDone(super::merge::MergeEnd),
    MoveDone(super::relocate::MoveEnd),
    CompactDone(super::compact::CompactEnd),
    /// A disk came or went, or did not.
    Plugged(super::plug::PlugEnd),
    CommandDone(Done),
    Reconnected(Option<Qmp>),
    /// It is time to look at the volumes.
    Look,
    /// What the volumes are like.
    Looked(View),
    Tick,
    /// SIGTERM.
    Terminate,
}

impl Owner {
    pub(super) async fn select(&mut self) -> Event {
        let process = self.machine.as_ref().map(|machine| machine.process.clone());
        let ended = async move {
            match process {
                Some(process) => process.wait().await,
                None => pending().await,
            }
        };
        let job = self.job.as_mut();
        let (running, finished) = match job {
            // A job that fails before the guest runs drops its end while it still puts things back: a second look would panic.
            Some(job) => (job.running.as_mut().filter(|r| !r.is_terminated()), Some(&mut job.task)),
            None => (None, None),
        };
        let tick = self.life.next_deadline().map(|at| self.clock.instant(at));
        let look = self.looking.task.is_none().then_some(self.looking.at);
        let looking = self.looking.task.as_mut();
        tokio::select! {
            biased;
            event = guest_event(self.guest_events.as_mut()) => event,
            reason = ended => Event::Ended(reason),
            // Dropped without a word: the job ends, which the next arm tells.
            Ok(()) = wait_for(running) => Event::JobRunning,
            done = wait_for(finished) => {
                Event::JobDone(done.unwrap_or_else(|panic| super::checkpoints::panicked(&panic)))
            }
            seen = wait_for(self.asking.as_mut().map(|asking| &mut asking.task)) => {
                Event::Asked(seen.unwrap_or_else(|panic| {
                    Err(WorkerError { code: WorkerErrorCode::Failed, message: format!("the worker failed: {panic}") })
                }))
            }
            merged = wait_for(self.merge.as_mut().map(|merge| &mut merge.task)) => Event::MergeDone(merged),
            moved = wait_for(self.moving.as_mut().map(|moving| &mut moving.task)) => Event::MoveDone(moved),
            compacted = wait_for(self.compact.as_mut().map(|compact| &mut compact.task)) => {
                Event::CompactDone(compacted)
            }
            plugged = wait_for(self.plug.as_mut().map(|plug| &mut plug.task)) => {
                Event::Plugged(super::plug::ended(plugged))
            }
            started = wait_for(self.starting.as_mut().map(|starting| &mut starting.task)) => {
                Event::Started(started.unwrap_or(Err(StartError::Cancelled)))
            }
            Some(done) = self.done.recv() => Event::CommandDone(done),
            qmp = wait_for(self.reconnecting.as_mut()) => Event::Reconnected(qmp.unwrap_or(None)),
            () = at(tick) => Event::Tick,
            view = wait_for(looking) => Event::Looked(view.unwrap_or_else(|_| blind())),
            () = at(look) => Event::Look,
            () = terminated(&mut self.terminate) => Event::Terminate,
            call = self.calls.recv() => match call {
                Some(call) => Event::Call(call),
                None => Event::Terminate,
            },
        }
    }

    pub(super) async fn apply(&mut self, event: Event) {
        match event {
            Event::Call(call) => self.call(call).await,
            Event::Started(result) => self.started(result).await,
            Event::Ended(reason) => self.ended(reason).await,
            Event::Guest(event) => self.guest_event(&event).await,
            Event::GuestUnclear => self.guest_unclear().await,
            Event::Asked(seen) => self.asked(seen).await,
            Event::JobRunning => self.job_running().await,
            Event::JobDone(outcome) => self.job_done(outcome).await,
            Event::MergeDone(end) => self.merge_done(end),
            Event::MoveDone(end) => self.move_done(end),
            Event::CompactDone(end) => self.compact_done(end),
            Event::Plugged(end) => self.plugged(end),
            Event::CommandDone(done) => self.command_done(done).await,
            Event::Reconnected(qmp) => self.reconnected(qmp).await,
            Event::Look => self.begin_look(),
            Event::Looked(view) => self.looked(view).await,
            Event::Tick => self.feed(Life::Tick).await,
            Event::Terminate => self.hand_over().await,
        }
    }
}

async fn guest_event(events: Option<&mut broadcast::Receiver<QmpEvent>>) -> Event {
    use broadcast::error::RecvError;
    let Some(events) = events else { return pending().await };
    match events.recv().await {
        Ok(event) => Event::Guest(event),
        Err(RecvError::Lagged(_) | RecvError::Closed) => Event::GuestUnclear,
    }
}

async fn wait_for<F: Future + Unpin>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

/// Returns when this worker is to hand over.
pub(crate) async fn terminated(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => pending().await,
    }
}

/// SIGTERM: hand over.
pub(crate) fn terminate_signal() -> Option<Signal> {
    let result: io::Result<Signal> = signal(SignalKind::terminate());
    result.inspect_err(|error| tracing::warn!(%error, "SIGTERM will end this worker at once")).ok()
}

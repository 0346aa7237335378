//! From events to effects: the lifecycle decides, this carries out.

use super::{Owner, ReplyTo};
use crate::control::WorkerEvent;
use crate::disks::DiskSet;
use crate::start::last_words;
use backstay_model::VmState;
use backstay_qemu::argv::slot_of_name;
use backstay_qemu::lifecycle::{Command, Effect, Event as Life, UserRequest, step};
use backstay_qemu::qmp::{Qmp, QmpError, QmpEvent, RunState};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::mpsc;

/// What came of a command.
#[derive(Debug)]
pub(super) enum Done {
    Command {
        result: Result<(), QmpError>,
        reply: Option<ReplyTo>,
    },
    Status(RunState),
    /// As `Status`, after events were lost: the lifecycle did not ask.
    StatusAfterLoss(RunState),
}

#[derive(Debug)]
enum Order {
    Command(Command, Option<ReplyTo>),
    Query,
    QueryAfterLoss,
}

/// Sends commands one after the other, so that their order is that of the decisions. A command may wait for disks: the
/// owner does not.
#[derive(Debug)]
pub(super) struct Commander {
    orders: mpsc::UnboundedSender<Order>,
}

impl Commander {
    pub(super) fn start(qmp: Qmp, disks: Arc<DiskSet>, done: mpsc::UnboundedSender<Done>) -> Self {
        let (orders, mut queue) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(order) = queue.recv().await {
                let answer = match order {
                    Order::Command(command, reply) => {
                        let result = send(&qmp, &disks, command).await;
                        Some(Done::Command { result, reply })
                    }
                    Order::Query => qmp.query_status().await.ok().map(|info| Done::Status(info.status)),
                    Order::QueryAfterLoss => {
                        qmp.query_status().await.ok().map(|info| Done::StatusAfterLoss(info.status))
                    }
                };
                if answer.is_some_and(|answer| done.send(answer).is_err()) {
                    return;
                }
            }
        });
        Self { orders }
    }

    fn order(&self, order: Order) {
        // Fails only when the connection's task is gone; then its end is an event of its own.
        let _ = self.orders.send(order);
    }

    pub(super) fn query_after_loss(&self) {
        self.order(Order::QueryAfterLoss);
    }
}

async fn send(qmp: &Qmp, disks: &DiskSet, command: Command) -> Result<(), QmpError> {
    // All others wait until no disk request is in flight.
    let _hurry = if command == Command::Cont { None } else { disks.hurry() };
    match command {
        Command::Cont => qmp.cont().await,
        Command::Stop => qmp.stop().await,
        Command::SystemReset => qmp.system_reset().await,
        Command::SystemPowerdown => qmp.system_powerdown().await,
        Command::Quit => qmp.quit().await,
    }
}

/// The command that answers a request, if one has to be sent.
fn command_of(request: UserRequest) -> Command {
    match request {
        UserRequest::Pause => Command::Stop,
        UserRequest::Resume => Command::Cont,
        UserRequest::Reset => Command::SystemReset,
        UserRequest::Shutdown => Command::SystemPowerdown,
        UserRequest::TurnOff => Command::Quit,
    }
}

impl Owner {
    /// One event through the lifecycle, and everything that follows.
    pub(super) async fn feed(&mut self, event: Life) {
        self.feed_with(event, None).await;
    }

    /// A user's request; the reply comes with the answer of the command it causes, or at once if it causes none.
    pub(super) async fn request(&mut self, request: UserRequest, reply: ReplyTo) {
        let paused = match request {
            UserRequest::Pause => Some(true),
            UserRequest::Resume => Some(false),
            _ => None,
        };
        if let Some(paused) = paused
            && let Err(why) = self.note(|instance| instance.paused = paused)
        {
            return drop(reply.send(super::refuse(why)));
        }
        let answer = (command_of(request), reply);
        if let Some((_, reply)) = self.feed_with(Life::User(request), Some(answer)).await {
            let _ = reply.send(Ok(crate::control::Reply::Done));
        }
    }

    async fn feed_with(
        &mut self,
        event: Life,
        mut reply: Option<(Command, ReplyTo)>,
    ) -> Option<(Command, ReplyTo)> {
        let mut effects: VecDeque<_> = step(&mut self.life, event, self.clock.now()).into();
        self.keep_wishes();
        if self.life.is_running() {
            self.executed = true;
            if !std::mem::replace(&mut self.state_spent, true) {
                self.spend_saved_state();
            }
        }
        while let Some(effect) = effects.pop_front() {
            self.act(effect, &mut reply).await;
        }
        reply
    }

    /// What the next worker must know of the decision, before it shows in QEMU.
    fn keep_wishes(&mut self) {
        let paused = !self.life.wants_to_run();
        let millis = |at: &std::time::Duration| u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        let recoveries: Vec<_> = self.life.restarts().iter().map(millis).collect();
        if (paused, &recoveries) != (self.instance.paused, &self.instance.recoveries) {
            self.instance.paused = paused;
            self.instance.recoveries = recoveries;
            self.remember();
        }
    }

    async fn act(&mut self, effect: Effect, reply: &mut Option<(Command, ReplyTo)>) {
        match effect {
            Effect::Send(command) => {
                let reply = reply.take_if(|(awaited, _)| *awaited == command).map(|(_, reply)| reply);
                // A guest whose memory is saved never executes again here.
                if command == Command::Cont && self.saved.is_some() {
                    return;
                }
                // Before it executes: whoever takes over must not load the saved state again. The lifecycle asks again.
                if command == Command::Cont
                    && let Err(why) = self.about_to_run()
                {
                    tracing::error!(why, "the guest is not continued");
                    return reply.map_or((), |reply| drop(reply.send(super::refuse(why))));
                }
                if let Some(commander) = &self.commander {
                    commander.order(Order::Command(command, reply));
                }
            }
            Effect::QueryStatus => {
                if let Some(commander) = &self.commander {
                    commander.order(Order::Query);
                }
            }
            Effect::ReconnectQmp => self.reconnect(),
            Effect::Kill => self.kill(),
            Effect::Restart => self.begin_start("recovery action"),
            // The end is told when the disks are closed.
            Effect::Publish { to: VmState::Off | VmState::Failed, .. } => {}
            Effect::Publish { .. } if self.saved.is_some() => {}
            Effect::Publish { to, reason, .. } => self.set_state(to, &reason),
            Effect::StorageStalled { node, reason } => match slot_of_name(&node) {
                Some(slot) => self.tell(WorkerEvent::StorageStalled { slot, reason }),
                None => self.tell(WorkerEvent::Warning { message: format!("a disk stalls: {reason}") }),
            },
            Effect::StorageRecovered => self.tell(WorkerEvent::StorageRecovered),
            Effect::Died { reason, action } => {
                self.tell(WorkerEvent::QemuDied { reason, log: last_words(&self.run), action });
            }
            Effect::Finish { .. } if self.saved.is_some() => self.finish(VmState::Saved, "saved").await,
            Effect::Finish { state, reason } => self.finish(state, &reason).await,
        }
    }

    fn kill(&self) {
        if let Some(starting) = &self.starting {
            starting.cancel.send_replace(true);
        }
        if let Some(machine) = &self.machine
            && let Err(error) = machine.process.kill()
        {
            tracing::error!(%error, "QEMU could not be killed");
        }
    }

    pub(super) async fn guest_event(&mut self, event: &QmpEvent) {
        if event.name == "RESET" {
            self.confine();
        }
        if event.name == "DEVICE_DELETED" {
            self.device_deleted(event);
        }
        if let Some(event) = Life::from_qmp(event) {
            return self.feed(event).await;
        }
        if event.name == "GUEST_PANICKED" {
            self.tell(WorkerEvent::Warning { message: "the guest reported a panic".into() });
        }
    }

    pub(super) async fn command_done(&mut self, done: Done) {
        match done {
            Done::Command { result, reply } => {
                let answer = match &result {
                    Ok(()) => Ok(crate::control::Reply::Done),
                    Err(error) => super::fail(error),
                };
                if let Err(error) = &result {
                    tracing::info!(%error, "QEMU did not carry out a command");
                }
                if let Some(reply) = reply {
                    let _ = reply.send(answer);
                }
            }
            Done::Status(status) => self.feed(Life::Status(status)).await,
            Done::StatusAfterLoss(status) => self.feed(Life::QmpBack(status)).await,
        }
    }
}

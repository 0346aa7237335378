//! What QEMU's events and the user's wishes mean for one machine. Pure: time is an argument, effects are values.
//!
//! ```text
//!            Ready           Pause / STOP
//!  Starting ───────► Running ────────────► Paused
//!     ▲                │  ▲ ◄──────────────
//!     │     I/O error  │  │   Resume
//!     │                ▼  │ `cont` every 0.5 s until it stays running
//!     │           PausedCritical
//!     │                                 SHUTDOWN, TurnOff
//!     └── QEMU ended by itself     all ───────────────────► Stopping ──► Off
//! ```
//!
//! The machine keeps two facts apart: what is wanted (run or pause, changed by the user only) and what is so (from
//! QEMU). Where they differ and no checkpoint is at work, a timer is armed that sends the command again; so no state
//! is left without a way on, and the way back from a storage loss is the same as that from a lost command. A paused
//! machine is never continued by it, because then `pause` is what is wanted. Whoever stops or continues the guest
//! behind our back, through QEMU's second control socket, is overruled within a second.

mod ending;
mod words;

#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod tests;

pub use words::{Command, Effect, Event, RecoveryPolicy, UserRequest};

use crate::qmp::RunState;
use backstay_model::VmState;
use std::time::Duration;

/// Between two tries to continue a guest.
const CONT_EVERY: Duration = Duration::from_millis(500);
/// Between two tries to stop a guest: a `stop` waits for disk requests.
const STOP_EVERY: Duration = Duration::from_secs(5);
/// A guest that ran this long after a storage loss without another error has recovered.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// How long `quit` may take before QEMU is killed.
const QUIT_PATIENCE: Duration = Duration::from_secs(5);
/// How long QEMU may take to end after the guest is off: it still writes what its disks have cached.
const END_PATIENCE: Duration = Duration::from_secs(60);
/// How long a guest may take to react to the power button before it counts as running again.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(300);
/// Between two tries to reach QEMU's control socket.
const RECONNECT_EVERY: Duration = Duration::from_secs(1);

/// What QEMU is doing as a process.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// The worker is bringing it up.
    Starting { again: bool },
    /// It is there.
    Live,
    /// It is about to end.
    Ending(Ending),
    /// It ended and will be started again.
    Waiting { restart_at: Duration },
    /// Nothing more happens.
    Ended(VmState),
}

/// Why it is about to end.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ending {
    /// Orderly: the state after it is Off.
    Wanted(String),
    /// Its memory is on disk.
    Saved,
    /// A case for the recovery action.
    Fault(String),
}

/// The state of one machine.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    policy: RecoveryPolicy,
    phase: Phase,
    shown: VmState,
    wants_to_run: bool,
    running: bool,
    /// A checkpoint or a save stops and continues the guest.
    held: bool,
    /// It is a save.
    saving: bool,
    /// A disk request failed; kept until the guest has settled.
    stalled: bool,
    /// The worker holds the guest, and why: its files must not grow.
    hold: Option<String>,
    connected: bool,
    /// Nothing was heard from QEMU since the last `query-status` was sent, so that its answer is news.
    asked: bool,
    restarts: Vec<Duration>,
    enforce_at: Option<Duration>,
    settled_at: Option<Duration>,
    give_up_shutdown_at: Option<Duration>,
    kill_at: Option<Duration>,
    reconnect_at: Option<Duration>,
}

/// Moves `lifecycle` by one event and returns what to do, in order. `now` is the time since any fixed origin.
#[must_use]
pub fn step(lifecycle: &mut Lifecycle, event: Event, now: Duration) -> Vec<Effect> {
    let mut turn = Turn { life: lifecycle, now, effects: Vec::new(), reason: String::new() };
    turn.apply(event);
    turn.uphold();
    turn.effects
}

impl Lifecycle {
    /// A machine that is being started or looked for. `restarts`: times of former restarts by recovery.
    #[must_use]
    pub fn new(policy: RecoveryPolicy, restarts: Vec<Duration>) -> Self {
        Self {
            policy,
            phase: Phase::Starting { again: false },
            shown: VmState::Starting,
            wants_to_run: true,
            running: false,
            held: false,
            saving: false,
            stalled: false,
            hold: None,
            connected: false,
            asked: false,
            restarts,
            enforce_at: None,
            settled_at: None,
            give_up_shutdown_at: None,
            kill_at: None,
            reconnect_at: None,
        }
    }

    /// What a user sees.
    #[must_use]
    pub fn state(&self) -> VmState {
        self.shown
    }

    /// Whether the guest is to run once nothing prevents it. Record the opposite for the worker that takes over.
    #[must_use]
    pub fn wants_to_run(&self) -> bool {
        self.wants_to_run
    }

    /// Whether it is to run and nothing holds it.
    #[must_use]
    pub fn should_run(&self) -> bool {
        self.wants_to_run && self.hold.is_none()
    }

    /// Whether it stands still because a disk does not answer.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Whether the guest executes, as far as QEMU has told.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Restarts by recovery so far, for the worker that takes over.
    #[must_use]
    pub fn restarts(&self) -> &[Duration] {
        &self.restarts
    }

    /// How many of them count at `now`.
    #[must_use]
    pub fn recent_restarts(&self, now: Duration) -> usize {
        self.policy.recent(&self.restarts, now)
    }

    /// When [`Event::Tick`] is due at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let restart_at = match self.phase {
            Phase::Waiting { restart_at } => Some(restart_at),
            _ => None,
        };
        let timers = [
            self.enforce_at,
            self.settled_at,
            self.give_up_shutdown_at,
            self.kill_at,
            self.reconnect_at,
            restart_at,
        ];
        timers.into_iter().flatten().min()
    }
}

/// One step under way.
struct Turn<'a> {
    life: &'a mut Lifecycle,
    now: Duration,
    effects: Vec<Effect>,
    /// Why the shown state changes, if it does.
    reason: String,
}

impl Turn<'_> {
    fn apply(&mut self, event: Event) {
        if matches!(self.life.phase, Phase::Ended(_)) {
            return;
        }
        match event {
            Event::Ready { run } => self.ready(run),
            Event::Adopted { status, paused_by_user } => self.adopted(&status, paused_by_user),
            Event::StartFailed { reason } => self.gone(reason, false),
            Event::Stopped => self.stopped(),
            Event::Resumed => self.resumed(),
            Event::WasReset => {
                if self.life.give_up_shutdown_at.take().is_some() {
                    self.reason = "the guest restarted".to_owned();
                }
            }
            Event::ShutDown { reason } => self.shut_down(reason),
            Event::IoError { node, reason } => self.io_error(node, reason),
            Event::Status(status) => self.status(&status),
            Event::QmpLost => self.disconnected(),
            Event::QmpBack(status) => {
                self.life.connected = true;
                self.life.reconnect_at = None;
                self.take(&status);
            }
            Event::Exited { reason, orderly } => self.gone(reason, orderly),
            Event::User(request) => self.user(request),
            Event::CheckpointBegin => self.life.held = true,
            Event::CheckpointEnd => {
                self.life.held = false;
                self.ask();
            }
            Event::SaveBegin if self.life.phase == Phase::Live => {
                (self.life.held, self.life.saving) = (true, true);
                self.reason = "saving".to_owned();
            }
            Event::SaveEnd { saved } if self.life.saving => self.save_ended(saved),
            Event::SaveBegin | Event::SaveEnd { .. } => {}
            Event::Hold { reason } => self.hold(reason),
            Event::Tick => self.tick(),
        }
    }

    fn ready(&mut self, run: bool) {
        if !matches!(self.life.phase, Phase::Starting { .. }) {
            return;
        }
        self.life.phase = Phase::Live;
        self.life.connected = true;
        self.life.running = false;
        // A user may have paused it meanwhile.
        self.life.wants_to_run &= run;
        if self.life.should_run() {
            self.send(Command::Cont);
        }
        self.reason = self.life.hold.clone().unwrap_or_else(|| "started".to_owned());
    }

    fn adopted(&mut self, status: &RunState, paused_by_user: bool) {
        self.life.phase = Phase::Live;
        self.life.connected = true;
        self.life.wants_to_run &= !paused_by_user;
        self.reason = "taken over from a former worker".to_owned();
        self.take(status);
        if self.life.should_run() && !self.life.running && !self.life.stalled {
            // A worker that died inside a checkpoint, or before it could continue a started guest.
            self.send(Command::Cont);
        }
    }

    /// Believes QEMU's word about itself, without guessing who stopped the guest.
    fn take(&mut self, status: &RunState) {
        if self.life.phase != Phase::Live {
            return;
        }
        self.life.running = *status == RunState::Running;
        match status {
            RunState::IoError if !self.life.stalled => {
                self.io_error(String::new(), "QEMU's state is io-error".to_owned());
            }
            RunState::InternalError | RunState::GuestPanicked => {
                self.fault(format!("QEMU cannot continue the guest: its state is {status}"));
            }
            RunState::Inmigrate => self.fault("QEMU was left while it loaded a state".to_owned()),
            RunState::Shutdown => self.end(Ending::Wanted("the guest is off".to_owned()), END_PATIENCE),
            _ => {}
        }
    }

    fn stopped(&mut self) {
        self.life.running = false;
        self.life.asked = false;
        self.life.settled_at = None;
        if !self.life.wants_to_run {
            self.reason = "paused on request".to_owned();
        } else if let Some(why) = &self.life.hold {
            self.reason.clone_from(why);
        } else if self.life.phase == Phase::Live && !self.life.held && !self.life.stalled {
            // Ours that came late, somebody else's, or a fault: only QEMU knows.
            self.ask();
        }
    }

    fn ask(&mut self) {
        if self.life.connected {
            self.life.asked = true;
            self.effects.push(Effect::QueryStatus);
        }
    }

    fn resumed(&mut self) {
        self.life.running = true;
        self.life.asked = false;
        self.life.enforce_at = None;
        if self.life.phase != Phase::Live || self.life.held {
            return;
        }
        if !self.life.should_run() {
            // A `cont` from before the pause, or somebody else's: the user's word counts.
            self.send(Command::Stop);
        } else if self.life.stalled {
            self.life.settled_at = Some(self.now + SETTLED_AFTER);
        } else {
            self.reason = "running".to_owned();
        }
    }

    fn status(&mut self, status: &RunState) {
        if std::mem::take(&mut self.life.asked) {
            self.take(status);
        } else {
            // Older than what was heard meanwhile.
            self.ask();
        }
    }

    fn io_error(&mut self, node: String, reason: String) {
        if self.life.phase != Phase::Live {
            return;
        }
        self.life.running = false;
        self.life.asked = false;
        self.life.settled_at = None;
        self.life.enforce_at = None;
        self.reason = match node.as_str() {
            "" => "the storage failed".to_owned(),
            node => format!("the storage of {node} failed: {reason}"),
        };
        if !self.life.stalled {
            self.life.stalled = true;
            self.effects.push(Effect::StorageStalled { node, reason });
        }
    }

    fn shut_down(&mut self, reason: String) {
        if matches!(self.life.phase, Phase::Ending(_)) {
            return; // what we know is better than QEMU's word for it
        }
        match reason.as_str() {
            "host-signal" => self.end(Ending::Fault("QEMU got a signal to end".to_owned()), END_PATIENCE),
            "guest-panic" | "host-error" => self.end(Ending::Fault(reason), END_PATIENCE),
            _ => self.end(Ending::Wanted(reason), END_PATIENCE),
        }
    }

    fn save_ended(&mut self, saved: bool) {
        (self.life.held, self.life.saving) = (false, false);
        if saved && self.life.phase == Phase::Live {
            self.end(Ending::Saved, QUIT_PATIENCE);
            self.send(Command::Quit);
        } else {
            self.reason = "the save failed".to_owned();
            self.ask();
        }
    }

    fn end(&mut self, ending: Ending, patience: Duration) {
        self.reason = match &ending {
            Ending::Wanted(why) | Ending::Fault(why) => why.clone(),
            Ending::Saved => "saved".to_owned(),
        };
        self.life.phase = Phase::Ending(ending);
        self.life.kill_at = Some(self.now + patience);
    }

    fn fault(&mut self, why: String) {
        self.end(Ending::Fault(why), QUIT_PATIENCE);
        self.effects.push(Effect::Kill);
    }

    fn disconnected(&mut self) {
        self.life.connected = false;
        if self.life.phase == Phase::Live {
            self.life.reconnect_at = Some(self.now + RECONNECT_EVERY);
            self.effects.push(Effect::ReconnectQmp);
        }
    }

    fn user(&mut self, request: UserRequest) {
        let live = self.life.phase == Phase::Live;
        match request {
            UserRequest::Pause => {
                self.life.wants_to_run = false;
                self.reason = "paused on request".to_owned();
                // A guest that stands still is left alone: `stop` would wait for the storage that is lost.
                if live && self.life.running && !self.life.held {
                    self.send(Command::Stop);
                }
            }
            UserRequest::Resume => {
                self.life.wants_to_run = true;
                self.reason = "resumed on request".to_owned();
                // Also while it runs: a `stop` may be on its way.
                if live && !self.life.held && self.life.hold.is_none() {
                    self.send(Command::Cont);
                }
            }
            UserRequest::Reset if live => {
                self.life.give_up_shutdown_at = None;
                self.reason = "reset on request".to_owned();
                self.send(Command::SystemReset);
            }
            UserRequest::Shutdown if live => {
                self.life.give_up_shutdown_at = Some(self.now + SHUTDOWN_PATIENCE);
                self.reason = "the guest was asked to shut down".to_owned();
                self.send(Command::SystemPowerdown);
            }
            UserRequest::TurnOff => self.turn_off(),
            UserRequest::Reset | UserRequest::Shutdown => {}
        }
    }

    /// The worker holds the guest or lets it go.
    fn hold(&mut self, why: Option<String>) {
        let released = self.life.hold.is_some() && why.is_none();
        self.life.hold = why;
        let free = self.life.phase == Phase::Live && !self.life.held;
        if let Some(why) = &self.life.hold {
            self.reason.clone_from(why);
            if free && self.life.running && self.life.wants_to_run {
                self.send(Command::Stop);
            }
        } else if released && free && self.life.wants_to_run && !self.life.running {
            self.reason = "nothing holds it any more".to_owned();
            self.send(Command::Cont);
        }
    }

    fn turn_off(&mut self) {
        let why = "turned off".to_owned();
        match self.life.phase {
            Phase::Waiting { .. } => self.finish(VmState::Off, why),
            // The state is complete; what remains is QEMU's end.
            Phase::Ending(Ending::Saved) => self.effects.push(Effect::Kill),
            Phase::Live if self.life.connected => {
                self.end(Ending::Wanted(why), QUIT_PATIENCE);
                self.send(Command::Quit);
            }
            _ => {
                self.end(Ending::Wanted(why), QUIT_PATIENCE);
                self.effects.push(Effect::Kill);
            }
        }
    }

    fn tick(&mut self) {
        let now = self.now;
        let due = |timer: &mut Option<Duration>| timer.take_if(|at| *at <= now).is_some();
        if due(&mut self.life.kill_at) {
            self.effects.push(Effect::Kill);
            self.life.kill_at = Some(now + QUIT_PATIENCE);
        }
        if due(&mut self.life.reconnect_at) {
            self.effects.push(Effect::ReconnectQmp);
            self.life.reconnect_at = Some(now + RECONNECT_EVERY);
        }
        if due(&mut self.life.give_up_shutdown_at) {
            self.reason = "the guest did not react to the power button".to_owned();
        }
        if due(&mut self.life.settled_at) {
            self.life.stalled = false;
            self.reason = "the storage works again".to_owned();
            self.effects.push(Effect::StorageRecovered);
        }
        if due(&mut self.life.enforce_at) {
            self.send(if self.life.should_run() { Command::Cont } else { Command::Stop });
            // QEMU says nothing about a command that changes nothing.
            self.ask();
        }
        self.restart_when_due();
    }

    fn send(&mut self, command: Command) {
        match command {
            Command::Cont => self.life.enforce_at = Some(self.now + CONT_EVERY),
            Command::Stop => self.life.enforce_at = Some(self.now + STOP_EVERY),
            Command::SystemReset | Command::SystemPowerdown | Command::Quit => {}
        }
        self.effects.push(Effect::Send(command));
    }

    /// Ends each step: timers follow from the state, and a changed state is told.
    fn uphold(&mut self) {
        let life = &mut *self.life;
        let live = life.phase == Phase::Live;
        if !live {
            (life.held, life.saving) = (false, false);
            (life.enforce_at, life.settled_at, life.reconnect_at) = (None, None, None);
            life.give_up_shutdown_at = None;
        } else if life.held || !life.connected || life.should_run() == life.running {
            life.enforce_at = None;
        } else {
            life.enforce_at = life.enforce_at.or(Some(self.now + CONT_EVERY));
        }
        if live && life.stalled && life.running && !life.held {
            life.settled_at = life.settled_at.or(Some(self.now + SETTLED_AFTER));
        }
        if !matches!(life.phase, Phase::Ending(_)) {
            life.kill_at = None;
        }
        self.publish();
    }

    fn publish(&mut self) {
        let (from, to) = (self.life.shown, self.derive());
        if from != to {
            self.life.shown = to;
            let reason = std::mem::take(&mut self.reason);
            self.effects.push(Effect::Publish { from, to, reason });
        }
    }

    /// The state a user sees; what is being resolved keeps the former one.
    fn derive(&self) -> VmState {
        let life = &*self.life;
        match life.phase {
            Phase::Starting { .. } | Phase::Waiting { .. } => VmState::Starting,
            Phase::Ending(_) => VmState::Stopping,
            Phase::Ended(state) => state,
            Phase::Live if life.saving => VmState::Saving,
            Phase::Live if life.held => life.shown,
            Phase::Live => match (life.stalled || life.hold.is_some(), life.wants_to_run, life.running) {
                (_, false, false) => VmState::Paused,
                (true, true, _) => VmState::PausedCritical,
                (_, true, true) if life.give_up_shutdown_at.is_some() => VmState::Stopping,
                (false, true, true) => VmState::Running,
                (_, false, true) | (false, true, false) => life.shown,
            },
        }
    }
}

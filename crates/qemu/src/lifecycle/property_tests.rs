//! Random histories against a small model of QEMU: whatever happens, once the storage works and nobody touches the
//! machine, it does what its user last asked for.

use super::*;
use backstay_model::RecoveryAction;
use proptest::prelude::*;
use std::collections::VecDeque;

/// What can happen in between.
#[derive(Clone, Copy, Debug)]
enum Action {
    User(UserRequest),
    StorageFails,
    StorageHeals,
    SpaceRunsOut,
    SpaceIsBack,
    CheckpointBegins,
    CheckpointEnds,
    /// It ends as a checkpoint does, without success.
    SaveBegins,
    /// One message or command is delivered.
    Deliver,
    /// All of them are.
    DeliverAll,
    Wait(u64),
    Disconnect,
    Crash,
    GuestRestarts,
}

/// QEMU as far as the lifecycle can tell.
#[derive(Default)]
struct Qemu {
    alive: bool,
    running: bool,
    io_error: bool,
    storage_lost: bool,
    to_qemu: VecDeque<Ask>,
    from_qemu: VecDeque<Event>,
}

#[derive(Debug)]
enum Ask {
    Command(Command),
    Query,
}

impl Qemu {
    fn status(&self) -> RunState {
        match (self.running, self.io_error) {
            (true, _) => RunState::Running,
            (false, true) => RunState::IoError,
            (false, false) => RunState::Paused,
        }
    }

    fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            self.from_qemu.push_back(Event::Stopped);
        }
    }

    fn cont(&mut self) {
        if !std::mem::replace(&mut self.running, true) {
            self.io_error = false;
            self.from_qemu.push_back(Event::Resumed);
        }
        self.use_storage();
    }

    /// A running guest uses its disk all the time.
    fn use_storage(&mut self) {
        if self.running && self.storage_lost {
            self.from_qemu.push_back(Event::IoError { node: "d".into(), reason: "lost".into() });
            self.io_error = true;
            self.stop();
        }
    }

    fn obey(&mut self, ask: &Ask) {
        match ask {
            Ask::Query => self.from_qemu.push_back(Event::Status(self.status())),
            Ask::Command(Command::Cont) => self.cont(),
            Ask::Command(Command::Stop) => self.stop(),
            Ask::Command(Command::SystemReset) => self.from_qemu.push_back(Event::WasReset),
            Ask::Command(Command::SystemPowerdown) => {}
            Ask::Command(Command::Quit) => {
                self.from_qemu.push_back(Event::ShutDown { reason: "host-qmp-quit".into() });
                self.die(true);
            }
        }
    }

    fn die(&mut self, orderly: bool) {
        if std::mem::take(&mut self.alive) {
            self.running = false;
            self.to_qemu.clear();
            self.from_qemu.push_back(Event::Exited { reason: "ended".into(), orderly });
        }
    }
}

struct World {
    life: Lifecycle,
    qemu: Qemu,
    now: Duration,
    /// The checkpoint stopped the guest and will continue it if this is true.
    checkpoint: Option<bool>,
    saving: bool,
    connected: bool,
    finished: bool,
    /// The user's last word: run or pause.
    user_wants_to_run: bool,
    turned_off: bool,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            life: Lifecycle::new(
                RecoveryPolicy { quiet: Duration::ZERO, ..RecoveryPolicy::new(RecoveryAction::Restart) },
                vec![],
            ),
            qemu: Qemu::default(),
            now: Duration::ZERO,
            checkpoint: None,
            saving: false,
            connected: true,
            finished: false,
            user_wants_to_run: true,
            turned_off: false,
        };
        world.boot();
        world
    }

    fn boot(&mut self) {
        let storage_lost = self.qemu.storage_lost;
        self.qemu = Qemu { alive: true, storage_lost, ..Qemu::default() };
        self.qemu.from_qemu.push_back(Event::Ready { run: true });
        (self.checkpoint, self.saving) = (None, false);
        self.connected = true;
    }

    fn feed(&mut self, event: Event) {
        let wanted = self.life.wants_to_run();
        let user = matches!(event, Event::User(UserRequest::Resume));
        let ended = matches!(event, Event::Exited { .. });
        let effects = step(&mut self.life, event.clone(), self.now);
        assert!(!self.finished || effects.is_empty(), "an ended machine does nothing");
        if !wanted && self.life.wants_to_run() {
            assert!(user || ended, "{event:?} must not continue a paused machine");
        }
        if ended {
            self.user_wants_to_run = true; // the pause went with the memory
        }
        for effect in effects {
            self.act(effect);
        }
        self.check();
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Send(command) => {
                match command {
                    Command::Cont => assert!(self.life.should_run()),
                    Command::Stop => assert!(!self.life.should_run()),
                    _ => {}
                }
                if self.connected {
                    self.qemu.to_qemu.push_back(Ask::Command(command));
                }
            }
            Effect::QueryStatus if self.connected => self.qemu.to_qemu.push_back(Ask::Query),
            Effect::ReconnectQmp if self.qemu.alive => {
                self.connected = true;
                let status = self.qemu.status();
                self.feed(Event::QmpBack(status));
            }
            Effect::Kill => self.qemu.die(false),
            Effect::Restart => self.boot(),
            Effect::Finish { .. } => self.finished = true,
            _ => {}
        }
    }

    /// No state without a way on.
    fn check(&self) {
        let life = &self.life;
        let timer = life.next_deadline();
        if let Some(at) = timer {
            // A timer of the past would be a busy loop.
            assert!(at >= self.now || at + Duration::from_secs(700) > self.now);
        }
        if life.phase == Phase::Live && !life.held && life.should_run() != life.is_running() {
            assert!(timer.is_some(), "no way on: {life:?}");
        }
        if life.state() == VmState::PausedCritical && !life.held && life.hold.is_none() {
            assert!(timer.is_some(), "no retry: {life:?}");
        }
        if matches!(life.phase, Phase::Ending(_) | Phase::Waiting { .. }) {
            assert!(timer.is_some(), "no way to the end: {life:?}");
        }
    }

    fn deliver(&mut self) -> bool {
        // QEMU first obeys, then its words arrive.
        if let Some(ask) = self.qemu.to_qemu.pop_front() {
            self.qemu.obey(&ask);
            return true;
        }
        match self.qemu.from_qemu.pop_front() {
            Some(event) => self.feed(event),
            None => return false,
        }
        true
    }

    fn wait(&mut self, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        while let Some(at) = self.life.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.feed(Event::Tick);
            while self.deliver() {}
        }
        self.now = until;
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::User(request) => {
                match request {
                    UserRequest::Pause => self.user_wants_to_run = false,
                    UserRequest::Resume => self.user_wants_to_run = true,
                    UserRequest::TurnOff => self.turned_off = true,
                    UserRequest::Reset | UserRequest::Shutdown => {}
                }
                self.feed(Event::User(request));
            }
            Action::StorageFails => {
                self.qemu.storage_lost = true;
                self.qemu.use_storage();
            }
            Action::StorageHeals => self.qemu.storage_lost = false,
            Action::SpaceRunsOut => self.feed(Event::Hold { reason: Some("full".into()) }),
            Action::SpaceIsBack => self.feed(Event::Hold { reason: None }),
            Action::CheckpointBegins if self.checkpoint.is_none() && self.life.phase == Phase::Live => {
                self.feed(Event::CheckpointBegin);
                self.checkpoint = Some(self.life.wants_to_run());
                if self.qemu.alive {
                    self.qemu.stop();
                }
            }
            Action::SaveBegins if self.checkpoint.is_none() && self.life.phase == Phase::Live => {
                self.feed(Event::SaveBegin);
                (self.checkpoint, self.saving) = (Some(false), true);
                if self.qemu.alive {
                    self.qemu.stop();
                }
            }
            Action::CheckpointEnds => {
                if std::mem::take(&mut self.saving) {
                    self.checkpoint = None;
                    self.feed(Event::SaveEnd { saved: false });
                } else if let Some(cont) = self.checkpoint.take() {
                    if cont && self.qemu.alive {
                        self.qemu.cont();
                    }
                    self.feed(Event::CheckpointEnd);
                }
            }
            Action::Deliver => {
                self.deliver();
            }
            Action::DeliverAll => while self.deliver() {},
            Action::Wait(millis) => self.wait(millis),
            Action::Disconnect if self.qemu.alive && self.life.phase == Phase::Live && self.connected => {
                self.connected = false;
                self.qemu.to_qemu.clear();
                self.qemu.from_qemu.clear();
                self.feed(Event::QmpLost);
            }
            Action::Crash => self.qemu.die(false),
            Action::GuestRestarts if self.qemu.running => self.qemu.from_qemu.push_back(Event::WasReset),
            Action::CheckpointBegins | Action::SaveBegins | Action::Disconnect | Action::GuestRestarts => {}
        }
    }
}

fn action() -> impl Strategy<Value = Action> {
    use UserRequest as U;
    prop_oneof![
        4 => prop_oneof![
            4 => Just(U::Pause), 4 => Just(U::Resume), 1 => Just(U::Reset), 1 => Just(U::Shutdown),
        ]
        .prop_map(Action::User),
        1 => prop_oneof![9 => Just(Action::Crash), 1 => Just(Action::User(U::TurnOff))],
        3 => Just(Action::StorageFails),
        3 => Just(Action::StorageHeals),
        2 => Just(Action::SpaceRunsOut),
        2 => Just(Action::SpaceIsBack),
        2 => Just(Action::CheckpointBegins),
        1 => Just(Action::SaveBegins),
        3 => Just(Action::CheckpointEnds),
        8 => Just(Action::Deliver),
        4 => Just(Action::DeliverAll),
        4 => (1u64..3000).prop_map(Action::Wait),
        1 => Just(Action::Disconnect),
        1 => Just(Action::GuestRestarts),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(2000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_in_what_the_user_wants(actions in prop::collection::vec(action(), 1..60)) {
        let mut world = World::new();
        for action in actions {
            world.apply(action);
        }
        world.apply(Action::CheckpointEnds);
        world.apply(Action::StorageHeals);
        world.apply(Action::DeliverAll);
        if world.life.hold.is_some() && !world.turned_off {
            world.wait(600_000);
            world.apply(Action::DeliverAll);
            prop_assert!(!world.qemu.running, "held: {:?}", world.life);
        }
        world.apply(Action::SpaceIsBack);
        world.apply(Action::DeliverAll);
        // Longer than every patience together.
        world.wait(600_000);
        world.apply(Action::DeliverAll);
        if world.turned_off {
            prop_assert!(world.finished && !world.qemu.alive);
            prop_assert_eq!(world.life.state(), VmState::Off);
        } else {
            let wanted = if world.user_wants_to_run { VmState::Running } else { VmState::Paused };
            prop_assert_eq!(world.life.state(), wanted, "{:?}", world.life);
            prop_assert_eq!(world.qemu.running, world.user_wants_to_run);
            prop_assert_eq!(world.life.next_deadline(), None, "at rest: {:?}", world.life);
        }
    }
}

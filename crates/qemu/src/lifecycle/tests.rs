//! One story per test: what happens to a machine and what its user sees.

use super::*;
use crate::qmp::QmpEvent;
use backstay_model::RecoveryAction;
use serde_json::json;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A machine with a clock.
struct Story {
    life: Lifecycle,
    now: Duration,
}

impl Story {
    fn new(action: RecoveryAction) -> Self {
        Self { life: Lifecycle::new(RecoveryPolicy::new(action), Vec::new()), now: ms(1000) }
    }

    /// A machine whose guest runs.
    fn running() -> Self {
        let mut story = Self::new(RecoveryAction::Restart);
        assert_eq!(story.on(Event::Ready { run: true }), [Effect::Send(Command::Cont)]);
        story.on(Event::Resumed);
        assert_eq!(story.life.state(), VmState::Running);
        story
    }

    fn on(&mut self, event: Event) -> Vec<Effect> {
        step(&mut self.life, event, self.now)
    }

    fn user(&mut self, request: UserRequest) -> Vec<Effect> {
        self.on(Event::User(request))
    }

    /// Lets time pass to the next timer.
    fn tick(&mut self) -> Vec<Effect> {
        self.now = self.life.next_deadline().expect("a timer is armed").max(self.now);
        self.on(Event::Tick)
    }

    fn io_error(&mut self) -> Vec<Effect> {
        let data = json!({"node-name": "drive-ide0-0", "action": "stop", "reason": "Input/output error"});
        let mut effects = self.on(Event::from_qmp(&qmp_event("BLOCK_IO_ERROR", data)).unwrap());
        effects.extend(self.on(Event::Stopped));
        effects
    }
}

fn qmp_event(name: &str, data: serde_json::Value) -> QmpEvent {
    QmpEvent { name: name.into(), data, at_unix_us: 0 }
}

#[test]
fn qemus_events_are_read_as_qemu_writes_them() {
    let error = |action: &str, nospace: bool| {
        let data =
            json!({"device": "", "node-name": "d", "action": action, "nospace": nospace, "reason": "EIO"});
        Event::from_qmp(&qmp_event("BLOCK_IO_ERROR", data))
    };
    assert_eq!(error("stop", false), Some(Event::IoError { node: "d".into(), reason: "EIO".into() }));
    assert_eq!(
        error("stop", true),
        Some(Event::IoError { node: "d".into(), reason: "no space is left".into() })
    );
    assert_eq!(error("report", false), None, "the guest runs on and sees it");
    let shutdown = qmp_event("SHUTDOWN", json!({"guest": true, "reason": "guest-shutdown"}));
    assert_eq!(Event::from_qmp(&shutdown), Some(Event::ShutDown { reason: "guest-shutdown".into() }));
    assert_eq!(Event::from_qmp(&qmp_event("VNC_CONNECTED", json!({}))), None);
}

fn published(effects: &[Effect]) -> Option<(VmState, &str)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Publish { to, reason, .. } => Some((*to, reason.as_str())),
        _ => None,
    })
}

fn sends(effects: &[Effect], command: Command) -> bool {
    effects.contains(&Effect::Send(command))
}

#[test]
fn pause_and_resume() {
    let mut vm = Story::running();
    assert_eq!(vm.user(UserRequest::Pause), [Effect::Send(Command::Stop)]);
    assert_eq!(vm.life.state(), VmState::Running, "until QEMU says so");
    assert_eq!(published(&vm.on(Event::Stopped)), Some((VmState::Paused, "paused on request")));
    assert_eq!(vm.life.next_deadline(), None);
    assert_eq!(vm.user(UserRequest::Resume), [Effect::Send(Command::Cont)]);
    assert_eq!(published(&vm.on(Event::Resumed)), Some((VmState::Running, "running")));
}

#[test]
fn a_storage_loss_is_one_stall_and_one_recovery_however_often_cont_fails() {
    let mut vm = Story::running();
    let effects = vm.io_error();
    assert!(
        matches!(&effects[0], Effect::StorageStalled { node, .. } if node == "drive-ide0-0"),
        "{effects:?}"
    );
    assert_eq!(published(&effects).unwrap().0, VmState::PausedCritical);
    for _ in 0..3 {
        let before = vm.now;
        assert!(sends(&vm.tick(), Command::Cont));
        assert_eq!(vm.now - before, ms(500));
        assert_eq!(vm.on(Event::Resumed), []);
        assert_eq!(vm.io_error(), [], "still the same stall");
    }
    assert!(sends(&vm.tick(), Command::Cont));
    vm.on(Event::Resumed);
    assert_eq!(vm.life.state(), VmState::PausedCritical, "not before it has settled");
    let effects = vm.tick();
    assert_eq!(effects[0], Effect::StorageRecovered);
    assert_eq!(published(&effects), Some((VmState::Running, "the storage works again")));
    assert_eq!(vm.life.next_deadline(), None);
}

#[test]
fn a_user_pause_ends_the_retries_and_resume_takes_them_up() {
    let mut vm = Story::running();
    vm.io_error();
    let effects = vm.user(UserRequest::Pause);
    assert!(!sends(&effects, Command::Stop), "stop would hang on the lost storage");
    assert_eq!(published(&effects).unwrap().0, VmState::Paused);
    assert_eq!(vm.life.next_deadline(), None, "nothing will continue it");
    assert!(sends(&vm.user(UserRequest::Resume), Command::Cont));
    assert_eq!(vm.life.state(), VmState::PausedCritical);
    vm.io_error();
    assert!(sends(&vm.tick(), Command::Cont));
}

#[test]
fn a_checkpoints_stop_is_no_pause() {
    let mut vm = Story::running();
    for event in [Event::CheckpointBegin, Event::Stopped, Event::Resumed] {
        assert_eq!(vm.on(event), []);
    }
    assert_eq!(vm.on(Event::CheckpointEnd), [Effect::QueryStatus]);
    assert_eq!(vm.on(Event::Status(RunState::Running)), []);
    assert_eq!((vm.life.state(), vm.life.next_deadline()), (VmState::Running, None));
}

#[test]
fn a_pause_during_a_checkpoint_holds_after_it() {
    let mut vm = Story::running();
    vm.on(Event::CheckpointBegin);
    vm.on(Event::Stopped);
    assert_eq!(vm.user(UserRequest::Pause), [], "the checkpoint is at work");
    // The checkpoint asked before the pause and continues the guest; its RESUME is late.
    vm.on(Event::CheckpointEnd);
    assert!(sends(&vm.on(Event::Resumed), Command::Stop));
    vm.on(Event::Stopped);
    assert_eq!((vm.life.state(), vm.life.wants_to_run()), (VmState::Paused, false));
}

#[test]
fn a_checkpoint_that_forgets_to_continue_is_made_good() {
    let mut vm = Story::running();
    vm.on(Event::CheckpointBegin);
    vm.on(Event::Stopped);
    vm.on(Event::CheckpointEnd);
    vm.on(Event::Status(RunState::Paused));
    assert!(sends(&vm.tick(), Command::Cont));
}

#[test]
fn the_users_word_counts_against_somebody_elses() {
    let mut vm = Story::running();
    assert_eq!(vm.on(Event::Stopped), [Effect::QueryStatus]);
    assert_eq!(vm.on(Event::Status(RunState::Paused)), []);
    assert!(sends(&vm.tick(), Command::Cont));
    vm.on(Event::Resumed);
    vm.user(UserRequest::Pause);
    vm.on(Event::Stopped);
    assert!(sends(&vm.on(Event::Resumed), Command::Stop));
    assert_eq!(vm.life.state(), VmState::Paused);
}

#[test]
fn a_guest_that_qemu_cannot_continue_is_killed_and_recovered() {
    let mut vm = Story::running();
    vm.on(Event::Stopped);
    assert!(vm.on(Event::Status(RunState::InternalError)).contains(&Effect::Kill));
    let effects = vm.on(Event::Exited { reason: "killed".into(), orderly: false });
    assert!(effects.contains(&Effect::Restart), "{effects:?}");
}

#[test]
fn pause_and_resume_in_one_breath_end_in_running() {
    let mut vm = Story::running();
    vm.user(UserRequest::Pause);
    assert!(sends(&vm.user(UserRequest::Resume), Command::Cont));
    vm.on(Event::Stopped);
    assert_eq!(vm.on(Event::Resumed), []);
    assert_eq!((vm.life.state(), vm.life.next_deadline()), (VmState::Running, None));
}

#[test]
fn a_save_ends_as_saved_and_a_failed_one_runs_on() {
    let mut vm = Story::running();
    assert_eq!(published(&vm.on(Event::SaveBegin)).unwrap().0, VmState::Saving);
    assert_eq!(vm.on(Event::Stopped), []);
    vm.on(Event::SaveEnd { saved: false });
    vm.on(Event::Status(RunState::Postmigrate));
    assert!(sends(&vm.tick(), Command::Cont));
    assert_eq!(published(&vm.on(Event::Resumed)).map(|(state, _)| state), Some(VmState::Running));

    vm.on(Event::SaveBegin);
    vm.on(Event::Stopped);
    assert!(sends(&vm.on(Event::SaveEnd { saved: true }), Command::Quit));
    vm.on(Event::ShutDown { reason: "host-qmp-quit".into() });
    let effects = vm.on(Event::Exited { reason: "exit status 0".into(), orderly: true });
    assert_eq!(effects.last(), Some(&Effect::Finish { state: VmState::Saved, reason: "saved".into() }));
}

#[test]
fn a_guest_that_shuts_down_ends_the_worker() {
    let mut vm = Story::running();
    assert!(sends(&vm.user(UserRequest::Shutdown), Command::SystemPowerdown));
    assert_eq!(vm.life.state(), VmState::Stopping);
    vm.on(Event::ShutDown { reason: "guest-shutdown".into() });
    let effects = vm.on(Event::Exited { reason: "QEMU ended with exit status 0".into(), orderly: true });
    assert_eq!(
        effects.last(),
        Some(&Effect::Finish { state: VmState::Off, reason: "guest-shutdown".into() })
    );
    assert_eq!(vm.on(Event::Tick), []);
}

#[test]
fn a_guest_that_ignores_the_power_button_runs_on_and_one_that_restarts_too() {
    let mut vm = Story::running();
    vm.user(UserRequest::Shutdown);
    let effects = vm.tick();
    assert_eq!(published(&effects), Some((VmState::Running, "the guest did not react to the power button")));
    vm.user(UserRequest::Shutdown);
    assert_eq!(published(&vm.on(Event::WasReset)), Some((VmState::Running, "the guest restarted")));
}

#[test]
fn turn_off_asks_once_and_then_kills() {
    let mut vm = Story::running();
    assert!(sends(&vm.user(UserRequest::TurnOff), Command::Quit));
    assert!(vm.tick().contains(&Effect::Kill));
    assert!(vm.tick().contains(&Effect::Kill), "until it is gone");
    let effects = vm.on(Event::Exited { reason: "killed".into(), orderly: false });
    assert_eq!(effects.last(), Some(&Effect::Finish { state: VmState::Off, reason: "turned off".into() }));
}

#[test]
fn a_crash_restarts_with_growing_waits_and_gives_up_after_six() {
    let mut vm = Story::running();
    let mut waits = Vec::new();
    let effects = loop {
        vm.now += ms(30_000);
        let effects = vm.on(Event::Exited { reason: "killed".into(), orderly: false });
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Died { .. })));
        if matches!(effects.last(), Some(Effect::Finish { .. })) {
            break effects;
        }
        let died = vm.now;
        if !effects.contains(&Effect::Restart) {
            assert!(vm.tick().contains(&Effect::Restart));
        }
        waits.push((vm.now - died).as_secs());
        assert_eq!(vm.life.state(), VmState::Starting);
        vm.on(Event::Ready { run: true });
        vm.on(Event::Resumed);
    };
    assert_eq!(waits, [0, 10, 30, 60, 120, 300]);
    let Some(Effect::Finish { state, reason }) = effects.last() else { unreachable!() };
    assert_eq!(*state, VmState::Failed);
    assert!(reason.contains("started again 6 times and never ran for 10 minutes"), "{reason}");
}

#[test]
fn rare_crashes_are_always_restarted() {
    let mut vm = Story::running();
    for _ in 0..20 {
        vm.now += ms(600_000);
        assert!(vm.on(Event::Exited { reason: "killed".into(), orderly: false }).len() > 1);
        if vm.life.next_deadline().is_some() {
            vm.tick();
        }
        vm.on(Event::Ready { run: true });
        vm.on(Event::Resumed);
        assert_eq!(vm.life.state(), VmState::Running);
    }
}

#[test]
fn without_a_recovery_action_a_crash_is_final() {
    let mut vm = Story::new(RecoveryAction::None);
    vm.on(Event::Ready { run: true });
    vm.on(Event::Resumed);
    let effects = vm.on(Event::Exited { reason: "killed".into(), orderly: false });
    assert!(matches!(effects.last(), Some(Effect::Finish { state: VmState::Failed, .. })), "{effects:?}");
}

#[test]
fn a_machine_that_never_came_up_is_not_tried_again() {
    let mut vm = Story::new(RecoveryAction::Restart);
    let effects = vm.on(Event::StartFailed { reason: "no such disk".into() });
    let failed = Effect::Finish { state: VmState::Failed, reason: "no such disk".into() };
    assert_eq!(effects.last(), Some(&failed));
}

#[test]
fn taking_over_knows_a_users_pause_from_a_checkpoints() {
    let adopt = |status, paused_by_user| {
        let mut vm = Story::new(RecoveryAction::Restart);
        let effects = vm.on(Event::Adopted { status, paused_by_user });
        (vm.life.state(), sends(&effects, Command::Cont), vm)
    };
    let (state, cont, _) = adopt(RunState::Running, false);
    assert_eq!((state, cont), (VmState::Running, false));
    let (state, cont, vm) = adopt(RunState::Paused, true);
    assert_eq!((state, cont, vm.life.next_deadline()), (VmState::Paused, false, None));
    let (_, cont, _) = adopt(RunState::Postmigrate, false);
    assert!(cont, "a checkpoint left it stopped");
    let (state, _, mut vm) = adopt(RunState::IoError, false);
    assert_eq!(state, VmState::PausedCritical);
    assert!(sends(&vm.tick(), Command::Cont));
}

#[test]
fn a_lost_control_connection_is_made_again_and_missed_events_are_caught_up() {
    let mut vm = Story::running();
    assert_eq!(vm.on(Event::QmpLost), [Effect::ReconnectQmp]);
    assert_eq!(vm.tick(), [Effect::ReconnectQmp]);
    let effects = vm.on(Event::QmpBack(RunState::IoError));
    assert_eq!(published(&effects).unwrap().0, VmState::PausedCritical);
    assert!(sends(&vm.tick(), Command::Cont));
}

#[test]
fn a_terminated_qemu_is_a_case_for_recovery_and_an_unexplained_orderly_end_is_not() {
    let mut vm = Story::running();
    vm.on(Event::ShutDown { reason: "host-signal".into() });
    let effects = vm.on(Event::Exited { reason: "QEMU ended with exit status 0".into(), orderly: true });
    assert!(effects.contains(&Effect::Restart), "{effects:?}");
    let mut vm = Story::running();
    let effects = vm.on(Event::Exited { reason: "QEMU ended".into(), orderly: true });
    assert!(matches!(effects.last(), Some(Effect::Finish { state: VmState::Off, .. })), "{effects:?}");
}

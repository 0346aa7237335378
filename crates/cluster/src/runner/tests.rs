//! The runner by itself. Most rules are scenarios in `tests/scenarios`.

use super::*;
use crate::{RestartAction, RestartPolicy};

const VM: usize = 1;
const CONFIG: usize = 0;

fn at(seconds: u64) -> Time {
    Time::from_secs(seconds)
}

fn runner(change: impl FnOnce(&mut Group)) -> Runner {
    let mut group = Group::virtual_machine("web").unwrap();
    change(&mut group);
    Runner::new(Arc::new(group)).unwrap()
}

fn online(runner: &mut Runner) {
    assert_eq!(runner.set_goal(Goal::Online, at(0)), [RunnerEffect::Start(CONFIG)]);
    assert_eq!(runner.report(CONFIG, Report::Online, at(1)), [RunnerEffect::Start(VM)]);
    assert_eq!(runner.report(VM, Report::Online, at(2)), []);
    assert_eq!(runner.states(), [ResourceState::Online; 2]);
}

#[test]
fn bottom_up_and_top_down() {
    let mut web = runner(|_| {});
    online(&mut web);
    let save = Some(OfflineAction::Save);
    assert_eq!(web.set_goal(Goal::Offline(Ending::ByAction), at(9)), [RunnerEffect::Stop(VM, save)]);
    assert!(!web.is_down());
    assert_eq!(web.report(VM, Report::Offline, at(10)), [RunnerEffect::Stop(CONFIG, None)]);
    assert_eq!(web.report(CONFIG, Report::Offline, at(11)), []);
    assert!(web.is_down());
}

#[test]
fn a_provider_that_fails_takes_its_dependents_along_in_the_same_step() {
    let mut web = runner(|_| {});
    online(&mut web);
    let effects = web.report(CONFIG, Report::Failed("gone".into()), at(5));
    assert!(effects.contains(&RunnerEffect::Terminate(VM)), "{effects:?}");
    assert_eq!(web.states(), [ResourceState::OnlinePending, ResourceState::OfflinePending]);
    assert_eq!(web.tick(at(6)), [], "not before the machine is gone");
    assert_eq!(web.report(VM, Report::Offline, at(7)), [RunnerEffect::Start(CONFIG)]);
    assert_eq!(web.report(CONFIG, Report::Online, at(8)), [RunnerEffect::Start(VM)]);
}

#[test]
fn a_failed_resource_is_tried_again_after_an_hour() {
    let restart =
        RestartPolicy { action: RestartAction::RestartNoNotify, threshold: 0, ..RestartPolicy::default() };
    let mut web = runner(|g| g.resources[VM].restart = restart);
    online(&mut web);
    web.report(VM, Report::Offline, at(10));
    assert_eq!(web.states()[VM], ResourceState::Failed);
    assert_eq!(web.verdict().map(|v| (v.fail_over, v.retry_at)), Some((false, Some(at(3_610)))));
    assert!(!web.tick(at(3_609)).contains(&RunnerEffect::Start(VM)));
    assert!(web.tick(at(3_610)).contains(&RunnerEffect::Start(VM)));
    assert_eq!(web.verdict(), None);
}

#[test]
fn ending_is_never_given_up() {
    let mut web = runner(|_| {});
    online(&mut web);
    web.set_goal(Goal::Offline(Ending::ByAction), at(10));
    let effects = web.tick(at(190));
    assert!(effects.contains(&RunnerEffect::Terminate(VM)), "{effects:?}");
    assert!(!web.is_down(), "until it is really gone");
    assert_eq!(web.report(VM, Report::Offline, at(191)), [RunnerEffect::Stop(CONFIG, None)]);
}

#[test]
fn what_is_due_but_waits_for_others_wants_no_tick_at_a_time_that_has_passed() {
    let mut web = runner(|_| {});
    online(&mut web);
    web.report(CONFIG, Report::Failed("gone".into()), at(5));
    web.tick(at(6));
    assert!(web.next_tick().is_some_and(|next| next > at(6)), "{:?}", web.next_tick());
}

#[test]
fn a_resource_that_does_not_answer_is_gone_before_it_is_started_again() {
    let mut web = runner(|_| {});
    online(&mut web);
    let effects = web.report(VM, Report::IsAlive(false), at(5));
    assert!(effects.contains(&RunnerEffect::Terminate(VM)), "{effects:?}");
    assert!(!web.tick(at(9)).contains(&RunnerEffect::Start(VM)));
    assert!(!web.is_down());
    assert_eq!(web.report(VM, Report::Offline, at(10)), [RunnerEffect::Start(VM)]);
}

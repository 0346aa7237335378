//! Agent and taker by themselves; the simulator drives them together.

use super::*;
use crate::{FencingClass, NodeName, Time};

fn ms(millis: u64) -> Time {
    Time::from_millis(millis)
}

/// An agent that holds a lease from a heartbeat sent at 1 s and committed as revision 10.
fn holding() -> Agent {
    let mut agent = Agent::new(Timing::default());
    assert_eq!(agent.step(AgentEvent::Tick, ms(1_000)), [AgentEffect::Read]);
    let effects = agent.step(AgentEvent::Read(None), ms(1_000));
    let member = Member { incarnation: 1, sequence: 1, standing: Standing::Alive };
    assert_eq!(effects, [AgentEffect::Put { member, expect: None }]);
    let effects = agent.step(AgentEvent::Committed { sequence: 1, revision: 10 }, ms(1_200));
    assert_eq!(effects, [AgentEffect::Deadline(ms(4_000)), AgentEffect::Resume], "counted from the sending");
    agent
}

#[test]
fn down_the_ladder_and_up_again() {
    let mut agent = holding();
    let effects = agent.step(AgentEvent::Tick, ms(1_500));
    assert!(matches!(effects[..], [AgentEffect::Put { expect: Some(10), .. }]), "{effects:?}");
    assert!(agent.may_write(ms(3_749)) && !agent.may_write(ms(3_750)));
    let effects = agent.step(AgentEvent::Tick, ms(3_750));
    assert_eq!(
        effects,
        [AgentEffect::Stall, AgentEffect::Read],
        "a put without answer may be committed: read first"
    );
    assert_eq!(agent.step(AgentEvent::Tick, ms(4_000)), [AgentEffect::Pause]);
    let ours = Member { incarnation: 1, sequence: 2, standing: Standing::Alive };
    let effects = agent.step(AgentEvent::Read(Some((ours, 11))), ms(4_050));
    assert!(matches!(effects[..], [AgentEffect::Put { expect: Some(11), .. }]), "{effects:?}");
    assert_eq!(agent.rung(), Rung::Isolated, "what a read shows extends nothing");
    let effects = agent.step(AgentEvent::Committed { sequence: 3, revision: 12 }, ms(4_060));
    assert_eq!(effects, [AgentEffect::Deadline(ms(7_050)), AgentEffect::Resume]);
}

#[test]
fn a_fenced_life_ends_before_the_next_begins() {
    let mut agent = holding();
    agent.step(AgentEvent::Tick, ms(1_500));
    assert_eq!(agent.step(AgentEvent::Refused, ms(1_510)), [AgentEffect::Read]);
    let fenced = Member { incarnation: 1, sequence: 1, standing: Standing::Fenced };
    let effects = agent.step(AgentEvent::Read(Some((fenced, 20))), ms(1_520));
    assert_eq!(effects, [AgentEffect::Stall, AgentEffect::Pause, AgentEffect::End]);
    assert_eq!(agent.step(AgentEvent::Tick, ms(3_000)), [], "nothing until all has ended");
    assert_eq!(agent.step(AgentEvent::Ended, ms(3_100)), [AgentEffect::Read]);
    let effects = agent.step(AgentEvent::Read(Some((fenced, 20))), ms(3_110));
    let member = Member { incarnation: 2, sequence: 1, standing: Standing::Alive };
    assert_eq!(effects, [AgentEffect::Put { member, expect: Some(20) }]);
}

#[test]
fn a_clock_that_jumped_gives_no_right() {
    let mut agent = holding();
    agent.step(AgentEvent::Tick, ms(1_500));
    let effects = agent.step(AgentEvent::ClockJumped, ms(1_600));
    assert_eq!(effects, [AgentEffect::Stall, AgentEffect::Pause, AgentEffect::Read]);
    assert_eq!(agent.step(AgentEvent::Committed { sequence: 2, revision: 11 }, ms(1_601)), []);
    assert!(!agent.may_write(ms(1_601)));
}

#[test]
fn the_same_life_goes_on_after_the_agent_was_restarted() {
    let mut agent = Agent::resume(Timing::default(), 3, ms(5_000));
    assert_eq!(agent.step(AgentEvent::Tick, ms(4_000)), [AgentEffect::Read]);
    assert!(agent.may_write(ms(4_000)));
    let ours = Member { incarnation: 3, sequence: 9, standing: Standing::Alive };
    let effects = agent.step(AgentEvent::Read(Some((ours, 50))), ms(4_010));
    let next = Member { sequence: 10, ..ours };
    assert_eq!(effects, [AgentEffect::Put { member: next, expect: Some(50) }]);
}

fn taker() -> (Taker, NodeName, Member) {
    let node = NodeName::new("b").unwrap();
    let member = Member { incarnation: 4, sequence: 7, standing: Standing::Alive };
    let mut taker = Taker::new(Timing::default());
    taker.saw(&node, member, 30, ms(10_000));
    (taker, node, member)
}

#[test]
fn it_waits_and_needs_its_own_right() {
    let (mut taker, b, member) = taker();
    taker.saw(&b, member, 29, ms(11_000));
    let class = |_: &NodeName| FencingClass::S;
    assert_eq!(taker.step(Some(31), class, ms(13_749)), []);
    assert_eq!(taker.step(None, class, ms(13_750)), []);
    let fenced = Member { standing: Standing::Fenced, ..member };
    let fence = TakerEffect::Fence { node: b.clone(), member: fenced, expect: 30, mine: 31 };
    assert_eq!(taker.step(Some(31), class, ms(13_750)), [fence]);
    assert_eq!(taker.presence(&b, ms(13_750)), Some(Presence::Silent));
    taker.saw(&b, fenced, 40, ms(13_760));
    assert_eq!(taker.presence(&b, ms(13_760)), Some(Presence::Fenced(Some(FencingClass::S))));
    assert_eq!(taker.presence(&b, ms(23_999)), Some(Presence::Fenced(Some(FencingClass::S))));
    assert_eq!(taker.presence(&b, ms(24_000)), Some(Presence::Fenced(Some(FencingClass::W))));
    assert_eq!(taker.loss(&b).0, 7);
}

#[test]
fn a_heartbeat_that_a_gap_hid_starts_the_wait_anew() {
    let (mut taker, b, member) = taker();
    let fenced = Member { sequence: 8, standing: Standing::Fenced, ..member };
    taker.saw(&b, fenced, 40, ms(13_760));
    assert_eq!(taker.presence(&b, ms(17_509)), Some(Presence::Fenced(None)));
    assert_eq!(taker.presence(&b, ms(17_510)), Some(Presence::Fenced(Some(FencingClass::S))));
}

#[test]
fn class_c_asks_the_hook_once_and_takes_nothing_before_its_answer() {
    let (mut taker, b, member) = taker();
    let class = |_: &NodeName| FencingClass::C;
    let fenced = Member { standing: Standing::Fenced, ..member };
    taker.saw(&b, fenced, 40, ms(13_760));
    let ask = TakerEffect::Stonith { node: b.clone(), incarnation: 4 };
    assert_eq!(taker.step(Some(1), class, ms(13_770)), std::slice::from_ref(&ask));
    assert_eq!(taker.step(Some(1), class, ms(99_000)), []);
    assert_eq!(taker.presence(&b, ms(99_000)), Some(Presence::Fenced(Some(FencingClass::W))));
    taker.stonith_failed(&b);
    assert_eq!(taker.step(Some(1), class, ms(99_000)), [ask]);
    taker.confirm(&b, 3, "another life");
    assert_eq!(taker.loss(&b).1, None);
    taker.confirm(&b, 4, "the hook");
    assert_eq!(taker.presence(&b, ms(99_000)), Some(Presence::Fenced(Some(FencingClass::N))));
}

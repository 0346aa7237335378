//! Which machines are started and stopped with the host, when, and how. Pure.

use backstay_model::{HostStartAction, HostStopAction, VmId, VmState};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

/// A machine that is to start with the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) vm: VmId,
    pub(super) name: String,
    pub(super) order: u32,
    pub(super) delay: Duration,
}

/// One start: after the former one has ended, and not before this time since the daemon's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Begin {
    pub(super) vm: VmId,
    pub(super) not_before: Duration,
}

/// Whether a machine is to start after a boot. `was_on`: it ran when the host went down.
pub(super) fn wanted_at_boot(action: HostStartAction, was_on: bool) -> bool {
    match action {
        HostStartAction::Nothing => false,
        HostStartAction::StartIfRunning => was_on,
        HostStartAction::Start => true,
    }
}

/// The order of the starts: by order, within it by delay, then by name.
pub(super) fn start_plan(mut wanted: Vec<Wanted>) -> Vec<Begin> {
    wanted.sort_by(|a, b| (a.order, a.delay, &a.name).cmp(&(b.order, b.delay, &b.name)));
    wanted.into_iter().map(|w| Begin { vm: w.vm, not_before: w.delay }).collect()
}

/// Groups of machines that may be stopped at the same time: the reverse of the order in which they are started.
pub(super) fn stop_groups<T>(machines: impl IntoIterator<Item = (u32, T)>) -> Vec<Vec<T>> {
    let mut groups: BTreeMap<Reverse<u32>, Vec<T>> = BTreeMap::new();
    for (order, machine) in machines {
        groups.entry(Reverse(order)).or_default().push(machine);
    }
    groups.into_values().collect()
}

/// One way to stop a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopStep {
    /// Ask the guest, or wait for one that was asked.
    Shutdown,
    /// Write memory to disk.
    Save,
    /// Pull the plug.
    TurnOff,
}

impl StopStep {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Shutdown => "the guest is asked to shut down",
            Self::Save => "memory is saved",
            Self::TurnOff => "it is turned off",
        }
    }
}

/// The ways that are tried, in order, for a machine in `state`.
pub(super) fn stop_steps(action: HostStopAction, state: VmState) -> Vec<StopStep> {
    use StopStep::{Save, Shutdown, TurnOff};
    match (action, state) {
        (_, state) if !state.is_active() => vec![],
        (HostStopAction::TurnOff, _) => vec![TurnOff],
        // A guest that cannot be saved can still be asked.
        (HostStopAction::Save, VmState::Running | VmState::Saving) => vec![Save, Shutdown, TurnOff],
        (HostStopAction::Shutdown, VmState::Running) => vec![Shutdown, Save, TurnOff],
        // Somebody wants its memory kept.
        (HostStopAction::Shutdown, VmState::Saving) => vec![Save, Shutdown, TurnOff],
        // A guest that stands still cannot follow.
        // So one that stands still for want of room; without its storage its worker refuses at once.
        (_, VmState::Paused | VmState::PausedCritical) => vec![Save, TurnOff],
        (_, VmState::Stopping) => vec![Shutdown, Save, TurnOff],
        // Starting: there is nothing to save.
        _ => vec![TurnOff],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn wanted(name: &str, order: u32, delay_s: u64) -> Wanted {
        let vm = VmId(Uuid::from_u128(name.bytes().fold(0, |sum, b| sum * 256 + u128::from(b))));
        Wanted { vm, name: name.into(), order, delay: Duration::from_secs(delay_s) }
    }

    #[test]
    fn machines_start_by_order_then_delay_then_name() {
        let all = [
            wanted("web", 2, 0),
            wanted("b", 1, 0),
            wanted("db", 1, 30),
            wanted("a", 1, 0),
            wanted("dns", 0, 60),
        ];
        let ids: Vec<_> =
            start_plan(all.to_vec()).into_iter().map(|b| (b.vm, b.not_before.as_secs())).collect();
        let expected: Vec<_> = ["dns", "a", "b", "db", "web"]
            .iter()
            .map(|n| all.iter().find(|w| w.name == *n).unwrap())
            .collect();
        assert_eq!(ids, expected.iter().map(|w| (w.vm, w.delay.as_secs())).collect::<Vec<_>>());
    }

    #[test]
    fn the_last_started_are_the_first_stopped() {
        let groups = stop_groups([(0, "dns"), (2, "web"), (1, "db"), (2, "shop")]);
        assert_eq!(groups, [vec!["web", "shop"], vec!["db"], vec!["dns"]]);
        assert!(stop_groups::<()>([]).is_empty());
    }

    #[test]
    fn who_starts_with_the_host() {
        use HostStartAction as A;
        let of = |action| [false, true].map(|was_on| wanted_at_boot(action, was_on));
        assert_eq!(of(A::Nothing), [false, false]);
        assert_eq!(of(A::StartIfRunning), [false, true]);
        assert_eq!(of(A::Start), [true, true]);
    }

    #[test]
    fn every_way_ends_with_the_plug() {
        use StopStep::{Save, Shutdown, TurnOff};
        for action in [HostStopAction::TurnOff, HostStopAction::Save, HostStopAction::Shutdown] {
            for state in [
                VmState::Starting,
                VmState::Running,
                VmState::Saving,
                VmState::Paused,
                VmState::PausedCritical,
                VmState::Stopping,
            ] {
                assert_eq!(stop_steps(action, state).last(), Some(&TurnOff), "{action:?} {state}");
            }
            assert!(stop_steps(action, VmState::Saved).is_empty());
        }
        assert_eq!(stop_steps(HostStopAction::Shutdown, VmState::Running), [Shutdown, Save, TurnOff]);
        assert_eq!(stop_steps(HostStopAction::Shutdown, VmState::Paused), [Save, TurnOff]);
        for state in [VmState::Running, VmState::Saving] {
            assert_eq!(stop_steps(HostStopAction::Save, state), [Save, Shutdown, TurnOff], "{state}");
        }
        for action in [HostStopAction::Save, HostStopAction::Shutdown] {
            assert_eq!(stop_steps(action, VmState::PausedCritical), [Save, TurnOff], "{action:?}");
        }
        assert_eq!(stop_steps(HostStopAction::Save, VmState::Starting), [TurnOff]);
    }
}

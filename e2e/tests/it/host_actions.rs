//! Machines go down and come up with their host.

use crate::FIRST;
use backstay_e2e::{Host, HostOptions, Micro, wait_for};

fn running(host: &Host, name: &str) -> Micro {
    host.ok(&["vm", "start", name]);
    let (mut guest, _) = Micro::booting(&host.console(name));
    assert_eq!(guest.count(), 1);
    guest
}

#[test]
fn what_was_on_when_the_host_went_down_in_order_is_on_after_its_start() {
    let mut host = Host::start();
    let machines: [(&str, &[&str]); 5] = [
        ("saves", &["--start-order", "1"]),
        ("plug", &["--start-order", "2", "--host-stop", "turn-off"]),
        ("deaf", &["--start-order", "2", "--host-stop", "shutdown", "--start-delay", "1s"]),
        ("stays", &["--host-start", "nothing"]),
        ("off", &[]),
    ];
    for (name, more) in machines {
        host.create_micro(name, "ide:0:0", more);
    }
    for name in ["saves", "plug", "deaf", "stays"] {
        running(&host, name).write(FIRST, 0x100, 0x61).unwrap();
    }
    // The microguest does not listen to the power button, so it is saved in the end.
    let out = host.run(&["host", "stop-guests", "--shutdown-timeout", "1s"]);
    assert_eq!(out.code, 0, "{}", out.err);
    for (name, state) in
        [("saves", "saved"), ("plug", "off"), ("deaf", "saved"), ("stays", "saved"), ("off", "off")]
    {
        assert_eq!(host.state_of(name), state, "{name}: {}", out.err);
    }
    let history = host.ok(&["event", "list", "--vm", "deaf"]);
    assert!(history.contains("vm.stopped-with-host") && history.contains("does not shut down"), "{history}");
    assert!(out.err.contains("deaf: saved"), "{}", out.err);

    host.kill_daemon();
    host.start_daemon();
    host.wait_idle();
    assert_eq!(host.state_of("saves"), "saved", "a start of the daemon is no start of the host");

    host.reboot();
    for (name, count) in [("saves", 2), ("deaf", 2), ("plug", 1)] {
        host.wait_state(name, "running");
        let mut guest = Micro::attach(&host.console(name)).unwrap();
        assert_eq!(guest.count(), count, "{name}");
        guest.expect(FIRST, 0x100, 0x61);
    }
    assert_eq!((host.state_of("stays"), host.state_of("off")), ("saved".into(), "off".into()));
    // Orders 1, then 2: within it the one without a delay.
    let events = host.json(&["event", "list"]);
    let items = events.as_array().or(events["items"].as_array()).unwrap();
    let last_start = |name: &str| {
        let started = |e: &&serde_json::Value| e["object"]["name"] == name && e["after"] == "starting";
        items.iter().filter(started).filter_map(|e| e["seq"].as_u64()).max().unwrap()
    };
    assert!(last_start("saves") < last_start("plug") && last_start("plug") < last_start("deaf"), "{events}");

    // Once is enough: what is turned off now stays off.
    host.ok(&["vm", "turn-off", "plug"]);
    host.kill_daemon();
    host.start_daemon();
    host.wait_idle();
    assert_eq!(host.state_of("plug"), "off");
}

#[test]
fn after_a_power_cut_what_ran_is_started_and_a_failure_stops_nobody_else() {
    let mut host = Host::start();
    let gone = host.create_micro("a-gone", "ide:0:0", &[]);
    host.create_micro("b", "ide:0:0", &[]);
    host.create_micro("c-always", "ide:0:0", &["--host-start", "start"]);
    for name in ["a-gone", "b"] {
        running(&host, name).write(FIRST, 0x100, 0x62).unwrap();
    }
    host.power_cut();
    std::fs::remove_file(gone).unwrap();
    host.start_daemon();
    for name in ["b", "c-always"] {
        host.wait_state(name, "running");
    }
    Micro::attach(&host.console("b")).unwrap().expect(FIRST, 0x100, 0x62);
    let told = wait_for("the failure to be told", || {
        let history = host.ok(&["event", "list", "--vm", "a-gone"]);
        history.contains("vm.start-failed").then_some(history)
    });
    assert!(told.contains("it was to start with the host"), "{told}");
    assert_eq!(host.state_of("a-gone"), "off");
}

/// The first one has all the memory there is; the second one is there as soon as the first one is off.
#[test]
fn a_machine_without_room_starts_when_another_one_ends() {
    let settings = "[limits]\nmemory = '800M'\nhost_memory = '64M'\n".into();
    let mut host = Host::with(&HostOptions { settings, ..HostOptions::default() });
    for (name, order) in [("first", "1"), ("second", "2")] {
        host.create_micro(name, "ide:0:0", &["--host-start", "start", "--start-order", order]);
        host.ok(&["vm", "set", name, "--memory", "512M"]);
    }
    host.reboot();
    host.wait_state("first", "running");
    let told = wait_for("the refusal to be told", || {
        let history = host.ok(&["event", "list", "--vm", "second"]);
        history.contains("vm.start-failed").then_some(history)
    });
    assert!(told.contains("when there is room"), "{told}");
    assert_eq!(host.state_of("second"), "off");
    host.ok(&["vm", "turn-off", "first"]);
    host.wait_state("second", "running");
    assert_eq!(host.state_of("first"), "off", "it had its turn");
}

/// The second one's delay keeps the sequence from its end.
#[test]
fn what_a_user_turned_off_is_not_started_again_by_the_next_daemon_of_a_long_sequence() {
    let mut host = Host::start();
    host.create_micro("a", "ide:0:0", &["--host-start", "start"]);
    host.create_micro("b", "ide:0:0", &["--host-start", "start"]);
    // Its start tells that the new daemon has been through the others.
    host.create_micro("c", "ide:0:0", &["--host-start", "start", "--start-delay", "8s"]);
    host.create_micro("z", "ide:0:0", &["--host-start", "start", "--start-delay", "1h"]);
    host.reboot();
    for name in ["a", "b"] {
        host.wait_state(name, "running");
    }
    host.ok(&["vm", "turn-off", "a"]);
    // One that was on by hand has been started, too.
    host.ok(&["vm", "start", "z"]);
    host.ok(&["vm", "turn-off", "z"]);
    host.kill_daemon();
    host.start_daemon();
    host.wait_state("c", "running");
    assert_eq!(["a", "b", "z"].map(|name| host.state_of(name)), ["off", "running", "off"]);
}

//! The daemon can die at any time: machines go on, and afterwards everything is known again.

use crate::FIRST;
use backstay_e2e::{Host, Micro, is_alive, parent_of};

#[test]
fn machines_outlive_the_daemon() {
    let mut host = Host::start();
    host.create_micro("m", "scsi:0:0", &[]);
    host.create_micro("idle", "ide:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x100, 0x11).unwrap();
    host.ok(&["checkpoint", "create", "m", "before"]);
    let (worker, qemu) = (host.pid("m", "worker_pid"), host.pid("m", "qemu_pid"));
    let events = host.json(&["event", "list"]);

    host.kill_daemon();
    assert_eq!(guest.count(), 1, "the guest runs without a daemon");
    guest.write(FIRST, 0x100, 0x22).unwrap();
    assert!(is_alive(worker) && is_alive(qemu));
    assert_ne!(parent_of(worker), Some(u64::from(std::process::id())));
    let message = host.refused(1, &["vm", "list"]);
    assert!(message.contains("daemon"), "the command line says what is missing: {message}");

    host.start_daemon();
    assert_eq!(host.state_of("m"), "running");
    assert_eq!(host.state_of("idle"), "off");
    assert_eq!(
        (host.pid("m", "worker_pid"), host.pid("m", "qemu_pid")),
        (worker, qemu),
        "the same processes"
    );
    assert_eq!(host.checkpoints("m"), ["before"]);
    let after = host.json(&["event", "list"]);
    let count =
        |events: &serde_json::Value| events.as_array().or(events["items"].as_array()).map_or(0, Vec::len);
    assert!(count(&events) > 0 && count(&after) >= count(&events), "its history is there: {events} {after}");
    assert_eq!(guest.count(), 2, "the console connection never broke");

    host.ok(&["checkpoint", "revert", "m", "--yes"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    guest.expect(FIRST, 0x100, 0x11);
}

#[test]
fn a_machine_that_ended_meanwhile_is_known_to_be_off() {
    let mut host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    let qemu = host.pid("m", "qemu_pid");
    host.kill_daemon();
    let _ = guest.power_off();
    backstay_e2e::wait_for("QEMU to end", || (!is_alive(qemu)).then_some(()));
    host.start_daemon();
    host.wait_state("m", "off");
    host.ok(&["vm", "start", "m"]);
}

#[test]
fn a_worker_that_died_with_the_daemon_is_replaced() {
    let mut host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x30, 0x66).unwrap();
    assert_eq!(guest.count(), 1);
    let (worker, qemu) = (host.pid("m", "worker_pid"), host.pid("m", "qemu_pid"));
    host.kill_daemon();
    backstay_e2e::kill(worker);
    assert!(is_alive(qemu), "QEMU outlives its worker");
    host.start_daemon();
    host.wait_state("m", "running");
    assert_eq!(host.pid("m", "qemu_pid"), qemu, "the new worker took the QEMU over");
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 2, "the guest noticed nothing");
    guest.expect(FIRST, 0x30, 0x66);
}

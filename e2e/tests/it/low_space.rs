//! The disk-space guard: a guest is paused before its volume is full, whoever is killed meanwhile, and goes on by itself.

use crate::FIRST;
use crate::full_disk::{Small, create};
use backstay_e2e::{Host, HostOptions, Micro, kill, wait_for};
use std::fs;

fn kinds(host: &Host, filter: &[&str]) -> Vec<String> {
    let events = host.json(&[&["event", "list", "--vm", "m"], filter].concat());
    let events = events.as_array().unwrap();
    events.iter().map(|event| event["kind"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_guest_is_paused_before_its_volume_is_full_and_goes_on_by_itself() {
    let Some(small) = Small::mount("64m") else { return };
    let mut host =
        Host::with(&HostOptions { state: Some(small.path().join("state")), ..HostOptions::default() });
    create(&host, small.path());
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x100, 0x31).unwrap();
    assert_eq!(guest.count(), 1);
    let filler = small.fill();
    host.wait_state("m", "paused-critical");
    let reason = host.vm("m")["state_reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("volume") && reason.contains("make room"), "{reason}");
    assert_eq!(kinds(&host, &["--type", "disk"]), Vec::<String>::new(), "no request has failed");
    assert!(host.refused(5, &["vm", "resume", "m"]).contains("by itself"));

    // Neither a new daemon nor a new worker forgets it.
    host.kill_daemon();
    host.start_daemon();
    host.wait_state("m", "paused-critical");
    let (worker, qemu) = (host.pid("m", "worker_pid"), host.pid("m", "qemu_pid"));
    kill(worker);
    wait_for("a new worker", || (host.vm("m")["run"]["worker_pid"].as_u64()? != worker).then_some(()));
    host.wait_state("m", "paused-critical");
    assert_eq!(host.pid("m", "qemu_pid"), qemu);

    fs::remove_file(filler).unwrap();
    host.wait_state("m", "running");
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 2, "the same memory");
    guest.write(FIRST, 0x101, 0x32).unwrap();
    guest.expect(FIRST, 0x100, 0x31);
    guest.expect(FIRST, 0x101, 0x32);
    let told = kinds(&host, &["--type", "storage"]);
    assert_eq!(told, ["storage.low-space", "storage.space-back"]);
    assert_eq!(kinds(&host, &["--type", "storage", "--severity", "error"]), ["storage.low-space"]);
    drop(host);
}

/// A pause that the user asked for is not undone by room, and a machine is not started into a full volume.
#[test]
fn a_paused_machine_stays_paused_and_nothing_starts_on_a_full_volume() {
    let Some(small) = Small::mount("64m") else { return };
    let host = Host::with(&HostOptions { state: Some(small.path().join("state")), ..HostOptions::default() });
    create(&host, small.path());
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.count();
    host.ok(&["vm", "pause", "m"]);
    let filler = small.fill();
    // The database is on the same volume, so the event waits; the worker has told it already.
    let told = host.console("m").with_file_name("events.jsonl");
    wait_for("the guard", || fs::read_to_string(&told).ok()?.contains("space-low").then_some(()));
    assert_eq!(host.state_of("m"), "paused");
    fs::remove_file(&filler).unwrap();
    wait_for("the guard to let go", || kinds(&host, &["--type", "storage.space-back"]).first().cloned());
    assert_eq!(host.state_of("m"), "paused");
    host.ok(&["vm", "resume", "m"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 2);
    host.ok(&["vm", "turn-off", "m"]);
    small.fill();
    let refused = host.run(&["vm", "start", "m"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("make room") && refused.err.contains("[guard]"), "{}", refused.err);
    drop(host);
}

/// Its storage answers, so its memory is not lost with the host; afterwards it goes on, because nobody had paused it.
#[test]
fn a_guest_that_is_held_is_saved_with_the_host() {
    let Some(small) = Small::mount("64m") else { return };
    let mut host = Host::start();
    create(&host, small.path());
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x100, 0x31).unwrap();
    assert_eq!(guest.count(), 1);
    let filler = small.fill();
    host.wait_state("m", "paused-critical");
    let out = host.run(&["host", "stop-guests"]);
    assert_eq!((out.code, host.state_of("m")), (0, "saved".into()), "{}", out.err);
    fs::remove_file(filler).unwrap();
    host.reboot();
    host.wait_state("m", "running");
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 2, "the same memory");
    guest.expect(FIRST, 0x100, 0x31);
    drop(host);
}

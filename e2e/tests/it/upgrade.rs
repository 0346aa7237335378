//! A new daemon takes over what the previous release left running: its workers and QEMUs, checkpoints, database.

use crate::FIRST;
use backstay_e2e::{Host, HostOptions, Micro, kill, previous_release, wait_for};

#[test]
fn machines_of_the_previous_release_run_on_and_go_back_to_their_checkpoints() {
    let Some(previous) = previous_release() else { return };
    let mut host = Host::with(&HostOptions { backstay: Some(previous), ..HostOptions::default() });
    host.create_micro("m", "scsi:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x100, 0x0A).unwrap();
    assert_eq!(guest.count(), 1);
    host.ok(&["checkpoint", "create", "m", "old"]);
    guest.write(FIRST, 0x100, 0x0B).unwrap();
    assert_eq!(guest.count(), 2);
    host.create_micro("off", "ide:0:0", &[]);
    host.ok(&["checkpoint", "create", "off", "taken while off"]);
    let (worker, qemu) = (host.pid("m", "worker_pid"), host.pid("m", "qemu_pid"));
    drop(guest);

    // The package is replaced and the daemon started again: nothing else.
    host.upgrade();
    assert_eq!(host.state_of("m"), "running");
    assert_eq!((host.pid("m", "worker_pid"), host.pid("m", "qemu_pid")), (worker, qemu), "untouched");
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 3);
    guest.expect(FIRST, 0x100, 0x0B);
    let events = host.json(&["event", "list", "--vm", "m", "--limit", "1000"]);
    let created = events.as_array().unwrap().iter().any(|event| event["kind"] == "vm.created");
    assert!(created, "the history of the previous release is there");
    assert!(host.ok(&["task", "list", "--vm", "m"]).contains("vm.start"));

    // Under the worker of the previous release.
    host.ok(&["vm", "pause", "m"]);
    host.ok(&["vm", "resume", "m"]);
    let disk = host.json(&["vm", "disks", "m"])[0]["path"].clone();
    let disk = disk.as_str().unwrap_or_default();
    assert!(host.ok(&["disk", "map", disk]).lines().count() > 1);
    host.ok(&["checkpoint", "create", "m", "with the old worker"]);
    guest.write(FIRST, 0x100, 0x0C).unwrap();
    assert_eq!(guest.count(), 4);
    drop(guest);

    // Its worker dies: one of this release takes its QEMU over.
    kill(worker);
    wait_for("a new worker", || (host.vm("m")["run"]["worker_pid"].as_u64()? != worker).then_some(()));
    host.wait_state("m", "running");
    assert_eq!(host.pid("m", "qemu_pid"), qemu, "the QEMU that the previous release started");
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 5);
    guest.expect(FIRST, 0x100, 0x0C);
    host.ok(&["checkpoint", "create", "m", "with the new worker"]);

    // Memory and disks of every release, newest and oldest.
    for (checkpoint, count, byte) in
        [("with the old worker", 3, 0x0B), ("old", 1, 0x0A), ("with the new worker", 5, 0x0C)]
    {
        host.ok(&["checkpoint", "apply", "m", checkpoint, "--yes"]);
        let mut guest = Micro::attach(&host.console("m")).unwrap();
        assert_eq!(guest.count(), count + 1, "{checkpoint}");
        guest.expect(FIRST, 0x100, byte);
    }
    host.ok(&["checkpoint", "apply", "off", "taken while off", "--yes"]);
    host.ok(&["vm", "start", "off"]);
    host.ok(&["vm", "turn-off", "off"]);
    host.ok(&["vm", "turn-off", "m"]);
    assert_eq!(host.state_of("m"), "off");
}

//! QEMU can die at any time: it is noticed, written down with its reason, and the recovery action is taken.

use crate::FIRST;
use backstay_e2e::{Host, Micro, kill, wait_for};

#[test]
fn a_dead_qemu_is_started_again() {
    let host = Host::start();
    host.create_micro("m", "scsi:0:0", &["--recovery", "restart"]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    for lba in 0x100..0x120 {
        guest.write(FIRST, lba, 0x21).unwrap();
    }
    let qemu = host.pid("m", "qemu_pid");
    kill(qemu);
    wait_for("another QEMU", || {
        let vm = host.vm("m");
        (vm["state"] == "running" && vm["run"]["qemu_pid"].as_u64().is_some_and(|pid| pid != qemu))
            .then_some(())
    });
    guest.wait_ready();
    assert_eq!(guest.count(), 1, "it booted: the counter was in memory");
    for lba in 0x100..0x120 {
        guest.expect(FIRST, lba, 0x21);
    }
    let events = host.ok(&["event", "list", "-o", "json"]);
    assert!(
        events.contains("signal 9") || events.contains("SIGKILL"),
        "the reason is written down: {events}"
    );
}

#[test]
fn a_dead_qemu_stays_dead_if_so_wished() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &["--recovery", "none"]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x50, 0x99).unwrap();
    kill(host.pid("m", "qemu_pid"));
    host.wait_state("m", "failed");
    let vm = host.vm("m");
    let reason = vm["state_reason"].as_str().unwrap_or_default();
    assert!(reason.contains('9') || reason.to_lowercase().contains("kill"), "why: {vm}");
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.expect(FIRST, 0x50, 0x99);
}

/// The checkpoint that a machine had before is still good after its QEMU has died.
#[test]
fn a_checkpoint_outlives_qemu() {
    let host = Host::start();
    host.create_micro("m", "virtio:0", &["--recovery", "none"]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    assert_eq!(guest.count(), 1);
    guest.write(FIRST, 0x60, 0x01).unwrap();
    host.ok(&["checkpoint", "create", "m", "good"]);
    guest.write(FIRST, 0x60, 0x02).unwrap();
    kill(host.pid("m", "qemu_pid"));
    host.wait_state("m", "failed");
    host.ok(&["checkpoint", "revert", "m", "--yes"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 2);
    guest.expect(FIRST, 0x60, 0x01);
}

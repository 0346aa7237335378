//! QEMU does not run as root.

use crate::FIRST;
use backstay_e2e::{Host, HostOptions, Micro, kill, wait_for};
use std::fs;

/// A machine's life with QEMU as `user`: checkpoint, a worker that is killed, revert. Returns the checkpoint's method with
/// its reason, and whether the host says that background snapshots work.
fn story(user: &str) -> (String, String, bool) {
    let host = Host::with(&HostOptions { qemu_user: Some(user.into()), ..HostOptions::default() });
    host.create_micro("m", "scsi:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    let qemu = host.pid("m", "qemu_pid");
    let status = fs::read_to_string(format!("/proc/{qemu}/status")).unwrap();
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:")).unwrap();
    assert!(uid.split_whitespace().all(|id| id != "0"), "QEMU runs as root: {uid}");
    assert!(status.contains("CapEff:\t0000000000000000"), "QEMU has capabilities: {status}");

    guest.count();
    guest.write(FIRST, 0x100, 0x0A).unwrap();
    let task = host.json(&["checkpoint", "create", "m", "c"]);
    let told = |field: &str| task["result"][field].as_str().unwrap_or_default().to_owned();

    // Another worker has to reach the sockets of a QEMU that is not its own.
    let worker = host.pid("m", "worker_pid");
    kill(worker);
    wait_for("a new worker", || (host.vm("m")["run"]["worker_pid"].as_u64()? != worker).then_some(()));
    host.wait_state("m", "running");
    assert_eq!(host.pid("m", "qemu_pid"), qemu, "the same QEMU");
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    guest.write(FIRST, 0x100, 0x0B).unwrap();
    assert_eq!(guest.count(), 2);
    host.ok(&["checkpoint", "create", "m", "after"]);

    host.ok(&["checkpoint", "apply", "m", "c", "--no-checkpoint-first", "--yes"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 2, "memory is the checkpoint's");
    guest.expect(FIRST, 0x100, 0x0A);
    let can = host.json(&["host", "show"])["background_snapshot"].as_bool().unwrap();
    (told("method"), told("method_reason"), can)
}

/// Without the permission on /dev/userfaultfd memory is saved another way, which the task tells; the rest is the same.
#[test]
fn qemu_runs_as_a_user_that_owns_nothing() {
    let (method, reason, can) = story("nobody");
    assert!(!reason.is_empty());
    if can {
        println!("this host lets everybody use userfaultfd");
        assert_eq!(method, "background");
    } else {
        assert_eq!(method, "live-mapped-ram");
        assert!(reason.contains("no background snapshot"), "{reason}");
    }
}

/// As the package sets it up: the group of /dev/userfaultfd is that of QEMU's user.
#[test]
fn qemus_own_user_takes_background_snapshots() {
    let known = fs::read_to_string("/etc/passwd").is_ok_and(|text| text.contains("\nbackstay-vm:"));
    if !known {
        return println!("skipped: there is no user backstay-vm on this host");
    }
    let (method, reason, can) = story("backstay-vm");
    if !can {
        return println!("skipped: /dev/userfaultfd does not belong to backstay-vm here: {reason}");
    }
    assert_eq!(method, "background", "{reason}");
}

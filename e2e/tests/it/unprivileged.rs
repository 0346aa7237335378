//! QEMU does not run as root.

use crate::FIRST;
use backstay_e2e::{Host, HostOptions, Micro};
use std::fs;

/// Without the permission on /dev/userfaultfd memory is saved another way, which the task tells; the rest is the same.
#[test]
fn qemu_runs_as_a_user_that_owns_nothing() {
    let host = Host::with(&HostOptions { qemu_user: Some("nobody".into()), ..HostOptions::default() });
    host.create_micro("m", "scsi:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid("m", "qemu_pid"))).unwrap();
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:")).unwrap();
    assert!(uid.split_whitespace().all(|id| id != "0"), "QEMU runs as root: {uid}");
    assert!(status.contains("CapEff:\t0000000000000000"), "QEMU has capabilities: {status}");

    guest.count();
    guest.write(FIRST, 0x100, 0x0A).unwrap();
    let task = host.json(&["checkpoint", "create", "m", "c"]);
    assert!(task["result"]["method_reason"].as_str().is_some_and(|r| !r.is_empty()), "{task}");
    guest.write(FIRST, 0x100, 0x0B).unwrap();
    host.ok(&["checkpoint", "revert", "m", "--yes"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 2);
    guest.expect(FIRST, 0x100, 0x0A);
}

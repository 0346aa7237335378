//! One checkpoint and back, on every bus, running and off, and around a tree.

use crate::{FIRST, SECOND};
use backstay_e2e::{Host, Micro};
use std::process::Command;

/// Create, write, checkpoint while it runs, break, revert: disk and memory are what they were.
fn whole_cycle(slot: &str, second: &str) {
    let host = Host::start();
    host.create_micro("m", slot, &["--new-disk", &format!("{second}=64M")]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, disks) = Micro::booting(&host.console("m"));
    assert_eq!(disks, 2, "the BIOS sees both disks");
    for lba in 0x100..0x110 {
        guest.write(FIRST, lba, 0xAA).unwrap();
        guest.write(SECOND, lba, 0xA1).unwrap();
    }
    assert_eq!((guest.count(), guest.count()), (1, 2));

    let task = host.json(&["checkpoint", "create", "m", "before"]);
    let result = &task["result"];
    assert!(result["pause_us"].as_u64().is_some_and(|us| us > 0), "the pause is told: {task}");
    assert!(result["total_us"].as_u64() >= result["pause_us"].as_u64(), "so is the total: {task}");
    assert!(
        result["method"].is_string() && result["method_reason"].is_string(),
        "and how, and why so: {task}"
    );

    // The guest goes on, on new files.
    assert_eq!(guest.count(), 3);
    for lba in 0x108..0x118 {
        guest.write(FIRST, lba, 0xBB).unwrap();
        guest.write(SECOND, lba, 0xB1).unwrap();
    }
    guest.expect(FIRST, 0x107, 0xAA);
    guest.expect(FIRST, 0x108, 0xBB);

    host.ok(&["checkpoint", "revert", "m", "--yes"]);
    assert_eq!(host.state_of("m"), "running");
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 3, "memory continues from the checkpoint, where the counter was 2");
    for lba in 0x100..0x110 {
        guest.expect(FIRST, lba, 0xAA);
        guest.expect(SECOND, lba, 0xA1);
    }
    for lba in 0x110..0x118 {
        guest.expect(FIRST, lba, 0);
        guest.expect(SECOND, lba, 0);
    }

    // A second round from the same checkpoint.
    guest.write(FIRST, 0x100, 0xCC).unwrap();
    host.ok(&["checkpoint", "revert", "m", "--yes"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 3);
    guest.expect(FIRST, 0x100, 0xAA);
    host.ok(&["vm", "turn-off", "m"]);
    assert_eq!(host.checkpoints("m"), ["before"]);
}

#[test]
fn a_running_machine_comes_back_from_ide() {
    whole_cycle("ide:0:0", "ide:1:0");
}

#[test]
fn a_running_machine_comes_back_from_scsi() {
    whole_cycle("scsi:0:0", "scsi:0:1");
}

#[test]
fn a_running_machine_comes_back_from_virtio() {
    whole_cycle("virtio:0", "virtio:1");
}

#[test]
fn a_machine_that_is_off_comes_back() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    host.ok(&["checkpoint", "create", "m", "clean"]);
    let list = host.json(&["checkpoint", "list", "m"]);
    assert_eq!(list["items"][0]["has_memory"], false, "{list}");
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x200, 0xEE).unwrap();
    host.ok(&["checkpoint", "revert", "m", "--yes"]);
    assert_eq!(host.state_of("m"), "off", "the checkpoint was taken while it was off");
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.expect(FIRST, 0x200, 0);
}

#[test]
fn a_paused_machine_comes_back_paused() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    assert_eq!(guest.count(), 1);
    host.ok(&["vm", "pause", "m"]);
    host.ok(&["checkpoint", "create", "m", "still"]);
    assert_eq!(host.state_of("m"), "paused");
    host.ok(&["vm", "resume", "m"]);
    assert_eq!(guest.count(), 2);
    host.ok(&["checkpoint", "revert", "m", "--yes"]);
    // Whatever Hyper-V would do with a paused state, ours must be one a user can go on from.
    if host.state_of("m") == "paused" {
        host.ok(&["vm", "resume", "m"]);
    }
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 2);
}

/// `first` ─ `second` ─ Now, then back to `first` and a branch from there, then over to `second`.
#[test]
fn every_checkpoint_of_a_tree_can_be_applied() {
    let host = Host::start();
    host.create_micro("m", "scsi:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.count();
    guest.write(FIRST, 0x100, 0x11).unwrap();
    host.ok(&["checkpoint", "create", "m", "first"]);
    guest.count();
    guest.write(FIRST, 0x100, 0x22).unwrap();
    host.ok(&["checkpoint", "create", "m", "second"]);
    guest.count();
    guest.write(FIRST, 0x100, 0x33).unwrap();

    host.ok(&["checkpoint", "apply", "m", "first", "--no-checkpoint-first", "--yes"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 2);
    guest.expect(FIRST, 0x100, 0x11);
    guest.write(FIRST, 0x100, 0x44).unwrap();
    host.ok(&["checkpoint", "create", "m", "branch"]);

    host.ok(&["checkpoint", "apply", "m", "second", "--no-checkpoint-first", "--yes"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 3);
    guest.expect(FIRST, 0x100, 0x22);

    host.ok(&["checkpoint", "apply", "m", "branch", "--no-checkpoint-first", "--yes"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 3);
    guest.expect(FIRST, 0x100, 0x44);

    let list = host.json(&["checkpoint", "list", "m"]);
    let tree: Vec<_> = list["tree"].as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(tree, ["first", "second", "branch", "Now"], "{list}");
    let shown = host.ok(&["checkpoint", "list", "m", "--tree"]);
    assert!(shown.contains("Now"), "{shown}");

    // Back by name of a checkpoint whose memory is not wanted: disks only, off.
    host.ok(&["checkpoint", "apply", "m", "first", "--without-memory", "--no-checkpoint-first", "--yes"]);
    assert_eq!(host.state_of("m"), "off");
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    assert_eq!(guest.count(), 1, "it booted");
    guest.expect(FIRST, 0x100, 0x11);
}

/// What the guest wrote is what somebody else's reader finds in the file.
#[test]
fn the_disk_is_a_vhd_that_others_read() {
    let host = Host::start();
    let disk = host.create_micro("m", "ide:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    for lba in 0x100..0x120 {
        guest.write(FIRST, lba, 0x5A).unwrap();
    }
    host.ok(&["vm", "turn-off", "m"]);
    let output = Command::new("7zz").args(["x", "-so", "-tvhd"]).arg(&disk).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let written = &output.stdout[0x100 * 512..0x120 * 512];
    assert!(written.iter().all(|byte| *byte == 0x5A), "7-Zip reads something else than the guest wrote");
    let check = Command::new("qemu-img").args(["check", "-f", "vpc"]).arg(&disk).output().unwrap();
    assert!(
        check.status.success() || check.status.code() == Some(63),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );
    host.ok(&["disk", "check", disk.to_str().unwrap()]);
}

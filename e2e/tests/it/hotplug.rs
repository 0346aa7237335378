//! Disks that come and go while the guest runs, and what is left when somebody is killed in the middle.

use crate::FIRST;
use backstay_e2e::{Host, Linux, Micro, kill, linux_image, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};

fn drives(host: &Host, vm: &str) -> Vec<String> {
    let vm = host.vm(vm);
    let slots =
        vm["drives"].as_array().unwrap().iter().map(|drive| drive["slot"].as_str().unwrap().to_owned());
    slots.collect()
}

fn top(host: &Host, vm: &str, slot: &str) -> PathBuf {
    let disks = host.json(&["vm", "disks", vm]);
    let items: Vec<Value> = disks.as_array().or_else(|| disks["items"].as_array()).cloned().unwrap();
    let disk = items.into_iter().find(|disk| disk["slot"] == slot).unwrap();
    disk["path"].as_str().unwrap().into()
}

/// A new VHDX of 64 MiB.
fn new_disk(host: &Host, name: &str) -> PathBuf {
    let path = host.folder().join(name);
    host.ok(&["disk", "create", path.to_str().unwrap(), "--size", "64M"]);
    path
}

fn attach(slot: &str, path: &Path) -> String {
    format!("{slot}={}", path.display())
}

/// What is in a disk, read through its chain by a command of its own.
fn content(host: &Host, disk: &Path) -> Vec<u8> {
    let raw = disk.with_extension("copy.raw");
    host.ok(&["disk", "convert", disk.to_str().unwrap(), raw.to_str().unwrap()]);
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

fn next_worker(host: &Host, vm: &str, old: u64) {
    wait_for("a new worker", || {
        let vm = host.vm(vm);
        let new = vm["run"]["worker_pid"].as_u64().filter(|pid| *pid != old)?;
        (vm["state"] == "running").then_some(new)
    });
}

/// Where the guest has the disk at a LUN of its first SCSI target.
const FIND: &str =
    "for d in /sys/class/scsi_device/*:0:0:LUN/device/block/*; do [ -e $d ] && basename $d; done; true";

fn device(guest: &mut Linux, lun: u8) -> Option<String> {
    let found = guest.run(&FIND.replace("LUN", &lun.to_string()));
    (!found.is_empty()).then(|| format!("/dev/{found}"))
}

#[test]
fn a_linux_guest_gets_a_disk_writes_and_gives_it_back() {
    let Some(image) = linux_image() else { return };
    let mut host = Host::start();
    let disk = host.vhd_from(&image, "demo.vhd");
    host.ok(&[
        "vm",
        "create",
        "demo",
        "--memory",
        "192M",
        "--no-network",
        "--disk",
        &attach("virtio:0", &disk),
    ]);
    host.ok(&["vm", "start", "demo"]);
    let mut guest = Linux::booting(&host.console("demo"));
    assert_eq!(device(&mut guest, 3), None);

    let more = new_disk(&host, "more.vhdx");
    host.ok(&["vm", "set", "demo", "--disk", &attach("scsi:0:3", &more)]);
    let dev = wait_for("the guest to see it", || device(&mut guest, 3));
    assert_eq!(guest.run(&format!("blockdev --getsize64 {dev}")), (64 << 20).to_string());
    guest.run("dd if=/dev/urandom of=/tmp/random bs=1M count=4 2>/dev/null");
    let sum = guest.run("sha256sum </tmp/random");
    guest.run(&format!("dd if=/tmp/random of={dev} bs=1M seek=3 conv=fsync 2>/dev/null"));
    let read = format!("dd if={dev} bs=1M skip=3 count=4 2>/dev/null | sha256sum");

    // A worker that takes over, and a daemon, know it; a checkpoint holds it.
    let worker = host.pid("demo", "worker_pid");
    kill(worker);
    next_worker(&host, "demo", worker);
    let mut guest = Linux::attach(&host.console("demo"));
    guest.run("echo 3 >/proc/sys/vm/drop_caches");
    assert_eq!(guest.run(&read), sum);
    host.kill_daemon();
    host.start_daemon();
    assert_eq!(drives(&host, "demo"), ["scsi:0:3", "virtio:0"]);
    host.ok(&["checkpoint", "create", "demo", "with"]);
    guest.run(&format!("dd if=/dev/zero of={dev} bs=1M seek=4 count=1 conv=fsync 2>/dev/null"));
    let written = top(&host, "demo", "scsi:0:3");
    assert_ne!(written, more, "it goes on above the checkpoint");

    host.ok(&["vm", "set", "demo", "--remove-drive", "scsi:0:3"]);
    wait_for("the guest to see it go", || device(&mut guest, 3).is_none().then_some(()));
    assert_eq!(drives(&host, "demo"), ["virtio:0"]);
    assert_eq!(guest.run("dmesg | grep -c 'I/O error' || true"), "0");
    let (now, then) = (content(&host, &written), content(&host, &more));
    assert!(
        now[4 << 20..5 << 20].iter().all(|byte| *byte == 0)
            && now[3 << 20..4 << 20] == then[3 << 20..4 << 20]
    );
    fs::write(host.folder().join("then"), &then[3 << 20..7 << 20]).unwrap();
    let outside = std::process::Command::new("sha256sum").arg(host.folder().join("then")).output().unwrap();
    let outside = String::from_utf8(outside.stdout).unwrap();
    assert_eq!(outside.split(' ').next(), sum.split(' ').next(), "byte for byte what the guest wrote");

    // Memory and hardware of the checkpoint: a QEMU that has the disk from the start.
    host.ok(&["checkpoint", "revert", "demo", "--yes"]);
    let mut guest = Linux::attach(&host.console("demo"));
    assert_eq!(drives(&host, "demo"), ["scsi:0:3", "virtio:0"]);
    guest.run("echo 3 >/proc/sys/vm/drop_caches");
    assert_eq!(guest.run(&read), sum);
    // And from there again another one, and this one goes.
    host.ok(&["vm", "set", "demo", "--new-disk", "32M", "--remove-drive", "scsi:0:3"]);
    assert_eq!(drives(&host, "demo"), ["scsi:0:0", "virtio:0"]);
    wait_for("the new disk", || device(&mut guest, 0));
    assert_eq!(device(&mut guest, 3), None);
}

#[test]
fn what_a_running_guest_cannot_follow_is_refused_and_changes_nothing() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &["--optical", "scsi:0:9"]);
    host.create_micro("other", "ide:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    let (free, used) = (new_disk(&host, "free.vhdx"), host.folder().join("other.vhd"));
    let before = host.vm("m");
    let set = |option: &str, value: &str| ["vm", "set", "m", option, value].map(str::to_owned);
    let refused = |args: [String; 5]| host.refused(5, &args.each_ref().map(String::as_str));
    let rule = "only hard disks on SCSI are attached and detached while it runs";
    for slot in ["ide:0:1", "virtio:3"] {
        let refusal = refused(set("--disk", &attach(slot, &free)));
        assert!(refusal.contains(slot) && refusal.contains(rule), "{refusal}");
    }
    for (option, value) in
        [("--remove-drive", "ide:0:0"), ("--remove-drive", "scsi:0:9"), ("--optical", "scsi:0:8")]
    {
        let refusal = refused(set(option, value));
        assert!(refusal.contains(rule), "{refusal}");
    }
    let refusal = refused(set("--disk", &attach("scsi:2:0", &free)));
    assert!(
        refusal.contains("runs without SCSI controller 2") && refusal.contains("turn it off"),
        "{refusal}"
    );
    let refusal = refused(set("--disk", &attach("scsi:0:1", &used)));
    assert!(refusal.contains("is used by 'other'"), "{refusal}");
    let refusal = refused(set("--disk", &attach("scsi:0:1", &host.folder().join("m.vhd"))));
    assert!(refusal.contains("m.vhd"), "{refusal}");
    host.refused(2, &["vm", "set", "m", "--disk", &attach("scsi:0:9", &free)]);
    host.refused(3, &["vm", "set", "m", "--remove-drive", "scsi:0:1"]);
    let mut serving = host.command(&["disk", "serve", free.to_str().unwrap(), "--socket", "free.sock"]);
    let mut serving = serving.spawn().unwrap();
    wait_for("the disk to be served", || host.folder().join("free.sock").exists().then_some(()));
    let refusal = refused(set("--disk", &attach("scsi:0:1", &free)));
    assert!(refusal.contains("in use"), "{refusal}");
    serving.kill().unwrap();
    serving.wait().unwrap();
    host.ok(&["vm", "pause", "m"]);
    let refusal = refused(set("--disk", &attach("scsi:0:1", &free)));
    assert!(refusal.contains("'m' is paused"), "{refusal}");
    host.ok(&["vm", "resume", "m"]);
    let after = host.vm("m");
    assert_eq!((&after["drives"], &after["generation"]), (&before["drives"], &before["generation"]));

    host.ok(&["vm", "set", "m", "--disk", &attach("scsi:0:1", &free)]);
    guest.write(FIRST, 0x100, 1).unwrap();
    assert_eq!(drives(&host, "m"), ["ide:0:0", "scsi:0:1", "scsi:0:9"]);
    let refusal = host.refused(5, &["vm", "set", "other", "--disk", &attach("ide:0:1", &free)]);
    assert!(refusal.contains("is used by 'm'"), "{refusal}");
    // A machine of its own: QEMU starts again with all its disks.
    kill(host.pid("m", "qemu_pid"));
    guest.wait_ready();
    host.ok(&["checkpoint", "create", "m", "all"]);
    host.ok(&["vm", "turn-off", "m"]);
    host.ok(&["vm", "start", "m"]);
    let (_, disks) = Micro::booting(&host.console("m"));
    assert_eq!(disks, 2, "the BIOS sees both");
}

/// Wherever it is hit: afterwards configuration, worker and QEMU agree, which a checkpoint and its memory prove.
fn killed_in_the_middle(mut hit: impl FnMut(&mut Host)) {
    let mut host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    for round in 0..6_u64 {
        let there = drives(&host, "m").len() > 1;
        let args = if there { ["--remove-drive", "scsi:0:3"] } else { ["--new-disk", "scsi:0:3=16M"] };
        let mut change = host.command(&[&["vm", "set", "m"][..], &args].concat()).spawn().unwrap();
        thread::sleep(Duration::from_millis(15 * round));
        hit(&mut host);
        change.wait().unwrap();
        host.wait_state("m", "running");
        host.wait_idle();
        let name = format!("round {round}");
        host.ok(&["checkpoint", "create", "m", &name]);
        host.ok(&["checkpoint", "revert", "m", "--yes"]);
        guest = Micro::attach(&host.console("m")).unwrap();
        guest.write(FIRST, 0x100, u8::try_from(round).unwrap()).unwrap();
    }
    if drives(&host, "m").len() > 1 {
        host.ok(&["vm", "set", "m", "--remove-drive", "scsi:0:3"]);
    }
    assert_eq!(drives(&host, "m"), ["ide:0:0"]);
    host.ok(&["vm", "set", "m", "--new-disk", "scsi:0:3=16M"]);
    assert_eq!(drives(&host, "m"), ["ide:0:0", "scsi:0:3"]);
    guest.count();
}

#[test]
fn a_worker_killed_while_a_disk_comes_or_goes_leaves_one_truth() {
    killed_in_the_middle(|host| {
        let worker = host.pid("m", "worker_pid");
        kill(worker);
        next_worker(host, "m", worker);
    });
}

#[test]
fn a_daemon_killed_while_a_disk_comes_or_goes_leaves_one_truth() {
    killed_in_the_middle(|host| {
        host.kill_daemon();
        host.start_daemon();
    });
}

//! A checkpoint that is being taken can be cancelled, and the power button works meanwhile.

use crate::FIRST;
use backstay_e2e::{Host, HostOptions, Micro, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;

/// A machine whose memory takes a while to write.
fn big_guest(host: &Host) -> Micro {
    let disk = host.vhd_from(&backstay_e2e::microguest_image(), "m.vhd");
    let drive = format!("scsi:0:0={}", disk.display());
    host.ok(&[
        "vm",
        "create",
        "m",
        "--memory",
        "256M",
        "--no-network",
        "--recovery",
        "none",
        "--disk",
        &drive,
    ]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x100, 0x01).unwrap();
    assert_eq!(guest.ask("dc0").unwrap(), "d", "192 MiB are filled");
    guest
}

fn send(qemu: u64, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(qemu).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Begins a checkpoint without waiting for it; its task.
fn begin(host: &Host) -> String {
    let task = host.json(&["checkpoint", "create", "m", "c", "--no-wait"]);
    task["id"].as_str().unwrap().to_owned()
}

fn ended(host: &Host, task: &str) -> String {
    let state = || host.json(&["task", "show", task])["state"].as_str().map(str::to_owned);
    wait_for("the task to end", || state().filter(|s| !matches!(s.as_str(), "running" | "cancelling")))
}

/// The machine has one disk file and no checkpoint, and nothing was left in the folder of checkpoints.
fn nothing_is_left(host: &Host) {
    assert!(host.checkpoints("m").is_empty());
    let disks = host.json(&["vm", "disks", "m"]);
    assert_eq!(disks[0]["chain"].as_array().unwrap().len(), 1, "{disks}");
    let mut left = Vec::new();
    for folder in fs::read_dir(host.state().join("Snapshots")).into_iter().flatten().flatten() {
        left.extend(fs::read_dir(folder.path()).into_iter().flatten().flatten().map(|file| file.path()));
    }
    assert!(left.is_empty(), "{left:?}");
}

/// As the fallback works where background snapshots do not: one call from the first page to the end.
#[test]
fn a_checkpoint_by_the_fallback_is_cancelled_while_memory_is_written() {
    let host = Host::with(&HostOptions { qemu_user: Some("nobody".into()), ..HostOptions::default() });
    let mut guest = big_guest(&host);
    let task = begin(&host);
    let said = host.run(&["task", "cancel", &task]);
    let state = ended(&host, &task);
    assert_eq!((said.code, state.as_str()), (0, "cancelled"), "{}", said.err);
    nothing_is_left(&host);
    assert_eq!(host.state_of("m"), "running");
    guest.write(FIRST, 0x100, 0x02).unwrap();
    guest.expect(FIRST, 0x100, 0x02);
    host.ok(&["checkpoint", "create", "m", "after"]);
}

#[test]
fn the_power_button_works_while_a_checkpoint_waits_for_a_qemu_that_hangs() {
    let host = Host::start();
    let _guest = big_guest(&host);
    let qemu = host.pid("m", "qemu_pid");
    send(qemu, Signal::STOP);
    let task = begin(&host);
    host.ok(&["vm", "turn-off", "m"]);
    assert_eq!(host.state_of("m"), "off");
    assert_eq!(ended(&host, &task), "cancelled");
    nothing_is_left(&host);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.expect(FIRST, 0x100, 0x01);
}

#[test]
fn a_checkpoint_that_waits_for_a_qemu_that_hangs_is_cancelled() {
    let host = Host::start();
    let mut guest = big_guest(&host);
    let qemu = host.pid("m", "qemu_pid");
    send(qemu, Signal::STOP);
    let task = begin(&host);
    host.ok(&["task", "cancel", &task]);
    assert_eq!(ended(&host, &task), "cancelled");
    send(qemu, Signal::CONT);
    nothing_is_left(&host);
    guest.expect(FIRST, 0x100, 0x01);
    assert_eq!(host.state_of("m"), "running");
    host.ok(&["checkpoint", "create", "m", "after"]);
}

/// Whoever was told that it is cancelled keeps the machine as it is.
#[test]
fn a_revert_that_is_cancelled_during_its_checkpoint_changes_nothing() {
    let host = Host::start();
    let mut guest = big_guest(&host);
    host.ok(&["checkpoint", "create", "m", "there"]);
    guest.write(FIRST, 0x100, 0x02).unwrap();
    let begun = host.json(&["checkpoint", "revert", "m", "--checkpoint-first", "--yes", "--no-wait"]);
    let task = begun["id"].as_str().unwrap();
    // Accepted as soon as the checkpoint can be cancelled.
    wait_for("it to be cancelled", || (host.run(&["task", "cancel", task]).code == 0).then_some(()));
    assert_eq!(ended(&host, task), "cancelled");
    assert_eq!(host.state_of("m"), "running");
    guest.expect(FIRST, 0x100, 0x02);
}

/// Until the guest runs again, its former disks are all that is left of it.
#[test]
fn disks_are_kept_when_memory_cannot_be_loaded() {
    let host = Host::start();
    let mut guest = big_guest(&host);
    host.ok(&["checkpoint", "create", "m", "there"]);
    guest.write(FIRST, 0x100, 0x02).unwrap();
    let disks = host.json(&["vm", "disks", "m"]);
    let former = disks[0]["path"].as_str().unwrap().to_owned();
    // No worker can serve disks where something that is no socket has its name.
    let console = host.console("m");
    let socket = console.with_file_name("nbd.sock");
    fs::remove_file(&socket).unwrap();
    fs::create_dir_all(socket.join("in the way")).unwrap();
    let refused = host.run(&["checkpoint", "revert", "m", "--yes"]);
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("could not be loaded") && refused.err.contains(&former), "{}", refused.err);
    assert!(fs::exists(&former).unwrap(), "the disk with what was written since");

    fs::remove_dir_all(&socket).unwrap();
    host.ok(&["checkpoint", "revert", "m", "--yes"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    guest.expect(FIRST, 0x100, 0x01);
}

//! Whatever is killed in the middle of a checkpoint: there is a whole one or none, and no acknowledged write is lost.

use crate::FIRST;
use backstay_e2e::{Host, Micro, kill, wait_for};
use std::thread::sleep;
use std::time::Duration;

/// Moments after the command, in milliseconds: before the worker knows, around the pause, while memory is written.
const MOMENTS: &[u64] = &[0, 10, 30, 60, 120, 250, 500];

/// A guest with so much random-looking memory that writing it takes a while.
fn big_guest(host: &Host) -> Micro {
    let disk = host.vhd_from(&backstay_e2e::microguest_image(), "m.vhd");
    let drive = format!("scsi:0:0={}", disk.display());
    host.ok(&[
        "vm",
        "create",
        "m",
        "--memory",
        "128M",
        "--no-network",
        "--disk",
        &drive,
        "--recovery",
        "none",
    ]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x100, 0x01).unwrap();
    assert_eq!(guest.ask("d60").unwrap(), "d", "96 MiB are filled");
    guest
}

/// Every checkpoint that is listed can be gone to, and each shows the disk as it was when it was taken.
fn each_checkpoint_is_whole(host: &Host, written: &[(String, u8)]) {
    let names = host.checkpoints("m");
    println!("{} of {} checkpoints exist", names.len(), written.len());
    for name in names.iter().rev().take(2) {
        let (_, byte) = written.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("who made {name}?"));
        host.ok(&["checkpoint", "apply", "m", name, "--no-checkpoint-first", "--yes"]);
        let mut guest = Micro::attach(&host.console("m")).unwrap();
        guest.expect(FIRST, 0x100, *byte);
    }
}

#[test]
fn a_command_line_that_is_killed_changes_nothing() {
    let host = Host::start();
    let mut guest = big_guest(&host);
    let mut written = Vec::new();
    for (moment, byte) in MOMENTS.iter().zip(2_u8..) {
        guest.write(FIRST, 0x100, byte).unwrap();
        let name = format!("at-{moment}");
        let mut child = host.command(&["checkpoint", "create", "m", &name]).spawn().unwrap();
        sleep(Duration::from_millis(*moment));
        child.kill().unwrap();
        child.wait().unwrap();
        // The task goes on without anybody waiting for it.
        host.wait_idle();
        written.push((name, byte));
        assert_eq!(host.state_of("m"), "running");
        guest.expect(FIRST, 0x100, byte);
    }
    assert!(!host.checkpoints("m").is_empty(), "a task that was accepted runs to its end");
    each_checkpoint_is_whole(&host, &written);
}

#[test]
fn a_daemon_that_is_killed_leaves_whole_checkpoints() {
    let mut host = Host::start();
    let mut guest = big_guest(&host);
    let mut written = Vec::new();
    for (moment, byte) in MOMENTS.iter().zip(2_u8..) {
        guest.write(FIRST, 0x100, byte).unwrap();
        let name = format!("at-{moment}");
        let mut child = host.command(&["checkpoint", "create", "m", &name]).spawn().unwrap();
        sleep(Duration::from_millis(*moment));
        host.kill_daemon();
        host.start_daemon();
        // The command line waits for a daemon that comes back.
        child.wait().unwrap();
        host.wait_idle();
        written.push((name, byte));
        assert_eq!(host.state_of("m"), "running", "killed {moment} ms after the command");
        guest.expect(FIRST, 0x100, byte);
    }
    host.ok(&["checkpoint", "create", "m", "last"]);
    written.push(("last".into(), 8));
    each_checkpoint_is_whole(&host, &written);
}

#[test]
fn a_worker_that_is_killed_leaves_whole_checkpoints() {
    let host = Host::start();
    let mut guest = big_guest(&host);
    let mut written = Vec::new();
    for (moment, byte) in MOMENTS.iter().zip(2_u8..) {
        guest.write(FIRST, 0x100, byte).unwrap();
        let name = format!("at-{moment}");
        let worker = host.pid("m", "worker_pid");
        let mut child = host.command(&["checkpoint", "create", "m", &name]).spawn().unwrap();
        sleep(Duration::from_millis(*moment));
        kill(worker);
        child.wait().unwrap();
        wait_for("a new worker", || {
            let vm = host.vm("m");
            let new = vm["run"]["worker_pid"].as_u64()? != worker;
            (new && vm["state"] == "running").then_some(())
        });
        host.wait_idle();
        written.push((name, byte));
        guest = Micro::attach(&host.console("m")).unwrap();
        guest.expect(FIRST, 0x100, byte);
    }
    host.ok(&["checkpoint", "create", "m", "last"]);
    written.push(("last".into(), 8));
    each_checkpoint_is_whole(&host, &written);
}

/// Killed while going back: afterwards the machine is as before or at the checkpoint, and going there again works.
#[test]
fn a_daemon_that_is_killed_while_it_applies_can_apply_again() {
    let mut host = Host::start();
    let mut guest = big_guest(&host);
    host.ok(&["checkpoint", "create", "m", "there"]);
    guest.write(FIRST, 0x100, 0x02).unwrap();
    for moment in MOMENTS {
        let mut child = host
            .command(&["checkpoint", "apply", "m", "there", "--no-checkpoint-first", "--yes"])
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(*moment));
        host.kill_daemon();
        host.start_daemon();
        // The command line waits for a daemon that comes back.
        child.wait().unwrap();
        host.wait_idle();
        let state = host.state_of("m");
        assert!(
            matches!(state.as_str(), "running" | "off" | "failed" | "saved"),
            "after {moment} ms it is {state}"
        );
        host.ok(&["checkpoint", "apply", "m", "there", "--no-checkpoint-first", "--yes"]);
        let mut guest = Micro::attach(&host.console("m")).unwrap();
        guest.expect(FIRST, 0x100, 0x01);
        assert_eq!(guest.count(), 1, "memory is the checkpoint's");
        guest.write(FIRST, 0x100, 0x02).unwrap();
    }
}

//! A worker can die at any time: its QEMU is taken over, the guest sees a pause, and every acknowledged write is there.

use crate::FIRST;
use backstay_e2e::{Host, Micro, kill, wait_for};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;

/// Waits for the worker that replaces `old`, and for the guest behind it.
fn next_guest(host: &Host, old: u64) -> Micro {
    wait_for("a new worker", || {
        let vm = host.vm("m");
        let new = vm["run"]["worker_pid"].as_u64().filter(|pid| *pid != old)?;
        (vm["state"] == "running").then_some(new)
    });
    // Its console listens before it answers the daemon, and holds what is typed until the guest is there.
    Micro::attach(&host.console("m")).unwrap()
}

fn killed_while_writing(slot: &str) {
    const SECTORS: u32 = 0x600;
    let host = Host::start();
    host.create_micro("m", slot, &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    assert_eq!(guest.count(), 1);
    let qemu = host.pid("m", "qemu_pid");

    // Layers make the way of a write longer: half of the rounds have one more.
    let mut acknowledged = vec![0_u8; SECTORS as usize];
    for round in 1..=4_u8 {
        if round == 3 {
            host.ok(&["checkpoint", "create", "m", "layer"]);
        }
        let worker = host.pid("m", "worker_pid");
        let written = AtomicU32::new(0);
        let (enough, wait) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                let _ = wait.recv();
                kill(worker);
            });
            let mut lba = u32::from(round) * 0x100;
            // Nothing here flushes: acknowledged is all that counts.
            while guest.write(FIRST, lba, round).is_ok() {
                acknowledged[lba as usize] = round;
                if written.fetch_add(1, Ordering::Relaxed) == 40 * u32::from(round) {
                    enough.send(()).unwrap();
                }
                lba = 0x20 + (lba + 7) % (SECTORS - 0x20);
            }
        });
        guest = next_guest(&host, worker);
        assert_eq!(host.pid("m", "qemu_pid"), qemu, "the same QEMU");
        verify(&mut guest, &acknowledged, round);
    }
    assert_eq!(guest.count(), 2, "the guest never stopped being itself");
    let history = host.ok(&["event", "list", "--vm", "m"]);
    assert!(history.contains("its disks were not served for"), "{history}");
    host.ok(&["vm", "turn-off", "m"]);
    check_disks(&host);
}

/// Every acknowledged sector; the one that was on its way when the worker died may be old or new.
fn verify(guest: &mut Micro, acknowledged: &[u8], round: u8) {
    let mut newer = 0;
    for (lba, byte) in (0_u32..).zip(acknowledged) {
        if *byte == 0 {
            continue;
        }
        let sector = guest.read(FIRST, lba);
        assert!(sector.uniform, "sector {lba:#x} is torn");
        if sector.first != *byte {
            assert_eq!(
                sector.first, round,
                "sector {lba:#x} holds neither what was acknowledged nor what was under way"
            );
            newer += 1;
        }
    }
    assert!(newer <= 1, "{newer} sectors hold something that was not acknowledged");
}

fn check_disks(host: &Host) {
    for disk in host.json(&["vm", "disks", "m"]).as_array().unwrap() {
        for file in disk["chain"].as_array().unwrap() {
            let path = file.as_str().or(file["path"].as_str()).unwrap();
            assert!(Path::new(path).is_file(), "{path}");
            host.ok(&["disk", "check", path]);
        }
    }
}

#[test]
fn no_acknowledged_write_is_lost_on_ide() {
    killed_while_writing("ide:0:0");
}

#[test]
fn no_acknowledged_write_is_lost_on_scsi() {
    killed_while_writing("scsi:0:0");
}

#[test]
fn no_acknowledged_write_is_lost_on_virtio() {
    killed_while_writing("virtio:0");
}

/// Worker and daemon and QEMU at once: what a crash of the user space would leave. The page cache is kept.
#[test]
fn everything_killed_at_once_loses_no_acknowledged_write() {
    let mut host = Host::start();
    host.create_micro("m", "virtio:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    for lba in 0x100..0x180 {
        guest.write(FIRST, lba, 0x3C).unwrap();
    }
    let (worker, qemu) = (host.pid("m", "worker_pid"), host.pid("m", "qemu_pid"));
    host.kill_daemon();
    kill(worker);
    kill(qemu);
    host.start_daemon();
    wait_for("the machine to come to rest", || {
        matches!(host.state_of("m").as_str(), "running" | "failed" | "off").then_some(())
    });
    if host.state_of("m") == "running" {
        host.ok(&["vm", "turn-off", "m"]);
    }
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    for lba in 0x100..0x180 {
        guest.expect(FIRST, lba, 0x3C);
    }
}

/// A worker dies, and its disk is not there for the next one: a folder that is not mounted any more, say. The guest stands
/// still, the state says why, and the plug can be pulled.
#[test]
fn a_disk_that_is_away_after_the_death_of_its_worker_is_told_and_waited_for() {
    let host = Host::start();
    let disk = host.create_micro("m", "ide:0:0", &[]);
    let aside = disk.with_extension("aside");
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x100, 0x2B).unwrap();
    let qemu = host.pid("m", "qemu_pid");
    for back in [true, false] {
        let worker = host.pid("m", "worker_pid");
        std::fs::rename(&disk, &aside).unwrap();
        kill(worker);
        host.wait_state("m", "paused-critical");
        let reason = host.vm("m")["state_reason"].as_str().unwrap_or_default().to_owned();
        assert!(reason.contains(disk.to_str().unwrap()), "{reason}");
        assert_eq!(host.pid("m", "qemu_pid"), qemu);
        if back {
            std::fs::rename(&aside, &disk).unwrap();
            next_guest(&host, worker).expect(FIRST, 0x100, 0x2B);
        }
    }
    host.ok(&["vm", "turn-off", "m"]);
    assert_eq!(host.state_of("m"), "off");
    let history = host.ok(&["event", "list", "--vm", "m"]);
    assert_eq!(history.matches("worker.respawned").count(), 2, "{history}");
    std::fs::rename(&aside, &disk).unwrap();
    host.ok(&["vm", "start", "m"]);
    Micro::booting(&host.console("m")).0.expect(FIRST, 0x100, 0x2B);
}

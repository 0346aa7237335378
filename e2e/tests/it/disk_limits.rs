//! Limits of disks: what a guest gets of a disk that is limited, of its other disks, and after everything that can happen to a
//! machine.

use crate::{FIRST, SECOND};
use backstay_e2e::{Host, Linux, Micro, kill, linux_image, wait_for};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Writes of a measurement.
const WRITES: u32 = 40;
/// What they take at least at 20 per second, less the first one, a burst of 50 ms and some for the clocks.
const LIMITED: Duration = Duration::from_millis(1800);

/// How long the guest takes for its writes, one after the other.
fn write_time(guest: &mut Micro, drive: u8, byte: u8) -> Duration {
    let since = Instant::now();
    (0..WRITES).for_each(|lba| guest.write(drive, 0x40 + lba, byte).unwrap());
    since.elapsed()
}

fn limit_of(host: &Host, slot: &str) -> Value {
    let disks = host.json(&["vm", "disks", "m"]);
    let items = disks.as_array().or_else(|| disks["items"].as_array()).cloned().unwrap();
    items.into_iter().find(|disk| disk["slot"] == slot).unwrap()["limit"].clone()
}

fn machine(host: &Host) -> Micro {
    host.create_micro("m", "ide:0:0", &["--new-disk", "scsi:0:0=16M"]);
    host.ok(&["vm", "set", "m", "--disk-limit", "scsi:0:0=iops:20"]);
    host.ok(&["vm", "start", "m"]);
    let (guest, disks) = Micro::booting(&host.console("m"));
    assert_eq!(disks, 2);
    guest
}

#[test]
fn a_limit_holds_for_its_disk_changes_and_outlives_the_worker() {
    let host = Host::start();
    let mut guest = machine(&host);
    let limited = write_time(&mut guest, SECOND, 1);
    assert!(limited >= LIMITED, "{WRITES} writes at 20 per second took {limited:?}");
    let other = write_time(&mut guest, FIRST, 1);
    assert!(other < limited, "the other disk: {other:?}, the limited one: {limited:?}");

    // Taken away and set again while it runs.
    host.ok(&["vm", "set", "m", "--disk-limit", "scsi:0:0=none"]);
    assert_eq!(limit_of(&host, "scsi:0:0"), Value::Null);
    let free = write_time(&mut guest, SECOND, 2);
    assert!(free < limited, "without a limit: {free:?}, with: {limited:?}");
    host.ok(&["vm", "set", "m", "--disk-limit", "scsi:0:0=iops:20"]);
    let limited = write_time(&mut guest, SECOND, 3);
    assert!(limited >= LIMITED, "{limited:?}");

    let worker = host.pid("m", "worker_pid");
    kill(worker);
    wait_for("a new worker", || {
        let vm = host.vm("m");
        let new = vm["run"]["worker_pid"].as_u64().filter(|pid| *pid != worker)?;
        (vm["state"] == "running").then_some(new)
    });
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    let limited = write_time(&mut guest, SECOND, 4);
    assert!(limited >= LIMITED, "after the death of the worker: {limited:?}");
    assert_eq!(limit_of(&host, "scsi:0:0")["iops"], 20);
    (0..WRITES).for_each(|lba| guest.expect(SECOND, 0x40 + lba, 4));
    let shown = host.ok(&["vm", "show", "m"]);
    assert!(shown.contains("limit 20 IOPS"), "{shown}");

    let refusal = host.refused(2, &["vm", "set", "m", "--disk-limit", "scsi:0:0=iops:3"]);
    assert!(refusal.contains("at least 10"), "{refusal}");
    let refusal = host.refused(3, &["vm", "set", "m", "--disk-limit", "scsi:0:7=iops:30"]);
    assert!(refusal.contains("no drive at scsi:0:7"), "{refusal}");
}

#[test]
fn bytes_are_limited_and_a_checkpoint_keeps_the_limit_of_its_time() {
    let Some(image) = linux_image() else { return };
    let host = Host::start();
    let boot = format!("virtio:0={}", host.vhd_from(&image, "m.vhd").display());
    host.ok(&["vm", "create", "m", "--memory", "192M", "--no-network", "--disk", &boot]);
    host.ok(&["vm", "set", "m", "--new-disk", "virtio:1=16M"]);
    host.ok(&["vm", "set", "m", "--disk-limit", "virtio:1=rate:1M"]);
    host.ok(&["vm", "start", "m"]);
    let mut guest = Linux::booting(&host.console("m"));
    // 4 MiB in requests of at most 1 MiB, whose last one nobody waits for.
    let read_time = |guest: &mut Linux| {
        let since = Instant::now();
        guest.run("dd if=/dev/vdb of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null");
        since.elapsed()
    };
    let took = read_time(&mut guest);
    assert!(took >= Duration::from_millis(2800), "4 MiB at 1 MiB per second took {took:?}");
    host.ok(&["checkpoint", "create", "m", "slow"]);
    host.ok(&["vm", "set", "m", "--disk-limit", "virtio:1=none"]);
    let free = read_time(&mut guest);
    assert!(free < took, "without a limit {free:?}, with one {took:?}");
    host.ok(&["checkpoint", "revert", "m", "--yes"]);
    assert_eq!(limit_of(&host, "virtio:1")["bytes_per_second"], 1 << 20);
    let mut guest = Linux::attach(&host.console("m"));
    let took = read_time(&mut guest);
    assert!(took >= Duration::from_millis(2800), "after the revert: {took:?}");
}

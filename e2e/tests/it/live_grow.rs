//! Disks that become larger while the guest runs.

use crate::{FIRST, SECOND};
use backstay_e2e::{Host, Linux, Micro, kill, linux_image, wait_for};
use serde_json::Value;
use std::path::PathBuf;

fn disk_of(host: &Host, vm: &str, slot: &str) -> (PathBuf, u64) {
    let disks = host.json(&["vm", "disks", vm]);
    let items: Vec<Value> = disks.as_array().or_else(|| disks["items"].as_array()).cloned().unwrap();
    let disk = items.into_iter().find(|disk| disk["slot"] == slot).unwrap();
    (disk["path"].as_str().unwrap().into(), disk["size"].as_u64().unwrap())
}

fn size_of(host: &Host, file: &str) -> u64 {
    host.json(&["disk", "info", file])["size"].as_u64().unwrap()
}

/// A device by the serial number that QEMU gives it: the name of its place.
const SIZES: &str =
    "for d in /sys/class/scsi_device/*:0:0:2/device/block/*; do cat $d/size; done; cat /sys/block/vda/size";

#[test]
fn a_linux_guest_sees_its_disks_grow_and_its_data_stays() {
    let Some(image) = linux_image() else { return };
    let host = Host::start();
    let disk = host.vhd_from(&image, "demo.vhd");
    // The BIOS boots from the first one.
    let drive = format!("ide:0:0={}", disk.display());
    host.ok(&["vm", "create", "demo", "--memory", "192M", "--no-network", "--disk", &drive]);
    host.ok(&["vm", "set", "demo", "--new-disk", "scsi:0:2=32M", "--new-disk", "virtio:1=32M"]);
    host.ok(&["vm", "start", "demo"]);
    let mut guest = Linux::booting(&host.console("demo"));
    let sizes = |guest: &mut Linux| guest.run(SIZES).lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(sizes(&mut guest), ["65536", "65536"]);
    guest.run("dev=/dev/$(basename /sys/class/scsi_device/*:0:0:2/device/block/*)");
    guest.run("dd if=/dev/urandom of=/tmp/random bs=1M count=4 2>/dev/null");
    let sum = guest.run("sha256sum </tmp/random");
    guest.run("dd if=/tmp/random of=$dev bs=1M seek=28 conv=fsync 2>/dev/null");

    host.ok(&["checkpoint", "create", "demo", "small"]);
    let base = disk_of(&host, "demo", "scsi:0:2").0;
    for (slot, wanted) in [("scsi:0:2", ["98304", "65536"]), ("virtio:1", ["98304", "98304"])] {
        let (top, size) = disk_of(&host, "demo", slot);
        assert_eq!(size, 32 << 20);
        host.ok(&["disk", "resize", top.to_str().unwrap(), "48M"]);
        assert_eq!(disk_of(&host, "demo", slot).1, 48 << 20);
        wait_for("the guest to see it", || (sizes(&mut guest) == wanted).then_some(()));
    }
    assert_eq!(disk_of(&host, "demo", "scsi:0:2").0, base, "in place");
    guest.run(
        "dd if=/tmp/random of=$dev bs=1M seek=44 conv=fsync 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches",
    );
    for at in [28, 44] {
        assert_eq!(guest.run(&format!("dd if=$dev bs=1M skip={at} count=4 2>/dev/null | sha256sum")), sum);
    }
    assert_eq!(guest.run("dd if=$dev bs=1M skip=32 count=12 2>/dev/null | tr -d '\\0' | wc -c"), "0");
    assert_eq!(guest.run("dmesg | grep -c 'I/O error' || true"), "0");

    // The parent, which is a checkpoint's, is as it was; and so is the guest that goes back to it.
    host.ok(&["checkpoint", "revert", "demo", "--yes"]);
    let mut guest = Linux::attach(&host.console("demo"));
    assert_eq!(sizes(&mut guest), ["65536", "65536"]);
    assert_eq!(guest.run("dd if=$dev bs=1M skip=28 count=4 2>/dev/null | sha256sum"), sum);
}

#[test]
fn an_ide_disk_grows_for_the_next_start_and_nothing_becomes_smaller() {
    let host = Host::start();
    let disk = host.create_micro("m", "ide:0:0", &["--new-disk", "scsi:0:0=16M"]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x100, 1).unwrap();
    guest.write(SECOND, 0x7fff, 2).unwrap();

    let said = host.run(&["disk", "resize", disk.to_str().unwrap(), "8M"]);
    assert!(said.code == 0 && said.err.contains("next start"), "{}", said.err);
    assert_eq!(disk_of(&host, "m", "ide:0:0").1, 8 << 20);
    let second = disk_of(&host, "m", "scsi:0:0").0;
    let refusal = host.refused(5, &["disk", "resize", second.to_str().unwrap(), "8M"]);
    assert!(refusal.contains("turn the machine off"), "{refusal}");
    assert_eq!(disk_of(&host, "m", "scsi:0:0").1, 16 << 20);

    // A worker that takes over goes on with the size.
    host.ok(&["disk", "resize", second.to_str().unwrap(), "24M"]);
    let worker = host.pid("m", "worker_pid");
    kill(worker);
    wait_for("a new worker", || {
        let vm = host.vm("m");
        let new = vm["run"]["worker_pid"].as_u64().filter(|pid| *pid != worker)?;
        (vm["state"] == "running").then_some(new)
    });
    assert_eq!(disk_of(&host, "m", "scsi:0:0").1, 24 << 20);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    guest.expect(FIRST, 0x100, 1);
    host.ok(&["vm", "turn-off", "m"]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x3f00, 3).unwrap();
    guest.write(SECOND, 0xbf00, 4).unwrap();
    guest.expect(SECOND, 0x7fff, 2);
    host.ok(&["vm", "turn-off", "m"]);
    assert_eq!(size_of(&host, disk.to_str().unwrap()), 8 << 20);
}

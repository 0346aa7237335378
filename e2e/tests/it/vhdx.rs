//! Machines on VHDX: everything that the other stories do with VHD, in a few long ones.

use crate::tree::layers;
use crate::{FIRST, SECOND};
use backstay_e2e::{Host, Linux, Micro, kill, linux_image, microguest_image, wait_for};
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A machine that boots from a VHDX, with more arguments of `vm create`.
fn machine(host: &Host, name: &str, more: &[&str]) -> PathBuf {
    let disk = host.folder().join(format!("{name}.vhdx"));
    host.ok(&["disk", "convert", microguest_image().to_str().unwrap(), disk.to_str().unwrap()]);
    let drive = format!("scsi:0:0={}", disk.display());
    host.ok(&[&["vm", "create", name, "--memory", "16M", "--no-network", "--disk", &drive], more].concat());
    disk
}

fn booted(host: &Host, name: &str) -> Micro {
    host.ok(&["vm", "start", name]);
    Micro::booting(&host.console(name)).0
}

fn attach(host: &Host) -> Micro {
    Micro::attach(&host.console("m")).unwrap()
}

fn tops(host: &Host, name: &str) -> Vec<PathBuf> {
    let disks = host.json(&["vm", "disks", name]);
    let items = disks.as_array().or_else(|| disks["items"].as_array()).unwrap();
    items.iter().map(|disk| PathBuf::from(disk["path"].as_str().unwrap())).collect()
}

fn info(host: &Host, disk: &Path) -> Value {
    host.json(&["disk", "info", disk.to_str().unwrap()])
}

fn qemu_says_it_is_sound(disk: &Path) {
    let run = Command::new("qemu-img").args(["check", "-f", "vhdx"]).arg(disk).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

/// Two disks of both formats are frozen at one instant; checkpoints are applied, and go while the guest runs, over the
/// death of the worker, until the machine writes to its first disk again.
#[test]
fn checkpoints_come_and_go_on_vhdx_and_vhd_together() {
    let host = Host::start();
    let vhd = host.folder().join("data.vhd");
    host.ok(&["disk", "create", vhd.to_str().unwrap(), "--size", "64M"]);
    let first = machine(&host, "m", &["--disk", &format!("scsi:0:1={}", vhd.display())]);
    let mut guest = booted(&host, "m");
    for (name, byte) in [("a", 0x0A), ("b", 0x0B), ("c", 0x0C)] {
        for drive in [FIRST, SECOND] {
            guest.write(drive, 0x100, byte).unwrap();
            guest.write(drive, 0x100 + u32::from(byte), byte).unwrap();
        }
        host.ok(&["checkpoint", "create", "m", name]);
    }
    guest.write(FIRST, 0x100, 0x0F).unwrap();
    let made = layers(&host);
    let of = |extension| made.iter().filter(|file| file.extension().unwrap() == extension).count();
    assert_eq!((of("avhdx"), of("avhd")), (3, 3), "{made:?}");

    // A worker that dies leaves its log and its bits; the next one goes on with them.
    let worker = host.pid("m", "worker_pid");
    kill(worker);
    wait_for("a new worker", || {
        let vm = host.vm("m");
        (vm["run"]["worker_pid"].as_u64()? != worker && vm["state"] == "running").then_some(())
    });
    attach(&host).expect(FIRST, 0x100, 0x0F);
    host.ok(&["checkpoint", "delete", "m", "b", "--yes"]);
    assert_eq!(layers(&host).len(), 4);
    let mut guest = attach(&host);
    guest.expect(FIRST, 0x100, 0x0F);
    guest.expect(FIRST, 0x10B, 0x0B);
    guest.expect(SECOND, 0x10C, 0x0C);

    host.ok(&["checkpoint", "apply", "m", "a", "--no-checkpoint-first", "--yes"]);
    let mut guest = attach(&host);
    guest.expect(FIRST, 0x100, 0x0A);
    guest.expect(FIRST, 0x10B, 0);
    host.ok(&["checkpoint", "apply", "m", "c", "--no-checkpoint-first", "--yes"]);
    let mut guest = attach(&host);
    guest.expect(FIRST, 0x10B, 0x0B);
    guest.write(FIRST, 0x100, 0xEE).unwrap();

    host.ok(&["checkpoint", "delete", "m", "a", "--subtree", "--yes"]);
    assert!(layers(&host).is_empty(), "{:?}", layers(&host));
    assert_eq!(tops(&host, "m"), [first.clone(), vhd], "the machine writes to its first disks again");
    guest.expect(FIRST, 0x100, 0xEE);
    guest.expect(FIRST, 0x10C, 0x0C);
    host.ok(&["vm", "turn-off", "m"]);
    qemu_says_it_is_sound(&first);
    host.ok(&["disk", "check", first.to_str().unwrap()]);
    booted(&host, "m").expect(FIRST, 0x100, 0xEE);
}

/// A checkpoint that is deleted while the machine is off; a saved machine that goes on; a power cut.
#[test]
fn it_is_saved_cut_off_and_merged_while_off() {
    let mut host = Host::start();
    // It would be started again after the power cut, and the merge would be one of a machine that is on.
    let first = machine(&host, "m", &["--host-start", "nothing"]);
    let mut guest = booted(&host, "m");
    guest.write(FIRST, 0x100, 0x11).unwrap();
    host.ok(&["checkpoint", "create", "m", "one"]);
    guest.write(FIRST, 0x101, 0x22).unwrap();
    assert_eq!((guest.count(), guest.count()), (1, 2));
    host.ok(&["vm", "save", "m"]);
    host.ok(&["vm", "start", "m"]);
    let mut guest = attach(&host);
    assert_eq!(guest.count(), 3, "it goes on where it was saved");
    guest.expect(FIRST, 0x101, 0x22);
    host.reboot();
    wait_for("the machine to be known", || (host.state_of("m") == "off").then_some(()));
    host.ok(&["checkpoint", "delete", "m", "one", "--yes"]);
    host.wait_idle();
    assert!(layers(&host).is_empty(), "{:?}", layers(&host));
    assert_eq!(tops(&host, "m"), std::slice::from_ref(&first));
    let mut guest = booted(&host, "m");
    guest.expect(FIRST, 0x100, 0x11);
    guest.expect(FIRST, 0x101, 0x22);
    host.ok(&["vm", "turn-off", "m"]);
    qemu_says_it_is_sound(&first);
}

/// Clones, linked clones and exports are of the format of what they are made from; new disks are VHDX.
#[test]
fn copies_are_of_the_same_format_and_new_disks_are_vhdx() {
    let host = Host::start();
    machine(&host, "m", &["--new-disk", "scsi:0:1=64M"]);
    let new = tops(&host, "m").remove(1);
    assert_eq!(info(&host, &new)["format"], "vhdx", "{}", new.display());
    let mut guest = booted(&host, "m");
    guest.write(FIRST, 0x100, 0x11).unwrap();
    guest.write(SECOND, 0x100, 0x12).unwrap();
    host.ok(&["checkpoint", "create", "m", "c"]);
    guest.write(FIRST, 0x100, 0x1F).unwrap();

    for (name, more) in [("full", &[][..]), ("thin", &["--linked"][..])] {
        host.ok(&[&["vm", "clone", "m", name, "--checkpoint", "c"], more].concat());
        for disk in tops(&host, name) {
            let info = info(&host, &disk);
            let kind = if name == "thin" { "differencing" } else { "dynamic" };
            assert_eq!((&info["format"], &info["type"]), (&"vhdx".into(), &kind.into()), "{info}");
        }
        let mut guest = booted(&host, name);
        guest.expect(FIRST, 0x100, 0x11);
        guest.expect(SECOND, 0x100, 0x12);
        guest.write(FIRST, 0x100, 0x33).unwrap();
        host.ok(&["vm", "turn-off", name]);
    }
    guest.expect(FIRST, 0x100, 0x1F);

    let out = host.folder().join("export");
    host.ok(&["checkpoint", "export", "m", "c", out.to_str().unwrap()]);
    let flat = out.join("Virtual Hard Disks/m.vhdx");
    assert_eq!(info(&host, &flat)["type"], "dynamic");
    qemu_says_it_is_sound(&flat);

    // The file that the linked clone is made on stays when its checkpoint goes, and its machine goes on.
    host.ok(&["checkpoint", "delete", "m", "c", "--yes"]);
    guest.expect(FIRST, 0x100, 0x1F);
    booted(&host, "thin").expect(FIRST, 0x100, 0x33);
}

#[test]
fn commands_on_files_know_both_formats() {
    let host = Host::start();
    let path = |name: &str| host.folder().join(name).to_str().unwrap().to_owned();
    host.ok(&["disk", "create", &path("base.vhdx"), "--size", "64T"]);
    let taken = std::fs::metadata(path("base.vhdx")).unwrap().blocks() * 512;
    assert!(taken < 10 << 20, "{taken}");
    host.ok(&["disk", "create", &path("child.avhdx"), "--parent", &path("base.vhdx")]);
    let child = info(&host, Path::new(&path("child.avhdx")));
    assert_eq!((&child["format"], &child["size"]), (&"vhdx".into(), &(64_u64 << 40).into()), "{child}");
    assert_eq!(child["vhdx"]["parent"]["relative_path"], ".\\base.vhdx");
    assert_eq!(
        child["vhdx"]["parent"]["parent_linkage"],
        info(&host, Path::new(&path("base.vhdx")))["vhdx"]["data_write_guid"]
    );
    let message = host.refused(1, &["disk", "create", &path("x.avhd"), "--parent", &path("base.vhdx")]);
    assert!(message.contains("a differencing VHD needs a VHD"), "{message}");
    let chain = host.json(&["disk", "info", "--chain", &path("child.avhdx")]);
    assert_eq!(chain.as_array().map(Vec::len), Some(2), "{chain}");
    host.ok(&["disk", "check", &path("child.avhdx")]);
    host.ok(&["disk", "map", &path("child.avhdx")]);
    let shown = host.ok(&["disk", "merge", &path("child.avhdx"), "--dry-run"]);
    assert!(shown.contains("base.vhdx"), "{shown}");
    host.ok(&["disk", "merge", &path("child.avhdx")]);
    assert!(!Path::new(&path("child.avhdx")).exists());

    let raw = microguest_image();
    let raw = raw.to_str().unwrap();
    host.ok(&["disk", "convert", raw, &path("m.vhdx"), "--type", "fixed"]);
    host.ok(&["disk", "convert", &path("m.vhdx"), &path("m.vhd")]);
    host.ok(&["disk", "convert", &path("m.vhd"), &path("again.vhdx"), "--block-size", "1M"]);
    host.ok(&["disk", "convert", &path("again.vhdx"), &path("m.raw")]);
    assert!(std::fs::read(raw).unwrap() == std::fs::read(path("m.raw")).unwrap(), "there and back");
}

/// Makes an empty VHDX one of 4096-byte sectors, as Hyper-V has them on disks that have such sectors: two items of its metadata.
fn with_large_sectors(disk: &Path) {
    const LOGICAL: [u8; 16] =
        [0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f];
    const PHYSICAL: [u8; 16] =
        [0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56];
    let mut bytes = std::fs::read(disk).unwrap();
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|at| at == what).unwrap();
    let table = find(&bytes, b"metadata");
    for id in [LOGICAL, PHYSICAL] {
        let entry = find(&bytes, &id);
        let offset = u32::from_le_bytes(bytes[entry + 16..entry + 20].try_into().unwrap());
        let item = table + usize::try_from(offset).unwrap();
        bytes[item..item + 4].copy_from_slice(&4096_u32.to_le_bytes());
    }
    std::fs::write(disk, bytes).unwrap();
}

/// Its partition table would be elsewhere for a guest that counts in other sectors.
#[test]
fn a_guest_sees_the_sectors_that_a_vhdx_has() {
    let Some(image) = linux_image() else { return };
    let host = Host::start();
    let disks = ["one.vhdx", "two.vhdx", "three.vhdx"].map(|name| host.folder().join(name));
    for disk in &disks {
        host.ok(&["disk", "create", disk.to_str().unwrap(), "--size", "64M"]);
        with_large_sectors(disk);
        host.ok(&["disk", "check", disk.to_str().unwrap()]);
    }
    let boot = format!("ide:0:0={}", host.vhd_from(&image, "demo.vhd").display());
    let first = format!("scsi:0:1={}", disks[0].display());
    host.ok(&["vm", "create", "demo", "--memory", "192M", "--no-network", "--disk", &boot, "--disk", &first]);
    host.ok(&["vm", "start", "demo"]);
    let mut guest = Linux::booting(&host.console("demo"));
    // One more comes while it runs.
    host.ok(&["vm", "set", "demo", "--disk", &format!("scsi:0:2={}", disks[1].display())]);
    for lun in [1, 2] {
        let device = format!("/sys/class/scsi_device/*:0:0:{lun}/device/block/*");
        let sectors = format!("cat {device}/queue/logical_block_size");
        wait_for("the guest to see the disk", || (guest.run(&sectors) == "4096").then_some(()));
        guest.run(&format!(
            "dd if=/dev/urandom of=/dev/$(basename {device}) bs=4096 count=4 seek=3 conv=fsync 2>/dev/null"
        ));
    }
    let sum = guest.run("dd if=/dev/$(basename /sys/class/scsi_device/*:0:0:2/device/block/*) bs=4096 skip=3 count=4 2>/dev/null | sha256sum");
    host.ok(&["checkpoint", "create", "demo", "c"]);
    host.ok(&["checkpoint", "revert", "demo", "--yes"]);
    let mut guest = Linux::attach(&host.console("demo"));
    guest.run("echo 3 >/proc/sys/vm/drop_caches");
    let again = guest.run("dd if=/dev/$(basename /sys/class/scsi_device/*:0:0:2/device/block/*) bs=4096 skip=3 count=4 2>/dev/null | sha256sum");
    assert_eq!(sum, again);
    // IDE knows 512 only.
    host.ok(&["vm", "turn-off", "demo"]);
    host.ok(&["vm", "set", "demo", "--disk", &format!("ide:0:1={}", disks[2].display())]);
    let started = host.run(&["vm", "start", "demo"]);
    assert!(started.code != 0 && started.err.contains("attach it to SCSI"), "{}", started.err);
}

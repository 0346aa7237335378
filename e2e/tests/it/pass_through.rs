//! A block device of the host as a machine's disk. Loop devices serve as such.

use crate::FIRST;
use backstay_e2e::{Host, Micro, kill, microguest_image, wait_for};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device, and the file that is its medium.
struct Device {
    path: PathBuf,
    medium: PathBuf,
}

impl Device {
    fn new(medium: &Path, more: &[&str]) -> Option<Self> {
        let run = Command::new("losetup").args(["-f", "--show"]).args(more).arg(medium).output();
        match run {
            Ok(run) if run.status.success() => {
                let path = String::from_utf8(run.stdout).unwrap().trim().into();
                Some(Self { path, medium: medium.into() })
            }
            other => {
                println!("skipped: no loop device can be had here ({other:?})");
                None
            }
        }
    }

    fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }

    fn byte(&self, lba: u64) -> u8 {
        let mut byte = [0];
        fs::File::open(&self.medium).unwrap().read_exact_at(&mut byte, lba * 512).unwrap();
        byte[0]
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
    }
}

/// A medium with the microguest on it.
fn bootable(host: &Host) -> Option<Device> {
    let medium = host.folder().join("medium");
    fs::copy(microguest_image(), &medium).unwrap();
    fs::File::options().write(true).open(&medium).unwrap().set_len(16 << 20).unwrap();
    Device::new(&medium, &[])
}

#[test]
fn a_machine_boots_from_a_device_and_has_it_alone() {
    let host = Host::start();
    let Some(device) = bootable(&host) else { return };
    let drive = format!("ide:0:0={}", device.name());
    host.ok(&["vm", "create", "m", "--memory", "16M", "--no-network", "--disk", &drive]);
    assert_eq!(host.vm("m")["drives"][0]["pass_through"], true);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, disks) = Micro::booting(&host.console("m"));
    assert_eq!(disks, 1);
    guest.write(FIRST, 0x100, 0x5A).unwrap();
    let sizes = host.json(&["vm", "disks", "m"]);
    let one = sizes.as_array().map_or_else(|| &sizes["items"][0], |items| &items[0]);
    assert_eq!(one["size"].as_u64(), Some(16 << 20), "{sizes}");

    // The kernel keeps everybody else away, and Backstay says who has it.
    let mounted = Command::new("mount").arg(&device.path).arg(host.folder()).status().unwrap();
    assert!(!mounted.success());
    let second = host.refused(5, &["vm", "create", "n", "--memory", "16M", "--disk", device.name()]);
    assert!(second.contains("'m' (ide:0:0)"), "{second}");
    for (args, word) in [
        (&["checkpoint", "create", "m", "c"][..], "has no checkpoints"),
        (&["disk", "serve", device.name(), "--socket", "s"], "in use by"),
    ] {
        let refused = host.refused(5, args);
        assert!(refused.contains(word) && refused.contains(device.name()), "{refused}");
    }

    // A worker that dies lets it go, and the next one takes it.
    let worker = host.pid("m", "worker_pid");
    kill(worker);
    wait_for("a new worker", || {
        let vm = host.vm("m");
        (vm["run"]["worker_pid"].as_u64()? != worker && vm["state"] == "running").then_some(())
    });
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    guest.expect(FIRST, 0x100, 0x5A);
    guest.write(FIRST, 0x101, 0x5B).unwrap();
    let count = guest.count();
    host.ok(&["vm", "save", "m"]);
    assert_eq!((device.byte(0x100), device.byte(0x101)), (0x5A, 0x5B), "on the medium");
    host.ok(&["vm", "start", "m"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), count + 1, "it goes on where it was saved");
    guest.expect(FIRST, 0x101, 0x5B);
    host.ok(&["vm", "turn-off", "m"]);

    for args in [&["vm", "clone", "m", "copy"][..], &["vm", "template", "m"]] {
        let refused = host.refused(5, args);
        assert!(refused.contains("no copies") && refused.contains(device.name()), "{refused}");
    }
    host.ok(&["vm", "delete", "m", "--delete-disks", "--yes"]);
    assert!(device.path.exists() && device.byte(0x100) == 0x5A, "a device is not deleted");
}

#[test]
fn a_device_that_the_host_uses_is_refused_with_the_use() {
    let host = Host::start();
    let Some(device) = bootable(&host) else { return };
    let create = ["vm", "create", "m", "--memory", "16M", "--no-network", "--disk", device.name()];
    let read_only = host.refused(3, &["vm", "create", "m", "--memory", "16M", "--disk", "/dev/no-such-disk"]);
    assert!(read_only.contains("/dev/no-such-disk"), "{read_only}");
    let wrong = host.refused(2, &["vm", "create", "m", "--memory", "16M", "--disk", "/dev/null"]);
    assert!(wrong.contains("/dev/null"), "{wrong}");
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device.path).status();
    let at = host.folder().join("mounted here");
    fs::create_dir(&at).unwrap();
    let mounted = Command::new("mount").arg(&device.path).arg(&at).status();
    if !(made.is_ok_and(|s| s.success()) && mounted.is_ok_and(|s| s.success())) {
        println!("skipped: no file system can be mounted here");
        return;
    }
    let while_mounted = host.run(&create);
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
    assert_eq!(while_mounted.code, 5, "{}", while_mounted.err);
    for word in [device.name(), "is mounted at", "mounted here", "umount"] {
        assert!(while_mounted.err.contains(word), "{word}: {}", while_mounted.err);
    }
    host.ok(&create);
    // Mounted after it was attached: then the start is refused.
    assert!(Command::new("mount").arg(&device.path).arg(&at).status().unwrap().success());
    let start = host.run(&["vm", "start", "m"]);
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
    assert!(start.code == 5 && start.err.contains("is mounted at"), "{} {}", start.code, start.err);
    host.ok(&["vm", "start", "m", "--dry-run"]);
}

#[test]
fn sectors_of_4096_bytes_reach_a_guest_on_scsi_and_are_refused_on_ide() {
    let host = Host::start();
    let medium = host.folder().join("large-sectors");
    fs::File::create(&medium).unwrap().set_len(16 << 20).unwrap();
    let Some(device) = Device::new(&medium, &["--sector-size", "4096"]) else { return };
    let ide = format!("ide:0:1={}", device.name());
    let scsi = format!("scsi:0:0={}", device.name());
    host.create_micro("m", "ide:0:0", &[]);
    let refused = host.refused(2, &["vm", "set", "m", "--disk", &ide]);
    assert!(refused.contains("sectors of 4096 bytes"), "{refused}");
    host.ok(&["vm", "set", "m", "--add-disk", &scsi]);
    host.ok(&["vm", "start", "m"]);
    let _ = Micro::booting(&host.console("m"));
    let qemu = fs::read(format!("/proc/{}/cmdline", host.pid("m", "qemu_pid"))).unwrap();
    assert!(String::from_utf8_lossy(&qemu).contains("logical_block_size=4096"));
}

//! What the kernel says about a disk becomes an event that names the machines on it. The disk is a loop device whose file
//! lies on a volume that is full: its errors are the kernel's own.

use crate::full_disk::Small;
use backstay_e2e::{Host, wait_for};
use std::path::{Path, PathBuf};
use std::process::Command;

fn done(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A file system on a loop device.
struct Loop {
    device: String,
    at: tempfile::TempDir,
}

impl Loop {
    fn on(file: &Path) -> Option<Self> {
        let device = done("losetup", &["-f", "--show", file.to_str()?])?;
        let at = tempfile::Builder::new().prefix("bs-loop-").tempdir().ok()?;
        let this = Self { device, at };
        done("mkfs.ext4", &["-q", "-O", "^has_journal", "-E", "nodiscard", &this.device])?;
        done("mount", &[&this.device, this.at.path().to_str()?])?;
        Some(this)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.at.path()).output();
        let _ = Command::new("losetup").args(["-d", &self.device]).output();
    }
}

#[test]
fn an_error_of_a_disk_is_told_with_the_machines_on_it() {
    let Some(small) = Small::mount("24m") else { return };
    let backing = small.path().join("disk");
    std::fs::File::create(&backing).unwrap().set_len(48 << 20).unwrap();
    let Some(disk) = Loop::on(&backing) else { return println!("skipped: loop devices cannot be used here") };
    let host = Host::start();
    if host.json(&["host", "show"])["kernel_log"] != "followed" {
        return println!("skipped: the kernel's messages cannot be read here");
    }
    let files: PathBuf = disk.at.path().into();
    let vhd = files.join("m.vhd");
    host.ok(&["disk", "create", vhd.to_str().unwrap(), "--size", "16M"]);
    let drive = format!("scsi:0:0={}", vhd.display());
    host.ok(&["vm", "create", "m", "--memory", "16M", "--no-network", "--disk", &drive]);
    host.create_micro("elsewhere", "scsi:0:0", &[]);

    // The loop device has more room than what is below it.
    let _ = Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "count=40", "oflag=direct", "conv=notrunc"])
        .arg(format!("of={}", files.join("filler").display()))
        .output();
    let name = disk.device.trim_start_matches("/dev/").to_owned();
    let event = wait_for("an event of the host", || {
        let events = host.json(&["event", "list", "--type", "host.disk-error", "--severity", "error"]);
        events.as_array()?.iter().find(|e| e["reason"].as_str().is_some_and(|r| r.contains(&name))).cloned()
    });
    let reason = event["reason"].as_str().unwrap();
    assert!(reason.contains("machines lie there: m") && !reason.contains("elsewhere"), "{reason}");
    assert_eq!(event["who"], "kernel");
    let of_m = host.json(&["event", "list", "--vm", "m", "--type", "host"]);
    assert!(!of_m.as_array().unwrap().is_empty(), "the machine's own history tells it too");
    assert!(
        host.json(&["event", "list", "--vm", "elsewhere", "--type", "host"]).as_array().unwrap().is_empty()
    );
}

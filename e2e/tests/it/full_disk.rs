//! The file system fills up: the guest pauses instead of seeing an error, and a checkpoint fails as a whole.

use crate::FIRST;
use backstay_e2e::{Host, HostOptions, Micro, microguest_image, wait_for};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of its own.
pub(crate) struct Small {
    at: tempfile::TempDir,
}

impl Small {
    /// `None` (and a printed line) where mounting is not allowed.
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let at = tempfile::Builder::new().prefix("bs-small-").tempdir().unwrap();
        let options = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at.path()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self { at });
        }
        println!("skipped: mounting a small file system needs root");
        None
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.at.path()
    }

    /// Fills it up but for a little that the database needs; removing the returned file makes room again.
    pub(crate) fn fill(&self) -> PathBuf {
        let filler = self.at.path().join("filler");
        let _ = Command::new("dd")
            .arg("if=/dev/zero")
            .arg(format!("of={}", filler.display()))
            .arg("bs=64k")
            .output();
        filler
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // lazily: a process that is just ending may still hold a file
        let _ = Command::new("umount").arg("-l").arg(self.at.path()).status();
    }
}

pub(crate) fn create(host: &Host, place: &Path) {
    let disk = place.join("m.vhd");
    let (from, to) = (microguest_image(), disk.to_str().unwrap().to_owned());
    host.ok(&["disk", "convert", from.to_str().unwrap(), &to, "--type", "dynamic", "--format", "vhd"]);
    let data = place.join("data.vhd");
    host.ok(&["disk", "create", data.to_str().unwrap(), "--size", "64M"]);
    let (boot, data) = (format!("scsi:0:0={to}"), format!("scsi:0:1={}", data.display()));
    host.ok(&["vm", "create", "m", "--memory", "16M", "--no-network", "--disk", &boot, "--disk", &data]);
    host.ok(&["vm", "start", "m"]);
}

/// Settings of a guard that does not keep a volume from filling up, as when something fills it in an instant.
pub(crate) const UNGUARDED: &str = "[guard]\nmin_free = '0'\nmin_free_percent = 0.0\n";

fn unguarded(small: &Small) -> Host {
    let settings = UNGUARDED.into();
    Host::with(&HostOptions { state: Some(small.path().join("state")), settings, ..HostOptions::default() })
}

#[test]
fn a_guest_waits_for_room_and_never_sees_an_error() {
    let Some(small) = Small::mount("24m") else { return };
    let host = unguarded(&small);
    create(&host, small.at.path());
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(0x81, 0, 0x31).unwrap();
    let filler = small.fill();

    // Each of these is in another 2 MiB block. Some fit; then the disk is full in the middle of a write.
    let socket = host.console("m");
    let writer = std::thread::spawn(move || {
        let mut guest = Micro::attach(&socket).unwrap();
        for block in 1..12_u32 {
            guest.write(0x81, block * 4096, 0x32).unwrap();
        }
        guest
    });
    wait_for("the guest to be paused", || (host.state_of("m") == "paused-critical").then_some(()));
    let reason = host.vm("m")["state_reason"].clone();
    assert!(reason.as_str().is_some_and(|r| !r.is_empty()), "why it stands: {reason}");
    fs::remove_file(filler).unwrap();
    let mut guest = writer.join().expect("the guest saw no error");
    host.wait_state("m", "running");
    for block in 1..12 {
        guest.expect(0x81, block * 4096, 0x32);
    }
    guest.expect(0x81, 0, 0x31);
    drop(host);
}

#[test]
fn a_save_without_room_leaves_the_machine_as_it_was() {
    let Some(small) = Small::mount("40m") else { return };
    let host = unguarded(&small);
    create(&host, small.at.path());
    let (mut guest, _) = Micro::booting(&host.console("m"));
    assert_eq!(guest.ask("d08").unwrap(), "d");
    assert_eq!(guest.count(), 1);
    let filler = small.fill();
    let said = host.run(&["vm", "save", "m"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("'m' was not saved and goes on"), "{}", said.err);
    assert!(said.err.contains("space") || said.err.contains("full"), "{}", said.err);
    fs::remove_file(filler).unwrap();
    host.wait_state("m", "running");
    let machines = host.state().join("Virtual Machines");
    let folders = fs::read_dir(machines).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
    assert_eq!(folders, 0, "nothing is left behind");
    assert_eq!(guest.count(), 2);
    host.ok(&["vm", "save", "m"]);
    host.ok(&["vm", "start", "m"]);
    assert_eq!(Micro::attach(&host.console("m")).unwrap().count(), 3);
    drop(host);
}

#[test]
fn a_checkpoint_without_room_leaves_the_machine_as_it_was() {
    let Some(small) = Small::mount("40m") else { return };
    let host = unguarded(&small);
    create(&host, small.at.path());
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x100, 0x31).unwrap();
    assert_eq!(guest.ask("d08").unwrap(), "d");
    let filler = small.fill();
    let said = host.run(&["checkpoint", "create", "m", "no room"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("space") || said.err.contains("full"), "{}", said.err);
    fs::remove_file(filler).unwrap();
    host.wait_state("m", "running");
    assert!(host.checkpoints("m").is_empty(), "no half-made checkpoint");
    guest.expect(FIRST, 0x100, 0x31);
    guest.write(FIRST, 0x101, 0x32).unwrap();
    host.ok(&["checkpoint", "create", "m", "room"]);
    guest.write(FIRST, 0x100, 0x33).unwrap();
    host.ok(&["checkpoint", "revert", "m", "--yes"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    guest.expect(FIRST, 0x100, 0x31);
    guest.expect(FIRST, 0x101, 0x32);
    drop(host);
}

/// Records of acknowledged writes lie on a file system of their own, in memory: where it is full, writes are flushed at
/// once instead.
#[test]
fn a_guest_writes_on_without_room_for_the_records_of_its_writes() {
    let root = fs::read_to_string("/proc/self/status").is_ok_and(|status| status.contains("\nUid:\t0\t"));
    if !root {
        return println!("skipped: a file system of its own needs root");
    }
    let settings = UNGUARDED.into();
    let host = Host::with(&HostOptions { shadow: Some("1m".into()), settings, ..HostOptions::default() });
    create(&host, host.folder());
    let (mut guest, _) = Micro::booting(&host.console("m"));
    // Only a differencing disk has records: which sectors of a block are its own.
    host.ok(&["checkpoint", "create", "m", "c"]);
    guest.write(0x81, 0, 0x31).unwrap();
    let filler = host.shadow().join("filler");
    let _ =
        Command::new("dd").arg("if=/dev/zero").arg(format!("of={}", filler.display())).arg("bs=4k").output();
    for block in 1..30_u32 {
        guest.write(0x81, block * 4096 + block, 0x32).unwrap();
    }
    for block in 1..30_u32 {
        guest.expect(0x81, block * 4096 + block, 0x32);
    }
    fs::remove_file(filler).unwrap();
}

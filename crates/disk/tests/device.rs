//! Who has a claim to a device: shown by the files of kernels that have such devices, and by a loop device of this one.

#![expect(clippy::unwrap_used, reason = "a panic in a test is the report")]

use backstay_disk::device::{Claim, Number, Roots, claims, look_at_device, read};
use backstay_disk::{Backend as _, Disk, DiskFormat, DiskOptions, OpenError};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A folder that looks like `/sys` and `/proc`.
struct Shown(tempfile::TempDir);

impl Shown {
    fn new() -> Self {
        let shown = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(shown.path("sys/dev/block")).unwrap();
        fs::create_dir_all(shown.path("sys/block")).unwrap();
        shown.file("proc/self/mountinfo", "22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n");
        shown.file("proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n");
        for (name, number) in [("sdb", "8:16"), ("sdb/sdb1", "8:17"), ("sdb/sdb2", "8:18")] {
            shown.device(name, number);
        }
        shown
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn device(&self, name: &str, number: &str) {
        let place = format!("sys/devices/block/{name}");
        self.file(&format!("{place}/dev"), &format!("{number}\n"));
        self.file(&format!("{place}/ro"), "0\n");
        fs::create_dir_all(self.path(&format!("{place}/holders"))).unwrap();
        if name.contains('/') {
            self.file(&format!("{place}/partition"), "1\n");
        } else {
            std::os::unix::fs::symlink(self.path(&place), self.path(&format!("sys/block/{name}"))).unwrap();
        }
        std::os::unix::fs::symlink(self.path(&place), self.path(&format!("sys/dev/block/{number}"))).unwrap();
    }

    /// Something is built on a device.
    fn holder(&self, of: &str, name: &str, files: &[(&str, &str)]) {
        let place = format!("sys/devices/block/{name}");
        if !self.path(&place).exists() {
            self.device(name, &format!("253:{}", name.len() + files.len()));
        }
        for (file, content) in files {
            self.file(&format!("{place}/{file}"), content);
        }
        fs::create_dir_all(self.path(&format!("sys/devices/block/{of}/holders/{name}"))).unwrap();
    }

    fn claims(&self, number: &str) -> Vec<Claim> {
        let roots = Roots { sys: self.path("sys"), proc: self.path("proc") };
        let number_of = |path: &Path| match path.to_str()? {
            "/dev/sdb" => Number::parse("8:16"),
            "/dev/sdb1" | "/dev/disk/by-label/a b" => Number::parse("8:17"),
            "/dev/sdb2" => Number::parse("8:18"),
            _ => None,
        };
        claims(&read(&roots, Number::parse(number).unwrap(), &number_of).unwrap())
    }
}

fn words(claims: &[Claim]) -> Vec<String> {
    claims.iter().map(ToString::to_string).collect()
}

#[test]
fn a_device_that_nobody_uses_is_free() {
    let shown = Shown::new();
    assert_eq!(shown.claims("8:16"), []);
    assert_eq!(shown.claims("8:18"), []);
}

#[test]
fn mounted_and_swapped_partitions_are_named() {
    let shown = Shown::new();
    shown.file(
        "proc/self/mountinfo",
        "22 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw\n30 22 8:17 / /srv/a\\040b rw,noatime shared:9 master:1 - xfs /dev/sdb1 rw\n",
    );
    let at = |part: &str, at: &str| Claim::Mounted { part: part.into(), at: at.into() };
    assert_eq!(shown.claims("8:16"), [at("/dev/sdb1", "/srv/a b")], "through a partition");
    assert_eq!(shown.claims("8:17"), [at("/dev/sdb1", "/srv/a b")]);
    assert_eq!(shown.claims("8:18"), [], "its neighbour is free");
    // Of a btrfs the number is that of no device.
    shown.file("proc/self/mountinfo", "30 22 0:44 /@ /data rw - btrfs /dev/disk/by-label/a\\040b rw\n");
    assert_eq!(shown.claims("8:16"), [at("/dev/sdb1", "/data")]);
    shown.file("proc/self/mountinfo", "");
    shown.file(
        "proc/swaps",
        "Filename Type Size Used Priority\n/dev/sdb2 partition 1 0 -2\n/swap\\040file file 1 0 -3\n",
    );
    assert_eq!(shown.claims("8:16"), [Claim::Swap { part: "/dev/sdb2".into() }]);
    assert_eq!(shown.claims("8:17"), []);
    fs::create_dir_all(shown.path("sys/fs/btrfs/0a-1b/devices/sdb2")).unwrap();
    assert_eq!(shown.claims("8:18")[1..], [Claim::Member { part: "/dev/sdb2".into(), of: "0a-1b".into() }]);
}

#[test]
fn what_is_built_on_a_device_is_told_by_its_maker() {
    let map = |uuid: &'static str, name: &'static str| [("dm/uuid", uuid), ("dm/name", name)];
    for (of, holder, files, number, told) in [
        (
            "sdb",
            "md127",
            &[("md/level", "raid1\n")][..],
            "8:16",
            "/dev/sdb is a member of the RAID md127 (raid1)",
        ),
        ("sdb", "md0", &[("md/level", "raid5\n")], "8:17", "/dev/sdb is a member of the RAID md0 (raid5)"),
        (
            "sdb/sdb1",
            "dm-0",
            &map("LVM-AbC\n", "vg-root\n"),
            "8:16",
            "the logical volume vg-root is on /dev/sdb1",
        ),
        ("sdb", "dm-1", &map("mpath-3600a\n", "mpatha\n"), "8:16", "use /dev/mapper/mpatha instead"),
        ("sdb", "dm-2", &map("part1-mpath-3600a\n", "mpatha1\n"), "8:16", "one of several paths to mpatha1"),
        ("sdb/sdb2", "dm-3", &map("CRYPT-LUKS2-1-x\n", "x\n"), "8:18", "cryptsetup close x"),
        ("sdb", "dm-4", &map("DMRAID-isw\n", "isw_a\n"), "8:16", "member of the RAID mapper/isw_a"),
        ("sdb", "dm-5", &[("dm/name", "own\n")], "8:16", "/dev/mapper/own is built on /dev/sdb"),
        ("sdb", "bcache0", &[("size", "1\n")], "8:16", "/dev/bcache0 is built on /dev/sdb"),
    ] {
        let shown = Shown::new();
        shown.holder(of, holder, files);
        let found = words(&shown.claims(number));
        assert!(found.len() == 1 && found[0].contains(told), "{holder}: {found:?}");
    }
    let shown = Shown::new();
    shown.holder("sdb/sdb1", "md1", &[("md/level", "raid1\n")]);
    assert_eq!(shown.claims("8:18"), [], "a claim to a neighbour is none");
}

#[test]
fn a_loop_device_above_it_is_told() {
    let shown = Shown::new();
    shown.device("loop3", "7:3");
    shown.file("sys/devices/block/loop3/loop/backing_file", "/dev/sdb1\n");
    assert_eq!(shown.claims("8:16"), [Claim::Loop { part: "/dev/sdb1".into(), by: "loop3".into() }]);
    shown.file("sys/devices/block/loop3/loop/backing_file", "/srv/a.img\n");
    assert_eq!(shown.claims("8:16"), []);
}

#[test]
fn an_unknown_device_is_not_free() {
    let roots = Roots { sys: Shown::new().path("sys"), proc: "/proc".into() };
    assert!(read(&roots, Number { major: 1, minor: 1 }, &|_| None).is_err());
}

/// A loop device of this host.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path, more: &[&str]) -> Option<Self> {
        let run = Command::new("losetup").args(["-f", "--show"]).args(more).arg(file).output();
        match run {
            Ok(run) if run.status.success() => {
                Some(Self(String::from_utf8(run.stdout).unwrap().trim().into()))
            }
            other => {
                println!("skipped: no loop device can be had here ({other:?})");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

fn raw() -> DiskOptions {
    DiskOptions { format: Some(DiskFormat::Raw), ..DiskOptions::default() }
}

#[test]
fn a_device_is_written_by_one_only_and_not_while_it_is_mounted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("medium");
    fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
    let Some(device) = Loop::new(&file, &[]) else { return };
    let seen = look_at_device(&device.0).unwrap();
    assert_eq!((seen.size, seen.logical_sector, seen.claims.len()), (16 << 20, 512, 0), "{seen:?}");

    let disk = Disk::open(&device.0, raw()).unwrap();
    disk.write(4096, &[7; 512]).unwrap();
    disk.write_zeroes(1 << 20, 1 << 20, backstay_disk::ZeroMode { may_unmap: true, fast_only: false })
        .unwrap();
    disk.trim(4 << 20, 1 << 20).unwrap();
    disk.flush().unwrap();
    assert_eq!(fs::read(&file).unwrap()[4096], 7, "flushed to the medium");
    assert!(matches!(Disk::open(&device.0, raw()), Err(OpenError::Claimed { .. })), "two writers");
    assert_eq!(look_at_device(&device.0).unwrap().claims, [Claim::Exclusive]);
    disk.close().unwrap();
    assert_eq!(look_at_device(&device.0).unwrap().claims, []);

    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device.0).status();
    let at = folder.path().join("mounted here");
    fs::create_dir(&at).unwrap();
    let mounted = Command::new("mount").arg(&device.0).arg(&at).status();
    if !(made.is_ok_and(|s| s.success()) && mounted.is_ok_and(|s| s.success())) {
        println!("skipped: no file system can be mounted here");
        return;
    }
    let refused = Disk::open(&device.0, raw());
    let seen = look_at_device(&device.0);
    Command::new("umount").arg(&at).status().unwrap();
    let words = refused.unwrap_err().to_string();
    assert!(words.contains("is mounted at") && words.contains("mounted here"), "{words}");
    assert!(matches!(&seen.unwrap().claims[..], [Claim::Mounted { .. }]));
}

#[test]
fn a_device_of_large_sectors_is_served_in_those() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("medium");
    fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
    let Some(device) = Loop::new(&file, &["--sector-size", "4096"]) else { return };
    assert_eq!(look_at_device(&device.0).unwrap().logical_sector, 4096);
    let disk = Disk::open(&device.0, raw()).unwrap();
    assert_eq!(disk.sector_size(), 4096);
    assert!(disk.write(512, &[1; 512]).is_err(), "half a sector");
    disk.write(4096, &[1; 4096]).unwrap();
    disk.close().unwrap();
    assert_eq!(fs::read(&file).unwrap()[4095..4097], [0, 1]);
}

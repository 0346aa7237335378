//! Full and read-only file systems, and many threads.

use crate::support::{
    SECTOR, assert_same, child_of, dynamic, folder, make, open, read_all, report, stamp, with_shadow,
};
use backstay_disk::{Backend, Disk, DiskOptions, NewDisk};
use std::{io, path::Path, process::Command};

/// A tiny tmpfs, gone with the value. `None`, and a printed line, where mounting is not allowed.
pub struct Mount(tempfile::TempDir);

impl Mount {
    pub fn new(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        println!("skipped: this user may not mount a tmpfs");
        None
    }

    pub fn remount(&self, options: &str) {
        let done =
            Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.0.path()).status();
        assert!(done.unwrap().success());
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _gone = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn fill_up(differencing: bool) {
    let Some(mount) = Mount::new("6m") else { return };
    let runtime = folder();
    let options = with_shadow(runtime.path());
    let mut path = dynamic(mount.path(), "a.vhd", 32 << 20);
    if differencing {
        let child = mount.path().join("a.avhd");
        child_of(&path, &child);
        path = child;
    }
    let disk = open(&path, options.clone());
    let piece = 64 << 10;
    let mut written = 0;
    let error = loop {
        match disk.write(written, &stamp(written, piece, 1)) {
            Ok(()) => written += piece,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{}", report(&error));
    let check = |disk: &Disk| {
        let len = usize::try_from(written).unwrap();
        assert_same(&read_all(disk)[..len], &stamp(0, written, 1), "what was acknowledged before");
    };
    check(&disk);
    disk.write(0, &stamp(0, piece, 1)).unwrap(); // what has its place can still be written
    mount.remount("size=64m");
    disk.write(written, &stamp(written, piece, 1)).unwrap();
    disk.flush().unwrap();
    disk.close().unwrap();
    check(&open(&path, options));
}

#[test]
fn a_full_file_system_loses_nothing_and_the_disk_goes_on_when_there_is_space() {
    fill_up(false);
    fill_up(true);
}

#[test]
fn a_read_only_file_system_says_so() {
    let Some(mount) = Mount::new("6m") else { return };
    let path = dynamic(mount.path(), "a.vhd", 32 << 20);
    mount.remount("ro");
    let text = report(&Disk::open(&path, DiskOptions::default()).expect_err("nobody can write there"));
    assert!(text.contains("mounted read-only"), "{text}");
    let disk = open(&path, DiskOptions::read_only());
    assert_eq!(disk.write(0, &[0; 512]).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn a_deleted_disk_can_still_be_closed() {
    let folder = folder();
    let path = dynamic(folder.path(), "a.vhd", 4 << 20);
    let disk = open(&path, with_shadow(folder.path()));
    disk.write(0, &stamp(0, 512, 1)).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_same(&read_all(&disk)[..512], &stamp(0, 512, 1), "a disk without a name");
    disk.close().unwrap();
}

#[test]
fn threads_on_one_disk_do_not_disturb_each_other() {
    const THREADS: u64 = 4;
    let size = 16 << 20;
    let folder = folder();
    let base = dynamic(folder.path(), "a.vhd", size);
    let child = folder.path().join("a.avhd");
    child_of(&base, &child);
    let flat = folder.path().join("f.vhd");
    make(&flat, &NewDisk::Fixed { size });
    for path in [base, child, flat] {
        let disk = open(&path, with_shadow(folder.path()));
        // Each thread owns every fourth sector, so that they share blocks, bitmap bytes and pages.
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let disk = &disk;
                scope.spawn(move || {
                    let mut rng = backstay_vhd::testing::Rng::new(thread);
                    let mut mine = vec![0; usize::try_from(size / SECTOR / THREADS).unwrap()];
                    for version in 1..1500 {
                        let slot = rng.below(mine.len() as u64);
                        let offset = (slot * THREADS + thread) * SECTOR;
                        disk.write(offset, &stamp(offset, SECTOR, version)).unwrap();
                        mine[usize::try_from(slot).unwrap()] = version;
                        if rng.one_in(100) {
                            disk.flush().unwrap();
                        }
                    }
                    for (slot, version) in (0_u64..).zip(mine).filter(|(_, version)| *version != 0) {
                        let offset = (slot * THREADS + thread) * SECTOR;
                        let mut found = [0; 512];
                        disk.read(offset, &mut found).unwrap();
                        assert_same(&found, &stamp(offset, SECTOR, version), "a sector of this thread");
                    }
                });
            }
        });
        let before = read_all(&disk);
        disk.close().unwrap();
        assert_same(
            &read_all(&open(&path, with_shadow(folder.path()))),
            &before,
            "after closing and opening",
        );
    }
}

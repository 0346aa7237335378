//! Where shadow files cannot be kept, writes are slower and as safe.

use crate::{
    space::Mount,
    support::{SECTOR, assert_same, child_of, dynamic, folder, open, read_all, report, stamp, with_shadow},
};
use backstay_disk::{
    Backend, ChainWarning, Disk, DiskOptions,
    fs::{FileSystem, HostFs},
};
use std::path::{Path, PathBuf};

const SIZE: u64 = 64 << 20;

fn chain(folder: &Path) -> PathBuf {
    let base = dynamic(folder, "0.vhd", SIZE);
    let top = folder.join("1.avhd");
    child_of(&base, &top);
    top
}

fn with(runtime_dir: &Path) -> DiskOptions {
    DiskOptions { runtime_dir: Some(runtime_dir.to_owned()), ..DiskOptions::default() }
}

/// Writes here and there; what the disk reads as then.
fn scribble(disk: &Disk, seed: u64) -> Vec<u8> {
    let mut rng = backstay_vhd::testing::Rng::new(seed);
    let mut model = read_all(disk);
    for version in 1..200 {
        let sector = rng.below(SIZE / SECTOR - 8);
        let data = stamp(sector * SECTOR, 8 * SECTOR, version);
        disk.write(sector * SECTOR, &data).unwrap_or_else(|error| panic!("{}", report(&error)));
        let at = usize::try_from(sector * SECTOR).unwrap();
        model[at..at + data.len()].copy_from_slice(&data);
    }
    model
}

#[test]
fn a_folder_that_cannot_be_used_is_a_warning_and_nothing_is_lost() {
    let folder = folder();
    let top = chain(folder.path());
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    for (seed, runtime_dir) in
        (0..).zip([file.clone(), file.join("below"), PathBuf::from("/proc/backstay/shadow")])
    {
        let disk = open(&top, with(&runtime_dir));
        let warnings = disk.warnings();
        assert!(
            matches!(&warnings[..], [ChainWarning::NoShadow { folder, .. }] if *folder == runtime_dir),
            "{warnings:?}"
        );
        let text = warnings[0].to_string();
        assert!(
            text.contains(runtime_dir.to_str().unwrap()) && text.contains(top.to_str().unwrap()),
            "{text}"
        );
        let model = scribble(&disk, seed);
        disk.abandon();
        for options in [DiskOptions::read_only(), with_shadow(folder.path())] {
            let disk = open(&top, options);
            assert_same(&read_all(&disk), &model, "after the death of the process");
            disk.close().unwrap();
        }
    }
    assert_eq!(open(&top, with_shadow(folder.path())).warnings(), []);
    assert_eq!(open(&folder.path().join("0.vhd"), with(&file)).warnings(), [], "it needs none");
}

#[test]
fn a_shadow_that_cannot_be_read_keeps_the_disk_closed() {
    let folder = folder();
    let top = chain(folder.path());
    let disk = open(&top, with_shadow(folder.path()));
    let model = scribble(&disk, 1);
    disk.abandon();
    let shadow = std::fs::read_dir(folder.path().join("shadow")).unwrap().next().unwrap().unwrap().path();
    let away = folder.path().join("away");
    std::fs::rename(&shadow, &away).unwrap();
    std::fs::create_dir(&shadow).unwrap(); // opening it fails for root too
    for read_only in [false, true] {
        let options = DiskOptions { read_only, ..with_shadow(folder.path()) };
        let text = report(&Disk::open(&top, options).expect_err("acknowledged writes would be missing"));
        assert!(text.contains(top.to_str().unwrap()) && text.contains(shadow.to_str().unwrap()), "{text}");
    }
    std::fs::remove_dir(&shadow).unwrap();
    std::fs::rename(&away, &shadow).unwrap();
    assert_same(&read_all(&open(&top, with_shadow(folder.path()))), &model, "once it can be read");
}

#[test]
fn a_full_folder_loses_nothing() {
    let Some(mount) = Mount::new("24k") else { return };
    let folder = folder();
    let top = chain(folder.path());
    let disk = open(&top, with(mount.path()));
    assert_eq!(disk.warnings(), [], "there is room for a few blocks");
    let model = scribble(&disk, 2);
    assert_eq!(HostFs.free_space(mount.path()).unwrap(), 0, "there is none for all");
    assert_same(&read_all(&disk), &model, "while it is open");
    disk.abandon();
    let disk = open(&top, with(mount.path()));
    assert_same(&read_all(&disk), &model, "after the death of the process");
    disk.close().unwrap();
    assert_eq!(std::fs::read_dir(mount.path()).unwrap().count(), 0);
    assert_same(&read_all(&open(&top, DiskOptions::read_only())), &model, "after a clean close");
}

//! Disks that other programs made, compacted and resized.

use crate::support::{folder, open, report, with_shadow};
use backstay_disk::{
    Backend, Disk, DiskOptions, MergeControl, NewSize, ResizeControl, check_file, fs::HostFs, resize_offline,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

const MIB: u64 = 1 << 20;

/// Every sector that is not zero, by its place.
fn written(disk: &Disk) -> std::collections::BTreeMap<u64, Vec<u8>> {
    let (mut at, mut found) = (0, std::collections::BTreeMap::new());
    for run in disk.block_status(0, disk.size(), usize::MAX).unwrap() {
        let end = at + run.len;
        while at < end && !run.zero {
            let mut piece = vec![0; usize::try_from((end - at).min(1 << 20)).unwrap()];
            disk.read(at, &mut piece).unwrap();
            for (place, sector) in (at..).step_by(4096).zip(piece.chunks(4096)) {
                if sector.iter().any(|byte| *byte != 0) {
                    found.insert(place, sector.to_vec());
                }
            }
            at += piece.len() as u64;
        }
        at = end;
    }
    found
}

#[test]
fn disks_of_windows_and_others_keep_their_content_through_all_of_it() {
    let given = std::env::var_os("BACKSTAY_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"),
        PathBuf::from,
    );
    let archive = given.join("disks/images.tar.xz");
    if !archive.is_file() {
        println!("skipped: {} is not there", archive.display());
        return;
    }
    let folder = folder();
    let run = Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(folder.path()).status();
    assert!(run.unwrap().success());
    let (mut todo, mut disks) = (vec![folder.path().to_owned()], Vec::new());
    while let Some(place) = todo.pop() {
        for entry in std::fs::read_dir(place).unwrap() {
            let path = entry.unwrap().path();
            match path.extension().and_then(|extension| extension.to_str()) {
                _ if path.is_dir() => todo.push(path),
                Some("vhd" | "vhdx" | "avhd" | "avhdx") => disks.push(path),
                _ => {}
            }
        }
    }
    disks.sort();
    let mut done = 0;
    for path in disks {
        let name = path.display();
        let options = with_shadow(folder.path());
        let Ok(disk) = Disk::open(&path, options.clone()) else { continue };
        let before = written(&disk);
        match disk.compact(&MergeControl::new()) {
            Ok(_) => done += 1,
            Err(error) => println!("{name}: {}", report(&error)),
        }
        assert!(written(&disk) == before, "{name}: compacted");
        let size = disk.size() + 5 * MIB;
        match disk.grow(size) {
            Ok(_) => assert_eq!(disk.size(), size, "{name}"),
            Err(error) => println!("{name}: {}", report(&error)),
        }
        assert!(written(&disk) == before, "{name}: grown");
        disk.close().unwrap();
        let again = open(&path, options);
        assert!(written(&again) == before, "{name}: opened again");
        again.close().unwrap();
        if let Err(error) = resize_offline(
            &HostFs::shared(),
            &path,
            NewSize::Minimum,
            &with_shadow(folder.path()),
            &ResizeControl::new(),
        ) {
            println!("{name}: {}", report(&error));
        }
        let disk = open(&path, DiskOptions::read_only());
        let size = disk.size();
        let after = written(&disk);
        assert!(
            after
                .iter()
                .all(|(at, page)| before.get(at) == Some(page) || *at + 20480 > size || *at < 4096 * 2),
            "{name}: smaller"
        );
        let checked = check_file(&HostFs::shared(), &path, &DiskOptions::default()).unwrap();
        assert!(
            checked.worst().is_none_or(|worst| worst < backstay_vhd::check::Severity::Error),
            "{name}: {checked}"
        );
    }
    println!("{done} disks were compacted");
    assert!(done > 5);
}

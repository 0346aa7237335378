//! Disks that get another size, read by the engine and by other programs.

use crate::support::{
    Form, assert_same, block_size, child_of, folder, have, make, open, read_all, report, seven_zip, stamp,
    with_shadow,
};
use backstay_disk::{Backend, DiskOptions, NewDisk, ResizeError, check_file, fs::HostFs};
use backstay_vhd::check::Severity;
use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

const MIB: u64 = 1 << 20;

/// The kinds of disk with a top that can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

pub const KINDS: [Kind; 3] = [Kind::Fixed, Kind::Dynamic, Kind::Differencing];

pub fn new_disk(folder: &Path, form: Form, kind: Kind, size: u64) -> std::path::PathBuf {
    let base = folder.join(form.disk("base"));
    match kind {
        Kind::Fixed => make(&base, &NewDisk::Fixed { size }),
        _ => make(&base, &NewDisk::Dynamic { size, block_size: block_size(&base) }),
    }
    if kind != Kind::Differencing {
        return base;
    }
    let disk = open(&base, with_shadow(folder));
    disk.write(0, &stamp(0, size / 2 / MIB * MIB, 7)).unwrap();
    disk.close().unwrap();
    let child = folder.join(form.layer("child"));
    child_of(&base, &child);
    child
}

/// What other programs make of a disk. None reads a child behind the end of its parent.
pub fn others_agree(path: &Path, kind: Kind, expected: &[u8]) {
    let chain = open(path, DiskOptions::read_only()).chain();
    let reaches_behind = chain.array_windows::<2>().any(|[child, parent]| child.size > parent.size);
    if !reaches_behind && have("7zz") {
        assert_same(&seven_zip(path), expected, "7-Zip");
    }
    if kind == Kind::Differencing || !have("qemu-img") {
        return;
    }
    let format = if path.extension().is_some_and(|e| e == "vhdx") { "vhdx" } else { "vpc" };
    let raw = path.with_extension("raw");
    let run =
        Command::new("qemu-img").args(["convert", "-f", format, "-O", "raw"]).args([path, &raw]).output();
    let run = run.unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_same(&std::fs::read(&raw).unwrap(), expected, "qemu-img");
    if format == "vhdx" {
        let check = Command::new("qemu-img").args(["check", "-f", format]).arg(path).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    }
}

pub fn nothing_is_wrong(path: &Path) {
    let report = check_file(&HostFs::shared(), path, &DiskOptions::default()).unwrap();
    assert!(report.worst().is_none_or(|worst| worst < Severity::Warning), "{}: {report}", path.display());
}

#[test]
fn a_disk_in_use_grows_and_every_program_sees_it() {
    // Inside of the last block; some blocks; more than the first table has room for.
    for (form, kind) in [Form::Vhd, Form::Vhdx].into_iter().flat_map(|form| KINDS.map(|kind| (form, kind))) {
        let folder = folder();
        let old = 3 * MIB + 512 * 9;
        let path = new_disk(folder.path(), form, kind, old);
        let disk = open(&path, with_shadow(folder.path()));
        disk.write(old - 4096, &stamp(old - 4096, 4096, 1)).unwrap();
        let mut expected = read_all(&disk);
        for size in [old + 512, old + 30 * 512, 9 * MIB, 150 * MIB + 1024] {
            let grown =
                disk.grow(size).unwrap_or_else(|error| panic!("{form:?} {kind:?}: {}", report(&error)));
            assert_eq!((grown.new, disk.size()), (size, size));
            expected.resize(usize::try_from(size).unwrap(), 0);
            assert_same(&read_all(&disk), &expected, &format!("{form:?} {kind:?} of {size}"));
            let at = size - 512;
            disk.write(at, &stamp(at, 512, size)).unwrap();
            expected[usize::try_from(at).unwrap()..].copy_from_slice(&stamp(at, 512, size));
            disk.write(size, &[1; 512]).unwrap_err();
        }
        assert_eq!(disk.grow(disk.size()).unwrap().old, disk.size());
        disk.close().unwrap();
        nothing_is_wrong(&path);
        others_agree(&path, kind, &expected);
        let again = open(&path, with_shadow(folder.path()));
        assert_same(&read_all(&again), &expected, "after closing and opening");
    }
}

#[test]
fn a_disk_in_use_does_not_shrink_and_no_format_is_overstretched() {
    for form in [Form::Vhd, Form::Vhdx] {
        let folder = folder();
        let path = new_disk(folder.path(), form, Kind::Dynamic, 4 * MIB);
        let disk = open(&path, DiskOptions::default());
        assert!(matches!(disk.grow(4 * MIB - 512), Err(ResizeError::Smaller { .. })));
        assert!(matches!(disk.grow(4 * MIB + 1), Err(ResizeError::Unsuitable { .. })));
        let (most, over) = match form {
            Form::Vhd => (2040 << 30, (2040 << 30) + 512),
            Form::Vhdx => (64 << 40, (64 << 40) + 512),
        };
        assert!(matches!(disk.grow(over), Err(ResizeError::Unsuitable { .. })));
        disk.write(0, &stamp(0, 4096, 1)).unwrap();
        disk.grow(most).unwrap();
        disk.write(most - 512, &[3; 512]).unwrap();
        disk.close().unwrap();
        let again = open(&path, DiskOptions::read_only());
        let mut found = vec![0; 4096];
        again.read(0, &mut found).unwrap();
        assert_same(&found, &stamp(0, 4096, 1), "the start");
        again.read(most - 4096, &mut found).unwrap();
        assert!(found[..3584].iter().all(|byte| *byte == 0) && found[3584..].iter().all(|byte| *byte == 3));
        nothing_is_wrong(&path);
    }
    let folder = folder();
    let raw = folder.path().join("a.raw");
    make(&raw, &NewDisk::Raw { size: MIB });
    let disk = open(&raw, DiskOptions::default());
    disk.grow(2 * MIB).unwrap();
    disk.write(2 * MIB - 512, &[1; 512]).unwrap();
    assert!(matches!(disk.grow(2 * MIB + 5), Err(ResizeError::Unsuitable { .. })));
    disk.close().unwrap();
    assert_eq!(std::fs::metadata(&raw).unwrap().len(), 2 * MIB);
    let looking = open(&raw, DiskOptions::read_only());
    assert!(matches!(looking.grow(3 * MIB), Err(ResizeError::ReadOnly { .. })));
}

#[test]
fn requests_go_on_while_a_disk_grows() {
    for (form, kind) in [Form::Vhd, Form::Vhdx].into_iter().flat_map(|form| KINDS.map(|kind| (form, kind))) {
        let folder = folder();
        let path = new_disk(folder.path(), form, kind, 4 * MIB);
        let disk = open(&path, with_shadow(folder.path()));
        let stop = Arc::new(AtomicBool::new(false));
        thread::scope(|scope| {
            let guests: Vec<_> = (0..3_u64)
                .map(|guest| {
                    let (disk, stop) = (Arc::clone(&disk), Arc::clone(&stop));
                    scope.spawn(move || {
                        let (mut round, mut seen) = (0, 0);
                        while !stop.load(SeqCst) {
                            round += 1;
                            let at = guest * MIB + (round % 100) * 8192;
                            disk.write(at, &stamp(at, 4096, round)).unwrap();
                            let mut found = vec![0; 4096];
                            disk.read(at, &mut found).unwrap();
                            assert_same(&found, &stamp(at, 4096, round), "own write");
                            let size = disk.size();
                            assert!(size >= seen, "the disk got smaller");
                            seen = size;
                            // Whatever is announced can be used.
                            disk.read(size - 512, &mut found[..512]).unwrap();
                            if round % 16 == 0 {
                                disk.flush().unwrap();
                            }
                        }
                    })
                })
                .collect();
            for step in 1..30 {
                disk.grow(4 * MIB + step * 3 * 512 * 1000).unwrap();
            }
            stop.store(true, SeqCst);
            guests.into_iter().for_each(|guest| guest.join().unwrap());
        });
        disk.close().unwrap();
        nothing_is_wrong(&path);
    }
}

#[test]
fn a_next_top_that_was_prepared_before_the_disk_grew_is_refused() {
    use backstay_disk::{Identity, SwitchError, switch_all};
    for form in [Form::Vhd, Form::Vhdx] {
        let folder = folder();
        let path = new_disk(folder.path(), form, Kind::Dynamic, 4 * MIB);
        let disk = open(&path, with_shadow(folder.path()));
        let next = folder.path().join(form.layer("next"));
        disk.prepare_child(&next, Identity::fresh()).unwrap();
        disk.grow(5 * MIB).unwrap();
        let refused = switch_all([(Arc::clone(&disk), next.clone())]);
        assert!(matches!(refused, Err(SwitchError::NotAChild { .. })), "{refused:?}");
        std::fs::remove_file(&next).unwrap();
        disk.prepare_child(&next, Identity::fresh()).unwrap();
        switch_all([(Arc::clone(&disk), next)]).unwrap();
        disk.grow(6 * MIB).unwrap();
        disk.write(6 * MIB - 512, &[5; 512]).unwrap();
        assert_eq!(disk.chain()[1].size, 5 * MIB, "only the top grows");
        disk.close().unwrap();
    }
}

#[test]
fn a_layer_that_grew_is_merged_into_its_smaller_parent() {
    use backstay_disk::{Identity, MergeControl, merge_offline, plan_merge, switch_all};
    for (form, kind) in [Form::Vhd, Form::Vhdx].into_iter().flat_map(|form| KINDS.map(|kind| (form, kind))) {
        for live in [false, true] {
            let folder = folder();
            let path = new_disk(folder.path(), form, kind, 4 * MIB + 512);
            let disk = open(&path, with_shadow(folder.path()));
            disk.write(0, &stamp(0, 8192, 1)).unwrap();
            let next = folder.path().join(form.layer("next"));
            disk.prepare_child(&next, Identity::fresh()).unwrap();
            switch_all([(Arc::clone(&disk), next.clone())]).unwrap();
            disk.grow(7 * MIB).unwrap();
            disk.write(7 * MIB - 4096, &stamp(7 * MIB - 4096, 4096, 2)).unwrap();
            let expected = read_all(&disk);
            if live {
                let merged = disk.merge_layer(&next, &[], &MergeControl::new());
                merged.unwrap_or_else(|error| panic!("{form:?} {kind:?}: {}", report(&error)));
                assert_same(&read_all(&disk), &expected, "while it is open");
                disk.close().unwrap();
            } else {
                disk.close().unwrap();
                let fs = HostFs::shared();
                let options = with_shadow(folder.path());
                let plan = plan_merge(&fs, &next, &DiskOptions::read_only()).unwrap();
                assert_eq!(plan.grows_to, Some(7 * MIB));
                merge_offline(&fs, &next, &[], &options, &MergeControl::new()).unwrap();
            }
            std::fs::remove_file(&next).unwrap();
            nothing_is_wrong(&path);
            others_agree(&path, kind, &expected);
            assert_same(&read_all(&open(&path, DiskOptions::read_only())), &expected, "merged");
        }
    }
}

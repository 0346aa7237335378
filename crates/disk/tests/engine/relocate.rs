//! Disks that move to another folder while they are in use.

use crate::{
    crash::{Machine, SECTORS, check_found, first_failure, form_of, layer, options, run_all, shared},
    simfs::SimFs,
    support::{Form, block_size, child_of, dynamic, folder, report, with_shadow},
};
use backstay_disk::{Backend, Disk, DiskOptions, NewDisk, RelocateControl, RelocateError};
use backstay_vhd::testing::Rng;
use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

const SIZE: u64 = 8 << 20;

fn target(folder: &Path, name: &str) -> PathBuf {
    let other = folder.join("other");
    fs::create_dir_all(&other).unwrap();
    other.join(name)
}

fn fine() -> io::Result<()> {
    Ok(())
}

fn read_all(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.size()).unwrap()];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn at_the_switch_both_files_are_alike_and_the_old_one_stays_so() {
    for form in [Form::Vhd, Form::Vhdx] {
        let dir = folder();
        let old = dynamic(dir.path(), &form.disk("disk"), SIZE);
        let new = target(dir.path(), &form.disk("disk"));
        let disk = Disk::open(&old, with_shadow(dir.path())).unwrap();
        disk.write(1 << 20, &[7; 4096]).unwrap();
        disk.write(5 << 20, &[8; 4096]).unwrap();
        let control = RelocateControl::default();
        let at_switch = Mutex::new(Vec::new());
        let announce = || {
            assert!(!new.exists(), "it has no name yet");
            let mut there = fs::read_dir(new.parent().unwrap()).unwrap();
            let unnamed = there.next().unwrap().unwrap().path();
            *at_switch.lock().unwrap() = fs::read(&old).unwrap();
            assert!(fs::read(unnamed).unwrap() == *at_switch.lock().unwrap(), "byte for byte");
            Ok(())
        };
        disk.relocate(&new, &control, &announce).unwrap();
        assert_eq!(disk.top_path(), new.canonicalize().unwrap());
        let at_switch = at_switch.into_inner().unwrap();
        assert!(at_switch == fs::read(&old).unwrap(), "nothing writes to the old file");
        let (done, total) = control.progress();
        assert!(done > 0 && done <= total);
        disk.write(1 << 20, &[9; 4096]).unwrap();
        disk.close().unwrap();
        assert!(at_switch == fs::read(&old).unwrap());

        // Both can be opened: the old one as it was then.
        let (old, new) = (
            Disk::open(&old, DiskOptions::read_only()).unwrap(),
            Disk::open(&new, DiskOptions::read_only()).unwrap(),
        );
        let mut expected = vec![0; usize::try_from(SIZE).unwrap()];
        expected[1 << 20..(1 << 20) + 4096].fill(7);
        expected[5 << 20..(5 << 20) + 4096].fill(8);
        assert!(read_all(&old) == expected);
        expected[1 << 20..(1 << 20) + 4096].fill(9);
        assert!(read_all(&new) == expected);
    }
}

/// Every sector is written again and again while the disk moves to and fro.
#[test]
fn what_is_written_meanwhile_is_in_the_new_file() {
    for form in [Form::Vhd, Form::Vhdx] {
        let dir = folder();
        let base = dynamic(dir.path(), &form.disk("base"), SIZE);
        let old = dir.path().join(form.layer("disk"));
        child_of(&base, &old);
        let disk = Disk::open(&old, with_shadow(dir.path())).unwrap();
        let stop = AtomicBool::new(false);
        let sectors = u32::try_from(SIZE / 512).unwrap();
        let written = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut model = vec![0_u8; sectors as usize];
                let mut state = 0x1234_5678_u32;
                let mut turn = 0_u32;
                while !stop.load(SeqCst) || turn < 20_000 {
                    turn += 1;
                    state ^= state << 13;
                    state ^= state >> 17;
                    state ^= state << 5;
                    let sector = state % sectors;
                    let byte = u8::try_from(turn % 251).unwrap() + 1;
                    disk.write(u64::from(sector) * 512, &[byte; 512]).unwrap();
                    model[sector as usize] = byte;
                    if turn.is_multiple_of(64) {
                        disk.flush().unwrap();
                    }
                }
                model
            });
            for round in 0..4 {
                let new = target(dir.path(), &form.layer(&format!("disk{round}")));
                let former = disk.top_path();
                disk.relocate(&new, &RelocateControl::default(), &fine).unwrap();
                fs::remove_file(former).unwrap();
            }
            stop.store(true, SeqCst);
            writer.join().unwrap()
        });
        let expected: Vec<u8> = written.iter().flat_map(|byte| [*byte; 512]).collect();
        assert!(read_all(&disk) == expected);
        let top = disk.top_path();
        disk.close().unwrap();
        let again = Disk::open(&top, DiskOptions::read_only()).unwrap();
        assert!(read_all(&again) == expected, "and it finds its parent from its new place");
        assert_eq!(again.chain().len(), 2);
    }
}

#[test]
fn what_ends_early_leaves_the_disk_where_it_was_and_nothing_else() {
    let dir = folder();
    let old = dynamic(dir.path(), "disk.vhdx", SIZE);
    let new = target(dir.path(), "disk.vhdx");
    let disk = Disk::open(&old, with_shadow(dir.path())).unwrap();
    disk.write(0, &[1; 4096]).unwrap();
    let cancelled = RelocateControl::default();
    cancelled.cancel();
    let error = disk.relocate(&new, &cancelled, &fine).unwrap_err();
    assert!(matches!(error, RelocateError::Cancelled { .. }), "{error}");
    let refuse = || Err(ErrorKind::StorageFull.into());
    let error = disk.relocate(&new, &RelocateControl::default(), &refuse).unwrap_err();
    assert!(matches!(error, RelocateError::Announce { .. }), "{error}");
    fs::write(&new, b"somebody's").unwrap();
    let error = disk.relocate(&new, &RelocateControl::default(), &fine).unwrap_err();
    assert!(matches!(error, RelocateError::Create { .. }), "{error}");
    assert_eq!(fs::read(&new).unwrap(), b"somebody's");
    assert_eq!(fs::read_dir(new.parent().unwrap()).unwrap().count(), 1, "nothing else is left there");

    disk.write(4096, &[2; 4096]).unwrap();
    disk.flush().unwrap();
    assert_eq!(disk.top_path(), old.canonicalize().unwrap());
    disk.close().unwrap();
    let disk = Disk::open(&old, DiskOptions::read_only()).unwrap();
    let mut bytes = [0; 8192];
    disk.read(0, &mut bytes).unwrap();
    assert!(bytes[..4096].iter().all(|b| *b == 1) && bytes[4096..].iter().all(|b| *b == 2));
}

#[test]
fn a_fixed_disk_keeps_its_space() {
    use std::os::unix::fs::MetadataExt;
    for form in [Form::Vhd, Form::Vhdx] {
        let dir = folder();
        let old = dir.path().join(form.disk("fixed"));
        crate::support::make(&old, &backstay_disk::NewDisk::Fixed { size: SIZE });
        let taken = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
        if taken(&old) < SIZE {
            println!("skipped: this file system reserves no space");
            return;
        }
        let new = target(dir.path(), &form.disk("fixed"));
        let disk = Disk::open(&old, with_shadow(dir.path())).unwrap();
        disk.write(0, &[1; 4096]).unwrap();
        disk.relocate(&new, &RelocateControl::default(), &fine).unwrap();
        disk.close().unwrap();
        assert!(taken(&new) >= SIZE, "{form:?}: {} bytes", taken(&new));
        let disk = Disk::open(&new, DiskOptions::read_only()).unwrap();
        let mut bytes = [0; 8192];
        disk.read(0, &mut bytes).unwrap();
        assert!(bytes[..4096] == [1; 4096] && bytes[4096..] == [0; 4096]);
    }
}

/// A machine that loses its power while its disk moves; the new file's name is the change.
fn moving(seed: u64, arm: impl Fn(&SimFs, &mut Rng)) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let form = form_of(seed);
    let base = NewDisk::Dynamic { size: SECTORS * 512, block_size: block_size(&layer(form, 0)) };
    let depth = u128::from(rng.below(2));
    let mut machine = Machine::above(&mut rng, form, &base, depth, false);
    for _ in 0..rng.below(6) {
        machine.write(&mut rng).unwrap();
    }
    arm(&machine.fs, &mut rng);
    let new = Path::new("/other").join(form.disk("moved"));
    let done = machine.disk.relocate(&new, &RelocateControl::default(), &fine).is_ok();
    for _ in 0..if done { rng.below(4) } else { 0 } {
        if machine.write(&mut rng).and_then(|()| machine.flush()).is_err() {
            break;
        }
    }
    machine.disk.abandon();
    let after = machine.fs.power_cut(seed);
    let there = after.exists(new.to_str().unwrap());
    if done && !there {
        return Err("it was moved, and the new file is gone".into());
    }
    let top = if there { &new } else { &machine.top };
    let disk = Disk::open_on(shared(&after), top, options()).map_err(|error| report(&error))?;
    check_found(&disk, &machine.model, |versions| versions)?;
    disk.close().map_err(|error| report(&error))
}

#[test]
fn power_loss_while_a_disk_moves_leaves_it_in_one_of_both_files() {
    run_all(0..900, |seed| moving(seed, |fs, rng| fs.power().die_after_operations(rng.below(120))));
}

#[test]
fn a_move_that_forgets_to_flush_the_new_file_is_caught() {
    let caught = (0..20).filter(|flush| {
        let noticed = first_failure(0..60, |seed| {
            moving(seed, |fs, _| {
                fs.power().swallow_flush(*flush);
                fs.power().die_after_flushes(flush + 2);
            })
        });
        noticed.is_some()
    });
    let caught: Vec<u64> = caught.collect();
    println!("seeds notice that flush {caught:?} is missing");
    assert!(!caught.is_empty());
}

//! Files that are made as small as their content.

use crate::{
    resize::{Kind, new_disk, nothing_is_wrong, others_agree},
    support::{Form, assert_same, block_size, open, read_all, report, stamp, with_shadow},
};
use backstay_disk::{
    Backend, CompactError, DiskOptions, Dropping, Identity, MergeControl, MergeStep, NewDisk, SwitchError,
    ZeroMode, compact_offline, create_disk,
    fs::{FileSystem, HostFs},
    plan_compact, switch_all,
};
use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB + 4096;
const GROWING: [Kind; 2] = [Kind::Dynamic, Kind::Differencing];

fn forms_and_kinds() -> impl Iterator<Item = (Form, Kind)> {
    [Form::Vhd, Form::Vhdx].into_iter().flat_map(|form| GROWING.map(|kind| (form, kind)))
}

fn len_of(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// A disk written backwards, so that what comes first in it lies last in its file, with zeros in every other two MiB; what it
/// reads as.
fn holey(path: &Path) -> Vec<u8> {
    let disk = open(path, with_shadow(path.parent().unwrap()));
    for mib in (12..24_u64).collect::<Vec<_>>().into_iter().rev() {
        let at = mib * MIB;
        disk.write(at, &stamp(at, MIB, 3)).unwrap();
    }
    for at in (12 * MIB..24 * MIB).step_by(4 << 20) {
        if at % (8 * MIB) == 0 {
            disk.write(at, &vec![0; 2 << 20]).unwrap();
        } else {
            disk.write_zeroes(at, 2 * MIB, ZeroMode::default()).unwrap();
        }
    }
    let expected = read_all(&disk);
    disk.close().unwrap();
    expected
}

#[test]
fn zero_blocks_go_and_the_file_ends_where_the_plan_says() {
    let fs = HostFs::shared();
    for (form, kind) in forms_and_kinds() {
        let folder = crate::support::folder();
        let path = new_disk(folder.path(), form, kind, SIZE);
        let expected = holey(&path);
        let options = with_shadow(folder.path());
        let before = len_of(&path);
        let plan = plan_compact(&fs, &path, &DiskOptions::read_only(), Dropping::Zeros).unwrap();
        assert_eq!(len_of(&path), before, "a plan changes nothing");
        let blocks = 6 * MIB / u64::from(block_size(&path));
        assert_eq!((plan.empty_blocks, plan.blocks), (blocks, 2 * blocks), "{form:?} {kind:?}");
        let done = compact_offline(&fs, &path, &options, Dropping::Zeros, &MergeControl::new()).unwrap();
        assert_eq!((done.dropped_blocks, done.new_len), (blocks, plan.new_len), "{form:?} {kind:?}: {plan}");
        assert!(before - len_of(&path) >= 6 * MIB, "{form:?} {kind:?}: {before} → {}", len_of(&path));
        nothing_is_wrong(&path);
        others_agree(&path, kind, &expected);
        let disk = open(&path, options.clone());
        assert_same(&read_all(&disk), &expected, "compacted");
        disk.write(12 * MIB, &stamp(12 * MIB, MIB, 9)).unwrap();
        disk.close().unwrap();
        // Nothing is left to do.
        let again = compact_offline(&fs, &path, &options, Dropping::Zeros, &MergeControl::new()).unwrap();
        assert_eq!((again.dropped_blocks, again.moved_blocks), (0, 0));
    }
}

#[test]
fn zeros_that_hide_the_parent_stay_zeros() {
    let fs = HostFs::shared();
    for form in [Form::Vhd, Form::Vhdx] {
        let folder = crate::support::folder();
        let path = new_disk(folder.path(), form, Kind::Differencing, SIZE);
        let disk = open(&path, with_shadow(folder.path()));
        // The parent holds data in the first half. A whole block, and a part of one, of written zeros.
        let block = u64::from(block_size(&path));
        disk.write(0, &stamp(0, 2 * block, 4)).unwrap();
        let punched = ZeroMode { may_unmap: true, fast_only: false };
        disk.write_zeroes(0, block, punched).unwrap();
        disk.write(block * 4, &stamp(block * 4, 4096, 4)).unwrap();
        disk.write_zeroes(block * 4, 4096, punched).unwrap();
        disk.write(SIZE - 4096, &stamp(SIZE - 4096, 4096, 4)).unwrap();
        disk.write_zeroes(SIZE - 4096, 4096, punched).unwrap();
        let expected = read_all(&disk);
        let done = disk.compact(&MergeControl::new()).unwrap();
        // The last block hides nothing. Only a VHDX says "zeros" without a block.
        assert_eq!(done.dropped_blocks, if form == Form::Vhd { 1 } else { 2 }, "{form:?}");
        assert_same(&read_all(&disk), &expected, "compacted");
        disk.close().unwrap();
        others_agree(&path, Kind::Differencing, &expected);
        compact_offline(&fs, &path, &with_shadow(folder.path()), Dropping::Zeros, &MergeControl::new())
            .unwrap();
        others_agree(&path, Kind::Differencing, &expected);
    }
}

#[test]
fn a_parent_is_compacted_and_its_child_does_not_notice() {
    for form in [Form::Vhd, Form::Vhdx] {
        let folder = crate::support::folder();
        let child = new_disk(folder.path(), form, Kind::Differencing, SIZE);
        let base = folder.path().join(form.disk("base"));
        let expected = read_all(&open(&child, DiskOptions::read_only()));
        let before = len_of(&base);
        std::fs::remove_file(&child).unwrap();
        let disk = open(&base, with_shadow(folder.path()));
        disk.write(20 * MIB, &stamp(20 * MIB, MIB, 1)).unwrap();
        disk.write_zeroes(20 * MIB, MIB, ZeroMode::default()).unwrap();
        disk.close().unwrap();
        crate::support::child_of(&base, &child);
        assert!(len_of(&base) > before);
        let done = compact_offline(
            &HostFs::shared(),
            &base,
            &with_shadow(folder.path()),
            Dropping::Zeros,
            &MergeControl::new(),
        )
        .unwrap();
        assert_eq!(len_of(&base), before, "{done:?}");
        assert_same(&read_all(&open(&child, DiskOptions::read_only())), &expected, "through the child");
    }
}

#[test]
fn writers_go_on_while_a_disk_is_compacted() {
    for (form, kind) in forms_and_kinds() {
        let folder = crate::support::folder();
        let path = new_disk(folder.path(), form, kind, SIZE);
        let model = Mutex::new(holey(&path));
        let disk = open(&path, with_shadow(folder.path()));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let guests: Vec<_> = (0..2_u64)
                .map(|guest| {
                    let (disk, stop, model) = (&disk, &stop, &model);
                    scope.spawn(move || {
                        let mut rng = backstay_vhd::testing::Rng::new(guest);
                        while !stop.load(SeqCst) {
                            // Each guest has its own sectors.
                            let at = 12 * MIB + rng.below(11 << 8) * 4096 + guest * 2048;
                            let data = match rng.below(3) {
                                0 => vec![0; 2048],
                                _ => stamp(at, 2048, rng.next()),
                            };
                            disk.write(at, &data).unwrap();
                            let place = usize::try_from(at).unwrap();
                            model.lock().unwrap()[place..place + 2048].copy_from_slice(&data);
                            let mut found = vec![0; 2048];
                            disk.read(at, &mut found).unwrap();
                            assert_same(&found, &data, "own write");
                            if rng.one_in(20) {
                                disk.flush().unwrap();
                            }
                        }
                    })
                })
                .collect();
            for _ in 0..6 {
                let control = MergeControl::new().in_batches_of(2);
                disk.compact(&control).unwrap_or_else(|error| panic!("{}", report(&error)));
            }
            stop.store(true, SeqCst);
            guests.into_iter().for_each(|guest| guest.join().unwrap());
        });
        let expected = model.into_inner().unwrap();
        assert_same(&read_all(&disk), &expected, &format!("{form:?} {kind:?}"));
        disk.compact(&MergeControl::new()).unwrap();
        disk.close().unwrap();
        nothing_is_wrong(&path);
        others_agree(&path, kind, &expected);
    }
}

#[test]
fn a_compaction_that_is_cancelled_goes_on_later() {
    for (form, kind) in forms_and_kinds() {
        let folder = crate::support::folder();
        let path = new_disk(folder.path(), form, kind, SIZE);
        let expected = holey(&path);
        let before = len_of(&path);
        let disk = open(&path, with_shadow(folder.path()));
        let mut cancelled = 0;
        for after in 0..200_u32 {
            let control: Arc<Mutex<Option<Arc<MergeControl>>>> = Arc::default();
            let (slot, steps) = (Arc::clone(&control), Mutex::new(0));
            let observed = Arc::new(
                MergeControl::observed(move |_| {
                    let mut steps = steps.lock().unwrap();
                    *steps += 1;
                    if *steps > 5 + after / 10
                        && let Some(control) = slot.lock().unwrap().as_ref()
                    {
                        control.cancel();
                    }
                })
                .in_batches_of(1),
            );
            *control.lock().unwrap() = Some(Arc::clone(&observed));
            let ended = disk.compact(&observed);
            control.lock().unwrap().take();
            assert_same(&read_all(&disk), &expected, "between");
            match ended {
                Err(CompactError::Cancelled { .. }) => cancelled += 1,
                Ok(_) => break,
                Err(error) => panic!("{}", report(&error)),
            }
        }
        assert!(cancelled > 3, "{form:?} {kind:?} was cancelled {cancelled} times");
        disk.compact(&MergeControl::new()).unwrap();
        assert!(before - len_of(&path) >= 6 * MIB);
        disk.close().unwrap();
        nothing_is_wrong(&path);
    }
}

#[test]
fn while_a_disk_is_compacted_it_gets_no_layer_and_no_other_size() {
    let folder = crate::support::folder();
    let path = new_disk(folder.path(), Form::Vhdx, Kind::Dynamic, SIZE);
    holey(&path);
    let disk = open(&path, with_shadow(folder.path()));
    let next = folder.path().join("next.avhdx");
    let tried = Arc::new(AtomicBool::new(false));
    let control = {
        let (disk, next, tried) = (Arc::clone(&disk), next.clone(), Arc::clone(&tried));
        MergeControl::observed(move |step| {
            if step != MergeStep::Copied || tried.swap(true, SeqCst) {
                return;
            }
            disk.prepare_child(&next, Identity::fresh()).unwrap();
            let refused = switch_all([(Arc::clone(&disk), next.clone())]);
            assert!(matches!(refused, Err(SwitchError::Compacting { .. })), "{refused:?}");
            assert!(disk.grow(disk.size() * 2).is_err() && disk.compact(&MergeControl::new()).is_err());
        })
    };
    disk.compact(&control).unwrap();
    assert!(tried.load(SeqCst));
    std::fs::remove_file(&next).unwrap();
    disk.prepare_child(&next, Identity::fresh()).unwrap();
    switch_all([(Arc::clone(&disk), next)]).unwrap();
    disk.close().unwrap();
}

#[test]
fn what_has_no_blocks_is_refused_by_name() {
    let folder = crate::support::folder();
    let fs = HostFs::shared();
    for form in [Form::Vhd, Form::Vhdx] {
        let path = folder.path().join(form.disk("fixed"));
        create_disk(&fs, &path, &NewDisk::Fixed { size: 4 * MIB }, Identity::fresh()).unwrap();
        let refused =
            compact_offline(&fs, &path, &DiskOptions::default(), Dropping::Zeros, &MergeControl::new());
        assert!(matches!(refused, Err(CompactError::Fixed { .. })), "{refused:?}");
        assert!(matches!(
            plan_compact(&fs, &path, &DiskOptions::read_only(), Dropping::Zeros),
            Err(CompactError::Fixed { .. })
        ));
    }
    let raw = folder.path().join("a.raw");
    create_disk(&fs, &raw, &NewDisk::Raw { size: 4 * MIB }, Identity::fresh()).unwrap();
    let refused = compact_offline(&fs, &raw, &DiskOptions::default(), Dropping::Zeros, &MergeControl::new());
    assert!(matches!(refused, Err(CompactError::Raw { .. })), "{refused:?}");
}

#[test]
fn a_full_volume_ends_a_compaction_and_the_disk_goes_on() {
    let Some(mount) = crate::space::Mount::new("64m") else { return };
    for form in [Form::Vhd, Form::Vhdx] {
        let path = new_disk(mount.path(), form, Kind::Dynamic, SIZE);
        let disk = open(&path, DiskOptions::default());
        for at in (0..24 * MIB).step_by(1 << 20) {
            disk.write(at, &stamp(at, MIB, 3)).unwrap();
        }
        let mut expected = read_all(&disk);
        // The second MiB goes, so that a block moves: into a hole that the volume has no room for. The table of a VHDX is in its log only,
        // and has no room in its place either.
        disk.write_zeroes(MIB, MIB, ZeroMode { may_unmap: true, fast_only: false }).unwrap();
        expected[1 << 20..2 << 20].fill(0);
        let ballast = mount.path().join("ballast");
        let room = HostFs.free_space(mount.path()).unwrap();
        std::fs::write(&ballast, vec![1; usize::try_from(room).unwrap()]).unwrap();
        let ended = disk.compact(&MergeControl::new());
        assert!(matches!(ended, Err(CompactError::NoSpace { .. })), "{form:?}: {ended:?}");
        assert_same(&read_all(&disk), &expected, &format!("{form:?}"));
        // A guest that runs on it goes on where it has places.
        disk.write(5 * MIB, &stamp(5 * MIB, MIB, 4)).unwrap();
        disk.flush().unwrap();
        expected[5 << 20..6 << 20].copy_from_slice(&stamp(5 * MIB, MIB, 4));
        std::fs::remove_file(&ballast).unwrap();
        disk.close().unwrap();
        let disk = open(&path, DiskOptions::default());
        disk.compact(&MergeControl::new()).unwrap();
        assert_same(&read_all(&disk), &expected, "at last");
        disk.close().unwrap();
        nothing_is_wrong(&path);
        std::fs::remove_file(&path).unwrap();
    }
}

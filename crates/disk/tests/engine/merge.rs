//! Merges on the host's files: many writers and readers meanwhile, other programs as judges, limits and refusals.

use crate::support::{
    BLOCK_SIZE, Form, SECTOR, assert_same, child_of, dynamic, folder, have, make, open, read_all, report,
    seven_zip, stamp, with_shadow,
};
use backstay_disk::{
    Backend, Disk, DiskOptions, MergeControl, MergeError, MergeStep, NewDisk, ReparentError, WriteGate,
    ZeroMode, fs::HostFs, mark_saved_state, merge_offline, plan_reparent, reparent,
};
use backstay_vhd::testing::Rng;
use std::{
    cell::Cell,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
};

const SIZE: u64 = 24 << 20;

/// A base of some kind and `layers` above it, each with content of its own.
fn chain(folder: &Path, form: Form, base: &NewDisk, layers: usize) -> Vec<PathBuf> {
    let mut paths = vec![folder.join(form.disk("base"))];
    make(&paths[0], base);
    let mut rng = Rng::new(7);
    for level in 0..=layers {
        let path = paths[level].clone();
        let disk = open(&path, with_shadow(folder));
        for _ in 0..40 {
            let offset = rng.below(SIZE / SECTOR - 200) * SECTOR;
            disk.write(offset, &stamp(offset, (1 + rng.below(200)) * SECTOR, 1000 + level as u64)).unwrap();
        }
        disk.write_zeroes(
            rng.below(SIZE / SECTOR - 3000) * SECTOR,
            3000 * SECTOR,
            ZeroMode { may_unmap: true, fast_only: false },
        )
        .unwrap();
        disk.close().unwrap();
        if level < layers {
            let child = folder.join(form.layer(&level.to_string()));
            child_of(&path, &child);
            paths.push(child);
        }
    }
    paths
}

fn bases() -> [(Form, NewDisk); 6] {
    let dynamic = |block_size| NewDisk::Dynamic { size: SIZE, block_size };
    [
        (Form::Vhd, NewDisk::Fixed { size: SIZE }),
        (Form::Vhd, dynamic(BLOCK_SIZE)),
        (Form::Vhd, dynamic(2 << 20)),
        (Form::Vhdx, NewDisk::Fixed { size: SIZE }),
        (Form::Vhdx, dynamic(1 << 20)),
        (Form::Vhdx, dynamic(8 << 20)),
    ]
}

fn raw(path: &Path) -> Vec<u8> {
    let out = path.with_extension("raw-copy");
    let run = Command::new("qemu-img")
        .args(["convert", "-f", if path.extension().unwrap() == "vhd" { "vpc" } else { "vhdx" }, "-O", "raw"])
        .arg(path)
        .arg(&out)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let mut bytes = std::fs::read(&out).unwrap();
    std::fs::remove_file(out).unwrap();
    bytes.truncate(usize::try_from(SIZE).unwrap());
    bytes
}

#[test]
fn a_merged_disk_is_right_for_other_programs() {
    if !have("qemu-img") || !have("7zz") {
        return;
    }
    for (form, base) in bases() {
        let folder = folder();
        let paths = chain(folder.path(), form, &base, 3);
        let before = read_all(&open(&paths[3], DiskOptions::read_only()));
        let middle = read_all(&open(&paths[2], DiskOptions::read_only()));
        let merge = |upper: &Path, children: &[PathBuf]| {
            let control = MergeControl::new();
            let merged =
                merge_offline(&HostFs::shared(), upper, children, &with_shadow(folder.path()), &control);
            let merged = merged.unwrap_or_else(|error| panic!("{}", report(&error)));
            assert_eq!(control.progress().blocks_done, control.progress().blocks_total);
            std::fs::remove_file(upper).unwrap();
            merged
        };
        // Into a differencing disk, with a child above; then into the base; then the last one.
        let merged = merge(&paths[2], &paths[3..]);
        assert_eq!(merged.reparented, [paths[3].canonicalize().unwrap()]);
        assert_same(&seven_zip(&paths[3]), &before, "7-Zip, the child of a merged layer");
        assert_same(&seven_zip(&paths[1]), &middle, "7-Zip, a differencing disk that took a layer");
        merge(&paths[1], &paths[3..]);
        assert_same(&raw(&paths[0]), &middle, "qemu-img, a base that took a layer");
        assert_same(&seven_zip(&paths[3]), &before, "7-Zip, the last child");
        let kind = if form == Form::Vhd { "-tVHD" } else { "-tVHDX" };
        let info = Command::new("7zz").args(["l", kind, "-slt"]).arg(&paths[3]).output().unwrap();
        assert!(
            String::from_utf8_lossy(&info.stdout).contains(&form.disk("base")),
            "7-Zip names the new parent"
        );
        merge(&paths[3], &[]);
        assert_same(&raw(&paths[0]), &before, "qemu-img, all in one");
        assert_same(&seven_zip(&paths[0]), &before, "7-Zip, all in one");
    }
}

const WRITERS: u64 = 3;

/// One writer: writes its own sectors and looks at them until `stop`. Returns the version of each; 0 as before, `MAX` zeros.
fn write_and_look(disk: &Disk, before: &[u8], stop: &AtomicBool, (seed, writer): (u64, u64)) -> Vec<u64> {
    let sectors = SIZE / SECTOR;
    let mut rng = Rng::new(seed * 100 + writer);
    let mut mine = vec![0; usize::try_from(sectors / WRITERS).unwrap()];
    let mut version = 1;
    while !stop.load(SeqCst) || version < 300 {
        version += 1;
        // Some writers have a hot spot.
        let slot = if rng.one_in(2) { rng.below(mine.len() as u64) } else { rng.below(300) };
        let offset = (slot * WRITERS + writer) * SECTOR;
        let index = usize::try_from(slot).unwrap();
        let mut found = [0; 512];
        match rng.below(8) {
            0 => disk.flush().unwrap(),
            1 => {
                let mode = ZeroMode { may_unmap: true, fast_only: false };
                disk.write_zeroes(offset, SECTOR, mode).unwrap();
                mine[index] = u64::MAX;
            }
            2 | 3 => {
                disk.read(offset, &mut found).unwrap();
                let at = usize::try_from(offset).unwrap();
                let expected = match mine[index] {
                    0 => before[at..at + 512].to_vec(),
                    u64::MAX => vec![0; 512],
                    version => stamp(offset, SECTOR, version),
                };
                assert_same(&found, &expected, "a sector that only this thread writes");
            }
            _ => {
                disk.write(offset, &stamp(offset, SECTOR, version)).unwrap();
                mine[index] = version;
            }
        }
    }
    mine
}

/// Writers own every n-th sector each, readers look for what they know; layers are merged below them and at the top.
fn hammer(form: Form, base: &NewDisk, upper: usize, seed: u64) {
    let folder = folder();
    let paths = chain(folder.path(), form, base, 3);
    let disk = open(&paths[3], with_shadow(folder.path()));
    let before = read_all(&disk);
    let stop = AtomicBool::new(false);
    let mut model = before.clone();
    let written: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (disk, stop, before) = (&disk, &stop, &before);
                scope.spawn(move || write_and_look(disk, before, stop, (seed, writer)))
            })
            .collect();
        let mut left: Vec<usize> = (1..=3).collect();
        let mut next = upper;
        // Each merge is cancelled once, and gone on with.
        while let Some(at) = left.iter().position(|level| *level == next) {
            let early = MergeControl::new().in_batches_of(2);
            let ended = std::thread::scope(|merging| {
                let ended = merging.spawn(|| disk.merge_layer(&paths[next], &[], &early));
                while early.progress().blocks_done < 2 && !ended.is_finished() {
                    std::thread::yield_now();
                }
                early.cancel();
                ended.join().unwrap()
            });
            if let Err(error) = ended {
                assert!(matches!(error, MergeError::Cancelled { .. }), "{}", report(&error));
                let control = MergeControl::new().in_batches_of(3);
                let merged = disk.merge_layer(&paths[next], &[], &control);
                let merged = merged.unwrap_or_else(|error| panic!("{}", report(&error)));
                assert_eq!(merged.upper, paths[next].canonicalize().unwrap());
            }
            std::fs::remove_file(&paths[next]).unwrap();
            left.remove(at);
            next = left.last().copied().unwrap_or(0);
        }
        stop.store(true, SeqCst);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    for (writer, slots) in (0..).zip(written) {
        for (slot, version) in (0..).zip(slots).filter(|(_, version)| *version != 0) {
            let offset = (slot * WRITERS + writer) * SECTOR;
            let at = usize::try_from(offset).unwrap();
            let bytes = if version == u64::MAX { vec![0; 512] } else { stamp(offset, SECTOR, version) };
            model[at..at + 512].copy_from_slice(&bytes);
        }
    }
    assert_same(&read_all(&disk), &model, "after all merges");
    assert_eq!(disk.chain().len(), 1);
    disk.close().unwrap();
    let again = open(&paths[0], with_shadow(folder.path()));
    assert_same(&read_all(&again), &model, "opened again");
}

#[test]
fn many_writers_and_readers_notice_nothing() {
    for (seed, (form, base)) in (0..).zip(bases()) {
        for upper in [1, 2, 3] {
            hammer(form, &base, upper, seed * 10 + upper as u64);
        }
    }
}

thread_local! {
    /// Writes to files that this thread has begun; `None` in threads that are not held.
    static BEGUN: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Holds the second write to a file of one thread until it is let go.
#[derive(Debug)]
struct Hold {
    held: Mutex<mpsc::Sender<()>>,
    let_go: Mutex<mpsc::Receiver<()>>,
}

impl WriteGate for Hold {
    fn pass(&self) -> std::io::Result<()> {
        let Some(begun) = BEGUN.get() else { return Ok(()) };
        BEGUN.set(Some(begun + 1));
        if begun == 1 {
            self.held.lock().unwrap().send(()).unwrap();
            self.let_go.lock().unwrap().recv().unwrap();
        }
        Ok(())
    }
}

/// A guest's write is in the lower layer and not yet in the upper one when the merge reads that.
#[test]
fn a_write_that_the_merge_overtakes_is_not_lost() {
    let folder = folder();
    let base = dynamic(folder.path(), "base.vhd", SIZE);
    let disk = open(&base, with_shadow(folder.path()));
    disk.write(0, &stamp(0, SIZE, 1)).unwrap();
    disk.close().unwrap();
    let child = folder.path().join("top.avhd");
    child_of(&base, &child);
    let (told, is_held) = mpsc::channel();
    let (let_go, is_let_go) = mpsc::channel();
    let gate = Arc::new(Hold { held: Mutex::new(told), let_go: Mutex::new(is_let_go) });
    let disk = open(&child, DiskOptions { gate: Some(gate), ..with_shadow(folder.path()) });
    let block = u64::from(BLOCK_SIZE);
    disk.write(0, &stamp(0, 2 * block, 2)).unwrap();
    // Both blocks are being copied, and nothing of the second one is yet.
    let begin = {
        let disk = Arc::clone(&disk);
        Mutex::new(Some(move || {
            let writer = std::thread::spawn(move || {
                BEGUN.set(Some(0));
                disk.write(block, &stamp(block, 4096, 3)).unwrap();
            });
            is_held.recv().unwrap();
            // Long enough for the merge to have read the block, and to wait for the writer.
            std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(200));
                let_go.send(()).unwrap();
                writer.join().unwrap();
            })
        }))
    };
    let waiting = Arc::new(Mutex::new(None));
    let handle = Arc::clone(&waiting);
    let control = MergeControl::observed(move |step| {
        if step == MergeStep::Copied
            && let Some(begin) = begin.lock().unwrap().take()
        {
            *handle.lock().unwrap() = Some(begin());
        }
    });
    disk.merge_layer(&child, &[], &control.in_batches_of(2)).unwrap();
    waiting.lock().unwrap().take().unwrap().join().unwrap();
    let mut found = vec![0; 8192];
    disk.read(block, &mut found).unwrap();
    assert_same(&found[..4096], &stamp(block, 4096, 3), "the write");
    assert_same(&found[4096..], &stamp(block + 4096, 4096, 2), "what is behind it");
}

/// Nobody takes care that the mark of a saved machine goes; where its disk is in use the machine is not saved.
#[test]
fn a_mark_of_a_saved_machine_hinders_only_while_the_disk_is_not_in_use() {
    let folder = folder();
    let base = dynamic(folder.path(), "base.vhd", SIZE);
    let child = folder.path().join("top.avhd");
    child_of(&base, &child);
    mark_saved_state(&base, true).unwrap();
    let (options, control) = (with_shadow(folder.path()), MergeControl::new());
    let refused = merge_offline(&HostFs::shared(), &child, &[], &options, &control).unwrap_err();
    assert!(matches!(refused, MergeError::SavedState { .. }), "{refused}");
    let disk = open(&child, with_shadow(folder.path()));
    disk.write(0, &stamp(0, 4096, 3)).unwrap();
    disk.merge_layer(&child, &[], &control).unwrap();
    let mut found = vec![0; 4096];
    disk.read(0, &mut found).unwrap();
    assert_same(&found, &stamp(0, 4096, 3), "what was written");
}

/// A process died before anybody wrote down that the merge had ended; the next one opens the right file and the guest goes on.
#[test]
fn a_merge_whose_end_nobody_noted_is_concluded_although_the_parent_was_written_to_since() {
    for form in [Form::Vhd, Form::Vhdx] {
        let folder = folder();
        let base = folder.path().join(form.disk("base"));
        make(&base, &NewDisk::Dynamic { size: SIZE, block_size: 2 << 20 });
        let child = folder.path().join(form.layer("top"));
        child_of(&base, &child);
        let disk = open(&child, with_shadow(folder.path()));
        disk.write(0, &stamp(0, SIZE, 3)).unwrap();
        disk.merge_layer(&child, &[], &MergeControl::new()).unwrap();
        disk.close().unwrap();
        let disk = open(&base, with_shadow(folder.path()));
        disk.write(4096, &stamp(4096, 4096, 4)).unwrap();
        disk.flush().unwrap();
        let merged = disk.merge_layer(&child, &[], &MergeControl::new());
        let merged = merged.unwrap_or_else(|error| panic!("{}", report(&error)));
        assert_eq!((merged.chain, merged.bytes_moved), (vec![base.canonicalize().unwrap()], 0));
        assert_same(&read_all(&disk)[8192..], &stamp(0, SIZE, 3)[8192..], "merged");
        disk.close().unwrap();
        // Another disk that happens to be empty is not taken for it.
        let other = folder.path().join(form.disk("other"));
        make(&other, &NewDisk::Dynamic { size: SIZE, block_size: 2 << 20 });
        let disk = open(&other, with_shadow(folder.path()));
        let refused = disk.merge_layer(&child, &[], &MergeControl::new()).unwrap_err();
        assert!(matches!(refused, MergeError::NotInChain { .. }), "{}", report(&refused));
        disk.close().unwrap();
    }
}

#[test]
fn space_comes_back_while_it_runs_where_it_is_short_and_the_empty_file_is_small() {
    let folder = folder();
    let base = dynamic(folder.path(), "base.vhd", SIZE);
    let child = folder.path().join("top.avhd");
    child_of(&base, &child);
    let disk = open(&child, with_shadow(folder.path()));
    disk.write(0, &stamp(0, SIZE, 3)).unwrap();
    let control = MergeControl::new().short_of_room();
    let merged = disk.merge_layer(&child, &[], &control).unwrap();
    assert_eq!(merged.chain, [base.canonicalize().unwrap()]);
    assert_eq!((merged.bytes_moved, control.progress().bytes_moved), (SIZE, SIZE));
    assert!(control.progress().bytes_freed >= SIZE);
    assert!(std::fs::metadata(&child).unwrap().len() < 1 << 20);
    assert_same(&read_all(&disk), &stamp(0, SIZE, 3), "merged");
    disk.write(0, &stamp(0, 512, 4)).unwrap();
    disk.close().unwrap();
    // Both names are right until the caller has written down the new one.
    let old_name = open(&child, with_shadow(folder.path()));
    assert_same(&read_all(&old_name)[..512], &stamp(0, 512, 4), "the empty child");
}

#[test]
fn a_limit_is_kept_and_can_be_lifted_and_cancelled() {
    let folder = folder();
    let base = dynamic(folder.path(), "base.vhd", SIZE);
    let child = folder.path().join("top.avhd");
    child_of(&base, &child);
    let disk = open(&child, with_shadow(folder.path()));
    disk.write(0, &stamp(0, SIZE, 3)).unwrap();
    let control = Arc::new(MergeControl::new().in_batches_of(1));
    control.set_rate(Some(1 << 20));
    std::thread::scope(|scope| {
        let merging = scope.spawn(|| disk.merge_layer(&child, &[], &control));
        while control.progress().blocks_done == 0 {
            std::thread::yield_now();
        }
        // One block of the 48 takes half a second; all cannot be done.
        assert!(control.progress().blocks_done < 10 && !merging.is_finished());
        let busy = disk.merge_layer(&child, &[], &MergeControl::new());
        assert!(matches!(busy, Err(MergeError::Busy { .. })), "{busy:?}");
        let next = folder.path().join("next.avhd");
        disk.prepare_child(&next, backstay_disk::Identity::fresh()).unwrap();
        let refused = backstay_disk::switch_all([(Arc::clone(&disk), next)]).unwrap_err();
        assert!(matches!(refused, backstay_disk::SwitchError::Merging { .. }), "{refused:?}");
        control.cancel();
        let ended = merging.join().unwrap();
        assert!(matches!(ended, Err(MergeError::Cancelled { .. })), "{ended:?}");
    });
    let control = Arc::new(MergeControl::new());
    control.set_rate(Some(1));
    std::thread::scope(|scope| {
        let merging = scope.spawn(|| disk.merge_layer(&child, &[], &control));
        while control.progress().blocks_total == 0 {
            std::thread::yield_now();
        }
        assert!(control.progress().blocks_total < 48, "what was moved is not moved again");
        control.set_rate(None);
        merging.join().unwrap().unwrap();
    });
    assert_same(&read_all(&disk), &stamp(0, SIZE, 3), "merged");
    // Closing ends a merge.
    let control = Arc::new(MergeControl::new());
    control.set_rate(Some(1));
    let (base, child) = (base, folder.path().join("again.avhd"));
    disk.close().unwrap();
    child_of(&base, &child);
    let disk = open(&child, with_shadow(folder.path()));
    disk.write(0, &stamp(0, SIZE, 4)).unwrap();
    std::thread::scope(|scope| {
        let merging = scope.spawn(|| disk.merge_layer(&child, &[], &control));
        while control.progress().blocks_total == 0 {
            std::thread::yield_now();
        }
        disk.close().unwrap();
        assert!(matches!(merging.join().unwrap(), Err(MergeError::Closed { .. })));
    });
    assert_same(
        &read_all(&open(&child, with_shadow(folder.path()))),
        &stamp(0, SIZE, 4),
        "closed in the middle",
    );
}

#[test]
fn what_would_destroy_something_is_refused() {
    let folder = folder();
    let base = dynamic(folder.path(), "base.vhd", SIZE);
    let (one, two) = (folder.path().join("one.avhd"), folder.path().join("two.avhd"));
    child_of(&base, &one);
    child_of(&base, &two);
    let control = MergeControl::new();
    let text = |result: Result<_, MergeError>| {
        result.map(|_: backstay_disk::Merged| ()).map_err(|error| report(&error)).unwrap_err()
    };
    let disk = open(&one, with_shadow(folder.path()));
    // Another disk reads the parent.
    let other = open(&two, with_shadow(folder.path()));
    other.write(0, &[6; 512]).unwrap();
    let refused = text(disk.merge_layer(&one, &[], &control));
    assert!(refused.contains("base.vhd is in use by"), "{refused}");
    disk.write(0, &[5; 512]).unwrap();
    other.close().unwrap();
    assert!(text(disk.merge_layer(&two, &[], &control)).contains("is not a layer of"), "two is no layer");
    assert!(text(disk.merge_layer(&base, &[], &control)).contains("has no parent"));
    let refused = text(disk.merge_layer(&one, std::slice::from_ref(&two), &control));
    assert!(refused.contains("is written to, so it cannot have the child"), "{refused}");
    let looking = open(&two, DiskOptions::read_only());
    assert!(text(looking.merge_layer(&two, &[], &control)).contains("read-only"));
    drop(looking);
    disk.close().unwrap();
    // Of another size.
    let large = folder.path().join("large.vhd");
    make(&large, &NewDisk::Dynamic { size: 2 * SIZE, block_size: BLOCK_SIZE });
    let wrong = reparent(&HostFs::shared(), &one, &large, &with_shadow(folder.path()));
    assert!(matches!(wrong, Err(ReparentError::OtherParent { .. })), "{wrong:?}");
    let wrong = plan_reparent(&HostFs::shared(), &one, &large, &DiskOptions::read_only());
    assert!(
        matches!(wrong, Err(ReparentError::OtherParent { .. })),
        "a plan is refused like the work: {wrong:?}"
    );
    let wrong = plan_reparent(&HostFs::shared(), &large, &one, &DiskOptions::read_only());
    assert!(matches!(wrong, Err(ReparentError::NotDifferencing { .. })), "{wrong:?}");
    let nothing =
        plan_reparent(&HostFs::shared(), &one, &folder.path().join("none.vhd"), &DiskOptions::read_only());
    assert!(matches!(nothing, Err(ReparentError::Open(_))), "{nothing:?}");
}

/// The lower layer grows while its old table is read, on disks whose first block follows the table.
#[test]
fn a_parent_that_grows_for_a_merge_reads_the_same_meanwhile() {
    for form in [Form::Vhd, Form::Vhdx] {
        let folder = folder();
        let base = dynamic(folder.path(), &form.disk("base"), SIZE);
        let disk = open(&base, with_shadow(folder.path()));
        disk.write(0, &stamp(0, SIZE, 3)).unwrap();
        disk.close().unwrap();
        let child = folder.path().join(form.layer("child"));
        child_of(&base, &child);
        let disk = open(&child, with_shadow(folder.path()));
        // More entries than the first table has room for.
        let large = if form == Form::Vhd { 2000 << 20 } else { 140 << 30 };
        disk.grow(large).unwrap();
        disk.write(large - 4096, &stamp(large - 4096, 4096, 4)).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (mut rounds, mut found) = (0, vec![0; usize::try_from(SIZE).unwrap()]);
                let expected = stamp(0, SIZE, 3);
                while !stop.load(std::sync::atomic::Ordering::SeqCst) || rounds < 3 {
                    disk.read(0, &mut found).unwrap();
                    assert_same(&found, &expected, "while the parent grows");
                    rounds += 1;
                }
            });
            let merged = disk.merge_layer(&child, &[], &MergeControl::new());
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
            merged.unwrap_or_else(|error| panic!("{}", report(&error)));
            reader.join().unwrap();
        });
        assert_eq!(disk.size(), large);
        let mut last = vec![0; 4096];
        disk.read(large - 4096, &mut last).unwrap();
        assert_same(&last, &stamp(large - 4096, 4096, 4), "what was new");
        disk.close().unwrap();
    }
}

#[test]
fn a_moved_parent_is_found_again() {
    let folder = folder();
    let base = dynamic(folder.path(), "base.vhd", SIZE);
    let child = folder.path().join("top.avhd");
    child_of(&base, &child);
    let disk = open(&child, with_shadow(folder.path()));
    disk.write(0, &stamp(0, 4096, 3)).unwrap();
    disk.close().unwrap();
    let len = std::fs::metadata(&child).unwrap().len();
    let elsewhere = folder.path().join("a folder with a much longer name");
    std::fs::create_dir(&elsewhere).unwrap();
    let moved = elsewhere.join("moved.vhd");
    std::fs::rename(&base, &moved).unwrap();
    assert!(Disk::open(&child, with_shadow(folder.path())).is_err());
    let before = std::fs::read(&child).unwrap();
    let plan = plan_reparent(&HostFs::shared(), &child, &moved, &DiskOptions::read_only()).unwrap();
    assert_eq!(plan.parent, moved.canonicalize().unwrap(), "{plan}");
    assert!(std::fs::read(&child).unwrap() == before, "a plan changes nothing");
    reparent(&HostFs::shared(), &child, &moved, &with_shadow(folder.path()))
        .unwrap_or_else(|e| panic!("{}", report(&e)));
    let disk = open(&child, with_shadow(folder.path()));
    assert_same(&read_all(&disk)[..4096], &stamp(0, 4096, 3), "the child");
    assert!(disk.warnings().is_empty(), "{:?}", disk.warnings());
    disk.close().unwrap();
    assert_eq!(std::fs::metadata(&child).unwrap().len(), len, "the file has its old length");
    // 7-Zip looks beside the disk only.
    let beside = folder.path().join("another name.vhd");
    std::fs::rename(&moved, &beside).unwrap();
    reparent(&HostFs::shared(), &child, &beside, &with_shadow(folder.path())).unwrap();
    if have("7zz") {
        assert_same(&seven_zip(&child)[..4096], &stamp(0, 4096, 3), "7-Zip finds it too");
    }
}

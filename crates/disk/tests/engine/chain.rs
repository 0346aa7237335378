//! Deep chains, mixed block sizes, and other processes that want the same files.

use crate::support::{
    SECTOR, assert_same, child_of, dynamic, folder, have, make, open, other_process, read_all, report,
    seven_zip, stamp, with_shadow,
};
use backstay_disk::{
    Backend, CreateError, Disk, DiskOptions, Identity, MAX_DEPTH, NewDisk, NewDiskPlan, OpenError,
    create_disk, fs::HostFs, switch_all,
};
use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead, BufReader, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

const SIZE: u64 = 2 << 20;

/// Writes what only this layer holds, and a piece of the one below again.
fn write_layer(disk: &Disk, model: &mut [u8], level: u64) {
    for sector in [level * 8 % 4000, (level * 8 + 4000) % 4090] {
        let data = stamp(sector * SECTOR, 6 * SECTOR, level + 1);
        disk.write(sector * SECTOR, &data).unwrap();
        let at = usize::try_from(sector * SECTOR).unwrap();
        model[at..at + data.len()].copy_from_slice(&data);
    }
}

/// A chain as checkpoints make it, some content in each file; its top, still open.
fn checkpoints(folder: &Path, depth: usize) -> (Arc<Disk>, Vec<u8>) {
    let disk = open(&dynamic(folder, "0.vhd", SIZE), with_shadow(folder));
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    write_layer(&disk, &mut model, 0);
    for level in 1..depth {
        let child = folder.join(format!("{level}.avhd"));
        disk.prepare_child(&child, Identity::fresh()).unwrap();
        switch_all([(Arc::clone(&disk), child)]).unwrap();
        write_layer(&disk, &mut model, level as u64);
    }
    (disk, model)
}

#[test]
fn a_chain_of_256_disks_is_read_and_written() {
    let folder = folder();
    let (disk, mut model) = checkpoints(folder.path(), MAX_DEPTH);
    assert_same(&read_all(&disk), &model, "while it grew");
    let top = disk.top_path();
    let refused = disk.prepare_child(&folder.path().join("257.avhd"), Identity::fresh());
    assert!(matches!(refused, Err(CreateError::TooDeep { .. })), "{refused:?}");
    disk.close().unwrap();

    let disk = open(&top, with_shadow(folder.path()));
    assert_eq!((disk.chain().len(), disk.warnings()), (MAX_DEPTH, vec![]));
    write_layer(&disk, &mut model, 7);
    disk.write_zeroes(300 * SECTOR, 900 * SECTOR, backstay_disk::ZeroMode::default()).unwrap();
    model[300 * 512..1200 * 512].fill(0);
    disk.close().unwrap();
    assert_same(&read_all(&open(&top, DiskOptions::read_only())), &model, "256 disks");
    if have("7zz") {
        assert_same(&seven_zip(&top), &model, "7-Zip, 256 disks");
    }
}

#[test]
fn the_257th_disk_is_refused_by_its_rule() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let (disk, _) = checkpoints(folder.path(), MAX_DEPTH);
    let top = disk.top_path();
    disk.close().unwrap();
    let what = NewDisk::Differencing { parent: top, block_size: 512 << 10 };
    let refused = create_disk(&HostFs::shared(), &path("257.avhd"), &what, Identity::fresh()).unwrap_err();
    let text = report(&refused);
    assert!(text.contains("256 disks") && text.contains("backstay disk convert"), "{text}");
    assert!(!path("257.avhd").exists());

    // One that is made behind our back: a child of a disk that a deep one then takes the place of.
    let id = Identity::fresh();
    let fs = HostFs::shared();
    let parent = path("parent.vhd");
    create_disk(&fs, &parent, &NewDisk::Dynamic { size: SIZE, block_size: 512 << 10 }, id).unwrap();
    child_of(&parent, &path("child.avhd"));
    let what = NewDisk::Differencing { parent: path("254.avhd"), block_size: 512 << 10 };
    let deep = NewDiskPlan::new(&fs, &path("deep.vhd"), &what, id, &DiskOptions::default()).unwrap();
    deep.execute(&fs).unwrap();
    drop(deep);
    std::fs::rename(path("deep.vhd"), &parent).unwrap();
    open(&parent, DiskOptions::read_only()).close().unwrap();
    let refused = Disk::open(&path("child.avhd"), DiskOptions::read_only()).unwrap_err();
    assert!(matches!(refused, OpenError::TooDeep { .. }), "{}", report(&refused));
    assert!(report(&refused).contains("more than 256 disks"), "{}", report(&refused));
}

#[test]
fn layers_may_have_different_block_sizes() {
    let folder = folder();
    let mut top = folder.path().join("0.vhd");
    let size = (9 << 20) + 1536;
    make(&top, &NewDisk::Dynamic { size, block_size: 2 << 20 });
    let mut model = vec![0; usize::try_from(size).unwrap()];
    for (level, block_size) in [None, Some(512 << 10), Some(16 << 20), Some(1 << 20)].into_iter().enumerate()
    {
        if let Some(block_size) = block_size {
            let child = folder.path().join(format!("{level}.avhd"));
            make(&child, &NewDisk::Differencing { parent: top.clone(), block_size });
            top = child;
        }
        let disk = open(&top, with_shadow(folder.path()));
        let mut rng = backstay_vhd::testing::Rng::new(level as u64);
        for _ in 0..30 {
            let sector = rng.below(size / SECTOR);
            let count = (1 + rng.below(600)).min(size / SECTOR - sector);
            let data = stamp(sector * SECTOR, count * SECTOR, level as u64 + 1);
            disk.write(sector * SECTOR, &data).unwrap();
            let at = usize::try_from(sector * SECTOR).unwrap();
            model[at..at + data.len()].copy_from_slice(&data);
        }
        assert_same(&read_all(&disk), &model, &format!("layer {level}"));
        disk.close().unwrap();
        if have("7zz") {
            assert_same(&seven_zip(&top), &model, &format!("7-Zip, layer {level}"));
        }
    }
}

#[test]
fn a_parent_that_was_changed_after_its_child_was_made_is_told() {
    let folder = folder();
    let (parent, child) = (folder.path().join("parent.vhd"), folder.path().join("child.vhd"));
    make(&parent, &NewDisk::Dynamic { size: SIZE, block_size: 512 << 10 });
    // A time of which no other step can be the cause.
    let past = SystemTime::now() - Duration::from_secs(1000);
    let touch = |time| File::options().write(true).open(&parent).unwrap().set_modified(time).unwrap();
    touch(past);
    make(&child, &NewDisk::Differencing { parent: parent.clone(), block_size: 512 << 10 });
    let warnings = || {
        let disk = open(&child, DiskOptions::read_only());
        disk.warnings().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(warnings(), [""; 0]);
    let disk = open(&parent, with_shadow(folder.path()));
    disk.write(0, &stamp(0, SECTOR, 1)).unwrap();
    disk.close().unwrap();
    let told = warnings();
    assert!(told.len() == 1 && told[0].contains("was changed or copied after"), "{told:?}");
    touch(past);
    assert_eq!(warnings(), [""; 0], "the time is all that tells it");
    if have("7zz") {
        assert_same(&seven_zip(&child), &read_all(&open(&child, DiskOptions::read_only())), "7-Zip");
    }
}

#[test]
fn odd_names_of_parents_are_found_also_after_a_move() {
    let odd = [
        "a\\b.vhd",
        "C:foo.vhd",
        "C:\\foo\\bar.vhd",
        "\\\\server\\share.vhd",
        " lead.vhd",
        "trail .vhd",
        "..foo.vhd",
        "new\nline.vhd",
        "😀 ä a\u{308}.vhd",
        "file:x.vhd",
        "*?|<>\".vhd",
        "-dash.vhd",
        "%41.vhd",
        "....vhd",
    ];
    let long = "é".repeat(125) + ".vhd";
    for name in odd.into_iter().chain([long.as_str()]) {
        for parents in ["c", "p q"] {
            let folder = folder();
            let before = folder.path().join("before");
            for folder in ["c", parents] {
                std::fs::create_dir_all(before.join(folder)).unwrap();
            }
            child_of(&dynamic(&before.join(parents), name, SIZE), &before.join("c/kid.avhd"));
            let after = folder.path().join("after");
            std::fs::rename(&before, &after).unwrap();
            let disk = open(&after.join("c/kid.avhd"), DiskOptions::read_only());
            assert_eq!(disk.chain()[1].path, after.join(parents).join(name));
        }
    }
}

#[test]
fn a_parent_whose_name_cannot_be_stored_is_refused() {
    let folder = folder();
    let parent = folder.path().join(OsStr::from_bytes(b"\xff.vhd"));
    make(&parent, &NewDisk::Dynamic { size: SIZE, block_size: 512 << 10 });
    let what = NewDisk::Differencing { parent, block_size: 512 << 10 };
    let refused = create_disk(&HostFs::shared(), &folder.path().join("1.avhd"), &what, Identity::fresh());
    assert!(matches!(refused, Err(CreateError::ParentName { .. })), "{refused:?}");
}

/// The process that has a disk open until it is killed.
#[test]
#[ignore = "run by the other tests of this file, as the process that holds a disk"]
fn holder() {
    let Some(path) = std::env::var_os("BACKSTAY_HOLD") else { return };
    let _disk = open(&PathBuf::from(path), DiskOptions::default());
    eprintln!("open");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

struct Holder(Child);

impl Holder {
    fn of(path: &Path) -> Self {
        let mut command = other_process("chain::holder");
        command.env("BACKSTAY_HOLD", path).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == "open"), "the other process opens the disk");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn a_writer_in_another_process_is_named() {
    let folder = folder();
    let base = dynamic(folder.path(), "0.vhd", SIZE);
    let top = folder.path().join("1.avhd");
    child_of(&base, &top);
    let holder = Holder::of(&top);
    let refused = |path: &Path, options: DiskOptions| report(&Disk::open(path, options).unwrap_err());
    let named = format!("(pid {}, command ", holder.0.id());
    for (path, options) in [
        (&top, DiskOptions::default()),
        (&top, DiskOptions::read_only()),
        // Its parent is only read, but that is enough against writers.
        (&base, DiskOptions::default()),
    ] {
        let text = refused(path, options);
        assert!(text.contains("is in use by") && text.contains(&named), "{text}");
        assert!(text.contains(path.to_str().unwrap()) && text.contains("chain::holder"), "{text}");
    }
    open(&base, DiskOptions::read_only()).close().unwrap();
    drop(holder);
    open(&top, DiskOptions::default()).close().unwrap();
}

/// Access modes of this process's descriptors of a file: 0 for reading only.
fn access_modes(path: &Path) -> Vec<u32> {
    let wanted = std::fs::metadata(path).unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Ok(meta) = std::fs::metadata(entry.path()) else { continue };
        if (meta.dev(), meta.ino()) == (wanted.dev(), wanted.ino()) {
            let info = Path::new("/proc/self/fdinfo").join(entry.file_name());
            let text = std::fs::read_to_string(info).unwrap();
            let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            found.push(u32::from_str_radix(flags.trim(), 8).unwrap() & 3);
        }
    }
    found
}

#[test]
fn parents_are_opened_for_reading_only_and_stay_as_they_are() {
    let folder = folder();
    let (disk, _) = checkpoints(folder.path(), 3);
    let top = disk.top_path();
    disk.close().unwrap();
    let parents = ["0.vhd", "1.avhd"].map(|name| folder.path().join(name));
    let before = parents.clone().map(|path| std::fs::read(path).unwrap());
    let disk = open(&top, with_shadow(folder.path()));
    assert_eq!(access_modes(&top), [2]);
    assert_eq!(parents.clone().map(|path| access_modes(&path)), [[0], [0]]);
    disk.write(0, &stamp(0, SIZE, 9)).unwrap();
    disk.trim(0, SIZE / 2).unwrap();
    disk.write_zeroes(SIZE / 2, SIZE / 4, backstay_disk::ZeroMode::default()).unwrap();
    disk.close().unwrap();
    for (path, before) in parents.iter().zip(&before) {
        assert_same(&std::fs::read(path).unwrap(), before, &path.display().to_string());
    }
}

//! Disks that are compacted to what their file systems need: made, filled and judged by the programs of those file systems.

use crate::{
    resize::{Kind, new_disk, nothing_is_wrong},
    support::{Form, child_of, folder, have, make, open, read_all, report, stamp, with_shadow},
};
use backstay_disk::{
    Backend, CompactError, CompactPlan, Compacted, DiskOptions, Dropping, MergeControl, NewDisk, SpaceState,
    compact_offline, fs::HostFs, plan_compact,
};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const MIB: u64 = 1 << 20;

fn compact(path: &Path) -> Result<Compacted, CompactError> {
    let options = with_shadow(path.parent().unwrap());
    compact_offline(&HostFs::shared(), path, &options, Dropping::FreeSpace, &MergeControl::new())
}

fn plan(path: &Path) -> CompactPlan {
    plan_compact(&HostFs::shared(), path, &DiskOptions::read_only(), Dropping::FreeSpace).unwrap()
}

/// Runs a program that has to end well; what it prints.
fn run(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// Files of many sizes, some of which go again so that the file system has holes full of old bytes.
fn files(folder: &Path) -> PathBuf {
    let files = folder.join("files");
    fs::create_dir(&files).unwrap();
    for number in 0..40_u64 {
        fs::write(files.join(format!("f{number}")), stamp(number << 20, 4096 * (1 + number * 7 % 60), 2))
            .unwrap();
    }
    files
}

/// A disk with the bytes of an image, written as a guest would.
fn disk_of(image: &Path, path: &Path) {
    let bytes = fs::read(image).unwrap();
    let block_size = crate::support::block_size(path);
    make(path, &NewDisk::Dynamic { size: bytes.len() as u64, block_size });
    let disk = open(path, with_shadow(path.parent().unwrap()));
    for (at, chunk) in (0..).step_by(1 << 20).zip(bytes.chunks(1 << 20)) {
        disk.write(at, chunk).unwrap();
    }
    disk.close().unwrap();
}

/// What a disk reads now, as a file for other programs.
fn image_of(path: &Path) -> PathBuf {
    let image = path.with_extension("now");
    fs::write(&image, read_all(&open(path, DiskOptions::read_only()))).unwrap();
    image
}

fn parted(image: &Path, size: u64, script: &str) {
    fs::File::create(image).unwrap().set_len(size).unwrap();
    let mut child =
        Command::new("sfdisk").args(["-q", "--no-reread"]).arg(image).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Fills what is free in an image with old bytes.
fn dirty(image: &Path, from: u64, len: u64) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(image).unwrap();
    file.write_all_at(&stamp(from, len, 9), from).unwrap();
}

/// The same files and a file system without complaint.
fn ext_is_whole(image: &Path, at: u64, files: &Path, out: &Path) {
    let device = format!("{}?offset={at}", image.display());
    run("e2fsck", &["-f", "-n", &device]);
    let _ = fs::remove_dir_all(out);
    fs::create_dir(out).unwrap();
    run("debugfs", &["-R", &format!("rdump / {}", out.display()), &device]);
    for file in fs::read_dir(files).unwrap() {
        let file = file.unwrap().path();
        let other = out.join(file.file_name().unwrap());
        assert!(fs::read(&file).unwrap() == fs::read(&other).unwrap(), "{}", other.display());
    }
}

fn fat_is_whole(image: &Path, at: u64, files: &Path, out: &Path) {
    let _ = fs::remove_dir_all(out);
    fs::create_dir(out).unwrap();
    let device = format!("{}@@{at}", image.display());
    run("mcopy", &["-n", "-i", &device, "-s", "::", out.to_str().unwrap()]);
    for file in fs::read_dir(files).unwrap() {
        let file = file.unwrap().path();
        let other = out.join(file.file_name().unwrap());
        assert!(fs::read(&file).unwrap() == fs::read(&other).unwrap(), "{}", other.display());
    }
}

/// Bytes that are free on each volume; none where it was left.
fn free_bytes(done: &Compacted) -> Vec<Option<u64>> {
    let bytes = |state: &SpaceState| match state {
        SpaceState::Free { bytes, .. } => Some(*bytes),
        SpaceState::Left(_) => None,
    };
    done.volumes.iter().map(|volume| bytes(&volume.state)).collect()
}

#[test]
fn what_ext_and_fat_do_not_need_goes_and_every_file_stays() {
    if !["sfdisk", "mkfs.ext4", "e2fsck", "debugfs", "mkfs.fat", "mcopy"].map(have).iter().all(|have| *have) {
        return;
    }
    let kinds = [("gpt", "ext4", "1024", "32"), ("dos", "ext2", "4096", "16"), ("gpt", "ext3", "1024", "12")];
    for ((label, ext, block, fat), form) in kinds.into_iter().zip([Form::Vhdx, Form::Vhd, Form::Vhdx]) {
        let folder = folder();
        let files = files(folder.path());
        let image = folder.path().join("disk.img");
        let (first, second) = (2048 * 512, (2048 + 100 * 2048) * 512);
        parted(&image, 160 * MIB, &format!("label: {label}\nstart=2048, size=204800\nsize=90112\n"));
        // Old bytes everywhere: what the file systems do not write over is free.
        dirty(&image, first, 100 * MIB);
        dirty(&image, second, 44 * MIB);
        let offset = format!("offset={first},nodiscard");
        let source = files.to_str().unwrap();
        let path = image.to_str().unwrap();
        run("mkfs.ext4", &["-q", "-F", "-t", ext, "-b", block, "-d", source, "-E", &offset, path, "100M"]);
        // The number of clusters tells the width.
        let cluster = match fat {
            "12" => "64",
            "16" => "4",
            _ => "1",
        };
        let at = (second / 512).to_string();
        run("mkfs.fat", &["-F", fat, "-s", cluster, "--offset", &at, path, "45056"]);
        let device = format!("{path}@@{second}");
        let names: Vec<String> =
            fs::read_dir(&files).unwrap().map(|file| file.unwrap().path().display().to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        run("mcopy", &[&["-i", &device][..], &names, &["::"]].concat());
        let gone: Vec<String> = (0..20).map(|number| format!("::f{}", number * 2)).collect();
        let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
        run("mdel", &[&["-i", &device][..], &gone].concat());
        gone.iter().for_each(|name| fs::remove_file(files.join(&name[2..])).unwrap());
        let request: String = gone.iter().map(|name| format!("rm {}\n", &name[2..])).collect();
        let commands = folder.path().join("commands");
        fs::write(&commands, request).unwrap();
        run("debugfs", &["-w", "-f", commands.to_str().unwrap(), &format!("{path}?offset={first}")]);
        ext_is_whole(&image, first, &files, &folder.path().join("out"));

        let disk = folder.path().join(form.disk("disk"));
        disk_of(&image, &disk);
        let planned = plan(&disk);
        let done = compact(&disk).unwrap_or_else(|error| panic!("{}", report(&error)));
        println!("{label} {ext} FAT{fat}: {done:?}\n{planned}");
        let free = free_bytes(&done);
        assert_eq!(free.len(), 2, "{planned}");
        assert!(free[0].unwrap() > 60 * MIB && free[1].unwrap() > 20 * MIB, "{planned}");
        assert_eq!((done.new_len, done.dropped_blocks), (planned.new_len, planned.empty_blocks));
        assert!(done.old_len - done.new_len > 100 * MIB, "{done:?}");
        nothing_is_wrong(&disk);
        let now = image_of(&disk);
        ext_is_whole(&now, first, &files, &folder.path().join("out"));
        fat_is_whole(&now, second, &files, &folder.path().join("out"));
        if label == "gpt" {
            let said = run("sfdisk", &["--verify", now.to_str().unwrap()]);
            assert!(said.contains("No errors detected"), "{said}");
        }
    }
}

/// A file system of its own size on a disk without partitions, filled with old bytes before.
fn lone(folder: &Path, form: Form, options: &[&str]) -> PathBuf {
    let image = folder.join("lone.img");
    fs::File::create(&image).unwrap().set_len(24 * MIB).unwrap();
    dirty(&image, 0, 24 * MIB);
    let path = image.to_str().unwrap();
    run("mkfs.ext4", &[&["-q", "-F", "-E", "nodiscard"][..], options, &[path]].concat());
    let disk = folder.join(form.disk("lone"));
    disk_of(&image, &disk);
    disk
}

/// Changes a byte of a disk.
fn poke(path: &Path, at: u64, change: impl Fn(u8) -> u8) {
    let disk = open(path, with_shadow(path.parent().unwrap()));
    let mut sector = [0; 512];
    disk.read(at / 512 * 512, &mut sector).unwrap();
    let place = usize::try_from(at % 512).unwrap();
    sector[place] = change(sector[place]);
    disk.write(at / 512 * 512, &sector).unwrap();
    disk.close().unwrap();
}

#[test]
fn what_is_not_clean_or_not_understood_stays_to_the_last_byte() {
    if !["mkfs.ext4", "e2fsck", "mkfs.fat"].map(have).iter().all(|have| *have) {
        return;
    }
    let super_at = 1024;
    let sums: &[&str] = &["-O", "metadata_csum"];
    let old: &[&str] = &["-O", "^metadata_csum,^uninit_bg"];
    // What is changed, of which file system, and a word of the reason.
    let cases: [(&str, &[&str], u64, u8, &str); 7] = [
        ("in use", old, super_at + 0x3a, 0x01, "shut it down"),
        ("its journal is needed", old, super_at + 0x60, 0x04, "shut it down"),
        ("a feature of tomorrow", old, super_at + 0x63, 0x40, "not known here"),
        ("the sum of its head", sums, super_at + 0x78, 0xff, "checksum"),
        ("the sum of a group", sums, 4096 + 0x0e, 0xff, "checksum"),
        ("more is free than there is", old, 4096 + 0x0c, 0x01, "are free"),
        ("a mark of LVM too", old, 512, 0, "which of them counts"),
    ];
    for (what, options, at, change, reason) in cases {
        let folder = folder();
        let disk = lone(folder.path(), Form::Vhdx, &[&["-b", "4096"][..], options].concat());
        if change == 0 {
            let lvm = open(&disk, with_shadow(folder.path()));
            let mut label = [0; 512];
            label[..8].copy_from_slice(b"LABELONE");
            label[20] = 32;
            label[24..32].copy_from_slice(b"LVM2 001");
            lvm.write(at, &label).unwrap();
            lvm.close().unwrap();
        } else {
            poke(&disk, at, |byte| byte ^ change);
        }
        let before = read_all(&open(&disk, DiskOptions::read_only()));
        let done = compact(&disk).unwrap_or_else(|error| panic!("{what}: {}", report(&error)));
        let [volume] = done.volumes.as_slice() else { panic!("{done:?}") };
        assert!(matches!(&volume.state, SpaceState::Left(said) if said.contains(reason)), "{what}: {volume}");
        assert!(before == read_all(&open(&disk, DiskOptions::read_only())), "{what}");
    }
    // Without any of that it goes.
    let folder = folder();
    let disk = lone(folder.path(), Form::Vhdx, &[&["-b", "4096"][..], sums].concat());
    assert!(compact(&disk).unwrap().dropped_blocks > 8);
    run("e2fsck", &["-f", "-n", image_of(&disk).to_str().unwrap()]);
}

#[test]
fn a_fat_whose_tables_differ_or_that_is_in_use_stays() {
    if !have("mkfs.fat") {
        return;
    }
    // Marks in the first sector, and in the second entry of the first table; an entry that only one table has.
    for (bits, in_table, at, change) in
        [("32", false, 65, 1), ("16", false, 37, 1), ("16", true, 3, 0x80), ("32", true, 900, 1)]
    {
        let folder = folder();
        let image = folder.path().join("fat.img");
        fs::File::create(&image).unwrap().set_len(64 * MIB).unwrap();
        dirty(&image, 0, 64 * MIB);
        let sectors = if bits == "32" { "1" } else { "4" };
        run("mkfs.fat", &["-F", bits, "-s", sectors, image.to_str().unwrap()]);
        let disk = folder.path().join("fat.vhd");
        disk_of(&image, &disk);
        let free = plan(&disk);
        assert!(free.empty_blocks > 60, "{free}");
        let head = read_all(&open(&disk, DiskOptions::read_only()))[..512].to_vec();
        let table = u64::from(u16::from_le_bytes([head[14], head[15]])) * 512;
        poke(&disk, if in_table { table + at } else { at }, |byte| byte ^ change);
        let before = read_all(&open(&disk, DiskOptions::read_only()));
        let done = compact(&disk).unwrap();
        assert_eq!(free_bytes(&done), [None], "FAT{bits}, {at}: {:?}", done.volumes);
        assert!(before == read_all(&open(&disk, DiskOptions::read_only())));
    }
}

#[test]
fn a_differencing_disk_loses_what_is_free_and_one_with_children_stays() {
    if !["mkfs.ext4", "e2fsck", "debugfs"].map(have).iter().all(|have| *have) {
        return;
    }
    for form in [Form::Vhd, Form::Vhdx] {
        let folder = folder();
        let base = lone(folder.path(), form, &["-b", "4096"]);
        let child = folder.path().join(form.layer("child"));
        child_of(&base, &child);
        let refused = compact(&base).unwrap_err();
        assert!(matches!(refused, CompactError::HasChildren { .. }), "{refused}");
        // The child's own file system is another one, all of it in the child.
        let files = files(folder.path());
        let image = image_of(&base);
        dirty(&image, 0, 24 * MIB);
        let source = files.to_str().unwrap();
        run("mkfs.ext4", &["-q", "-F", "-E", "nodiscard", "-d", source, image.to_str().unwrap()]);
        let bytes = fs::read(&image).unwrap();
        let disk = open(&child, with_shadow(folder.path()));
        let identity = disk.chain()[0].identity;
        for (at, chunk) in (0..).step_by(1 << 20).zip(bytes.chunks(1 << 20)) {
            disk.write(at, chunk).unwrap();
        }
        disk.close().unwrap();
        let written = open(&child, DiskOptions::read_only()).chain()[0].identity;
        let done = compact(&child).unwrap();
        assert!(done.dropped_blocks > 2, "{form:?}: {done:?}");
        ext_is_whole(&image_of(&child), 0, &files, &folder.path().join("out"));
        nothing_is_wrong(&child);
        let after = open(&child, DiskOptions::read_only()).chain()[0].identity;
        if form == Form::Vhdx {
            assert!(after != written && written != identity, "what it reads is another content now");
        }
    }
}

#[test]
fn a_disk_that_holds_nothing_known_is_compacted_as_ever() {
    let folder = folder();
    let path = new_disk(folder.path(), Form::Vhdx, Kind::Dynamic, 8 * MIB);
    let disk = open(&path, with_shadow(folder.path()));
    disk.write(2 * MIB, &stamp(2 * MIB, MIB, 1)).unwrap();
    disk.write(4 * MIB, &stamp(4 * MIB, 4096, 1)).unwrap();
    disk.write_zeroes(4 * MIB, 4096, backstay_disk::ZeroMode::default()).unwrap();
    let expected = read_all(&disk);
    disk.close().unwrap();
    let done = compact(&path).unwrap();
    assert_eq!((free_bytes(&done), done.dropped_blocks), (vec![None], 1));
    assert!(read_all(&open(&path, DiskOptions::read_only())) == expected);
}

/// Every file of an image, by 7-Zip.
fn by_seven_zip(image: &Path, out: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let _ = fs::remove_dir_all(out);
    run("7zz", &["x", "-y", &format!("-o{}", out.display()), image.to_str().unwrap()]);
    let (mut found, mut waiting) = (Vec::new(), vec![out.to_owned()]);
    while let Some(path) = waiting.pop() {
        match path.is_dir() {
            true => waiting.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path())),
            false => found.push((path.strip_prefix(out).unwrap().to_owned(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    assert!(!found.is_empty(), "{} holds files", image.display());
    found
}

#[test]
fn what_ntfs_does_not_need_goes_and_every_file_stays() {
    if !["mkntfs", "ntfscp", "ntfsresize", "7zz"].map(have).iter().all(|have| *have) {
        return;
    }
    let folder = folder();
    let files = files(folder.path());
    let image = folder.path().join("ntfs.img");
    fs::File::create(&image).unwrap().set_len(64 * MIB).unwrap();
    dirty(&image, 0, 64 * MIB);
    let path = image.to_str().unwrap();
    run("mkntfs", &["-F", "-Q", "-q", path]);
    for file in fs::read_dir(&files).unwrap() {
        let file = file.unwrap().path();
        let name = file.file_name().unwrap().to_str().unwrap();
        run("ntfscp", &["-f", path, file.to_str().unwrap(), name]);
    }
    let out = folder.path().join("out");
    let before = by_seven_zip(&image, &out);
    for form in [Form::Vhd, Form::Vhdx] {
        let disk = folder.path().join(form.disk("ntfs"));
        disk_of(&image, &disk);
        let planned = plan(&disk);
        let done = compact(&disk).unwrap();
        println!("{planned}{done:?}");
        let expected = |state: &SpaceState| matches!(state, SpaceState::Free { system: "NTFS", bytes } if *bytes > 30 * MIB);
        assert!(done.volumes.len() == 1 && expected(&done.volumes[0].state), "{planned}");
        assert!(done.old_len - done.new_len > 30 * MIB, "{done:?}");
        let now = image_of(&disk);
        assert!(by_seven_zip(&now, &out) == before, "every file is as it was");
        // Looks at every record and at the bitmap.
        run("ntfsresize", &["-f", "-f", "--info", "--no-progress-bar", now.to_str().unwrap()]);
    }
    // Windows marks a volume that it wants to look at: record 3 of the table, whose flags are in an attribute of kind 0x70.
    let disk = folder.path().join("marked.vhdx");
    disk_of(&image, &disk);
    let bytes = fs::read(&image).unwrap();
    let number =
        |at: usize| usize::try_from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())).unwrap();
    let record = number(48) * usize::from(bytes[13]) * 512 + 3 * 1024;
    assert_eq!(&bytes[record..record + 4], b"FILE");
    let mut attribute = record + usize::from(bytes[record + 20]);
    while number(attribute) != 0x70 {
        attribute += number(attribute + 4);
    }
    let flags = attribute + usize::from(bytes[attribute + 20]) + 10;
    poke(&disk, flags as u64, |byte| byte | 1);
    let before = read_all(&open(&disk, DiskOptions::read_only()));
    let left = compact(&disk).unwrap();
    assert!(
        matches!(&left.volumes[0].state, SpaceState::Left(why) if why.contains("shut it down")),
        "{left:?}"
    );
    assert!(before == read_all(&open(&disk, DiskOptions::read_only())));
}

/// Disks that Windows wrote, where they are at hand.
#[test]
fn what_windows_does_not_need_goes_and_every_file_stays() {
    let Some(disks) =
        std::env::var_os("BACKSTAY_FIXTURES").map(|path| PathBuf::from(path).join("disks/dfvfs"))
    else {
        println!("skipped: BACKSTAY_FIXTURES names no folder");
        return;
    };
    for name in ["ntfs-dynamic.vhd", "ext2.vhdx"] {
        let source = disks.join(name);
        if !source.is_file() || !have("7zz") {
            println!("skipped: {} is not there", source.display());
            continue;
        }
        let folder = folder();
        let out = folder.path().join("out");
        let whole = image_of_source(&source, folder.path());
        let disk = folder.path().join("copy.vhdx");
        disk_of(&whole, &disk);
        let planned = plan(&disk);
        println!("{name}: {planned}");
        compact(&disk).unwrap();
        assert!(
            by_seven_zip(&image_of(&disk), &out) == by_seven_zip(&whole, &out),
            "{name}: every file is as it was"
        );
    }
}

fn image_of_source(source: &Path, folder: &Path) -> PathBuf {
    let image = folder.join("source.img");
    fs::write(&image, read_all(&open(source, DiskOptions::read_only()))).unwrap();
    image
}

//! Copies that copy nothing, on real file systems that can share the space of files; `filefrag` tells what is shared.

use crate::{
    loop_fs::{LoopFs, places},
    support::{
        assert_same, child_of, folder, have, make, open, read_all, report, seven_zip, stamp, with_shadow,
    },
};
use backstay_disk::{
    Backend, ConvertError, ConvertReport, ConvertRequest, ConvertTo, DEFAULT_BLOCK_SIZE, DiskOptions,
    Dropping, MergeControl, NewDisk, Reflink, RelocateControl, compact_offline, convert, fs::HostFs,
    merge_offline,
};
use std::{fs::File, os::unix::fs::FileExt, path::Path, process::Command, sync::atomic::AtomicBool};

const MIB: u64 = 1 << 20;
/// Of the disks here.
const SIZE: u64 = 64 * MIB;
const DYNAMIC: ConvertTo = ConvertTo::Dynamic { block_size: DEFAULT_BLOCK_SIZE };

/// Runs a test on each file system that can share and that this machine has.
fn on_each(test: impl Fn(&LoopFs)) {
    for (kind, mib) in [("btrfs", 512), ("xfs", 512)] {
        if let Some(fs) = LoopFs::mount(kind, mib) {
            println!("on {kind}");
            test(&fs);
        }
    }
}

/// Data in pages, some of it in the last one.
fn raw(path: &Path) -> Vec<u8> {
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    for (offset, len) in
        [(0, 3 * MIB), (7 * MIB + 8192, 20 * MIB), (40 * MIB, 65_536), (SIZE - 2 * MIB, 2 * MIB)]
    {
        let data = stamp(offset, len, 1);
        file.write_all_at(&data, offset).unwrap();
        let at = usize::try_from(offset).unwrap();
        model[at..at + data.len()].copy_from_slice(&data);
    }
    model
}

const IN_RAW: u64 = 25 * MIB + 65_536;

fn request(source: &Path, target: &Path, to: ConvertTo, reflink: Reflink) -> ConvertRequest {
    ConvertRequest { reflink, ..ConvertRequest::new(source.into(), target.into(), to) }
}

fn run(request: &ConvertRequest) -> Result<ConvertReport, ConvertError> {
    convert(&HostFs::shared(), request, &|_| {}, &AtomicBool::new(false))
}

#[track_caller]
fn done(source: &Path, target: &Path, to: ConvertTo, reflink: Reflink) -> ConvertReport {
    run(&request(source, target, to, reflink)).unwrap_or_else(|error| panic!("{}", report(&error)))
}

/// What other programs read from a disk.
fn judged_by_others(target: &Path, model: &[u8], what: &str) {
    let format = match target.extension().and_then(|extension| extension.to_str()) {
        Some("vhdx") => "vhdx",
        Some("vhd") => "vpc",
        _ => "raw",
    };
    if have("qemu-img") {
        let expected = folder();
        let expected = expected.path().join("expected");
        std::fs::write(&expected, model).unwrap();
        let mut command = Command::new("qemu-img");
        command.args(["compare", "-f", "raw", "-F", format]).args([&expected, target]);
        let run = command.output().unwrap();
        assert!(run.status.success(), "{what}: {}", String::from_utf8_lossy(&run.stdout));
    }
    if format != "raw" && have("7zz") {
        assert_same(&seven_zip(target), model, &format!("{what}: 7-Zip"));
    }
    assert_same(&read_all(&open(target, DiskOptions::read_only())), model, what);
}

#[test]
fn conversions_copy_nothing_where_files_can_share() {
    on_each(|fs| {
        let source = fs.join("source.raw");
        let model = raw(&source);
        let dynamic = fs.join("a.vhd");
        let before = fs.free();
        let of_raw = places(&source).pages;
        for (source, target, to) in [
            (&source, &dynamic, DYNAMIC),
            (&source, &fs.join("b.vhdx"), DYNAMIC),
            (&source, &fs.join("c.raw"), ConvertTo::Raw),
            (&dynamic, &fs.join("d.vhdx"), DYNAMIC),
            (&fs.join("b.vhdx"), &fs.join("e.vhd"), ConvertTo::Dynamic { block_size: 512 << 10 }),
            (&fs.join("d.vhdx"), &fs.join("f.vhdx"), ConvertTo::Dynamic { block_size: 1 << 20 }),
        ] {
            let what = format!("{}: {} to {}", fs.kind, source.display(), target.display());
            let report = done(source, target, to, Reflink::Auto);
            assert_eq!((report.shared, report.copied), (IN_RAW, 0), "{what}");
            let there = places(target);
            assert!(of_raw.is_subset(&there.pages), "{what}: it is somewhere else");
            assert!(of_raw.is_subset(&there.shared), "{what}: not all of it is shared");
            judged_by_others(target, &model, &what);
        }
        let taken = before.saturating_sub(fs.free());
        assert!(taken < 16 * MIB, "{}: six copies of {IN_RAW} bytes took {taken}", fs.kind);
    });
}

#[test]
fn what_is_shared_is_not_changed_by_a_write_to_the_other() {
    on_each(|fs| {
        let (source, target) = (fs.join("source.raw"), fs.join("target.vhdx"));
        let mut model = raw(&source);
        done(&source, &target, DYNAMIC, Reflink::Auto);
        File::options().write(true).open(&source).unwrap().write_all_at(&[0x11; 8192], 8 * MIB).unwrap();
        let disk = open(&target, DiskOptions::default());
        assert_same(&read_all(&disk), &model, "after a write to the source");
        disk.write(MIB, &[0x22; 4096]).unwrap();
        disk.close().unwrap();
        let at = usize::try_from(8 * MIB).unwrap();
        model[at..at + 8192].fill(0x11);
        assert_same(&std::fs::read(&source).unwrap(), &model, "after a write to the copy");
    });
}

#[test]
fn a_whole_chain_is_shared_and_what_does_not_fit_is_copied() {
    on_each(|fs| {
        let base = fs.join("base.vhdx");
        let mut model = raw(&fs.join("source.raw"));
        done(&fs.join("source.raw"), &base, DYNAMIC, Reflink::Auto);
        let child = fs.join("child.avhdx");
        child_of(&base, &child);
        let disk = open(&child, with_shadow(&fs.path()));
        // Whole pages, and sectors that begin and end inside of one.
        for (offset, len) in [(9 * MIB, MIB), (50 * MIB + 512, 200 << 10), (60 * MIB, 512)] {
            let data = stamp(offset, len, 2);
            disk.write(offset, &data).unwrap();
            let at = usize::try_from(offset).unwrap();
            model[at..at + data.len()].copy_from_slice(&data);
        }
        disk.close().unwrap();
        let target = fs.join("flat.vhd");
        let report = done(&child, &target, DYNAMIC, Reflink::Auto);
        assert!(report.shared > IN_RAW - MIB && report.copied > 0, "{}: {report:?}", fs.kind);
        assert!(report.copied < 64 << 10, "{}: {report:?}", fs.kind);
        judged_by_others(&target, &model, fs.kind);
    });
}

#[test]
fn disks_of_others_whose_data_lies_differently_are_copied() {
    if !have("qemu-img") {
        return;
    }
    on_each(|fs| {
        let (source, theirs, target) = (fs.join("source.raw"), fs.join("theirs.vhd"), fs.join("ours.vhdx"));
        let model = raw(&source);
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on"]).args([&source, &theirs]);
        assert!(command.status().unwrap().success());
        let report = done(&theirs, &target, DYNAMIC, Reflink::Auto);
        // QEMU puts one block after the other: one in eight lies at whole pages by chance.
        assert!(report.copied >= IN_RAW / 2, "{}: {report:?}", fs.kind);
        judged_by_others(&target, &model, fs.kind);
    });
}

#[test]
fn sharing_can_be_demanded_and_forbidden() {
    let elsewhere = folder();
    let source = elsewhere.path().join("source.raw");
    let model = raw(&source);
    let target = elsewhere.path().join("a.vhdx");
    let never = run(&request(&source, &target, DYNAMIC, Reflink::Never)).unwrap();
    assert_eq!((never.shared, never.copied), (0, IN_RAW));
    on_each(|fs| {
        let there = fs.join("b.vhdx");
        let refused = run(&request(&source, &there, DYNAMIC, Reflink::Always)).unwrap_err();
        let text = report(&refused);
        assert!(text.contains("different file systems") && text.contains("--reflink=always"), "{text}");
        assert_eq!(
            std::fs::read_dir(fs.path()).unwrap().filter(|e| !is_system(e)).count(),
            0,
            "something is left"
        );
        let copied = done(&source, &there, DYNAMIC, Reflink::Auto);
        assert_eq!((copied.shared, copied.copied), (0, IN_RAW), "from another file system");
        let (fixed, shared) = (fs.join("fixed.vhdx"), fs.join("shared.vhdx"));
        // The space of a fixed disk is its own.
        assert_eq!(done(&there, &fixed, ConvertTo::Fixed, Reflink::Auto).shared, 0);
        assert_eq!(places(&fixed).shared.len(), 0);
        let report = done(&there, &shared, ConvertTo::Fixed, Reflink::Always);
        assert_eq!((report.shared, report.copied), (IN_RAW, 0), "unless that is wanted");
        let never = done(&there, &fs.join("never.vhdx"), DYNAMIC, Reflink::Never);
        assert_eq!((never.shared, never.copied), (0, IN_RAW));
        for disk in [&fixed, &shared] {
            assert_same(&read_all(&open(disk, DiskOptions::read_only())), &model, fs.kind);
        }
    });
    // Where this test runs the file system may be able to.
    let other = elsewhere.path().join("c.vhdx");
    match run(&request(&source, &other, DYNAMIC, Reflink::Always)) {
        Ok(report) => assert_eq!(report.copied, 0),
        Err(error) => assert!(matches!(error, ConvertError::NotShared { .. }), "{}", report(&error)),
    }
}

fn is_system(entry: &std::io::Result<std::fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.file_name() == "lost+found")
}

#[test]
fn a_copy_that_has_no_room_is_made_by_sharing() {
    on_each(|fs| {
        let source = fs.join("source.raw");
        let model = raw(&source);
        let filler = File::create(fs.join("filler")).unwrap();
        let piece = vec![7; usize::try_from(4 * MIB).unwrap()];
        while fs.free() > 24 * MIB {
            let len = filler.metadata().unwrap().len();
            if filler.write_all_at(&piece, len).is_err() {
                filler.set_len(len.saturating_sub(8 * MIB)).unwrap();
                break;
            }
        }
        let target = fs.join("target.vhdx");
        let refused = run(&request(&source, &target, DYNAMIC, Reflink::Never)).unwrap_err();
        assert!(report(&refused).to_lowercase().contains("space"), "{}: {}", fs.kind, report(&refused));
        done(&source, &target, DYNAMIC, Reflink::Auto);
        assert_same(&read_all(&open(&target, DiskOptions::read_only())), &model, fs.kind);
    });
}

#[test]
fn a_merge_gives_the_parent_the_space_of_the_child() {
    on_each(|fs| {
        for (base, child) in [("base.vhdx", "child.avhdx"), ("base.vhd", "child.avhd")] {
            let (base, child) = (fs.join(base), fs.join(child));
            let block_size = if child.extension().unwrap() == "avhd" { 2 << 20 } else { 1 << 20 };
            make(&base, &NewDisk::Dynamic { size: SIZE, block_size });
            let mut model = vec![0; usize::try_from(SIZE).unwrap()];
            let write = |path: &Path, writes: &[(u64, u64)], writer: u64, model: &mut [u8]| {
                let disk = open(path, with_shadow(&fs.path()));
                for (offset, len) in writes {
                    let data = stamp(*offset, *len, writer);
                    disk.write(*offset, &data).unwrap();
                    let at = usize::try_from(*offset).unwrap();
                    model[at..at + data.len()].copy_from_slice(&data);
                }
                disk.close().unwrap();
            };
            write(&base, &[(0, 6 * MIB)], 1, &mut model);
            child_of(&base, &child);
            write(&child, &[(2 * MIB, 20 * MIB), (30 * MIB, 4096), (40 * MIB + 1536, 70_144)], 2, &mut model);
            let of_child = places(&child).pages;
            merge_offline(&HostFs::shared(), &child, &[], &with_shadow(&fs.path()), &MergeControl::new())
                .unwrap();
            std::fs::remove_file(&child).unwrap();
            let now = places(&base).pages;
            let taken_over = of_child.intersection(&now).count() as u64 * 4096;
            assert!(taken_over >= 20 * MIB, "{}: {} of 20 MiB were taken over", fs.kind, taken_over >> 20);
            judged_by_others(&base, &model, fs.kind);
        }
    });
}

#[test]
fn a_compaction_moves_blocks_without_copying_them() {
    on_each(|fs| {
        for name in ["a.vhdx", "a.vhd"] {
            let path = fs.join(name);
            make(&path, &NewDisk::Dynamic { size: SIZE, block_size: 2 << 20 });
            let disk = open(&path, DiskOptions::default());
            disk.write(0, &stamp(0, 32 * MIB, 1)).unwrap();
            disk.write_zeroes(0, 16 * MIB, backstay_disk::ZeroMode::default()).unwrap();
            disk.close().unwrap();
            let mut model = vec![0; usize::try_from(SIZE).unwrap()];
            let (from, to) = (usize::try_from(16 * MIB).unwrap(), usize::try_from(32 * MIB).unwrap());
            model[from..to].copy_from_slice(&stamp(16 * MIB, 16 * MIB, 1));
            let (before, len) = (places(&path).pages, std::fs::metadata(&path).unwrap().len());
            let control = MergeControl::new();
            let done =
                compact_offline(&HostFs::shared(), &path, &DiskOptions::default(), Dropping::Zeros, &control)
                    .unwrap();
            assert_eq!(done.moved_blocks, 8, "{name}: {done:?}");
            assert!(done.new_len + 15 * MIB < len, "{name}: {done:?}");
            let after = places(&path).pages;
            let kept = after.intersection(&before).count() as u64 * 4096;
            assert!(kept >= 16 * MIB, "{}: {name}: only {kept} bytes are where they were", fs.kind);
            judged_by_others(&path, &model, name);
        }
    });
}

#[test]
fn a_disk_that_is_moved_within_a_file_system_is_not_copied() {
    on_each(|fs| {
        let (from, to) = (fs.join("a.vhdx"), fs.join("b.vhdx"));
        let model = raw(&fs.join("source.raw"));
        done(&fs.join("source.raw"), &from, DYNAMIC, Reflink::Auto);
        std::fs::remove_file(fs.join("source.raw")).unwrap();
        let before = places(&from).pages;
        let disk = open(&from, DiskOptions::default());
        disk.relocate(&to, &RelocateControl::default(), &|| Ok(())).unwrap();
        disk.write(MIB, &stamp(MIB, 4096, 7)).unwrap();
        disk.close().unwrap();
        let kept = places(&to).pages.intersection(&before).count() as u64 * 4096;
        assert!(kept + 64 * 1024 >= IN_RAW, "{}: {kept} bytes of {IN_RAW} are shared", fs.kind);
        let mut now = model.clone();
        let at = usize::try_from(MIB).unwrap();
        now[at..at + 4096].copy_from_slice(&stamp(MIB, 4096, 7));
        judged_by_others(&to, &now, fs.kind);
        assert_same(&read_all(&open(&from, DiskOptions::read_only())), &model, "the old file");
    });
}

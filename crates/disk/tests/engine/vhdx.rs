//! What is particular about VHDX: names of parents, sectors of 4096 bytes, logs, and the disks of other programs.

use crate::support::{
    assert_same, block_size, child_of, dynamic, folder, have, make, open, read_all, report, seven_zip, stamp,
    with_shadow,
};
use backstay_disk::{
    Backend, CreateError, Disk, DiskOptions, Identity, ImageInfo, MergeControl, NewDisk, NewDiskPlan,
    check_file, fs::HostFs, look_at, merge_offline, switch_all,
};
use backstay_vhd::{check::Severity, vhdx};
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

const SIZE: u64 = 24 << 20;

fn qemu(args: &[&str], path: &Path) -> (bool, String) {
    let run = Command::new("qemu-img").args(args).arg(path).output().unwrap();
    let text = [run.stdout, run.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (run.status.success(), text)
}

fn vhdx_info(path: &Path) -> vhdx::ImageInfo {
    let looked = look_at(&HostFs::shared(), path, &DiskOptions::read_only());
    match looked.unwrap_or_else(|error| panic!("{}", report(&error))).image {
        Some(ImageInfo::Vhdx(info)) => *info,
        other => panic!("{other:?}"),
    }
}

fn refusal(path: &Path) -> String {
    match Disk::open(path, DiskOptions::read_only()) {
        Ok(disk) => panic!("{} was opened: {:?}", path.display(), disk.chain()),
        Err(error) => report(&error),
    }
}

fn write_and_close(path: &Path, offset: u64, writer: u64) {
    let disk = open(path, with_shadow(path.parent().unwrap()));
    disk.write(offset, &stamp(offset, 64 << 10, writer)).unwrap();
    disk.close().unwrap();
}

#[test]
fn every_vhdx_of_other_programs_reads_as_expected() {
    let folder = std::env::var_os("BACKSTAY_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"),
        PathBuf::from,
    );
    let Ok(text) = std::fs::read_to_string(folder.join("disks/expected.json")) else {
        println!("skipped: no fixtures in {}", folder.display());
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let archive = folder.join("disks/images.tar.xz");
    let unpacked = Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(scratch.path()).status();
    assert!(unpacked.unwrap().success());
    let entries: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let mut compared = 0;
    for entry in &entries {
        let (Some(name), Some(hash)) = (entry["path"].as_str(), entry["content_sha256"].as_str()) else {
            continue;
        };
        // Large and packed ones are read by the tests of the format.
        if !name.ends_with(".vhdx") || entry["virtual_size"].as_u64().unwrap() > 256 << 20 {
            continue;
        }
        let path = find(scratch.path(), name);
        let disk = open(&path, DiskOptions::read_only());
        let found: String =
            Sha256::digest(read_all(&disk)).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(found, hash, "{name}");
        assert_eq!(disk.chain().len(), 1 + entry["parents"].as_array().unwrap().len(), "{name}");
        compared += 1;
    }
    assert!(compared >= 3, "only {compared} disks were compared");
}

/// Where the archive has a file.
fn find(folder: &Path, name: &str) -> PathBuf {
    let direct = folder.join(name);
    if direct.exists() {
        return direct;
    }
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries.map(|entry| entry.path().join(name)).find(|path| path.exists()).unwrap_or(direct)
}

#[test]
fn what_is_written_is_right_for_qemu_and_7zip() {
    if !have("qemu-img") || !have("7zz") {
        return;
    }
    let folder = folder();
    for (name, what) in [
        ("fixed.vhdx", NewDisk::Fixed { size: SIZE }),
        ("dynamic.vhdx", NewDisk::Dynamic { size: SIZE, block_size: 1 << 20 }),
        ("usual.vhdx", NewDisk::Dynamic { size: SIZE, block_size: backstay_disk::DEFAULT_BLOCK_SIZE }),
    ] {
        let path = folder.path().join(name);
        make(&path, &what);
        let disk = open(&path, with_shadow(folder.path()));
        let mut model = read_all(&disk);
        for (offset, writer) in [(0, 1), (5 << 20, 2), ((7 << 20) - 4096, 3), (SIZE - 8192, 4)] {
            let data = stamp(offset, 8192, writer);
            disk.write(offset, &data).unwrap();
            let at = usize::try_from(offset).unwrap();
            model[at..at + data.len()].copy_from_slice(&data);
        }
        disk.flush().unwrap();
        disk.abandon();
        // As after the death of the process: the log is full, and QEMU replays it.
        let copy = folder.path().join(format!("copy-{name}"));
        std::fs::copy(&path, &copy).unwrap();
        let (good, text) = qemu(&["check", "-r", "all", "-f", "vhdx"], &copy);
        assert!(good, "{name}: {text}");
        assert_same(&seven_zip(&copy), &model, &format!("{name}: after QEMU replayed the log"));
        // Readers do not write.
        let before = std::fs::read(&path).unwrap();
        let looking = open(&path, DiskOptions::read_only());
        assert_same(&read_all(&looking), &model, "replayed in memory");
        drop(looking);
        assert!(std::fs::read(&path).unwrap() == before, "{name}: a reader has changed the file");
        open(&path, with_shadow(folder.path())).close().unwrap();
        let (good, text) = qemu(&["check", "-f", "vhdx"], &path);
        assert!(good && text.contains("No errors"), "{name}: {text}");
        assert_same(&seven_zip(&path), &model, name);
        let found = check_file(&HostFs::shared(), &path, &DiskOptions::default()).unwrap();
        // Space reserved by the process that died stays until somebody writes.
        assert!(found.worst() <= Some(Severity::Note), "{name}: {found}");
        write_and_close(&path, 0, 5);
        let found = check_file(&HostFs::shared(), &path, &DiskOptions::default()).unwrap();
        assert_eq!(found.worst(), None, "{name}: {found}");
    }
}

#[test]
fn a_parent_that_was_written_to_is_refused_and_said_so() {
    let folder = folder();
    let base = dynamic(folder.path(), "base.vhdx", SIZE);
    let child = folder.path().join("child.avhdx");
    child_of(&base, &child);
    // Opening and closing alone is no change.
    open(&base, with_shadow(folder.path())).close().unwrap();
    assert_eq!(open(&child, DiskOptions::read_only()).chain().len(), 2);
    write_and_close(&base, 0, 1);
    let refused = refusal(&child);
    assert!(refused.contains("the parent was written to after the disk was made"), "{refused}");
}

#[test]
fn checkpoints_of_a_disk_name_it_for_good_before_it_is_written_again() {
    let folder = folder();
    let base = dynamic(folder.path(), "base.vhdx", SIZE);
    write_and_close(&base, 0, 1);
    let disk = open(&base, with_shadow(folder.path()));
    let child = folder.path().join("child.avhdx");
    disk.prepare_child(&child, Identity::fresh()).unwrap();
    // The first write of this session, after the child has named its parent.
    disk.write(1 << 20, &stamp(1 << 20, 4096, 2)).unwrap();
    switch_all([(Arc::clone(&disk), child.clone())]).unwrap();
    disk.write(2 << 20, &stamp(2 << 20, 4096, 3)).unwrap();
    let model = read_all(&disk);
    disk.close().unwrap();
    assert_same(&read_all(&open(&child, DiskOptions::read_only())), &model, "opened again");
    if have("7zz") {
        assert_same(&seven_zip(&child), &model, "7-Zip");
    }
    let (above, below) = (vhdx_info(&child), vhdx_info(&base));
    assert_eq!(above.disk_id, below.disk_id, "the guest sees one disk");
    let locator = above.parent.unwrap();
    assert_eq!(locator.linkage, below.data_write_guid);
    assert_eq!(locator.relative.as_deref(), Some(".\\base.vhdx"));
    assert_eq!(locator.absolute.as_deref(), base.canonicalize().unwrap().to_str());
    assert_eq!((above.block_size, above.logical_sector), (2 << 20, 512), "as Windows makes them");
}

#[test]
fn a_chain_that_was_moved_is_told_where_it_is() {
    let folder = folder();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    std::fs::create_dir_all(old.join("disks")).unwrap();
    std::fs::create_dir_all(old.join("layers")).unwrap();
    let base = dynamic(&old.join("disks"), "base.vhdx", SIZE);
    write_and_close(&base, 0, 1);
    let child = old.join("layers/child.avhdx");
    child_of(&base, &child);
    let relative = |path: &Path| vhdx_info(path).parent.unwrap().relative.unwrap();
    assert_eq!(relative(&child), "..\\disks\\base.vhdx");
    // All together: the relative path is right still, and nothing is written.
    std::fs::rename(&old, &new).unwrap();
    let child = new.join("layers/child.avhdx");
    let before = std::fs::read(&child).unwrap();
    open(&child, with_shadow(folder.path())).close().unwrap();
    assert!(std::fs::read(&child).unwrap() == before, "a path that leads there needs no change");
    // The parent alone: it is found beside the child, and that is written down.
    std::fs::rename(new.join("disks/base.vhdx"), new.join("layers/base.vhdx")).unwrap();
    let content = vhdx_info(&child).data_write_guid;
    let known = read_all(&open(&child, DiskOptions::read_only()));
    assert_eq!(relative(&child), "..\\disks\\base.vhdx", "a reader writes nothing");
    open(&child, with_shadow(folder.path())).close().unwrap();
    assert_eq!(relative(&child), ".\\base.vhdx");
    assert_eq!(vhdx_info(&child).data_write_guid, content, "its own children need not notice");
    assert_same(&read_all(&open(&child, DiskOptions::read_only())), &known, "moved");
    if have("7zz") {
        assert_same(&seven_zip(&child), &known, "7-Zip finds it too");
    }
}

#[test]
fn a_chain_is_of_one_format() {
    let folder = folder();
    for (parent, child) in
        [("base.vhd", "child.avhdx"), ("base.vhdx", "child.avhd"), ("base.vhd", "child.vhdx")]
    {
        let base = folder.path().join(parent);
        if !base.exists() {
            dynamic(folder.path(), parent, SIZE);
        }
        let child = folder.path().join(child);
        let what = NewDisk::Differencing { parent: base, block_size: backstay_disk::DEFAULT_BLOCK_SIZE };
        let made =
            NewDiskPlan::new(&HostFs::shared(), &child, &what, Identity::fresh(), &DiskOptions::default());
        let refused = made.map(drop).unwrap_err();
        assert!(matches!(refused, CreateError::MixedChain { .. }), "{refused:?}");
        assert!(refused.to_string().contains("a differencing VHDX a VHDX"), "{refused}");
    }
}

#[test]
fn sectors_of_4096_bytes_are_one_piece() {
    let folder = folder();
    let path = folder.path().join("4k.vhdx");
    let id = uuid::Uuid::from_u128;
    let plan = vhdx::create::plan(&vhdx::create::CreateOptions {
        size: SIZE,
        kind: vhdx::create::CreateKind::Dynamic,
        block_size: Some(1 << 20),
        logical_sector: 4096,
        physical_sector: 4096,
        disk_id: id(1),
        file_write_guid: id(2),
        data_write_guid: id(3),
    });
    let file = backstay_disk::fs::FileSystem::create_new(&HostFs, &path).unwrap();
    plan.unwrap().execute(file.as_ref()).unwrap();
    drop(file);
    let disk = open(&path, with_shadow(folder.path()));
    assert_eq!(disk.sector_size(), 4096);
    assert!(disk.write(512, &[1; 512]).unwrap_err().to_string().contains("not whole sectors of 4096 bytes"));
    disk.write(0, &stamp(0, 1 << 20, 1)).unwrap();
    disk.close().unwrap();
    // Its children have the same sectors, and a merge keeps them whole.
    let child = folder.path().join("child.avhdx");
    child_of(&path, &child);
    assert_eq!(vhdx_info(&child).logical_sector, 4096);
    let disk = open(&child, with_shadow(folder.path()));
    disk.write(4096, &stamp(4096, 8192, 2)).unwrap();
    let model = read_all(&disk);
    disk.close().unwrap();
    if have("7zz") {
        assert_same(&seven_zip(&child), &model, "7-Zip");
    }
    let control = MergeControl::new();
    merge_offline(&HostFs::shared(), &child, &[], &with_shadow(folder.path()), &control).unwrap();
    assert_same(&read_all(&open(&path, DiskOptions::read_only())), &model, "merged");
}

/// Zeros hide what the parent has, and they are moved like data.
#[test]
fn zeros_are_merged_like_data() {
    let folder = folder();
    let base = dynamic(folder.path(), "base.vhdx", SIZE);
    let disk = open(&base, with_shadow(folder.path()));
    disk.write(0, &stamp(0, SIZE, 1)).unwrap();
    disk.close().unwrap();
    let child = folder.path().join("child.avhdx");
    child_of(&base, &child);
    let disk = open(&child, with_shadow(folder.path()));
    let whole = 3 * u64::from(block_size(&child));
    let mode = backstay_disk::ZeroMode { may_unmap: true, fast_only: false };
    disk.write_zeroes(whole, 4 << 20, mode).unwrap();
    let model = read_all(&disk);
    assert_eq!(disk.chain()[0].allocated_blocks, 0, "whole blocks of zeros take no space");
    let merged = disk.merge_layer(&child, &[], &MergeControl::new()).unwrap();
    assert_eq!(merged.chain.len(), 1);
    assert_same(&read_all(&disk), &model, "merged");
    disk.close().unwrap();
    assert_same(&read_all(&open(&base, DiskOptions::read_only())), &model, "opened again");
    // Until somebody writes to it again, the empty file is its child by either name.
    assert_same(&read_all(&open(&child, DiskOptions::read_only())), &model, "by the old name");
    assert!(vhdx_info(&child).parent.unwrap().linkage2.is_some());
    // And where the power went before the new name was written down, and the disk had been written to by that.
    write_and_close(&base, 0, 9);
    let model = read_all(&open(&base, DiskOptions::read_only()));
    let disk = open(&child, with_shadow(folder.path()));
    assert_same(&read_all(&disk), &model, "by the old name, later");
    assert!(disk.warnings()[0].to_string().contains("was changed or copied after"), "{:?}", disk.warnings());
    disk.write(0, &stamp(0, 4096, 7)).unwrap();
    disk.close().unwrap();
    // It holds something of its own now, so it is a child like any other.
    assert_same(&read_all(&open(&child, DiskOptions::read_only()))[..4096], &stamp(0, 4096, 7), "a child");
    write_and_close(&base, 0, 8);
    assert!(refusal(&child).contains("the parent was written to after the disk was made"));
}

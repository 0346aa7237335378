//! Chains on real files: locks, refusals, other programs' reading, switches, conversions.

use crate::support::{
    SECTOR, assert_same, child_of, dynamic, folder, have, make, open, read_all, report, seven_zip, stamp,
    with_shadow,
};
use backstay_disk::{
    Backend, ConvertError, ConvertRequest, ConvertTo, Disk, DiskOptions, Identity, NewDisk, OpenError,
    convert, fs::HostFs, map_file, switch_all,
};
use backstay_vhd::map::MapKind;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

const SIZE: u64 = 6 << 20;

/// A chain with content of its own in each file; the top and what it reads as.
fn chain(folder: &Path, depth: u64) -> (PathBuf, Vec<u8>) {
    let mut top = dynamic(folder, "0.vhd", SIZE);
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    for level in 0..=depth {
        if level > 0 {
            let child = folder.join(format!("{level}.vhd"));
            child_of(&top, &child);
            top = child;
        }
        let disk = open(&top, with_shadow(folder));
        for part in 0..3 {
            let offset = (level * 700 + part * 3000) * SECTOR;
            let data = stamp(offset, 900 * SECTOR, level + 1);
            disk.write(offset, &data).unwrap();
            let at = usize::try_from(offset).unwrap();
            model[at..at + data.len()].copy_from_slice(&data);
        }
        disk.close().unwrap();
    }
    (top, model)
}

fn refusal(path: &Path, options: DiskOptions) -> String {
    report(&Disk::open(path, options).expect_err("it should be refused"))
}

#[test]
fn a_second_writer_is_told_who_has_the_disk() {
    let folder = folder();
    let path = dynamic(folder.path(), "a.vhd", SIZE);
    let disk = open(&path, DiskOptions::default());
    let text = refusal(&path, DiskOptions::default());
    assert!(text.contains("is in use by"), "{text}");
    assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    refusal(&path, DiskOptions::read_only());
    disk.close().unwrap();
    let first = open(&path, DiskOptions::read_only());
    let second = open(&path, DiskOptions::read_only());
    assert_same(&read_all(&first), &read_all(&second), "two readers");
    refusal(&path, DiskOptions::default());
}

#[test]
fn a_parent_in_a_chain_cannot_be_written() {
    let folder = folder();
    let (top, _) = chain(folder.path(), 1);
    let _serving = open(&top, with_shadow(folder.path()));
    assert!(refusal(&folder.path().join("0.vhd"), DiskOptions::default()).contains("is in use by"));
}

#[test]
fn a_missing_parent_names_every_path_and_a_replaced_one_its_id() {
    let folder = folder();
    let (top, _) = chain(folder.path(), 1);
    let base = folder.path().join("0.vhd");
    std::fs::remove_file(&base).unwrap();
    let text = refusal(&top, DiskOptions::default());
    assert!(text.contains(base.to_str().unwrap()) && text.contains("no such file"), "{text}");
    dynamic(folder.path(), "0.vhd", SIZE);
    let text = refusal(&top, DiskOptions::default());
    assert!(text.contains("another disk"), "{text}");
}

#[test]
fn the_format_is_never_guessed() {
    let folder = folder();
    let path = dynamic(folder.path(), "a.vhd", SIZE);
    let odd = folder.path().join("a.data");
    std::fs::rename(&path, &odd).unwrap();
    assert!(matches!(Disk::open(&odd, DiskOptions::default()), Err(OpenError::UnknownFormat { .. })));
    let gone = Disk::open(&path, DiskOptions::default());
    assert!(matches!(gone, Err(OpenError::NotFound { .. })), "{gone:?}");
}

#[test]
fn seven_zip_reads_our_chains_alike() {
    if !have("7zz") {
        return;
    }
    for depth in 2..=4 {
        let folder = folder();
        let (top, model) = chain(folder.path(), depth);
        assert_same(&seven_zip(&top), &model, &format!("7zz, {} files", depth + 1));
    }
}

#[test]
fn disks_are_switched_together_or_not_at_all() {
    let folder = folder();
    let disks: Vec<_> = ["a.vhd", "b.vhd"]
        .map(|name| open(&dynamic(folder.path(), name, SIZE), with_shadow(folder.path())))
        .into();
    let path = |name: &str| folder.path().join(name);
    disks[0].prepare_child(&path("a.avhd"), Identity::fresh()).unwrap();
    let pairs =
        |second: &str| vec![(Arc::clone(&disks[0]), path("a.avhd")), (Arc::clone(&disks[1]), path(second))];
    switch_all(pairs("b.avhd")).expect_err("the second child is missing");
    assert_eq!([disks[0].chain().len(), disks[1].chain().len()], [1, 1]);
    switch_all(pairs("a.avhd")).expect_err("one child cannot serve two disks");
    disks[1].prepare_child(&path("b.avhd"), Identity::fresh()).unwrap();
    switch_all(pairs("b.avhd")).unwrap();
    for disk in &disks {
        assert_eq!(disk.chain().len(), 2);
        let old = disk.chain()[1].path.clone();
        let before = std::fs::read(&old).unwrap();
        disk.write(0, &stamp(0, 4096, 9)).unwrap();
        disk.flush().unwrap();
        assert_same(&std::fs::read(&old).unwrap(), &before, "the old top");
    }
}

#[test]
fn conversions_keep_every_byte() {
    let folder = folder();
    let (top, model) = chain(folder.path(), 2);
    for (name, to) in [
        ("x.raw", ConvertTo::Raw),
        ("fixed.vhd", ConvertTo::Fixed),
        ("dynamic.vhd", ConvertTo::Dynamic { block_size: 2 << 20 }),
    ] {
        let target = folder.path().join(name);
        let request = ConvertRequest::new(top.clone(), target.clone(), to);
        let done = convert(&HostFs::shared(), &request, &|_| {}, &AtomicBool::new(false)).unwrap();
        assert_eq!(done.size, SIZE);
        assert_same(&read_all(&open(&target, DiskOptions::read_only())), &model, name);
    }
    let request = ConvertRequest::new(top, folder.path().join("y.raw"), ConvertTo::Raw);
    let before = std::fs::read_dir(folder.path()).unwrap().count();
    let cancelled = convert(&HostFs::shared(), &request, &|_| {}, &AtomicBool::new(true));
    assert!(matches!(cancelled, Err(ConvertError::Cancelled { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), before, "nothing is left");
}

#[test]
fn a_map_knows_the_writes_of_a_process_that_died() {
    let folder = folder();
    let top = folder.path().join("1.avhd");
    child_of(&dynamic(folder.path(), "0.vhd", SIZE), &top);
    let disk = open(&top, with_shadow(folder.path()));
    disk.write(8 * SECTOR, &stamp(8 * SECTOR, 24 * SECTOR, 1)).unwrap();
    disk.abandon();
    let map = map_file(&HostFs::shared(), &top, &with_shadow(folder.path())).unwrap();
    let places: Vec<_> = map.iter().map(|range| (range.offset / SECTOR, range.len / SECTOR)).collect();
    assert_eq!(places, [(0, 8), (8, 24), (32, SIZE / SECTOR - 32)]);
    let MapKind::Data { file_offset } = map[1].kind else { panic!("{map:?}") };
    let at = usize::try_from(file_offset).unwrap();
    assert_same(
        &std::fs::read(&top).unwrap()[at..at + 24 * 512],
        &stamp(8 * SECTOR, 24 * SECTOR, 1),
        "there",
    );
    assert_eq!((map[0].kind, map[2].kind), (MapKind::Parent, MapKind::Parent));
}

#[test]
fn names_that_tell_why_not_are_understood() {
    let folder = folder();
    for (name, text) in
        [("a.vhdx", "VHDX"), ("a.AVHDX", "VHDX"), ("a.v01", "split disk"), ("a", "does not tell the format")]
    {
        let path = folder.path().join(name);
        std::fs::write(&path, [0; 4096]).unwrap();
        let refused = refusal(&path, DiskOptions::default());
        assert!(refused.contains(text) && refused.contains(name), "{refused}");
    }
}

#[test]
fn zeros_take_no_space_where_nothing_is_hidden() {
    let folder = folder();
    let path = folder.path().join("a.vhd");
    make(&path, &NewDisk::Dynamic { size: SIZE, block_size: 1 << 20 });
    let disk = open(&path, DiskOptions::default());
    disk.write(0, &vec![0; 1 << 20]).unwrap();
    assert_eq!(disk.chain()[0].allocated_blocks, 0);
    disk.write(3 << 20, &stamp(0, 512, 1)).unwrap();
    assert_eq!(disk.chain()[0].allocated_blocks, 1);
}

//! What we write, read by other programs: 7-Zip (chains too) and QEMU (not differencing disks, which it refuses).

use std::{fs, path::Path, sync::Arc};

use backstay_vhd::{
    Storage,
    testing::Rng,
    vhdx::{
        Image, Locator, OpenOptions,
        check::check,
        convert,
        create::{self, CreateError, CreateKind, CreateOptions},
    },
};
use uuid::Uuid;

use super::common;
use crate::files::{FileStorage, have, run};

/// The content of a disk as 7-Zip sees it, parents included.
pub fn seven_zip(path: &Path) -> Vec<u8> {
    run("7zz", &["x", "-so", "-tVHDX", path.to_str().unwrap()])
}

/// The content of a disk as QEMU sees it.
pub fn qemu(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("qemu-raw");
    run("qemu-img", &["convert", "-f", "vhdx", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}

fn qemu_check(path: &Path) {
    run("qemu-img", &["check", "-q", "-f", "vhdx", path.to_str().unwrap()]);
}

fn open_file(path: &Path, session: u128) -> Image {
    let options = OpenOptions { write: Some(common::ids(session)), shadow: None };
    Image::open(&(FileStorage::open(path) as Arc<dyn Storage>), &options).expect("the disk opens")
}

fn create_file(path: &Path, options: &CreateOptions, session: u128) -> Image {
    let storage = FileStorage::create(path);
    create::plan(options).expect("the options are valid").execute(storage.as_ref()).expect("the plan runs");
    open_file(path, session)
}

fn report(path: &Path) -> backstay_vhd::vhdx::check::Report {
    check(&(FileStorage::open_read_only(path) as Arc<dyn Storage>))
}

/// Random writes to a disk and to its model.
fn scribble(image: &Image, model: &mut [u8], seed: u64) {
    let mut rng = Rng::new(seed);
    let unit = u64::from(image.info().logical_sector);
    let sectors = model.len() as u64 / unit;
    for _ in 0..30 {
        let first = rng.below(sectors);
        let len = (1 + rng.below(100)).min(sectors - first);
        let data: Vec<u8> = (0..len * unit).map(|_| rng.next() as u8).collect();
        common::write(image, first * unit, &data).unwrap();
        model[(first * unit) as usize..][..data.len()].copy_from_slice(&data);
    }
}

#[test]
fn others_see_exactly_the_size_that_was_asked_for() {
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (size, kind) in [
        (512, CreateKind::Dynamic),
        ((10 << 20) + 512, CreateKind::Fixed),
        (5 << 30, CreateKind::Dynamic),
        (64 << 40, CreateKind::Dynamic),
    ] {
        let path = folder.path().join("size.vhdx");
        let image =
            create_file(&path, &CreateOptions { block_size: None, ..common::options(size, kind.clone()) }, 1);
        if kind == CreateKind::Dynamic {
            common::write(&image, size - 512, &[0x5a; 512]).unwrap();
        }
        image.close().unwrap();
        let json = run("qemu-img", &["info", "-f", "vhdx", "--output=json", path.to_str().unwrap()]);
        let info: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(info["virtual-size"].as_u64(), Some(size), "{kind:?}");
        qemu_check(&path);
        assert_eq!(report(&path).worst(), None, "{}", report(&path));
    }
}

#[test]
fn the_largest_disk_is_small_until_it_is_used() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.vhdx");
    let options = CreateOptions { block_size: None, ..common::options(64 << 40, CreateKind::Dynamic) };
    let image = create_file(&path, &options, 1);
    common::write(&image, (64 << 40) - 512, &[1; 512]).unwrap();
    common::write(&image, 33 << 40, &[1; 512]).unwrap();
    image.close().unwrap();
    let on_disk = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(on_disk < 10 << 20, "{on_disk} bytes");
}

#[test]
fn others_read_what_we_write_into_single_disks() {
    let (zip, qemu_img) = (have("7zz"), have("qemu-img"));
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        (CreateKind::Fixed, 1 << 20, 512),
        (CreateKind::Dynamic, 1 << 20, 512),
        (CreateKind::Dynamic, 32 << 20, 512),
        (CreateKind::Dynamic, 2 << 20, 4096),
    ];
    for (seed, (kind, block_size, logical_sector)) in (0..).zip(cases) {
        let path = folder.path().join("disk.vhdx");
        // Even numbers of sectors: 7-Zip 26 takes odd ones for a damaged file.
        let size = (9 << 20) + 8192 * seed;
        let mut model = vec![0; size as usize];
        let options = CreateOptions {
            block_size: Some(block_size),
            logical_sector,
            ..common::options(size, kind.clone())
        };
        let image = create_file(&path, &options, 1);
        scribble(&image, &mut model, seed);
        common::zero(&image, 0, 3 << 20).unwrap();
        model[..3 << 20].fill(0);
        image.close().unwrap();
        let case = format!("{kind:?}, blocks of {block_size}, sectors of {logical_sector}");
        println!("{case}");
        assert!(!zip || seven_zip(&path) == model, "{case}: 7-Zip");
        // QEMU has no 4096-byte sectors.
        if qemu_img && logical_sector == 512 {
            assert!(qemu(&path) == model, "{case}: QEMU");
            qemu_check(&path);
        }
        assert_eq!(report(&path).worst(), None, "{case}: {}", report(&path));
    }
}

/// QEMU replays the log that a killed process of ours leaves, and finds everything that was acknowledged.
#[test]
fn qemu_replays_our_log() {
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("killed.vhdx");
    let size = 5 << 20;
    let mut model = vec![0; size];
    let image = create_file(&path, &common::options(size as u64, CreateKind::Dynamic), 1);
    scribble(&image, &mut model, 3);
    // Not closed: what was not flushed is in the page cache, and metadata only in the log.
    drop(image);
    run("qemu-img", &["check", "-q", "-r", "all", "-f", "vhdx", path.to_str().unwrap()]);
    assert!(qemu(&path) == model, "QEMU found our log and replayed it");
    let after = open_file(&path, 2);
    assert!(after.info().warnings.is_empty(), "{:?}", after.info().warnings);
    assert!(common::read(&after, 0, size, common::no_parent) == model);
}

#[test]
fn others_read_chains_that_we_write() {
    if !have("7zz") {
        return;
    }
    for (block_size, logical_sector) in [(1 << 20, 512), (2 << 20, 512), (2 << 20, 4096), (8 << 20, 512)] {
        let folder = tempfile::tempdir().unwrap();
        let size = (9 << 20) + 8192 * 3;
        let mut model = vec![0; size as usize];
        let mut parent: Option<(Uuid, String)> = None;
        for depth in 0..4u64 {
            let name =
                if depth == 0 { "base.vhdx".to_owned() } else { format!("checkpoint {depth} ä.avhdx") };
            let path = folder.path().join(&name);
            let kind = match &parent {
                None => CreateKind::Dynamic,
                Some((linkage, file)) => CreateKind::Differencing(Locator {
                    linkage: *linkage,
                    relative: Some(format!(".\\{file}")),
                    absolute: Some(folder.path().join(file).to_str().unwrap().to_owned()),
                    ..Locator::default()
                }),
            };
            let options = CreateOptions {
                block_size: Some(block_size),
                logical_sector,
                data_write_guid: Uuid::from_u128(u128::from(depth) + 1),
                ..common::options(size, kind)
            };
            let image = create_file(&path, &options, u128::from(depth) + 1);
            assert!(seven_zip(&path) == model, "{name}: an empty child reads as its parent");
            scribble(&image, &mut model, depth + u64::from(block_size));
            if depth > 0 {
                // Part of a block, and one whole block that becomes zeros without a place.
                let hole = depth * 1_000_000 / 4096 * 4096;
                common::zero(&image, hole, 700 << 10).unwrap();
                model[hole as usize..][..700 << 10].fill(0);
                let block = u64::from(block_size);
                common::zero(&image, 0, block).unwrap();
                model[..block as usize].fill(0);
            }
            let linkage = image.settle_identity().unwrap();
            image.close().unwrap();
            let case = format!("{name}, blocks of {block_size}, sectors of {logical_sector}");
            assert!(seven_zip(&path) == model, "{case}: 7-Zip");
            assert_eq!(report(&path).worst(), None, "{case}: {}", report(&path));
            parent = Some((linkage, name));
        }
    }
}

#[test]
fn disks_of_qemu_are_read_and_written() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for options in ["subformat=dynamic", "subformat=fixed", "subformat=dynamic,block_size=1M,log_size=2M"] {
        let path = folder.path().join("qemu.vhdx");
        let name = path.to_str().unwrap();
        run("qemu-img", &["create", "-q", "-f", "vhdx", "-o", options, name, "10M"]);
        run("qemu-io", &["-f", "vhdx", "-c", "write -P 0x31 3k 5k", "-c", "write -P 0x32 9M 64k", name]);
        let image = open_file(&path, 1);
        let mut model = qemu(&path);
        assert!(
            common::read(&image, 0, model.len(), common::no_parent) == model,
            "{options}: what QEMU wrote"
        );
        scribble(&image, &mut model, 5);
        image.close().unwrap();
        assert!(qemu(&path) == model, "{options}: QEMU reads what we wrote");
        qemu_check(&path);
        run("qemu-io", &["-f", "vhdx", "-c", "write -P 0x33 5M 128k", name]);
        model[5 << 20..][..128 << 10].fill(0x33);
        let again = open_file(&path, 2);
        assert!(
            common::read(&again, 0, model.len(), common::no_parent) == model,
            "{options}: and QEMU can go on"
        );
    }
}

#[test]
fn conversions_are_laid_out_as_planned() {
    let folder = tempfile::tempdir().unwrap();
    let size = (13 << 20) + 1024;
    let mut source = vec![0; size as usize];
    let data = [512..5000, 6 << 20..7 << 20, (12 << 20) + 13..size + 99];
    for range in &data {
        let end = (range.end as usize).min(source.len());
        source[range.start as usize..end].fill(0x77);
    }
    for kind in [CreateKind::Fixed, CreateKind::Dynamic] {
        let path = folder.path().join("converted.vhdx");
        let planned = convert::plan(&common::options(size, kind.clone()), &data).unwrap();
        let storage = FileStorage::create(&path);
        backstay_vhd::plan::execute(&planned.before, storage.as_ref()).unwrap();
        for copy in &planned.copies {
            let from = copy.disk_offset as usize;
            storage.write_at(&source[from..from + copy.len as usize], copy.file_offset).unwrap();
        }
        let reader = || {
            Image::open(&(FileStorage::open_read_only(&path) as Arc<dyn Storage>), &OpenOptions::default())
        };
        reader().expect_err("a conversion that was interrupted cannot be taken for a finished one");
        backstay_vhd::plan::execute(&planned.after, storage.as_ref()).unwrap();
        assert_eq!(storage.len().unwrap(), planned.file_len);
        let image = reader().unwrap();
        assert!(common::read(&image, 0, size as usize, common::no_parent) == source, "{kind:?}");
        assert!(!have("qemu-img") || qemu(&path) == source, "{kind:?}: QEMU");
        assert!(!have("7zz") || seven_zip(&path) == source, "{kind:?}: 7-Zip");
        assert_eq!(report(&path).worst(), None, "{}", report(&path));
    }
    let child = common::options(size, common::child());
    assert_eq!(convert::plan(&child, &data), Err(CreateError::DifferencingTarget));
}

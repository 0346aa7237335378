//! What we write, read by other programs: 7-Zip (chains too) and QEMU (never differencing disks, which it misreads).

use std::path::Path;

use backstay_vhd::{
    Image, OpenOptions,
    check::check,
    convert::{self, Target},
    create::{self, CreateKind, CreateOptions, ParentSpec},
    plan,
    testing::Rng,
};
use uuid::Uuid;

use crate::{common, files::*};

/// Random writes to a disk and to its model.
fn scribble(image: &Image, model: &mut [u8], seed: u64) {
    let mut rng = Rng::new(seed);
    let sectors = model.len() as u64 / 512;
    for _ in 0..40 {
        let first = rng.below(sectors);
        let len = (1 + rng.below(100)).min(sectors - first);
        let data: Vec<u8> = (0..len * 512).map(|_| rng.next() as u8).collect();
        common::write(image, first * 512, &data).unwrap();
        model[first as usize * 512..][..data.len()].copy_from_slice(&data);
    }
}

fn virtual_size(path: &Path) -> u64 {
    let json = run("qemu-img", &["info", "-f", "vpc", "--output=json", path.to_str().unwrap()]);
    serde_json::from_slice::<serde_json::Value>(&json).unwrap()["virtual-size"].as_u64().unwrap()
}

#[test]
fn others_see_exactly_the_size_that_was_asked_for() {
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for size in [512, 1 << 20, (10 << 20) + 512, 1 << 30, (127 << 30) + 4096, 2040 << 30] {
        for kind in [CreateKind::Fixed, CreateKind::dynamic(), CreateKind::Dynamic { block_size: 64 << 20 }] {
            let path = folder.path().join("size.vhd");
            let image = create_file(&path, &common::options(size, kind.clone()));
            assert_eq!(virtual_size(&path), size, "{kind:?}");
            assert_eq!(image.info().size, size);
            let last = [0x5a; 512];
            if size < 2040 << 30 || kind != CreateKind::Fixed {
                common::write(&image, size - 512, &last).unwrap();
                image.close().unwrap();
                let mut first_hit = Vec::new();
                open_file(&path).resolve_read(size - 512, 512, &mut first_hit).unwrap();
                assert_eq!(virtual_size(&path), size, "{kind:?} after a write");
            }
        }
    }
}

#[test]
fn others_read_what_we_write_into_single_disks() {
    let (zip, qemu_img) = (have("7zz"), have("qemu-img"));
    let folder = tempfile::tempdir().unwrap();
    let kinds = [
        CreateKind::Fixed,
        CreateKind::Dynamic { block_size: 512 << 10 },
        CreateKind::dynamic(),
        CreateKind::Dynamic { block_size: 16 << 20 },
    ];
    for (seed, kind) in (0..).zip(kinds) {
        let path = folder.path().join("disk.vhd");
        let size = (9 << 20) + 512 * seed;
        let mut model = vec![0; size as usize];
        let image = create_file(&path, &common::options(size, kind.clone()));
        scribble(&image, &mut model, seed);
        common::zero(&image, 0, 3 << 20).unwrap();
        model[..3 << 20].fill(0);
        image.flush().unwrap();
        // Both as a power cut or kill would leave it, with space reserved at the end, and closed.
        for state in ["open", "closed"] {
            assert!(!zip || seven_zip(&path) == model, "{kind:?}, {state}: 7-Zip");
            assert!(!qemu_img || qemu(&path) == model, "{kind:?}, {state}: QEMU");
            image.close().unwrap();
        }
        let report = check(FileStorage::open_read_only(&path).as_ref(), &OpenOptions::default());
        assert_eq!(report.worst(), None, "{report}");
    }
}

#[test]
fn others_read_chains_that_we_write() {
    if !have("7zz") {
        return;
    }
    for block_size in [512 << 10, 2 << 20, 8 << 20] {
        let folder = tempfile::tempdir().unwrap();
        let size = (9 << 20) + 1536;
        let mut model = vec![0; size as usize];
        let mut parent: Option<(Uuid, String)> = None;
        for depth in 0..5u64 {
            let name = if depth == 0 { "base.vhd".to_owned() } else { format!("checkpoint {depth} ä.avhd") };
            let path = folder.path().join(&name);
            let unique_id = Uuid::from_u128(u128::from(depth) + 77);
            let kind = match &parent {
                None => CreateKind::Dynamic { block_size },
                Some((id, file)) => CreateKind::Differencing {
                    block_size,
                    parent: ParentSpec {
                        unique_id: *id,
                        name: folder.path().join(file).to_str().unwrap().to_owned(),
                        absolute: Some(folder.path().join(file).to_str().unwrap().to_owned()),
                        relative: Some(file.clone()),
                        ..ParentSpec::default()
                    },
                },
            };
            let options = CreateOptions { unique_id, ..common::options(size, kind) };
            let image = create_file(&path, &options);
            assert!(seven_zip(&path) == model, "{name}: an empty child reads as its parent");
            scribble(&image, &mut model, depth + u64::from(block_size));
            if depth > 0 {
                let hole = depth * 1_000_000 / 512 * 512;
                common::zero(&image, hole, 700 << 10).unwrap();
                model[hole as usize..][..700 << 10].fill(0);
            }
            image.close().unwrap();
            assert!(seven_zip(&path) == model, "{name}, blocks of {block_size}: 7-Zip");
            parent = Some((unique_id, name));
        }
    }
}

#[test]
fn disks_of_qemu_are_read_and_written() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for options in [
        "subformat=dynamic",
        "subformat=dynamic,force_size=on",
        "subformat=fixed",
        "subformat=fixed,force_size=on",
    ] {
        let path = folder.path().join("qemu.vhd");
        let name = path.to_str().unwrap();
        run("qemu-img", &["create", "-q", "-f", "vpc", "-o", options, name, "10M"]);
        run("qemu-io", &["-f", "vpc", "-c", "write -P 0x31 3k 5k", "-c", "write -P 0x32 9M 64k", name]);
        let image = open_file(&path);
        assert_eq!(image.info().size, virtual_size(&path), "{options}: one size for all");
        let mut model = qemu(&path);
        assert!(common::read_all(&image, &[]) == model, "{options}: we read what QEMU wrote");
        scribble(&image, &mut model, 5);
        image.close().unwrap();
        assert!(qemu(&path) == model, "{options}: QEMU reads what we wrote");
        run("qemu-io", &["-f", "vpc", "-c", "write -P 0x33 5M 128k", name]);
        model[5 << 20..][..128 << 10].fill(0x33);
        let again = open_file(&path);
        assert!(common::read_all(&again, &[]) == model, "{options}: and QEMU can go on");
        assert!(again.info().warnings.is_empty(), "{options}: {:?}", again.info().warnings);
    }
}

#[test]
fn conversions_are_laid_out_as_planned() {
    let folder = tempfile::tempdir().unwrap();
    let size = (13 << 20) + 512;
    let mut source = vec![0; size as usize];
    let data = [512..5000, 6 << 20..7 << 20, (12 << 20) + 13..size + 99];
    for range in &data {
        let end = (range.end as usize).min(source.len());
        source[range.start as usize..end].fill(0x77);
    }
    for kind in [CreateKind::Fixed, CreateKind::Dynamic { block_size: 1 << 20 }] {
        let path = folder.path().join("converted.vhd");
        let target = Target::Vhd(common::options(size, kind.clone()));
        let convert_plan = convert::plan(&target, &data).unwrap();
        let storage = FileStorage::create(&path);
        plan::execute(&convert_plan.before, storage.as_ref()).unwrap();
        for copy in &convert_plan.copies {
            let from = copy.disk_offset as usize;
            backstay_vhd::Storage::write_at(
                storage.as_ref(),
                &source[from..from + copy.len as usize],
                copy.file_offset,
            )
            .unwrap();
        }
        Image::open(FileStorage::open(&path), &OpenOptions::default())
            .expect_err("a conversion that was interrupted cannot be taken for a finished one");
        plan::execute(&convert_plan.after, storage.as_ref()).unwrap();
        let image = open_file(&path);
        assert!(common::read_all(&image, &[]) == source, "{kind:?}");
        assert!(!have("qemu-img") || qemu(&path) == source, "{kind:?}: QEMU");
        assert!(!have("7zz") || seven_zip(&path) == source, "{kind:?}: 7-Zip");
        let report = check(storage.as_ref(), &OpenOptions::default());
        assert_eq!(report.worst(), None, "{report}");
    }
    let raw = convert::plan(&Target::Raw { size }, &data).unwrap();
    assert_eq!((raw.file_len, raw.copies.len()), (size, 3));
    let child = Target::Vhd(common::options(size, common::differencing(1 << 20)));
    assert_eq!(convert::plan(&child, &data), Err(create::CreateError::DifferencingTarget));
}

//! The fuzzer's corpora on the stable compiler, and seeded damage to them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use backstay_vhd::{
    Storage,
    testing::Rng,
    vhdx::{create::CreateKind, fuzz},
};

use super::common::*;

/// A target's name and body.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 6] = [
    ("vhdx_header", fuzz::header),
    ("vhdx_regions", fuzz::regions),
    ("vhdx_metadata", fuzz::metadata),
    ("vhdx_log", fuzz::log),
    ("vhdx_bat", fuzz::bat),
    ("vhdx_locator", fuzz::locator),
];

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder(target)).expect("the corpus is committed");
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "the corpus of {target} is incomplete");
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn the_corpora_are_survived() {
    for (target, body) in TARGETS {
        for (path, data) in corpus(target) {
            println!("{}", path.display());
            body(&data);
        }
    }
}

#[test]
fn random_damage_is_survived() {
    for (target, body) in TARGETS {
        for (_, data) in corpus(target) {
            for seed in 0..60 {
                let mut rng = Rng::new(seed);
                let mut bytes = data.clone();
                for _ in 0..=rng.below(6) {
                    let len = bytes.len() as u64;
                    if len == 0 {
                        break;
                    }
                    let at = if rng.one_in(3) { rng.below(len) } else { rng.below(len.min(200)) };
                    bytes[at as usize] = [0, 1, 0x7f, 0x80, 0xff, rng.next() as u8][rng.below(6) as usize];
                }
                body(&bytes);
            }
        }
    }
}

/// Writes the corpora anew: `cargo test -p backstay-vhd -- --ignored the_vhdx_seeds`.
#[test]
#[ignore = "writes into the source tree"]
fn the_vhdx_seeds_are_made_from_disks_of_ours() {
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let end = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        fs::create_dir_all(folder(target)).unwrap();
        fs::write(folder(target).join(name), &bytes[..end]).unwrap();
    };
    let storage = create(&options((4 << 30) + 3 * MIB, child()));
    let image = open(&storage, 1, None);
    for offset in [0, 5 << 20, (4 << 30) - 512] {
        write(&image, offset, &[1; 1024]).unwrap();
    }
    let part = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        storage.read_at(&mut bytes, at).unwrap();
        bytes
    };
    put("vhdx_header", "open", &part(64 << 10, 4096));
    put("vhdx_log", "child", &part(MIB, 256 << 10)[..48 << 10]);
    image.close().unwrap();
    put("vhdx_header", "closed", &part(64 << 10, 4096));
    put("vhdx_regions", "ours", &part(192 << 10, 4096));
    let mut metadata = part(2 * MIB, 512);
    metadata.extend(part(2 * MIB + (64 << 10), 5 << 10));
    put("vhdx_metadata", "child", &metadata);
    put("vhdx_locator", "ours", &part(2 * MIB + 0x1_1000, 800));
    for (name, first) in [("child", 1u8), ("dynamic", 0)] {
        let mut table = vec![first];
        let entries = [6u64 | 4 << 20, 2, 3 | 6 << 20, 7 | 5 << 20, 0, 1];
        table.extend(entries.iter().flat_map(|entry| entry.to_le_bytes()));
        table.resize(1 + 4096 * 8, 0);
        table.extend((6u64 | 9 << 20).to_le_bytes());
        table.extend((7u64 | 10 << 20).to_le_bytes());
        put("vhdx_bat", name, &table);
    }
    let storage = create(&options(8 << 20, CreateKind::Dynamic));
    let image = open(&storage, 1, None);
    write(&image, 0, &[1; 512]).unwrap();
    let mut log = vec![0; 12 << 10];
    storage.read_at(&mut log, MIB).unwrap();
    put("vhdx_log", "dynamic", &log);
}

//! The fuzzer's corpora on the stable compiler, and seeded damage to them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use backstay_vhd::{
    create::CreateKind,
    format::{footer::Footer, locator::encode_utf16le},
    fuzz,
    testing::Rng,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::common::*;

/// A target's name and body.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 4] = [
    ("vhd_footer", fuzz::footer),
    ("vhd_header", fuzz::dynamic_header),
    ("vhd_locators", fuzz::locators),
    ("vhd_image", fuzz::open_image),
];

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder(target)).expect("the corpus is committed");
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 4, "the corpus of {target} is incomplete");
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
            for seed in 0..1500 {
                let mut rng = Rng::new(seed);
                let mut bytes = data.clone();
                for _ in 0..=rng.below(6) {
                    // Mostly the metadata: the first 4 KiB and the last sector.
                    let len = bytes.len() as u64;
                    if len == 0 {
                        break;
                    }
                    let at = match rng.below(4) {
                        0 => rng.below(len),
                        1 => len - 1 - rng.below(len.min(512)),
                        2 => rng.below(len.min(100)),
                        _ => rng.below(len.min(2048)),
                    };
                    let byte = [0, 1, 0x7f, 0x80, 0xff, rng.next() as u8][rng.below(6) as usize];
                    bytes[at as usize] = byte;
                }
                if rng.one_in(8) {
                    bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize);
                }
                body(&bytes);
            }
        }
    }
}

/// A disk with the smallest blocks that can be read, so that whole files are a few KiB.
fn tiny(creator: [u8; 4]) -> Vec<u8> {
    let mut bytes = create_tiny(8 << 10, CreateKind::dynamic(), 1024).to_bytes();
    let end = bytes.len() - 512;
    for at in [0, end] {
        let footer = Footer::read_from_bytes(&bytes[at..at + 512]).unwrap();
        let footer = Footer { creator_app: creator, ..footer };
        bytes[at..at + 512].copy_from_slice(footer.sealed().as_bytes());
    }
    let storage = backstay_vhd::testing::SimStorage::from_bytes(&bytes);
    let image = open(&storage, None);
    write(&image, 1024, &[1; 512]).unwrap();
    write(&image, 7 << 10, &[2; 1024]).unwrap();
    image.close().unwrap();
    storage.to_bytes()
}

/// Writes the corpora anew: `cargo test -p backstay-vhd -- --ignored the_seeds`.
#[test]
#[ignore = "writes into the source tree"]
fn the_seeds_are_made_from_disks_of_ours() {
    let put = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(folder(target)).unwrap();
        fs::write(folder(target).join(name), bytes).unwrap();
    };
    let fixed = create(&options(2048, CreateKind::Fixed)).to_bytes();
    let empty = create(&options(1 << 30, CreateKind::dynamic())).to_bytes();
    let child = create(&options(1 << 20, differencing(SMALL_BLOCK))).to_bytes();
    let tiny_win = tiny(*b"win ");
    let tiny_xen = tiny(*b"tap\0");

    put("vhd_footer", "fixed", &fixed[2048..]);
    put("vhd_footer", "dynamic", &empty[..512]);
    put("vhd_footer", "child", &child[..512]);
    put("vhd_footer", "xen", &tiny_xen[..512]);
    put("vhd_header", "dynamic", &empty[512..1536]);
    put("vhd_header", "child", &child[512..1536]);
    put("vhd_header", "tiny", &tiny_win[512..1536]);
    put("vhd_header", "zeros", &[0; 1024]);
    put("vhd_locators", "relative", &encode_utf16le(".\\base.vhd"));
    put("vhd_locators", "absolute", &encode_utf16le("C:\\VMs\\..\\base.vhd"));
    put("vhd_locators", "share", b"\\\\?\\UNC\\server\\share\\base.vhd");
    put("vhd_locators", "url", b"file://localhost/a/../../base.vhd");
    put("vhd_image", "fixed", &fixed);
    put("vhd_image", "dynamic-tiny", &tiny_win);
    put("vhd_image", "xen-tiny", &tiny_xen);
    // Without its footer, and cut behind the relative locator: the copy at the start is enough.
    put("vhd_image", "child-without-footer", &child[..0x3200]);
    let mut short = tiny_win.clone();
    short.pop();
    put("vhd_image", "short-footer", &short);
    put("vhd_image", "dynamic-1g", &empty);
}

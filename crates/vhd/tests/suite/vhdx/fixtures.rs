//! Disks that Hyper-V of several versions, Disk2vhd and QEMU made, read byte by byte.

use std::{fs, path::Path, sync::Arc};

use backstay_vhd::{
    Format, Source, Storage,
    check::Severity,
    vhdx::{Image, OpenError, OpenOptions, Warning, check::check},
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::common;
use crate::files::{FileStorage, fixture_file, fixtures, have};

fn expected() -> Option<(&'static Path, Vec<Value>)> {
    let folder = fixtures()?;
    let text = fs::read_to_string(folder.join("expected.json")).unwrap();
    let Value::Array(list) = serde_json::from_str(&text).unwrap() else { panic!("a list was expected") };
    Some((folder, list))
}

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key].as_str().unwrap()
}

fn storage(path: &Path) -> Arc<dyn Storage> {
    FileStorage::open_read_only(path)
}

fn open(path: &Path) -> Result<Image, OpenError> {
    Image::open(&storage(path), &OpenOptions::default())
}

/// Calls `each` with the content of a chain (top first), a part at a time.
pub fn read_chain(chain: &[Image], mut each: impl FnMut(&[u8])) {
    const PART: u64 = 1 << 20;
    let size = chain[0].info().size;
    let mut bytes = vec![0; PART as usize];
    for offset in (0..size).step_by(PART as usize) {
        let part = &mut bytes[..PART.min(size - offset) as usize];
        read_layer(chain, offset, part);
        each(part);
    }
}

fn read_layer(chain: &[Image], offset: u64, out: &mut [u8]) {
    let Some((top, parents)) = chain.split_first() else { return out.fill(0) };
    let mut extents = Vec::new();
    top.resolve_read(offset, out.len() as u64, &mut extents).expect("the range resolves");
    let mut at = 0;
    for extent in extents {
        let part = &mut out[at..at + extent.len as usize];
        match extent.source {
            Source::Data { file_offset } => {
                top.storage().read_at(part, file_offset).expect("the data is there");
            }
            Source::Zero => part.fill(0),
            Source::Parent => read_layer(parents, offset + at as u64, part),
        }
        at += extent.len as usize;
    }
}

fn hex(sha: Sha256) -> String {
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hash of all bytes.
fn hash(chain: &[Image]) -> String {
    let mut sha = Sha256::new();
    read_chain(chain, |bytes| sha.update(bytes));
    hex(sha)
}

/// Hash of the MiB that are not all zeros, each behind its offset: quick for large disks with little in them.
fn sparse_hash(image: &Image) -> String {
    const PART: u64 = 1 << 20;
    let mut sha = Sha256::new();
    let mut bytes = vec![0; PART as usize];
    let size = image.info().size;
    for offset in (0..size).step_by(PART as usize) {
        let len = PART.min(size - offset);
        let mut extents = Vec::new();
        image.resolve_read(offset, len, &mut extents).expect("the range resolves");
        if extents.iter().all(|extent| extent.source == Source::Zero) {
            continue;
        }
        let part = &mut bytes[..len as usize];
        read_layer(std::slice::from_ref(image), offset, part);
        if part.iter().any(|byte| *byte != 0) {
            sha.update(offset.to_le_bytes());
            sha.update(part);
        }
    }
    hex(sha)
}

/// Sparse hashes of disks of 10 GiB, taken where [`soak_the_largest_disks_read_as_expected`] had found all bytes right.
const LARGE: [(&str, &str); 4] = [
    ("discutils/swap.vhdx.gz", "b005982782384e9d90f3133f7494e5ee6b2e464197b941ebf4730201d7b3fe48"),
    ("discutils/lvm2.vhdx.gz", "1b55526e592fe075af1587a9a694249be308209e05611c16e21ad33d3a283d6a"),
    ("discutils/xfs.vhdx.gz", "01bccd5c9f240a6163317bae457fc5499329df022fba782e6f8151dd09aff334"),
    ("discutils/xfs5.vhdx.gz", "c91d29e92e351f0d5241fd59f3ea0a03bc65a6de94f64f873ca42e360a8f67af"),
];

#[test]
#[ignore = "make soak runs it: 40 GiB are hashed"]
fn soak_the_largest_disks_read_as_expected() {
    let Some((folder, entries)) = expected() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for (packed, _) in LARGE {
        let path = fixture_file(folder, packed, scratch.path());
        let entry = entries.iter().find(|entry| entry["path"] == packed).unwrap();
        let image = open(&path).unwrap();
        seen.push((packed, sparse_hash(&image)));
        assert_eq!(hash(&[image]), text(entry, "content_sha256"), "{packed}: content");
    }
    assert_eq!(seen, LARGE.map(|(packed, sparse)| (packed, sparse.to_owned())), "the short form of it");
}

/// Every disk, dirty logs and chains included, reads as Windows wrote it, and opening it for reading changes nothing.
#[test]
fn every_vhdx_reads_as_expected() {
    let Some((folder, entries)) = expected() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for entry in entries.iter().filter(|entry| entry["format"] == "vhdx") {
        let path = fixture_file(folder, text(entry, "path"), scratch.path());
        let name = path.display();
        let mut start = [0; 8];
        storage(&path).read_at(&mut start, 0).unwrap();
        assert_eq!(Format::of_start(&start), Some(Format::Vhdx), "{name}");
        let mut chain = vec![open(&path).unwrap_or_else(|e| panic!("{name}: {e}"))];
        for parent in entry["parents"].as_array().unwrap() {
            let parent = open(&folder.join(parent.as_str().unwrap())).unwrap();
            let child = chain.last().unwrap();
            backstay_vhd::vhdx::parent::check(child.info(), parent.info()).expect("the parent fits");
            assert_eq!(
                child.info().disk_id,
                parent.info().disk_id,
                "a checkpoint is the same disk for its user"
            );
            chain.push(parent);
        }
        let info = chain[0].info();
        assert_eq!(info.size, entry["virtual_size"].as_u64().unwrap(), "{name}: virtual size");
        let kind = text(entry, "kind");
        assert_eq!(info.disk_type.to_string(), kind.split(' ').next().unwrap(), "{name}: kind");
        let block_size = format!("bs={}M", info.block_size >> 20);
        assert!(kind.contains(&block_size), "{name}: {kind} against {block_size}");
        let replayed = info.warnings.iter().any(|w| matches!(w, Warning::LogReplayed { .. }));
        assert_eq!(replayed, kind.contains("DIRTY LOG"), "{name}: {:?}", info.warnings);
        match LARGE.iter().find(|(packed, _)| *packed == text(entry, "path")) {
            Some((_, sparse)) => assert_eq!(sparse_hash(&chain[0]), *sparse, "{name}: content"),
            None => assert_eq!(hash(&chain), text(entry, "content_sha256"), "{name}: content"),
        }
        let report = check(&storage(&path));
        assert!(report.worst() <= Some(Severity::Warning), "{name}: {report}");
        compared += 1;
    }
    assert!(compared >= 12, "only {compared} disks were compared");
}

#[test]
fn windows_writes_locators_as_understood_here() {
    let Some(folder) = fixtures() else { return };
    let child = open(&folder.join("dfvfs/ntfs-differential.vhdx")).unwrap();
    let parent = open(&folder.join("dfvfs/ntfs-parent.vhdx")).unwrap();
    let locator = child.parent().expect("a child names its parent");
    assert_eq!(locator.linkage, parent.info().data_write_guid);
    assert_eq!(locator.linkage2, None, "zeros are no identity");
    assert_eq!(locator.relative.as_deref(), Some(".\\ntfs-parent.vhdx"));
    assert_eq!(locator.absolute.as_deref(), Some("C:\\Projects\\dfvfs\\test_data\\ntfs-parent.vhdx"));
    assert!(locator.volume.as_deref().is_some_and(|path| path.starts_with("\\\\?\\Volume{")), "{locator:?}");
    assert!(locator.other.is_empty());
    assert_eq!(child.info().creator, "Microsoft Windows 10.0.19041.0");
}

/// The dirty log of Windows: replayed into the file by a writer, the result is what QEMU makes of it.
#[test]
fn a_log_of_windows_is_replayed_into_the_file() {
    let Some((folder, entries)) = expected() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let packed = "discutils/vhdx-log-replay.vhdx.gz";
    let path = fixture_file(folder, packed, scratch.path());
    let entry = entries.iter().find(|entry| entry["path"] == packed).unwrap();
    let options = OpenOptions { write: Some(common::ids(1)), shadow: None };
    let writer = Image::open(&(FileStorage::open(&path) as Arc<dyn Storage>), &options).unwrap();
    assert!(matches!(writer.info().warnings[..], [Warning::LogReplayed { entries: 2, written: true, .. }]));
    assert_eq!(hash(&[writer]), text(entry, "content_sha256"));
    let again = open(&path).unwrap();
    assert!(again.info().warnings.is_empty(), "the log is empty now: {:?}", again.info().warnings);
    assert_eq!(hash(&[again]), text(entry, "content_sha256"));
    if have("qemu-img") {
        crate::files::run("qemu-img", &["check", "-q", "-f", "vhdx", path.to_str().unwrap()]);
    }
}

#[test]
fn writing_to_a_disk_of_windows_keeps_it_readable_for_others() {
    let Some(folder) = fixtures() else { return };
    if !have("7zz") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    for name in
        ["ntfs-parent.vhdx", "ntfs-differential.vhdx", "ntfs-dynamic.vhdx", "ntfs-fixed.vhdx", "ext2.vhdx"]
    {
        let bytes = fs::read(folder.join("dfvfs").join(name)).unwrap();
        fs::write(scratch.path().join(name), bytes).unwrap();
    }
    for name in ["ntfs-differential.vhdx", "ntfs-dynamic.vhdx", "ntfs-fixed.vhdx", "ext2.vhdx"] {
        let path = scratch.path().join(name);
        let mut model = super::oracles::seven_zip(&path);
        let options = OpenOptions { write: Some(common::ids(7)), shadow: None };
        let image = Image::open(&(FileStorage::open(&path) as Arc<dyn Storage>), &options).unwrap();
        for (sector, count) in [(0u64, 3usize), (190, 17), (4000, 200)] {
            let data = vec![0xa5; count * 512];
            common::write(&image, sector * 512, &data).unwrap();
            model[sector as usize * 512..][..data.len()].copy_from_slice(&data);
        }
        image.close().unwrap();
        assert!(super::oracles::seven_zip(&path) == model, "{name}: 7-Zip reads what was written");
        if name != "ntfs-differential.vhdx" && have("qemu-img") {
            assert!(super::oracles::qemu(&path) == model, "{name}: QEMU reads what was written");
            crate::files::run("qemu-img", &["check", "-q", "-f", "vhdx", path.to_str().unwrap()]);
        }
    }
}

//! Disks that Windows, Virtual PC, QEMU and Disk2vhd made, read byte by byte.

use std::fs;

use backstay_vhd::{
    DiskType, Image, LocatorKind, OpenError, OpenOptions, SizeRule,
    check::{Severity, check},
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::files::*;

fn expected() -> Option<(&'static std::path::Path, Vec<Value>)> {
    let folder = fixtures()?;
    let text = fs::read_to_string(folder.join("expected.json")).unwrap();
    let Value::Array(list) = serde_json::from_str(&text).unwrap() else { panic!("a list was expected") };
    Some((folder, list))
}

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key].as_str().unwrap()
}

fn open(path: &std::path::Path) -> Result<Image, OpenError> {
    Image::open(FileStorage::open_read_only(path), &OpenOptions::default())
}

#[test]
fn every_vhd_reads_as_expected() {
    let Some((folder, entries)) = expected() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for entry in entries.iter().filter(|entry| entry["format"] == "vhd") {
        let path = fixture_file(folder, text(entry, "path"), scratch.path());
        let mut chain = vec![open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))];
        for parent in entry["parents"].as_array().unwrap() {
            let parent = open(&folder.join(parent.as_str().unwrap())).unwrap();
            let link = chain.last().unwrap().info().parent.clone().expect("a child names its parent");
            assert_eq!(link.unique_id, parent.info().unique_id);
            chain.push(parent);
        }
        let info = chain[0].info();
        let name = path.display();
        assert_eq!(info.size, entry["virtual_size"].as_u64().unwrap(), "{name}: virtual size");
        let kind = text(entry, "kind").split(' ').next().unwrap();
        assert_eq!(info.disk_type.to_string(), kind, "{name}: kind");
        assert!(info.warnings.is_empty(), "{name}: {:?}", info.warnings);
        if let Some(hash) = entry["content_sha256"].as_str() {
            let mut sha = Sha256::new();
            read_chain(&chain, |bytes| sha.update(bytes));
            let seen: String = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(seen, hash, "{name}: content");
            compared += 1;
        } else {
            let mut extents = Vec::new();
            chain[0].resolve_read(0, info.size, &mut extents).unwrap();
            assert_eq!(extents.len(), 1, "{name} is one run of zeros");
        }
        let report = check(FileStorage::open_read_only(&path).as_ref(), &OpenOptions::default());
        assert!(report.worst() <= Some(Severity::Warning), "{name}: {report}");
    }
    assert!(compared >= 10, "only {compared} disks were compared");
}

#[test]
fn every_vhdx_is_named_as_such() {
    let Some((folder, entries)) = expected() else { return };
    let plain = |entry: &&Value| text(entry, "path").ends_with(".vhdx");
    for entry in entries.iter().filter(plain) {
        let error = open(&folder.join(text(entry, "path"))).expect_err("a VHDX is no VHD");
        assert!(matches!(error, OpenError::IsVhdx), "{}: {error}", text(entry, "path"));
    }
}

#[test]
fn windows_writes_locators_as_understood_here() {
    let Some(folder) = fixtures() else { return };
    let image = open(&folder.join("dfvfs/ntfs-differential.vhd")).unwrap();
    let info = image.info();
    assert_eq!(info.disk_type, DiskType::Differencing);
    assert_eq!(info.creator_text(), "win");
    let link = info.parent.as_ref().unwrap();
    assert_eq!(link.locator(LocatorKind::Relative), Some(".\\ntfs-parent.vhd"));
    assert_eq!(link.locator(LocatorKind::Absolute), Some("C:\\Projects\\dfvfs\\test_data\\ntfs-parent.vhd"));
    assert_eq!(link.unicode_name, "C:\\Projects\\dfvfs\\test_data\\ntfs-parent.vhd");
    assert_eq!(info.end_of_metadata, 0x3000 + 0x10000, "Windows reserves 64 KiB for the relative path");
}

#[test]
fn the_size_rule_can_be_overridden() {
    let Some(folder) = fixtures() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let path = fixture_file(folder, "qemu/virtualpc-dynamic.vhd.bz2", scratch.path());
    let size = |size_rule| {
        let options = OpenOptions { size_rule, ..OpenOptions::default() };
        let image = Image::open(FileStorage::open_read_only(&path), &options).unwrap();
        (image.info().size, image.info().size_rule)
    };
    assert_eq!(
        size(SizeRule::Auto),
        (136_363_130_880, SizeRule::Chs),
        "Virtual PC never reached past the geometry"
    );
    assert_eq!(size(SizeRule::CurrentSize), (136_365_211_648, SizeRule::CurrentSize));
}

#[test]
fn writing_to_a_disk_of_windows_keeps_it_readable_for_others() {
    let Some(folder) = fixtures() else { return };
    if !have("7zz") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    for name in ["ntfs-parent.vhd", "ntfs-differential.vhd", "ntfs-dynamic.vhd", "ext2.vhd"] {
        fs::copy(folder.join("dfvfs").join(name), scratch.path().join(name)).unwrap();
        let path = scratch.path().join(name);
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        #[expect(clippy::permissions_set_readonly_false, reason = "a copy in a private folder")]
        permissions.set_readonly(false);
        fs::set_permissions(&path, permissions).unwrap();
    }
    for name in ["ntfs-differential.vhd", "ntfs-dynamic.vhd", "ext2.vhd"] {
        let path = scratch.path().join(name);
        let mut model = seven_zip(&path);
        let image = open_file(&path);
        for (sector, count) in [(0u64, 3usize), (190, 17), (4000, 200)] {
            let data = vec![0xa5; count * 512];
            crate::common::write(&image, sector * 512, &data).unwrap();
            model[sector as usize * 512..][..data.len()].copy_from_slice(&data);
        }
        image.close().unwrap();
        assert!(seven_zip(&path) == model, "{name}: 7-Zip reads what was written");
        if name != "ntfs-differential.vhd" && have("qemu-img") {
            assert!(qemu(&path) == model, "{name}: QEMU reads what was written");
        }
    }
}

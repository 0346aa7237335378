//! Damaged, foreign and hostile files: each is refused by name, or opened with a warning and repaired.

use std::sync::Arc;

use backstay_vhd::{
    DiskType, Image, OpenError, OpenOptions, Storage, VhdTime, Warning,
    check::{Severity, check},
    create::CreateKind,
    format::{
        footer::{Footer, FooterError},
        header::Header,
    },
    repair,
    testing::SimStorage,
};
use zerocopy::{
    FromBytes, IntoBytes,
    big_endian::{U32, U64},
};

use crate::common::*;

const SIZE: u64 = 3 << 20;
const MIB: usize = 1 << 20;

fn bytes_of(kind: CreateKind) -> Vec<u8> {
    create(&options(SIZE, kind)).to_bytes()
}

fn fixed() -> Vec<u8> {
    bytes_of(CreateKind::Fixed)
}

fn empty() -> Vec<u8> {
    bytes_of(CreateKind::Dynamic { block_size: MIB as u32 })
}

/// A dynamic disk with blocks 0 and 2, closed.
fn dynamic() -> Vec<u8> {
    let storage = create(&options(SIZE, CreateKind::Dynamic { block_size: MIB as u32 }));
    let image = open(&storage, None);
    write(&image, 0, &[1; 512]).unwrap();
    write(&image, 2 << 20, &[3; 1024]).unwrap();
    image.close().unwrap();
    storage.to_bytes()
}

fn try_open(bytes: &[u8]) -> Result<Image, OpenError> {
    Image::open(SimStorage::from_bytes(bytes), &OpenOptions::default())
}

fn refusal(bytes: &[u8]) -> OpenError {
    match try_open(bytes) {
        Ok(image) => panic!("{image:?} opened"),
        Err(error) => {
            let report = check(SimStorage::from_bytes(bytes).as_ref(), &OpenOptions::default());
            assert_eq!(report.worst(), Some(Severity::Error), "the check finds what opening finds: {report}");
            error
        }
    }
}

fn footer_at(bytes: &[u8], at: usize) -> Footer {
    Footer::read_from_bytes(&bytes[at..at + 512]).unwrap()
}

/// Changes the footer at the end and the copy, if there is one.
fn with_footer(mut bytes: Vec<u8>, edit: impl Fn(&mut Footer)) -> Vec<u8> {
    let end = bytes.len() - 512;
    for at in [0, end] {
        let mut footer = footer_at(&bytes, at);
        if footer.cookie == *b"conectix" {
            edit(&mut footer);
            bytes[at..at + 512].copy_from_slice(footer.sealed().as_bytes());
        }
    }
    bytes
}

fn with_header(mut bytes: Vec<u8>, edit: impl Fn(&mut Header)) -> Vec<u8> {
    let mut header = Header::read_from_bytes(&bytes[512..1536]).unwrap();
    edit(&mut header);
    bytes[512..1536].copy_from_slice(header.sealed().as_bytes());
    bytes
}

fn with_entry(mut bytes: Vec<u8>, block: usize, sector: u32) -> Vec<u8> {
    bytes[0x600 + block * 4..][..4].copy_from_slice(&sector.to_be_bytes());
    bytes
}

fn entry(bytes: &[u8], block: usize) -> u32 {
    u32::from_be_bytes(bytes[0x600 + block * 4..][..4].try_into().unwrap())
}

#[test]
fn what_is_no_vhd_is_named() {
    for bytes in [vec![], vec![0; 100], vec![0; 511], vec![0; 512], vec![0; MIB], b"conectix".repeat(8)] {
        let error = refusal(&bytes);
        assert!(matches!(error, OpenError::NotVhd), "{} bytes: {error}", bytes.len());
    }
    let mut vhdx = vec![0; MIB];
    vhdx[..8].copy_from_slice(b"vhdxfile");
    assert!(matches!(refusal(&vhdx), OpenError::IsVhdx));
}

#[test]
fn a_damaged_footer_without_a_copy_is_refused() {
    let mut bytes = fixed();
    let at = bytes.len() - 512 + 50;
    bytes[at] ^= 1;
    assert!(matches!(refusal(&bytes), OpenError::Footer(FooterError::BadChecksum { .. })));
    let mut bytes = dynamic();
    let end = bytes.len() - 512;
    (bytes[50], bytes[end + 50]) = (9, 9);
    assert!(matches!(refusal(&bytes), OpenError::Footer(FooterError::BadChecksum { .. })));
    let newer = with_footer(fixed(), |footer| footer.version = U32::new(0x0002_0000));
    assert!(matches!(refusal(&newer), OpenError::Footer(FooterError::UnsupportedVersion(0x0002_0000))));
}

#[test]
fn kinds_that_nothing_uses_are_refused() {
    for kind in [0, 1, 5, 6, 7, u32::MAX] {
        for bytes in [fixed(), dynamic()] {
            let bytes = with_footer(bytes, |footer| footer.disk_type = U32::new(kind));
            let error = refusal(&bytes);
            assert!(matches!(error, OpenError::UnsupportedType(found) if found == kind), "{kind}: {error}");
        }
    }
}

#[test]
fn an_interrupted_operation_of_xen_is_named() {
    for at_end in [true, false] {
        let mut bytes = dynamic();
        let at = if at_end { bytes.len() - 512 } else { 0 };
        bytes[at..at + 8].copy_from_slice(b"v_poison");
        let error = refusal(&bytes);
        assert!(
            matches!(error, OpenError::Poisoned) && error.to_string().contains("vhd-util revert"),
            "{error}"
        );
    }
}

#[test]
fn parts_of_a_split_disk_are_known_by_name() {
    for (name, refused) in
        [("a.v01", true), ("a.V64", true), ("a.vhd", false), ("v01", false), ("a.v1", false)]
    {
        let options = OpenOptions { name: Some(name.into()), ..OpenOptions::default() };
        let result = Image::open(SimStorage::from_bytes(&fixed()), &options);
        assert_eq!(matches!(result, Err(OpenError::SplitDisk)), refused, "{name}");
    }
}

#[test]
fn incomplete_files_are_refused() {
    // A fixed disk whose middle is missing.
    let bytes = fixed();
    let mut short = bytes[..MIB].to_vec();
    short.extend_from_slice(&bytes[bytes.len() - 512..]);
    assert!(matches!(refusal(&short), OpenError::Truncated { .. }));
    // A dynamic disk at every cut: refused, or (without any block) whole.
    let bytes = dynamic();
    for len in [1000, 1536, 0x600 + 4, 4096, MIB, MIB + 4096, bytes.len() - 600] {
        let error = refusal(&bytes[..len]);
        assert!(matches!(error, OpenError::Truncated { .. }), "cut at {len}: {error}");
        assert!(error.to_string().contains("incomplete"), "{error}");
    }
    // Only the footer is missing: nothing is lost.
    try_open(&bytes[..bytes.len() - 512]).expect("only the footer is missing");
}

#[test]
fn impossible_headers_are_refused() {
    let mut bytes = dynamic();
    bytes[600] ^= 1;
    assert!(matches!(refusal(&bytes), OpenError::Header { offset: 512, .. }));
    for size in [0, 1, 256, 513, 3 << 20, 512 << 20, 1 << 31, u32::MAX] {
        let bytes = with_header(dynamic(), |header| header.block_size = U32::new(size));
        assert!(matches!(refusal(&bytes), OpenError::BlockSize(found) if found == size), "{size}");
    }
    for entries in [0, 2] {
        let bytes = with_header(dynamic(), |header| header.max_table_entries = U32::new(entries));
        assert!(matches!(refusal(&bytes), OpenError::TableTooSmall { blocks: 3, .. }));
    }
    for offset in [u64::MAX, u64::MAX - 3, 1 << 40] {
        let table = with_header(dynamic(), |header| header.table_offset = U64::new(offset));
        assert!(matches!(refusal(&table), OpenError::Truncated { .. }), "{offset}");
        let header = with_footer(dynamic(), |footer| footer.data_offset = U64::new(offset));
        assert!(try_open(&header).is_err(), "{offset}");
    }
    let table = with_header(dynamic(), |header| header.max_table_entries = U32::new(u32::MAX));
    assert!(matches!(refusal(&table), OpenError::Truncated { .. }));
    let huge = with_footer(dynamic(), |footer| footer.current_size = U64::new(u64::MAX));
    assert!(matches!(refusal(&huge), OpenError::TooManyBlocks { .. }));
    let nothing = with_footer(dynamic(), |footer| footer.current_size = U64::new(511));
    assert!(matches!(refusal(&nothing), OpenError::Size(511)));
}

#[test]
fn blocks_that_share_bytes_are_refused() {
    let first = entry(&dynamic(), 0);
    for (what, sector) in [
        ("the same place", first),
        ("one sector further", first + 1),
        ("the footer copy", 0),
        ("the header", 2),
        ("the table", 3),
        ("from before the first block into it", first - 1),
    ] {
        let error = refusal(&with_entry(dynamic(), 1, sector));
        assert!(matches!(error, OpenError::Overlap { .. }), "{what}: {error}");
        let plan = repair::plan(
            SimStorage::from_bytes(&with_entry(dynamic(), 1, sector)).as_ref(),
            &OpenOptions::default(),
        );
        let plan = plan.unwrap();
        assert!(
            plan.steps.is_empty() && !plan.left.is_empty(),
            "{what}: nobody can tell whose the bytes are: {plan}"
        );
    }
}

#[test]
fn blocks_behind_the_end_are_absent_and_stay_so() {
    let bytes = with_entry(dynamic(), 1, 1_000_000);
    let image = try_open(&bytes).unwrap();
    assert_eq!(image.info().warnings, [Warning::BlocksBeyondEnd { count: 1, first: 1, repaired: false }]);
    assert_eq!(read(&image, 1 << 20, 512, &[]), [0; 512]);
    // A writable open corrects the table before the file can grow to where the entry points.
    let storage = SimStorage::from_bytes(&bytes);
    let image = open(&storage, None);
    assert_eq!(image.info().warnings, [Warning::BlocksBeyondEnd { count: 1, first: 1, repaired: true }]);
    assert_eq!(entry(&storage.power_cut(3).to_bytes(), 1), u32::MAX);
    // Without a footer behind it the same entry means that the file is cut off.
    assert!(matches!(refusal(&bytes[..bytes.len() - 512]), OpenError::Truncated { .. }));
    // And a block that is there in part is cut off in any case.
    let bytes = with_entry(dynamic(), 1, ((bytes.len() - MIB / 2) / 512) as u32);
    assert!(matches!(refusal(&bytes), OpenError::Truncated { .. }));
}

#[test]
fn a_lost_footer_is_replaced_by_its_copy_and_repaired() {
    let mut bytes = dynamic();
    let end = bytes.len() - 512;
    bytes[end + 20] ^= 0xff;
    let image = try_open(&bytes).unwrap();
    assert_eq!(image.info().warnings, [Warning::TrailingFooterBad { repaired: false }]);
    assert_eq!(read(&image, 2 << 20, 1024, &[]), [3; 1024]);

    let storage = SimStorage::from_bytes(&bytes);
    assert_eq!(open(&storage, None).info().warnings, [Warning::TrailingFooterBad { repaired: true }]);
    assert_eq!(storage.power_cut(1).to_bytes(), dynamic(), "as before the damage, durably");

    let storage = SimStorage::from_bytes(&bytes);
    let plan = repair::plan(storage.as_ref(), &OpenOptions::default()).unwrap();
    assert!(plan.left.is_empty(), "{plan}");
    plan.execute(storage.as_ref()).unwrap();
    assert_eq!(storage.to_bytes(), dynamic());
}

#[test]
fn a_lost_copy_is_a_warning_and_can_be_repaired() {
    let mut bytes = dynamic();
    bytes[..512].fill(0);
    let image = try_open(&bytes).unwrap();
    assert_eq!(image.info().warnings, [Warning::FooterCopyBad]);
    let storage = SimStorage::from_bytes(&bytes);
    let plan = repair::plan(storage.as_ref(), &OpenOptions::default()).unwrap();
    plan.execute(storage.as_ref()).unwrap();
    assert_eq!(storage.to_bytes(), dynamic());

    let mut bytes = dynamic();
    let copy = Footer { time_stamp: U32::new(77), ..footer_at(&bytes, 0) }.sealed();
    bytes[..512].copy_from_slice(copy.as_bytes());
    let image = try_open(&bytes).unwrap();
    assert_eq!(image.info().warnings, [Warning::FooterCopyDiffers]);
    assert_eq!(image.info().time_stamp, VhdTime(42), "the footer at the end counts");
}

#[test]
fn short_footers_of_old_virtual_pc_are_read() {
    for (kind, mut bytes) in [(DiskType::Fixed, fixed()), (DiskType::Dynamic, dynamic())] {
        assert_eq!(bytes.pop(), Some(0));
        let storage = SimStorage::from_bytes(&bytes);
        let image = open(&storage, None);
        assert_eq!(image.info().disk_type, kind);
        assert!(image.info().warnings.is_empty(), "{:?}", image.info().warnings);
        assert_eq!(image.info().size, SIZE);
        let expected = if kind == DiskType::Fixed { [0; 512] } else { [1; 512] };
        assert_eq!(read(&image, 0, 512, &[]), expected);
        write(&image, 1 << 20, &[5; 512]).unwrap();
        image.close().unwrap();
        let again = open_read_only(&storage);
        assert_eq!(read(&again, 1 << 20, 512, &[]), [5; 512]);
        assert_eq!(read(&again, 0, 512, &[]), expected);
        assert!(again.info().warnings.is_empty(), "{:?}", again.info().warnings);
    }
}

#[test]
fn a_disk_inside_a_disk_is_not_mistaken_for_it() {
    // A guest's disk image at the start of a fixed disk.
    let mut outer = fixed();
    let inner = with_footer(empty(), |footer| footer.unique_id = [9; 16]);
    outer[..inner.len()].copy_from_slice(&inner);
    let image = try_open(&outer).unwrap();
    assert_eq!((image.info().disk_type, image.info().size), (DiskType::Fixed, SIZE));
    assert_eq!(read(&image, 0, 512, &[]), &inner[..512]);
    // A guest's disk image at the very end of a dynamic disk whose own footer was lost.
    for inner in [fixed(), with_footer(empty(), |footer| footer.unique_id = [9; 16])] {
        let mut bytes = dynamic();
        bytes.truncate(bytes.len() - 512);
        let at = bytes.len() - 512;
        bytes[at..].copy_from_slice(&inner[inner.len() - 512..]);
        let image = try_open(&bytes).unwrap();
        assert_eq!(image.info().disk_type, DiskType::Dynamic);
        assert_eq!(image.info().warnings, [Warning::TrailingFooterForeign { repaired: false }]);
        assert_eq!(read(&image, 0, 512, &[]), [1; 512]);
    }
}

#[test]
fn flags_are_told() {
    let bytes = with_footer(dynamic(), |footer| {
        footer.saved_state = 1;
        footer.features = U32::new(3);
    });
    let image = try_open(&bytes).unwrap();
    assert!(image.info().saved_state && image.info().temporary);
    let report = check(SimStorage::from_bytes(&bytes).as_ref(), &OpenOptions::default());
    assert!(report.findings.iter().any(|finding| finding.rule == "saved-state"), "{report}");
}

#[test]
fn the_map_of_xen_is_left_alone_but_not_overwritten() {
    let mut bytes = with_footer(empty(), |footer| footer.creator_app = *b"tap\0");
    let footer = bytes.split_off(bytes.len() - 512);
    let at = bytes.len();
    let mut map = vec![0u8; 1024];
    map[..8].copy_from_slice(b"tdbatmap");
    map[8..16].copy_from_slice(&(at as u64 + 512).to_be_bytes());
    map[16..20].copy_from_slice(&1u32.to_be_bytes());
    map[512..].fill(0x5c);
    bytes.extend_from_slice(&map);
    bytes.extend_from_slice(&footer);
    let storage = SimStorage::from_bytes(&bytes);
    let image = open(&storage, None);
    assert_eq!(image.info().end_of_metadata, at as u64 + 1024);
    write(&image, 0, &[1; 512]).unwrap();
    image.close().unwrap();
    assert_eq!(storage.to_bytes()[at..at + 1024], map, "the map is as it was");
    // Without the creator it is just bytes.
    let other = with_footer(bytes, |footer| footer.creator_app = *b"win ");
    assert_eq!(try_open(&other).unwrap().info().end_of_metadata, at as u64);
}

#[test]
fn bad_locators_and_names_do_not_keep_a_disk_closed() {
    let bytes = bytes_of(differencing(SMALL_BLOCK));
    let far = with_header(bytes.clone(), |header| header.locators[0].data_offset = U64::new(u64::MAX - 5));
    assert_eq!(try_open(&far).unwrap().info().warnings, [Warning::BadLocator { slot: 0 }]);
    let long = with_header(bytes.clone(), |header| header.locators[1].data_length = U32::new(70_000));
    assert_eq!(try_open(&long).unwrap().info().warnings, [Warning::BadLocator { slot: 1 }]);
    let lone = with_header(bytes, |header| header.parent_name[0].set(0xd800));
    let image = try_open(&lone).unwrap();
    assert_eq!(image.info().parent.as_ref().unwrap().unicode_name, "\u{fffd}disks/base.vhd");
}

#[test]
fn a_locator_that_a_growing_file_catches_up_with_is_only_a_wrong_path() {
    let bytes = with_header(bytes_of(differencing(SMALL_BLOCK)), |header| {
        header.locators[1].data_offset = U64::new(0x2_0000);
    });
    let storage = SimStorage::from_bytes(&bytes);
    let image = open(&storage, None);
    assert_eq!(image.info().warnings, [Warning::BadLocator { slot: 1 }]);
    write(&image, 0, &[1; 512]).unwrap();
    image.close().unwrap();
    let image = open_read_only(&storage);
    assert_eq!(image.info().warnings, [Warning::BadLocator { slot: 1 }], "it points into block 0 now");
    assert_eq!(image.info().parent.as_ref().unwrap().locators[1].path, None);
    assert_eq!(read(&image, 0, 512, &[]), [1; 512]);
}

#[test]
fn a_damaged_copy_does_not_win_when_the_file_grows_to_where_it_points() {
    let mut bytes = dynamic();
    let mut copy = footer_at(&bytes, 0);
    copy.data_offset = U64::new(bytes.len() as u64 + 4096);
    copy.unique_id = [8; 16];
    bytes[..512].copy_from_slice(copy.sealed().as_bytes());
    let storage = SimStorage::from_bytes(&bytes);
    let image = open(&storage, None);
    write(&image, 1 << 20, &[2; 512]).unwrap();
    image.close().unwrap();
    let image = open_read_only(&storage);
    assert_eq!(image.info().warnings, [Warning::FooterCopyDiffers]);
    assert_eq!(read(&image, 1 << 20, 512, &[]), [2; 512]);
}

#[test]
fn requests_outside_of_the_rules_are_refused() {
    let storage = create(&options(SIZE, CreateKind::dynamic()));
    let image = open(&storage, None);
    let mut out = Vec::new();
    for (offset, len) in
        [(1, 512), (0, 511), (SIZE, 512), (SIZE - 512, 1024), (u64::MAX - 511, 512), (512, u64::MAX - 511)]
    {
        image.resolve_read(offset, len, &mut out).expect_err("outside or unaligned");
        write(&image, offset, &[])
            .and_then(|()| image.begin_zero(offset, len, &mut Default::default()))
            .expect_err("same");
    }
    image.resolve_read(SIZE, 0, &mut out).expect("nothing at the end is fine");
    let reader = open_read_only(&storage);
    write(&reader, 0, &[1; 512]).expect_err("read-only");
    image.close().unwrap();
    image.close().expect("closing twice is fine");
    write(&image, 0, &[1; 512]).expect_err("closed");
    image.flush().expect_err("closed");
}

#[test]
fn hostile_bytes_never_panic() {
    // Every byte of the metadata, changed in a few ways.
    let good = bytes_of(differencing(SMALL_BLOCK));
    let len = good.len();
    for at in (0..0x2020).chain(0x3000..0x3040).chain(len - 512..len) {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            // Checksums made right again, so that the change is looked at.
            let bytes = with_header(with_footer(bytes, |_| ()), |_| ());
            if let Ok(image) =
                Image::open(SimStorage::from_bytes(&bytes) as Arc<dyn Storage>, &OpenOptions::default())
            {
                let size = image.info().size;
                let mut out = Vec::new();
                let _may_fail = image.resolve_read(0, size.min(1 << 30), &mut out);
            }
        }
    }
}

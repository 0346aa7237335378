//! Plans as people read them, and where things are placed.

use backstay_vhd::{
    Chs, VhdTime,
    create::{self, CreateError, CreateKind, ParentSpec, relative_text},
    format::MAX_SIZE,
};

use crate::common::*;

fn plan_text(size: u64, kind: CreateKind) -> String {
    create::plan(&options(size, kind)).unwrap().to_string()
}

#[test]
fn a_fixed_disk() {
    assert_eq!(
        plan_text(10 << 20, CreateKind::Fixed),
        "make a fixed disk in a file of 10486272 bytes:
  set length to 10486272
  reserve space for 10486272 bytes
  write the footer at 0xa00000: 512 bytes
  flush
"
    );
}

#[test]
fn the_largest_dynamic_disk_is_a_small_file() {
    assert_eq!(
        plan_text(MAX_SIZE, CreateKind::dynamic()),
        "make a dynamic disk in a file of 4179968 bytes:
  set length to 4179968
  write the copy of the footer at 0x0: 512 bytes
  write the header at 0x200: 1024 bytes
  write the block allocation table at 0x600: 4177920 × 0xff
  write the footer at 0x3fc600: 512 bytes
  flush
"
    );
}

#[test]
fn a_differencing_disk_has_windows_placement() {
    assert_eq!(
        plan_text(127 << 30 >> 7, differencing(2 << 20)),
        "make a differencing disk in a file of 78336 bytes:
  set length to 78336
  write the copy of the footer at 0x0: 512 bytes
  write the header at 0x200: 1024 bytes
  write the block allocation table at 0x2000: 2048 × 0xff
  write the absolute parent locator at 0x1000: 30 bytes
  write the relative parent locator at 0x3000: 20 bytes
  write the footer at 0x13000: 512 bytes
  flush
"
    );
    // A table of more than a page moves what is behind it.
    let text = plan_text(MAX_SIZE, differencing(2 << 20));
    assert!(text.contains("relative parent locator at 0x3fe000"), "{text}");
}

#[test]
fn new_blocks_are_aligned_like_those_of_windows() {
    let storage = create(&options(64 << 20, differencing(2 << 20)));
    let image = open(&storage, None);
    for block in 0..3 {
        write(&image, block << 21, &[1; 512]).unwrap();
    }
    let bytes = storage.to_bytes();
    let entry = |block: usize| u32::from_be_bytes(bytes[0x2000 + block * 4..][..4].try_into().unwrap());
    assert_eq!([entry(0), entry(1), entry(2)], [159, 4263, 8367], "stride 4104, data at multiples of 4096");
}

#[test]
fn sizes_out_of_range_are_refused() {
    let refused = |size, kind| create::plan(&options(size, kind)).unwrap_err();
    assert_eq!(refused(0, CreateKind::Fixed), CreateError::UnalignedSize(0));
    assert_eq!(refused(1000, CreateKind::dynamic()), CreateError::UnalignedSize(1000));
    assert_eq!(refused(MAX_SIZE + 512, CreateKind::dynamic()), CreateError::TooLarge(MAX_SIZE + 512));
    for block_size in [0, 512, 256 << 10, 3 << 20, 128 << 20] {
        assert_eq!(refused(1 << 30, CreateKind::Dynamic { block_size }), CreateError::BlockSize(block_size));
    }
    let parent = ParentSpec { absolute: Some("x".repeat(40_000)), ..ParentSpec::default() };
    assert_eq!(refused(1 << 30, CreateKind::differencing(parent)), CreateError::PathTooLong(80_000));
}

#[test]
fn relative_paths_take_the_form_of_windows() {
    for (path, text) in [
        ("base.vhd", ".\\base.vhd"),
        ("../a/base.vhd", "..\\a\\base.vhd"),
        ("./a/b.vhd", ".\\a\\b.vhd"),
        (".\\b.vhd", ".\\b.vhd"),
        ("odd\\name.vhd", "./odd\\name.vhd"),
        ("../odd\\name.vhd", "../odd\\name.vhd"),
    ] {
        assert_eq!(relative_text(path), text);
    }
}

#[test]
fn a_long_parent_name_is_cut_to_the_file_name() {
    let long = format!("/{}/base.vhd", "d".repeat(300));
    let parent = ParentSpec { name: long, ..ParentSpec::default() };
    let storage = create(&options(1 << 20, CreateKind::differencing(parent)));
    let image = open_read_only(&storage);
    assert_eq!(image.info().parent.as_ref().unwrap().unicode_name, "base.vhd");
}

#[test]
fn geometry_is_that_of_the_specification() {
    // Sizes and geometries as QEMU and Virtual PC store them.
    for (size, chs) in [
        (4 << 20, (120, 4, 17)),
        (4_212_736, (121, 4, 17)),
        (1_079_296, (31, 4, 17)),
        (1_073_995_776, (2081, 16, 63)),
        (136_365_219_840, (65279, 16, 255)),
        (136_363_130_880, (65278, 16, 255)),
        (128 << 30, (65535, 16, 255)),
        (MAX_SIZE, (65535, 16, 255)),
    ] {
        let expected = Chs { cylinders: chs.0, heads: chs.1, sectors: chs.2 };
        assert_eq!(Chs::for_size(size), expected, "{size}");
        assert!(expected.bytes() <= size, "it rounds down");
    }
}

#[test]
fn times_count_from_2000() {
    assert_eq!(VhdTime::from_unix(946_684_800), VhdTime(0));
    assert_eq!(VhdTime::from_unix(0), VhdTime(0));
    assert_eq!(VhdTime::from_unix(i64::MAX), VhdTime(u32::MAX));
    assert_eq!(VhdTime(1).to_unix(), 946_684_801);
}

//! Files that break a rule are refused, with the offset and the rule; limits hold before memory is taken.

use std::sync::Arc;

use backstay_vhd::{
    Storage,
    check::Severity,
    testing::SimStorage,
    vhdx::{
        Image, OpenError, OpenOptions, Structure, Warning, WriteIds,
        check::check,
        create::{self, CreateError, CreateKind, CreateOptions},
    },
};
use uuid::Uuid;

use super::common::*;

const BAT_AT: u64 = 3 * MIB;
const METADATA_AT: u64 = 2 * MIB;
const SIZE: u64 = (4 << 30) + (5 << 20);

fn disk(kind: CreateKind) -> Arc<SimStorage> {
    create(&options(SIZE, kind))
}

fn refusal(storage: &Arc<SimStorage>) -> OpenError {
    let report = check(&as_storage(storage));
    let error = Image::open(&as_storage(storage), &OpenOptions::default()).expect_err("it is refused");
    assert_eq!(report.worst(), Some(Severity::Error), "the check finds it too: {error}");
    error
}

fn put(storage: &SimStorage, at: u64, bytes: &[u8]) {
    storage.write_at(bytes, at).unwrap();
}

/// Writes a table entry of a disk with 1 MiB blocks: the index counts the entries of sector bitmaps.
fn entry(storage: &SimStorage, index: u64, state: u64, mib: u64) {
    put(storage, BAT_AT + index * 8, &((mib << 20) | state).to_le_bytes());
}

/// Changes a region table, both copies, with the right sum.
fn regions(storage: &SimStorage, change: impl Fn(&mut [u8])) {
    for at in [192 << 10, 256 << 10] {
        let mut bytes = vec![0; 64 << 10];
        storage.read_at(&mut bytes, at).unwrap();
        change(&mut bytes);
        bytes[4..8].fill(0);
        let sum = crc32c::crc32c(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        put(storage, at, &bytes);
    }
}

fn breaks(error: &OpenError, what: Structure, word: &str) -> bool {
    matches!(error, OpenError::Invalid { what: found, rule, .. } if *found == what && rule.contains(word))
}

#[test]
fn what_is_no_vhdx_is_named() {
    for bytes in [vec![], vec![0; 100], vec![0; 1 << 20], b"conectix".repeat(200)] {
        assert!(matches!(refusal(&SimStorage::from_bytes(&bytes)), OpenError::NotVhdx));
    }
    let mut bytes = vec![0; 70 << 10];
    bytes[..8].copy_from_slice(b"vhdxfile");
    assert!(matches!(refusal(&SimStorage::from_bytes(&bytes)), OpenError::Truncated { .. }));
}

#[test]
fn the_header_with_the_larger_number_counts() {
    let storage = disk(CreateKind::Dynamic);
    let header = |at: u64| {
        let mut bytes = vec![0; 4096];
        storage.read_at(&mut bytes, at).unwrap();
        bytes
    };
    let (first, second) = (header(64 << 10), header(128 << 10));
    let seal = |mut bytes: Vec<u8>, sequence: u64, id: u8| {
        bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
        bytes[32] = id;
        bytes[4..8].fill(0);
        let sum = crc32c::crc32c(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    };
    let id = || open_read_only(&storage).info().data_write_guid.to_bytes_le()[0];
    put(&storage, 64 << 10, &seal(first.clone(), 9, 1));
    put(&storage, 128 << 10, &seal(second.clone(), 8, 2));
    assert_eq!(id(), 1);
    put(&storage, 128 << 10, &seal(second.clone(), u64::MAX, 3));
    assert_eq!(id(), 3);
    // Equal numbers: only as Disk2vhd has them.
    put(&storage, 128 << 10, &seal(first.clone(), 9, 1));
    assert_eq!(id(), 1);
    put(&storage, 128 << 10, &seal(first.clone(), 9, 2));
    assert!(breaks(&refusal(&storage), Structure::Header, "differ"));
    // One damaged: the other counts, and the next write heals it.
    put(&storage, 128 << 10, &[0xff; 512]);
    assert_eq!(id(), 1);
    assert!(matches!(
        open_read_only(&storage).info().warnings[..],
        [Warning::HeaderBad { offset: 131_072, .. }]
    ));
    let image = open(&storage, 4, None);
    write(&image, 0, &[1; 512]).unwrap();
    image.close().unwrap();
    assert_eq!(open_read_only(&storage).info().warnings, []);
    put(&storage, 64 << 10, &[0xff; 512]);
    put(&storage, 128 << 10, &[0xff; 512]);
    assert!(matches!(refusal(&storage), OpenError::NoHeader { .. }));
}

#[test]
fn region_tables_stand_in_for_each_other() {
    for damaged in [192u64 << 10, 256 << 10] {
        let storage = disk(CreateKind::Dynamic);
        put(&storage, damaged + 17, &[0xee; 3]);
        let image = open_read_only(&storage);
        assert!(
            matches!(image.info().warnings[..], [Warning::RegionTableBad { offset, .. }] if offset == damaged)
        );
        assert_eq!(check(&as_storage(&storage)).worst(), Some(Severity::Warning));
    }
    let storage = disk(CreateKind::Dynamic);
    put(&storage, 192 << 10, &[0; 8]);
    put(&storage, 256 << 10, &[0; 8]);
    assert!(breaks(&refusal(&storage), Structure::RegionTable, "regi"));
}

#[test]
fn regions_that_cannot_be_are_refused() {
    // Entries of 32 bytes from 16 on: table first, metadata second.
    let with = |change: fn(&mut [u8])| {
        let storage = disk(CreateKind::Dynamic);
        regions(&storage, change);
        refusal(&storage)
    };
    let error = with(|bytes| bytes[8..12].copy_from_slice(&1_000_000_000u32.to_le_bytes()));
    assert!(breaks(&error, Structure::RegionTable, "1000000000 entries"), "{error}");
    let error = with(|bytes| bytes[8] = 1);
    assert!(breaks(&error, Structure::RegionTable, "does not list the metadata"), "{error}");
    // 2^60 + 1 MiB
    let error = with(|bytes| bytes[32 + 7] = 0x10);
    assert!(breaks(&error, Structure::RegionTable, "whole MiB"), "{error}");
    let error = with(|bytes| bytes[32] = 1);
    assert!(breaks(&error, Structure::RegionTable, "whole MiB"), "{error}");
    // The table where the metadata is; the metadata where the log is.
    let error = with(|bytes| bytes[34] = 0x20);
    assert!(matches!(error, OpenError::Overlap { .. }), "{error}");
    let error = with(|bytes| bytes[66] = 0x10);
    assert!(matches!(error, OpenError::Overlap { .. }), "{error}");
    let error = with(|bytes| bytes[35] = 0x10);
    assert!(matches!(error, OpenError::Truncated { .. }), "{error}");
    // An unknown region: refused only if it is required.
    let unknown = |required: u8| {
        let storage = disk(CreateKind::Dynamic);
        storage.set_len(5 * MIB).unwrap();
        regions(&storage, |bytes| {
            bytes[8] = 3;
            bytes[80..96].fill(7);
            bytes[96..104].copy_from_slice(&(4 * MIB).to_le_bytes());
            bytes[104..108].copy_from_slice(&(1u32 << 20).to_le_bytes());
            bytes[108] = required;
        });
        storage
    };
    assert!(matches!(refusal(&unknown(1)), OpenError::Unknown { .. }));
    let storage = unknown(0);
    let image = open(&storage, 1, None);
    write(&image, 0, &[1; 512]).unwrap();
    image.close().unwrap();
    let mut sector = [0; 512];
    storage.read_at(&mut sector, 5 * MIB).unwrap();
    assert_eq!(sector, [1; 512], "the block lies behind the region that nobody understands");
}

#[test]
fn metadata_that_cannot_be_are_refused() {
    let with = |at: u64, bytes: &[u8]| {
        let storage = disk(child());
        put(&storage, METADATA_AT + at, bytes);
        refusal(&storage)
    };
    // The table: entries of 32 bytes from 32 on, 16 id, 4 offset, 4 length, 4 flags.
    assert!(breaks(&with(0, b"metadate"), Structure::MetadataTable, "begin"));
    assert!(breaks(&with(10, &60_000u16.to_le_bytes()), Structure::MetadataTable, "60000 entries"));
    assert!(breaks(&with(48, &5u32.to_le_bytes()), Structure::MetadataTable, "inside the table"));
    assert!(breaks(&with(52, &u32::MAX.to_le_bytes()), Structure::MetadataTable, "more than 1 MiB"));
    assert!(breaks(&with(52, &(1u32 << 20).to_le_bytes()), Structure::MetadataTable, "behind the region"));
    assert!(breaks(&with(48 + 32, &0x1_0004u32.to_le_bytes()), Structure::MetadataTable, "overlap"));
    let mut twice = vec![0; 16];
    disk(child()).read_at(&mut twice, METADATA_AT + 32).unwrap();
    assert!(breaks(&with(64, &twice), Structure::MetadataTable, "twice"));
    assert!(matches!(with(32 + 4 * 32, &[9; 16]), OpenError::Unknown { .. }));
    let incomplete = Uuid::from_u128(0x71cc_85f0_1b69_4e28_9558_c3bf_83ae_75d3).to_bytes_le();
    assert!(matches!(with(32 + 4 * 32, &incomplete), OpenError::Incomplete { .. }));
    // The items, from 64 KiB on: parameters, size, sector sizes, id; the locator in a page of its own.
    let items = 64 << 10;
    for block_size in [0u32, 1 << 19, 3 << 20, 512 << 20] {
        assert!(breaks(&with(items, &block_size.to_le_bytes()), Structure::MetadataItem, "block size"));
    }
    for size in [0u64, 511, SIZE + 1, (64 << 40) + 512, u64::MAX] {
        assert!(breaks(&with(items + 8, &size.to_le_bytes()), Structure::MetadataItem, "disk size"));
    }
    for at in [16, 20] {
        assert!(breaks(
            &with(items + at, &520u32.to_le_bytes()),
            Structure::MetadataItem,
            "neither 512 nor 4096"
        ));
    }
    let locator = items + 4096;
    assert!(breaks(&with(locator, &[1; 16]), Structure::ParentLocator, "type"));
    assert!(breaks(&with(locator + 18, &[0xff, 0xff]), Structure::ParentLocator, "too few"));
    assert!(breaks(&with(locator + 20, &[0xff; 4]), Structure::ParentLocator, "not inside"));
    assert!(breaks(&with(locator + 20 + 8, &[3, 0]), Structure::ParentLocator, "odd"));
    let without_linkage = disk(child());
    // The first key becomes another word.
    put(&without_linkage, METADATA_AT + locator + 20 + 5 * 12, b"q");
    assert!(breaks(&refusal(&without_linkage), Structure::ParentLocator, "no parent_linkage"));
}

/// A size that needs a larger table than there is.
#[test]
fn a_table_that_is_too_small_is_refused() {
    let storage = disk(CreateKind::Dynamic);
    put(&storage, METADATA_AT + (64 << 10) + 8, &(64u64 << 40).to_le_bytes());
    assert!(breaks(&refusal(&storage), Structure::Bat, "fit into its region"));
}

#[test]
fn table_entries_that_cannot_be_are_refused() {
    let with = |kind: CreateKind, entries: &[(u64, u64, u64)]| {
        let storage = disk(kind);
        storage.set_len(8 * MIB).unwrap();
        for (index, state, mib) in entries {
            entry(&storage, *index, *state, *mib);
        }
        storage
    };
    let dynamic = |entries: &[(u64, u64, u64)]| refusal(&with(CreateKind::Dynamic, entries));
    assert!(breaks(&dynamic(&[(3, 4, 0)]), Structure::Bat, "state 4"));
    assert!(breaks(&dynamic(&[(3, 6, 0)]), Structure::Bat, "lies at 0"));
    assert!(breaks(&dynamic(&[(3, 6, (1 << 44) - 1)]), Structure::Bat, "no block can be"));
    assert!(matches!(dynamic(&[(3, 6, 8)]), OpenError::Truncated { needed, .. } if needed == 9 * MIB));
    for taken in 1..4 {
        assert!(matches!(dynamic(&[(0, 6, taken)]), OpenError::Overlap { .. }), "place {taken}");
    }
    let error = dynamic(&[(0, 6, 5), (4097, 6, 5)]);
    assert!(error.to_string().contains("block 0 and block 4096 overlap at offset 5242880"), "{error}");
    let child = |entries: &[(u64, u64, u64)]| refusal(&with(child(), entries));
    // The sector bitmap of the first chunk is entry 4096.
    assert!(breaks(&child(&[(3, 7, 5)]), Structure::Bat, "no sector bitmap"));
    assert!(breaks(&child(&[(4096, 7, 5)]), Structure::Bat, "neither 0 nor 6"));
    assert!(matches!(child(&[(3, 7, 5), (4096, 6, 5)]), OpenError::Overlap { .. }));
    assert!(matches!(child(&[(4096, 6, 9)]), OpenError::Truncated { .. }));
    // A block in parts without a parent is a whole block, and bitmap entries mean nothing.
    let storage = with(CreateKind::Dynamic, &[(3, 7, 5), (4096, 6, 5)]);
    assert_eq!(open_read_only(&storage).allocated_blocks(), 1);
}

/// What no block has is zeros or the parent's, never what lies in the file.
#[test]
fn every_state_reads_as_it_must() {
    let states = [0u64, 1, 2, 3, 5, 6, 7];
    for kind in [CreateKind::Dynamic, child()] {
        let differencing = kind != CreateKind::Dynamic;
        let storage = disk(kind);
        storage.set_len(16 * MIB).unwrap();
        put(&storage, 4 * MIB, &vec![0x11; 12 << 20]);
        for (index, state) in (0u64..).zip(states) {
            entry(&storage, index, state, 4 + index);
        }
        // The bitmap: in the last block only the first and the tenth sector are here. Lowest bit first.
        entry(&storage, 4096, 6, 14);
        put(&storage, 14 * MIB, &[0; 8192]);
        put(&storage, 14 * MIB + 6 * 256, &[0b0000_0001, 0b0000_0010]);
        let image = open_read_only(&storage);
        let sector = |block: u64, sector: u64| {
            let seen = read(&image, (block << 20) + sector * 512, 512, |_, out| out.fill(0xaa));
            assert!(seen.iter().all(|byte| *byte == seen[0]));
            seen[0]
        };
        let absent = if differencing { 0xaa } else { 0 };
        let seen: Vec<u8> = (0..7).map(|block| sector(block, 5)).collect();
        let partial = if differencing { 0xaa } else { 0x11 };
        assert_eq!(seen, [absent, 0, 0, 0, 0, 0x11, partial]);
        assert_eq!((sector(6, 0), sector(6, 9), sector(6, 8)), (0x11, 0x11, partial));
        assert_eq!(sector(4097, 0), absent, "behind the border of chunks");
        let zeros = Warning::ZeroBlocksWithOffset { count: 1, first: 2 };
        assert_eq!(image.info().warnings, [zeros], "Hyper-V refuses this one");
        // Written, old places are zeros around the write, and nobody else's.
        let image = open(&storage, 1, None);
        for block in 0..7u64 {
            write(&image, (block << 20) + 1024, &[0x55; 512]).unwrap();
        }
        image.close().unwrap();
        let image = open_read_only(&storage);
        let byte =
            |block: u64, at: u64| read(&image, (block << 20) + at * 512, 512, |_, out| out.fill(0xaa))[0];
        for (block, around) in (0u64..).zip([absent, 0, 0, 0, 0, 0x11, partial]) {
            assert_eq!((byte(block, 2), byte(block, 5)), (0x55, around), "block {block}");
        }
        assert!(check(&as_storage(&storage)).is_usable());
    }
}

#[test]
fn requests_and_sessions_that_cannot_be_are_refused() {
    let storage = create(&CreateOptions { logical_sector: 4096, ..options(MIB, CreateKind::Dynamic) });
    let image = open(&storage, 1, None);
    assert!(write(&image, 512, &[0; 4096]).unwrap_err().to_string().contains("4096"));
    assert!(write(&image, MIB - 4096, &[0; 8192]).is_err());
    image.close().unwrap();
    image.close().unwrap();
    assert!(write(&image, 0, &[0; 4096]).is_err() && image.flush().is_err());
    let same = Uuid::from_u128(5);
    for write in [
        WriteIds { file_write: same, data_write: same, log: Uuid::from_u128(6) },
        WriteIds { log: Uuid::nil(), ..ids(1) },
    ] {
        let options = OpenOptions { write: Some(write), shadow: None };
        assert!(matches!(Image::open(&as_storage(&storage), &options), Err(OpenError::Ids)));
    }
    let bad = |change: fn(&mut CreateOptions)| {
        let mut asked = options(MIB + 512, CreateKind::Dynamic);
        change(&mut asked);
        create::plan(&asked).unwrap_err()
    };
    assert!(matches!(bad(|o| o.size = 0), CreateError::UnalignedSize { .. }));
    assert!(matches!(bad(|o| o.logical_sector = 4096), CreateError::UnalignedSize { .. }));
    assert!(matches!(bad(|o| o.size = (64 << 40) + 512), CreateError::TooLarge(_)));
    assert!(matches!(bad(|o| o.block_size = Some(3 << 20)), CreateError::BlockSize(_)));
    assert!(matches!(bad(|o| o.physical_sector = 520), CreateError::SectorSize(520)));
    assert!(matches!(bad(|o| o.data_write_guid = Uuid::nil()), CreateError::Ids));
}

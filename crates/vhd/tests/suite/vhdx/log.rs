//! Logs as others may leave them: torn, cut, hostile; and ours, byte by byte.

use std::sync::Arc;

use backstay_vhd::{
    Storage,
    testing::SimStorage,
    vhdx::{Image, OpenError, OpenOptions, Structure, Warning, create::CreateKind},
};
use uuid::Uuid;

use super::common::*;

const LOG_AT: u64 = MIB;
const BAT_AT: u64 = 3 * MIB;
const PAGE: usize = 4096;
const LOG_GUID: Uuid = Uuid::from_u128(0x1096);
const SIZE: u64 = 8 << 20;

/// What an entry asks for.
enum Ask {
    Page(u64, Vec<u8>),
    Zeros(u64, u64),
}

struct Entry {
    sequence: u64,
    tail: u32,
    flushed: u64,
    last: u64,
    asks: Vec<Ask>,
}

impl Entry {
    /// Written from the specification, not with the code that is tested.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        let mut sectors = Vec::new();
        let count = self.asks.len() as u32;
        for (index, ask) in self.asks.iter().enumerate() {
            let mut raw = vec![0; 32];
            match ask {
                Ask::Page(offset, page) => {
                    raw[..4].copy_from_slice(b"desc");
                    raw[4..8].copy_from_slice(&page[4092..]);
                    raw[8..16].copy_from_slice(&page[..8]);
                    raw[16..24].copy_from_slice(&offset.to_le_bytes());
                    let mut sector = b"data".to_vec();
                    sector.extend(&self.sequence.to_le_bytes()[4..]);
                    sector.extend(&page[8..4092]);
                    sector.extend(&self.sequence.to_le_bytes()[..4]);
                    sectors.extend(sector);
                }
                Ask::Zeros(offset, len) => {
                    raw[..4].copy_from_slice(b"zero");
                    raw[8..16].copy_from_slice(&len.to_le_bytes());
                    raw[16..24].copy_from_slice(&offset.to_le_bytes());
                }
            }
            raw[24..].copy_from_slice(&self.sequence.to_le_bytes());
            bytes[64 + index * 32..][..32].copy_from_slice(&raw);
        }
        bytes.extend(sectors);
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(b"loge");
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.tail.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..28].copy_from_slice(&count.to_le_bytes());
        bytes[32..48].copy_from_slice(&LOG_GUID.to_bytes_le());
        bytes[48..56].copy_from_slice(&self.flushed.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.last.to_le_bytes());
        let sum = crc32c::crc32c(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }
}

fn entry(sequence: u64, tail: u32, asks: Vec<Ask>) -> Entry {
    Entry { sequence, tail, flushed: 4 * MIB, last: 4 * MIB, asks }
}

/// A disk whose header names the log.
fn with_log(kind: CreateKind, entries: &[(u64, Vec<u8>)]) -> Arc<SimStorage> {
    let storage = create(&options(SIZE, kind));
    let mut header = vec![0; PAGE];
    storage.read_at(&mut header, 128 << 10).unwrap();
    header[4..8].fill(0);
    header[8..16].copy_from_slice(&7u64.to_le_bytes());
    header[48..64].copy_from_slice(&LOG_GUID.to_bytes_le());
    let sum = crc32c::crc32c(&header);
    header[4..8].copy_from_slice(&sum.to_le_bytes());
    storage.write_at(&header, 64 << 10).unwrap();
    for (at, bytes) in entries {
        storage.write_at(bytes, LOG_AT + at).unwrap();
    }
    storage.flush().unwrap();
    storage
}

fn refusal(storage: &Arc<SimStorage>) -> OpenError {
    let reader = Image::open(&as_storage(storage), &OpenOptions::default()).expect_err("it is refused");
    let before = storage.to_bytes();
    let write = OpenOptions { write: Some(ids(1)), shadow: None };
    let writer = Image::open(&as_storage(storage), &write).expect_err("a writer refuses it too");
    assert_eq!(reader.to_string(), writer.to_string());
    assert!(storage.to_bytes() == before, "what is refused is not touched");
    reader
}

fn is_log(error: &OpenError, word: &str) -> bool {
    matches!(error, OpenError::Invalid { what: Structure::Log, rule, .. } if rule.contains(word))
}

/// A table with one block of zeros behind everything, so that a reader finds data.
fn table(state_and_place: &[u64]) -> Vec<u8> {
    let mut page: Vec<u8> = state_and_place.iter().flat_map(|word| word.to_le_bytes()).collect();
    page.resize(PAGE, 0);
    page
}

fn blocks(storage: &Arc<SimStorage>) -> u32 {
    let reader = open_read_only(storage).allocated_blocks();
    let writer = open(&storage.kill(), 1, None);
    assert_eq!(writer.allocated_blocks(), reader, "both see the same log");
    reader
}

fn full(mib: u64) -> u64 {
    (mib << 20) | 6
}

#[test]
fn the_sequence_with_the_newest_head_is_replayed_from_its_tail() {
    let page =
        |blocks: u64| Ask::Page(BAT_AT, table(&(0..blocks).map(|block| full(4 + block)).collect::<Vec<_>>()));
    let grown =
        |sequence, tail, blocks| Entry { last: 8 * MIB, ..entry(sequence, tail, vec![page(blocks)]) }.bytes();
    let p = PAGE as u64;
    // One after the other.
    let log = [(0, grown(5, 0, 1)), (2 * p, grown(6, 0, 2))];
    assert_eq!(blocks(&with_log(CreateKind::Dynamic, &log)), 2);
    // A gap in the numbers ends it; what comes later has a tail that is not there.
    let log = [(0, grown(5, 0, 1)), (2 * p, grown(7, 0, 3))];
    assert_eq!(blocks(&with_log(CreateKind::Dynamic, &log)), 1);
    // The second sequence is newer, and whole.
    let log = [(0, grown(5, 0, 1)), (40 * p, grown(9, 40 * PAGE as u32, 3))];
    assert_eq!(blocks(&with_log(CreateKind::Dynamic, &log)), 3);
    // Around the end of the ring: one entry is split by it.
    let split = grown(6, 254 * PAGE as u32, 2);
    let log = [
        (254 * p, grown(5, 254 * PAGE as u32, 1)[..PAGE].to_vec()),
        (255 * p, grown(5, 254 * PAGE as u32, 1)[PAGE..].to_vec()),
        (0, split),
    ];
    assert_eq!(blocks(&with_log(CreateKind::Dynamic, &log)), 2);
    let mut wrapped = grown(5, 255 * PAGE as u32, 1);
    let rest = wrapped.split_off(PAGE);
    let log = [(255 * p, wrapped), (0, rest), (p, grown(6, 255 * PAGE as u32, 4))];
    assert_eq!(blocks(&with_log(CreateKind::Dynamic, &log)), 4);
}

#[test]
fn a_torn_entry_ends_the_log() {
    let page =
        |blocks: u64| Ask::Page(BAT_AT, table(&(0..blocks).map(|block| full(4 + block)).collect::<Vec<_>>()));
    let grown = |sequence, blocks| Entry { last: 8 * MIB, ..entry(sequence, 0, vec![page(blocks)]) }.bytes();
    for torn in [0, 5, 20, 70, 4090, 4096, 4100, 8191] {
        let mut second = grown(6, 2);
        second[torn] ^= 0x40;
        let log = [(0, grown(5, 1)), (2 * PAGE as u64, second)];
        assert_eq!(blocks(&with_log(CreateKind::Dynamic, &log)), 1, "byte {torn}");
    }
    // The data sector is of another entry, and the sum is right all the same.
    let mut second = Entry { last: 8 * MIB, ..entry(6, 0, vec![page(2)]) }.bytes();
    second[PAGE + 4092] ^= 1;
    second[4..8].fill(0);
    let sum = crc32c::crc32c(&second);
    second[4..8].copy_from_slice(&sum.to_le_bytes());
    let log = [(0, grown(5, 1)), (2 * PAGE as u64, second)];
    assert_eq!(blocks(&with_log(CreateKind::Dynamic, &log)), 1);
}

#[test]
fn zeros_and_pages_count_in_their_order() {
    let page =
        |blocks: u64| Ask::Page(BAT_AT, table(&(0..blocks).map(|block| full(4 + block)).collect::<Vec<_>>()));
    let last = 8 * MIB;
    let first = Entry { last, ..entry(1, 0, vec![page(3), Ask::Zeros(BAT_AT, MIB)]) };
    assert_eq!(blocks(&with_log(CreateKind::Dynamic, &[(0, first.bytes())])), 0);
    let first = Entry { last, ..entry(1, 0, vec![Ask::Zeros(BAT_AT, MIB), page(3)]) };
    assert_eq!(blocks(&with_log(CreateKind::Dynamic, &[(0, first.bytes())])), 3);
    let first = Entry { last, ..entry(1, 0, vec![page(3)]) };
    let second =
        Entry { last, ..entry(2, 0, vec![Ask::Zeros(BAT_AT - 4096, 8192), Ask::Zeros(BAT_AT + 4096, 4096)]) };
    let log = [(0, first.bytes()), (2 * PAGE as u64, second.bytes())];
    assert_eq!(blocks(&with_log(CreateKind::Dynamic, &log)), 0);
}

#[test]
fn a_header_that_names_a_log_without_entries_is_refused() {
    assert!(is_log(&refusal(&with_log(CreateKind::Dynamic, &[])), "has none"));
    let other = Entry { flushed: 0, ..entry(1, 4096, Vec::new()) };
    assert!(is_log(&refusal(&with_log(CreateKind::Dynamic, &[(0, other.bytes())])), "has none"));
}

#[test]
fn a_file_that_is_shorter_than_its_log_says_is_refused() {
    let cut = Entry { flushed: 5 * MIB, last: 5 * MIB, ..entry(1, 0, Vec::new()) };
    let error = refusal(&with_log(CreateKind::Dynamic, &[(0, cut.bytes())]));
    assert!(matches!(error, OpenError::Truncated { needed, .. } if needed == 5 * MIB), "{error}");
    // What need not be durable may be missing: those are zeros.
    let longer = Entry { last: 5 * MIB, ..entry(1, 0, vec![Ask::Page(BAT_AT, table(&[full(4)]))]) };
    let storage = with_log(CreateKind::Dynamic, &[(0, longer.bytes())]);
    let reader = open_read_only(&storage);
    assert_eq!(read(&reader, 0, 1 << 20, no_parent), vec![0; 1 << 20], "a block behind the end of the file");
    assert_eq!(reader.info().file_len, 5 * MIB);
    open(&storage, 1, None);
    assert_eq!(storage.len().unwrap(), 5 * MIB, "a writer makes the file as long as the log says");
}

/// A hostile log could overwrite the headers that protect it, itself, or the user's data.
#[test]
fn a_log_that_changes_what_is_not_metadata_is_refused() {
    let page = || vec![1; PAGE];
    for target in [0, 64 << 10, 128 << 10, (192 << 10) - 4096] {
        let log = [(0, entry(1, 0, vec![Ask::Page(target, page())]).bytes())];
        assert!(is_log(&refusal(&with_log(CreateKind::Dynamic, &log)), "headers"), "{target}");
    }
    for (target, word) in [
        (LOG_AT, "itself"),
        (2 * MIB - 4096, "itself"),
        (4 * MIB, "behind the end"),
        (1 << 50, "behind the end"),
    ] {
        let log = [(0, entry(1, 0, vec![Ask::Page(target, page())]).bytes())];
        assert!(is_log(&refusal(&with_log(CreateKind::Dynamic, &log)), word), "{target}");
    }
    for (from, len, word) in [
        (0, 4 * MIB, "headers"),
        (192 << 10, MIB, "itself"),
        (2 * MIB, 1 << 60, "behind the end"),
        (u64::MAX - 4095, 4096, "behind the end"),
    ] {
        let log = [(0, entry(1, 0, vec![Ask::Zeros(from, len)]).bytes())];
        assert!(is_log(&refusal(&with_log(CreateKind::Dynamic, &log)), word), "{from} {len}");
    }
    // A page of a block that the table names.
    let asks = vec![Ask::Page(BAT_AT, table(&[full(4)])), Ask::Page(4 * MIB + 4096, page())];
    let log = [(0, Entry { last: 5 * MIB, ..entry(1, 0, asks) }.bytes())];
    assert!(is_log(&refusal(&with_log(CreateKind::Dynamic, &log)), "the data of block 0"));
    let huge = Entry { last: 1 << 60, ..entry(1, 0, Vec::new()) };
    assert!(is_log(&refusal(&with_log(CreateKind::Dynamic, &[(0, huge.bytes())])), "asks for a file"));
}

/// Region tables and metadata may be in the log too.
#[test]
fn metadata_in_the_log_count() {
    let storage = create(&options(SIZE, CreateKind::Dynamic));
    let mut items = vec![0; PAGE];
    storage.read_at(&mut items, 2 * MIB + (64 << 10)).unwrap();
    assert_eq!(items[8..16], SIZE.to_le_bytes(), "the size is the second item");
    items[8..16].copy_from_slice(&(6 * MIB).to_le_bytes());
    let log = [(0, entry(1, 0, vec![Ask::Page(2 * MIB + (64 << 10), items)]).bytes())];
    let storage = with_log(CreateKind::Dynamic, &log);
    assert_eq!(open_read_only(&storage).info().size, 6 * MIB);
    open(&storage, 1, None);
    let info = open_read_only(&storage).info().clone();
    assert_eq!((info.size, info.warnings.len()), (6 * MIB, 0));
}

/// A writer that dies while it replays leaves a file that replays to the same.
#[test]
fn a_replay_may_be_interrupted_anywhere() {
    let build = || {
        let storage = create(&options(SIZE, CreateKind::Dynamic));
        let image = open(&storage, 1, None);
        for block in 0..6u8 {
            write(&image, u64::from(block) << 20, &[block + 1; 512]).unwrap();
        }
        image.flush().unwrap();
        write(&image, 6 << 20, &[9; 512]).unwrap();
        storage.kill()
    };
    for die_after in 0..12 {
        for seed in 0..30 {
            let storage = build();
            storage.die_after(die_after);
            let options = OpenOptions { write: Some(ids(2)), shadow: None };
            let opened = Image::open(&as_storage(&storage), &options);
            let after = storage.power_cut(seed);
            let image = open_read_only(&after);
            for block in 0..6u8 {
                let seen = read(&image, u64::from(block) << 20, 512, no_parent);
                assert_eq!(
                    seen,
                    [block + 1; 512],
                    "death after {die_after}, seed {seed} ({})",
                    opened.is_ok()
                );
            }
            let last = read(&image, 6 << 20, 512, no_parent);
            assert!(last == [9; 512] || last == [0; 512], "a write that was not flushed is there or not");
        }
    }
}

/// Entries as they lie in a log of ours: offset, length, tail, sequence number, pages, flushed and last length.
fn entries_of(storage: &SimStorage) -> Vec<(u64, u64, u64, u64, u32, u64, u64)> {
    let mut found = Vec::new();
    for at in (0..MIB).step_by(PAGE) {
        let mut page = vec![0; PAGE];
        storage.read_at(&mut page, LOG_AT + at).unwrap();
        if page.starts_with(b"loge") {
            let u32_at = |from: usize| u32::from_le_bytes(page[from..from + 4].try_into().unwrap());
            let u64_at = |from: usize| u64::from_le_bytes(page[from..from + 8].try_into().unwrap());
            found.push((
                at,
                u32_at(8).into(),
                u32_at(12).into(),
                u64_at(16),
                u32_at(24),
                u64_at(48),
                u64_at(56),
            ));
        }
    }
    found
}

#[test]
fn our_entries_tell_the_truth_about_the_file() {
    let storage = create(&options(64 << 30, CreateKind::Dynamic));
    let image = open(&storage, 1, None);
    // One request over many blocks in three pages of the table: one entry.
    let mut ticket = backstay_vhd::WriteTicket::new();
    image.begin_write((510 << 20) + 512, 520 << 20, &mut ticket).unwrap();
    image.complete_write(&ticket).unwrap();
    let entries = entries_of(&storage);
    let [(_, first_len, _, _, 0, start, _), (_, _, _, _, pages, flushed, last)] = entries[..] else {
        panic!("an empty entry and one with all pages were expected: {entries:?}")
    };
    assert_eq!((first_len, pages), (4096, 3));
    assert_eq!((start, flushed), (4 * MIB, 4 * MIB), "nothing that was added is durable yet");
    assert_eq!(last, storage.len().unwrap());
    assert!(last >= 4 * MIB + (521 << 20), "all blocks lie inside");
    image.flush().unwrap();
    write(&image, 5 << 30, &[1; 512]).unwrap();
    let (_, _, _, _, _, flushed, _) = *entries_of(&storage).last().unwrap();
    assert_eq!(flushed, last, "now it is");
}

#[test]
fn the_ring_is_used_again_and_again() {
    let storage = create(&options(64 << 30, child()));
    let image = open(&storage, 1, None);
    let mut flushed = Vec::new();
    for block in 0..900u64 {
        write(&image, (block * 3) << 20, &[block as u8 | 1; 512]).unwrap();
        if block % 7 == 0 {
            image.flush().unwrap();
            flushed.push(block);
        }
    }
    let newest = entries_of(&storage).iter().map(|entry| entry.3).max().unwrap();
    assert!(newest > 900, "{newest} entries went through a log that holds 128");
    let seen = |storage: &Arc<SimStorage>, block: u64| {
        read(&open_read_only(storage), (block * 3) << 20, 512, |_, out| out.fill(0))
    };
    for seed in 0..20 {
        let after = storage.power_cut(seed);
        for block in flushed.iter().rev().take(40) {
            assert_eq!(seen(&after, *block), [*block as u8 | 1; 512], "seed {seed}, block {block}");
        }
    }
    assert!(
        open_read_only(&storage.kill())
            .info()
            .warnings
            .iter()
            .any(|w| matches!(w, Warning::LogReplayed { .. }))
    );
    image.close().unwrap();
    assert_eq!(open_read_only(&storage).info().warnings, []);
    for block in 0..900 {
        assert_eq!(seen(&storage, block), [block as u8 | 1; 512]);
    }
}

//! Bodies of the fuzz targets of this format. Each puts its bytes where a structure belongs, with checksums that are right,
//! into a disk that is otherwise whole: nothing panics, nothing grows without bound, and what opens obeys its rules.

use std::sync::Arc;

use uuid::Uuid;

use super::{
    Image, OpenOptions, WriteIds,
    check::check,
    create::{self, CreateKind, CreateOptions},
    header::Header,
    layout::{
        HEADER_LEN, HEADERS_AT, MIB, PAGE, PAGE_LEN, REGION_TABLE_LEN, REGION_TABLES_AT, checksum, to_usize,
    },
    locator::{self, Locator},
    metadata::LOCATOR_AT,
    region,
};
use crate::{
    Source, Storage, WriteTicket,
    parent::{ParentSearch, candidates},
    testing::SimStorage,
};

const LOG_AT: u64 = MIB;
const METADATA_AT: u64 = 2 * MIB;
const BAT_AT: u64 = 3 * MIB;
const LOG_GUID: Uuid = Uuid::from_u128(0x106);
/// Bytes of a disk that are looked at from either end.
const WINDOW: u64 = 64 << 20;

/// A header.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn header(data: &[u8]) {
    let mut bytes = [0; HEADER_LEN];
    overlay(&mut bytes, data);
    seal(&mut bytes);
    if let Ok(header) = Header::parse(&bytes) {
        let again = Header::parse(&header.sealed()).ok();
        assert_eq!(
            again.map(|again| again.log_guid()),
            Some(header.log_guid()),
            "a header is read as written"
        );
    }
    let storage = disk(true);
    put(&storage, HEADERS_AT[0], &bytes);
    exercise(&storage);
}

/// A region table.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn regions(data: &[u8]) {
    let mut bytes = vec![0; REGION_TABLE_LEN];
    overlay(&mut bytes, data);
    region::reseal(&mut bytes);
    let storage = disk(false);
    for at in REGION_TABLES_AT {
        put(&storage, at, &bytes);
    }
    exercise(&storage);
}

/// The metadata table, and its items from 64 KiB of the input on.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn metadata(data: &[u8]) {
    let storage = disk(true);
    let (table, items) = data.split_at(data.len().min(512));
    put(&storage, METADATA_AT, table);
    put(&storage, METADATA_AT + (64 << 10), items.get(..items.len().min(8 << 10)).unwrap_or_default());
    exercise(&storage);
}

/// A log: pages, of which those that begin an entry get the checksum and the id that belong there.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn log(data: &[u8]) {
    let mut bytes = data.get(..data.len().min(1 << 20)).unwrap_or_default().to_vec();
    bytes.resize(bytes.len().next_multiple_of(PAGE_LEN), 0);
    for at in (0..bytes.len()).step_by(PAGE_LEN) {
        seal_entry(bytes.get_mut(at..).unwrap_or_default());
    }
    let storage = disk(true);
    let mut header = Header::new(Uuid::from_u128(1), Uuid::from_u128(2), LOG_AT, 1 << 20);
    header.log_guid = LOG_GUID.to_bytes_le();
    header.sequence.set(9);
    put(&storage, HEADERS_AT[0], &header.sealed());
    put(&storage, LOG_AT, &bytes);
    exercise(&storage);
}

/// A block allocation table; an odd first byte makes the disk a child.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn bat(data: &[u8]) {
    let Some((first, table)) = data.split_first() else { return };
    let storage = disk(first & 1 != 0);
    put(&storage, BAT_AT, table.get(..table.len().min(64 << 10)).unwrap_or_default());
    // Room for blocks that lie behind the metadata.
    let grown = storage.set_len(BAT_AT + MIB + (32 << 20));
    assert!(grown.is_ok(), "memory takes all writes");
    exercise(&storage);
}

/// A parent locator, and the paths it leads to.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn locator(data: &[u8]) {
    if let Ok(parsed) = locator::parse(data, 0) {
        if parsed.too_long().is_none() {
            let again = locator::parse(&parsed.to_bytes(), 0);
            let same = |again: &Locator| again.linkage == parsed.linkage && again.linkage2 == parsed.linkage2;
            // Texts that are empty behind a NUL are not stored again.
            assert!(again.as_ref().map_or(true, same), "a locator is read as it was written");
        }
        let search = ParentSearch { child_folder: "/vm/disks".into(), ..ParentSearch::default() };
        for candidate in candidates(&parsed.link(), &search) {
            assert!(candidate.path.starts_with("/"), "a candidate starts at the root");
        }
    }
    let storage = disk(true);
    put(&storage, METADATA_AT + u64::from(LOCATOR_AT), data.get(..data.len().min(400)).unwrap_or_default());
    exercise(&storage);
}

/// A small disk, whole but for what the target puts into it.
fn disk(child: bool) -> Arc<SimStorage> {
    let linkage = Uuid::from_u128(7);
    let parent = Locator { linkage, relative: Some("a.vhdx".repeat(20)), ..Locator::default() };
    let options = CreateOptions {
        size: (4 << 30) + 3 * MIB,
        kind: if child { CreateKind::Differencing(parent) } else { CreateKind::Dynamic },
        block_size: Some(1 << 20),
        logical_sector: 512,
        physical_sector: 4096,
        disk_id: Uuid::from_u128(3),
        file_write_guid: Uuid::from_u128(1),
        data_write_guid: Uuid::from_u128(2),
    };
    let storage = SimStorage::new();
    let made = create::plan(&options).map(|plan| plan.execute(storage.as_ref()));
    assert!(matches!(made, Ok(Ok(()))), "the options are valid");
    storage
}

fn put(storage: &SimStorage, at: u64, bytes: &[u8]) {
    let done = storage.write_at(bytes, at);
    assert!(done.is_ok(), "memory takes all writes");
}

fn overlay(bytes: &mut [u8], data: &[u8]) {
    for (to, from) in bytes.iter_mut().zip(data) {
        *to = *from;
    }
}

fn seal(bytes: &mut [u8]) {
    let sum = checksum(bytes, 4).to_le_bytes();
    if let Some(slot) = bytes.get_mut(4..8) {
        slot.copy_from_slice(&sum);
    }
}

/// Makes the entry at the start of `bytes` valid, if it is one.
fn seal_entry(bytes: &mut [u8]) {
    if !bytes.starts_with(b"loge") {
        return;
    }
    if let Some(slot) = bytes.get_mut(32..48) {
        slot.copy_from_slice(&LOG_GUID.to_bytes_le());
    }
    let length = bytes.get(8..12).and_then(|field| field.first_chunk::<4>()).copied().unwrap_or_default();
    if let Some(entry) = bytes.get_mut(..to_usize(u64::from(u32::from_le_bytes(length)))) {
        seal(entry);
    }
}

/// What holds for every file.
fn exercise(storage: &Arc<SimStorage>) {
    let shared: Arc<dyn Storage> = Arc::clone(storage) as _;
    let report = check(&shared);
    let _printed = report.to_string();
    let before = storage.operations();
    let reader = Image::open(&shared, &OpenOptions::default());
    assert_eq!(storage.operations(), before, "a reader changes nothing");
    let Ok(reader) = reader else {
        assert!(!report.is_usable(), "the check finds why a file does not open");
        return;
    };
    assert!(report.is_usable(), "what opens is usable: {report}");
    let size = reader.info().size;
    let len = storage.len().unwrap_or(0);
    read_window(&reader, len, 0, size.min(WINDOW));
    let start = size - size.min(WINDOW);
    read_window(&reader, len, start, size - start);
    write_and_reopen(storage, size);
}

/// The parts of a read cover it, and data lies inside the file.
fn read_window(image: &Image, len: u64, offset: u64, window: u64) {
    let mut extents = Vec::new();
    let unit = u64::from(image.info().logical_sector);
    let window = window / unit * unit;
    if image.resolve_read(offset.next_multiple_of(unit), window, &mut extents).is_err() {
        return;
    }
    assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), window, "the parts cover the range");
    for extent in extents {
        if let Source::Data { file_offset } = extent.source {
            assert!(file_offset >= MIB && file_offset + extent.len <= len, "data lies inside the file");
        }
    }
}

/// Two sectors written survive a clean close, the file still opens, and its log is empty.
fn write_and_reopen(storage: &Arc<SimStorage>, size: u64) {
    let shared: Arc<dyn Storage> = Arc::clone(storage) as _;
    let id = |number| Uuid::from_u128(number);
    let write = Some(WriteIds { file_write: id(0xa), data_write: id(0xb), log: id(0xc) });
    let Ok(image) = Image::open(&shared, &OpenOptions { write, shadow: None }) else { return };
    let unit = u64::from(image.info().logical_sector);
    let places = [0, size - unit];
    let content = vec![0xe7; to_usize(unit)];
    for offset in places {
        let mut ticket = WriteTicket::new();
        if image.begin_write(offset, unit, &mut ticket).is_err() {
            return;
        }
        for extent in ticket.extents() {
            assert_eq!(extent.len, unit, "one sector is one part");
            put(storage, extent.file_offset, &content);
        }
        if image.complete_write(&ticket).is_err() {
            return;
        }
    }
    if image.close().is_err() {
        return;
    }
    let again = match Image::open(&shared, &OpenOptions::default()) {
        Ok(again) => again,
        Err(error) => unreachable!("a closed disk does not open: {error}"),
    };
    assert_eq!(again.info().size, size, "the size is as before");
    assert!(storage.len().is_ok_and(|len| len.is_multiple_of(PAGE)), "a closed file ends with a whole page");
    for offset in places {
        let mut extents = Vec::new();
        let mut sector = vec![0; to_usize(unit)];
        let found = again.resolve_read(offset, unit, &mut extents).is_ok();
        let [only] = extents.as_slice() else { unreachable!("one sector is one part ({found})") };
        let Source::Data { file_offset } = only.source else { unreachable!("the sector was written") };
        assert!(storage.read_at(&mut sector, file_offset).is_ok() && sector == content, "the sector is kept");
    }
}

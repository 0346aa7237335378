//! Bodies of the fuzz targets: whatever a file holds, nothing panics, nothing grows without bound, and what opens obeys its
//! own rules. `fuzz/` runs them; a test replays their corpora.

use std::{
    path::{Component, Path},
    sync::Arc,
};

use uuid::Uuid;

use crate::{
    Image, LocatorKind, OpenOptions, ParentLink, ParentLocator, SizeRule, Source, Storage, VhdTime,
    WriteTicket,
    check::check,
    create::relative_text,
    format::{
        footer::{COOKIE, FOOTER_LEN, Footer},
        header::{self, HEADER_LEN, Header},
        locator::encode_utf16le,
    },
    parent::{ParentSearch, PathMapping, candidates},
    repair,
    testing::SimStorage,
};

/// Bytes of a disk that are looked at from either end.
const WINDOW: u64 = 64 << 20;

/// A footer.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn footer(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<FOOTER_LEN>() else { return };
    let resealed = reseal_footer(bytes);
    for bytes in [bytes, &resealed] {
        if let Ok(footer) = Footer::parse(bytes) {
            assert_eq!(&footer.to_bytes(), bytes, "a footer is written as it was read");
            for rule in [SizeRule::Auto, SizeRule::Chs, SizeRule::CurrentSize] {
                let (size, applied) = rule.apply(&footer);
                assert!(
                    size == footer.current_size.get() || size == footer.chs().bytes(),
                    "one of the two sizes"
                );
                assert_ne!(applied, SizeRule::Auto, "the rule is named");
            }
        }
    }
}

/// A dynamic header.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn dynamic_header(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<HEADER_LEN>() else { return };
    for bytes in [*bytes, reseal_header(bytes)] {
        if let Ok(header) = Header::parse(&bytes) {
            assert!(!header.name().contains('\0'), "a name ends at the first NUL");
            for entry in &header.locators {
                assert!(entry.reserved_bytes() >= u64::from(entry.data_length.get()), "the text has room");
            }
        }
    }
}

/// Texts of parent locators, and the paths they lead to.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn locators(data: &[u8]) {
    let kinds = [
        LocatorKind::Relative,
        LocatorKind::Absolute,
        LocatorKind::Relative8Bit,
        LocatorKind::Absolute8Bit,
        LocatorKind::MacUrl,
        LocatorKind::MacAlias,
    ];
    let locators = kinds.iter().enumerate().map(|(slot, kind)| {
        let path = kind.decode(data);
        ParentLocator { slot, kind: *kind, path, offset: 0, reserved: 512 }
    });
    let text = String::from_utf8_lossy(data).into_owned();
    let stored = relative_text(&text);
    let decoded = LocatorKind::Relative.decode(&encode_utf16le(&stored));
    assert_eq!(decoded.as_deref(), stored.split('\0').next(), "a stored path is read as it was written");
    let unique_id = Uuid::from_u128(1);
    let link = ParentLink {
        unique_id,
        time_stamp: VhdTime(0),
        unicode_name: text.clone(),
        locators: locators.collect(),
    };
    let search = ParentSearch {
        child_folder: "/vm/disks".into(),
        root: None,
        known: vec![(unique_id, "/known".into())],
        path_map: vec![PathMapping { from: text.chars().take(5).collect(), to: "/mapped".into() }],
    };
    for candidate in candidates(&link, &search) {
        let up =
            candidate.path.components().any(|part| matches!(part, Component::ParentDir | Component::CurDir));
        assert!(!up, "`..` is resolved before a root is compared");
        assert!(
            candidate.path.starts_with("/"),
            "a candidate starts at the root: {}",
            candidate.path.display()
        );
        assert_ne!(candidate.path, Path::new("/vm/disks/.."), "the folder itself is no disk");
    }
}

/// A whole file: as it is, and with its checksums made right so that what is behind them is looked at.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn open_image(data: &[u8]) {
    image(data);
    let mut bytes = data.to_vec();
    reseal_in(&mut bytes);
    if bytes != data {
        image(&bytes);
    }
}

fn image(bytes: &[u8]) {
    let storage: Arc<dyn Storage> = SimStorage::from_bytes(bytes);
    let options = OpenOptions::default();
    let report = check(storage.as_ref(), &options);
    let _printed = report.to_string();
    let Ok(image) = Image::open(Arc::clone(&storage), &options) else {
        assert!(!report.is_usable(), "the check finds why a file does not open");
        return;
    };
    assert!(report.is_usable(), "what opens is usable: {report}");
    let size = image.info().size;
    read_window(&image, bytes.len() as u64, 0, size.min(WINDOW));
    read_window(&image, bytes.len() as u64, size - size.min(WINDOW), size.min(WINDOW));
    if let Ok(plan) = repair::plan(storage.as_ref(), &options) {
        let repaired = SimStorage::from_bytes(bytes);
        plan.execute(repaired.as_ref())
            .unwrap_or_else(|error| unreachable!("memory takes all writes: {error}"));
        assert!(Image::open(repaired, &options).is_ok(), "a repair keeps a usable disk usable: {plan}");
    }
    write_and_reopen(bytes, size);
}

/// The parts of a read cover it, and data lies inside the file.
fn read_window(image: &Image, len: u64, offset: u64, window: u64) {
    let mut extents = Vec::new();
    if image.resolve_read(offset, window, &mut extents).is_err() {
        return;
    }
    assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), window, "the parts cover the range");
    for extent in extents {
        if let Source::Data { file_offset } = extent.source {
            assert!(file_offset + extent.len <= len, "data lies inside the file");
        }
    }
}

/// Two sectors written survive a clean close, and the file still opens.
fn write_and_reopen(bytes: &[u8], size: u64) {
    let storage = SimStorage::from_bytes(bytes);
    let options = OpenOptions { writable: true, ..OpenOptions::default() };
    let Ok(image) = Image::open(Arc::clone(&storage) as Arc<dyn Storage>, &options) else { return };
    let places = [0, size - 512];
    for offset in places {
        let mut ticket = WriteTicket::new();
        if image.begin_write(offset, 512, &mut ticket).is_err() {
            return;
        }
        for extent in ticket.extents() {
            assert_eq!(extent.len, 512, "one sector is one part");
            if storage.write_at(&[0xe7; 512], extent.file_offset).is_err() {
                return;
            }
        }
        if image.complete_write(&ticket).is_err() {
            return;
        }
    }
    if image.close().is_err() {
        return;
    }
    let again = match Image::open(Arc::clone(&storage) as Arc<dyn Storage>, &OpenOptions::default()) {
        Ok(again) => again,
        Err(error) => unreachable!("a closed disk does not open: {error}"),
    };
    assert_eq!(again.info().size, size, "the size is as before");
    for offset in places {
        let mut extents = Vec::new();
        let mut sector = [0; 512];
        let found = again.resolve_read(offset, 512, &mut extents).is_ok();
        let [only] = extents.as_slice() else { unreachable!("one sector is one part ({found})") };
        let Source::Data { file_offset } = only.source else { unreachable!("the sector was written") };
        assert!(
            storage.read_at(&mut sector, file_offset).is_ok() && sector == [0xe7; 512],
            "the sector is kept"
        );
    }
}

fn reseal_footer(bytes: &[u8; FOOTER_LEN]) -> [u8; FOOTER_LEN] {
    use zerocopy::FromBytes;
    Footer::read_from_bytes(bytes).map_or(*bytes, |footer| footer.sealed().to_bytes())
}

fn reseal_header(bytes: &[u8; HEADER_LEN]) -> [u8; HEADER_LEN] {
    use zerocopy::{FromBytes, IntoBytes};
    let mut sealed = *bytes;
    if let Ok(header) = Header::read_from_bytes(bytes) {
        sealed.copy_from_slice(header.sealed().as_bytes());
    }
    sealed
}

/// Footers at both ends and a header right behind the first get the checksums that belong to them.
fn reseal_in(bytes: &mut [u8]) {
    let end = bytes.len().saturating_sub(FOOTER_LEN);
    for at in [0, end] {
        let Some(slot) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<FOOTER_LEN>) else {
            continue;
        };
        if slot.starts_with(&COOKIE) {
            *slot = reseal_footer(slot);
        }
    }
    if let Some(slot) = bytes.get_mut(FOOTER_LEN..).and_then(<[u8]>::first_chunk_mut::<HEADER_LEN>)
        && slot.starts_with(&header::COOKIE)
    {
        *slot = reseal_header(slot);
    }
}

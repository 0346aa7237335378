//! What changes who a disk is, and how children follow.

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};

use backstay_vhd::{
    LayerFormat, MetaError, VhdTime,
    parent::{ParentGate, ParentIdentity, ParentSearch, PathMapping},
    vhdx::{Image, Locator, OpenOptions, create::CreateKind, parent},
};
use uuid::Uuid;

use super::common::*;

const SIZE: u64 = 4 << 20;

/// Children name their parent by the DataWriteGuid: it may change only when what a user sees does.
#[test]
fn the_identity_changes_with_the_first_write_and_not_before() {
    let storage = create(&options(SIZE, CreateKind::Dynamic));
    let original = open_read_only(&storage).data_write_guid();
    let bytes = storage.to_bytes();
    let image = open(&storage, 1, None);
    image.flush().unwrap();
    image.close().unwrap();
    assert!(storage.to_bytes() == bytes, "a session without a write changes no byte");

    let image = open(&storage, 2, None);
    write(&image, 0, &[1; 512]).unwrap();
    let during = image.data_write_guid();
    write(&image, SIZE - 512, &[2; 512]).unwrap();
    image.close().unwrap();
    let info = open_read_only(&storage).info().clone();
    assert_ne!(info.data_write_guid, original);
    assert_eq!(info.data_write_guid, ids(2).data_write);
    assert_eq!(info.data_write_guid, during, "once per session");
    assert_eq!(info.file_write_guid, ids(2).file_write);

    // Before a child is made of a disk that goes on living, its identity is fixed.
    let image = open(&storage, 3, None);
    let promised = LayerFormat::settle_identity(&image).unwrap();
    write(&image, 512, &[3; 512]).unwrap();
    image.close().unwrap();
    assert_eq!(open_read_only(&storage).data_write_guid(), promised);
}

#[test]
fn a_replay_does_not_change_the_identity() {
    let storage = create(&options(SIZE, CreateKind::Dynamic));
    let image = open(&storage, 1, None);
    write(&image, 0, &[1; 512]).unwrap();
    let storage = storage.kill();
    let replayed = open(&storage, 2, None);
    replayed.close().unwrap();
    let info = open_read_only(&storage).info().clone();
    assert_eq!(info.data_write_guid, ids(1).data_write, "the content is what the first session made");
    assert_eq!(info.file_write_guid, ids(2).file_write, "the file is not");
}

#[test]
fn paths_are_changed_without_changing_the_identity() {
    let storage = create(&options(SIZE, child()));
    let original = open_read_only(&storage).data_write_guid();
    let long = "x".repeat(20_000);
    let paths = ["b.vhdx", &long, "somewhere else\\parent of äö.vhdx", "b.vhdx"];
    for (session, path) in (1..).zip(paths) {
        let moved = Locator { relative: Some(format!("..\\{path}")), ..locator() };
        let image = open(&storage, session, None);
        image.set_parent(moved.clone()).unwrap();
        assert_eq!(image.parent(), Some(moved.clone()));
        // Durable on return: whatever the power cut takes.
        for seed in 0..20 {
            let after = storage.power_cut(seed);
            assert_eq!(open_read_only(&after).parent(), Some(moved.clone()), "seed {seed}");
        }
        image.close().unwrap();
        assert_eq!(open_read_only(&storage).parent(), Some(moved));
    }
    assert_eq!(open_read_only(&storage).data_write_guid(), original, "its own children do not notice");
    let image = open(&storage, 9, None);
    let endless = Locator { relative: Some("x".repeat(90_000)), ..locator() };
    assert!(matches!(image.set_parent(endless), Err(MetaError::LocatorTooLong(_))));
    assert!(matches!(open_read_only(&storage).set_parent(locator()), Err(MetaError::ReadOnly)));
}

/// At every moment of a merge, whatever a power cut takes, the child opens with the parent as it is.
#[test]
fn a_merge_may_be_interrupted_anywhere() {
    for die_after in 0..40 {
        for seed in 0..6 {
            interrupted(die_after, seed, None)
                .unwrap_or_else(|error| panic!("{die_after}, seed {seed}: {error}"));
        }
    }
}

#[test]
fn a_merge_that_forgets_to_announce_the_new_id_durably_is_caught() {
    // Three begin the session of the child; the next one makes the id durable that the parent is about to get.
    let caught = (10..40).any(|die_after| (0..10).any(|seed| interrupted(die_after, seed, Some(3)).is_err()));
    assert!(caught, "no seed notices that the flush of the announced id is missing");
}

/// Both files lie on one machine: it dies at one moment, counted in changes of either. `forgets` is a flush of the child.
fn interrupted(die_after: u64, seed: u64, forgets: Option<u64>) -> Result<(), String> {
    let parent_storage = create(&options(SIZE, CreateKind::Dynamic));
    let before = open_read_only(&parent_storage).data_write_guid();
    let kind = CreateKind::Differencing(Locator { linkage: before, ..locator() });
    let child_storage = create(&options(SIZE, kind));
    child_storage.die_after(die_after);
    if let Some(flush) = forgets {
        child_storage.swallow_flush(flush);
    }
    let done = (|| {
        let child = open(&child_storage, 1, None);
        child.announce_parent_change(ids(2).data_write)?;
        let left = die_after.saturating_sub(child_storage.operations());
        parent_storage.die_after(left);
        let parent = open(&parent_storage, 2, None);
        write(&parent, 0, &[5; 512])?;
        parent.close()?;
        child.confirm_parent_change()?;
        child.close()
    })();
    let (child, parent) = (child_storage.power_cut(seed), parent_storage.power_cut(seed + 1));
    let child =
        Image::open(&as_storage(&child), &OpenOptions::default()).map_err(|error| error.to_string())?;
    let parent =
        Image::open(&as_storage(&parent), &OpenOptions::default()).map_err(|error| error.to_string())?;
    parent::check(child.info(), parent.info()).map_err(|error| error.to_string())?;
    let locator = child.parent().unwrap();
    if done.is_ok() && (locator.linkage, locator.linkage2) != (ids(2).data_write, None) {
        return Err(format!("it is done, and the child names {locator:?}"));
    }
    Ok(())
}

#[test]
fn a_parent_that_was_written_is_told_from_the_right_one() {
    let storage = create(&options(SIZE, CreateKind::Dynamic));
    let before = open_read_only(&storage).data_write_guid();
    let child = create(&options(SIZE, CreateKind::Differencing(Locator { linkage: before, ..locator() })));
    let child = open_read_only(&child);
    assert!(parent::check(child.info(), open_read_only(&storage).info()).is_ok());
    let image = open(&storage, 1, None);
    write(&image, 0, &[1; 512]).unwrap();
    image.close().unwrap();
    let error = parent::check(child.info(), open_read_only(&storage).info()).unwrap_err();
    assert!(error.to_string().contains("was written to"), "{error}");
    assert!(!Locator { linkage2: None, ..locator() }.accepts(Uuid::nil()), "zeros match nothing");
}

/// Files of that path and identity.
struct Files(Vec<(PathBuf, Uuid)>);

impl ParentGate for Files {
    fn real_path(&self, path: &Path) -> io::Result<PathBuf> {
        let found = self.0.iter().any(|(file, _)| file == path);
        if found { Ok(path.to_owned()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
    fn match_case(&self, _: &Path) -> io::Result<Option<PathBuf>> {
        Ok(None)
    }
    fn identify(&self, path: &Path) -> Result<ParentIdentity, Box<dyn Error + Send + Sync>> {
        let unique_id = self.0.iter().find(|(file, _)| file == path).map(|(_, id)| *id).unwrap();
        Ok(ParentIdentity { unique_id, modified: Some(VhdTime(1)) })
    }
}

#[test]
fn the_parent_is_found_by_either_linkage_and_by_no_other() {
    let next = Uuid::from_u128(0x77);
    let locator = Locator { linkage2: Some(next), ..locator() };
    let map = |from: &str, to: &str| PathMapping { from: from.into(), to: to.into() };
    let search = ParentSearch {
        child_folder: "/vm".into(),
        path_map: vec![
            map("C:\\", "/c"),
            map("\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}", "/volume"),
        ],
        ..ParentSearch::default()
    };
    let relative = || PathBuf::from("/vm/base.vhdx");
    let volume = || PathBuf::from("/volume/disks/base.vhdx");
    let absolute = || PathBuf::from("/c/disks/base.vhdx");
    let stranger = Uuid::from_u128(1);
    for id in [PARENT, next] {
        for (files, expected) in [
            (vec![(relative(), id), (volume(), id), (absolute(), id)], relative()),
            (vec![(relative(), stranger), (volume(), id), (absolute(), id)], volume()),
            (vec![(absolute(), id)], absolute()),
        ] {
            let found = parent::find(&locator, &search, &Files(files)).unwrap();
            assert_eq!(found.path, expected);
        }
    }
    let error = parent::find(&locator, &search, &Files(vec![(relative(), stranger)])).unwrap_err();
    assert!(error.to_string().contains("another disk"), "{error}");
}

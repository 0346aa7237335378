//! Another parent: the header is whole after a power cut at every point, and right for every reader afterwards.

use std::sync::Arc;

use backstay_vhd::{
    Image, OpenOptions, Storage, VhdTime,
    check::{Severity, check},
    create::{CreateKind, CreateOptions, ParentSpec, plan},
    testing::{MemShadow, Rng, SimStorage},
};
use uuid::Uuid;

const SIZE: u64 = 3 << 20;

fn parent(id: u128, path: &str) -> ParentSpec {
    ParentSpec {
        unique_id: Uuid::from_u128(id),
        time_stamp: VhdTime(0),
        name: path.rsplit('/').next().unwrap().to_owned(),
        absolute: Some(path.to_owned()),
        relative: Some(path.trim_start_matches('/').to_owned()),
    }
}

/// A child of parent 1 with a block of content, closed.
fn child() -> Arc<SimStorage> {
    let storage = SimStorage::new();
    let kind = CreateKind::Differencing { block_size: 512 << 10, parent: parent(1, "/disks/one.vhd") };
    let options = CreateOptions { size: SIZE, kind, unique_id: Uuid::from_u128(9), time_stamp: VhdTime(1) };
    plan(&options).unwrap().execute(storage.as_ref()).unwrap();
    let image = open(&storage).unwrap();
    write(&image, 5, 7);
    image.close().unwrap();
    storage
}

fn open(storage: &Arc<SimStorage>) -> Result<Image, String> {
    let shadow = Some(MemShadow::new() as Arc<dyn backstay_vhd::Shadow>);
    let options = OpenOptions { writable: true, shadow, ..OpenOptions::default() };
    Image::open(Arc::clone(storage) as Arc<dyn Storage>, &options).map_err(|error| error.to_string())
}

fn write(image: &Image, sector: u64, byte: u8) {
    let mut ticket = backstay_vhd::WriteTicket::new();
    image.begin_write(sector * 512, 512, &mut ticket).unwrap();
    image.storage().write_at(&[byte; 512], ticket.extents()[0].file_offset).unwrap();
    image.complete_write(&ticket).unwrap();
}

fn read(image: &Image, sector: u64) -> Option<u8> {
    let mut extents = Vec::new();
    image.resolve_read(sector * 512, 512, &mut extents).unwrap();
    let backstay_vhd::Source::Data { file_offset } = extents[0].source else { return None };
    let mut bytes = [0; 512];
    image.storage().read_at(&mut bytes, file_offset).unwrap();
    Some(bytes[0])
}

/// The parent that the file names; an error if it names none, or half of one.
fn named(image: &Image) -> Result<u128, String> {
    let link = image.info().parent.clone().ok_or("no parent")?;
    let id = link.unique_id.as_u128();
    let wanted = parent(id, ["", "/disks/one.vhd", LONG, "/three.vhd"][usize::try_from(id).unwrap_or(0)]);
    let texts: Vec<_> = link.locators.iter().filter_map(|locator| locator.path.clone()).collect();
    let relative = backstay_vhd::create::relative_text(&wanted.relative.clone().unwrap());
    if texts != [wanted.absolute.unwrap(), relative] || link.unicode_name != wanted.name {
        return Err(format!("parent {id} is named {texts:?}, {}", link.unicode_name));
    }
    Ok(id)
}

const LONG: &str = "/disks/in/a/folder/that/is/deeper/than/the/other/one/two with a longer name.vhd";

/// Power goes somewhere while the disk gets two other parents in turn, and blocks meanwhile.
fn crash(seed: u64, arm: impl Fn(&SimStorage, &mut Rng)) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let storage = child();
    let image = open(&storage)?;
    if rng.one_in(2) {
        write(&image, 2000, 8);
        image.flush().unwrap();
    }
    arm(&storage, &mut rng);
    let mut done = 1;
    for (id, path) in [(2, LONG), (3, "/three.vhd")] {
        if image.reparent(&parent(id, path)).is_err() {
            break;
        }
        done = id;
    }
    let after = storage.power_cut(seed);
    let image = open(&after)?;
    let found = named(&image)?;
    if found != done && found != done + 1 {
        return Err(format!("parent {done} was set, and the file names {found}"));
    }
    if read(&image, 5) != Some(7) {
        return Err("the content is gone".to_owned());
    }
    // Whatever was left half made, the next time is complete, and new blocks start empty.
    image.reparent(&parent(3, "/three.vhd")).map_err(|error| error.to_string())?;
    write(&image, 4000, 9);
    if [4001, 3999].iter().any(|sector| read(&image, *sector).is_some()) {
        return Err("a new block has content".to_owned());
    }
    image.close().unwrap();
    let image = open(&after)?;
    assert_eq!((named(&image)?, read(&image, 5), read(&image, 4000)), (3, Some(7), Some(9)));
    let report = check(after.as_ref(), &OpenOptions::default());
    match report.worst() {
        Some(worst) if worst >= Severity::Warning => Err(report.to_string()),
        _ => Ok(()),
    }
}

#[test]
fn a_power_cut_leaves_the_old_or_the_new_parent() {
    for seed in 0..3000 {
        let died = crash(seed, |storage, rng| storage.die_after(rng.below(60)));
        died.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn a_forgotten_flush_is_caught() {
    // Before these comes that of an extent, which the next one covers; behind them the one for the space of the new header.
    for flush in 1..4 {
        let failure = (0..6000).find_map(|seed| {
            crash(seed, |storage, rng| {
                storage.swallow_flush(flush);
                storage.die_after(rng.below(60));
            })
            .err()
        });
        assert!(failure.is_some(), "no seed notices that flush {flush} is missing");
    }
}

#[test]
fn a_file_is_as_long_as_before_and_header_and_texts_are_where_they_were() {
    let storage = child();
    let before = storage.to_bytes();
    let image = open(&storage).unwrap();
    image.reparent(&parent(3, "/three.vhd")).unwrap();
    image.close().unwrap();
    let after = storage.to_bytes();
    assert_eq!(after.len(), before.len());
    let offsets = |bytes: &[u8]| {
        let locators = bytes[512 + 576..512 + 576 + 48].chunks(24).map(|slot| slot[16..24].to_vec());
        (bytes[16..24].to_vec(), locators.collect::<Vec<_>>())
    };
    assert_eq!(offsets(&after), offsets(&before));
    assert_eq!(after[..512], after[after.len() - 512..], "both footers");
}

#[test]
fn only_what_was_given_away_is_in_the_parent_again() {
    let storage = child();
    let image = open(&storage).unwrap();
    write(&image, 1500, 8);
    image.flush().unwrap();
    assert_eq!(image.held_blocks(), [0, 1]);
    assert_eq!(image.held_bytes(0).unwrap(), 512);
    image.clear_entries(&[0]).unwrap();
    assert_eq!(read(&image, 5), Some(7), "readers are told later");
    image.flush().unwrap();
    let spans = image.drop_blocks(&[0]);
    assert_eq!((spans.len(), read(&image, 5), read(&image, 1500)), (1, None, Some(8)));
    image.storage().zero_range(spans[0].offset, spans[0].len).unwrap();
    // The block comes back empty.
    write(&image, 6, 3);
    assert_eq!((read(&image, 5), read(&image, 6)), (None, Some(3)));
    image.close().unwrap();
    let image = open(&storage).unwrap();
    assert_eq!((read(&image, 5), read(&image, 6), read(&image, 1500)), (None, Some(3), Some(8)));
    image.clear_entries(&[0, 1]).unwrap();
    image.flush().unwrap();
    image.drop_blocks(&[0, 1]);
    image.close().unwrap();
    assert!(image.held_blocks().is_empty());
    assert!(storage.len().unwrap() < 100 << 10, "{}", storage.len().unwrap());
}

#[test]
fn bits_of_a_block_that_was_given_away_are_not_believed_of_the_next_one_in_its_place() {
    let storage = child();
    let shadow = MemShadow::new();
    let open = |storage: &Arc<SimStorage>| {
        let options = OpenOptions {
            writable: true,
            shadow: Some(Arc::clone(&shadow) as Arc<dyn backstay_vhd::Shadow>),
            ..OpenOptions::default()
        };
        Image::open(Arc::clone(storage) as Arc<dyn Storage>, &options).unwrap()
    };
    let image = open(&storage);
    write(&image, 5000, 8);
    image.flush().unwrap();
    let block = 5000 * 512 / (512 << 10);
    image.clear_entries(&[block]).unwrap();
    image.flush().unwrap();
    image.drop_blocks(&[block]);
    // The process dies; the next one writes another sector of the block, which comes to lie where it was, and dies too.
    let killed = storage.kill();
    let image = open(&killed);
    write(&image, 5001, 9);
    let killed = killed.kill();
    let image = open(&killed);
    assert_eq!((read(&image, 5000), read(&image, 5001)), (None, Some(9)));
}

//! Power cuts and killed processes at every moment.
//!
//! After a power cut every sector that was flushed reads as it was flushed or as a later, unflushed write left it; after
//! a kill every acknowledged write reads back.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use backstay_vhd::{
    Shadow, Storage,
    testing::{MemShadow, Rng, SimStorage},
    vhdx::{Image, OpenOptions, check::check, create::CreateKind},
};

use super::common::*;

/// Sectors around each of these are written: what matters are the borders of blocks and chunks, not what lies between.
const BORDERS: [u64; 5] = [1 << 20, 2 << 20, 3 << 20, 4 << 30, (4 << 30) + (1 << 20)];
/// Sectors around one border.
const WINDOW: usize = 24;
const SECTORS: usize = BORDERS.len() * WINDOW;
const SIZE: u64 = (4 << 30) + (1 << 20) + (WINDOW as u64) * 512;
/// Blocks that have sectors in two windows or the whole of which can be zeroed.
const BLOCKS: [u64; 6] = [0, 1, 2, 3, 4095, 4096];

/// Where a sector of the model lies in the disk.
fn place(index: usize) -> u64 {
    BORDERS[index / WINDOW] + (index % WINDOW) as u64 * 512 - WINDOW as u64 / 2 * 512
}

/// What the parent holds in a sector.
fn parent_value(offset: u64) -> u8 {
    200 + (offset / 512 % 50) as u8
}

fn parent(offset: u64, out: &mut [u8]) {
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = parent_value(offset + index as u64);
    }
}

/// What each sector may read as. Sectors are filled with one number each, so a number stands for a sector's content.
#[derive(Clone, Debug)]
struct Model {
    /// As of the last flush that returned.
    durable: Vec<u8>,
    /// Everything written since, oldest first; the last acknowledged one is what reads show.
    later: Vec<Vec<u8>>,
    now: Vec<u8>,
}

impl Model {
    fn new(kind: Kind) -> Self {
        let start: Vec<u8> = match kind {
            Kind::Dynamic => vec![0; SECTORS],
            _ => (0..SECTORS).map(|index| parent_value(place(index))).collect(),
        };
        Self { durable: start.clone(), later: vec![Vec::new(); SECTORS], now: start }
    }

    fn may_be(&mut self, indices: &[usize], value: u8) {
        indices.iter().for_each(|index| self.later[*index].push(value));
    }

    fn is(&mut self, indices: &[usize], value: u8) {
        indices.iter().for_each(|index| self.now[*index] = value);
    }

    fn flushed(&mut self) {
        self.durable.copy_from_slice(&self.now);
        self.later.iter_mut().for_each(Vec::clear);
    }

    fn check_power_cut(&self, sectors: &[u8]) -> Result<(), String> {
        for (index, value) in sectors.iter().enumerate() {
            if *value != self.durable[index] && !self.later[index].contains(value) {
                return Err(format!(
                    "sector {index} reads {value}, was {} when flushed, then {:?}",
                    self.durable[index], self.later[index]
                ));
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Dynamic,
    Differencing,
    DifferencingWithoutShadow,
}

struct Run {
    kind: Kind,
    rng: Rng,
    storage: Arc<SimStorage>,
    shadow: Arc<MemShadow>,
    image: Image,
    model: Model,
    value: u8,
    session: u128,
}

fn indices(first: usize, len: usize) -> Vec<usize> {
    (first..first + len).collect()
}

impl Run {
    fn new(kind: Kind, seed: u64) -> Self {
        let storage =
            create(&options(SIZE, if kind == Kind::Dynamic { CreateKind::Dynamic } else { child() }));
        let shadow = MemShadow::new();
        let image = try_open(kind, &storage, &shadow, 1).expect("the disk opens");
        Self {
            kind,
            rng: Rng::new(seed),
            storage,
            shadow,
            image,
            model: Model::new(kind),
            value: 0,
            session: 1,
        }
    }

    /// Sectors of one window.
    fn range(&mut self) -> (usize, usize) {
        let first = self.rng.below(SECTORS as u64) as usize;
        let left = WINDOW - first % WINDOW;
        (first, 1 + self.rng.below(left as u64) as usize)
    }

    /// One random request. `false` when the machine is off.
    fn step(&mut self) -> bool {
        let (first, len) = self.range();
        let (offset, span) = (place(first), indices(first, len));
        match self.rng.below(18) {
            0..=9 => {
                self.value = self.value % 199 + 1;
                let value = self.value;
                self.model.may_be(&span, value);
                let done = write(&self.image, offset, &vec![value; len * 512]).is_ok();
                if done {
                    self.model.is(&span, value);
                }
                done
            }
            10 => self.zero(offset, len as u64 * 512, &span),
            11 => {
                // A whole block, perhaps two: no place is needed for them in a child.
                let block = BLOCKS[self.rng.below(5) as usize];
                let (start, bytes) = (block << 20, (1 + self.rng.below(2)) << 20);
                let bytes = bytes.min(SIZE - start);
                let inside = |index: &usize| (start..start + bytes).contains(&place(*index));
                let span: Vec<usize> = (0..SECTORS).filter(inside).collect();
                self.zero(start, bytes, &span)
            }
            12 => {
                self.model.may_be(&span, 0);
                let done = trim(&self.image, offset, len as u64 * 512).is_ok();
                if done {
                    let now = read(&self.image, offset, len * 512, parent);
                    for (index, sector) in span.iter().zip(now.chunks(512)) {
                        self.model.now[*index] = sector[0];
                    }
                }
                done
            }
            13 if self.rng.one_in(3) => {
                if self.image.close().is_err() {
                    return false;
                }
                self.model.flushed();
                self.reopen()
            }
            14 if self.rng.one_in(4) => {
                // The next process goes on with what it finds.
                self.storage = self.storage.kill();
                self.reopen()
            }
            _ => {
                let done = self.image.flush().is_ok();
                if done {
                    self.model.flushed();
                }
                done
            }
        }
    }

    fn zero(&mut self, offset: u64, len: u64, span: &[usize]) -> bool {
        self.model.may_be(span, 0);
        let done = zero(&self.image, offset, len).is_ok();
        if done {
            self.model.is(span, 0);
        }
        done
    }

    fn reopen(&mut self) -> bool {
        self.session += 1;
        match try_open(self.kind, &self.storage, &self.shadow, self.session) {
            Ok(image) => {
                self.image = image;
                true
            }
            Err(_) => false,
        }
    }

    fn content(&self, storage: &Arc<SimStorage>, shadow: &Arc<MemShadow>) -> Result<Vec<u8>, String> {
        // A reader holds the log in memory, a writer writes it into the file: both see one disk.
        let shared = (self.kind == Kind::Differencing).then(|| Arc::clone(shadow) as Arc<dyn Shadow>);
        let reader = Image::open(&as_storage(storage), &OpenOptions { write: None, shadow: shared })
            .map_err(|error| format!("does not open for reading: {error}"))?;
        let seen = sectors(&reader)?;
        let writer = try_open(self.kind, storage, shadow, 900)?;
        if sectors(&writer)? != seen {
            return Err("a writer and a reader see different disks".to_owned());
        }
        Ok(seen)
    }

    /// The disk after a power cut. The shadow is gone with the memory it was in.
    fn check_power_cut(&self, seed: u64) -> Result<(), String> {
        let after = self.storage.power_cut(seed);
        let report = check(&as_storage(&after));
        if !report.is_usable() {
            return Err(format!("the check says {report}"));
        }
        let seen = self.content(&after, &MemShadow::new())?;
        self.model.check_power_cut(&seen)?;
        // A second session on what is left: what it flushes must survive, too.
        let image = try_open(self.kind, &after, &MemShadow::new(), 901)?;
        for index in [0, SECTORS - 1] {
            write(&image, place(index), &[7; 512]).map_err(|e| e.to_string())?;
        }
        image.flush().map_err(|e| e.to_string())?;
        let mut expected = seen;
        (expected[0], expected[SECTORS - 1]) = (7, 7);
        let again = after.power_cut(seed ^ 1);
        if self.content(&again, &MemShadow::new())? == expected {
            Ok(())
        } else {
            Err("the session after the power cut lost data".to_owned())
        }
    }

    /// The disk after kill -9: exactly what was acknowledged, but for the request under way.
    fn check_kill(&self) -> Result<(), String> {
        let after = self.storage.kill();
        let seen = self.content(&after, &self.shadow)?;
        for (index, value) in seen.iter().enumerate() {
            let under_way = self.model.later[index].last();
            if *value != self.model.now[index] && Some(value) != under_way {
                return Err(format!(
                    "sector {index} reads {value}, acknowledged was {}",
                    self.model.now[index]
                ));
            }
        }
        Ok(())
    }
}

/// One value per sector of the model; a sector of mixed bytes is torn.
fn sectors(image: &Image) -> Result<Vec<u8>, String> {
    let mut seen = Vec::with_capacity(SECTORS);
    for window in (0..SECTORS).step_by(WINDOW) {
        let bytes = read(image, place(window), WINDOW * 512, parent);
        for (index, sector) in bytes.chunks(512).enumerate() {
            // The parent's sectors are of one value each as well.
            if sector.iter().any(|byte| *byte != sector[0]) {
                return Err(format!("sector {} is torn", window + index));
            }
            seen.push(sector[0]);
        }
    }
    Ok(seen)
}

fn try_open(
    kind: Kind,
    storage: &Arc<SimStorage>,
    shadow: &Arc<MemShadow>,
    session: u128,
) -> Result<Image, String> {
    let shadow = (kind == Kind::Differencing).then(|| Arc::clone(shadow) as Arc<dyn Shadow>);
    let options = OpenOptions { write: Some(ids(session)), shadow };
    Image::open(&as_storage(storage), &options).map_err(|error| format!("does not open: {error}"))
}

/// Runs until the machine is switched off after a random number of operations, then looks at what is left.
fn crash(kind: Kind, seed: u64) -> Result<(), String> {
    let mut run = Run::new(kind, seed);
    // Some runs are long enough for the log to be used twice over.
    let most = if run.rng.one_in(8) { 1200 } else { 160 };
    let operations = 1 + run.rng.below(most);
    run.storage.die_after(operations);
    for _ in 0..most / 2 {
        if !run.step() {
            break;
        }
    }
    run.check_kill().map_err(|e| format!("kill: {e}"))?;
    for cut in 0..2 {
        run.check_power_cut(seed.wrapping_mul(31) + cut).map_err(|e| format!("power cut {cut}: {e}"))?;
    }
    Ok(())
}

fn many(kind: Kind, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        if let Err(error) = crash(kind, seed) {
            panic!("{kind:?}, seed {seed}: {error}");
        }
    }
}

#[test]
fn dynamic_disks_survive_crashes() {
    many(Kind::Dynamic, 0..400);
}

#[test]
fn differencing_disks_survive_crashes() {
    many(Kind::Differencing, 0..400);
}

#[test]
fn differencing_disks_without_a_shadow_survive_crashes() {
    many(Kind::DifferencingWithoutShadow, 0..400);
}

/// Seeds that nobody has tried yet, for as long as `SOAK_SECONDS` says.
#[test]
#[ignore = "make soak runs it"]
fn soak_crashes() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let until = Instant::now() + Duration::from_secs(seconds);
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let mut seed = first;
    while Instant::now() < until {
        for kind in [Kind::Dynamic, Kind::Differencing, Kind::DifferencingWithoutShadow] {
            many(kind, seed..seed + 20);
        }
        seed += 20;
    }
    println!("{} seeds from {first} on, each for three kinds of disk", seed - first);
}

#[test]
fn a_creation_that_returned_survives_a_power_cut() {
    for kind in [CreateKind::Fixed, CreateKind::Dynamic, child()] {
        let storage = create(&options(5 << 20, kind.clone()));
        let expected = open_read_only(&storage).info().clone();
        for seed in 0..50 {
            assert_eq!(open_read_only(&storage.power_cut(seed)).info(), &expected, "{kind:?}, seed {seed}");
        }
    }
}

fn acknowledged(run: &mut Run, first: usize, len: usize, value: u8) {
    let span = indices(first, len);
    run.model.may_be(&span, value);
    write(&run.image, place(first), &vec![value; len * 512]).expect("the write works");
    run.model.is(&span, value);
}

fn flushed(run: &mut Run) {
    run.image.flush().expect("it works");
    run.model.flushed();
}

fn caught(kind: Kind, scenario: impl Fn(&mut Run)) -> bool {
    let mut run = Run::new(kind, 1);
    scenario(&mut run);
    (0..300).any(|seed| run.check_power_cut(seed).is_err())
}

/// Each sync that a rule of docs/formats/vhdx.md asks for, left out: some power cut must show it. If this test fails, the
/// crash tests above prove nothing.
#[test]
fn every_left_out_sync_of_a_session_is_caught() {
    // A header names the log before its first entry is durable.
    assert!(caught(Kind::Dynamic, |run| {
        run.storage.swallow_flush(0);
        // The machine goes off with the first header on its way.
        run.storage.die_after(3);
        write(&run.image, place(0), &[1; 512]).expect_err("the machine is off by now");
    }));
    // The sync of a flush.
    assert!(caught(Kind::Dynamic, |run| {
        acknowledged(run, 0, 5, 9);
        run.storage.swallow_flush(0);
        flushed(run);
    }));
    // Bits of a child before their data.
    assert!(caught(Kind::Differencing, |run| {
        acknowledged(run, 0, 5, 9);
        run.storage.swallow_flush(0);
        run.storage.die_after(2);
        run.image.flush().expect_err("the machine is off by now");
    }));
    // The flush returns before the bits are durable.
    assert!(caught(Kind::Differencing, |run| {
        acknowledged(run, 0, 5, 9);
        run.storage.swallow_flush(1);
        flushed(run);
    }));
    // Without a shadow: bits go into the log right after their data.
    assert!(caught(Kind::DifferencingWithoutShadow, |run| {
        acknowledged(run, 3 * WINDOW, 5, 9);
        flushed(run);
        run.storage.swallow_flush(0);
        acknowledged(run, 3 * WINDOW + 6, 5, 9);
    }));
    // And the same without a mutant is not "caught".
    assert!(!caught(Kind::Differencing, |run| {
        acknowledged(run, 0, 5, 9);
        run.storage.die_after(2);
        run.image.flush().expect_err("the machine is off by now");
    }));
}

#[test]
fn every_left_out_sync_of_a_close_is_caught() {
    // Headers without a log before the metadata are in their places.
    for (sync, mutant) in [(1, true), (9, false)] {
        let seen = caught(Kind::Dynamic, |run| {
            acknowledged(run, 0, 5, 9);
            flushed(run);
            // A sync, a page, its sync, a header.
            run.storage.swallow_flush(sync);
            run.storage.die_after(4);
            run.image.close().expect_err("the machine is off by now");
        });
        assert_eq!(seen, mutant, "sync {sync} of a close");
    }
    // The end of the file is cut off while a header names the log, which says how long the file is.
    for (syncs, mutant) in [(2..5, true), (4..5, false)] {
        let seen = caught(Kind::Dynamic, |run| {
            acknowledged(run, 0, 5, 9);
            flushed(run);
            acknowledged(run, 3 * WINDOW, 5, 9);
            flushed(run);
            run.storage.swallow_flushes(syncs.clone());
            run.image.close().expect("it seems to work");
            run.model.flushed();
        });
        assert_eq!(seen, mutant, "syncs {syncs:?} of a close");
    }
}

/// What is durable when the machine goes off after so many changes of the write that makes room in the log, one sync left
/// out: whether a power cut costs anything that was flushed long before.
fn making_room(swallow: Option<u64>, die_after: Option<u64>, more: u64) -> bool {
    let start = || {
        let storage = create(&options(64 << 30, CreateKind::Dynamic));
        let image = open(&storage, 1, None);
        for block in 0..5u64 {
            write(&image, block << 20, &[5; 512]).unwrap();
        }
        image.flush().unwrap();
        (storage, image)
    };
    // Every allocation is an entry, here in the second page of the table; one of them finds the log full.
    let first = 600u64;
    let (storage, image) = start();
    let before = storage.flushes();
    let full = (first..).find(|block| {
        write(&image, block << 20, &[6; 512]).unwrap();
        storage.flushes() > before
    });
    let full = full.unwrap();
    assert_eq!(storage.flushes() - before, 3, "entries, pages, the entry that does without them");
    let (storage, image) = start();
    (first..full).for_each(|block| write(&image, block << 20, &[6; 512]).unwrap());
    if let Some(skip) = swallow {
        storage.swallow_flush(skip);
    }
    if let Some(changes) = die_after {
        storage.die_after(changes);
    }
    for block in full..full + 1 + more {
        let done = write(&image, block << 20, &[6; 512]);
        assert_eq!(done.is_ok(), die_after.is_none());
    }
    (0..300).any(|seed| {
        let after = storage.power_cut(seed);
        let Ok(image) = Image::open(&as_storage(&after), &OpenOptions::default()) else { return true };
        (0..5u64).any(|block| read(&image, block << 20, 512, no_parent) != [5; 512])
    })
}

#[test]
fn every_left_out_sync_of_the_ring_is_caught() {
    // A sync, two pages, a sync, an entry, a sync.
    assert!(making_room(Some(0), Some(3), 0), "pages in their places before their entries are durable");
    assert!(making_room(Some(1), Some(5), 0), "entries given up before their pages are durable");
    assert!(making_room(Some(2), None, 80), "entries overwritten before others are known not to need them");
    for (die_after, more) in [(Some(3), 0), (Some(5), 0), (None, 80)] {
        assert!(!making_room(None, die_after, more), "nothing is lost when nothing is left out");
    }
}

#[test]
fn every_left_out_sync_of_a_replay_is_caught() {
    let replayed = |flush: bool, swallow: Option<u64>, die_after: u64| {
        caught(Kind::Dynamic, |run| {
            for border in 0..5 {
                acknowledged(run, border * WINDOW, WINDOW, 11);
            }
            if flush {
                flushed(run);
            }
            run.storage = run.storage.kill();
            if let Some(skip) = swallow {
                run.storage.swallow_flush(skip);
            }
            run.storage.die_after(die_after);
            assert!(!run.reopen(), "the machine is off by now");
        })
    };
    // A sync, pages, a sync, a header, a sync.
    assert!(
        (2..5).any(|die| replayed(false, Some(0), die)),
        "pages in their places before the log is durable"
    );
    assert!(
        (4..7).any(|die| replayed(true, Some(1), die)),
        "a header without a log before the pages are durable"
    );
    for die in 0..6 {
        assert!(!replayed(true, None, die) && !replayed(false, None, die), "death after {die} changes");
    }
}

/// Space that was used before is zeroed, durably, before a block gets it.
#[test]
fn old_bytes_never_show_up_in_new_blocks() {
    for (swallow, mutant) in [(None, false), (Some(3), true)] {
        let seen = caught(Kind::Dynamic, |run| {
            // Old bytes behind the table, where a block will go, and a block behind that keeps them inside the file.
            run.storage.set_len(8 << 20).unwrap();
            run.storage.write_at(&vec![0x66; 3 << 20], 4 << 20).unwrap();
            let last_entry = (3 << 20) + 4098 * 8;
            run.storage.write_at(&((7u64 << 20) | 6).to_le_bytes(), last_entry).unwrap();
            run.storage.flush().unwrap();
            assert!(run.reopen());
            // Three syncs begin the session, the fourth belongs to the space.
            if let Some(skip) = swallow {
                run.storage.swallow_flush(skip);
            }
            acknowledged(run, 0, 3, 9);
            assert_eq!(run.storage.len().unwrap(), 8 << 20, "gaps are used before the file grows");
        });
        assert_eq!(seen, mutant, "sync {swallow:?}");
    }
    // The same for what lies behind the last block: it is cut off before the session begins.
    let tail = |syncs: std::ops::Range<u64>| {
        caught(Kind::Dynamic, |run| {
            run.storage.set_len(6 << 20).unwrap();
            run.storage.write_at(&vec![0x66; 2 << 20], 4 << 20).unwrap();
            run.storage.flush().unwrap();
            assert!(run.reopen());
            run.storage.swallow_flushes(syncs.clone());
            acknowledged(run, 0, 3, 9);
        })
    };
    assert!(tail(0..3) && !tail(3..3));
}

#[test]
fn nothing_is_acknowledged_after_a_failed_flush() {
    let mut run = Run::new(Kind::Differencing, 1);
    acknowledged(&mut run, 0, 5, 9);
    run.storage.fail_flush(0);
    run.image.flush().expect_err("the device failed");
    run.image.flush().expect_err("the kernel may have dropped the data that the first flush was about");
    write(&run.image, place(0), &[1; 512]).expect_err("no write is taken any more");
    run.image.close().expect_err("closing does not pretend either");
}

#[test]
fn a_full_disk_fails_one_write_and_leaves_the_file_whole() {
    for kind in [Kind::Dynamic, Kind::Differencing] {
        for space in 0..40 {
            let mut run = Run::new(kind, 1);
            acknowledged(&mut run, 0, 5, 9);
            flushed(&mut run);
            run.storage.limit_space(space);
            let failed = (1..5).any(|border| write(&run.image, place(border * WINDOW), &[3; 512]).is_err());
            assert!(failed || space > 8, "{kind:?}: with {space} sectors four blocks do not fit");
            assert_eq!(
                read(&run.image, place(0), 5 * 512, parent),
                vec![9; 5 * 512],
                "{kind:?}: earlier data"
            );
            let report = check(&as_storage(&run.storage));
            assert!(report.is_usable(), "{kind:?}, {space} sectors: {report}");
            run.storage.lift_limit();
            acknowledged(&mut run, SECTORS - 2, 2, 5);
            flushed(&mut run);
            run.image.close().expect("it closes");
            assert!(check(&as_storage(&run.storage)).is_usable(), "{kind:?}, {space} sectors");
        }
    }
}

//! Power cuts and killed processes at every moment.
//!
//! After a power cut every sector that was flushed reads as it was flushed or as a later, unflushed write left it; after
//! a kill every acknowledged write reads back.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use backstay_vhd::{
    Image, OpenOptions, Storage,
    check::check,
    create::CreateKind,
    testing::{MemShadow, Rng, SimStorage},
};

use crate::common::*;

/// Two words of a bitmap: what matters are the borders of blocks and words, not how much lies between them.
const BLOCK: usize = 128;
const SECTORS: usize = 4 * BLOCK + 5;
const SIZE: u64 = SECTORS as u64 * 512;

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
    fn new(parent: &[u8]) -> Self {
        let mut start = vec![0; SECTORS];
        start[..parent.len()].copy_from_slice(parent);
        Self { durable: start.clone(), later: vec![Vec::new(); SECTORS], now: start }
    }

    fn may_be(&mut self, first: usize, len: usize, value: u8) {
        self.later[first..first + len].iter_mut().for_each(|later| later.push(value));
    }

    fn is(&mut self, first: usize, len: usize, value: u8) {
        self.now[first..first + len].fill(value);
    }

    fn flushed(&mut self) {
        self.durable.copy_from_slice(&self.now);
        self.later.iter_mut().for_each(Vec::clear);
    }

    /// Checks the disk after a power cut.
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

/// One value per sector; a sector of mixed bytes is torn.
fn sectors(bytes: &[u8]) -> Result<Vec<u8>, String> {
    bytes
        .chunks(512)
        .enumerate()
        .map(|(index, sector)| {
            if sector.iter().all(|byte| *byte == sector[0]) {
                Ok(sector[0])
            } else {
                Err(format!("sector {index} is torn"))
            }
        })
        .collect()
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
    parent: Vec<u8>,
    model: Model,
    value: u8,
}

impl Run {
    fn new(kind: Kind, seed: u64) -> Self {
        let create_kind = match kind {
            Kind::Dynamic => CreateKind::dynamic(),
            _ => differencing(SMALL_BLOCK),
        };
        let parent: Vec<u8> = match kind {
            Kind::Dynamic => Vec::new(),
            _ => (0..SECTORS - 9).map(|index| 200 + (index % 50) as u8).collect(),
        };
        let storage = create_tiny(SIZE, create_kind, BLOCK as u32 * 512);
        let shadow = MemShadow::new();
        let image = open_as(kind, &storage, &shadow);
        let model = Model::new(&parent);
        let parent = parent.iter().flat_map(|value| [*value; 512]).collect();
        Self { kind, rng: Rng::new(seed), storage, shadow, image, parent, model, value: 0 }
    }

    fn range(&mut self) -> (usize, usize) {
        // Two thirds of the traffic near block borders, where allocation happens.
        let first = if self.rng.one_in(3) {
            self.rng.below(SECTORS as u64) as usize
        } else {
            let block = self.rng.below(5) as usize * BLOCK;
            (block + self.rng.below(24) as usize).saturating_sub(12).min(SECTORS - 1)
        };
        let len = 1 + self.rng.below(if self.rng.clone().one_in(8) { 300 } else { 12 }) as usize;
        (first, len.min(SECTORS - first))
    }

    /// One random request. `false` when the machine is off.
    fn step(&mut self) -> bool {
        let (first, len) = self.range();
        let (offset, bytes) = (first as u64 * 512, len as u64 * 512);
        match self.rng.below(16) {
            0..=8 => {
                self.value = self.value % 199 + 1;
                let value = self.value;
                self.model.may_be(first, len, value);
                let done = write(&self.image, offset, &vec![value; len * 512]).is_ok();
                if done {
                    self.model.is(first, len, value);
                }
                done
            }
            9 | 10 => {
                self.model.may_be(first, len, 0);
                let done = zero(&self.image, offset, bytes).is_ok();
                if done {
                    self.model.is(first, len, 0);
                }
                done
            }
            11 => {
                self.model.may_be(first, len, 0);
                let done = trim(&self.image, offset, bytes).is_ok();
                if done {
                    let now = read(&self.image, offset, len * 512, &self.parent);
                    let now = sectors(&now).expect("nothing tears while the machine runs");
                    self.model.now[first..first + len].copy_from_slice(&now);
                }
                done
            }
            12 if self.rng.one_in(3) => {
                if self.image.close().is_err() {
                    return false;
                }
                self.model.flushed();
                match try_open_as(self.kind, &self.storage, &self.shadow) {
                    Ok(image) => self.image = image,
                    Err(_) => return false,
                }
                true
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

    fn content(&self, storage: &Arc<SimStorage>, shadow: &Arc<MemShadow>) -> Result<Vec<u8>, String> {
        let image = try_open_as(self.kind, storage, shadow)?;
        sectors(&read_all(&image, &self.parent))
    }

    /// The disk after a power cut. The shadow is gone with the memory it was in.
    fn check_power_cut(&self, seed: u64) -> Result<(), String> {
        let after = self.storage.power_cut(seed);
        let seen = self.content(&after, &MemShadow::new())?;
        self.model.check_power_cut(&seen)?;
        let report = check(after.as_ref(), &OpenOptions::default());
        if !report.is_usable() {
            return Err(format!("the check says {report}"));
        }
        // A second session on what is left: what it flushes must survive, too.
        let image = try_open_as(self.kind, &after, &MemShadow::new())?;
        write(&image, 0, &[7; 512]).map_err(|e| e.to_string())?;
        write(&image, SIZE - 512, &[7; 512]).map_err(|e| e.to_string())?;
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

fn try_open_as(kind: Kind, storage: &Arc<SimStorage>, shadow: &Arc<MemShadow>) -> Result<Image, String> {
    let shadow = (kind == Kind::Differencing).then(|| Arc::clone(shadow) as _);
    let options = OpenOptions { writable: true, shadow, ..OpenOptions::default() };
    Image::open(Arc::clone(storage) as Arc<dyn Storage>, &options)
        .map_err(|error| format!("does not open: {error}"))
}

fn open_as(kind: Kind, storage: &Arc<SimStorage>, shadow: &Arc<MemShadow>) -> Image {
    try_open_as(kind, storage, shadow).expect("the disk opens")
}

/// Runs until the machine is switched off after a random number of operations, then looks at what is left.
fn crash(kind: Kind, seed: u64) -> Result<(), String> {
    let mut run = Run::new(kind, seed);
    let operations = 1 + run.rng.below(150);
    run.storage.die_after(operations);
    for _ in 0..60 {
        if !run.step() {
            break;
        }
    }
    run.check_kill().map_err(|e| format!("kill: {e}"))?;
    for cut in 0..3 {
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
    many(Kind::Dynamic, 0..1500);
}

#[test]
fn differencing_disks_survive_crashes() {
    many(Kind::Differencing, 0..1500);
}

#[test]
fn differencing_disks_without_a_shadow_survive_crashes() {
    many(Kind::DifferencingWithoutShadow, 0..1500);
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
    for kind in
        [CreateKind::Fixed, CreateKind::Dynamic { block_size: SMALL_BLOCK }, differencing(SMALL_BLOCK)]
    {
        let storage = create(&options(SIZE, kind.clone()));
        let expected = open_read_only(&storage).info().clone();
        for seed in 0..2000 {
            assert_eq!(open_read_only(&storage.power_cut(seed)).info(), &expected, "{kind:?}, seed {seed}");
        }
    }
}

/// Each flush that the rules ask for, left out: some power cut must show it. If this test fails, the crash tests above
/// prove nothing.
#[test]
fn every_left_out_flush_is_caught() {
    // After a reservation: an entry may become durable before the extent it points into.
    assert!(mutant_is_caught(Kind::Dynamic, |run| {
        run.storage.swallow_flush(0);
        acknowledged(run, 0, 5);
    }));
    assert!(mutant_is_caught(Kind::Differencing, |run| {
        run.storage.swallow_flush(0);
        acknowledged(run, 0, 5);
    }));
    // First half of a differencing flush: bits may become durable before their data.
    assert!(mutant_is_caught(Kind::Differencing, |run| {
        acknowledged(run, 0, 5);
        run.storage.swallow_flush(0);
        // The machine goes off before the second half is durable.
        run.storage.die_after(2);
        assert!(run.image.flush().is_err(), "the machine is off by now");
    }));
    // Second half: the flush returns before the bits are durable.
    assert!(mutant_is_caught(Kind::Differencing, |run| {
        acknowledged(run, 0, 5);
        run.storage.swallow_flush(1);
        run.image.flush().expect("it seems to work");
        run.model.flushed();
    }));
    // The only half of a dynamic flush.
    assert!(mutant_is_caught(Kind::Dynamic, |run| {
        acknowledged(run, 0, 5);
        run.storage.swallow_flush(0);
        run.image.flush().expect("it seems to work");
        run.model.flushed();
    }));
    // Without a shadow: bits go to the file right after their data.
    assert!(mutant_is_caught(Kind::DifferencingWithoutShadow, |run| {
        acknowledged(run, 100, 5);
        run.image.flush().expect("it works");
        run.model.flushed();
        run.storage.swallow_flush(0);
        acknowledged(run, 0, 5);
    }));
    // And the same without a mutant is not "caught".
    assert!(!mutant_is_caught(Kind::Differencing, |run| {
        acknowledged(run, 0, 5);
        run.storage.die_after(2);
        assert!(run.image.flush().is_err(), "the machine is off by now");
    }));
}

fn acknowledged(run: &mut Run, first: usize, len: usize) {
    run.model.may_be(first, len, 9);
    write(&run.image, first as u64 * 512, &vec![9; len * 512]).expect("the write works");
    run.model.is(first, len, 9);
}

fn mutant_is_caught(kind: Kind, scenario: impl Fn(&mut Run)) -> bool {
    let mut run = Run::new(kind, 1);
    scenario(&mut run);
    (0..500).any(|seed| run.check_power_cut(seed).is_err())
}

#[test]
fn nothing_is_acknowledged_after_a_failed_flush() {
    let mut run = Run::new(Kind::Differencing, 1);
    acknowledged(&mut run, 0, 5);
    run.storage.fail_flush(0);
    run.image.flush().expect_err("the device failed");
    run.image.flush().expect_err("the kernel may have dropped the data that the first flush was about");
    write(&run.image, 0, &[1; 512]).expect_err("no write is taken any more");
    run.image.close().expect_err("closing does not pretend either");
}

#[test]
fn a_full_disk_fails_one_write_and_leaves_the_file_whole() {
    for kind in [Kind::Dynamic, Kind::Differencing] {
        for space in 0..12 {
            let mut run = Run::new(kind, 1);
            acknowledged(&mut run, 0, 5);
            let before = run.image.allocated_blocks();
            run.storage.limit_space(space);
            let failed =
                (1..5).any(|block| write(&run.image, block * BLOCK as u64 * 512, &[3; 512]).is_err());
            assert!(failed || space > 3, "{kind:?}: with {space} sectors four blocks do not fit");
            assert_eq!(
                read(&run.image, 0, 5 * 512, &run.parent),
                vec![9; 5 * 512],
                "{kind:?}: earlier data is still there"
            );
            let report = check(run.storage.as_ref(), &OpenOptions::default());
            assert!(report.is_usable(), "{kind:?}, {space} sectors: {report}");
            run.storage.lift_limit();
            let last_block = 4 * BLOCK as u64 * 512;
            write(&run.image, last_block, &[4; 512]).expect("with space again, writes work");
            run.image.close().expect("the disk closes");
            let report = check(run.storage.as_ref(), &OpenOptions::default());
            assert!(report.worst().is_none() || report.is_usable(), "{report}");
            assert!(run.image.allocated_blocks() > before);
            let again = open_as(kind, &run.storage, &MemShadow::new());
            assert!(again.info().warnings.is_empty(), "{:?}", again.info().warnings);
            assert_eq!(read(&again, last_block, 512, &run.parent), vec![4; 512]);
        }
    }
}

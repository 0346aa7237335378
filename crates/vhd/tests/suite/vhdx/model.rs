//! Random requests against a byte vector, across the border of the first two chunks, where the table has an entry that is
//! not for a block.

use std::sync::Arc;

use backstay_vhd::{
    WriteTicket,
    testing::{MemShadow, Rng, SimStorage},
    vhdx::{
        Image,
        create::{CreateKind, CreateOptions},
    },
};

use super::common::*;

/// Part of the disk that is written and compared: 3 MiB on either side of the border of two chunks.
const HALF: u64 = 3 << 20;

struct World {
    sector: u64,
    base: u64,
    shadow: Option<Arc<MemShadow>>,
    storage: Arc<SimStorage>,
    image: Image,
    model: Vec<u8>,
    session: u128,
}

/// What the parent holds at an offset.
fn parent(offset: u64, out: &mut [u8]) {
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = 200 + ((offset + index as u64) / 512 % 50) as u8;
    }
}

impl World {
    fn new(kind: CreateKind, sector: u32, shadow: bool) -> Self {
        // A chunk is 4 GiB at 512-byte sectors, 32 GiB at 4096.
        let border = (1u64 << 23) * u64::from(sector);
        let base = border - HALF;
        let size = border + HALF + u64::from(sector);
        let differencing = matches!(kind, CreateKind::Differencing(_));
        let options = CreateOptions { logical_sector: sector, ..options(size, kind) };
        let storage = create(&options);
        let shadow = shadow.then(MemShadow::new);
        let image = open(&storage, 1, shadow.clone().map(|shadow| shadow as _));
        let mut model = vec![0; (size - base) as usize];
        if differencing {
            parent(base, &mut model);
        }
        Self { sector: u64::from(sector), base, shadow, storage, image, model, session: 1 }
    }

    fn range(&self, rng: &mut Rng) -> (u64, u64) {
        let sectors = self.model.len() as u64 / self.sector;
        // Much of it near the borders of blocks.
        let first = match rng.below(3) {
            0 => rng.below(sectors),
            _ => {
                let border = rng.below(7) * (1 << 20) / self.sector;
                (border + rng.below(24)).saturating_sub(12).min(sectors - 1)
            }
        };
        let len = if rng.one_in(5) { 1 + rng.below(5000) } else { 1 + rng.below(40) };
        (first * self.sector, len.min(sectors - first) * self.sector)
    }

    fn step(&mut self, rng: &mut Rng) {
        let (at, len) = self.range(rng);
        let offset = self.base + at;
        let span = at as usize..(at + len) as usize;
        match rng.below(14) {
            0..=5 => {
                let data = vec![rng.next() as u8; len as usize];
                write(&self.image, offset, &data).unwrap();
                self.model[span].copy_from_slice(&data);
            }
            6 => {
                let mut ticket = WriteTicket::new();
                self.image.begin_write(offset, len, &mut ticket).unwrap();
            }
            7 | 8 => {
                zero(&self.image, offset, len).unwrap();
                self.model[span].fill(0);
            }
            9 => {
                trim(&self.image, offset, len).unwrap();
                let now = read(&self.image, offset, len as usize, parent);
                let old = &mut self.model[span];
                let unit = self.sector as usize;
                for (old, now) in old.chunks_mut(unit).zip(now.chunks(unit)) {
                    assert!(
                        now == old || now.iter().all(|byte| *byte == 0),
                        "a trimmed sector is old or zero"
                    );
                    old.copy_from_slice(now);
                }
            }
            10 | 11 => self.image.flush().unwrap(),
            12 => {
                self.image.close().unwrap();
                self.reopen();
                assert!(self.image.info().warnings.is_empty(), "{:?}", self.image.info().warnings);
            }
            _ => {
                self.storage = self.storage.kill();
                self.reopen();
            }
        }
    }

    fn reopen(&mut self) {
        self.session += 1;
        self.image = open(&self.storage, self.session, self.shadow.clone().map(|shadow| shadow as _));
    }

    fn check(&self, image: &Image, what: &str) {
        let now = read(image, self.base, self.model.len(), parent);
        if let Some(at) = now.iter().zip(&self.model).position(|(a, b)| a != b) {
            panic!("{what}: byte {at} is {} instead of {}", now[at], self.model[at]);
        }
    }
}

fn run(make: impl Fn() -> World, seeds: u64) {
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let mut world = make();
        for step in 0..30 {
            world.step(&mut rng);
            if step % 10 == 9 {
                world.check(&world.image, &format!("seed {seed}, step {step}"));
            }
        }
        let without_shadow = world.shadow.is_none();
        if without_shadow {
            // A reader beside a process that died sees the same, with the log in memory.
            world.check(&open_read_only(&world.storage.kill()), &format!("seed {seed}, a reader"));
        }
        world.image.close().unwrap();
        world.check(&open_read_only(&world.storage), &format!("seed {seed}, closed"));
    }
}

#[test]
fn a_dynamic_disk_is_what_was_written_to_it() {
    run(|| World::new(CreateKind::Dynamic, 512, false), 25);
    run(|| World::new(CreateKind::Dynamic, 4096, false), 10);
}

#[test]
fn a_differencing_disk_is_what_was_written_to_it() {
    run(|| World::new(child(), 512, true), 25);
    run(|| World::new(child(), 4096, true), 10);
}

#[test]
fn a_differencing_disk_without_a_shadow_is_what_was_written_to_it() {
    run(|| World::new(child(), 512, false), 25);
    run(|| World::new(child(), 4096, false), 10);
}

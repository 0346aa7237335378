//! Random operations on a disk, compared with a vector of bytes.

use std::sync::Arc;

use backstay_vhd::{
    Image, WriteTicket,
    create::CreateKind,
    testing::{MemShadow, SimStorage},
};
use proptest::prelude::*;

use crate::common::*;

const SECTORS: u64 = 3 * 1024 + 77;
const SIZE: u64 = SECTORS * 512;

#[derive(Clone, Debug)]
enum Op {
    Write(u64, u64, u8),
    Abort(u64, u64),
    Zero(u64, u64),
    Trim(u64, u64),
    Flush,
    Reopen,
    Kill,
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    (0..SECTORS, prop_oneof![4 => 1..32u64, 1 => 1..1500u64])
        .prop_map(|(start, len)| (start * 512, len.min(SECTORS - start) * 512))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (range(), 1..=255u8).prop_map(|((o, l), byte)| Op::Write(o, l, byte)),
        1 => range().prop_map(|(o, l)| Op::Abort(o, l)),
        2 => range().prop_map(|(o, l)| Op::Zero(o, l)),
        2 => range().prop_map(|(o, l)| Op::Trim(o, l)),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => Just(Op::Kill),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Fixed,
    Dynamic,
    Differencing,
    DifferencingWithoutShadow,
}

fn parent() -> Vec<u8> {
    // Shorter than the child: it may be.
    (0..SIZE / 512 - 99).flat_map(|sector| [(sector % 251) as u8 + 1; 512]).collect()
}

struct World {
    kind: Kind,
    storage: Arc<SimStorage>,
    shadow: Arc<MemShadow>,
    image: Image,
    parent: Vec<u8>,
    model: Vec<u8>,
}

impl World {
    fn new(kind: Kind) -> Self {
        let create_kind = match kind {
            Kind::Fixed => CreateKind::Fixed,
            Kind::Dynamic => CreateKind::Dynamic { block_size: SMALL_BLOCK },
            _ => differencing(SMALL_BLOCK),
        };
        let parent = if matches!(kind, Kind::Fixed | Kind::Dynamic) { Vec::new() } else { parent() };
        let mut model = parent.clone();
        model.resize(SIZE as usize, 0);
        let storage = create(&options(SIZE, create_kind));
        let shadow = MemShadow::new();
        let image = Self::open(kind, &storage, &shadow);
        Self { kind, storage, shadow, image, parent, model }
    }

    fn open(kind: Kind, storage: &Arc<SimStorage>, shadow: &Arc<MemShadow>) -> Image {
        let shadow = (kind == Kind::Differencing).then(|| Arc::clone(shadow) as _);
        open(storage, shadow)
    }

    fn apply(&mut self, op: &Op) {
        let span = |offset: u64, len: u64| offset as usize..(offset + len) as usize;
        match *op {
            Op::Write(offset, len, byte) => {
                let data = vec![byte; len as usize];
                write(&self.image, offset, &data).unwrap();
                self.model[span(offset, len)].copy_from_slice(&data);
            }
            Op::Abort(offset, len) => {
                let mut ticket = WriteTicket::new();
                self.image.begin_write(offset, len, &mut ticket).unwrap();
            }
            Op::Zero(offset, len) => {
                zero(&self.image, offset, len).unwrap();
                self.model[span(offset, len)].fill(0);
            }
            Op::Trim(offset, len) => {
                trim(&self.image, offset, len).unwrap();
                let now = read(&self.image, offset, len as usize, &self.parent);
                let old = &mut self.model[span(offset, len)];
                for (old, now) in old.chunks_mut(512).zip(now.chunks(512)) {
                    assert!(
                        now == old || now.iter().all(|byte| *byte == 0),
                        "a trimmed sector is old or zero"
                    );
                    old.copy_from_slice(now);
                }
            }
            Op::Flush => self.image.flush().unwrap(),
            Op::Reopen => {
                self.image.close().unwrap();
                self.image = Self::open(self.kind, &self.storage, &self.shadow);
                assert!(self.image.info().warnings.is_empty(), "{:?}", self.image.info().warnings);
            }
            Op::Kill => {
                self.storage = self.storage.kill();
                self.image = Self::open(self.kind, &self.storage, &self.shadow);
            }
        }
    }

    fn check(&self) {
        let now = read_all(&self.image, &self.parent);
        if let Some(at) = now.iter().zip(&self.model).position(|(a, b)| a != b) {
            panic!("byte {at} (sector {}) is {} instead of {}", at / 512, now[at], self.model[at]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn a_disk_is_what_was_written_to_it(
        kind in prop_oneof![Just(Kind::Fixed), Just(Kind::Dynamic), Just(Kind::Differencing), Just(Kind::DifferencingWithoutShadow)],
        ops in prop::collection::vec(op(), 1..40),
    ) {
        let mut world = World::new(kind);
        for op in &ops {
            world.apply(op);
        }
        world.check();
        world.apply(&Op::Reopen);
        world.check();
        let parent_view = open_read_only(&world.storage);
        assert!(read_all(&parent_view, &world.parent) == world.model, "a read-only view shows the same");
    }
}

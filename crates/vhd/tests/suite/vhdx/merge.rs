//! Blocks of a child go to the parent, one by one, while power cuts and kills look at every step.

use std::sync::Arc;

use backstay_vhd::{
    LayerFormat, Source,
    testing::{MemShadow, SimStorage},
    vhdx::{Image, create::CreateKind},
};

use super::common::*;

const BLOCK: u64 = 1 << 20;
const SIZE: u64 = (4 << 30) + 2 * BLOCK;
/// Blocks that are looked at: written in parts, full of zeros, written whole, in another chunk, never written.
const BLOCKS: [u64; 5] = [0, 1, 2, 4096, 7];

struct Pair {
    parent_storage: Arc<SimStorage>,
    child_storage: Arc<SimStorage>,
    parent: Image,
    child: Image,
    model: Vec<Vec<u8>>,
}

/// Some sectors of a block, through the chain.
fn content(child: &Image, parent: &Image, block: u64) -> Vec<u8> {
    let mut seen = Vec::new();
    for sector in [0, 1, 2, 700, 701, 2047] {
        let offset = block * BLOCK + sector * 512;
        let bytes = read(child, offset, 512, |at, out| {
            out.copy_from_slice(&read(parent, at, out.len(), no_parent));
        });
        seen.push(bytes[5]);
    }
    seen
}

fn pair() -> Pair {
    let parent_storage = create(&options(SIZE, CreateKind::Dynamic));
    let child_storage = create(&options(SIZE, child()));
    let parent = open(&parent_storage, 1, None);
    for block in BLOCKS {
        write(&parent, block * BLOCK, &[0x10; 2048]).unwrap();
    }
    parent.flush().unwrap();
    let child = open(&child_storage, 2, Some(MemShadow::new()));
    write(&child, 512, &[0x21; 512]).unwrap();
    write(&child, 700 * 512, &[0x22; 1024]).unwrap();
    zero(&child, BLOCK, BLOCK).unwrap();
    write(&child, 2 * BLOCK, &vec![0x23; BLOCK as usize]).unwrap();
    write(&child, 4096 * BLOCK + 1024, &[0x24; 512]).unwrap();
    child.flush().unwrap();
    let model = BLOCKS.iter().map(|block| content(&child, &parent, *block)).collect();
    Pair { parent_storage, child_storage, parent, child, model }
}

impl Pair {
    /// Copies what the child holds of a block.
    fn copy(&self, block: u32) {
        let mut extents = Vec::new();
        let mut at = u64::from(block) * BLOCK;
        self.child.resolve_read(at, BLOCK, &mut extents).unwrap();
        for extent in extents {
            match extent.source {
                Source::Data { file_offset } => {
                    let mut bytes = vec![0; extent.len as usize];
                    self.child.storage().read_at(&mut bytes, file_offset).unwrap();
                    write(&self.parent, at, &bytes).unwrap();
                }
                Source::Zero => zero(&self.parent, at, extent.len).unwrap(),
                Source::Parent => {}
            }
            at += extent.len;
        }
    }

    fn merge(&self, left_out: &str, mut look: impl FnMut(&Self)) {
        for block in self.child.held_blocks() {
            let layer: &dyn LayerFormat = &self.child;
            self.copy(block);
            look(self);
            if left_out != "sync of the parent" {
                self.parent.flush().unwrap();
            }
            look(self);
            layer.clear_entries(&[block]).unwrap();
            look(self);
            if left_out != "sync of the child" {
                layer.flush().unwrap();
            }
            for span in layer.drop_blocks(&[block]) {
                look(self);
                layer.storage().zero_range(span.offset, span.len).unwrap();
            }
            look(self);
        }
    }

    fn is_whole(&self, child: &Image, parent: &Image) -> bool {
        BLOCKS.iter().zip(&self.model).all(|(block, model)| content(child, parent, *block) == *model)
    }

    /// Whether a power cut or a kill at this moment leaves everything as it was.
    fn survives(&self, seeds: std::ops::Range<u64>) -> bool {
        let power = seeds.into_iter().all(|seed| {
            let (child, parent) =
                (self.child_storage.power_cut(seed), self.parent_storage.power_cut(seed + 1));
            self.is_whole(&open_read_only(&child), &open_read_only(&parent))
        });
        let (child, parent) = (self.child_storage.kill(), self.parent_storage.kill());
        power && self.is_whole(&open(&child, 8, None), &open(&parent, 9, None))
    }
}

#[test]
fn a_block_is_given_away_without_a_moment_without_its_content() {
    let pair = pair();
    assert_eq!(pair.child.held_blocks(), [0, 1, 2, 4096]);
    let bytes: Vec<u64> = [0, 1, 2, 4096, 7].map(|block| pair.child.held_bytes(block).unwrap()).into();
    assert_eq!(bytes, [3 * 512, BLOCK, BLOCK, 512, 0]);
    let identity = pair.child.data_write_guid();
    let mut looks = 0;
    pair.merge("nothing", |pair| {
        assert!(pair.is_whole(&pair.child, &pair.parent), "readers");
        assert!(pair.survives(looks * 8..looks * 8 + 8), "step {looks}");
        looks += 1;
    });
    assert!(pair.child.is_blank().unwrap() && pair.child.held_blocks().is_empty());
    assert_eq!(pair.child.data_write_guid(), identity, "the child's own children do not notice");
    // A block that was given away comes back empty but for what is written.
    write(&pair.child, 0, &[0x31; 512]).unwrap();
    assert_eq!(content(&pair.child, &pair.parent, 0)[..2], [0x31, pair.model[0][1]]);
    pair.child.close().unwrap();
    pair.parent.close().unwrap();
    let len = backstay_vhd::Storage::len(pair.child_storage.as_ref()).unwrap();
    assert!(len <= 16 << 20, "the space is given back: {len}");
    let (child, parent) = (open_read_only(&pair.child_storage), open_read_only(&pair.parent_storage));
    assert_eq!(content(&child, &parent, 0)[..2], [0x31, pair.model[0][1]]);
}

#[test]
fn every_left_out_sync_of_a_merge_is_caught() {
    for left_out in ["sync of the parent", "sync of the child"] {
        let pair = pair();
        let mut caught = false;
        pair.merge(left_out, |pair| caught |= !pair.survives(0..40));
        assert!(caught, "{left_out}");
    }
}

//! The block allocation table (MS-VHDX 2.5): geometry, entries, and the whole of it in memory.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

use super::layout::{BITMAP_BLOCK_LEN, CHUNK_SECTORS, MIB};

/// Bits of the offset in a packed entry: MiB up to 512 TiB.
const MIB_BITS: u32 = 29;
const MIB_MASK: u32 = (1 << MIB_BITS) - 1;

/// Sizes that follow from size, block size and sector size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Virtual size in bytes.
    pub(crate) size: u64,
    /// Bytes of a block; a power of two.
    pub(crate) block_size: u64,
    /// Logical sector size.
    pub(crate) sector: u64,
    /// Number of blocks, the last one perhaps longer than the disk.
    pub(crate) blocks: u32,
    /// Blocks that share a sector bitmap block; a power of two.
    pub(crate) chunk_ratio: u32,
    /// Number of sector bitmap blocks.
    pub(crate) chunks: u32,
    /// Sector bitmaps count.
    pub(crate) differencing: bool,
}

/// The part of a request that lies in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) block: u32,
    /// Offset in the block.
    pub(crate) within: u64,
    pub(crate) len: u64,
}

impl Geometry {
    /// From sizes that were checked.
    pub(crate) fn new(size: u64, block_size: u32, sector: u32, differencing: bool) -> Self {
        let (block_size, sector) = (u64::from(block_size), u64::from(sector));
        let ratio = CHUNK_SECTORS * sector / block_size;
        let blocks = size.div_ceil(block_size);
        // At most 64 TiB in blocks of 1 MiB: 2^26.
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Self {
            size,
            block_size,
            sector,
            blocks: narrow(blocks),
            chunk_ratio: narrow(ratio),
            chunks: narrow(blocks.div_ceil(ratio)),
            differencing,
        }
    }

    /// Entries of the table, bitmap entries included.
    pub(crate) fn entries(&self) -> u64 {
        let (blocks, ratio) = (u64::from(self.blocks), u64::from(self.chunk_ratio));
        if self.differencing {
            u64::from(self.chunks) * (ratio + 1)
        } else {
            blocks + blocks.saturating_sub(1) / ratio
        }
    }

    /// Offset of a block's entry in the table, in bytes.
    pub(crate) fn entry_at(&self, block: u32) -> u64 {
        (u64::from(block) + u64::from(block / self.chunk_ratio)) * 8
    }

    /// Offset of a sector bitmap block's entry in the table, in bytes.
    pub(crate) fn bitmap_entry_at(&self, chunk: u32) -> u64 {
        ((u64::from(chunk) + 1) * u64::from(self.chunk_ratio) + u64::from(chunk)) * 8
    }

    /// What the entry with that index is for; `None` past the last block.
    pub(crate) fn slot(&self, index: u64) -> Option<Slot> {
        let cycle = u64::from(self.chunk_ratio) + 1;
        let (chunk, within) = (index / cycle, index % cycle);
        if within == u64::from(self.chunk_ratio) {
            let chunk = u32::try_from(chunk).ok()?;
            return (chunk < self.chunks).then_some(Slot::Bitmap(chunk));
        }
        let block = u32::try_from(index - chunk).ok()?;
        (block < self.blocks).then_some(Slot::Block(block))
    }

    /// The chunk of a block.
    pub(crate) fn chunk(&self, block: u32) -> u32 {
        block / self.chunk_ratio
    }

    /// Bytes of a block's part of its sector bitmap block: at least 32.
    pub(crate) fn bitmap_len(&self) -> u64 {
        self.block_size / self.sector / 8
    }

    /// Offset of a block's bits in its sector bitmap block.
    pub(crate) fn bitmap_within(&self, block: u32) -> u64 {
        u64::from(block % self.chunk_ratio) * self.bitmap_len()
    }

    /// Bytes of a block that belong to the disk.
    pub(crate) fn used_len(&self, block: u32) -> u64 {
        self.size.saturating_sub(u64::from(block) * self.block_size).min(self.block_size)
    }

    /// Splits a checked range at the borders of blocks.
    pub(crate) fn parts(self, offset: u64, len: u64) -> impl Iterator<Item = Part> {
        let (shift, mask) = (self.block_size.trailing_zeros(), self.block_size - 1);
        let end = offset + len;
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let within = at & mask;
            let len = (self.block_size - within).min(end - at);
            let block = u32::try_from(at >> shift).unwrap_or(u32::MAX);
            at += len;
            Some(Part { block, within, len })
        })
    }
}

/// What an entry of the table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// A block of data.
    Block(u32),
    /// The sector bitmap block of a chunk.
    Bitmap(u32),
}

/// State of a block of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Zeros, or the parent's.
    NotPresent = 0,
    /// Zeros; where it was may be anything.
    Undefined = 1,
    /// Zeros.
    Zero = 2,
    /// Zeros; the offset may still be the block's.
    Unmapped = 3,
    /// In the file, all of it.
    Full = 6,
    /// In the file or in the parent, sector by sector.
    Partial = 7,
}

impl State {
    /// From the three bits; `None` for 4. State 5 is what version 0.95 called "unmapped".
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::NotPresent,
            1 => Self::Undefined,
            2 => Self::Zero,
            3 | 5 => Self::Unmapped,
            6 => Self::Full,
            7 => Self::Partial,
            _ => return None,
        })
    }

    /// Whether data of the block is in the file.
    pub(crate) fn is_stored(self) -> bool {
        matches!(self, Self::Full | Self::Partial)
    }
}

/// An entry: state and place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) state: State,
    /// Offset in the file in MiB, below 2^29.
    pub(crate) mib: u32,
}

impl Entry {
    pub(crate) const ABSENT: Self = Self { state: State::NotPresent, mib: 0 };

    /// Offset in the file in bytes.
    pub(crate) fn offset(self) -> u64 {
        u64::from(self.mib) * MIB
    }

    /// At a byte offset, a multiple of 1 MiB below 512 TiB.
    pub(crate) fn at(state: State, offset: u64) -> Self {
        Self { state, mib: u32::try_from(offset / MIB).unwrap_or(MIB_MASK) & MIB_MASK }
    }

    /// As in a file.
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        ((u64::from(self.mib) << 20) | self.state as u64).to_le_bytes()
    }

    fn pack(self) -> u32 {
        ((self.state as u32) << MIB_BITS) | self.mib
    }

    fn unpack(word: u32) -> Self {
        let state = State::from_bits(u64::from(word >> MIB_BITS)).unwrap_or(State::NotPresent);
        Self { state, mib: word & MIB_MASK }
    }
}

/// State and offset in MiB of an entry as it lies in a file. The offset may be anything.
pub(crate) fn split(word: u64) -> (Option<State>, u64) {
    (State::from_bits(word), word >> 20)
}

/// Entries per leaf.
const LEAF: u32 = 4096;

/// Entries of blocks in memory, four bytes each, those of empty stretches not at all. Reads take no lock.
#[derive(Debug)]
pub(crate) struct Table {
    leaves: Box<[OnceLock<Box<[AtomicU32]>>]>,
    blocks: u32,
}

impl Table {
    pub(crate) fn new(blocks: u32) -> Self {
        Self { leaves: (0..blocks.div_ceil(LEAF)).map(|_| OnceLock::new()).collect(), blocks }
    }

    /// The entry of a block; absent past the end.
    pub(crate) fn get(&self, block: u32) -> Entry {
        let leaf = self.leaves.get((block / LEAF) as usize).and_then(OnceLock::get);
        let slot = leaf.and_then(|leaf| leaf.get((block % LEAF) as usize));
        slot.map_or(Entry::ABSENT, |slot| Entry::unpack(slot.load(Ordering::Acquire)))
    }

    /// Sets the entry of a block; nothing past the end.
    pub(crate) fn set(&self, block: u32, entry: Entry) {
        if block >= self.blocks {
            return;
        }
        let Some(leaf) = self.leaves.get((block / LEAF) as usize) else { return };
        let leaf = leaf.get_or_init(|| (0..LEAF).map(|_| AtomicU32::new(0)).collect());
        if let Some(slot) = leaf.get((block % LEAF) as usize) {
            slot.store(entry.pack(), Ordering::Release);
        }
    }

    /// Entries that are not all zero, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, Entry)> {
        (0u32..)
            .step_by(LEAF as usize)
            .zip(&self.leaves)
            .filter_map(|(first, leaf)| Some((first, leaf.get()?)))
            .flat_map(|(first, leaf)| {
                (first..)
                    .zip(leaf)
                    .map(|(block, slot)| (block, Entry::unpack(slot.load(Ordering::Acquire))))
                    .filter(|(_, entry)| *entry != Entry::ABSENT)
            })
    }
}

/// Places of sector bitmap blocks in MiB, 0 where there is none.
pub(crate) type BitmapTable = Box<[AtomicU32]>;

/// Bytes of a sector bitmap block that describe sectors of the disk.
pub(crate) const fn bitmap_block_len() -> u64 {
    BITMAP_BLOCK_LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmap_entries_lie_between_chunks() {
        // 10 GiB in blocks of 32 MiB at 512 bytes: the fixture lvm2.vhdx has 322 entries.
        let geometry = Geometry::new(10 << 30, 32 << 20, 512, false);
        assert_eq!((geometry.blocks, geometry.chunk_ratio, geometry.chunks), (320, 128, 3));
        assert_eq!(geometry.entries(), 322);
        assert_eq!(geometry.entry_at(127), 127 * 8);
        assert_eq!(geometry.bitmap_entry_at(0), 128 * 8);
        assert_eq!(geometry.entry_at(128), 129 * 8);
        assert_eq!(geometry.slot(128), Some(Slot::Bitmap(0)));
        assert_eq!(geometry.slot(129), Some(Slot::Block(128)));
        assert_eq!(geometry.slot(321), Some(Slot::Block(319)));
        assert_eq!(geometry.slot(322), None);
        let child = Geometry::new(10 << 30, 32 << 20, 512, true);
        assert_eq!(child.entries(), 3 * 129);
        let four_k = Geometry::new(64 << 40, 1 << 20, 4096, true);
        assert_eq!((four_k.chunk_ratio, four_k.bitmap_len(), four_k.chunks), (32768, 32, 2048));
        for index in 0..geometry.entries() {
            match geometry.slot(index) {
                Some(Slot::Block(block)) => assert_eq!(geometry.entry_at(block), index * 8),
                Some(Slot::Bitmap(chunk)) => assert_eq!(geometry.bitmap_entry_at(chunk), index * 8),
                None => panic!("entry {index} is for nothing"),
            }
        }
    }

    #[test]
    fn entries_are_packed_without_loss() {
        let table = Table::new(10_000);
        let entry = Entry::at(State::Partial, (512 << 40) - MIB);
        table.set(9_999, entry);
        table.set(10_000, entry);
        assert_eq!(table.get(9_999), entry);
        assert_eq!(table.get(10_000), Entry::ABSENT);
        assert_eq!(table.iter().collect::<Vec<_>>(), [(9_999, entry)]);
        assert_eq!(u64::from_le_bytes(entry.to_bytes()), (((512u64 << 20) - 1) << 20) | 7);
    }
}

//! Bitmaps of a differencing disk in memory.
//!
//! Sector 0 of a block is the most significant bit of byte 0, so a big-endian `u64` holds 64 sectors in reading order.

use std::sync::{
    Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// Blocks per chunk of the index: an index over the largest disk costs 16 bytes per chunk until it is used.
const CHUNK: u32 = 256;

/// The bitmap of one block.
#[derive(Debug)]
pub(crate) struct BlockBits {
    /// What readers see.
    live: Box<[AtomicU64]>,
    /// Bits set since the last flush began: not in the file yet, and must not be before their data is durable.
    pending: Mutex<Option<Box<[u64]>>>,
}

impl BlockBits {
    /// All clear.
    pub(crate) fn empty(bitmap_len: usize) -> Self {
        Self { live: (0..bitmap_len / 8).map(|_| AtomicU64::new(0)).collect(), pending: Mutex::new(None) }
    }

    /// As stored in a file.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let words = bytes.as_chunks::<8>().0.iter().map(|word| AtomicU64::new(u64::from_be_bytes(*word)));
        Self { live: words.collect(), pending: Mutex::new(None) }
    }

    /// As stored in a VHDX: sector 0 is the lowest bit of byte 0.
    pub(crate) fn from_lsb_bytes(bytes: &[u8]) -> Self {
        let word = |word: &[u8; 8]| AtomicU64::new(u64::from_le_bytes(*word).reverse_bits());
        Self { live: bytes.as_chunks::<8>().0.iter().map(word).collect(), pending: Mutex::new(None) }
    }

    /// Whether `sector` is present, and for how many sectors up to `end` that holds.
    pub(crate) fn run(&self, sector: u64, end: u64) -> (bool, u64) {
        let first = self.word(sector / 64) << (sector % 64);
        let present = first.leading_ones() > 0;
        let mut at = sector;
        while at < end {
            let skip = at % 64;
            let word = self.word(at / 64);
            let same = if present { word } else { !word } << skip;
            let run = u64::from(same.leading_ones()).min(64 - skip);
            at += run;
            if run < 64 - skip {
                break;
            }
        }
        (present, at.min(end) - sector)
    }

    fn word(&self, index: u64) -> u64 {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.live.get(index))
            .map_or(0, |w| w.load(Ordering::Acquire))
    }

    /// Whether any bit is set.
    pub(crate) fn any(&self) -> bool {
        self.live.iter().any(|word| word.load(Ordering::Acquire) != 0)
    }

    /// How many of the first `sectors` sectors are present.
    pub(crate) fn count(&self, sectors: u64) -> u64 {
        let mut count = 0;
        let mut at = 0;
        while at < sectors {
            let (present, run) = self.run(at, sectors);
            count += if present { run } else { 0 };
            at += run;
        }
        count
    }

    /// Clears everything: the block was given away and is a new one.
    pub(crate) fn reset(&self) {
        *self.lock() = None;
        self.live.iter().for_each(|word| word.store(0, Ordering::Release));
    }

    /// Whether all of `start..end` is present.
    pub(crate) fn all(&self, start: u64, end: u64) -> bool {
        let (present, len) = self.run(start, end);
        present && len == end - start
    }

    /// The lock under which bits are added.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<Box<[u64]>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that hold `start..end`, as they will be once those bits are set; with the index of the first one.
    pub(crate) fn bytes_with(&self, start: u64, end: u64) -> (usize, Vec<u8>) {
        let (first, last) = (start / 8, (end - 1) / 8);
        let bytes = (first..=last).map(|byte| {
            let stored = self.word(byte / 8).to_be_bytes()[(byte % 8) as usize];
            let (from, to) = (start.max(byte * 8) - byte * 8, end.min(byte * 8 + 8) - byte * 8);
            stored | ((0xffu16 >> from) & !(0xffu16 >> to)).to_be_bytes()[1]
        });
        (usize::try_from(first).unwrap_or(usize::MAX), bytes.collect())
    }

    /// Notes `start..end` as pending. Returns whether nothing was pending before.
    pub(crate) fn pend(&self, pending: &mut Option<Box<[u64]>>, start: u64, end: u64) -> bool {
        let was_clean = pending.is_none();
        let words = pending.get_or_insert_with(|| vec![0; self.live.len()].into_boxed_slice());
        for (index, mask) in masks(start, end) {
            if let Some(word) = words.get_mut(index) {
                *word |= mask;
            }
        }
        was_clean
    }

    /// Makes `start..end` present for readers.
    pub(crate) fn publish(&self, start: u64, end: u64) {
        for (index, mask) in masks(start, end) {
            if let Some(word) = self.live.get(index) {
                word.fetch_or(mask, Ordering::AcqRel);
            }
        }
    }

    /// Adds bits that a dead process left, as pending. Returns whether any was new.
    pub(crate) fn adopt(&self, bits: &[u8]) -> bool {
        let mut pending = self.lock();
        let mut new = false;
        for (index, (chunk, word)) in bits.as_chunks::<8>().0.iter().zip(&self.live).enumerate() {
            let left = u64::from_be_bytes(*chunk);
            let added = left & !word.fetch_or(left, Ordering::AcqRel);
            if added != 0 {
                new = true;
                let words = pending.get_or_insert_with(|| vec![0; self.live.len()].into_boxed_slice());
                if let Some(word) = words.get_mut(index) {
                    *word |= added;
                }
            }
        }
        new
    }

    /// Takes what is pending: the first half of a flush.
    pub(crate) fn take_pending(&self) -> Option<Box<[u64]>> {
        self.lock().take()
    }

    /// Words in which `taken` has bits, each with its number and its content: as [`BlockBits::sectors_to_write`].
    pub(crate) fn words_to_write(&self, taken: &[u64]) -> Vec<(u64, u64)> {
        let pending = self.lock();
        let later = |at: usize| pending.as_ref().and_then(|words| words.get(at)).copied().unwrap_or(0);
        let set = taken.iter().enumerate().filter(|(_, word)| **word != 0);
        set.map(|(at, _)| (at as u64, self.word(at as u64) & !later(at))).collect()
    }

    /// Sectors of the bitmap in which `taken` has bits, each with its content: every present bit except those that
    /// became pending after `taken` was taken. The second half of a flush.
    pub(crate) fn sectors_to_write(&self, taken: &[u64]) -> Vec<(u64, [u8; 512])> {
        let pending = self.lock();
        let mut sectors = Vec::new();
        for (number, words) in taken.chunks(64).enumerate() {
            if words.iter().all(|word| *word == 0) {
                continue;
            }
            let mut bytes = [0; 512];
            for (index, out) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let at = number * 64 + index;
                let live = self.live.get(at).map_or(0, |word| word.load(Ordering::Acquire));
                let later = pending.as_ref().and_then(|words| words.get(at)).copied().unwrap_or(0);
                *out = (live & !later).to_be_bytes();
            }
            sectors.push((number as u64 * 512, bytes));
        }
        sectors
    }
}

/// The words that hold `start..end`, with the bits of the range.
fn masks(start: u64, end: u64) -> impl Iterator<Item = (usize, u64)> {
    (start / 64..end.div_ceil(64)).map(move |index| {
        let (from, to) = (start.max(index * 64) - index * 64, end.min(index * 64 + 64) - index * 64);
        let mask = (u64::MAX >> from) & if to == 64 { u64::MAX } else { !(u64::MAX >> to) };
        (usize::try_from(index).unwrap_or(usize::MAX), mask)
    })
}

/// One chunk of the index.
type Chunk = Box<[OnceLock<Box<BlockBits>>]>;

/// The bitmaps seen so far, found without a lock.
#[derive(Debug)]
pub(crate) struct BitmapIndex {
    chunks: Box<[OnceLock<Chunk>]>,
}

impl BitmapIndex {
    /// For `blocks` blocks.
    pub(crate) fn new(blocks: u32) -> Self {
        Self { chunks: (0..blocks.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect() }
    }

    /// The block's bitmap if it is in memory.
    pub(crate) fn get(&self, block: u32) -> Option<&BlockBits> {
        let chunk = self.chunks.get((block / CHUNK) as usize)?.get()?;
        chunk.get((block % CHUNK) as usize)?.get().map(AsRef::as_ref)
    }

    /// Keeps `bits` for the block unless another thread was first; the one that is kept. `None` past the end.
    pub(crate) fn insert(&self, block: u32, bits: BlockBits) -> Option<&BlockBits> {
        let chunk = self
            .chunks
            .get((block / CHUNK) as usize)?
            .get_or_init(|| (0..CHUNK).map(|_| OnceLock::new()).collect());
        let slot = chunk.get((block % CHUNK) as usize)?;
        Some(slot.get_or_init(|| Box::new(bits)).as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_sector_is_the_highest_bit_of_the_first_byte() {
        let mut bytes = [0u8; 512];
        bytes[0] = 0x80;
        bytes[1] = 0x01;
        let bits = BlockBits::from_bytes(&bytes);
        assert_eq!(bits.run(0, 4096), (true, 1));
        assert_eq!(bits.run(1, 4096), (false, 14));
        assert_eq!(bits.run(15, 4096), (true, 1));
        assert_eq!(bits.run(16, 4096), (false, 4080));
        assert_eq!(bits.run(16, 20), (false, 4));
    }

    #[test]
    fn runs_cross_words_and_end_exactly() {
        let bits = BlockBits::empty(512);
        bits.publish(60, 200);
        assert_eq!(bits.run(0, 4096), (false, 60));
        assert_eq!(bits.run(60, 4096), (true, 140));
        assert_eq!(bits.run(63, 128), (true, 65));
        assert!(bits.all(60, 200) && !bits.all(59, 200) && !bits.all(60, 201));
    }

    #[test]
    fn bytes_with_adds_only_the_range() {
        let bits = BlockBits::empty(512);
        bits.publish(0, 1);
        assert_eq!(bits.bytes_with(3, 5), (0, vec![0b1001_1000]));
        assert_eq!(bits.bytes_with(7, 17), (0, vec![0b1000_0001, 0xff, 0x80]));
        assert_eq!(bits.bytes_with(8, 16), (1, vec![0xff]));
    }

    #[test]
    fn a_flush_leaves_out_bits_that_came_after_it_began() {
        let bits = BlockBits::empty(512);
        bits.pend(&mut bits.lock(), 0, 8);
        bits.publish(0, 8);
        let taken = bits.take_pending().expect("bits are pending");
        bits.pend(&mut bits.lock(), 8, 16);
        bits.publish(8, 16);
        let sectors = bits.sectors_to_write(&taken);
        assert_eq!(sectors.len(), 1);
        assert_eq!(sectors[0].1[..3], [0xff, 0, 0]);
        let rest = bits.take_pending().expect("the later bits still wait");
        assert_eq!(bits.sectors_to_write(&rest)[0].1[..3], [0xff, 0xff, 0]);
    }
}

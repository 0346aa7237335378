//! No two structures of a file may share bytes.

use crate::{
    errors::OpenError,
    format::{
        SECTOR,
        bat::{ABSENT, Blocks},
    },
    open::Region,
};

/// Two structures that share bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overlap {
    pub(crate) first: String,
    pub(crate) second: String,
    /// Where the second one starts.
    pub(crate) offset: u64,
}

impl From<Overlap> for OpenError {
    fn from(Overlap { first, second, offset }: Overlap) -> Self {
        Self::Overlap { first, second, offset }
    }
}

/// Overlaps of neighbours, at most about `limit`.
pub(crate) fn find(table: &[u32], blocks: &Blocks, regions: &[Region], limit: usize) -> Vec<Overlap> {
    let mut starts: Vec<u32> = table.iter().copied().filter(|entry| *entry != ABSENT).collect();
    starts.sort_unstable();
    let mut overlaps = Vec::new();
    let stored = blocks.stored_len() / SECTOR;
    for pair in starts.windows(2) {
        let [a, b] = pair else { continue };
        if overlaps.len() >= limit {
            return overlaps;
        }
        if u64::from(b - a) < stored && u64::from(b - a) < shortest(*a, table, blocks) {
            overlaps.push(Overlap {
                first: block_name(table, *a, 0),
                second: block_name(table, *b, usize::from(a == b)),
                offset: u64::from(*b) * SECTOR,
            });
        }
    }
    for region in regions {
        overlaps.extend(with_region(table, blocks, &starts, region, stored));
    }
    overlaps.extend(between_regions(regions));
    overlaps
}

/// Whether a region shares bytes with a block or another region.
pub(crate) fn touches(region: &Region, table: &[u32], blocks: &Blocks, others: &[Region]) -> bool {
    let meets = |start: u64, end: u64| start < region.end && region.start < end;
    let stored = blocks.stored_len();
    let block = |entry: &u32| meets(u64::from(*entry) * SECTOR, u64::from(*entry) * SECTOR + stored);
    region.start < region.end
        && (table.iter().filter(|entry| **entry != ABSENT).any(block)
            || others.iter().any(|other| meets(other.start, other.end)))
}

fn with_region(
    table: &[u32],
    blocks: &Blocks,
    starts: &[u32],
    region: &Region,
    stored: u64,
) -> Option<Overlap> {
    if region.start == region.end {
        return None;
    }
    // The last block that starts before the region ends.
    let at = starts.partition_point(|start| u64::from(*start) * SECTOR < region.end);
    let start = *starts.get(at.checked_sub(1)?)?;
    let from = u64::from(start) * SECTOR;
    let sectors = if from + stored * SECTOR > region.start { shortest(start, table, blocks) } else { stored };
    if from + sectors * SECTOR <= region.start {
        return None;
    }
    let name = block_name(table, start, 0);
    Some(if from < region.start {
        Overlap { first: name, second: region.name.clone(), offset: region.start }
    } else {
        Overlap { first: region.name.clone(), second: name, offset: from }
    })
}

fn between_regions(regions: &[Region]) -> Vec<Overlap> {
    let mut sorted: Vec<&Region> = regions.iter().filter(|region| region.start < region.end).collect();
    sorted.sort_by_key(|region| region.start);
    sorted
        .windows(2)
        .filter_map(|pair| match pair {
            [a, b] if b.start < a.end => {
                Some(Overlap { first: a.name.clone(), second: b.name.clone(), offset: b.start })
            }
            _ => None,
        })
        .collect()
}

/// Sectors that the block at `start` needs: the last block of a disk may be stored without the part behind its end.
fn shortest(start: u32, table: &[u32], blocks: &Blocks) -> u64 {
    let last = blocks.count.saturating_sub(1);
    let bytes = if table.last() == Some(&start) { blocks.used_len(last) } else { blocks.block_size };
    (blocks.bitmap_len + bytes) / SECTOR
}

/// The name of the `nth` block with that table entry.
fn block_name(table: &[u32], start: u32, nth: usize) -> String {
    match table.iter().enumerate().filter(|(_, entry)| **entry == start).nth(nth) {
        Some((index, _)) => format!("block {index}"),
        None => "a block".to_owned(),
    }
}

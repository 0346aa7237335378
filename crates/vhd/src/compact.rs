//! What lies where in a file, and how it would be packed: the decisions of a compaction. The caller moves the bytes, and the
//! order is its own, as in a merge:
//! 1. a place is taken, the bytes are copied there, and that is flushed;
//! 2. [`crate::LayerFormat::set_place`] tells the table, and that is flushed;
//! 3. when nobody reads at the old place any more, [`crate::LayerFormat::free_places`].
//!
//! Nobody writes to a block between its copy and the end of 2.

use std::collections::HashMap;

use crate::FileSpan;

/// A part of a file that can be somewhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// A block, in a VHD with its bitmap.
    Block(u32),
    /// The sector bitmap block of a chunk; only in a VHDX.
    Bitmap(u32),
}

/// How a block without data of its own is stored from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Empty {
    /// Not at all: it reads as the parent, and without one as zeros.
    Absent,
    /// As zeros that hide the parent; only a VHDX can.
    Zeros,
}

/// One item's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// What.
    pub item: Item,
    /// Where it is.
    pub from: FileSpan,
    /// Where it goes.
    pub to: FileSpan,
}

/// Where the items of a file are, and where nothing is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Items with a place. Ascending.
    pub items: Vec<(Item, FileSpan)>,
    /// Places that may be used. Ascending.
    pub holes: Vec<FileSpan>,
    /// First byte behind what cannot be moved.
    pub fixed_end: u64,
    /// Bytes of an item in front of what should be aligned.
    pub lead: u64,
    /// To how many bytes; a power of two.
    pub align: u64,
}

impl Layout {
    /// First byte behind everything.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.items.iter().map(|(_, span)| span.offset + span.len).fold(self.fixed_end, u64::max)
    }

    /// The holes between things that lie in a file, from `start` on. `taken` are their starts and ends.
    pub(crate) fn holes_between(mut taken: Vec<(u64, u64)>, start: u64) -> Vec<FileSpan> {
        taken.sort_unstable();
        let mut at = start;
        let mut holes = Vec::new();
        for (from, end) in taken {
            if from > at {
                holes.push(FileSpan { offset: at, len: from - at });
            }
            at = at.max(end);
        }
        holes
    }

    /// Moves that make the file shorter: the last item into the first hole that it fits, and so on, `most` bytes at a time or
    /// one item. Empty when nothing more can be gained.
    #[must_use]
    pub fn moves(&self, most: u64) -> Vec<Move> {
        let smallest = self.items.iter().map(|(_, span)| span.len).min().unwrap_or(u64::MAX);
        let mut holes: Vec<FileSpan> =
            self.holes.iter().filter(|hole| hole.len >= smallest).copied().collect();
        let mut bytes = 0;
        let mut moves: Vec<Move> = Vec::new();
        let mut items: Vec<&(Item, FileSpan)> = self.items.iter().collect();
        items.sort_unstable_by_key(|(_, span)| std::cmp::Reverse(span.offset));
        // Holes are used from the first on: one that was too small for all items so far need not be looked at again.
        let mut first = 0;
        for (item, from) in items {
            if from.offset + from.len <= self.fixed_end || (bytes > 0 && bytes + from.len > most) {
                break;
            }
            let fitting = holes.iter().enumerate().skip(first).find_map(|(index, hole)| {
                let at = self.fit(*hole, from.len)?;
                (at + from.len <= from.offset).then_some((index, at))
            });
            // What is before it could be moved, and the file would end where it does.
            let Some((index, at)) = fitting else { break };
            let Some(hole) = holes.get_mut(index) else { break };
            let end = hole.offset + hole.len;
            (hole.offset, hole.len) = (at + from.len, end - (at + from.len));
            moves.push(Move { item: *item, from: *from, to: FileSpan { offset: at, len: from.len } });
            bytes += from.len;
            while holes.get(first).is_some_and(|hole| hole.len < smallest) {
                first += 1;
            }
        }
        moves
    }

    /// Where in a hole an item of that length goes: aligned if that fits.
    fn fit(&self, hole: FileSpan, len: u64) -> Option<u64> {
        let end = hole.offset + hole.len;
        let aligned = (hole.offset + self.lead).checked_next_multiple_of(self.align)? - self.lead;
        [aligned, hole.offset].into_iter().find(|at| at.checked_add(len).is_some_and(|stop| stop <= end))
    }

    /// The layout once nothing can be gained any more, without `gone`.
    #[must_use]
    pub fn packed(&self, gone: &dyn Fn(Item) -> bool) -> Self {
        let mut now = self.clone();
        let mut freed: Vec<FileSpan> = Vec::new();
        now.items.retain(|(item, span)| {
            if gone(*item) {
                freed.push(*span);
            }
            !gone(*item)
        });
        now.holes.extend(freed);
        now.join_holes();
        loop {
            let moves = now.moves(u64::MAX);
            if moves.is_empty() {
                return now;
            }
            let to: HashMap<Item, FileSpan> = moves.iter().map(|step| (step.item, step.to)).collect();
            for (item, span) in &mut now.items {
                *span = to.get(item).copied().unwrap_or(*span);
            }
            now.holes = without(&now.holes, to.into_values().collect());
            now.holes.extend(moves.iter().map(|step| step.from));
            now.join_holes();
        }
    }

    fn join_holes(&mut self) {
        self.holes.sort_unstable_by_key(|hole| hole.offset);
        let mut joined: Vec<FileSpan> = Vec::new();
        for hole in self.holes.drain(..).filter(|hole| hole.len > 0) {
            match joined.last_mut() {
                Some(last) if hole.offset <= last.offset + last.len => {
                    last.len = last.len.max(hole.offset + hole.len - last.offset);
                }
                _ => joined.push(hole),
            }
        }
        self.holes = joined;
    }
}

/// Ascending holes without parts of them.
fn without(holes: &[FileSpan], mut parts: Vec<FileSpan>) -> Vec<FileSpan> {
    parts.sort_unstable_by_key(|part| part.offset);
    let mut parts = parts.into_iter().peekable();
    let mut left = Vec::new();
    for hole in holes {
        let (mut at, end) = (hole.offset, hole.offset + hole.len);
        while let Some(part) = parts.next_if(|part| part.offset < end) {
            left.push(FileSpan { offset: at, len: part.offset.saturating_sub(at) });
            at = part.offset + part.len;
        }
        left.push(FileSpan { offset: at, len: end.saturating_sub(at) });
    }
    left.retain(|hole| hole.len > 0);
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(offset: u64, len: u64) -> FileSpan {
        FileSpan { offset, len }
    }

    fn layout(blocks: &[u64], holes: &[(u64, u64)]) -> Layout {
        Layout {
            items: (0..).zip(blocks).map(|(block, at)| (Item::Block(block), span(*at, 10))).collect(),
            holes: holes.iter().map(|(at, len)| span(*at, *len)).collect(),
            fixed_end: 20,
            lead: 0,
            align: 1,
        }
    }

    #[test]
    fn the_last_blocks_go_into_the_first_holes() {
        let file = layout(&[20, 40, 60, 90], &[(30, 10), (50, 10), (70, 20)]);
        let moves = file.moves(u64::MAX);
        assert_eq!(moves[0], Move { item: Item::Block(3), from: span(90, 10), to: span(30, 10) });
        assert_eq!(moves[1], Move { item: Item::Block(2), from: span(60, 10), to: span(50, 10) });
        assert_eq!(moves.len(), 2);
        assert_eq!(file.moves(10).len(), 1);
        assert_eq!(file.packed(&|_| false).end(), 60);
        assert_eq!(file.packed(&|item| item == Item::Block(1)).end(), 50);
    }

    #[test]
    fn what_does_not_help_is_not_moved() {
        assert_eq!(layout(&[20, 30], &[]).moves(u64::MAX), []);
        assert_eq!(layout(&[20, 45], &[(30, 9)]).moves(u64::MAX), [], "no hole is large enough");
        let mut pinned = layout(&[20, 45], &[(30, 15)]);
        pinned.fixed_end = 90;
        assert_eq!(pinned.moves(u64::MAX), [], "the file ends behind it anyway");
    }

    #[test]
    fn places_are_aligned_where_that_fits() {
        let mut file = layout(&[100], &[(23, 30)]);
        (file.lead, file.align) = (1, 8);
        assert_eq!(file.moves(u64::MAX)[0].to.offset, 23);
        file.holes = vec![span(24, 30)];
        assert_eq!(file.moves(u64::MAX)[0].to.offset, 31);
        file.holes = vec![span(24, 10)];
        assert_eq!(file.moves(u64::MAX)[0].to.offset, 24);
    }
}

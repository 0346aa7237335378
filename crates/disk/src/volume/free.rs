//! The parts of a disk whose content nobody needs.

/// Parts up to this many are kept with all their details; with more, small ones count as in use.
const MOST: usize = 1 << 20;

/// Ranges of a disk in bytes that are free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FreeMap {
    /// Start and end; ascending and apart once [`FreeMap::finish`] was called.
    ranges: Vec<(u64, u64)>,
    /// Shorter ones are left out.
    least: u64,
}

impl FreeMap {
    /// Adds a range.
    pub(super) fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some(last) = self.ranges.last_mut().filter(|last| last.1 == start) {
            last.1 = end;
            return;
        }
        // The last one may still have been growing.
        if self.ranges.last().is_some_and(|(start, end)| end - start < self.least) {
            self.ranges.pop();
        }
        self.ranges.push((start, end));
        while self.ranges.len() > MOST {
            self.least = (self.least * 2).max(4096);
            self.ranges.retain(|(start, end)| end - start >= self.least);
        }
    }

    /// Adds what another one has, at an offset.
    pub(super) fn add_all(&mut self, other: &Self, offset: u64) {
        for (start, end) in &other.ranges {
            self.add(start.saturating_add(offset), end.saturating_add(offset));
        }
    }

    /// Puts them in order, and leaves out parts of sectors.
    pub(super) fn finish(mut self, sector: u64) -> Self {
        self.ranges.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (start, end) in self.ranges {
            match joined.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        let whole = |(start, end): (u64, u64)| (start.next_multiple_of(sector), end / sector * sector);
        let ranges = joined.into_iter().map(whole).filter(|(start, end)| start < end).collect();
        Self { ranges, least: self.least }
    }

    /// Bytes.
    pub(super) fn total(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// The parts of a range that are in use: offset and length.
    pub(crate) fn used_in(&self, offset: u64, len: u64) -> Vec<(u64, u64)> {
        let end = offset + len;
        let first = self.ranges.partition_point(|(_, stop)| *stop <= offset);
        let (mut at, mut used) = (offset, Vec::new());
        for (start, stop) in self.ranges.iter().skip(first).take_while(|(start, _)| *start < end) {
            if *start > at {
                used.push((at, start - at));
            }
            at = *stop;
        }
        if at < end {
            used.push((at, end - at));
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_free_is_in_use() {
        let mut map = FreeMap::default();
        map.add(8192, 16384);
        map.add(16384, 20480);
        map.add(1000, 3000);
        let map = map.finish(512);
        assert_eq!(map.used_in(0, 32768), [(0, 1024), (2560, 5632), (20480, 12288)]);
        assert_eq!(map.used_in(8192, 4096), []);
        assert_eq!(map.used_in(20000, 1000), [(20480, 520)]);
        assert_eq!(map.used_in(19000, 1480), []);
        assert_eq!(map.total(), 1536 + 12288);
        assert_eq!(FreeMap::default().used_in(5, 5), [(5, 5)]);
    }

    #[test]
    fn many_small_ranges_take_bounded_memory_and_large_ones_stay() {
        let mut map = FreeMap::default();
        map.add(0, 1 << 20);
        for at in 1..=3 * MOST as u64 {
            map.add((at << 20) + 4096, (at << 20) + 8192);
        }
        map.add(1 << 50, (1 << 50) + (1 << 20));
        let map = map.finish(512);
        assert!(map.ranges.len() <= MOST + 1);
        assert_eq!(map.used_in(0, 1 << 20), []);
        assert_eq!(map.used_in(1 << 50, 1 << 20), []);
    }
}

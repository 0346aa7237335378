//! What of the file belongs to what: no two structures may share bytes, and what is free may be used again.

use super::{
    bat::{Entry, Geometry},
    errors::OpenError,
    layout::MIB,
    open::Damage,
    region::Region,
};

/// A stretch of the file, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) start: u32,
    pub(crate) len: u32,
    pub(crate) owner: Owner,
}

/// What a stretch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A region, by its offset.
    Region,
    /// A sector bitmap block.
    Bitmap(u32),
    /// A block with data.
    Block(u32),
    /// A block without data that still claims its old place.
    Anchor(u32, Entry),
}

impl Extent {
    pub(crate) fn block(block: u32, entry: Entry, geometry: &Geometry) -> Self {
        let len = u32::try_from(geometry.block_size / MIB).unwrap_or(1);
        let owner = if entry.state.is_stored() { Owner::Block(block) } else { Owner::Anchor(block, entry) };
        Self { start: entry.mib, len, owner }
    }

    pub(crate) fn from(&self) -> u64 {
        u64::from(self.start) * MIB
    }

    pub(crate) fn end(&self) -> u64 {
        (u64::from(self.start) + u64::from(self.len)) * MIB
    }

    fn name(&self, regions: &[Region]) -> String {
        match self.owner {
            Owner::Bitmap(chunk) => format!("the sector bitmap {chunk}"),
            Owner::Block(block) | Owner::Anchor(block, _) => format!("block {block}"),
            Owner::Region => {
                let found = regions.iter().find(|region| region.offset == self.from());
                found.map_or_else(|| "a region".to_owned(), Region::name)
            }
        }
    }
}

/// The place of a region.
pub(crate) fn of_region(region: &Region) -> Extent {
    let mib = |bytes: u64| u32::try_from(bytes / MIB).unwrap_or(u32::MAX);
    Extent { start: mib(region.offset), len: mib(u64::from(region.length)), owner: Owner::Region }
}

/// The file, divided.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// What belongs to something, in order.
    pub(crate) used: Vec<Extent>,
    /// First byte behind all of it.
    pub(crate) free: u64,
}

/// Sorts stretches and looks for overlaps. Claims of blocks without data count only where nothing else is.
pub(crate) fn arrange(
    mut used: Vec<Extent>,
    mut anchors: Vec<Extent>,
    regions: &[Region],
    geometry: &Geometry,
    damage: &mut Damage,
) -> Result<Places, OpenError> {
    used.sort_unstable_by_key(|extent| (extent.start, extent.len));
    for [a, b] in used.array_windows::<2>() {
        let last = matches!(a.owner, Owner::Block(block) if block + 1 == geometry.blocks);
        // The last block may be stored without the part behind the end of the disk.
        let used_end = if last { a.from() + geometry.used_len(geometry.blocks - 1) } else { a.end() };
        if b.from() < used_end {
            let (first, second) = (a.name(regions), b.name(regions));
            damage.found(OpenError::Overlap { first, second, offset: b.from() })?;
        }
    }
    anchors.sort_unstable_by_key(|extent| extent.start);
    let mut kept: Vec<Extent> = Vec::new();
    for anchor in anchors {
        let next = used.partition_point(|extent| extent.start < anchor.start);
        let before = next.checked_sub(1).and_then(|index| used.get(index));
        let clear = before.is_none_or(|extent| extent.end() <= anchor.from())
            && used.get(next).is_none_or(|extent| anchor.end() <= extent.from())
            && kept.last().is_none_or(|extent| extent.end() <= anchor.from());
        if clear {
            kept.push(anchor);
        }
    }
    used.extend(kept);
    used.sort_unstable_by_key(|extent| extent.start);
    let free = used.iter().map(Extent::end).max().unwrap_or(MIB);
    Ok(Places { used, free })
}

impl Places {
    /// Calls `keep` with every block without data that keeps its place.
    pub(crate) fn kept_anchors(&self, mut keep: impl FnMut(u32, Entry)) {
        for extent in &self.used {
            if let Owner::Anchor(block, entry) = extent.owner {
                keep(block, entry);
            }
        }
    }

    /// First byte behind all regions.
    pub(crate) fn regions_end(&self) -> u64 {
        let regions = self.used.iter().filter(|extent| extent.owner == Owner::Region);
        regions.map(Extent::end).max().unwrap_or(MIB)
    }

    /// Stretches between the structures that belong to nothing: start and end in bytes.
    pub(crate) fn gaps(&self) -> Vec<(u64, u64)> {
        let mut at = MIB;
        let mut gaps = Vec::new();
        for extent in &self.used {
            if extent.from() > at {
                gaps.push((at, extent.from()));
            }
            at = at.max(extent.end());
        }
        gaps
    }
}

//! What a compaction of a disk that nobody writes to would do.

use super::{CompactError, Dropping, Use, check, empty::Looking, io_error};
use crate::{disk::Disk, fs::FileSystem, options::DiskOptions, volume::VolumeSpace};
use backstay_vhd::compact::Item;
use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a compaction would do; printable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactPlan {
    /// The file.
    pub path: PathBuf,
    /// Blocks in the file.
    pub blocks: u64,
    /// Blocks that hold nothing.
    pub empty_blocks: u64,
    /// Blocks that would move.
    pub moves: u64,
    /// Length of the file now.
    pub old_len: u64,
    /// Length of the file afterwards.
    pub new_len: u64,
    /// What the file systems on the disk say is free; only where that was asked for.
    pub volumes: Vec<VolumeSpace>,
}

impl fmt::Display for CompactPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { blocks, empty_blocks, moves, old_len, new_len, .. } = self;
        writeln!(f, "compact {}", self.path.display())?;
        self.volumes.iter().try_for_each(|volume| writeln!(f, "  {volume}"))?;
        writeln!(f, "  drop {empty_blocks} of {blocks} blocks: they hold nothing")?;
        writeln!(f, "  move {moves} blocks to the front")?;
        writeln!(f, "  cut the file from {old_len} to {new_len} bytes: {} less", self.saves())
    }
}

impl CompactPlan {
    /// Bytes by which the file gets shorter.
    #[must_use]
    pub fn saves(&self) -> u64 {
        self.old_len.saturating_sub(self.new_len)
    }
}

/// Looks at every block, up to its first byte that is not zero.
///
/// # Errors
/// As [`super::compact_offline`].
pub fn plan_compact(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    options: &DiskOptions,
    dropping: Dropping,
) -> Result<CompactPlan, CompactError> {
    let looking = DiskOptions { read_only: true, gate: None, changed: None, ..options.clone() };
    let disk = Disk::open_on(Arc::clone(fs), path, looking)
        .map_err(|source| CompactError::Open { path: path.to_owned(), source: Box::new(source) })?;
    let layers = disk.chain.enter().layers.to_vec();
    let Some(top) = layers.first() else { return Err(CompactError::Closed { path: path.to_owned() }) };
    check(top, Use::Alone)?;
    let image = top.image().ok_or_else(|| CompactError::Raw { path: path.to_owned() })?;
    let layout = image.layout();
    let (free, volumes) = disk.free_for(top, dropping)?;
    let mut looking = Looking { layers: &layers, free: free.as_ref(), buf: Vec::new() };
    let (mut gone, mut blocks) = (HashSet::new(), 0);
    for (item, _) in &layout.items {
        let Item::Block(block) = item else { continue };
        blocks += 1;
        if looking.empty(image, *block).map_err(|error| io_error(top, "read", error))?.is_some() {
            gone.insert(*item);
        }
    }
    let packed = layout.packed(&|item| gone.contains(&item));
    let before: HashSet<_> = layout.items.iter().collect();
    let moves = packed.items.iter().filter(|item| !before.contains(item)).count() as u64;
    let old_len = top.file.len().map_err(|error| io_error(top, "read the length of", error))?;
    let footer = if image.format() == backstay_vhd::Format::Vhd { 512 } else { 0 };
    Ok(CompactPlan {
        path: top.path.clone(),
        blocks,
        empty_blocks: gone.len() as u64,
        moves,
        old_len,
        new_len: (packed.end() + footer).min(old_len),
        volumes,
    })
}

//! Compaction: blocks that hold nothing lose their places, the last blocks move into the holes, and the file is cut.
//!
//! # For callers
//!
//! [`Disk::compact`] works on the top file of a disk that may be in use; [`compact_offline`] on one that nobody uses. The call
//! blocks (give it a thread) and can be ended at any time by [`crate::MergeControl::cancel`] or by closing the disk. The disk
//! reads the same at every instant, also after `kill -9` or a power cut; doing it again goes on with what is left.
//! While it runs no layer can be put on the disk, and it is neither merged nor resized: cancel it first.
//!
//! ```text
//!  1 writers of the batch wait                     wait for writes under way
//!  2 flush: bits of the blocks are in the file
//!  3 copy into the holes
//!  4 flush                                         a crash finds the old places
//!  5 new places into the table
//!  6 flush                                         a crash finds either, and both are whole
//!  7 writers go on                                 wait for readers of the old places
//!  8 the old places are holes
//! ```

mod empty;
mod error;
mod holds;
mod plan;
mod run;

pub use error::CompactError;
pub(crate) use holds::Holds;
pub use plan::{CompactPlan, plan_compact};

use crate::{
    chain::Chain,
    disk::{DRAIN, Disk},
    family::children_near,
    fs::FileSystem,
    image::ImageInfo,
    layer::{Body, Layer},
    merge::MergeControl,
    options::DiskOptions,
    quiesce::Quiet,
    volume::{FreeMap, VolumeSpace, free_space},
};
use backstay_vhd::DiskType;
use run::Compactor;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// What a compaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// The file.
    pub path: PathBuf,
    /// Blocks that held nothing and lost their places.
    pub dropped_blocks: u64,
    /// Blocks that moved to the front.
    pub moved_blocks: u64,
    /// Bytes copied for that.
    pub bytes_moved: u64,
    /// Length of the file before.
    pub old_len: u64,
    /// Length of the file now.
    pub new_len: u64,
    /// Bytes of the volume that the file gave back.
    pub freed: u64,
    /// What the file systems on the disk said is free; only where that was asked for.
    pub volumes: Vec<VolumeSpace>,
}

/// What goes of a disk that is compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropping {
    /// Blocks of zeros: what the disk reads stays the same.
    Zeros,
    /// Blocks, too, of which the file systems on the disk need nothing. What was deleted reads as something else then.
    FreeSpace,
}

/// Whether somebody may write to the disk meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Served,
    Alone,
}

impl Disk {
    /// Compacts the top file of this disk while it is in use.
    ///
    /// # Errors
    /// [`CompactError`]; the disk reads as before.
    pub fn compact(&self, control: &MergeControl) -> Result<Compacted, CompactError> {
        self.compact_as(control, Use::Served, Dropping::Zeros)
    }

    fn compact_as(
        &self,
        control: &MergeControl,
        used: Use,
        dropping: Dropping,
    ) -> Result<Compacted, CompactError> {
        let path = self.top_path();
        if self.options.read_only {
            return Err(CompactError::ReadOnly { path });
        }
        let Some(_turn) = self.merging.begin() else {
            return Err(match self.merging.closing() {
                true => CompactError::Closed { path },
                false => CompactError::Busy { path },
            });
        };
        let layers = self.chain.enter().layers.to_vec();
        let Some(top) = layers.first().cloned() else { return Err(CompactError::Closed { path }) };
        check(&top, used)?;
        let (free, volumes) = self.free_for(&top, dropping)?;
        let before = self.space_of(&top)?;
        let holds = Arc::new(Holds::new(top.block_size().max(512).trailing_zeros()));
        {
            let mut chain = self.quiet_to_compact(&top)?;
            if !chain.top().is_some_and(|now| Arc::ptr_eq(now, &top)) {
                return Err(CompactError::Closed { path });
            }
            chain.holds = Some(Arc::clone(&holds));
        }
        let mut compactor = Compactor::new(self, control, layers, &holds, free.as_ref(), used == Use::Alone);
        let done = compactor.run();
        let (dropped_blocks, moved_blocks, bytes_moved) = compactor.done();
        let ended = self.end_compaction(&top);
        done?;
        ended?;
        let after = self.space_of(&top)?;
        Ok(Compacted {
            path,
            dropped_blocks,
            moved_blocks,
            bytes_moved,
            old_len: before.0,
            new_len: after.0,
            freed: before.1.saturating_sub(after.1),
            volumes,
        })
    }

    /// What nobody needs of the disk, and who says so.
    fn free_for(
        &self,
        top: &Layer,
        dropping: Dropping,
    ) -> Result<(Option<FreeMap>, Vec<VolumeSpace>), CompactError> {
        if dropping == Dropping::Zeros {
            return Ok((None, Vec::new()));
        }
        let identity = top.identity().unwrap_or_default();
        let children = children_near(&self.fs, &top.path, identity).map_err(|error| CompactError::Io {
            path: error.path.clone(),
            action: "tell the parent of",
            source: std::io::Error::other(error.source),
        })?;
        if !children.is_empty() {
            return Err(CompactError::HasChildren { path: top.path.clone(), children });
        }
        let (free, volumes) = free_space(self).map_err(|error| io_error(top, "read", error))?;
        Ok((Some(free), volumes))
    }

    /// Requests wait for nothing any more, and the file is cut where its last block ends: that is what closing it does.
    fn end_compaction(&self, top: &Arc<Layer>) -> Result<(), CompactError> {
        let _whoever_flushes_meets_the_failure = crate::Backend::flush(self);
        let mut chain = self.quiet_to_compact(top)?;
        chain.holds = None;
        // Closing the disk does the rest.
        if self.merging.closing() {
            return Ok(());
        }
        if !chain.layers.is_top(top) {
            return Ok(());
        }
        // A file that is closed and for lack of space not opened again would be worse than one that is cut later.
        top.settle().map_err(|error| io_error(top, "write the last changes to", error))?;
        // After a failed sync nothing is acknowledged any more, so it is not opened again.
        top.close().map_err(|error| io_error(top, "write the last changes to", error))?;
        let again = top.reopen_writable(&self.fs, &self.options).inspect_err(|_| top.fail());
        let again = again
            .map_err(|source| CompactError::Open { path: top.path.clone(), source: Box::new(source) })?;
        chain.layers.set_top(Arc::new(again));
        Ok(())
    }

    fn quiet_to_compact(&self, top: &Layer) -> Result<Quiet<'_, Chain>, CompactError> {
        loop {
            match self.chain.quiesce(Instant::now() + DRAIN) {
                Ok(quiet) => return Ok(quiet),
                Err(_) if !self.chain.enter().has_holds() || self.merging.closing() => {
                    return Err(CompactError::Hanging { path: top.path.clone() });
                }
                Err(_) => {
                    tracing::warn!(path = %top.path.display(), "a compaction cannot end: requests hang");
                }
            }
        }
    }

    /// Length of a file, and what it occupies.
    fn space_of(&self, layer: &Layer) -> Result<(u64, u64), CompactError> {
        let meta = self.fs.metadata(&layer.path);
        meta.map(|meta| (meta.len, meta.allocated)).map_err(|error| io_error(layer, "look at", error))
    }
}

/// Compacts a disk that nobody uses. Its children, if it has any, do not notice; with [`Dropping::FreeSpace`] there may be none.
///
/// # Errors
/// [`CompactError`]; the disk reads as before, but for what its file systems do not need.
pub fn compact_offline(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    options: &DiskOptions,
    dropping: Dropping,
    control: &MergeControl,
) -> Result<Compacted, CompactError> {
    let opened = Disk::open_on(Arc::clone(fs), path, DiskOptions { read_only: false, ..options.clone() });
    let disk =
        opened.map_err(|source| CompactError::Open { path: path.to_owned(), source: Box::new(source) })?;
    let compacted = disk.compact_as(control, Use::Alone, dropping)?;
    disk.close().map_err(|error| CompactError::Io {
        path: path.to_owned(),
        action: "close",
        source: std::io::Error::other(error),
    })?;
    Ok(compacted)
}

/// Whether the file can be compacted at all.
fn check(top: &Layer, used: Use) -> Result<(), CompactError> {
    let path = || top.path.clone();
    let Some(info) = top.info() else { return Err(CompactError::Raw { path: path() }) };
    if info.disk_type() == DiskType::Fixed {
        return Err(CompactError::Fixed { path: path() });
    }
    // A machine that runs on this disk is not saved: the mark was left.
    if info.saved_state() && used == Use::Alone {
        return Err(CompactError::SavedState { path: path() });
    }
    match info {
        ImageInfo::Vhd(info) if info.creator == *b"tap\0" => Err(CompactError::XenMap { path: path() }),
        _ if matches!(top.body, Body::Raw(_)) => Err(CompactError::Raw { path: path() }),
        _ => Ok(()),
    }
}

fn io_error(layer: &Layer, action: &'static str, source: std::io::Error) -> CompactError {
    CompactError::Io { path: layer.path.clone(), action, source }
}

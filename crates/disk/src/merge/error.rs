//! Why a merge ended early.

use crate::{create::CreateError, error::OpenError};
use std::{io, path::PathBuf};

/// Why a merge ended before the upper layer was empty and off the chain. In every case the chain is valid, reads as before, and
/// a later merge goes on where this one ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// Somebody asked for it.
    #[error("the merge of {} was cancelled; what is moved stays moved, and a later merge goes on from there", upper.display())]
    Cancelled {
        /// The layer that is not empty yet.
        upper: PathBuf,
    },
    /// The disk was closed meanwhile.
    #[error("the disk was closed before {} was merged", upper.display())]
    Closed {
        /// The layer that is not empty yet.
        upper: PathBuf,
    },
    /// It is not open for writing.
    #[error("{} is open read-only, so none of its layers can be merged", path.display())]
    ReadOnly {
        /// Top of the chain.
        path: PathBuf,
    },
    /// One at a time.
    #[error("a layer of {} is being merged already; wait for that or cancel it", path.display())]
    Busy {
        /// Top of the chain.
        path: PathBuf,
    },
    /// Requests hang.
    #[error("requests to {} did not end in time; its storage does not answer", path.display())]
    Hanging {
        /// Top of the chain.
        path: PathBuf,
    },
    /// The chain does not have it.
    #[error("{} is not a layer of {}", upper.display(), top.display())]
    NotInChain {
        /// What was to be merged.
        upper: PathBuf,
        /// Top of the chain.
        top: PathBuf,
    },
    /// The last file of a chain.
    #[error("{} has no parent that it could be merged into", upper.display())]
    NoParent {
        /// What was to be merged.
        upper: PathBuf,
    },
    /// The child is the smaller one.
    #[error(
        "{} is a disk of {upper_size} bytes and its parent {} one of {lower_size}: what the parent has behind the end of its child would come back; convert the chain into one file with `backstay disk convert`",
        upper.display(), lower.display()
    )]
    SizeDiffers {
        /// What was to be merged.
        upper: PathBuf,
        /// Its size in bytes.
        upper_size: u64,
        /// Its parent.
        lower: PathBuf,
        /// Its parent's size in bytes.
        lower_size: u64,
    },
    /// The parent is smaller, and could not be made as large.
    #[error("cannot make {} as large as its child {}", lower.display(), upper.display())]
    Resize {
        /// What was to be merged.
        upper: PathBuf,
        /// Its parent.
        lower: PathBuf,
        /// Why not.
        #[source]
        source: Box<crate::resize::ResizeError>,
    },
    /// Its content must stay.
    #[error(
        "a virtual machine was saved while it used {}; resume it, or discard its saved state, before its disk is merged",
        path.display()
    )]
    SavedState {
        /// Which file says so.
        path: PathBuf,
    },
    /// Writes would reach them.
    #[error("{} is written to, so it cannot have the child {}", upper.display(), child.display())]
    ChildOfTop {
        /// The top of a disk that is in use.
        upper: PathBuf,
        /// Its child.
        child: PathBuf,
    },
    /// A file of the merge cannot be opened or locked for writing.
    #[error("cannot merge {}", upper.display())]
    Open {
        /// What was to be merged.
        upper: PathBuf,
        /// The file and why not.
        #[source]
        source: Box<OpenError>,
    },
    /// No space for what is to be moved.
    #[error(
        "the volume of {} has no space for what {} still holds: at most {} MiB more; make space and merge again: what is moved stays moved",
        lower.display(), upper.display(), left.div_ceil(1 << 20)
    )]
    NoSpace {
        /// What was to be merged.
        upper: PathBuf,
        /// The file that cannot grow.
        lower: PathBuf,
        /// Bytes of the blocks that are still in the upper file.
        left: u64,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// Reading or writing failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A child could not be given its new parent. The upper layer is empty, and still needed by this child.
    #[error("{} is empty but still the parent of {}", upper.display(), child.display())]
    Reparent {
        /// The empty layer.
        upper: PathBuf,
        /// The child.
        child: PathBuf,
        /// Why not.
        #[source]
        source: Box<ReparentError>,
    },
}

/// Why a disk was not given another parent; it has the one it had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReparentError {
    /// One of the files cannot be opened or locked.
    #[error("cannot open the disk")]
    Open(#[from] OpenError),
    /// Only those have parents.
    #[error("{} is not a differencing disk, so it has no parent", child.display())]
    NotDifferencing {
        /// The disk.
        child: PathBuf,
    },
    /// Its content would be another one.
    #[error(
        "{} is not the disk that {} was made from (that has the id {wanted}, this {found}); with another parent its content would be destroyed",
        parent.display(), child.display()
    )]
    OtherParent {
        /// The disk.
        child: PathBuf,
        /// What was to be its parent.
        parent: PathBuf,
        /// Id of the parent it has.
        wanted: uuid::Uuid,
        /// Id of the file given.
        found: uuid::Uuid,
    },
    /// Its parent cannot be described.
    #[error("cannot tell {} where its parent is", child.display())]
    Describe {
        /// The disk.
        child: PathBuf,
        /// Why not.
        #[source]
        source: Box<CreateError>,
    },
    /// Writing failed.
    #[error("cannot change the header of {}", child.display())]
    Write {
        /// The disk.
        child: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

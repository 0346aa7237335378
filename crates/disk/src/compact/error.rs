//! Why a disk was not compacted, or not wholly.

use crate::error::OpenError;
use std::{io, path::PathBuf};

/// Why a disk was not compacted to its end. In every case its content is what it was; what is done stays done, and a later
/// compaction goes on from there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompactError {
    /// Somebody asked for it.
    #[error("compacting {} was cancelled; what is done stays done, and doing it again goes on from there", path.display())]
    Cancelled {
        /// The file.
        path: PathBuf,
    },
    /// The disk was closed meanwhile.
    #[error("{} was closed before it was compacted", path.display())]
    Closed {
        /// The file.
        path: PathBuf,
    },
    /// It is not open for writing.
    #[error("{} is open read-only, so it cannot be compacted", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// One at a time.
    #[error("{} is being merged, resized or compacted already; wait for that or cancel it", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// Requests hang.
    #[error("requests to {} did not end in time; its storage does not answer", path.display())]
    Hanging {
        /// The file.
        path: PathBuf,
    },
    /// Nothing to gain by design.
    #[error(
        "{} is a fixed disk, which keeps space for all of its bytes: `backstay disk convert` makes a dynamic one of it",
        path.display()
    )]
    Fixed {
        /// The file.
        path: PathBuf,
    },
    /// It has no blocks.
    #[error("{} is a raw disk, which has no blocks: `backstay disk convert` makes a VHDX of it", path.display())]
    Raw {
        /// The file.
        path: PathBuf,
    },
    /// A list of Xen's that would be wrong afterwards.
    #[error("{} keeps a list of its full blocks that only Xen's tools write: convert it with `backstay disk convert`", path.display())]
    XenMap {
        /// The file.
        path: PathBuf,
    },
    /// Programs that see the mark refuse the disk if it was changed.
    #[error(
        "a virtual machine was saved while it used {}; resume it, or discard its saved state, before its disk is compacted",
        path.display()
    )]
    SavedState {
        /// The file.
        path: PathBuf,
    },
    /// What they read of free space would change.
    #[error(
        "{} is the parent of {}, and what it reads stays as it is while it has children: leave --free-space out, or merge them first",
        path.display(), list(children)
    )]
    HasChildren {
        /// The file.
        path: PathBuf,
        /// Its children that were found.
        children: Vec<PathBuf>,
    },
    /// The file cannot be opened, or not be opened again.
    #[error("cannot compact {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<OpenError>,
    },
    /// A block could not be copied.
    #[error(
        "the volume of {} has no space for the copy of a block: {needed} bytes are needed while it is moved; make space and compact again",
        path.display()
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes.
        needed: u64,
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
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

//! Why a disk was not given another size.

use crate::error::OpenError;
use std::{io, path::PathBuf};

/// Why a disk was not given another size. It has the size it had, or, where a write failed late, the new one: never anything in
/// between. Doing it again does what is missing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// It is not open for writing.
    #[error("{} is open read-only, so its size cannot be changed", path.display())]
    ReadOnly {
        /// Top of the chain.
        path: PathBuf,
    },
    /// Its layers or blocks are being moved.
    #[error("{} is being merged or compacted; wait for that or cancel it, it can go on later", path.display())]
    Busy {
        /// Top of the chain.
        path: PathBuf,
    },
    /// The disk was closed meanwhile.
    #[error("{} was closed", path.display())]
    Closed {
        /// Top of the chain.
        path: PathBuf,
    },
    /// Requests hang.
    #[error("requests to {} did not end in time; its storage does not answer", path.display())]
    Hanging {
        /// Top of the chain.
        path: PathBuf,
    },
    /// A disk in use only grows.
    #[error(
        "{} has {size} bytes, more than the {wanted} asked for: a disk in use can only grow; turn the virtual machine off to make it smaller",
        path.display()
    )]
    Smaller {
        /// Top of the chain.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Asked for.
        wanted: u64,
    },
    /// Bytes in use.
    #[error(
        "{} cannot have {wanted} bytes: {lost} would be lost; the smallest size is {minimum} (`--minimum`), or make partitions smaller in the machine first",
        path.display()
    )]
    WouldLose {
        /// The file.
        path: PathBuf,
        /// Asked for.
        wanted: u64,
        /// The smallest size that is possible.
        minimum: u64,
        /// What lies behind the new end.
        lost: String,
    },
    /// It cannot be told what is in use.
    #[error(
        "the partition table of {} is damaged, so it cannot be told what is in use: repair it in the machine before the disk is made smaller",
        path.display()
    )]
    PartitionTable {
        /// The file.
        path: PathBuf,
    },
    /// Their content would change.
    #[error(
        "{} is the parent of {}, and stays as it is while it has children: resize the last disk of the chain, or merge it first",
        path.display(), list(children)
    )]
    HasChildren {
        /// The file.
        path: PathBuf,
        /// Its children that were found.
        children: Vec<PathBuf>,
    },
    /// Its memory fits only what the disk is.
    #[error(
        "a virtual machine was saved while it used {}; resume it, or discard its saved state, before its disk is resized",
        path.display()
    )]
    SavedState {
        /// The file.
        path: PathBuf,
    },
    /// What the parent has behind the end of the disk would be seen.
    #[error(
        "{} has {size} bytes and its parent {} more: what the parent holds behind the end of the disk would come up in it; convert the disk into one file with `backstay disk convert`, and resize that",
        path.display(), parent.display()
    )]
    ParentLarger {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Its parent.
        parent: PathBuf,
    },
    /// Somebody asked for it.
    #[error("resizing {} was cancelled; it has the size it had", path.display())]
    Cancelled {
        /// The file.
        path: PathBuf,
    },
    /// A device.
    #[error("{} is a device: its size is that of the device", path.display())]
    Device {
        /// The device.
        path: PathBuf,
    },
    /// The format has no such disk.
    #[error("{} cannot have that size", path.display())]
    Unsuitable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: backstay_vhd::resize::ResizeError,
    },
    /// A file cannot be opened, or not be opened again.
    #[error("cannot resize {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<OpenError>,
    },
    /// No space.
    #[error("the volume of {} has no space for a disk of {size} bytes: {needed} bytes more are needed; make space and resize again", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Asked for.
        size: u64,
        /// Bytes that are needed now.
        needed: u64,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// Reading or writing failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The file.
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

//! Why a disk cannot be opened.

use crate::fs::Holder;
use backstay_vhd::parent::ParentError;
use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// Why a chain cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No such file.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// As given.
        path: PathBuf,
    },
    /// The file system refused.
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
    /// Writing was asked for where nobody can write.
    #[error("{} is on a file system that is mounted read-only; open the disk read-only or remount", path.display())]
    ReadOnlyFileSystem {
        /// Which file.
        path: PathBuf,
    },
    /// The lock was refused.
    #[error("{} is in use by {}", path.display(), Who(holder.as_ref()))]
    InUse {
        /// Which file.
        path: PathBuf,
        /// By whom, if found on this host.
        holder: Option<Holder>,
    },
    /// Something on this host has the device.
    #[error("{} cannot be opened for writing: {who}", path.display())]
    Claimed {
        /// Which device.
        path: PathBuf,
        /// Who, and what to do about it.
        who: String,
    },
    /// The name belongs to another file by now.
    #[error("{} was replaced by another file while it was open; close the disk and open it again", path.display())]
    Replaced {
        /// Which file.
        path: PathBuf,
    },
    /// Without locks two writers would destroy the disk.
    #[error(
        "cannot lock {}: its file system does not support locks; mount it with locking (for NFS: without nolock) or move the disk",
        path.display()
    )]
    LockUnsupported {
        /// Which file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// The name does not tell the format.
    #[error(
        "the name {} does not tell the format; only .vhd, .avhd, .vhdx, .avhdx, .raw, .img and .iso do. Rename the file, or say the format: vhd, vhdx or raw (it is never guessed from content that a guest can write)",
        path.display()
    )]
    UnknownFormat {
        /// Which file.
        path: PathBuf,
    },
    /// The file is not a good VHD.
    #[error("{} cannot be used as a VHD", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: backstay_vhd::OpenError,
    },
    /// The file is not a good VHDX.
    #[error("{} cannot be used as a VHDX", path.display())]
    FormatVhdx {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<backstay_vhd::vhdx::OpenError>,
    },
    /// The parent is the right one and does not fit.
    #[error("{} cannot be used on its parent {}", child.display(), parent.display())]
    Mismatch {
        /// The differencing disk.
        child: PathBuf,
        /// Its parent.
        parent: PathBuf,
        /// Why not.
        #[source]
        source: backstay_vhd::vhdx::parent::MismatchError,
    },
    /// Only VHD and VHDX files have structures.
    #[error("{} is a raw disk: it has no structures that could be checked or repaired", path.display())]
    NotVhd {
        /// Which file.
        path: PathBuf,
    },
    /// A raw file without content.
    #[error("{} is empty: a raw disk has at least one sector of 512 bytes", path.display())]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// Without it acknowledged writes would be missing.
    #[error(
        "{} cannot be opened safely: {} may hold the last writes of a process that died, and it cannot be read; make it accessible to this user, or remove it if those writes may be lost",
        path.display(),
        shadow.display()
    )]
    Shadow {
        /// The disk.
        path: PathBuf,
        /// The shadow file.
        shadow: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: io::Error,
    },
    /// No candidate is the parent.
    #[error("{} cannot be used without its parent", child.display())]
    Parent {
        /// The differencing disk.
        child: PathBuf,
        /// Every path tried and what came of it.
        #[source]
        source: Box<ParentError>,
    },
    /// The chain comes back to itself.
    #[error("the chain of {} is a circle: {} is in it twice; one of the files names a wrong parent", top.display(), path.display())]
    Cycle {
        /// Top of the chain.
        top: PathBuf,
        /// The file met again.
        path: PathBuf,
    },
    /// More layers than allowed.
    #[error(
        "the chain of {} has more than {} disks, the most there may be; shorten it with the program that made it",
        top.display(),
        crate::chain::MAX_DEPTH
    )]
    TooDeep {
        /// Top of the chain.
        top: PathBuf,
    },
}

struct Who<'a>(Option<&'a Holder>);

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(holder) => holder.fmt(f),
            None => f.write_str(
                "another host or a process of another user, or was until a moment ago; try again if you know of none",
            ),
        }
    }
}

impl OpenError {
    /// For a file whose name does not tell its format: some names tell at least why not.
    #[must_use]
    pub fn of_unknown_name(path: &Path) -> Self {
        use backstay_vhd::OpenError::SplitDisk;
        let path = path.to_owned();
        let extension = path.extension().and_then(|text| text.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            other if backstay_vhd::is_split_extension(other) => Self::Format { path, source: SplitDisk },
            _ => Self::UnknownFormat { path },
        }
    }

    /// For a device that the kernel does not let us have alone.
    pub(crate) fn claimed(path: &Path) -> Self {
        let known = crate::device::look_at_device(path).ok().and_then(|device| device.claimed());
        let who = known.unwrap_or_else(|| crate::device::Claim::Exclusive.to_string());
        Self::Claimed { path: path.to_owned(), who }
    }

    /// Sorts an error of the file system.
    pub(crate) fn from_io(path: &Path, action: &'static str, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnlyFileSystem { path },
            _ => Self::Io { path, action, source },
        }
    }
}

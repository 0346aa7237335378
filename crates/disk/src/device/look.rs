//! Looking at a device of this host.

use super::{BlockDevice, Claim, Number, Roots, claims, sysfs};
use rustix::{
    fs::{Mode, OFlags, SeekFrom, ioctl_blksszget, open, seek},
    io::Errno,
};
use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Why a device cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// It is not there.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// As given.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{} is no block device", path.display())]
    NotADevice {
        /// As given.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// As given.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Looks at a block device: what it is, and who has it already. Nothing is read from it.
///
/// # Errors
/// [`DeviceError`].
pub fn look_at_device(path: &Path) -> Result<BlockDevice, DeviceError> {
    let failed = |action: &'static str| {
        move |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound if action == "look at" => DeviceError::NotFound { path: path.to_owned() },
            _ => DeviceError::Io { path: path.to_owned(), action, source },
        }
    };
    let meta = fs::metadata(path).map_err(failed("look at"))?;
    if !meta.file_type().is_block_device() {
        return Err(DeviceError::NotADevice { path: path.to_owned() });
    }
    let number = Number::of(meta.rdev());
    let about = sysfs::read(&Roots::default(), number, &number_of).map_err(failed("find out who uses"))?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty()).map_err(io::Error::from).map_err(failed("open"))?;
    let size = seek(&file, SeekFrom::End(0)).map_err(io::Error::from).map_err(failed("read the size of"))?;
    let logical_sector =
        ioctl_blksszget(&file).map_err(io::Error::from).map_err(failed("read the sector size of"))?;
    drop(file);
    let mut claims = claims(&about);
    // The kernel knows of users that it does not list.
    if claims.is_empty() && open(path, flags | OFlags::EXCL, Mode::empty()).err() == Some(Errno::BUSY) {
        claims.push(Claim::Exclusive);
    }
    Ok(BlockDevice {
        path: path.to_owned(),
        number,
        whole: about.whole.map(|disk| disk.number),
        size,
        logical_sector,
        read_only: about.read_only,
        claims,
        stable_name: stable_name(path, number),
    })
}

/// The number of the device that a path leads to.
fn number_of(path: &Path) -> Option<Number> {
    let meta = fs::metadata(path).ok().filter(|meta| meta.file_type().is_block_device())?;
    Some(Number::of(meta.rdev()))
}

/// A name in `/dev/disk/by-id`, the most telling one; none for a path that stays anyhow.
fn stable_name(path: &Path, number: Number) -> Option<PathBuf> {
    const FOLDER: &str = "/dev/disk/by-id";
    const BEST: [&str; 5] = ["wwn-", "nvme-eui.", "nvme-", "scsi-", "ata-"];
    if path.starts_with("/dev/disk") || path.starts_with("/dev/mapper") {
        return None;
    }
    let is_it = |path: &PathBuf| number_of(path) == Some(number);
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten().map(|entry| entry.path());
    let rank = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        (BEST.iter().position(|best| name.starts_with(best)).unwrap_or(BEST.len()), name)
    };
    entries.filter(is_it).min_by_key(rank)
}

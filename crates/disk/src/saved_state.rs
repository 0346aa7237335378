//! The flag "a machine was saved while it used this disk" of files that nobody has open.

use crate::{
    error::OpenError,
    fs::{FileSystem, HostFs, LockKind, OpenMode},
    layer::{format_of, take_lock},
    options::DiskFormat,
};
use std::{fs::File, io, path::Path, sync::Arc};

/// Sets or clears the flag in a disk's footer, durably. The time of the file's last change stays: what the guest sees has
/// not changed. Raw files and VHDX have no flag.
///
/// # Errors
/// The file is in use, is no VHD, or cannot be written.
pub fn mark_saved_state(path: &Path, saved: bool) -> Result<(), OpenError> {
    let fs: Arc<dyn FileSystem> = HostFs::shared();
    if format_of(&fs, path, None)? != DiskFormat::Vhd {
        return Ok(());
    }
    let failed = |action: &'static str| move |source: io::Error| OpenError::from_io(path, action, source);
    let file = fs.open(path, OpenMode::ReadWrite).map_err(failed("open"))?;
    take_lock(&fs, path, file.as_ref(), LockKind::Exclusive)?;
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    let modified = modified.map_err(failed("look at"))?;
    let changed = backstay_vhd::mark_saved(file.as_ref(), saved)
        .map_err(|source| OpenError::Format { path: path.to_owned(), source })?;
    if changed {
        File::options()
            .write(true)
            .open(path)
            .and_then(|file| file.set_modified(modified).and_then(|()| file.sync_all()))
            .map_err(failed("mark"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChainWarning, Disk, DiskOptions, Identity, NewDisk, create_disk};

    /// Read from the file itself, as any other program would: byte 84 of the footer (VHD 1.0) and of its copy.
    fn flags(path: &Path) -> (u8, u8) {
        let bytes = std::fs::read(path).unwrap();
        (bytes[bytes.len() - 512 + 84], bytes[84])
    }

    #[test]
    fn the_flag_comes_and_goes_and_the_time_of_change_stays() {
        let dir = tempfile::tempdir().unwrap();
        for (name, what) in [
            ("d.vhd", NewDisk::Dynamic { size: 8 << 20, block_size: 2 << 20 }),
            ("f.vhd", NewDisk::Fixed { size: 8 << 20 }),
        ] {
            let path = dir.path().join(name);
            create_disk(&HostFs::shared(), &path, &what, Identity::fresh()).unwrap();
            let before =
                (std::fs::read(&path).unwrap(), std::fs::metadata(&path).unwrap().modified().unwrap());
            mark_saved_state(&path, true).unwrap();
            assert_eq!(flags(&path).0, 1, "{name}");
            assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), before.1);
            let disk = Disk::open(&path, DiskOptions::read_only()).unwrap();
            let warnings = disk.warnings();
            assert!(matches!(warnings[..], [ChainWarning::SavedState { .. }]), "{warnings:?}");
            assert!(mark_saved_state(&path, false).is_err(), "in use");
            drop(disk);
            mark_saved_state(&path, false).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), before.0, "{name}");
        }
        let raw = dir.path().join("r.raw");
        std::fs::write(&raw, [0; 512]).unwrap();
        mark_saved_state(&raw, true).unwrap();
        assert_eq!(std::fs::read(&raw).unwrap(), [0; 512]);
    }
}

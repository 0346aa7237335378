//! Changing files so that a crash leaves the old or the new content, never a part.

pub use backstay_worker::durable::{replace, sync_folder_of};

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Makes a folder and the ones above it, durably, for the daemon's user alone. QEMU gets what it needs of it as open files.
///
/// # Errors
/// As the file system.
pub fn create_folder(path: &Path) -> io::Result<()> {
    create_with(path, 0o700)
}

/// Makes a folder below which sockets lie: others may pass through to those they are given, and list nothing.
///
/// # Errors
/// As the file system.
pub fn create_passage(path: &Path) -> io::Result<()> {
    create_with(path, 0o711)
}

fn create_with(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        // What lies above is nobody's secret, and QEMU's sockets may lie below it too.
        create_with(above, 0o711)?;
    }
    match std::fs::create_dir(path) {
        Ok(()) => {
            std::fs::set_permissions(path, Permissions::from_mode(mode))?;
            sync_folder_of(path)
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Err(_) => sync_folder_of(path),
    }
}

/// Removes a file that may be missing, durably.
///
/// # Errors
/// As the file system, except that a missing file is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_folder_of(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a folder if it is empty; anything else stays.
pub fn remove_empty_folder(path: &Path) {
    if std::fs::remove_dir(path).is_ok() {
        let _ = sync_folder_of(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_replacement_leaves_the_old_file_and_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        replace(&path, b"old").unwrap();
        // A folder in the way of the temporary file makes the write fail.
        std::fs::create_dir(folder.path().join(".a.tmp")).unwrap();
        assert!(replace(&path, b"new").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        std::fs::remove_dir(folder.path().join(".a.tmp")).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

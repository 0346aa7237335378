//! Replacing files so that a crash leaves the old or the new content, never a part.
//!
//! The run folder is one that QEMU's group may make files in: whatever may be missing there may have been planted. So
//! temporary names are always made anew, links are not followed, and a record counts only if it is ours.

use rustix::fs::OFlags;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The temporary name next to `path` under which its next content is written.
#[must_use]
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    path.with_file_name(name)
}

/// Makes renames and new names in the folder of `path` durable.
///
/// # Errors
/// As the file system.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Replaces `path` by `bytes`: temporary file, fsync, rename, fsync of the folder.
///
/// # Errors
/// As the file system; the former content is still there then.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    swap(path, bytes, File::sync_all)?;
    sync_folder_of(path)
}

fn swap(path: &Path, bytes: &[u8], sync: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    let temporary = temporary(path);
    remove(&temporary)?;
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| sync(&file)))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Replaces `path` by the JSON form of `value`.
///
/// # Errors
/// As [`replace`].
pub fn replace_json(path: &Path, value: &impl serde::Serialize) -> io::Result<()> {
    replace(path, &json(value)?)
}

/// As [`replace_json`] without waiting for a disk: outlives the process, perhaps not the host.
///
/// # Errors
/// As [`replace`].
pub fn swap_json(path: &Path, value: &impl serde::Serialize) -> io::Result<()> {
    swap(path, &json(value)?, |_| Ok(()))
}

fn json(value: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Opens a file to read it; no link is followed and no pipe waited for.
///
/// # Errors
/// As the file system; `InvalidData` when it is no regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let wary = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).custom_flags(wary).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file"))
}

/// Reads a JSON record of ours (or of root's); `None` when there is none.
///
/// # Errors
/// As the file system; `InvalidData` when the content does not fit, `PermissionDenied` when it is somebody else's.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let mut file = match open_regular(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let owner = file.metadata()?.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        let words = format!("it belongs to user {owner}, who has no business there");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, words));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map(Some).map_err(Into::into)
}

/// Removes a file that may be missing.
///
/// # Errors
/// As the file system, except that a missing file is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};

    /// What a QEMU that was taken over can do in its run folder.
    #[test]
    fn what_was_planted_in_the_folder_is_neither_followed_nor_believed() {
        let folder = tempfile::tempdir().unwrap();
        let (precious, record) = (folder.path().join("precious"), folder.path().join("record.json"));
        std::fs::write(&precious, "\"precious\"").unwrap();
        symlink(&precious, temporary(&record)).unwrap();
        replace_json(&record, &1).unwrap();
        swap_json(&record, &2).unwrap();
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "\"precious\"");
        assert!(std::fs::symlink_metadata(&record).unwrap().is_file());
        assert_eq!(read_json::<u32>(&record).unwrap(), Some(2));

        remove(&record).unwrap();
        assert_eq!(read_json::<u32>(&record).unwrap(), None);
        symlink(&precious, &record).unwrap();
        assert!(read_json::<String>(&record).is_err(), "a link");
        assert!(open_regular(folder.path()).is_err(), "a folder");
        remove(&record).unwrap();
        std::fs::write(&record, "3").unwrap();
        if chown(&record, Some(4242), None).is_ok() {
            let refused = read_json::<u32>(&record).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            assert!(refused.to_string().contains("4242"), "{refused}");
        }
    }
}

//! The kernel's tree of control groups as folders and files.

use super::ControlError;
use std::fmt::Debug;
use std::io;
use std::path::Path;

/// What is done to the tree. The kernel's in earnest, one in memory with the kernel's rules in tests.
pub trait Folders: Debug + Send + Sync {
    /// Reads a file.
    ///
    /// # Errors
    /// As the kernel.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// Writes a file in one piece.
    ///
    /// # Errors
    /// As the kernel.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
    /// Makes a group; `false`: it was there.
    ///
    /// # Errors
    /// As the kernel.
    fn make(&self, path: &Path) -> io::Result<bool>;
    /// Removes a group; `false`: it was not there.
    ///
    /// # Errors
    /// As the kernel: `EBUSY` while something is in it.
    fn remove(&self, path: &Path) -> io::Result<bool>;
}

/// The kernel's.
#[derive(Clone, Copy, Debug)]
pub struct HostFolders;

impl Folders for HostFolders {
    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        use std::io::Write;
        // Never created: a name that the kernel does not know must be an error also on a plain file system.
        std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
    }

    fn make(&self, path: &Path) -> io::Result<bool> {
        match std::fs::create_dir(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<bool> {
        match std::fs::remove_dir(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// [`Folders`] with errors in words.
pub(super) trait FoldersExt: Folders {
    fn text(&self, path: &Path) -> Result<String, ControlError> {
        self.read(path).map_err(failed("reading", path))
    }

    fn set(&self, path: &Path, text: &str) -> Result<(), ControlError> {
        self.write(path, text).map_err(failed(&format!("writing '{text}' to"), path))
    }

    fn group(&self, path: &Path) -> Result<bool, ControlError> {
        self.make(path).map_err(failed("making the control group", path))
    }

    fn drop_group(&self, path: &Path) -> Result<bool, ControlError> {
        self.remove(path).map_err(failed("removing the control group", path))
    }
}

impl<T: Folders + ?Sized> FoldersExt for T {}

/// Moves into `file` what is not there yet. What has ended meanwhile needs no place.
pub(super) fn move_into(
    folders: &(impl Folders + ?Sized),
    file: &Path,
    ids: impl IntoIterator<Item = u32>,
) -> Result<(), ControlError> {
    let there = folders.text(file)?;
    for id in ids {
        if there.lines().any(|line| line.trim().parse() == Ok(id)) {
            continue;
        }
        match folders.set(file, &id.to_string()) {
            Err(error) if !error.is_gone() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> ControlError {
    move |source| ControlError::File { what: what.to_owned(), path: path.to_owned(), source }
}

//! New files: written under a temporary name beside the target, made durable, then renamed. Whoever looks finds the
//! whole file or none.

use crate::fs::{DiskFile, FileSystem, folder_of};
use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A file that is not there yet. Dropped before [`TempFile::commit`] it is removed.
#[derive(Debug)]
pub(crate) struct TempFile {
    fs: Arc<dyn FileSystem>,
    target: PathBuf,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    committed: bool,
}

impl TempFile {
    /// Creates the temporary file for `target`, which must not exist.
    pub(crate) fn create(fs: &Arc<dyn FileSystem>, target: &Path) -> io::Result<Self> {
        if fs.metadata(target).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{:08x}.part", uuid::Uuid::new_v4().as_fields().0));
        let path = folder_of(target).join(temporary);
        let file = fs.create_new(&path)?;
        Ok(Self { fs: Arc::clone(fs), target: target.to_owned(), path, file, committed: false })
    }

    pub(crate) fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }

    /// Makes the content durable, gives the file its name and makes that durable.
    pub(crate) fn commit(self) -> io::Result<()> {
        self.file.flush()?;
        self.commit_unsynced()
    }

    /// Gives the file its name without making its content durable.
    pub(crate) fn commit_unsynced(mut self) -> io::Result<()> {
        self.fs.rename(&self.path, &self.target, false)?;
        self.committed = true;
        let synced = self.fs.sync_dir(folder_of(&self.target));
        if synced.is_err() {
            // Nobody was told that the file exists, so it should not.
            let _already_failing = self.fs.remove(&self.target);
        }
        synced
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = self.fs.remove(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a temporary file");
        }
    }
}

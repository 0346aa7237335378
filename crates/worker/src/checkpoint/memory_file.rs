//! The memory file while it is written: under a temporary name, removed again unless it is kept.

use crate::durable;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The memory file cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path} failed")]
pub struct MemoryError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A file that is removed when dropped, under its temporary or its final name, unless [`Fresh::keep`] was called.
#[derive(Debug)]
pub struct Fresh {
    temporary: PathBuf,
    path: PathBuf,
    /// The folder, if it was made for this file.
    folder: Option<PathBuf>,
    published: bool,
    kept: bool,
}

impl Fresh {
    /// Makes an empty file for `path` (and its folder). QEMU, which writes some of them itself, gets them opened.
    ///
    /// # Errors
    /// As the file system.
    pub fn create(path: &Path) -> Result<Self, MemoryError> {
        let temporary = durable::temporary(path);
        let failed = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| MemoryError { action, path, source }
        };
        let folder = path.parent().filter(|folder| !folder.exists()).map(Path::to_path_buf);
        if let Some(folder) = &folder {
            std::fs::DirBuilder::new().mode(0o700).create(folder).map_err(failed("creating", folder))?;
            durable::sync_folder_of(folder).map_err(failed("creating", folder))?;
        }
        // From here on a failure removes what was made.
        let fresh = Self { temporary, path: path.into(), folder, published: false, kept: false };
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh.temporary)
            .map_err(failed("creating", &fresh.temporary))?;
        Ok(fresh)
    }

    /// The name it has now.
    #[must_use]
    pub fn path(&self) -> &Path {
        if self.published { &self.path } else { &self.temporary }
    }

    /// Opens it for writing.
    ///
    /// # Errors
    /// As the file system.
    pub fn file(&self) -> Result<File, MemoryError> {
        OpenOptions::new().read(true).write(true).open(self.path()).map_err(|source| MemoryError {
            action: "opening",
            path: self.path().into(),
            source,
        })
    }

    /// Gives it its final name, durably.
    ///
    /// # Errors
    /// As the file system.
    pub fn publish(&mut self) -> Result<(), MemoryError> {
        let failed = |source| MemoryError { action: "naming", path: self.path.clone(), source };
        std::fs::rename(&self.temporary, &self.path).map_err(failed)?;
        self.published = true;
        durable::sync_folder_of(&self.path).map_err(failed)
    }

    /// It stays.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = durable::remove(self.path()) {
            tracing::warn!(%error, path = %self.path().display(), "an unfinished memory file was left");
        }
        if let Some(folder) = &self.folder {
            // Fails if something else is in it by now, which is right.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_file_leaves_no_trace_and_a_kept_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ckpt/1.bin");
        drop(Fresh::create(&path).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut fresh = Fresh::create(&path).unwrap();
        fresh.publish().unwrap();
        drop(fresh);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut fresh = Fresh::create(&path).unwrap();
        fresh.publish().unwrap();
        fresh.keep();
        let names: Vec<_> =
            std::fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["1.bin"]);
    }
}

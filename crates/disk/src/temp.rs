//! New files: written under a temporary name beside the target, made durable, then renamed. Whoever looks finds the
//! whole file or none.
//!
//! The temporary file is locked as long as its process works on it. One without a lock belongs to a process that was
//! killed: the next one that makes a file in the same folder removes it.

use crate::fs::{DiskFile, FileKind, FileSystem, LockKind, OpenMode, folder_of};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Temporary files are called `.backstay-` and 16 hexadecimal digits and `.part`, however long the target's name is.
const PREFIX: &str = ".backstay-";
const SUFFIX: &str = ".part";
const DIGITS: usize = 16;

/// How often a name is tried: a sweeper can take a file in the instant before it is locked.
const ATTEMPTS: usize = 8;

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
        if target.file_name().is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let folder = folder_of(target);
        sweep(fs.as_ref(), folder);
        for _ in 0..ATTEMPTS {
            let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
            let path = folder.join(format!("{PREFIX}{:016x}{SUFFIX}", high ^ low));
            let file = fs.create_new(&path)?;
            if is_ours(fs.as_ref(), &path, file.as_ref()) {
                return Ok(Self {
                    fs: Arc::clone(fs),
                    target: target.to_owned(),
                    path,
                    file,
                    committed: false,
                });
            }
        }
        Err(io::Error::other("another process removes every temporary file at once"))
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

/// Locks a file that was just created; whether it still has its name. Where locks are not supported nobody sweeps.
fn is_ours(fs: &dyn FileSystem, path: &Path, file: &dyn DiskFile) -> bool {
    match file.lock(LockKind::Exclusive) {
        Ok(()) => fs.metadata(path).is_ok_and(|meta| meta.id == file.id()),
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

fn is_temporary(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
    digits.is_some_and(|digits| {
        digits.len() == DIGITS && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Removes new files that killed processes left unfinished, without their names, in a folder.
pub fn remove_unfinished(fs: &Arc<dyn FileSystem>, folder: &Path) {
    sweep(fs.as_ref(), folder);
}

/// Removes what killed processes left in a folder. Nothing depends on it, so a failure is none of the caller's business.
fn sweep(fs: &dyn FileSystem, folder: &Path) {
    for name in fs.list(folder).unwrap_or_default() {
        let path = folder.join(&name);
        if name.to_str().is_some_and(is_temporary)
            && let Err(error) = remove_abandoned(fs, &path)
        {
            tracing::debug!(path = %path.display(), %error, "cannot remove a temporary file of a dead process");
        }
    }
}

fn remove_abandoned(fs: &dyn FileSystem, path: &Path) -> io::Result<()> {
    if fs.metadata(path)?.kind != FileKind::File {
        return Ok(());
    }
    let file = fs.open(path, OpenMode::ReadWrite)?;
    match file.lock(LockKind::Exclusive) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
        other => other?,
    }
    // Whoever had it may have renamed it between the opening and the lock.
    if fs.metadata(path)?.id == file.id() {
        fs.remove(path)?;
        tracing::info!(path = %path.display(), "removed a temporary file that a killed process had left");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::HostFs;

    #[test]
    fn only_its_own_names_without_a_lock_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let fs = HostFs::shared();
        let target = folder.path().join("a.vhd");
        let working = TempFile::create(&fs, &target).unwrap();
        let abandoned = folder.path().join(".backstay-0123456789abcdef.part");
        let foreign = [
            ".backstay-0123456789abcde.part",
            ".backstay-0123456789abcdeg.part",
            ".backstay-0123456789ABCDEF.part",
            "backstay-0123456789abcdef.part",
            ".backstay-0123456789abcdef.part.vhd",
            ".a.vhd.01234567.part",
        ]
        .map(|name| folder.path().join(name));
        for path in foreign.iter().chain([&abandoned]) {
            std::fs::write(path, b"x").unwrap();
        }
        let other = TempFile::create(&fs, &folder.path().join("b.vhd")).unwrap();
        assert!(!abandoned.exists());
        assert!(foreign.iter().all(|path| path.exists()));
        other.commit().unwrap();
        working.commit().unwrap();
        assert!(target.exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), foreign.len() + 2);
    }

    #[test]
    fn makers_in_one_folder_do_not_take_each_others_files() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for maker in 0..4 {
                let folder = folder.path();
                scope.spawn(move || {
                    let fs = HostFs::shared();
                    for number in 0..100 {
                        let temp =
                            TempFile::create(&fs, &folder.join(format!("{maker}-{number}.vhd"))).unwrap();
                        temp.file().write_at(&[maker; 8], 0).unwrap();
                        temp.commit_unsynced().unwrap();
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 400);
    }
}

//! The host's file system.

use super::{DiskFile, FileId, FileKind, FileMeta, FileSystem, Holder, OpenMode, host_file::HostFile, lock};
use rustix::{
    fs::{CWD, RenameFlags, renameat_with, statvfs},
    io::Errno,
};
use std::{
    ffi::OsString,
    fs::{self, File, Metadata},
    io::{self, ErrorKind},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// [`FileSystem`] of the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostFs;

impl HostFs {
    /// The host's file system, shared.
    #[must_use]
    pub fn shared() -> Arc<dyn FileSystem> {
        Arc::new(Self)
    }
}

fn kind(meta: &Metadata) -> FileKind {
    let file_type = meta.file_type();
    if file_type.is_file() {
        FileKind::File
    } else if file_type.is_dir() {
        FileKind::Folder
    } else if file_type.is_block_device() {
        FileKind::BlockDevice
    } else {
        FileKind::Other
    }
}

/// Whether nobody may write to it by its permissions, which the kernel does not keep root from.
fn is_protected(meta: &Metadata) -> bool {
    meta.is_file() && meta.mode() & 0o222 == 0
}

fn wrap(file: File) -> io::Result<Arc<dyn DiskFile>> {
    let meta = file.metadata()?;
    let block_device = match kind(&meta) {
        FileKind::File => false,
        FileKind::BlockDevice => true,
        FileKind::Folder => return Err(ErrorKind::IsADirectory.into()),
        FileKind::Other => {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "neither an ordinary file nor a block device",
            ));
        }
    };
    Ok(Arc::new(HostFile::new(file, FileId { dev: meta.dev(), inode: meta.ino() }, block_device)))
}

impl FileSystem for HostFs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = File::options();
        options.read(true).write(mode == OpenMode::ReadWrite);
        // Opening a pipe by mistake must not wait for its other end.
        let mut flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        if mode == OpenMode::ReadWrite
            && fs::metadata(path).is_ok_and(|meta| kind(&meta) == FileKind::BlockDevice)
        {
            // Of a device that means: alone, and not while it is mounted.
            flags |= libc::O_EXCL;
        }
        options.custom_flags(flags);
        let file = options.open(path)?;
        if mode == OpenMode::ReadWrite && is_protected(&file.metadata()?) {
            return Err(io::Error::new(
                ErrorKind::PermissionDenied,
                "the file is read-only, as the disk of a template is; if it is none, `chmod u+w` makes it writable",
            ));
        }
        wrap(file)
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        wrap(File::options().read(true).write(true).create_new(true).mode(0o640).open(path)?)
    }

    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        if replace {
            return fs::rename(from, to);
        }
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // NFS and others do not know the flag; a second name fails likewise if `to` exists.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                fs::hard_link(from, to)?;
                fs::remove_file(from)
            }
            other => Ok(other?),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn create_dir_all(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn metadata(&self, path: &Path) -> io::Result<FileMeta> {
        let meta = fs::metadata(path)?;
        let kind = kind(&meta);
        let len = match kind {
            FileKind::BlockDevice => self.open(path, OpenMode::Read)?.len()?,
            _ => meta.len(),
        };
        Ok(FileMeta {
            id: FileId { dev: meta.dev(), inode: meta.ino() },
            kind,
            len,
            allocated: meta.blocks().saturating_mul(512),
            modified: meta.mtime(),
        })
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(path)
    }

    fn free_space(&self, folder: &Path) -> io::Result<u64> {
        let stat = statvfs(folder)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn holder(&self, id: FileId) -> Option<Holder> {
        lock::find_holder(id)
    }

    fn boot_id(&self) -> io::Result<[u8; 16]> {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let id = uuid::Uuid::try_parse(text.trim())
            .map_err(|_| io::Error::new(ErrorKind::InvalidData, "the kernel's boot id is not a UUID"))?;
        Ok(id.into_bytes())
    }
}

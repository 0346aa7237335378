//! The seam to the file system: everything the engine does to names and files goes through [`FileSystem`], so that the
//! crash tests can run the same code on a simulated one.

mod host;
mod host_file;
mod lock;
mod pages;
pub(crate) mod ring;
mod share;

pub use host::HostFs;
pub(crate) use pages::Pages;
pub use share::Shared;

use crate::seams::WriteGate;
use backstay_vhd::Storage;
use ring::Buf;
use std::{
    ffi::OsString,
    fmt::{self, Debug},
    fs::File,
    io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading only.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// Identity of a file on this host, whatever name it was reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Device number.
    pub dev: u64,
    /// Inode number.
    pub inode: u64,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// An ordinary file.
    File,
    /// A block device.
    BlockDevice,
    /// A folder.
    Folder,
    /// A pipe, socket, character device …
    Other,
}

/// Facts about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMeta {
    /// Who it is.
    pub id: FileId,
    /// What it is.
    pub kind: FileKind,
    /// Length in bytes; for a block device its capacity.
    pub len: u64,
    /// Bytes the file occupies on the file system.
    pub allocated: u64,
    /// Time of the last change of its content, seconds since 1970.
    pub modified: i64,
}

/// Strength of a lock on a whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Many readers.
    Shared,
    /// One writer.
    Exclusive,
}

/// The process that has a file open or locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Short name of the process.
    pub name: String,
    /// Its command line, shortened.
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {}, command {})", self.name, self.pid, self.command)
    }
}

/// Unit of transfers past the page cache, in bytes, of offsets, lengths and memory: a page. No device wants more, and what lies
/// in pages of its own is never half in the cache.
pub const DIRECT_UNIT: u64 = 4096;

/// A file that can be read and written past the page cache, in units of [`DIRECT_UNIT`].
#[derive(Clone, Copy, Debug)]
pub struct RingFile<'a> {
    pub(crate) file: &'a File,
    /// The same file through the cache.
    pub(crate) cached: &'a File,
    /// Shared by those who write past the cache.
    pub(crate) parts: &'a RwLock<()>,
    pub(crate) gate: Option<&'a dyn WriteGate>,
}

impl RingFile<'_> {
    /// Waits until a transfer may be handed to the kernel.
    pub(crate) fn pass(&self, buf: &Buf<'_>) -> io::Result<()> {
        match (self.gate, buf) {
            (Some(gate), Buf::Write(_)) => gate.pass(),
            _ => Ok(()),
        }
    }
}

/// An open file: positioned reads and writes, and a lock that belongs to this opening of it (not to the process).
pub trait DiskFile: Storage {
    /// Who it is.
    fn id(&self) -> FileId;

    /// Takes, strengthens or weakens the lock on the whole file. Never waits.
    ///
    /// # Errors
    /// `WouldBlock` when another opening of the file holds a lock that excludes this one; else as the file system.
    fn lock(&self, kind: LockKind) -> io::Result<()>;

    /// Drops the lock of this opening.
    ///
    /// # Errors
    /// As the file system.
    fn unlock(&self) -> io::Result<()>;

    /// Whether [`Storage::zero_range`] releases space quickly, as far as is known by now.
    fn punches(&self) -> bool;

    /// Bytes that the device reads and writes as a whole: 512, of some block devices 4096.
    fn sector_size(&self) -> u32 {
        512
    }

    /// From now on what a guest reads and writes goes past the page cache where it is aligned; false where that cannot be.
    fn bypass_cache(&self) -> bool {
        false
    }

    /// The file past the page cache, after [`DiskFile::bypass_cache`].
    fn direct(&self) -> Option<RingFile<'_>> {
        None
    }

    /// Writes what a guest wrote, as opposed to metadata, which shares no page with it that goes past the cache.
    ///
    /// # Errors
    /// As the file system.
    fn write_payload(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(buf, offset)
    }

    /// Starts writing the range back to the device without waiting for it. Only a hint.
    fn start_writeback(&self, _offset: u64, _len: u64) {}

    /// The descriptor that the kernel knows an ordinary file of this host by.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether [`DiskFile::share_range`] with that file is worth asking for, as far as is known by now.
    fn may_share(&self, _from: &dyn DiskFile) -> bool {
        false
    }

    /// Gives a range of this file the content that a range of another file, or another range of this one, has, without the
    /// bytes being read and written: the space is shared until either is written to. It takes the largest part of the range
    /// that it can and says which; for the rest the caller copies. Holes become holes. As a write it is durable after a flush
    /// of this file; of the other file nothing needs to be.
    ///
    /// # Errors
    /// As the file systems. Part of the range may have changed then. That they cannot do it is no error.
    fn share_range(
        &self,
        _from: &dyn DiskFile,
        _from_offset: u64,
        _to_offset: u64,
        _len: u64,
    ) -> io::Result<Shared> {
        Ok(Shared::Nothing)
    }
}

/// Names and files.
pub trait FileSystem: Send + Sync + Debug {
    /// Opens an existing file or block device; a device for writing only if nobody else has it, for himself or mounted.
    ///
    /// # Errors
    /// `ResourceBusy` where somebody has the device; as the file system: `NotFound`, `PermissionDenied`, `ReadOnlyFilesystem` …
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// Creates a file that must not exist yet, for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists`, else as the file system.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives the file `from` the name `to`. With `replace` an existing `to` is replaced in one step.
    ///
    /// # Errors
    /// `AlreadyExists` if `to` exists and is not to be replaced, else as the file system.
    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()>;

    /// Removes a name.
    ///
    /// # Errors
    /// As the file system.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in a folder durable.
    ///
    /// # Errors
    /// As the file system.
    fn sync_dir(&self, folder: &Path) -> io::Result<()>;

    /// Creates a folder and those above it, where they are missing.
    ///
    /// # Errors
    /// As the file system.
    fn create_dir_all(&self, folder: &Path) -> io::Result<()>;

    /// The names in a folder, in no order.
    ///
    /// # Errors
    /// As the file system.
    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>>;

    /// Facts about the file behind a path; symbolic links are followed.
    ///
    /// # Errors
    /// As the file system.
    fn metadata(&self, path: &Path) -> io::Result<FileMeta>;

    /// The path with all symbolic links resolved.
    ///
    /// # Errors
    /// As the file system.
    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf>;

    /// Bytes that a new file in `folder` could occupy.
    ///
    /// # Errors
    /// As the file system.
    fn free_space(&self, folder: &Path) -> io::Result<u64>;

    /// The process that keeps others from locking the file, if it can be found.
    fn holder(&self, id: FileId) -> Option<Holder>;

    /// An id of this run of the kernel: changes with every boot.
    ///
    /// # Errors
    /// Where the system does not tell.
    fn boot_id(&self) -> io::Result<[u8; 16]>;
}

/// The folder a path lies in, `.` for a bare name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

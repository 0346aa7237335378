//! The seam to the file system: everything the engine does to names and files goes through [`FileSystem`], so that the
//! crash tests can run the same code on a simulated one.

mod host;
mod host_file;
mod lock;

pub use host::HostFs;

use backstay_vhd::Storage;
use std::{
    ffi::OsString,
    fmt::{self, Debug},
    io,
    path::{Path, PathBuf},
    sync::Arc,
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

    /// Starts writing the range back to the device without waiting for it. Only a hint.
    fn start_writeback(&self, _offset: u64, _len: u64) {}
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

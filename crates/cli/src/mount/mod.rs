//! A disk and its partitions as files of a folder (FUSE), for tools that know files and loop devices and no VHD.

mod entries;
mod window;

use backstay_disk::{Backend, Disk};
use entries::{Entries, Entry};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyWrite, Request, Session, WriteFlags,
};
use rustix::fs::FallocateFlags;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use window::Window;

/// Nothing changes but content.
const TTL: Duration = Duration::from_secs(3600);
/// Threads that answer the kernel.
const THREADS: usize = 2;

/// A disk as a folder.
#[derive(Debug)]
struct DiskFolder {
    window: Window,
    entries: Entries,
    owner: (u32, u32),
    since: SystemTime,
}

/// Shows the disk in the folder `at`. Ends when the returned session runs and the folder is unmounted.
///
/// # Errors
/// If the partitions cannot be read or the folder cannot be mounted on.
pub fn mount(disk: &Arc<Disk>, source: &Path, at: &Path) -> io::Result<Session<impl Filesystem>> {
    let partitions = backstay_disk::partitions(disk)?;
    let folder = DiskFolder {
        entries: Entries::new(disk.size(), &partitions),
        window: Window::new(Arc::clone(disk) as Arc<dyn Backend>),
        owner: (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()),
        since: SystemTime::now(),
    };
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.mount_options = vec![
        MountOption::FSName(source.display().to_string().replace(',', "_")),
        MountOption::Subtype("backstay".into()),
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
        if disk.read_only() { MountOption::RO } else { MountOption::RW },
    ];
    Session::new(folder, at, &config)
}

impl DiskFolder {
    fn attributes(&self, ino: INodeNo, entry: Option<&Entry>) -> FileAttr {
        let size = entry.map_or(0, |entry| entry.len);
        let (kind, perm) = match (entry, self.window.read_only()) {
            (None, _) => (FileType::Directory, 0o500),
            (Some(_), true) => (FileType::RegularFile, 0o400),
            (Some(_), false) => (FileType::RegularFile, 0o600),
        };
        let [atime, mtime, ctime, crtime] = [self.since; 4];
        FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime,
            mtime,
            ctime,
            crtime,
            kind,
            perm,
            nlink: if entry.is_none() { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }

    fn entry(&self, ino: INodeNo) -> Result<&Entry, Errno> {
        self.entries.of(ino.0).ok_or(Errno::ENOENT)
    }

    /// The part of a range that is in the file: offset in the disk, and length.
    fn part(&self, ino: INodeNo, offset: u64, len: u64) -> Result<(u64, u64), Errno> {
        let entry = self.entry(ino)?;
        let offset = offset.min(entry.len);
        Ok((entry.offset + offset, len.min(entry.len - offset)))
    }

    fn zero(&self, ino: INodeNo, offset: u64, len: u64, mode: i32) -> Result<(), Errno> {
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let keep = FallocateFlags::KEEP_SIZE;
        let unmap = mode == FallocateFlags::PUNCH_HOLE | keep;
        if !unmap && mode != FallocateFlags::ZERO_RANGE | keep && mode != FallocateFlags::ZERO_RANGE {
            return Err(Errno::EOPNOTSUPP);
        }
        let (at, len) = self.part(ino, offset, len)?;
        self.window.zero(at, len, unmap).map_err(errno)
    }

    /// The next byte from `offset` on that is data, or is none.
    fn next_extent(&self, ino: INodeNo, offset: i64, whence: i32) -> Result<i64, Errno> {
        let data = match whence {
            libc_seek::DATA => true,
            libc_seek::HOLE => false,
            _ => return Err(Errno::EINVAL),
        };
        let entry = self.entry(ino)?;
        let from = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        if from >= entry.len {
            return Err(Errno::ENXIO);
        }
        let found =
            self.window.next_extent(entry.offset + from, entry.offset + entry.len, data).map_err(errno)?;
        // Behind the end is a hole, and no data.
        let found = match (found, data) {
            (Some(at), _) => at - entry.offset,
            (None, true) => return Err(Errno::ENXIO),
            (None, false) => entry.len,
        };
        i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
    }
}

/// Values of `lseek` that every Linux has.
mod libc_seek {
    pub(super) const DATA: i32 = 3;
    pub(super) const HOLE: i32 = 4;
}

/// What the engine says without a number of the system's is told on standard error by itself; programs get an I/O error.
fn errno(error: io::Error) -> Errno {
    use io::ErrorKind;
    match (error.raw_os_error(), error.kind()) {
        (Some(number), _) => Errno::from_i32(number),
        (None, ErrorKind::StorageFull) => Errno::ENOSPC,
        (None, ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) => Errno::EROFS,
        (None, _) => Errno::EIO,
    }
}

impl Filesystem for DiskFolder {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = (parent == INodeNo::ROOT).then(|| self.entries.find(name)).flatten();
        match found {
            Some((ino, entry)) => {
                reply.entry(&TTL, &self.attributes(INodeNo(ino), Some(entry)), Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match (ino, self.entry(ino)) {
            (INodeNo::ROOT, _) => reply.attr(&TTL, &self.attributes(ino, None)),
            (_, Ok(entry)) => reply.attr(&TTL, &self.attributes(ino, Some(entry))),
            (_, Err(error)) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<fuser::TimeOrNow>,
        _: Option<fuser::TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let entry = match self.entry(ino) {
            Ok(entry) => entry,
            Err(error) => return reply.error(error),
        };
        // A shell's `>` shortens to 0 before it writes: a disk stays as long as it is.
        let other_size = size.is_some_and(|size| size != 0 && size != entry.len);
        if other_size || mode.is_some() || uid.is_some() || gid.is_some() {
            return reply.error(Errno::EPERM);
        }
        reply.attr(&TTL, &self.attributes(ino, Some(entry)));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let dots = [".", ".."].map(|name| (1, FileType::Directory, name.to_owned()));
        let files = self.entries.all().map(|(ino, entry)| (ino, FileType::RegularFile, entry.name.clone()));
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, (ino, kind, name)) in dots.into_iter().chain(files).enumerate().skip(skipped) {
            if reply.add(INodeNo(ino), place as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        const READ_ONLY: i32 = 0;
        const ACCESS: i32 = 3;
        match self.entry(ino) {
            Err(error) => reply.error(error),
            Ok(_) if self.window.read_only() && flags.0 & ACCESS != READ_ONLY => reply.error(Errno::EROFS),
            // The same bytes are in two files: what is cached of one would not know of writes to the other.
            Ok(_) if self.window.read_only() => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Ok(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self
            .part(ino, offset, u64::from(size))
            .and_then(|(at, len)| self.window.read(at, len).map_err(errno));
        match read {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.part(ino, offset, data.len() as u64).and_then(|(at, len)| {
            let data = usize::try_from(len).ok().and_then(|len| data.get(..len)).unwrap_or_default();
            if data.is_empty() {
                return Err(Errno::ENOSPC);
            }
            self.window.write(at, data).map_err(errno)?;
            u32::try_from(data.len()).map_err(|_| Errno::EINVAL)
        });
        match written {
            Ok(len) => reply.written(len),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A close is no promise of durability; `fsync` is.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.window.flush() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        match self.zero(ino, offset, length, mode) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        match self.next_extent(ino, offset, whence) {
            Ok(at) => reply.offset(at),
            Err(error) => reply.error(error),
        }
    }
}

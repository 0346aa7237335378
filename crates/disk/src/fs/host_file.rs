//! One open file or block device of the host.

use super::{
    DIRECT_UNIT, DiskFile, FileId, LockKind, Pages, RingFile, Shared, lock,
    share::{Request, Sharing},
};
use backstay_vhd::Storage;
use rustix::{
    fs::{AtFlags, FallocateFlags, OFlags, SeekFrom, StatxFlags, fallocate, fcntl_getfl, seek, statx},
    io::{Errno, ReadWriteFlags, preadv2},
};
use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    sync::{
        OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// Written where holes cannot be punched.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// A [`DiskFile`] on positioned system calls; the file's cursor is never used.
#[derive(Debug)]
pub(super) struct HostFile {
    file: File,
    id: FileId,
    block_device: bool,
    /// Bytes.
    sector: u32,
    /// Cleared by the first refusal, so that it is asked once.
    can_punch: AtomicBool,
    can_nowait: AtomicBool,
    /// Past the page cache; none where that was asked for and cannot be.
    direct: OnceLock<Option<Direct>>,
    sharing: Sharing,
}

/// A second opening of a file that does not use the page cache.
#[derive(Debug)]
struct Direct {
    file: File,
    /// Exclusive for a write of part of a page, which goes through the cache: written back while somebody else writes the
    /// whole page past it, it would bring the rest of the page back as it was before.
    parts: RwLock<()>,
}

impl Direct {
    /// Opens `file` once more. None where the file system or the device cannot do without the cache, in pages.
    fn of(file: &File) -> io::Result<Option<Self>> {
        let unit = u32::try_from(DIRECT_UNIT).unwrap_or(u32::MAX);
        let facts = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
        let told = facts.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
        let fits = |align: u32| align != 0 && unit.is_multiple_of(align);
        if told && !(fits(facts.stx_dio_mem_align) && fits(facts.stx_dio_offset_align)) {
            return Ok(None);
        }
        let writable = fcntl_getfl(file)?.contains(OFlags::RDWR);
        // By the descriptor: its name may stand for another file by now.
        let again = File::options()
            .read(true)
            .write(writable)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let mut page = Pages::default();
        match again.read_at(page.room(4096), 0) {
            Ok(_) => Ok(Some(Self { file: again, parts: RwLock::default() })),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether a transfer can go past the page cache.
fn is_direct(buf: &[u8], offset: u64) -> bool {
    let (address, len) = (buf.as_ptr().addr() as u64, buf.len() as u64);
    !buf.is_empty() && (address | len | offset).is_multiple_of(DIRECT_UNIT)
}

impl HostFile {
    pub(super) fn new(file: File, id: FileId, block_device: bool) -> Self {
        let sector = match block_device {
            true => rustix::fs::ioctl_blksszget(&file).unwrap_or(512),
            false => 512,
        };
        Self {
            file,
            id,
            block_device,
            sector,
            can_punch: AtomicBool::new(true),
            can_nowait: AtomicBool::new(true),
            direct: OnceLock::new(),
            sharing: Sharing::default(),
        }
    }

    fn past_cache(&self) -> Option<&Direct> {
        self.direct.get().and_then(Option::as_ref)
    }

    /// Writes part of a page while nobody writes past the cache, and leaves nothing of it there to be written later.
    fn write_part(&self, direct: &Direct, buf: &[u8], offset: u64) -> io::Result<()> {
        let _alone = direct.parts.write().unwrap_or_else(PoisonError::into_inner);
        self.file.write_all_at(buf, offset)?;
        let start = offset / DIRECT_UNIT * DIRECT_UNIT;
        sync_range(&self.file, start, offset - start + buf.len() as u64)
    }

    fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let step = (len - done).min(ZEROS.len() as u64);
            let piece = usize::try_from(step).map_or(&ZEROS[..], |step| &ZEROS[..step]);
            self.file.write_all_at(piece, offset + done)?;
            done += step;
        }
        Ok(())
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        // Closing is not enough: a process that another thread is just forking has a copy of the descriptor until it
        // executes its program, and the lock would live as long.
        let _nothing_to_do_about_it = lock::set_lock(&self.file, None);
    }
}

/// Whether the error says that this file system cannot do it at all, rather than that it failed.
fn unsupported(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV | Errno::NOTTY)
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

impl Storage for HostFile {
    fn len(&self) -> io::Result<u64> {
        if self.block_device {
            return Ok(retry(|| seek(&self.file, SeekFrom::End(0)))?);
        }
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = self.past_cache().filter(|_| is_direct(buf, offset)) {
            match direct.file.read_exact_at(buf, offset) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                other => return other,
            }
        }
        self.file.read_exact_at(buf, offset)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if !self.can_nowait.load(Relaxed) || self.past_cache().is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut done = 0;
        while done < buf.len() {
            let position = offset + done as u64;
            let mut rest = [IoSliceMut::new(&mut buf[done..])];
            match preadv2(&self.file, &mut rest, position, ReadWriteFlags::NOWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(error) if unsupported(error) => {
                    self.can_nowait.store(false, Relaxed);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len).min(self.len()?);
        if end <= offset {
            return Ok(());
        }
        if self.can_punch.load(Relaxed) {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match retry(|| fallocate(&self.file, punch, offset, end - offset)) {
                Ok(()) => return Ok(()),
                Err(error) if unsupported(error) => self.can_punch.store(false, Relaxed),
                Err(error) => return Err(error.into()),
            }
        }
        self.write_zeros(offset, end - offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match retry(|| fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, len)) {
            Err(error) if unsupported(error) => Err(io::ErrorKind::Unsupported.into()),
            other => Ok(other?),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match retry(|| seek(&self.file, SeekFrom::Data(offset))) {
            Ok(position) => Ok(Some(position)),
            Err(Errno::NXIO) => Ok(None),
            Err(error) if unsupported(error) => Ok((offset < self.len()?).then_some(offset)),
            Err(error) => Err(error.into()),
        }
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        let len = self.len()?;
        if offset >= len {
            return Ok(len);
        }
        match retry(|| seek(&self.file, SeekFrom::Hole(offset))) {
            Ok(position) => Ok(position),
            Err(error) if error == Errno::NXIO || unsupported(error) => Ok(len),
            Err(error) => Err(error.into()),
        }
    }
}

impl DiskFile for HostFile {
    fn id(&self) -> FileId {
        self.id
    }

    fn lock(&self, kind: LockKind) -> io::Result<()> {
        lock::set_lock(&self.file, Some(kind))
    }

    fn unlock(&self) -> io::Result<()> {
        lock::set_lock(&self.file, None)
    }

    fn sector_size(&self) -> u32 {
        self.sector
    }

    fn punches(&self) -> bool {
        self.can_punch.load(Relaxed)
    }

    fn bypass_cache(&self) -> bool {
        let opened = || {
            Direct::of(&self.file).unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot open a file past the page cache");
                None
            })
        };
        self.direct.get_or_init(opened).is_some()
    }

    fn direct(&self) -> Option<RingFile<'_>> {
        let direct = self.past_cache()?;
        Some(RingFile { file: &direct.file, cached: &self.file, parts: &direct.parts, gate: None })
    }

    fn write_payload(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let Some(direct) = self.past_cache() else { return self.write_at(buf, offset) };
        if !(buf.len() as u64 | offset).is_multiple_of(DIRECT_UNIT) {
            return self.write_part(direct, buf, offset);
        }
        if is_direct(buf, offset) {
            let _with_others = direct.parts.read().unwrap_or_else(PoisonError::into_inner);
            match direct.file.write_all_at(buf, offset) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                other => return other,
            }
        }
        self.write_at(buf, offset)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        (!self.block_device).then(|| self.file.as_fd())
    }

    fn may_share(&self, from: &dyn DiskFile) -> bool {
        !self.block_device && from.descriptor().is_some() && self.sharing.may(from.id())
    }

    fn share_range(
        &self,
        from: &dyn DiskFile,
        from_offset: u64,
        to_offset: u64,
        len: u64,
    ) -> io::Result<Shared> {
        let Some(source) = from.descriptor().filter(|_| self.may_share(from)) else {
            return Ok(Shared::Nothing);
        };
        let (from_id, from_len) = (from.id(), from.len()?);
        let request = Request { from: source, from_id, from_offset, from_len, to_offset, len };
        self.sharing.share(&self.file, &request)
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        let _only_a_hint = sync_file_range(&self.file, offset, len, libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// Writes pages back and waits for it, so that none of them is left to be written later.
fn sync_range(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    match sync_file_range(file, offset, len, flags) {
        // Files that have no pages to write back.
        Err(error) if error.raw_os_error() == Some(libc::ESPIPE) => Ok(()),
        other => other,
    }
}

fn sync_file_range(file: &File, offset: u64, len: u64, flags: libc::c_uint) -> io::Result<()> {
    let range = (i64::try_from(offset), i64::try_from(len));
    let (Ok(offset), Ok(len)) = range else { return Err(io::ErrorKind::InvalidInput.into()) };
    #[expect(unsafe_code, reason = "neither std nor rustix offers sync_file_range")]
    // SAFETY: no memory is passed; the descriptor is open as long as `file` is borrowed.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

//! One open file or block device of the host.

use super::{DiskFile, FileId, LockKind, lock};
use backstay_vhd::Storage;
use rustix::{
    fs::{FallocateFlags, SeekFrom, fallocate, seek},
    io::{Errno, ReadWriteFlags, preadv2},
};
use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
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
        }
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
        self.file.read_exact_at(buf, offset)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if !self.can_nowait.load(Relaxed) {
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

    fn start_writeback(&self, offset: u64, len: u64) {
        let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
        #[expect(unsafe_code, reason = "neither std nor rustix offers sync_file_range")]
        // SAFETY: no memory is passed; the descriptor is open as long as `self.file` is borrowed.
        let _only_a_hint =
            unsafe { libc::sync_file_range(self.file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    }
}

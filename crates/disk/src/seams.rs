//! What others hang into the path of every write.

use crate::fs::{DiskFile, FileId, LockKind, RingFile, Shared};
use backstay_vhd::Storage;
use std::{fmt::Debug, io, os::fd::BorrowedFd, sync::Arc};

/// Asked at the moment each write (payload, metadata, hole, length) of a writable disk is handed to the kernel. A
/// cluster node whose right to write has ended holds writes back here.
pub trait WriteGate: Send + Sync + Debug {
    /// Returns when writing is allowed; may wait as long as it takes.
    ///
    /// # Errors
    /// The request fails with it. Prefer waiting: a guest that sees an error remounts read-only.
    fn pass(&self) -> io::Result<()>;
}

/// Told about every change of a disk's content after it happened and before the request is acknowledged.
pub trait ChangedRanges: Send + Sync + Debug {
    /// `len` bytes from `offset` may read differently now.
    fn changed(&self, offset: u64, len: u64);
}

/// A file whose every change asks the gate first.
#[derive(Debug)]
pub(crate) struct GatedFile {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) gate: Arc<dyn WriteGate>,
}

impl Storage for GatedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.try_read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.gate.pass()?;
        self.file.write_at(buf, offset)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.gate.pass()?;
        self.file.zero_range(offset, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.gate.pass()?;
        self.file.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.gate.pass()?;
        self.file.allocate(offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        self.gate.pass()?;
        self.file.flush()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.file.next_data(offset)
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        self.file.next_hole(offset)
    }
}

impl DiskFile for GatedFile {
    fn id(&self) -> FileId {
        self.file.id()
    }

    fn lock(&self, kind: LockKind) -> io::Result<()> {
        self.file.lock(kind)
    }

    fn unlock(&self) -> io::Result<()> {
        self.file.unlock()
    }

    fn punches(&self) -> bool {
        self.file.punches()
    }

    fn sector_size(&self) -> u32 {
        self.file.sector_size()
    }

    fn bypass_cache(&self) -> bool {
        self.file.bypass_cache()
    }

    fn direct(&self) -> Option<RingFile<'_>> {
        self.file.direct().map(|direct| RingFile { gate: Some(self.gate.as_ref()), ..direct })
    }

    fn write_payload(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.gate.pass()?;
        self.file.write_payload(buf, offset)
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        self.file.start_writeback(offset, len);
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.file.descriptor()
    }

    fn may_share(&self, from: &dyn DiskFile) -> bool {
        self.file.may_share(from)
    }

    fn share_range(
        &self,
        from: &dyn DiskFile,
        from_offset: u64,
        to_offset: u64,
        len: u64,
    ) -> io::Result<Shared> {
        self.gate.pass()?;
        self.file.share_range(from, from_offset, to_offset, len)
    }
}

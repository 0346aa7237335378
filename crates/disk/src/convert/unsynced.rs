//! The target while it is filled.

use crate::fs::{DiskFile, FileId, LockKind, Shared};
use backstay_vhd::Storage;
use std::{io, sync::Arc};

/// A file nobody knows yet: syncs on the way are pointless.
#[derive(Debug)]
pub(super) struct Unsynced(pub(super) Arc<dyn DiskFile>);

impl Storage for Unsynced {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.zero_range(offset, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.allocate(offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.0.next_data(offset)
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        self.0.next_hole(offset)
    }
}

impl DiskFile for Unsynced {
    fn id(&self) -> FileId {
        self.0.id()
    }

    fn lock(&self, kind: LockKind) -> io::Result<()> {
        self.0.lock(kind)
    }

    fn unlock(&self) -> io::Result<()> {
        self.0.unlock()
    }

    fn punches(&self) -> bool {
        self.0.punches()
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        self.0.start_writeback(offset, len);
    }

    fn may_share(&self, from: &dyn DiskFile) -> bool {
        self.0.may_share(from)
    }

    fn share_range(
        &self,
        from: &dyn DiskFile,
        from_offset: u64,
        to_offset: u64,
        len: u64,
    ) -> io::Result<Shared> {
        self.0.share_range(from, from_offset, to_offset, len)
    }
}

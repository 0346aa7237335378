//! What an export serves: the seam between the NBD server and whatever holds the bytes (a chain of ours, a raw file,
//! later a chain that another host serves).

use std::{fmt::Debug, io};

/// One run of a guest range with one allocation status (NBD `base:allocation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    /// Length in bytes.
    pub len: u64,
    /// No layer of the chain holds it.
    pub hole: bool,
    /// It reads as zeros.
    pub zero: bool,
}

/// How [`Backend::write_zeroes`] may work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroMode {
    /// Space may be released (NBD: no `NO_HOLE` flag).
    pub may_unmap: bool,
    /// Fail with `Unsupported` at once rather than write zeros the slow way (NBD `FAST_ZERO`).
    pub fast_only: bool,
}

/// The bytes of a request in a batch.
#[derive(Debug)]
pub enum BatchData<'a> {
    /// Filled from the disk.
    Read(&'a mut [u8]),
    /// Written to it.
    Write(&'a [u8]),
}

impl BatchData<'_> {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Read(buf) => buf,
            Self::Write(data) => data,
        }
    }
}

/// A request in a batch.
#[derive(Debug)]
pub struct BatchOp<'a> {
    /// Where on the disk.
    pub offset: u64,
    /// What.
    pub data: BatchData<'a>,
}

/// Told of each request of a batch that has ended: which one, its bytes, and how it ended.
pub type BatchDone<'a> = &'a mut dyn FnMut(usize, &[u8], io::Result<()>);

/// A disk as its user sees it. All offsets and lengths are multiples of the sector size and lie inside the disk; the caller checks.
/// Calls come from many threads at once. A call that returned `Ok` survives the death of this process; it survives
/// power loss after a later `flush` returned `Ok`.
pub trait Backend: Send + Sync + Debug {
    /// Size in bytes, a multiple of the sector size. It can grow while the disk is open.
    fn size(&self) -> u64;

    /// Unit of requests in bytes: 512, or 4096 for a disk whose sectors are that long.
    fn sector_size(&self) -> u32 {
        512
    }

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Fills `buf`.
    ///
    /// # Errors
    /// As the files below.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Fills `buf` if that needs no wait for a device, else fails with `WouldBlock`: lets a server answer cached reads
    /// without handing them to another thread.
    ///
    /// # Errors
    /// `WouldBlock`, or as [`Backend::read`].
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes `data`.
    ///
    /// # Errors
    /// `StorageFull` when no space is left, `ReadOnlyFilesystem` on a read-only disk, else as the files below.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes the range read as zeros.
    ///
    /// # Errors
    /// As [`Backend::write`]; `Unsupported` if `fast_only` cannot be kept.
    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> io::Result<()>;

    /// Tells that the content of the range is no longer needed. Afterwards each sector reads as its old content or as zeros.
    ///
    /// # Errors
    /// As [`Backend::write`].
    fn trim(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes every acknowledged write durable.
    ///
    /// # Errors
    /// As the files below.
    fn flush(&self) -> io::Result<()>;

    /// Allocation of the range, in order, without gaps; neighbours differ. At most `limit` runs; it may stop early.
    ///
    /// # Errors
    /// As the files below.
    fn block_status(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockStatus>>;

    /// Whether [`Backend::batch`] is better than many threads with a request each.
    fn batches(&self) -> bool {
        false
    }

    /// Carries out many requests as [`Backend::read`] and [`Backend::write`] do, in any order and at the same time. `done` is
    /// told of each once, as soon as it has ended.
    fn batch(&self, ops: Vec<BatchOp<'_>>, done: BatchDone<'_>) {
        for (index, BatchOp { offset, data }) in ops.into_iter().enumerate() {
            match data {
                BatchData::Read(buf) => {
                    let result = self.read(offset, buf);
                    done(index, buf, result);
                }
                BatchData::Write(data) => done(index, data, self.write(offset, data)),
            }
        }
    }

    /// As [`Backend::block_status`] for somebody who is about to read the range: zeros that are dearer to find than to
    /// read may count as data.
    ///
    /// # Errors
    /// As the files below.
    fn zeros_to_skip(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockStatus>> {
        self.block_status(offset, len, limit)
    }
}

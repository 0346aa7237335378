//! One export: a backend behind byte-granular ranges, zero detection and the protocol's error numbers.

use std::{
    io,
    sync::{Arc, PoisonError, RwLock},
};

use super::{
    negotiate::ExportInfo,
    proto::{Errno, StatusEntry, status},
    request::Limits,
    throttle::Throttle,
};
use crate::{Backend, BatchDone, BatchOp, BlockStatus, ZeroMode};

/// Plain writes of zeros at least this long may release space; shorter ones would cost more in the file system than
/// they save.
const UNMAP_MIN: usize = 64 << 10;
/// Step in which a range is brought into memory, in bytes.
const CACHE_STEP: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Export {
    pub name: String,
    description: String,
    backend: Arc<dyn Backend>,
    read_only: bool,
    /// Bytes that the backend reads and writes as a whole.
    sector: u64,
    /// Exclusive for writes that read and rewrite partial sectors, shared for all other changes.
    sectors: RwLock<()>,
    pub throttle: Arc<Throttle>,
}

/// A range widened to whole sectors.
struct Widened {
    start: u64,
    end: u64,
    aligned: bool,
}

fn widen(sector: u64, offset: u64, len: u64) -> Widened {
    // Checked against the size before, so the end does not overflow; the size is a multiple of the sector.
    let end = offset + len;
    let (start, wide) = (offset / sector * sector, end.div_ceil(sector) * sector);
    Widened { start, end: wide, aligned: start == offset && wide == end }
}

/// A length that came from a `u32` or a buffer.
fn small(len: u64) -> io::Result<usize> {
    usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory.into())
}

impl Export {
    pub fn new(name: String, description: String, backend: Arc<dyn Backend>, read_only: bool) -> Self {
        let sector = u64::from(backend.sector_size());
        let (sectors, throttle) = (RwLock::new(()), Throttle::new());
        Self { name, description, backend, read_only, sector, sectors, throttle }
    }

    fn widen(&self, offset: u64, len: u64) -> Widened {
        widen(self.sector, offset, len)
    }

    pub fn info(&self) -> ExportInfo {
        ExportInfo {
            name: self.name.clone(),
            description: self.description.clone(),
            size: self.backend.size(),
            read_only: self.limits().read_only,
            sector: self.backend.sector_size(),
        }
    }

    pub fn limits(&self) -> Limits {
        Limits { size: self.backend.size(), read_only: self.read_only || self.backend.read_only() }
    }

    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let wide = self.widen(offset, buf.len() as u64);
        if wide.aligned {
            return self.backend.read(offset, buf);
        }
        let mut whole = vec![0; small(wide.end - wide.start)?];
        self.backend.read(wide.start, &mut whole)?;
        let at = small(offset - wide.start)?;
        buf.copy_from_slice(&whole[at..at + buf.len()]);
        Ok(())
    }

    /// Fails with `WouldBlock` if the answer is not at hand.
    pub fn try_read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if !self.widen(offset, buf.len() as u64).aligned {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.backend.try_read(offset, buf)
    }

    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        if !self.widen(offset, data.len() as u64).aligned {
            return self.write_partial(offset, data);
        }
        let _shared = self.sectors.read().unwrap_or_else(PoisonError::into_inner);
        if is_zero(data) {
            let mode = ZeroMode { may_unmap: data.len() >= UNMAP_MIN, fast_only: false };
            return self.backend.write_zeroes(offset, data.len() as u64, mode);
        }
        self.backend.write(offset, data)
    }

    fn write_partial(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let wide = self.widen(offset, data.len() as u64);
        let mut whole = vec![0; small(wide.end - wide.start)?];
        let sector = small(self.sector)?;
        let last = whole.len() - sector;
        let at = small(offset - wide.start)?;
        let _exclusive = self.sectors.write().unwrap_or_else(PoisonError::into_inner);
        self.backend.read(wide.start, &mut whole[..sector])?;
        if last > 0 {
            self.backend.read(wide.end - self.sector, &mut whole[last..])?;
        }
        whole[at..at + data.len()].copy_from_slice(data);
        self.backend.write(wide.start, &whole)
    }

    pub fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> io::Result<()> {
        let inner = Inner::of(self.sector, offset, len);
        if inner.head > 0 {
            self.write_partial(offset, &vec![0; small(inner.head)?])?;
        }
        if inner.len > 0 {
            let _shared = self.sectors.read().unwrap_or_else(PoisonError::into_inner);
            self.backend.write_zeroes(offset + inner.head, inner.len, mode)?;
        }
        if inner.tail > 0 {
            self.write_partial(offset + inner.head + inner.len, &vec![0; small(inner.tail)?])?;
        }
        Ok(())
    }

    /// Partial sectors at the ends keep their content: the protocol lets a server ignore any part of a trim.
    pub fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        let inner = Inner::of(self.sector, offset, len);
        if inner.len == 0 {
            return Ok(());
        }
        let _shared = self.sectors.read().unwrap_or_else(PoisonError::into_inner);
        self.backend.trim(offset + inner.head, inner.len)
    }

    /// Whether requests of whole sectors should be carried out many at a time.
    pub fn batches(&self) -> bool {
        self.backend.batches()
    }

    /// Whether a range is whole sectors.
    pub fn is_whole(&self, offset: u64, len: u32) -> bool {
        self.widen(offset, len.into()).aligned
    }

    /// Reads and writes of whole sectors, short enough to hold no zeros that are worth looking for.
    pub fn batch(&self, ops: Vec<BatchOp<'_>>, done: BatchDone<'_>) {
        let _shared = self.sectors.read().unwrap_or_else(PoisonError::into_inner);
        self.backend.batch(ops, done);
    }

    pub fn flush(&self) -> io::Result<()> {
        self.backend.flush()
    }

    pub fn cache(&self, offset: u64, len: u64) -> io::Result<()> {
        let wide = self.widen(offset, len);
        let mut at = wide.start;
        let mut buf = vec![0; small((wide.end - wide.start).min(CACHE_STEP))?];
        while at < wide.end {
            let n = (wide.end - at).min(CACHE_STEP);
            self.backend.read(at, &mut buf[..small(n)?])?;
            at += n;
        }
        Ok(())
    }

    /// Allocation from `offset` on, at most `limit` runs and not beyond `offset + len`. Never empty.
    pub fn status(&self, offset: u64, len: u32, limit: usize) -> io::Result<Vec<Run>> {
        let wide = self.widen(offset, len.into());
        let runs = self.backend.block_status(wide.start, wide.end - wide.start, limit)?;
        Ok(Self::cut(runs, &wide, offset, len, limit))
    }

    /// As [`Export::status`], for a read of the range.
    pub fn zeros_to_skip(&self, offset: u64, len: u32, limit: usize) -> io::Result<Vec<Run>> {
        let wide = self.widen(offset, len.into());
        let runs = self.backend.zeros_to_skip(wide.start, wide.end - wide.start, limit)?;
        Ok(Self::cut(runs, &wide, offset, len, limit))
    }

    /// Cuts the status of whole sectors to what was asked for.
    fn cut(runs: Vec<BlockStatus>, wide: &Widened, offset: u64, len: u32, limit: usize) -> Vec<Run> {
        let (mut out, mut at, end) = (Vec::<Run>::new(), wide.start, offset + u64::from(len));
        for BlockStatus { len, hole, zero } in runs.into_iter().take(limit) {
            let (from, to) = (at.max(offset), (at + len).min(end));
            at += len;
            if from < to {
                // Inside the request, whose length is a u32.
                let len = u32::try_from(to - from).unwrap_or(u32::MAX);
                out.push(Run { len, hole, zero });
            }
        }
        if out.is_empty() {
            // "Data" is true of any range.
            out.push(Run { len, hole: false, zero: false });
        }
        out
    }
}

/// A run of a status reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub len: u32,
    pub hole: bool,
    pub zero: bool,
}

impl From<Run> for StatusEntry {
    fn from(run: Run) -> Self {
        let hole = if run.hole { status::HOLE } else { 0 };
        let zero = if run.zero { status::ZERO } else { 0 };
        Self { len: run.len.into(), flags: (hole | zero).into() }
    }
}

/// A range split into a partial first sector, whole sectors and a partial last sector.
#[derive(Debug, PartialEq, Eq)]
struct Inner {
    head: u64,
    len: u64,
    tail: u64,
}

impl Inner {
    fn of(sector: u64, offset: u64, len: u64) -> Self {
        let head = (offset.next_multiple_of(sector) - offset).min(len);
        let tail = (len - head) % sector;
        Self { head, len: len - head - tail, tail }
    }
}

/// Looks at all bytes only while they are zero: data ends it at once.
fn is_zero(data: &[u8]) -> bool {
    let n = data.len().min(16);
    data[..n].iter().all(|b| *b == 0) && data[n..] == data[..data.len() - n]
}

/// The protocol's number for an error of a backend.
pub(super) fn errno(error: &io::Error) -> Errno {
    use io::ErrorKind as K;
    match error.kind() {
        K::ReadOnlyFilesystem | K::PermissionDenied => Errno::Perm,
        K::StorageFull | K::QuotaExceeded | K::FileTooLarge => Errno::NoSpc,
        K::OutOfMemory => Errno::NoMem,
        K::InvalidInput => Errno::Inval,
        K::Unsupported => Errno::NotSup,
        _ => Errno::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_detection_sees_a_single_bit() {
        for len in [1, 15, 16, 17, 512, 4096] {
            let mut data = vec![0; len];
            assert!(is_zero(&data));
            for at in [0, len / 2, len - 1] {
                data[at] = 1;
                assert!(!is_zero(&data), "bit at {at} of {len}");
                data[at] = 0;
            }
        }
    }

    #[test]
    fn ranges_split_into_head_sectors_and_tail() {
        assert_eq!(Inner::of(512, 0, 1024), Inner { head: 0, len: 1024, tail: 0 });
        assert_eq!(Inner::of(512, 10, 20), Inner { head: 20, len: 0, tail: 0 });
        assert_eq!(Inner::of(512, 500, 1100), Inner { head: 12, len: 1024, tail: 64 });
        assert_eq!(Inner::of(512, 512, 100), Inner { head: 0, len: 0, tail: 100 });
        assert_eq!(Inner::of(4096, 512, 8192), Inner { head: 3584, len: 4096, tail: 512 });
    }
}

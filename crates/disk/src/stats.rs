//! What a disk has done since it was opened.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Numbers of a moment; all count from the opening of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct DiskStats {
    /// Completed reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Completed writes.
    pub writes: u64,
    /// Bytes written by the guest, zeros that needed no writing included.
    pub written_bytes: u64,
    /// Completed requests to write zeros.
    pub zeroes: u64,
    /// Completed trims.
    pub trims: u64,
    /// Completed flushes.
    pub flushes: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// The living counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    zeroes: AtomicU64,
    trims: AtomicU64,
    flushes: AtomicU64,
    errors: AtomicU64,
}

/// Kinds of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Read(u64),
    Write(u64),
    Zero,
    Trim,
    Flush,
}

impl Counters {
    /// Counts a finished request and hands its result on.
    pub(crate) fn count<T>(&self, op: Op, result: std::io::Result<T>) -> std::io::Result<T> {
        if result.is_err() {
            self.errors.fetch_add(1, Relaxed);
            return result;
        }
        match op {
            Op::Read(bytes) => {
                self.reads.fetch_add(1, Relaxed);
                self.read_bytes.fetch_add(bytes, Relaxed);
            }
            Op::Write(bytes) => {
                self.writes.fetch_add(1, Relaxed);
                self.written_bytes.fetch_add(bytes, Relaxed);
            }
            Op::Zero => _ = self.zeroes.fetch_add(1, Relaxed),
            Op::Trim => _ = self.trims.fetch_add(1, Relaxed),
            Op::Flush => _ = self.flushes.fetch_add(1, Relaxed),
        }
        result
    }

    pub(crate) fn snapshot(&self) -> DiskStats {
        DiskStats {
            reads: self.reads.load(Relaxed),
            read_bytes: self.read_bytes.load(Relaxed),
            writes: self.writes.load(Relaxed),
            written_bytes: self.written_bytes.load(Relaxed),
            zeroes: self.zeroes.load(Relaxed),
            trims: self.trims.load(Relaxed),
            flushes: self.flushes.load(Relaxed),
            errors: self.errors.load(Relaxed),
        }
    }
}

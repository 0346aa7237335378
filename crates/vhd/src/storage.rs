//! The only way this crate reaches bytes: positioned reads and writes on handles that the caller opened.

use std::{fmt::Debug, io};

/// One open file or device. Every call names its position; there is no cursor to share or corrupt.
pub trait Storage: Send + Sync + Debug {
    /// Current length in bytes.
    ///
    /// # Errors
    /// As the underlying file.
    fn len(&self) -> io::Result<u64>;

    /// Whether the length is zero.
    ///
    /// # Errors
    /// As [`Storage::len`].
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends first, else as the underlying file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Like [`Storage::read_at`] but fails with `WouldBlock` instead of waiting for a device. The default always blocks.
    ///
    /// # Errors
    /// `WouldBlock` when the bytes are not in memory, else as [`Storage::read_at`].
    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_at(buf, offset)
    }

    /// Writes all of `buf` at `offset`, growing the file if needed.
    ///
    /// # Errors
    /// As the underlying file; `StorageFull` when no space is left.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the range read as zeros and releases its space where the file system can. The length does not change.
    ///
    /// # Errors
    /// As the underlying file.
    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Sets the length; new bytes read as zeros.
    ///
    /// # Errors
    /// As the underlying file.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reserves space for the range so that later writes to it cannot run out of space.
    ///
    /// # Errors
    /// `StorageFull`; `Unsupported` where the file system cannot.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Returns when every write, length change and hole that came before is durable.
    ///
    /// # Errors
    /// As the underlying file. After an error nothing can be said about earlier writes.
    fn flush(&self) -> io::Result<()>;

    /// The first byte at or after `offset` that may hold data (not a hole); `None` when only holes follow.
    ///
    /// # Errors
    /// As the underlying file.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;

    /// The first byte at or after `offset` that is in a hole; the length of the file when none is.
    ///
    /// # Errors
    /// As the underlying file.
    fn next_hole(&self, offset: u64) -> io::Result<u64>;
}

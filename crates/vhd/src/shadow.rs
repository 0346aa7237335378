//! Where the bits of a differencing disk wait between the acknowledgement of a write and the flush that makes them durable.

use std::{fmt::Debug, io};

/// Bits of one block that a process left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowSlot {
    /// Block index.
    pub block: u32,
    /// The block's table entry when the bits were put; bits of a block that lies elsewhere now are void.
    pub bat_sector: u32,
    /// The block's bitmap from its first byte: most significant bit first, 1 = the sector was written.
    pub bits: Vec<u8>,
}

/// Memory that outlives the process but not the machine, such as a file on tmpfs with one slot per block.
///
/// A bitmap in the file may not say "present" before the data is durable, so it lags behind until the next flush. A
/// process that is killed would lose what it acknowledged since. The same bits therefore go here first. Bits are only
/// ever added, and finding one again that the file already has changes nothing, so slots need no clearing in between.
pub trait Shadow: Send + Sync + Debug {
    /// Stores `bytes` at byte `first_byte` of the block's bitmap, replacing what is there. If the slot's `bat_sector` is
    /// another one, all its other bytes become zero. Calls for one block never overlap in time.
    ///
    /// # Errors
    /// As the memory below; the disk is then flushed before the write is acknowledged.
    fn put(&self, block: u32, bat_sector: u32, first_byte: usize, bytes: &[u8]) -> io::Result<()>;

    /// Every slot in use.
    ///
    /// # Errors
    /// As the memory below; the disk is then not opened.
    fn load(&self) -> io::Result<Vec<ShadowSlot>>;

    /// Forgets what the block's slot holds: it belongs to a place that the block has no longer.
    ///
    /// # Errors
    /// As the memory below.
    fn forget(&self, block: u32) -> io::Result<()>;

    /// Forgets all slots: the disk was closed cleanly.
    ///
    /// # Errors
    /// As the memory below.
    fn clear(&self) -> io::Result<()>;
}

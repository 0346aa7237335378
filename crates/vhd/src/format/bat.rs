//! The block allocation table, the blocks it points to, and Xen's extra map behind it.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U32, U64},
};

use super::{MAX_READ_BLOCK_SIZE, MAX_READ_BLOCKS, SECTOR, align_up};

/// Table entry of a block that is not in the file.
pub const ABSENT: u32 = u32::MAX;

/// Alignment of block data in files we write; Windows 8 and later do the same.
pub const DATA_ALIGN: u64 = 4096;

/// First bytes of Xen's block map, in the first sector behind the table.
pub const XEN_BATMAP_COOKIE: [u8; 8] = *b"tdbatmap";

/// Header of Xen's block map.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct XenBatmap {
    /// [`XEN_BATMAP_COOKIE`].
    pub cookie: [u8; 8],
    /// Offset of the map.
    pub offset: U64,
    /// Sectors of the map.
    pub sectors: U32,
    /// 1.1 or 1.2.
    pub version: U32,
    /// Of the map.
    pub checksum: U32,
}

const _: () = assert!(size_of::<XenBatmap>() == 28);

/// Sizes that follow from virtual size and block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Virtual size in bytes.
    pub size: u64,
    /// Bytes of data in a block; a power of two of at least 512.
    pub block_size: u64,
    /// Bytes of the bitmap before the data; whole sectors.
    pub bitmap_len: u64,
    /// Number of blocks, the last one perhaps longer than the disk.
    pub count: u32,
}

/// Why sizes cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlocksError {
    /// Not a power of two of 512 bytes to 256 MiB.
    BlockSize,
    /// More blocks than [`MAX_READ_BLOCKS`].
    TooMany,
}

impl Blocks {
    /// Checks and derives.
    ///
    /// # Errors
    /// If the block size is not usable or there are too many blocks.
    pub fn new(size: u64, block_size: u32) -> Result<Self, BlocksError> {
        let bytes = u64::from(block_size);
        if !block_size.is_power_of_two() || bytes < SECTOR || block_size > MAX_READ_BLOCK_SIZE {
            return Err(BlocksError::BlockSize);
        }
        let count = size.div_ceil(bytes);
        if count > MAX_READ_BLOCKS {
            return Err(BlocksError::TooMany);
        }
        let bits = bytes.checked_div(SECTOR).unwrap_or(1);
        let bitmap_len = align_up(bits.div_ceil(8), SECTOR).ok_or(BlocksError::BlockSize)?;
        let count = u32::try_from(count).map_err(|_| BlocksError::TooMany)?;
        Ok(Self { size, block_size: bytes, bitmap_len, count })
    }

    /// Bytes of a block in the file: bitmap and data.
    #[must_use]
    pub fn stored_len(&self) -> u64 {
        self.bitmap_len.saturating_add(self.block_size)
    }

    /// Bytes of the table in the file, padded to a sector.
    #[must_use]
    pub fn table_len(entries: u32) -> u64 {
        align_up(u64::from(entries).saturating_mul(4), SECTOR).unwrap_or(u64::MAX)
    }

    /// Where a new block's bitmap goes at or after `free`, so that its data is aligned to [`DATA_ALIGN`]; `None` past
    /// the end of `u64`.
    #[must_use]
    pub fn place(&self, free: u64) -> Option<u64> {
        align_up(free.checked_add(self.bitmap_len)?, DATA_ALIGN)?.checked_sub(self.bitmap_len)
    }

    /// Bytes of block `index` that belong to the disk.
    #[must_use]
    pub fn used_len(&self, index: u32) -> u64 {
        let start = u64::from(index).saturating_mul(self.block_size);
        self.size.saturating_sub(start).min(self.block_size)
    }
}

//! The bytes of a VHD file: constants, structures with explicit endianness, their checks. No decisions, no I/O.
//!
//! All integers are big-endian and the sector is always 512 bytes (VHD 1.0 specification, 11 October 2006).

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

pub mod bat;
pub mod footer;
pub mod geometry;
pub mod header;
pub mod locator;

/// Bytes in a sector.
pub const SECTOR: u64 = 512;

/// Largest virtual size: 2040 GiB. Block addresses are 32-bit sector numbers, and the metadata needs room below 2 TiB.
pub const MAX_SIZE: u64 = 2040 << 30;

/// Smallest block size that [`crate::create`] makes.
pub const MIN_BLOCK_SIZE: u32 = 512 << 10;

/// Largest block size that [`crate::create`] makes.
pub const MAX_BLOCK_SIZE: u32 = 64 << 20;

/// Block size that everybody uses.
pub const DEFAULT_BLOCK_SIZE: u32 = 2 << 20;

/// Largest block size accepted from a file. Nothing makes more than 64 MiB; the cap bounds what a hostile file can make
/// a reader allocate for one bitmap.
pub const MAX_READ_BLOCK_SIZE: u32 = 256 << 20;

/// Most blocks accepted from a file (64 MiB of block allocation table; 2040 GiB need 4.2 million at 512 KiB).
pub const MAX_READ_BLOCKS: u64 = 16 << 20;

/// The one's complement of the sum of all bytes, the four at `skip` taken as zero.
#[must_use]
pub(crate) fn checksum(bytes: &[u8], skip: usize) -> u32 {
    let hole = skip..skip.saturating_add(4);
    let sum = bytes
        .iter()
        .enumerate()
        .filter(|(at, _)| !hole.contains(at))
        .fold(0u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    !sum
}

/// The next multiple of `to` (a power of two) at or above `value`; `None` past the end of `u64`.
#[must_use]
pub(crate) fn align_up(value: u64, to: u64) -> Option<u64> {
    let mask = to.checked_sub(1)?;
    value.checked_add(mask).map(|sum| sum & !mask)
}

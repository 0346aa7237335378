//! Numbers of the format (MS-VHDX 2.1): where things are, how large they may be, how they are summed.

use uuid::Uuid;

/// Everything but headers and log is placed in units of this.
pub const MIB: u64 = 1 << 20;
/// First bytes of every VHDX file.
pub const FILE_SIGNATURE: [u8; 8] = *b"vhdxfile";
/// Offsets of the two headers.
pub const HEADERS_AT: [u64; 2] = [64 << 10, 128 << 10];
/// Bytes of a header that its checksum covers.
pub const HEADER_LEN: usize = 4096;
/// Offsets of the two region tables.
pub const REGION_TABLES_AT: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of a region table.
pub const REGION_TABLE_LEN: usize = 64 << 10;
/// Bytes of the metadata table at the start of its region; items lie behind it.
pub const METADATA_TABLE_LEN: usize = 64 << 10;
/// Most entries in a region or metadata table.
pub const MAX_ENTRIES: usize = 2047;
/// Unit of the log and of everything that it describes.
pub const PAGE: u64 = 4096;
/// [`PAGE`] as a length.
pub const PAGE_LEN: usize = 4096;
/// Smallest block.
pub const MIN_BLOCK_SIZE: u32 = 1 << 20;
/// Largest block.
pub const MAX_BLOCK_SIZE: u32 = 256 << 20;
/// Largest virtual size: 64 TiB.
pub const MAX_SIZE: u64 = 64 << 40;
/// Sectors that one sector bitmap block describes.
pub const CHUNK_SECTORS: u64 = 1 << 23;
/// Bytes of a sector bitmap block.
pub const BITMAP_BLOCK_LEN: u64 = MIB;
/// No part of a file may lie behind this: 512 TiB, eight times the largest disk.
pub const MAX_FILE_LEN: u64 = 512 << 40;
/// Largest log that is looked at.
pub const MAX_LOG_LEN: u32 = 1 << 30;

/// Region of the block allocation table.
pub const BAT_REGION: Uuid = Uuid::from_u128(0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08);
/// Region of the metadata.
pub const METADATA_REGION: Uuid = Uuid::from_u128(0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e);

/// CRC-32C of `bytes`, the four at `at` taken as zero.
#[must_use]
pub(crate) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let (head, rest) = bytes.split_at(at.min(bytes.len()));
    let sum = crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]);
    crc32c::crc32c_append(sum, rest.get(4..).unwrap_or_default())
}

/// A GUID as it lies in a file: the first three fields little-endian.
#[must_use]
pub(crate) fn guid(bytes: [u8; 16]) -> Uuid {
    Uuid::from_bytes_le(bytes)
}

/// The next multiple of `to`, which must not be 0; the largest number past the end of `u64`.
#[must_use]
pub(crate) fn round_up(value: u64, to: u64) -> u64 {
    value.checked_next_multiple_of(to).unwrap_or(u64::MAX)
}

/// A length that fits into memory, as `usize`.
pub(crate) fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

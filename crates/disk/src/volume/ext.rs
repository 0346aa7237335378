//! ext2, ext3 and ext4: superblock, group descriptors, block bitmaps (kernel documentation, "ext4 Data Structures").
//!
//! A group counts only if its sums are right and its bitmap has as many clear bits as the descriptor says.

use super::{
    FreeMap, Left, Volume, as_usize,
    bits::clear_runs,
    number::{le16, le32},
    strange,
};

const SUPER_AT: u64 = 1024;
const SUPER_LEN: usize = 1024;
/// Groups that are looked at: 128 TiB of the usual ones.
const MOST_GROUPS: u64 = 1 << 20;
/// Smallest group that `mke2fs` makes, in blocks.
const LEAST_GROUP: u64 = 256;
/// Groups whose descriptors are read at once.
const AT_ONCE: u64 = 1024;

/// States of the superblock: clean, and nothing else.
const CLEAN: u16 = 1;

const RECOVER: u32 = 0x4;
const META_BG: u32 = 0x10;
const IS_64BIT: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
/// File types, extents, 64 bits, groups in flocks, large attributes, data in directory entries, a seed for sums, large directories,
/// data in inodes, encryption, names without case: none of them changes what the bitmaps mean.
const KNOWN_INCOMPAT: u32 =
    0x2 | 0x40 | IS_64BIT | 0x200 | 0x400 | 0x1000 | CSUM_SEED | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;

const GDT_CSUM: u32 = 0x10;
const METADATA_CSUM: u32 = 0x400;
/// Sparse superblocks, large files, directory trees, huge files, sums of groups, many links, extra inode space, quotas, sums of
/// metadata, projects, verity. Not: clusters, shared blocks, snapshots, replicas, inodes that wait for their end.
const KNOWN_RO: u32 =
    0x1 | 0x2 | 0x4 | 0x8 | GDT_CSUM | 0x20 | 0x40 | 0x100 | METADATA_CSUM | 0x2000 | 0x8000;

/// The bitmap of this group was never written.
const BLOCK_UNINIT: u16 = 0x2;

/// What of the superblock is needed.
#[derive(Debug)]
struct Super {
    block: u64,
    blocks: u64,
    first: u64,
    per_group: u64,
    inodes_per_group: u64,
    inode_size: u64,
    descriptor: u64,
    /// Blocks that copies of the descriptors take at the start of some groups, with what is kept for their growth.
    copies: u64,
    sums: Sums,
    uuid: [u8; 16],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sums {
    None,
    Crc16,
    /// CRC-32C with this seed.
    Crc32c(u32),
}

/// One group.
#[derive(Debug)]
struct Group {
    number: u64,
    bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    free: u64,
    flags: u16,
    bitmap_sum: u32,
}

/// What the file system says is free, in bytes of the volume.
pub(super) fn free(volume: &Volume<'_>) -> Result<FreeMap, Left> {
    let head = Super::read(volume)?;
    let groups = (head.blocks - head.first).div_ceil(head.per_group);
    if groups > MOST_GROUPS {
        return Err(strange(format!("it has {groups} groups, more than are looked at")));
    }
    let metadata = head.metadata_of_unwritten(volume, groups)?;
    let mut free = FreeMap::default();
    head.each_group(volume, groups, &mut |group| head.free_in(volume, &group, &metadata, &mut free))?;
    Ok(free)
}

impl Super {
    fn read(volume: &Volume<'_>) -> Result<Self, Left> {
        let bytes = volume.bytes(SUPER_AT, SUPER_LEN)?;
        if le16(&bytes, 0x38) != 0xef53 {
            return Err(strange("its superblock has no ext signature"));
        }
        let [incompat, read_only] = [0x60, 0x64].map(|at| le32(&bytes, at));
        if le16(&bytes, 0x3a) != CLEAN || incompat & RECOVER != 0 || le32(&bytes, 0xe8) != 0 {
            return Err(Left::Dirty("its ext file system is in use, or was not unmounted".into()));
        }
        let unknown = (incompat & !KNOWN_INCOMPAT, read_only & !KNOWN_RO);
        if unknown != (0, 0) || incompat & META_BG != 0 {
            return Err(strange(format!(
                "its ext file system has features that are not known here ({:#x}, {:#x})",
                unknown.0, unknown.1
            )));
        }
        let wide = incompat & IS_64BIT != 0;
        let shift = le32(&bytes, 0x18);
        if shift > 6 || le32(&bytes, 0x1c) != shift {
            return Err(strange("the size of its ext blocks is out of range"));
        }
        let block = 1024_u64 << shift;
        let high = if wide { u64::from(le32(&bytes, 0x150)) << 32 } else { 0 };
        let revision = le32(&bytes, 0x4c);
        let uuid: [u8; 16] = bytes.get(0x68..0x78).and_then(|b| b.try_into().ok()).unwrap_or_default();
        let descriptor = if wide { u64::from(le16(&bytes, 0xfe)) } else { 32 };
        let head = Self {
            block,
            blocks: high | u64::from(le32(&bytes, 4)),
            first: u64::from(le32(&bytes, 0x14)),
            per_group: u64::from(le32(&bytes, 0x20)),
            inodes_per_group: u64::from(le32(&bytes, 0x28)),
            inode_size: if revision == 0 { 128 } else { u64::from(le16(&bytes, 0x58)) },
            descriptor,
            copies: 0,
            sums: sums(&bytes, incompat, read_only, &uuid)?,
            uuid,
        };
        head.check(volume)?;
        let groups = (head.blocks - head.first).div_ceil(head.per_group);
        let copies = 1 + (groups * descriptor).div_ceil(block) + u64::from(le16(&bytes, 0xce));
        Ok(Self { copies, ..head })
    }

    fn check(&self, volume: &Volume<'_>) -> Result<(), Left> {
        let inside = self.blocks.checked_mul(self.block).is_some_and(|bytes| bytes <= volume.len());
        let first = if self.block == 1024 { self.first == 1 } else { self.first == 0 };
        if !inside || !first || self.blocks <= self.first {
            return Err(strange(format!(
                "its ext file system has {} blocks, and there is no room for them",
                self.blocks
            )));
        }
        let group =
            (LEAST_GROUP..=8 * self.block).contains(&self.per_group) && self.per_group.is_multiple_of(8);
        let table = self.inodes_per_group * self.inode_size;
        let inodes = (128..=self.block).contains(&self.inode_size)
            && self.inodes_per_group > 0
            && table <= self.per_group * self.block;
        let descriptor = (32..=1024).contains(&self.descriptor) && self.descriptor.is_power_of_two();
        if group && inodes && descriptor {
            Ok(())
        } else {
            Err(strange("the groups of its ext file system are out of range"))
        }
    }

    /// Reads all descriptors, in order.
    fn each_group(
        &self,
        volume: &Volume<'_>,
        groups: u64,
        visit: &mut dyn FnMut(Group) -> Result<(), Left>,
    ) -> Result<(), Left> {
        let table = (self.first + 1) * self.block;
        let mut number = 0;
        while number < groups {
            let count = AT_ONCE.min(groups - number);
            let bytes = volume.bytes(table + number * self.descriptor, as_usize(count * self.descriptor))?;
            for bytes in bytes.chunks(as_usize(self.descriptor)) {
                visit(self.group(number, bytes)?)?;
                number += 1;
            }
        }
        Ok(())
    }

    fn group(&self, number: u64, bytes: &[u8]) -> Result<Group, Left> {
        if !self.sum_fits(number, bytes) {
            return Err(strange(format!("the checksum of its ext group {number} is wrong")));
        }
        let wide = self.descriptor >= 64;
        let place = |low: usize, high: usize| {
            u64::from(le32(bytes, low)) | if wide { u64::from(le32(bytes, high)) << 32 } else { 0 }
        };
        let small = |low: usize, high: usize| {
            u32::from(le16(bytes, low)) | if wide { u32::from(le16(bytes, high)) << 16 } else { 0 }
        };
        let group = Group {
            number,
            bitmap: place(0, 0x20),
            inode_bitmap: place(4, 0x24),
            inode_table: place(8, 0x28),
            free: u64::from(small(0xc, 0x2c)),
            flags: le16(bytes, 0x12),
            bitmap_sum: small(0x18, 0x38),
        };
        let table_end = group.inode_table.checked_add(self.inode_table_blocks());
        let inside = |block: u64| (self.first..self.blocks).contains(&block);
        if inside(group.bitmap)
            && inside(group.inode_bitmap)
            && inside(group.inode_table)
            && table_end.is_some_and(|end| end <= self.blocks)
        {
            Ok(group)
        } else {
            Err(strange(format!("its ext group {number} has bitmaps outside of the file system")))
        }
    }

    fn inode_table_blocks(&self) -> u64 {
        (self.inodes_per_group * self.inode_size).div_ceil(self.block)
    }

    fn sum_fits(&self, number: u64, bytes: &[u8]) -> bool {
        const FIELD: usize = 0x1e;
        let stored = le16(bytes, FIELD);
        let number = u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        let (before, behind) =
            (bytes.get(..FIELD).unwrap_or_default(), bytes.get(FIELD + 2..).unwrap_or_default());
        match self.sums {
            Sums::None => true,
            Sums::Crc16 => {
                let sum = [&self.uuid[..], &number, before, behind].into_iter().fold(u16::MAX, crc16);
                sum == stored
            }
            Sums::Crc32c(seed) => {
                let sum = [&number[..], before, &[0, 0], behind].into_iter().fold(seed, crc32c);
                sum & 0xffff == u32::from(stored)
            }
        }
    }

    /// Where bitmaps and tables are, in order, if there is a group whose bitmap would have to tell and does not exist.
    fn metadata_of_unwritten(&self, volume: &Volume<'_>, groups: u64) -> Result<Vec<(u64, u64)>, Left> {
        let (mut unwritten, mut places) = (false, Vec::new());
        self.each_group(volume, groups, &mut |group| {
            unwritten |= group.flags & BLOCK_UNINIT != 0;
            places.push((group.bitmap, group.bitmap + 1));
            places.push((group.inode_bitmap, group.inode_bitmap + 1));
            places.push((group.inode_table, group.inode_table + self.inode_table_blocks()));
            Ok(())
        })?;
        places.sort_unstable();
        Ok(if unwritten { places } else { Vec::new() })
    }

    /// Adds the free blocks of a group.
    fn free_in(
        &self,
        volume: &Volume<'_>,
        group: &Group,
        metadata: &[(u64, u64)],
        free: &mut FreeMap,
    ) -> Result<(), Left> {
        let start = self.first + group.number * self.per_group;
        let count = self.per_group.min(self.blocks - start);
        let mut add = |from: u64, end: u64| free.add(from * self.block, end * self.block);
        if group.flags & BLOCK_UNINIT != 0 {
            if self.sums == Sums::None {
                return Err(strange(format!(
                    "its ext group {} has no bitmap, and no sum says that this is so",
                    group.number
                )));
            }
            // Copies of the superblock and descriptors are in some groups only; here they count in all.
            let (mut at, end) = (start + self.copies.min(count), start + count);
            let first = metadata.partition_point(|(from, _)| *from < start).saturating_sub(1);
            for (from, stop) in metadata.iter().skip(first).take_while(|(from, _)| *from < end) {
                if *from > at {
                    add(at, *from);
                }
                at = at.max(*stop);
            }
            if at < end {
                add(at, end);
            }
            return Ok(());
        }
        let bitmap = volume.bytes(group.bitmap * self.block, as_usize(self.block))?;
        let sum = match self.sums {
            Sums::Crc32c(seed) => {
                Some(crc32c(seed, bitmap.get(..as_usize(self.per_group / 8)).unwrap_or_default()))
            }
            _ => None,
        };
        let mask = if self.descriptor >= 64 { u32::MAX } else { 0xffff };
        if sum.is_some_and(|sum| sum & mask != group.bitmap_sum & mask) {
            return Err(strange(format!(
                "the checksum of the bitmap of its ext group {} is wrong",
                group.number
            )));
        }
        let mut found = 0;
        clear_runs(&bitmap, count, |first, len| {
            found += len;
            add(start + first, start + first + len);
        });
        if found == group.free {
            return Ok(());
        }
        Err(strange(format!(
            "its ext group {} says that {} blocks are free, and {found} are: `e2fsck` in the machine puts it right",
            group.number, group.free
        )))
    }
}

/// How sums are made; an error if that of the superblock is wrong.
fn sums(bytes: &[u8], incompat: u32, read_only: u32, uuid: &[u8; 16]) -> Result<Sums, Left> {
    if read_only & METADATA_CSUM == 0 {
        return Ok(if read_only & GDT_CSUM != 0 { Sums::Crc16 } else { Sums::None });
    }
    const FIELD: usize = 0x3fc;
    let sum = crc32c(u32::MAX, bytes.get(..FIELD).unwrap_or_default());
    if bytes.get(0x175) != Some(&1) || sum != le32(bytes, FIELD) {
        return Err(strange("the checksum of its ext superblock is wrong"));
    }
    let seed = match incompat & CSUM_SEED {
        0 => crc32c(u32::MAX, uuid),
        _ => le32(bytes, 0x270),
    };
    Ok(Sums::Crc32c(seed))
}

/// Bytes that the file system reaches.
pub(super) fn size(bytes: &[u8]) -> Option<u64> {
    let wide = le32(bytes, 0x60) & IS_64BIT != 0;
    let blocks = u64::from(le32(bytes, 4)) | if wide { u64::from(le32(bytes, 0x150)) << 32 } else { 0 };
    let shift = le32(bytes, 0x18);
    blocks.checked_mul(1024_u64.checked_shl(shift).filter(|_| shift <= 6)?)
}

/// As the kernel sums: neither inverted before nor behind.
fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// CRC-16/ARC.
fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| (crc >> 1) ^ (0xa001 & 0_u16.wrapping_sub(crc & 1)))
    })
}

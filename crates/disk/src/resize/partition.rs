//! Partition tables: how far a disk is used, and moving the copy of a GUID partition table to another end. Bytes in, bytes
//! out.
//!
//! GPT: UEFI specification 2.10, chapter 5. MBR: the four entries at 446.

use crate::partitions::Partition;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

/// Bytes of a table of partitions that are read at most: real ones have 16 KiB.
pub(crate) const MAX_TABLE: u64 = 1 << 20;
const SIGNATURE: [u8; 8] = *b"EFI PART";
const HEADER_LEN: usize = 92;
const MBR_ENTRIES: usize = 446;
/// Windows keeps its list of volumes in the last MiB of such a disk, outside of all partitions.
const DYNAMIC_VOLUMES: u8 = 0x42;
const PROTECTIVE: u8 = 0xee;

/// Head of a GUID partition table.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct GptHeader {
    signature: [u8; 8],
    revision: U32,
    header_len: U32,
    checksum: U32,
    reserved: U32,
    my_sector: U64,
    other_sector: U64,
    first_usable: U64,
    last_usable: U64,
    disk_id: [u8; 16],
    entries_at: U64,
    entries: U32,
    entry_len: U32,
    entries_checksum: U32,
}

const _: () = assert!(size_of::<GptHeader>() == HEADER_LEN);

/// One line of a master boot record or of a table in an extended partition, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MbrEntry {
    kind: u8,
    /// From the start of what the table counts from.
    pub(crate) start: u64,
    pub(crate) len: u64,
}

impl MbrEntry {
    /// A partition that holds a list of others.
    pub(crate) fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// The four lines of a table; those that are not used have no length.
pub(crate) fn mbr_entries(sector: &[u8]) -> [MbrEntry; 4] {
    std::array::from_fn(|index| {
        let at = MBR_ENTRIES + 16 * index;
        let number = |at: usize| {
            let bytes = sector.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
            u64::from(u32::from_le_bytes(bytes))
        };
        let kind = sector.get(at + 4).copied().unwrap_or_default();
        MbrEntry { kind, start: number(at + 8), len: if kind == 0 { 0 } else { number(at + 12) } }
    })
}

/// What the first sector says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mbr {
    /// No partition table.
    None,
    /// There is a GUID partition table behind it.
    Gpt,
    /// First byte behind the last partition, and its number.
    Partitions {
        /// First byte behind the last one.
        end: u64,
        /// Its number, from 1.
        number: usize,
    },
    /// Windows' dynamic volumes use the whole disk.
    WholeDisk,
    /// Partitions that overlap or end behind the disk: what is in use cannot be told.
    Damaged,
}

/// Looks at the first sector of a disk of `size` bytes. The start of a file system, which ends with the same two bytes, has something
/// else than partitions where they would be.
pub(crate) fn mbr(first: &[u8], sector: u64, size: u64) -> Mbr {
    if first.get(510..512) != Some(&[0x55, 0xaa]) {
        return Mbr::None;
    }
    let entries = first.get(MBR_ENTRIES..510).unwrap_or_default().as_chunks::<16>().0;
    let (mut end, mut number, mut spans, mut damaged) = (0, 0, Vec::new(), false);
    for (index, entry) in entries.iter().enumerate() {
        let [flag, _, _, _, kind, _, _, _, start @ .., l0, l1, l2, l3] = entry;
        let (start, len) =
            (u64::from(u32::from_le_bytes(*start)), u64::from(u32::from_le_bytes([*l0, *l1, *l2, *l3])));
        match (flag, kind) {
            (0 | 0x80, 0) if len == 0 => continue,
            (0 | 0x80, 1..) => {}
            _ => return Mbr::None,
        }
        if *kind == PROTECTIVE {
            return Mbr::Gpt;
        }
        if *kind == DYNAMIC_VOLUMES {
            return Mbr::WholeDisk;
        }
        let stop = (start + len) * sector;
        damaged |= start == 0 || len == 0 || stop > size;
        spans.push((start, start + len));
        if stop > end {
            (end, number) = (stop, index + 1);
        }
    }
    spans.sort_unstable();
    damaged |= spans.array_windows::<2>().any(|[a, b]| b.0 < a.1);
    match (spans.is_empty(), damaged) {
        (true, _) => Mbr::None,
        (false, true) => Mbr::Damaged,
        (false, false) => Mbr::Partitions { end, number },
    }
}

/// A GUID partition table whose sums are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gpt {
    header: GptHeader,
    /// The whole sector that the header is in.
    sector: Vec<u8>,
    entries: Vec<u8>,
}

/// Where the entries are of the table whose header is in that sector, in bytes: offset and length.
pub(crate) fn gpt_entries(bytes: &[u8]) -> Option<(u64, u64)> {
    let (header, _) = GptHeader::read_from_prefix(bytes).ok()?;
    let len = u64::from(header.entries.get()).checked_mul(u64::from(header.entry_len.get()))?;
    let whole = bytes.len() as u64;
    let at = header.entries_at.get().checked_mul(whole)?;
    (header.signature == SIGNATURE && len > 0 && len <= MAX_TABLE).then_some((at, len))
}

impl Gpt {
    /// Checks a header (a whole sector) and its entries.
    pub(crate) fn parse(sector: &[u8], entries: &[u8]) -> Option<Self> {
        let (header, _) = GptHeader::read_from_prefix(sector).ok()?;
        let len = usize::try_from(header.header_len.get()).ok()?;
        let right = header.signature == SIGNATURE
            && (HEADER_LEN..=sector.len()).contains(&len)
            && header.my_sector.get() == 1
            && header.entry_len.get() >= 128
            && header.checksum.get() == checksum_of(sector, len)
            && header.entries_checksum.get() == crc32(entries);
        right.then(|| Self { header, sector: sector.to_vec(), entries: entries.to_vec() })
    }

    fn sector_len(&self) -> u64 {
        self.sector.len() as u64
    }

    /// All partitions, by their numbers; `None` if one of them ends before it begins, or behind all numbers.
    pub(crate) fn partitions(&self) -> Option<Vec<Partition>> {
        let len = usize::try_from(self.header.entry_len.get()).unwrap_or(usize::MAX);
        let sector = self.sector_len();
        let in_use = |entry: &[u8]| entry.get(..16).is_some_and(|kind| kind.iter().any(|byte| *byte != 0));
        let of = |(number, entry): (u32, &[u8])| {
            let number_at = |at: usize| {
                entry.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes)
            };
            let (first, last) = (number_at(32)?, number_at(40)?);
            let offset = first.checked_mul(sector)?;
            let len = last.checked_add(1)?.checked_mul(sector)?.checked_sub(offset)?;
            (len > 0).then_some(Partition { number, offset, len })
        };
        (1..).zip(self.entries.chunks(len)).filter(|(_, entry)| in_use(entry)).map(of).collect()
    }

    /// Bytes that the table and its partitions need, the copy of the table behind the last one; and the number of that, 0 without
    /// partitions. `None` if that cannot be told.
    pub(crate) fn needs(&self) -> Option<(u64, usize)> {
        let parts = self.partitions()?;
        let ends = parts.iter().map(|part| Some((part.offset.checked_add(part.len)?, part.number as usize)));
        let (end, number) = ends.collect::<Option<Vec<_>>>()?.into_iter().max().unwrap_or((0, 0));
        let start = self.header.first_usable.get().checked_mul(self.sector_len())?;
        Some((end.max(start).checked_add(self.copy_len())?, number))
    }

    /// Bytes that the second copy needs at the end of the disk.
    pub(crate) fn copy_len(&self) -> u64 {
        (self.entries.len() as u64).next_multiple_of(self.sector_len()) + self.sector_len()
    }

    /// What to write where, in this order, for a disk of `size` bytes: the copy at its end, which must be durable before the
    /// header at the start names it.
    pub(crate) fn moved_to(&self, size: u64) -> Moved {
        let sector = self.sector_len();
        let last = size / sector - 1;
        let at = (last + 1) - self.copy_len() / sector;
        let mut first = self.header.clone();
        first.other_sector = U64::new(last);
        first.last_usable = U64::new(at - 1);
        let mut second = first.clone();
        second.my_sector = U64::new(last);
        second.other_sector = U64::new(1);
        second.entries_at = U64::new(at);
        let mut copy = self.entries.clone();
        copy.resize(copy.len().next_multiple_of(self.sector.len()), 0);
        copy.extend(self.sealed(second));
        Moved { copy_at: at * sector, copy, header_at: sector, header: self.sealed(first) }
    }

    fn sealed(&self, mut header: GptHeader) -> Vec<u8> {
        let mut bytes = self.sector.clone();
        header.checksum = U32::new(0);
        let put = |bytes: &mut Vec<u8>, header: &GptHeader| {
            if let Some(slot) = bytes.get_mut(..HEADER_LEN) {
                slot.copy_from_slice(header.as_bytes());
            }
        };
        put(&mut bytes, &header);
        let len = usize::try_from(header.header_len.get()).unwrap_or(HEADER_LEN);
        header.checksum = U32::new(checksum_of(&bytes, len));
        put(&mut bytes, &header);
        bytes
    }
}

/// A table for another size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) copy_at: u64,
    /// Entries and header, whole sectors.
    pub(crate) copy: Vec<u8>,
    pub(crate) header_at: u64,
    pub(crate) header: Vec<u8>,
}

/// The first sector of a disk with a GUID partition table, for another size.
pub(crate) fn protective_for(first: &[u8], sector: u64, size: u64) -> Vec<u8> {
    let mut bytes = first.to_vec();
    let len = u32::try_from(size / sector - 1).unwrap_or(u32::MAX);
    for entry in bytes.get_mut(MBR_ENTRIES..510).unwrap_or_default().as_chunks_mut::<16>().0 {
        if entry[4] == PROTECTIVE {
            entry[12..].copy_from_slice(&len.to_le_bytes());
        }
    }
    bytes
}

/// The sum of a header, its own field as zero.
fn checksum_of(sector: &[u8], len: usize) -> u32 {
    let mut bytes = sector.get(..len).unwrap_or_default().to_vec();
    if let Some(field) = bytes.get_mut(16..20) {
        field.fill(0);
    }
    crc32(&bytes)
}

/// CRC-32 as in Ethernet: polynomial 0x04C11DB7, reflected.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1)))
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_the_specification() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    /// A table with these partitions: first and last sector.
    fn gpt(partitions: &[(u64, u64)]) -> Gpt {
        let mut entries = vec![0; 128 * 128];
        for (entry, (first, last)) in entries.chunks_mut(128).zip(partitions) {
            entry[..16].fill(7);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
        }
        let mut sector = vec![0; 512];
        sector[..8].copy_from_slice(&SIGNATURE);
        sector[12..16].copy_from_slice(&92_u32.to_le_bytes());
        sector[24] = 1;
        sector[40] = 34;
        sector[80..84].copy_from_slice(&128_u32.to_le_bytes());
        sector[84..88].copy_from_slice(&128_u32.to_le_bytes());
        let sum = crc32(&entries);
        sector[88..92].copy_from_slice(&sum.to_le_bytes());
        let sum = checksum_of(&sector, 92);
        sector[16..20].copy_from_slice(&sum.to_le_bytes());
        Gpt::parse(&sector, &entries).unwrap()
    }

    #[test]
    fn partitions_that_cannot_be_are_no_reason_to_cut_a_disk() {
        let copy = 33 * 512;
        assert_eq!(gpt(&[]).needs(), Some((34 * 512 + copy, 0)));
        assert_eq!(gpt(&[(2048, 4095), (64, 127)]).needs(), Some((4096 * 512 + copy, 1)));
        // Behind the last number there is, and from its end to its start.
        let most = u64::MAX / 512 - 1;
        for wrong in [(2048, most), (2048, u64::MAX), (4096, 2048)] {
            assert_eq!(gpt(&[(64, 127), wrong]).needs(), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_file_system_without_partitions_is_none() {
        let mut boot = [0x7f; 512];
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(mbr(&boot, 512, 1 << 30), Mbr::None);
        assert_eq!(mbr(&[0; 512], 512, 1 << 30), Mbr::None);
    }

    #[test]
    fn the_last_partition_counts_wherever_it_is_listed() {
        let mut first = [0; 512];
        first[510..].copy_from_slice(&[0x55, 0xaa]);
        let mut put = |slot: usize, kind: u8, start: u32, len: u32| {
            let at = MBR_ENTRIES + slot * 16;
            first[at + 4] = kind;
            first[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
            first[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
        };
        put(0, 0x83, 4096, 1000);
        put(1, 0x07, 2048, 2048);
        put(3, 0x05, 8192, 100);
        assert_eq!(mbr(&first, 512, 1 << 30), Mbr::Partitions { end: 8292 * 512, number: 4 });
        assert_eq!(mbr(&first, 512, 8192 * 512), Mbr::Damaged, "a partition ends behind the disk");
        first[MBR_ENTRIES + 16 + 8..MBR_ENTRIES + 16 + 12].copy_from_slice(&4000_u32.to_le_bytes());
        assert_eq!(mbr(&first, 512, 1 << 30), Mbr::Damaged, "two partitions overlap");
        first[MBR_ENTRIES] = 0x41;
        assert_eq!(mbr(&first, 512, 1 << 30), Mbr::None, "no table has such a flag");
    }
}

//! FAT12, FAT16 and FAT32 (Microsoft's "FAT: General Overview of On-Disk Format", 1.03). exFAT is something else.

use super::{
    FreeMap, Left, Volume, as_usize,
    number::{le16, le32},
    strange,
};

/// Bytes of a table that are read at once; whole entries of every kind.
const PIECE: u64 = 3 << 18;

/// What the first sector says.
#[derive(Debug)]
struct Head {
    sector: u64,
    cluster: u64,
    /// Where the first table is, and the second if there is one.
    tables: Vec<u64>,
    /// Bytes of a table.
    table_len: u64,
    /// Where cluster 2 is.
    data: u64,
    clusters: u64,
    width: Width,
    /// The byte that Windows marks a volume as dirty in.
    dirty: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

impl Width {
    /// Bits.
    fn bits(self) -> u64 {
        match self {
            Self::Twelve => 12,
            Self::Sixteen => 16,
            Self::ThirtyTwo => 32,
        }
    }
}

/// Whether a first sector is that of a FAT.
pub(super) fn is_fat(boot: &[u8]) -> bool {
    let named = [54, 82].iter().any(|at| boot.get(*at..*at + 3) == Some(b"FAT"));
    named && boot.get(510..512) == Some(&[0x55, 0xaa]) && Head::parse(boot).is_ok()
}

/// Bytes that the file system reaches.
pub(super) fn size(boot: &[u8]) -> Option<u64> {
    total_sectors(boot).checked_mul(u64::from(le16(boot, 11)))
}

fn total_sectors(boot: &[u8]) -> u64 {
    match le16(boot, 19) {
        0 => u64::from(le32(boot, 32)),
        few => u64::from(few),
    }
}

impl Head {
    fn parse(boot: &[u8]) -> Result<Self, Left> {
        let out_of_range = || strange("the first sector of its FAT is out of range");
        let byte = |at: usize| boot.get(at).copied().unwrap_or(0);
        let (sector, per_cluster, reserved, tables) =
            (u64::from(le16(boot, 11)), u64::from(byte(13)), u64::from(le16(boot, 14)), u64::from(byte(16)));
        if !(512..=4096).contains(&sector) || !sector.is_power_of_two() || !per_cluster.is_power_of_two() {
            return Err(out_of_range());
        }
        let table = match le16(boot, 22) {
            0 => u64::from(le32(boot, 36)),
            few => u64::from(few),
        };
        let root = (u64::from(le16(boot, 17)) * 32).div_ceil(sector);
        let data = reserved + tables * table + root;
        let total = total_sectors(boot);
        if reserved == 0 || !(1..=2).contains(&tables) || table == 0 || data >= total || byte(21) < 0xf0 {
            return Err(out_of_range());
        }
        let clusters = (total - data) / per_cluster;
        let width = match clusters {
            0..4085 => Width::Twelve,
            4085..65525 => Width::Sixteen,
            _ => Width::ThirtyTwo,
        };
        // The specification's rule tells the width; a head that has the fields of the other kind contradicts it.
        let has_wide_fields = le16(boot, 22) == 0;
        if has_wide_fields != (width == Width::ThirtyTwo) || (has_wide_fields && le16(boot, 40) & 0x80 != 0) {
            return Err(strange("its FAT has the fields of another width, or one table that counts of two"));
        }
        let head = Self {
            sector,
            cluster: per_cluster * sector,
            tables: (0..tables).map(|number| (reserved + number * table) * sector).collect(),
            table_len: table * sector,
            data: data * sector,
            clusters,
            width,
            dirty: byte(if has_wide_fields { 65 } else { 37 }),
        };
        if (clusters + 2) * width.bits() > head.table_len * 8 { Err(out_of_range()) } else { Ok(head) }
    }

    /// Whether somebody has it mounted, or had and did not unmount it.
    fn is_dirty(&self, first: &[u8]) -> bool {
        let marks = match self.width {
            Width::Twelve => false,
            Width::Sixteen => le16(first, 2) & 0xc000 != 0xc000,
            Width::ThirtyTwo => le32(first, 4) & 0x0c00_0000 != 0x0c00_0000,
        };
        marks || self.dirty & 3 != 0
    }

    /// The entry with that number, of entries that begin with number `first`, a multiple of two.
    fn is_free(&self, bytes: &[u8], index: u64) -> bool {
        let at = as_usize(index * self.width.bits() / 8);
        match self.width {
            Width::Twelve if index.is_multiple_of(2) => le16(bytes, at) & 0xfff == 0,
            Width::Twelve => le16(bytes, at) >> 4 == 0,
            Width::Sixteen => le16(bytes, at) == 0,
            Width::ThirtyTwo => le32(bytes, at) & 0x0fff_ffff == 0,
        }
    }
}

/// What the file system says is free, in bytes of the volume.
pub(super) fn free(volume: &Volume<'_>) -> Result<FreeMap, Left> {
    let boot = volume.bytes(0, 512)?;
    let head = Head::parse(&boot)?;
    if size(&boot).is_none_or(|size| size > volume.len()) || head.sector > volume.len() {
        return Err(strange("its FAT is larger than the volume"));
    }
    let mut free = FreeMap::default();
    let used_len = ((head.clusters + 2) * head.width.bits()).div_ceil(8);
    let mut at = 0;
    while at < used_len {
        let len = as_usize(PIECE.min(used_len - at));
        let mut tables = head.tables.iter().map(|table| volume.bytes(table + at, len));
        let first = tables.next().unwrap_or(Ok(Vec::new()))?;
        if at == 0 && head.is_dirty(&first) {
            return Err(Left::Dirty("its FAT file system is in use, or was not unmounted".into()));
        }
        for other in tables {
            if other? != first {
                return Err(strange("the two copies of its file allocation table differ"));
            }
        }
        let (from, count) = (at * 8 / head.width.bits(), len as u64 * 8 / head.width.bits());
        for number in (from..from + count).filter(|number| (2..head.clusters + 2).contains(number)) {
            if head.is_free(&first, number - from) {
                let start = head.data + (number - 2) * head.cluster;
                free.add(start, start + head.cluster);
            }
        }
        at += len as u64;
    }
    Ok(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_twelve_bits_share_bytes() {
        let head = Head {
            sector: 512,
            cluster: 512,
            tables: vec![512],
            table_len: 512,
            data: 4096,
            clusters: 10,
            width: Width::Twelve,
            dirty: 0,
        };
        // 0xfff, 0x000, 0x001, 0xf00
        let bytes = [0xff, 0x0f, 0x00, 0x01, 0x00, 0xf0];
        assert_eq!([0, 1, 2, 3].map(|index| head.is_free(&bytes, index)), [false, true, false, false]);
    }
}

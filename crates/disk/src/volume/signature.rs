//! Who owns a volume, by the marks that file systems and others leave on it, and how far each reaches.
//!
//! Several may be found: what a new file system does not overwrite of an old one stays.

use super::{
    Volume, ext, fat, ntfs,
    number::{be32, be64, le16, le32, le64},
};
use std::io;

/// Bytes at the start that hold all marks but one.
const HEAD: u64 = 264 << 10;
const SECTOR: u64 = 512;

/// A mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    /// As people call it.
    pub(crate) name: &'static str,
    /// What can be told of it.
    pub(super) system: System,
    /// Bytes that it reaches; none: it may use the whole volume.
    pub(crate) size: Option<u64>,
}

/// Which of them are looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum System {
    Ext,
    Ntfs,
    Fat,
    Other,
}

/// Bytes at a fixed place that only one of them has there.
const MARKS: [(&str, usize, &[u8]); 21] = [
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("ReFS", 3, b"ReFS\0\0\0\0"),
    ("a member of a Linux RAID", 0, b"\xfc\x4e\x2b\xa9\x01\0\0\0"),
    ("a member of a Linux RAID", 4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0"),
    ("F2FS", 1024, b"\x10\x20\xf5\xf2"),
    ("JFS", 32768, b"JFS1"),
    ("ReiserFS", 65588, b"ReIsEr"),
    ("bcache", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    ("bcachefs", 4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    ("Ceph BlueStore", 0, b"bluestore block device"),
    ("Oracle ASM", 32, b"ORCLDISK"),
    ("EROFS", 1024, b"\xe2\xe1\xf5\xe0"),
    ("GFS2", 65536, b"\x01\x16\x19\x70"),
    ("OCFS2", 1024, b"OCFSV2"),
    ("OCFS2", 2048, b"OCFSV2"),
    ("OCFS2", 4096, b"OCFSV2"),
    ("HFS", 1024, b"BD\0\0"),
    ("LVM1", 0, b"HM\x01\0"),
    ("Stratis", 528, b"!Stra0tis\x86\xff\x02^\x41rh"),
    ("VDO", 0, b"dmvdo001"),
];

/// What is found on a volume.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn identify(volume: &Volume<'_>) -> io::Result<Vec<Signature>> {
    let head = volume.at_most(0, HEAD)?;
    let mut found = Vec::new();
    let mut add = |name, system, size| {
        let new = Signature { name, system, size };
        if !found.iter().any(|known: &Signature| known.name == name) {
            found.push(new);
        }
    };
    let has = |at: usize, mark: &[u8]| head.get(at..at + mark.len()) == Some(mark);
    if has(1080, &[0x53, 0xef]) {
        add("an ext file system", System::Ext, head.get(1024..).and_then(ext::size));
    }
    if ntfs::is_ntfs(&head) {
        add("NTFS", System::Ntfs, ntfs::size(&head));
    }
    if fat::is_fat(&head) {
        add("FAT", System::Fat, fat::size(&head));
    }
    for (name, at, mark) in MARKS {
        if has(at, mark) {
            add(name, System::Other, None);
        }
    }
    for (name, size) in others(&head) {
        add(name, System::Other, size);
    }
    if raid_at_the_end(volume)? {
        add("a member of a Linux RAID", System::Other, None);
    }
    Ok(found)
}

/// Those that say how far they reach.
fn others(head: &[u8]) -> Vec<(&'static str, Option<u64>)> {
    const SB: usize = 0x1_0000;
    let has = |at: usize, mark: &[u8]| head.get(at..at + mark.len()) == Some(mark);
    let mut found = Vec::new();
    let mut add = |is_it: bool, name: &'static str, size: Option<u64>| {
        if is_it {
            found.push((name, size));
        }
    };
    let shift = u32::from(head.get(108).copied().unwrap_or(0));
    add(has(3, b"EXFAT   "), "exFAT", le64(head, 72).checked_mul(1_u64.checked_shl(shift).unwrap_or(0)));
    add(has(0, b"XFSB"), "XFS", be64(head, 8).checked_mul(u64::from(be32(head, 4))));
    // With several devices it says how much of this one it has.
    add(has(SB + 0x40, b"_BHRfS_M"), "btrfs", Some(le64(head, SB + 0xd1)));
    for page in [4096_usize, 8192, 16384, 65536] {
        let size = (u64::from(le32(head, 1028)) + 1).checked_mul(page as u64);
        add(has(page - 10, b"SWAPSPACE2"), "swap", size);
    }
    for at in (0..4 * 512).step_by(512) {
        let pv = at + usize::try_from(le32(head, at + 20)).unwrap_or(0).min(512);
        add(has(at, b"LABELONE") && has(at + 24, b"LVM2 001"), "LVM", Some(le64(head, pv + 32)));
    }
    add(has(32769, b"CD001"), "ISO 9660", u64::from(le32(head, 32848)).checked_mul(2048));
    let is_hfs = has(1024, b"H+\0\x04") || has(1024, b"HX\0\x05");
    add(is_hfs, "HFS+", u64::from(be32(head, 1064)).checked_mul(u64::from(be32(head, 1068))));
    add(has(32, b"NXSB"), "APFS", le64(head, 40).checked_mul(u64::from(le32(head, 36))));
    add(has(0, b"hsqs") && le16(head, 28) == 4, "SquashFS", Some(le64(head, 40)));
    let zfs = (128 << 10..HEAD_OF_ZFS).step_by(1024).any(|at| has(at, b"\x0c\xb1\xba\0\0\0\0\0"));
    add(zfs, "ZFS", None);
    found
}

/// Where the first label of ZFS ends.
const HEAD_OF_ZFS: usize = 256 << 10;

/// The old formats of Linux' RAID keep their mark behind the data, so that the start looks like the file system inside.
fn raid_at_the_end(volume: &Volume<'_>) -> io::Result<bool> {
    const MAGIC: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];
    let sectors = volume.len() / SECTOR;
    let places = [
        // 1.0, then 0.90.
        sectors.checked_sub(16).map(|at| at / 8 * 8 * SECTOR),
        (volume.len() / (64 << 10) * (64 << 10)).checked_sub(64 << 10),
    ];
    for at in places.into_iter().flatten() {
        if volume.at_most(at, 4)? == MAGIC {
            return Ok(true);
        }
    }
    Ok(false)
}

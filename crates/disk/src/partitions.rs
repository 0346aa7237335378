//! Where the partitions of a disk are.

use crate::{
    backend::Backend,
    disk::Disk,
    resize::partition::{self, Mbr, MbrEntry},
};
use std::io;

/// Logical partitions that are looked at: a table that goes in circles ends.
const LOGICAL: u32 = 128;
/// Number of the first logical partition.
const FIRST_LOGICAL: u32 = 5;

/// A partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number as Linux has it: the place in the table from 1, logical ones from 5.
    pub number: u32,
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Bytes; all of them are on the disk.
    pub len: u64,
}

/// What the start of a disk says about its parts.
#[derive(Debug)]
pub(crate) enum Table {
    /// No partition table.
    None,
    /// It contradicts itself or the disk.
    Damaged,
    /// Windows' dynamic volumes.
    Foreign,
    /// Partitions in the order of their numbers, all of them on the disk.
    Partitions(Vec<Partition>),
}

/// The partitions of a disk by its table: GPT (UEFI specification 2.10, chapter 5) or MBR with its logical ones. Those that are
/// not on the disk as a whole are left out, and so are all of a damaged table.
///
/// # Errors
/// If the disk cannot be read.
pub fn partitions(disk: &Disk) -> io::Result<Vec<Partition>> {
    let size = disk.size();
    let inside = |part: &Partition| {
        part.len > 0 && part.offset > 0 && part.offset.checked_add(part.len).is_some_and(|end| end <= size)
    };
    let mut found = found(disk)?.unwrap_or_default();
    found.retain(inside);
    found.sort_by_key(|part| part.number);
    Ok(found)
}

/// The same for those who have to know for sure.
pub(crate) fn table(disk: &Disk) -> io::Result<Table> {
    let (sector, size) = (u64::from(disk.sector_size()), disk.size());
    match partition::mbr(&read_sector(disk, 0)?, sector, size) {
        Mbr::None if disk.has_gpt_header()? => return Ok(Table::Damaged),
        Mbr::None => return Ok(Table::None),
        Mbr::WholeDisk => return Ok(Table::Foreign),
        Mbr::Damaged => return Ok(Table::Damaged),
        Mbr::Gpt | Mbr::Partitions { .. } => {}
    }
    let Some(all) = found(disk)? else { return Ok(Table::Damaged) };
    let whole = partitions(disk)?;
    let expected = all.iter().filter(|part| part.len > 0).count();
    Ok(if whole.len() == expected { Table::Partitions(whole) } else { Table::Damaged })
}

/// What is listed; `None`: the table is damaged.
fn found(disk: &Disk) -> io::Result<Option<Vec<Partition>>> {
    let (sector, size) = (u64::from(disk.sector_size()), disk.size());
    let first = read_sector(disk, 0)?;
    Ok(match partition::mbr(&first, sector, size) {
        Mbr::None => Some(Vec::new()),
        Mbr::Damaged => None,
        Mbr::Gpt => disk.gpt()?.and_then(|gpt| gpt.partitions()),
        Mbr::Partitions { .. } | Mbr::WholeDisk => {
            let mut found = Vec::new();
            for (number, entry) in (1..).zip(partition::mbr_entries(&first)) {
                match entry.is_extended() {
                    true => found.extend(logical(disk, &entry)?),
                    false => found.push(of_entry(number, &entry, 0, sector)),
                }
            }
            Some(found)
        }
    })
}

fn of_entry(number: u32, entry: &MbrEntry, base: u64, sector: u64) -> Partition {
    Partition { number, offset: (base + entry.start) * sector, len: entry.len * sector }
}

/// Partitions in an extended one: a list of tables, each with one partition and the place of the next table.
fn logical(disk: &Disk, extended: &MbrEntry) -> io::Result<Vec<Partition>> {
    let sector = u64::from(disk.sector_size());
    let mut found = Vec::new();
    let mut table = extended.start;
    for number in FIRST_LOGICAL..FIRST_LOGICAL + LOGICAL {
        if (table + 1) * sector > disk.size() {
            break;
        }
        let bytes = read_sector(disk, table * sector)?;
        if bytes.get(510..512) != Some(&[0x55, 0xaa]) {
            break;
        }
        let [part, next, ..] = partition::mbr_entries(&bytes);
        if part.len > 0 {
            found.push(of_entry(number, &part, table, sector));
        }
        if !next.is_extended() || next.len == 0 {
            break;
        }
        table = extended.start + next.start;
    }
    Ok(found)
}

fn read_sector(disk: &Disk, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; disk.sector_size() as usize];
    if offset + bytes.len() as u64 <= disk.size() {
        disk.read(offset, &mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DEFAULT_BLOCK_SIZE, DiskOptions, Identity, NewDisk, create_disk, fs::HostFs};
    use std::{
        io::Write,
        process::{Command, Stdio},
        sync::Arc,
    };

    fn disk(size: u64) -> (tempfile::TempDir, Arc<Disk>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.vhdx");
        let what = NewDisk::Dynamic { size, block_size: DEFAULT_BLOCK_SIZE };
        create_disk(&HostFs::shared(), &path, &what, Identity::fresh()).unwrap();
        let disk = Disk::open(&path, DiskOptions::default()).unwrap();
        (folder, disk)
    }

    /// A disk with the table that `sfdisk` makes of a script, and what `sfdisk` says of it: number, start and length in sectors.
    fn by_sfdisk(script: &str) -> Option<(tempfile::TempDir, Arc<Disk>, Vec<Partition>)> {
        let (folder, disk) = disk(64 << 20);
        let raw = folder.path().join("table.raw");
        std::fs::File::create(&raw).unwrap().set_len(64 << 20).unwrap();
        let mut child = match Command::new("sfdisk").args(["-q"]).arg(&raw).stdin(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => {
                println!("skipped: sfdisk is not here ({error})");
                return None;
            }
        };
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        let dump = Command::new("sfdisk").arg("-d").arg(&raw).output().unwrap();
        let dump = String::from_utf8(dump.stdout).unwrap();
        let listed = dump.lines().filter_map(|line| line.split_once(" : ")).filter_map(|(name, rest)| {
            let field = |key: &str| -> Option<u64> {
                rest.split(',').find_map(|part| part.trim().strip_prefix(key)?.trim().parse().ok())
            };
            let kind = rest.split(',').find_map(|part| part.trim().strip_prefix("type="))?;
            (kind != "5" && kind != "f").then_some(())?;
            let digits = name.rsplit(|c: char| !c.is_ascii_digit()).next()?;
            Some(Partition {
                number: digits.parse().ok()?,
                offset: field("start=")? * 512,
                len: field("size=")? * 512,
            })
        });
        let listed = listed.collect();
        for (at, chunk) in (0..).step_by(1 << 20).zip(std::fs::read(&raw).unwrap().chunks(1 << 20)) {
            disk.write(at, chunk).unwrap();
        }
        Some((folder, disk, listed))
    }

    #[test]
    fn they_are_where_sfdisk_put_them() {
        let scripts = [
            "label: dos\n,8M,L\n,4M,7\n",
            "label: dos\n,4M,L\n,4M,7\n,4M,L\n,40M,E\n,4M,L\n,5M,L\n",
            "label: gpt\n,8M\n,1M\n,16M\n",
        ];
        for (script, count) in scripts.into_iter().zip([2, 5, 3]) {
            let Some((_folder, disk, listed)) = by_sfdisk(script) else { return };
            assert_eq!(listed.len(), count, "{script}");
            assert_eq!(partitions(&disk).unwrap(), listed, "{script}");
        }
    }

    #[test]
    fn no_table_and_tables_that_lie_have_none() {
        let (_folder, disk) = disk(8 << 20);
        assert_eq!(partitions(&disk).unwrap(), []);
        // An extended partition whose list goes in circles, and partitions behind the end of the disk.
        let mut first = [0_u8; 512];
        first[446 + 4] = 5;
        first[446 + 8] = 64;
        first[446 + 13] = 1;
        first[510..].copy_from_slice(&[0x55, 0xaa]);
        let mut table = first;
        table[446 + 4] = 0x83;
        table[446 + 8..446 + 16].copy_from_slice(&[0, 0, 0, 0x40, 0, 0, 0, 0x40]);
        table[462 + 4] = 5;
        table[462 + 13] = 1;
        disk.write(0, &first).unwrap();
        disk.write(64 * 512, &table).unwrap();
        assert_eq!(partitions(&disk).unwrap(), []);
    }
}

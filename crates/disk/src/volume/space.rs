//! What all file systems of a disk say is free.

use super::{FreeMap, Left, Volume, ext, fat, identify, ntfs, signature::System};
use crate::{
    backend::Backend,
    disk::Disk,
    partitions::{Partition, Table, table},
};
use std::{fmt, io};

/// A partition, or the whole of a disk without any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpace {
    /// Its number; none: there are no partitions.
    pub partition: Option<u32>,
    /// Bytes.
    pub len: u64,
    /// What it says.
    pub state: SpaceState,
}

/// What is free on a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpaceState {
    /// So many bytes, by the file system of that name.
    Free {
        /// "an ext file system"
        system: &'static str,
        /// Bytes.
        bytes: u64,
    },
    /// All of it counts as in use, for this reason.
    Left(String),
}

impl fmt::Display for VolumeSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition {
            Some(number) => write!(f, "partition {number}: ")?,
            None => f.write_str("the disk has no partitions: ")?,
        }
        match &self.state {
            SpaceState::Free { system, bytes } => write!(f, "{system}, {bytes} bytes are free"),
            SpaceState::Left(reason) => write!(f, "left as it is, because {reason}"),
        }
    }
}

/// Reads it from a disk that nobody writes to.
///
/// # Errors
/// If the partition table cannot be read. What goes wrong on one volume is told of it.
pub(crate) fn free_space(disk: &Disk) -> io::Result<(FreeMap, Vec<VolumeSpace>)> {
    let sector = u64::from(disk.sector_size());
    let left = |state: &str| {
        let state = SpaceState::Left(state.to_owned());
        (FreeMap::default(), vec![VolumeSpace { partition: None, len: disk.size(), state }])
    };
    let mut volumes = match table(disk)? {
        Table::None => vec![(None, 0, disk.size())],
        Table::Damaged => return Ok(left("its partition table is damaged")),
        Table::Foreign => return Ok(left("Windows' dynamic volumes are not looked into")),
        Table::Partitions(parts) => {
            let range = |part: Partition| (Some(part.number), part.offset, part.len);
            parts.into_iter().map(range).collect()
        }
    };
    volumes.sort_unstable_by_key(|(_, offset, _)| *offset);
    if volumes.array_windows::<2>().any(|[a, b]| a.1 + a.2 > b.1) {
        return Ok(left("its partitions overlap"));
    }
    let (mut free, mut told) = (FreeMap::default(), Vec::new());
    for (partition, offset, len) in volumes {
        let read = |at: u64, buf: &mut [u8]| disk.read(offset + at, buf);
        let state = match volume_free(&Volume::new(&read, len, sector)) {
            Ok((system, found)) => {
                let bytes = found.clone().finish(sector).total();
                free.add_all(&found, offset);
                SpaceState::Free { system, bytes }
            }
            Err(reason) => SpaceState::Left(reason.to_string()),
        };
        told.push(VolumeSpace { partition, len, state });
    }
    Ok((free.finish(sector), told))
}

/// The name of the file system and what it says.
pub(super) fn volume_free(volume: &Volume<'_>) -> Result<(&'static str, FreeMap), Left> {
    let found = identify(volume)?;
    let [only] = found.as_slice() else {
        let names: Vec<&str> = found.iter().map(|found| found.name).collect();
        return Err(if names.is_empty() { Left::Unknown } else { Left::Several(names.join(" and ")) });
    };
    let free = match only.system {
        System::Ext => ext::free(volume),
        System::Ntfs => ntfs::free(volume),
        System::Fat => fat::free(volume),
        System::Other => Err(Left::NotRead(only.name)),
    };
    Ok((only.name, free?))
}

//! How small a disk may become: down to what is in use.

use super::{
    ResizeControl, ResizeError,
    partition::{self, Gpt, Mbr, Moved},
};
use crate::{
    backend::Backend,
    disk::Disk,
    volume::{Volume, identify},
};
use std::{fmt, io};

/// How much is looked at in one go.
const PIECE: u64 = 1 << 20;

/// What keeps a disk from becoming smaller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsedBy {
    /// Nothing: the disk is empty.
    Nothing,
    /// The last byte that is not zero; there is no partition table.
    Data,
    /// The last partition of a master boot record.
    Mbr {
        /// Its number, from 1.
        partition: usize,
    },
    /// The last partition of a GUID partition table, and the copy of the table behind it.
    Gpt {
        /// Its number, from 1; 0 if there is none.
        partition: usize,
    },
    /// Windows' dynamic volumes, whose list is at the end of the disk.
    DynamicVolumes,
    /// A file system, or another owner of the disk without partitions, of that name.
    Volume(&'static str),
    /// The parent has as many bytes.
    Parent,
}

impl fmt::Display for UsedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Data => f.write_str("data"),
            Self::Mbr { partition } => write!(f, "partition {partition}"),
            Self::Gpt { partition: 0 } => f.write_str("the partition table"),
            Self::Gpt { partition } => write!(f, "partition {partition} and the copy of the partition table"),
            Self::DynamicVolumes => f.write_str("Windows' dynamic volumes"),
            Self::Volume(name) => f.write_str(name),
            Self::Parent => f.write_str("its parent, which is as large"),
        }
    }
}

/// How far a disk is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    /// The smallest size, whole sectors.
    pub(crate) end: u64,
    pub(crate) by: UsedBy,
    pub(crate) gpt: Option<Gpt>,
}

impl Disk {
    /// Where the part of the disk that is in use ends.
    pub(crate) fn used(&self, control: &ResizeControl) -> Result<Used, ResizeError> {
        let failed = |source: io::Error| match control.is_cancelled() {
            true => ResizeError::Cancelled { path: self.top_path() },
            false => ResizeError::Io { path: self.top_path(), action: "read", source },
        };
        let used = self.used_by_content(control).map_err(failed)?.ok_or_else(|| {
            let path = self.top_path();
            ResizeError::PartitionTable { path }
        })?;
        // What the parent has behind the end would come back if the disk were made larger again.
        let parent = self.chain.enter().layers.get(1).map_or(0, |parent| parent.size);
        match parent >= used.end {
            true if parent > 0 => Ok(Used { end: parent, by: UsedBy::Parent, ..used }),
            _ => Ok(used),
        }
    }

    /// `None`: the partition table is damaged.
    fn used_by_content(&self, control: &ResizeControl) -> io::Result<Option<Used>> {
        let (sector, size) = (u64::from(self.sector_size()), self.size());
        let mut first = vec![0; as_usize(sector)];
        self.read(0, &mut first)?;
        let used = |end: u64, by| Some(Used { end: end.max(sector).next_multiple_of(sector), by, gpt: None });
        Ok(match partition::mbr(&first, sector, size) {
            Mbr::WholeDisk => used(size, UsedBy::DynamicVolumes),
            Mbr::Partitions { end, number } => used(end, UsedBy::Mbr { partition: number }),
            Mbr::Damaged => None,
            Mbr::Gpt => self.gpt()?.and_then(|gpt| {
                let (end, number) = gpt.needs()?;
                Some(Used { end, by: UsedBy::Gpt { partition: number }, gpt: Some(gpt) })
            }),
            // Without its first sector a table tells nothing to those who look there first.
            Mbr::None if self.has_gpt_header()? => None,
            Mbr::None => {
                let data = self.last_data(control)?;
                let volume = self.volume_end()?;
                match (data, volume) {
                    (data, Some((end, name))) if end > data => used(end, UsedBy::Volume(name)),
                    (0, _) => used(0, UsedBy::Nothing),
                    (end, _) => used(end, UsedBy::Data),
                }
            }
        })
    }

    /// How far a file system reaches that has the disk for itself, whatever it holds: one that finds its device too small is not mounted.
    fn volume_end(&self) -> io::Result<Option<(u64, &'static str)>> {
        let read = |at: u64, buf: &mut [u8]| self.read(at, buf);
        let volume = Volume::new(&read, self.size(), u64::from(self.sector_size()));
        let found = identify(&volume)?.into_iter();
        Ok(found.map(|found| (found.size.unwrap_or(self.size()).min(self.size()), found.name)).max())
    }

    /// Whether the second sector begins like the head of a GUID partition table.
    pub(crate) fn has_gpt_header(&self) -> io::Result<bool> {
        let sector = u64::from(self.sector_size());
        if self.size() < 2 * sector {
            return Ok(false);
        }
        let mut header = vec![0; as_usize(sector)];
        self.read(sector, &mut header)?;
        Ok(header.starts_with(b"EFI PART"))
    }

    /// The GUID partition table at the start of the disk, if it is whole.
    pub(crate) fn gpt(&self) -> io::Result<Option<Gpt>> {
        let (sector, size) = (u64::from(self.sector_size()), self.size());
        if size < 3 * sector {
            return Ok(None);
        }
        let mut header = vec![0; as_usize(sector)];
        self.read(sector, &mut header)?;
        let Some((at, len)) = partition::gpt_entries(&header) else { return Ok(None) };
        let padded = len.next_multiple_of(sector);
        if at.checked_add(padded).is_none_or(|end| end > size) {
            return Ok(None);
        }
        let mut entries = vec![0; as_usize(padded)];
        self.read(at, &mut entries)?;
        entries.truncate(as_usize(len));
        Ok(Gpt::parse(&header, &entries))
    }

    /// First byte behind the last that is not zero.
    fn last_data(&self, control: &ResizeControl) -> io::Result<u64> {
        let (mut at, mut runs) = (0, Vec::new());
        for run in self.block_status(0, self.size(), usize::MAX)? {
            if !run.zero {
                runs.push((at, at + run.len));
            }
            at += run.len;
        }
        control.begin(runs.iter().map(|(start, end)| end - start).sum());
        let mut buf = Vec::new();
        for (start, end) in runs.into_iter().rev() {
            let mut end = end;
            while end > start {
                if control.is_cancelled() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let from = end.saturating_sub(PIECE).max(start);
                buf.resize(as_usize(end - from), 0);
                self.read(from, &mut buf)?;
                if let Some(last) = buf.iter().rposition(|byte| *byte != 0) {
                    return Ok(from + last as u64 + 1);
                }
                control.passed(end - from);
                end = from;
            }
        }
        Ok(0)
    }

    /// The first sectors at or after `from` that are not zero: offset and length, at most about a MiB.
    pub(crate) fn first_data(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        let sector = as_usize(u64::from(self.sector_size()));
        let mut at = from;
        let mut buf = Vec::new();
        for run in self.block_status(from, self.size() - from, usize::MAX)? {
            let end = at + run.len;
            while at < end {
                let len = PIECE.min(end - at);
                if !run.zero {
                    buf.resize(as_usize(len), 0);
                    self.read(at, &mut buf)?;
                    let holds = |sector: &[u8]| sector.iter().any(|byte| *byte != 0);
                    let mut sectors = buf.chunks(sector);
                    if let Some(skipped) = sectors.position(holds) {
                        let more = sectors.take_while(|bytes| holds(bytes)).count();
                        return Ok(Some((at + (skipped * sector) as u64, ((more + 1) * sector) as u64)));
                    }
                }
                at += len;
            }
        }
        Ok(None)
    }

    /// Puts the copy of a partition table where a smaller disk ends. At every moment the table is whole.
    pub(crate) fn move_gpt(&self, gpt: &Gpt, size: u64) -> io::Result<()> {
        let Moved { copy_at, copy, header_at, header } = gpt.moved_to(size);
        self.write(copy_at, &copy)?;
        self.flush()?;
        self.write(header_at, &header)?;
        self.flush()?;
        let sector = u64::from(self.sector_size());
        let mut first = vec![0; as_usize(sector)];
        self.read(0, &mut first)?;
        self.write(0, &partition::protective_for(&first, sector, size))?;
        self.flush()
    }
}

fn as_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

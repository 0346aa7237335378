//! Ranges of any length on a disk that knows whole sectors only.

use backstay_disk::{Backend, ZeroMode};
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

/// Runs of allocation that are asked for at once.
const RUNS: usize = 1024;

/// A disk without sectors.
#[derive(Debug)]
pub(super) struct Window {
    disk: Arc<dyn Backend>,
    /// Who changes part of a sector is alone: the rest of it is read and written back.
    parts: RwLock<()>,
}

impl Window {
    pub(super) fn new(disk: Arc<dyn Backend>) -> Self {
        Self { disk, parts: RwLock::new(()) }
    }

    pub(super) fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        if self.read_only() { Ok(()) } else { self.disk.flush() }
    }

    /// The sectors around a range: offset and length.
    fn around(&self, offset: u64, len: u64) -> (u64, u64) {
        let sector = u64::from(self.disk.sector_size());
        let start = offset / sector * sector;
        (start, (offset + len).next_multiple_of(sector) - start)
    }

    pub(super) fn read(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let (start, whole) = self.around(offset, len);
        let mut data = vec![0; as_usize(whole)];
        if !data.is_empty() {
            self.disk.read(start, &mut data)?;
        }
        data.drain(..as_usize(offset - start));
        data.truncate(as_usize(len));
        Ok(data)
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let len = data.len() as u64;
        let (start, whole) = self.around(offset, len);
        if whole == len {
            let _together = self.parts.read().unwrap_or_else(PoisonError::into_inner);
            return self.disk.write(offset, data);
        }
        let _alone = self.parts.write().unwrap_or_else(PoisonError::into_inner);
        let mut sectors = vec![0; as_usize(whole)];
        self.disk.read(start, &mut sectors)?;
        let at = as_usize(offset - start);
        if let Some(part) = sectors.get_mut(at..at + data.len()) {
            part.copy_from_slice(data);
        }
        self.disk.write(start, &sectors)
    }

    /// Makes a range read as zeros; with `unmap` its space may go.
    pub(super) fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let sector = u64::from(self.disk.sector_size());
        let first = offset.next_multiple_of(sector);
        let last = (offset + len) / sector * sector;
        if first >= last {
            return self.write(offset, &vec![0; as_usize(len)]);
        }
        self.write_some(offset, first - offset)?;
        {
            let _together = self.parts.read().unwrap_or_else(PoisonError::into_inner);
            self.disk.write_zeroes(first, last - first, ZeroMode { may_unmap: unmap, fast_only: false })?;
        }
        self.write_some(last, offset + len - last)
    }

    fn write_some(&self, offset: u64, zeros: u64) -> io::Result<()> {
        if zeros == 0 { Ok(()) } else { self.write(offset, &vec![0; as_usize(zeros)]) }
    }

    /// The first byte in a range that is allocated, or with `data` false is not.
    pub(super) fn next_extent(&self, from: u64, to: u64, data: bool) -> io::Result<Option<u64>> {
        let (mut at, _) = self.around(from, 0);
        while at < to {
            let (start, len) = self.around(at, to - at);
            let runs = self.disk.block_status(start, len, RUNS)?;
            if runs.is_empty() {
                break;
            }
            for run in runs {
                let end = at + run.len;
                if run.zero != data && end > from {
                    let found = at.max(from);
                    return Ok((found < to).then_some(found));
                }
                at = end;
            }
        }
        Ok(None)
    }
}

/// Requests of the kernel have at most some MiB.
fn as_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_disk::{DEFAULT_BLOCK_SIZE, Disk, DiskOptions, Identity, NewDisk, create_disk, fs::HostFs};

    fn disk() -> (tempfile::TempDir, Window) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.vhd");
        let what = NewDisk::Dynamic { size: 8 << 20, block_size: DEFAULT_BLOCK_SIZE };
        create_disk(&HostFs::shared(), &path, &what, Identity::fresh()).unwrap();
        let disk = Disk::open(&path, DiskOptions::default()).unwrap();
        (folder, Window::new(disk))
    }

    #[test]
    fn parts_of_sectors_leave_the_rest_as_it_was() {
        let (_folder, window) = disk();
        let mut model = vec![0_u8; 8192];
        let writes = [(0_u64, 8192_usize), (3, 5), (511, 2), (512, 512), (1000, 3000), (8191, 1)];
        for (value, (offset, len)) in (1..).zip(writes) {
            let data = vec![value; len];
            window.write(offset, &data).unwrap();
            model[as_usize(offset)..as_usize(offset) + len].copy_from_slice(&data);
            assert_eq!(window.read(0, 8192).unwrap(), model);
        }
        for (offset, len) in [(1, 3), (500, 1600), (4096, 512)] {
            window.zero(offset, len, true).unwrap();
            model[as_usize(offset)..as_usize(offset + len)].fill(0);
            assert_eq!(window.read(0, 8192).unwrap(), model);
        }
        assert_eq!(window.read(510, 700).unwrap(), model[510..1210]);
    }

    #[test]
    fn data_is_found_where_it_was_written() {
        let (_folder, window) = disk();
        window.write(3 << 20, &[7; 65536]).unwrap();
        let (from, end) = (0, 8 << 20);
        assert_eq!(window.next_extent(from, end, false).unwrap(), Some(0));
        let data = window.next_extent(from, end, true).unwrap().unwrap();
        assert!((2 << 20..=3 << 20).contains(&data), "{data}");
        assert_eq!(window.next_extent((3 << 20) + 5, end, true).unwrap(), Some((3 << 20) + 5));
        let hole = window.next_extent(3 << 20, end, false).unwrap().unwrap();
        assert!(((3 << 20) + 65536..=4 << 20).contains(&hole), "{hole}");
        assert_eq!(window.next_extent(hole, end, true).unwrap(), None);
    }
}

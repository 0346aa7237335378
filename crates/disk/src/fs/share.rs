//! Ranges that two files share until one of them is written to (reflink), and ranges that a file server copies by itself.

use super::FileId;
use rustix::{
    fs::{copy_file_range, fstatfs},
    io::Errno,
};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Mutex, OnceLock, PoisonError},
};

/// What [`super::DiskFile::share_range`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// Nothing, and neither file has changed: the bytes have to be read and written.
    Nothing,
    /// Both files have the same space now for this part of the range.
    Space {
        /// Where it begins in the range, in bytes.
        start: u64,
        /// Bytes.
        len: u64,
    },
    /// The server of the file system copied this part of the range: it did not pass through this host.
    Copied {
        /// Where it begins in the range, in bytes.
        start: u64,
        /// Bytes.
        len: u64,
    },
}

/// Both files, and what of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) from: BorrowedFd<'a>,
    pub(super) from_id: FileId,
    pub(super) from_offset: u64,
    /// Length of the whole file.
    pub(super) from_len: u64,
    pub(super) to_offset: u64,
    pub(super) len: u64,
}

/// How ranges of one file come into this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Clone,
    ByServer,
    Read,
}

/// What is known about sharing with one file; each refusal is met once.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    facts: OnceLock<Facts>,
    /// Files that something was refused of; all others may be tried. A chain has few files.
    ways: Mutex<Vec<(FileId, Way)>>,
}

#[derive(Clone, Copy, Debug)]
struct Facts {
    /// What is shared begins and ends at multiples of this, in both files; bytes.
    unit: u64,
    by_server: bool,
}

/// Units beyond this are what a server likes to be asked for, and not what it shares, in bytes.
const MOST_UNIT: u64 = 64 << 10;
/// The unit where the file system tells none, in bytes.
const USUAL_UNIT: u64 = 4096;

/// Types of file systems whose server copies without sending the bytes here: NFS, SMB. Of a file system of this host the
/// same call moves pages from one file's cache to the other's, which is no faster than reading and writing, and zeros are not
/// left out.
const SERVERS: [u32; 3] = [0x6969, 0xff53_4d42, 0xfe53_4d42];

impl Facts {
    fn of(file: &File) -> Self {
        let Ok(stat) = fstatfs(file) else { return Self { unit: USUAL_UNIT, by_server: false } };
        let unit = u64::try_from(stat.f_bsize).unwrap_or(0);
        let usable = unit.is_power_of_two() && (512..=MOST_UNIT).contains(&unit);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the numbers have 32 bits"
        )]
        let kind = stat.f_type as u32;
        Self { unit: if usable { unit } else { USUAL_UNIT }, by_server: SERVERS.contains(&kind) }
    }
}

impl Sharing {
    fn way(&self, id: FileId) -> Way {
        let ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        ways.iter().find(|(known, _)| *known == id).map_or(Way::Clone, |(_, way)| *way)
    }

    fn next_way(&self, id: FileId, by_server: bool) {
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        match ways.iter_mut().find(|(known, _)| *known == id) {
            Some((_, way)) => *way = Way::Read,
            None => ways.push((id, if by_server { Way::ByServer } else { Way::Read })),
        }
    }

    /// Whether it is worth asking for, as far as is known.
    pub(super) fn may(&self, id: FileId) -> bool {
        self.way(id) != Way::Read
    }

    pub(super) fn share(&self, to: &File, request: &Request<'_>) -> io::Result<Shared> {
        let facts = *self.facts.get_or_init(|| Facts::of(to));
        let Some((start, len)) = whole_units(request, facts.unit) else { return Ok(Shared::Nothing) };
        let (from, at) = (request.from_offset + start, request.to_offset + start);
        loop {
            let (tried, done) = match self.way(request.from_id) {
                Way::Read => return Ok(Shared::Nothing),
                Way::Clone => (clone_range(to, request.from, from, at, len), Shared::Space { start, len }),
                Way::ByServer => (copy_range(to, request.from, from, at, len), Shared::Copied { start, len }),
            };
            match tried {
                Ok(()) => return Ok(done),
                Err(error) if refuses(error) => self.next_way(request.from_id, facts.by_server),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The part of a range that is whole units in both files: where it begins in the range, and its length.
fn whole_units(request: &Request<'_>, unit: u64) -> Option<(u64, u64)> {
    let Request { from_offset, from_len, to_offset, len, .. } = *request;
    if from_offset % unit != to_offset % unit {
        return None;
    }
    let first = from_offset.checked_next_multiple_of(unit)?;
    let end = from_offset.checked_add(len)?.min(from_len) / unit * unit;
    (first < end).then(|| (first - from_offset, end - first))
}

/// Whether the error says that these two files cannot do it, rather than that it failed: other file systems, one without
/// the feature, attributes of the files that exclude it, a file that is swapped to.
fn refuses(error: Errno) -> bool {
    matches!(
        error,
        Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::NOTTY
            | Errno::XDEV
            | Errno::INVAL
            | Errno::PERM
            | Errno::BADF
            | Errno::TXTBSY
            | Errno::NODEV
    )
}

/// Lets two ranges share their space.
fn clone_range(to: &File, from: BorrowedFd<'_>, from_at: u64, at: u64, len: u64) -> Result<(), Errno> {
    let what = libc::file_clone_range {
        src_fd: from.as_raw_fd().into(),
        src_offset: from_at,
        src_length: len,
        dest_offset: at,
    };
    loop {
        #[expect(unsafe_code, reason = "rustix offers whole files only")]
        // SAFETY: the kernel reads one such structure and writes none; both descriptors are borrowed meanwhile.
        let done = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const what) };
        match done {
            0 => return Ok(()),
            _ => match Errno::from_io_error(&io::Error::last_os_error()) {
                Some(Errno::INTR) => {}
                Some(error) => return Err(error),
                None => return Err(Errno::IO),
            },
        }
    }
}

/// Lets the file system copy a range.
fn copy_range(to: &File, from: BorrowedFd<'_>, from_at: u64, at: u64, len: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < len {
        let (mut source, mut target) = (from_at + done, at + done);
        let rest = usize::try_from(len - done).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), rest) {
            // What is missing is copied by whoever is told that nothing was.
            Ok(0) => return Err(Errno::OPNOTSUPP),
            Ok(count) => done += count as u64,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        os::{
            fd::AsFd,
            unix::fs::{FileExt, MetadataExt},
        },
        path::Path,
    };

    fn request<'a>(from: &'a File, from_offset: u64, to_offset: u64, len: u64) -> Request<'a> {
        let meta = from.metadata().unwrap();
        let from_id = FileId { dev: meta.dev(), inode: meta.ino() };
        Request { from: from.as_fd(), from_id, from_offset, from_len: meta.len(), to_offset, len }
    }

    fn file(folder: &Path, name: &str, bytes: &[u8]) -> File {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn only_whole_units_in_both_files_are_shared() {
        let folder = tempfile::tempdir().unwrap();
        let from = file(folder.path(), "from", &[1; 20_000]);
        let part =
            |from_offset, to_offset, len| whole_units(&request(&from, from_offset, to_offset, len), 4096);
        assert_eq!(part(0, 8192, 8192), Some((0, 8192)));
        assert_eq!(part(512, 4096 + 512, 12_000), Some((3584, 8192)));
        assert_eq!(part(0, 512, 16_384), None, "they lie differently");
        assert_eq!(part(512, 512, 4096), None, "no whole one");
        assert_eq!(part(0, 0, 1 << 20), Some((0, 16_384)), "up to the end of the file");
        assert_eq!(part(u64::MAX - 100, u64::MAX - 100, 4096), None);
    }

    #[test]
    fn a_file_that_cannot_be_shared_with_is_asked_once() {
        let (folder, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let from = file(memory.path(), "from", &[1; 8192]);
        let to = file(folder.path(), "to", &[2; 8192]);
        let (sharing, request) = (Sharing::default(), request(&from, 0, 0, 8192));
        assert!(sharing.may(request.from_id));
        assert_eq!(sharing.share(&to, &request).unwrap(), Shared::Nothing);
        assert!(!sharing.may(request.from_id));
        let mut found = [0; 8192];
        to.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, [2; 8192], "nothing was changed");
    }

    #[test]
    fn what_a_server_would_copy_is_copied_in_full() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..40_960_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let (from, to) = (file(folder.path(), "from", &bytes), file(folder.path(), "to", &[]));
        copy_range(&to, from.as_fd(), 4096, 8192, 32_768).unwrap();
        let mut found = vec![0; 32_768];
        to.read_exact_at(&mut found, 8192).unwrap();
        assert_eq!(found, bytes[4096..36_864]);
        let beyond = copy_range(&to, from.as_fd(), 36_864, 0, 8192);
        assert_eq!(beyond, Err(Errno::OPNOTSUPP), "less than was asked for");
    }
}

//! Open-file-description locks, and who holds them.

use super::{FileId, Holder, LockKind};
use std::{
    fs, io,
    os::{fd::AsFd, fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
};

/// Longest part of a command line that is worth showing, in characters.
const COMMAND_CHARS: usize = 160;

/// Sets or drops the lock of this open file description on the whole file, without waiting. A change is one step.
pub(super) fn set_lock(fd: impl AsFd, kind: Option<LockKind>) -> io::Result<()> {
    let lock_type = match kind {
        Some(LockKind::Shared) => libc::F_RDLCK,
        Some(LockKind::Exclusive) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "constants below 4; some platforms define them as int"
    )]
    let whole_file = libc::flock {
        l_type: lock_type as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0, // to the end, wherever that will be
        l_pid: 0, // must be 0 for these locks
    };
    loop {
        #[expect(unsafe_code, reason = "neither std nor rustix offers open-file-description locks")]
        // SAFETY: the descriptor is open for the length of the call (`fd` borrows it), and the kernel only reads the
        // `flock` structure, which lives on the stack until after the call.
        let result = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw const whole_file) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // POSIX lets a refused lock be reported by either.
            Some(libc::EAGAIN | libc::EACCES) => return Err(io::ErrorKind::WouldBlock.into()),
            _ => return Err(error),
        }
    }
}

/// Looks through the processes this user may see for one that has the file locked, or at least open.
pub(super) fn find_holder(id: FileId) -> Option<Holder> {
    let own = std::process::id();
    let mut fallback = None;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        match openings(&entry.path(), id) {
            // This process may hold the other lock itself; another one says more.
            Openings { locked, .. } if locked > 0 && pid == own => fallback = Some(pid),
            Openings { locked, .. } if locked > 0 => return Some(describe(pid)),
            // Our own refused opening is one.
            Openings { open, .. } if open > usize::from(pid == own) => fallback = Some(pid),
            Openings { .. } => {}
        }
    }
    fallback.map(describe)
}

/// How often one process has the file open, and how many of these openings hold a lock.
#[derive(Default)]
struct Openings {
    open: usize,
    locked: usize,
}

fn openings(process: &Path, id: FileId) -> Openings {
    let mut found = Openings::default();
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return found };
    for descriptor in descriptors.flatten() {
        let Ok(meta) = fs::metadata(descriptor.path()) else { continue };
        if meta.dev() != id.dev || meta.ino() != id.inode {
            continue;
        }
        found.open += 1;
        let info = fs::read_to_string(process.join("fdinfo").join(descriptor.file_name()));
        if info.is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:"))) {
            found.locked += 1;
        }
    }
    found
}

fn describe(pid: u32) -> Holder {
    let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let name = String::from_utf8_lossy(&read("comm")).trim().to_owned();
    let words: Vec<_> = read("cmdline")
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let mut command = words.join(" ");
    if let Some((cut, _)) = command.char_indices().nth(COMMAND_CHARS) {
        command.truncate(cut);
        command.push('…');
    }
    Holder { pid, name, command }
}

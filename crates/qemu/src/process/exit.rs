//! How QEMU ended, in words.

use rustix::process::WaitIdStatus;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How QEMU ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// By itself, with this exit status.
    Status(i32),
    /// Killed by this signal.
    Signal(i32),
    /// It was started by another process, which alone can learn the status.
    Unknown,
}

impl ExitReason {
    pub(super) fn from_wait(status: &WaitIdStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Self::Status(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unknown,
        }
    }

    /// Whether QEMU ended in order.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::Status(0)
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(code) => write!(f, "QEMU ended with exit status {code}"),
            Self::Signal(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "QEMU was killed by signal {signal} ({name})"),
                None => write!(f, "QEMU was killed by signal {signal}"),
            },
            Self::Unknown => f.write_str("QEMU ended; its exit status is not known"),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        4 => "SIGILL",
        6 => "SIGABRT: an assertion in QEMU failed",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL: by an administrator or for lack of memory",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        31 => "SIGSYS: a system call that the sandbox forbids",
        _ => return None,
    })
}

/// The last `lines` lines of a log, oldest first. Reads at most the last 64 KiB.
///
/// # Errors
/// The file cannot be read; a file that does not exist is empty.
pub fn log_tail(path: &Path, lines: usize) -> io::Result<Vec<String>> {
    const WINDOW: u64 = 64 << 10;
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let len = file.metadata()?.len();
    let mut bytes = Vec::new();
    if len <= WINDOW {
        file.by_ref().take(WINDOW).read_to_end(&mut bytes)?;
    } else {
        bytes = vec![0; usize::try_from(WINDOW).unwrap_or(0)];
        file.read_exact_at(&mut bytes, len - WINDOW)?;
        // The first line is cut somewhere.
        let start = bytes.iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        bytes.drain(..start);
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all.iter().skip(all.len().saturating_sub(lines)).map(|&line| line.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_whole_lines_whatever_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(log_tail(&path, 3).unwrap().is_empty());
        std::fs::write(&path, "one\ntwo\nthree").unwrap();
        assert_eq!(log_tail(&path, 2).unwrap(), ["two", "three"]);
        assert_eq!(log_tail(&path, 9).unwrap(), ["one", "two", "three"]);
        let long: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&path, long).unwrap();
        assert_eq!(log_tail(&path, 2).unwrap(), ["line 19998", "line 19999"]);
        assert!(log_tail(&path, usize::MAX).unwrap().iter().all(|line| line.starts_with("line ")));
    }
}

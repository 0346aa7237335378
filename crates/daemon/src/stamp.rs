//! Whether a file is still what it was when it was read.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest step of a file system's clock.
const STEP: Duration = Duration::from_millis(50);

/// Changes whenever a file's content is changed or the file is replaced by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    file: (u64, u64),
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of the file at `path` now.
    ///
    /// # Errors
    /// As the file system.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            file: (metadata.dev(), metadata.ino()),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Whether the file was last changed clearly before `time`: what was read from it after `time` is what the stamp
    /// stands for. Clocks of file systems go by steps of some milliseconds.
    #[must_use]
    pub fn is_older_than(&self, time: SystemTime) -> bool {
        let limit = time.checked_sub(STEP).unwrap_or(time).duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = |(seconds, nanos): (i64, i64)| {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            Duration::new(seconds, u32::try_from(nanos).unwrap_or(0)) < limit
        };
        before(self.modified) && before(self.changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_tells_writing_cutting_and_replacing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&path, "one").unwrap();
        let first = Stamp::of(&path).unwrap();
        assert_eq!(Stamp::of(&path).unwrap(), first);
        assert!(!first.is_older_than(SystemTime::now()), "it may still change within this step");
        assert!(first.is_older_than(SystemTime::now() + Duration::from_secs(1)));
        std::fs::write(&other, "two").unwrap();
        std::fs::rename(&other, &path).unwrap();
        let second = Stamp::of(&path).unwrap();
        assert_ne!(first, second);
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1).unwrap();
        assert_ne!(Stamp::of(&path).unwrap(), second);
    }
}

//! Which files the folder has.

use backstay_disk::Partition;
use std::ffi::OsStr;

/// The folder's own number is 1.
const FIRST: u64 = 2;

/// A file: a range of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Where it begins on the disk, in bytes.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: u64,
}

/// All files.
#[derive(Clone, Debug)]
pub(super) struct Entries(Vec<Entry>);

impl Entries {
    /// `disk`, and `p1`, `p2` … with the numbers that Linux gives partitions.
    pub(super) fn new(size: u64, partitions: &[Partition]) -> Self {
        let whole = Entry { name: "disk".into(), offset: 0, len: size };
        let parts = partitions.iter().map(|part| Entry {
            name: format!("p{}", part.number),
            offset: part.offset,
            len: part.len,
        });
        Self(std::iter::once(whole).chain(parts).collect())
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (u64, &Entry)> {
        (FIRST..).zip(&self.0)
    }

    pub(super) fn of(&self, ino: u64) -> Option<&Entry> {
        self.0.get(usize::try_from(ino.checked_sub(FIRST)?).ok()?)
    }

    pub(super) fn find(&self, name: &OsStr) -> Option<(u64, &Entry)> {
        self.all().find(|(_, entry)| name == entry.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_keep_their_numbers() {
        let part = |number, offset| Partition { number, offset, len: 4096 };
        let entries = Entries::new(1 << 20, &[part(1, 8192), part(5, 65536)]);
        let names: Vec<_> = entries.all().map(|(ino, entry)| (ino, entry.name.as_str())).collect();
        assert_eq!(names, [(2, "disk"), (3, "p1"), (4, "p5")]);
        let (ino, entry) = entries.find(OsStr::new("p5")).unwrap();
        assert_eq!((ino, entry.offset, entry.len), (4, 65536, 4096));
        assert_eq!(entries.of(ino), Some(entry));
        assert_eq!((entries.of(0), entries.of(1), entries.of(5)), (None, None, None));
    }
}

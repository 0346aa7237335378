//! Block devices of the host as disks of guests. Whether something on the host has a claim to one is decided from what the
//! kernel shows in `/sys` and `/proc`; the kernel's own exclusive opening has the last word.

mod claim;
mod look;
mod sysfs;

pub use claim::{Claim, claims};
pub use look::{DeviceError, look_at_device};
pub use sysfs::{Mapped, Mount, Node, NumberOf, Roots, Stacked, Surroundings, read};

use std::{fmt, path::PathBuf};

/// Number of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Number {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl Number {
    /// From `st_rdev`.
    #[must_use]
    pub fn of(rdev: u64) -> Self {
        Self { major: rustix::fs::major(rdev), minor: rustix::fs::minor(rdev) }
    }

    /// Reads `8:16`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A block device of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// As it was asked for.
    pub path: PathBuf,
    /// Its number, whatever names lead to it.
    pub number: Number,
    /// Of a partition: the disk it is on.
    pub whole: Option<Number>,
    /// Bytes.
    pub size: u64,
    /// Bytes that are read and written as a whole: 512 or 4096.
    pub logical_sector: u32,
    /// Nothing can be written to it.
    pub read_only: bool,
    /// Who has it already.
    pub claims: Vec<Claim>,
    /// A name that stays with it when disks are plugged in another order; none if there is none.
    pub stable_name: Option<PathBuf>,
}

impl BlockDevice {
    /// Whether writing to one of them changes the other.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let one = [Some(self.number), self.whole];
        // Two partitions of one disk do not.
        one.contains(&Some(other.number)) || other.whole == Some(self.number)
    }

    /// Its claims in one sentence; none: it is free.
    #[must_use]
    pub fn claimed(&self) -> Option<String> {
        let words: Vec<String> = self.claims.iter().map(ToString::to_string).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }
}

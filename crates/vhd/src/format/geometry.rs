//! Cylinders, heads and sectors: the geometry in the footer, and which of geometry and size field is the disk's size.

use std::fmt;

use super::{SECTOR, footer::Footer};

/// A disk geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chs {
    /// 0–65535.
    pub cylinders: u16,
    /// At most 16.
    pub heads: u8,
    /// Sectors per track, at most 255.
    pub sectors: u8,
}

impl fmt::Display for Chs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.cylinders, self.heads, self.sectors)
    }
}

impl Chs {
    /// The largest geometry, 127.5 GiB. A disk that has it is as large as its size field says, whoever made it.
    pub const MAX: Self = Self { cylinders: 65535, heads: 16, sectors: 255 };

    /// The specification's geometry for a disk of `size` bytes (appendix "CHS Calculation"). It rounds down.
    #[must_use]
    #[expect(clippy::arithmetic_side_effects, reason = "all values stay below 2^34 after the first line")]
    pub fn for_size(size: u64) -> Self {
        let total = (size / SECTOR).min(65535 * 16 * 255);
        let (sectors, heads, tracks) = if total >= 65535 * 16 * 63 {
            (255, 16, total / 255)
        } else {
            let (mut sectors, mut tracks) = (17, total / 17);
            let mut heads = tracks.div_ceil(1024).max(4);
            if tracks >= heads * 1024 || heads > 16 {
                (sectors, heads, tracks) = (31, 16, total / 31);
            }
            if tracks >= heads * 1024 {
                (sectors, heads, tracks) = (63, 16, total / 63);
            }
            (sectors, heads, tracks)
        };
        Self {
            cylinders: u16::try_from(tracks / heads).unwrap_or(u16::MAX),
            heads: u8::try_from(heads).unwrap_or(u8::MAX),
            sectors,
        }
    }

    /// Bytes that the geometry spans.
    #[must_use]
    #[expect(clippy::arithmetic_side_effects, reason = "at most 2^16 · 2^8 · 2^8 · 2^9")]
    pub fn bytes(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors) * SECTOR
    }
}

/// Which field gives the size of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SizeRule {
    /// By creator: Virtual PC (`vpc `) and QEMU without `force_size` (`qemu`) never reach past the geometry, so it is the
    /// size when it is the smaller one; everybody else uses the size field. The largest geometry always means the size field.
    #[default]
    Auto,
    /// The geometry.
    Chs,
    /// The size field.
    CurrentSize,
}

impl SizeRule {
    /// The disk's size in bytes as the footer stores it, and the rule that decided: never [`SizeRule::Auto`].
    #[must_use]
    pub fn apply(self, footer: &Footer) -> (u64, Self) {
        let current = footer.current_size.get();
        let chs = footer.chs();
        match self {
            Self::Chs => (chs.bytes(), Self::Chs),
            Self::CurrentSize => (current, Self::CurrentSize),
            Self::Auto => {
                let by_chs = matches!(&footer.creator_app, b"vpc " | b"qemu");
                if by_chs && chs != Chs::MAX && chs.bytes() != 0 && chs.bytes() < current {
                    (chs.bytes(), Self::Chs)
                } else {
                    (current, Self::CurrentSize)
                }
            }
        }
    }
}

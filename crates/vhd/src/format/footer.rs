//! The 512-byte footer at the end of every VHD file, copied at offset 0 of dynamic and differencing ones.

use std::fmt;

use thiserror::Error;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32, U64},
};

use super::{checksum, geometry::Chs};

/// Bytes in a footer.
pub const FOOTER_LEN: usize = 512;
/// First bytes of a footer.
pub const COOKIE: [u8; 8] = *b"conectix";
/// What Xen's vhd-util writes over the cookie while a journaled operation runs.
pub const POISON: [u8; 8] = *b"v_poison";
/// File format version 1.0.
pub const VERSION: u32 = 0x0001_0000;
/// `features` bit that is always set.
pub const FEATURE_RESERVED: u32 = 2;
/// `features` bit of a temporary disk.
pub const FEATURE_TEMPORARY: u32 = 1;
/// `data_offset` of a fixed disk.
pub const NO_DATA_OFFSET: u64 = u64::MAX;
/// Seconds between 1970-01-01 and the epoch of VHD time stamps, 2000-01-01 00:00 UTC.
pub const EPOCH_UNIX: i64 = 946_684_800;
/// Creator application of files that this crate makes.
pub const CREATOR: [u8; 4] = *b"bkst";
/// Creator version of files that this crate makes.
pub const CREATOR_VERSION: u32 = 0x0001_0000;
/// Creator host that means Windows; the other known one is `Mac `.
pub const CREATOR_OS: [u8; 4] = *b"Wi2k";

const CHECKSUM_AT: usize = 64;
const HIDDEN_AT: usize = 85;

/// The footer as it lies in the file.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Footer {
    /// [`COOKIE`].
    pub cookie: [u8; 8],
    /// [`FEATURE_RESERVED`] and perhaps [`FEATURE_TEMPORARY`].
    pub features: U32,
    /// [`VERSION`].
    pub version: U32,
    /// Offset of the dynamic header; [`NO_DATA_OFFSET`] in a fixed disk.
    pub data_offset: U64,
    /// Seconds since 2000-01-01 UTC.
    pub time_stamp: U32,
    /// Four characters that name the program.
    pub creator_app: [u8; 4],
    /// Its version, major in the upper half.
    pub creator_version: U32,
    /// The host system it ran on.
    pub creator_os: [u8; 4],
    /// Size when the disk was made. For information only.
    pub original_size: U64,
    /// Size now.
    pub current_size: U64,
    /// Cylinders of the geometry.
    pub cylinders: U16,
    /// Heads of the geometry.
    pub heads: u8,
    /// Sectors per track of the geometry.
    pub sectors: u8,
    /// See [`DiskType`].
    pub disk_type: U32,
    /// One's complement of the sum of all other bytes.
    pub checksum: U32,
    /// Identity of the disk; differencing disks name their parent by it.
    pub unique_id: [u8; 16],
    /// 1 if a virtual machine was saved while it used the disk.
    pub saved_state: u8,
    /// Zeros; Xen keeps a "hidden" flag in the first byte.
    pub reserved: [u8; 427],
}

const _: () = assert!(size_of::<Footer>() == FOOTER_LEN);
const _: () = assert!(align_of::<Footer>() == 1);

/// The three kinds of disk in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskType {
    /// Every sector has its place in the file.
    Fixed,
    /// Blocks are added as they are written.
    Dynamic,
    /// Holds the sectors that differ from a parent.
    Differencing,
}

impl DiskType {
    /// The number in the footer.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }

    /// The kind with that number; `None` for 0 (none), 1, 5, 6 (deprecated, reserved) and all others.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            2 => Some(Self::Fixed),
            3 => Some(Self::Dynamic),
            4 => Some(Self::Differencing),
            _ => None,
        }
    }
}

impl fmt::Display for DiskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        })
    }
}

/// A time in a VHD file: seconds since 2000-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VhdTime(pub u32);

impl VhdTime {
    /// From seconds since 1970; times before 2000 become 0, times after 2136 the largest value.
    #[must_use]
    pub fn from_unix(seconds: i64) -> Self {
        let since = seconds.saturating_sub(EPOCH_UNIX).clamp(0, i64::from(u32::MAX));
        Self(u32::try_from(since).unwrap_or(u32::MAX))
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn to_unix(self) -> i64 {
        i64::from(self.0).saturating_add(EPOCH_UNIX)
    }
}

/// Why 512 bytes are not a usable footer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FooterError {
    /// Another cookie.
    #[error("there is no VHD footer here (no \"conectix\" cookie)")]
    NotAFooter,
    /// Xen's marker.
    #[error("the footer is marked \"v_poison\"")]
    Poisoned,
    /// The bytes were damaged.
    #[error("the footer's checksum is {stored:#010x}, its content gives {computed:#010x}")]
    BadChecksum {
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    /// Not version 1.x.
    #[error("the footer has format version {0:#010x}, only 1.0 (0x00010000) is known")]
    UnsupportedVersion(u32),
}

impl Footer {
    /// Checks cookie, checksum and version of a sector.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn parse(bytes: &[u8; FOOTER_LEN]) -> Result<Self, FooterError> {
        let footer = Self::read_from_bytes(bytes).map_err(|_| FooterError::NotAFooter)?;
        if footer.cookie == POISON {
            return Err(FooterError::Poisoned);
        }
        if footer.cookie != COOKIE {
            return Err(FooterError::NotAFooter);
        }
        let stored = footer.checksum.get();
        let computed = footer.compute_checksum();
        if stored != computed && !footer.checksum_ignores_hidden(stored) {
            return Err(FooterError::BadChecksum { stored, computed });
        }
        let version = footer.version.get();
        if version >> 16 != VERSION >> 16 {
            return Err(FooterError::UnsupportedVersion(version));
        }
        Ok(footer)
    }

    /// The checksum that belongs to the other fields.
    #[must_use]
    pub fn compute_checksum(&self) -> u32 {
        checksum(self.as_bytes(), CHECKSUM_AT)
    }

    /// Old Xen tools (tap 0.1, 1.1) computed the checksum before they set the "hidden" byte.
    fn checksum_ignores_hidden(&self, stored: u32) -> bool {
        let hidden = self.as_bytes().get(HIDDEN_AT).copied().unwrap_or(0);
        self.creator_app == *b"tap\0" && stored == self.compute_checksum().wrapping_add(u32::from(hidden))
    }

    /// Sets the checksum; call it last.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.checksum = U32::new(self.compute_checksum());
        self
    }

    /// The 512 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; FOOTER_LEN] {
        let mut bytes = [0; FOOTER_LEN];
        bytes.copy_from_slice(self.as_bytes());
        bytes
    }

    /// The geometry.
    #[must_use]
    pub fn chs(&self) -> Chs {
        Chs { cylinders: self.cylinders.get(), heads: self.heads, sectors: self.sectors }
    }

    /// The kind of disk, if it is one of the three.
    #[must_use]
    pub fn kind(&self) -> Option<DiskType> {
        DiskType::from_code(self.disk_type.get())
    }

    /// A sealed footer for a new disk of this crate.
    ///
    /// Its geometry is the largest one, which every reader takes as "use the size field": a real geometry would make
    /// some readers round the size.
    #[must_use]
    pub fn new(kind: DiskType, size: u64, unique_id: [u8; 16], time_stamp: VhdTime) -> Self {
        let data_offset = if kind == DiskType::Fixed { NO_DATA_OFFSET } else { FOOTER_LEN as u64 };
        Self {
            cookie: COOKIE,
            features: U32::new(FEATURE_RESERVED),
            version: U32::new(VERSION),
            data_offset: U64::new(data_offset),
            time_stamp: U32::new(time_stamp.0),
            creator_app: CREATOR,
            creator_version: U32::new(CREATOR_VERSION),
            creator_os: CREATOR_OS,
            original_size: U64::new(size),
            current_size: U64::new(size),
            cylinders: U16::new(Chs::MAX.cylinders),
            heads: Chs::MAX.heads,
            sectors: Chs::MAX.sectors,
            disk_type: U32::new(kind.code()),
            checksum: U32::new(0),
            unique_id,
            saved_state: 0,
            reserved: [0; 427],
        }
        .sealed()
    }
}

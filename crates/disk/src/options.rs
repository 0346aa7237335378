//! How a disk is opened.

use crate::seams::{ChangedRanges, WriteGate};
use backstay_vhd::{Format, SizeRule, parent::PathMapping};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use uuid::Uuid;

/// Format of a disk file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// VHD: fixed, dynamic or differencing.
    Vhd,
    /// VHDX: fixed, dynamic or differencing.
    Vhdx,
    /// The bytes of the disk and nothing else.
    Raw,
}

impl DiskFormat {
    /// The format a file name stands for: `.vhd` and `.avhd` are VHD; `.vhdx` and `.avhdx` VHDX; `.raw`, `.img` and `.iso` raw.
    ///
    /// The content is never looked at to decide: a guest can write anything into a raw disk, also what looks like a VHD
    /// whose parent is `/etc/shadow`.
    #[must_use]
    pub fn of_name(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "vhd" | "avhd" => Some(Self::Vhd),
            "vhdx" | "avhdx" => Some(Self::Vhdx),
            "raw" | "img" | "iso" => Some(Self::Raw),
            _ => None,
        }
    }

    /// Whether such a file has structures of its own and can be, or have, a parent.
    #[must_use]
    pub fn is_image(self) -> bool {
        self != Self::Raw
    }
}

impl From<Format> for DiskFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Vhd => Self::Vhd,
            Format::Vhdx => Self::Vhdx,
        }
    }
}

/// What the page cache of the host is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// Reads are answered from it, writes go to it and to the device with the next flush.
    #[default]
    Writeback,
    /// Metadata only. What the guest reads and writes goes past it where the file system can do that and the request lies in
    /// the file in whole pages; the rest goes through it.
    None,
}

/// How to open a disk. The default is for writing, with neither shadow nor hooks.
#[derive(Clone, Debug, Default)]
pub struct DiskOptions {
    /// Refuse writes; many may have the disk open so.
    pub read_only: bool,
    /// Format of the file; by its name if not given. Parents have that of their child.
    pub format: Option<DiskFormat>,
    /// Folder for shadow files, best on a tmpfs. It is where bits of acknowledged writes survive the death of this
    /// process. Without one each write that sets new bits of a differencing disk is synced before it is acknowledged;
    /// likewise, with a warning, if the folder cannot be used.
    pub runtime_dir: Option<PathBuf>,
    /// What absolute paths stored in disks of other machines mean on this host.
    pub path_map: Vec<PathMapping>,
    /// Parents whose place is known, by the id that their children name.
    pub known_parents: Vec<(Uuid, PathBuf)>,
    /// Folder that parents may not lie outside of.
    pub root: Option<PathBuf>,
    /// Which footer field of a VHD is the size.
    pub size_rule: SizeRule,
    /// Where what a guest reads and writes is kept by the host.
    pub cache: CacheMode,
    /// Asked before each change of a file.
    pub gate: Option<Arc<dyn WriteGate>>,
    /// Told of each change of content.
    pub changed: Option<Arc<dyn ChangedRanges>>,
}

impl DiskOptions {
    /// For looking only.
    #[must_use]
    pub fn read_only() -> Self {
        Self { read_only: true, ..Self::default() }
    }

    /// Where every program of this host keeps shadow files, so that each finds those of the others: `/run/backstay/shadow`
    /// for root, else `backstay/shadow` in `/run/user/UID` or, on a host without it, in `$XDG_RUNTIME_DIR`. `None` if
    /// there is neither.
    #[must_use]
    pub fn default_runtime_dir() -> Option<PathBuf> {
        if rustix::process::geteuid().is_root() {
            return Some(PathBuf::from("/run/backstay/shadow"));
        }
        // The same for a program that was started without the variable.
        let usual = PathBuf::from(format!("/run/user/{}", rustix::process::geteuid()));
        let named =
            || std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = Some(usual).filter(|folder| folder.is_dir()).or_else(named)?;
        Some(folder.join("backstay/shadow"))
    }
}

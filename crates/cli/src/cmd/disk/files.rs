//! Disk files for the commands that look at one file alone, its parents left aside.

use backstay_disk::fs::{DiskFile, FileSystem, HostFs, LockKind, OpenMode};
use backstay_disk::{DiskFormat, DiskOptions, OpenError};
use backstay_vhd::{OpenOptions, Storage, vhdx};
use clap::{Args, ValueEnum};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The format of a file whose name does not tell it.
#[derive(Clone, Copy, Debug, Args)]
pub struct FormatArgs {
    /// Format of the file; by its name unless given: .vhd and .avhd are VHD, .vhdx and .avhdx VHDX, .raw, .img and .iso raw
    #[arg(long, value_enum)]
    pub format: Option<FileFormat>,
}

/// Formats of disk files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// VHD: every Windows since Virtual PC, at most 2040 GiB
    Vhd,
    /// VHDX: Windows since 2012, at most 64 TiB, safe against power loss by itself
    Vhdx,
    /// The bytes of the disk and nothing else
    Raw,
}

impl From<FileFormat> for DiskFormat {
    fn from(format: FileFormat) -> Self {
        match format {
            FileFormat::Vhd => Self::Vhd,
            FileFormat::Vhdx => Self::Vhdx,
            FileFormat::Raw => Self::Raw,
        }
    }
}

impl FormatArgs {
    /// How the engine opens the disk for looking.
    pub fn read_only(self) -> DiskOptions {
        DiskOptions { format: self.format.map(Into::into), ..options(true) }
    }

    /// The format of `path`.
    pub fn of(self, path: &Path) -> anyhow::Result<DiskFormat> {
        format_of(self.format, path)
    }
}

/// A format by option or name.
pub fn format_of(given: Option<FileFormat>, path: &Path) -> anyhow::Result<DiskFormat> {
    let format = given.map(Into::into).or_else(|| DiskFormat::of_name(path));
    format.ok_or_else(|| OpenError::of_unknown_name(path).into())
}

/// How the engine opens disks for commands of this host.
pub fn options(read_only: bool) -> DiskOptions {
    DiskOptions { read_only, runtime_dir: DiskOptions::default_runtime_dir(), ..DiskOptions::default() }
}

/// One file, locked so that nobody changes it meanwhile.
pub struct OneFile {
    /// Its name as given.
    pub path: PathBuf,
    /// The file.
    pub file: Arc<dyn DiskFile>,
}

impl OneFile {
    /// Opens and locks the file: alone for writing, else together with other readers.
    pub fn open(path: &Path, writable: bool) -> anyhow::Result<Self> {
        let fs = HostFs;
        let failed = |action: &'static str| {
            let path = path.to_owned();
            move |source: io::Error| match source.kind() {
                io::ErrorKind::NotFound => OpenError::NotFound { path },
                _ => OpenError::Io { path, action, source },
            }
        };
        let (mode, lock) = match writable {
            true => (OpenMode::ReadWrite, LockKind::Exclusive),
            false => (OpenMode::Read, LockKind::Shared),
        };
        let file = fs.open(path, mode).map_err(failed("open"))?;
        match file.lock(lock) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let holder = fs.holder(file.id());
                return Err(OpenError::InUse { path: path.into(), holder }.into());
            }
            Err(error) => return Err(failed("lock")(error).into()),
        }
        Ok(Self { path: path.into(), file })
    }

    /// How the format crate opens it.
    pub fn vhd_options(&self) -> OpenOptions {
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned());
        OpenOptions { name, ..OpenOptions::default() }
    }

    /// What would repair it as a VHDX.
    pub fn vhdx_repair(&self) -> anyhow::Result<vhdx::repair::RepairPlan> {
        let storage: Arc<dyn Storage> = Arc::clone(&self.file) as Arc<dyn Storage>;
        let plan = vhdx::repair::plan(&storage, uuid::Uuid::new_v4());
        Ok(plan
            .map_err(|source| OpenError::FormatVhdx { path: self.path.clone(), source: Box::new(source) })?)
    }
}

/// Length of a file and the space it takes on its file system, in bytes; zeros when it cannot be told.
pub fn lengths(path: &Path) -> (u64, u64) {
    HostFs.metadata(path).map_or((0, 0), |meta| (meta.len, meta.allocated))
}

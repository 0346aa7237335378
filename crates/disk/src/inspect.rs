//! Looking at disks that nobody serves: what they are, whether they are sound, where their bytes are. Files are open and
//! locked only while a function runs.

use crate::{
    chain::{Chain, ChainWarning},
    disk::{LayerInfo, describe},
    error::OpenError,
    fs::FileSystem,
    layer::{format_of, open_locked},
    options::{DiskFormat, DiskOptions},
    status::data_runs,
    walk::{Place, walk},
};
use backstay_vhd::{
    OpenOptions, Storage,
    check::{Report, check},
    plan::PlanError,
    repair::{self, RepairPlan},
};
use std::{io, path::Path, sync::Arc};

/// What a disk and its parents are.
#[derive(Clone, Debug)]
pub struct ChainInfo {
    /// The files, the top first.
    pub layers: Vec<LayerInfo>,
    /// What is strange about them.
    pub warnings: Vec<ChainWarning>,
}

/// Looks at a disk and all its parents.
///
/// # Errors
/// As [`crate::Disk::open`] for reading.
pub fn info(fs: &Arc<dyn FileSystem>, path: &Path, options: &DiskOptions) -> Result<ChainInfo, OpenError> {
    let chain = open_to_look(fs, path, options)?;
    Ok(ChainInfo { layers: chain.layers.iter().map(describe).collect(), warnings: chain.warnings })
}

/// One range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRange {
    /// Offset in the disk, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where it is; `None`: in no file, it reads as zeros.
    pub place: Option<FileRange>,
}

/// Where a range of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRange {
    /// Which file of the chain; 0 is the top.
    pub layer: usize,
    /// Offset in that file, in bytes.
    pub offset: u64,
    /// A hole of the file: the disk keeps a place for it, but it takes no space and reads as zeros.
    pub hole: bool,
}

/// Why a disk could not be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// It cannot be opened.
    #[error("cannot open the disk")]
    Open(#[from] OpenError),
    /// A bitmap or the holes of a file could not be read.
    #[error("cannot tell where the data of {} is", path.display())]
    Io {
        /// Top of the chain.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Tells for a disk, through its whole chain, which file holds what; in order and without gaps.
///
/// # Errors
/// [`MapError`].
pub fn map(fs: &Arc<dyn FileSystem>, path: &Path, options: &DiskOptions) -> Result<Vec<DiskRange>, MapError> {
    let chain = open_to_look(fs, path, options)?;
    let size = chain.top().map_or(0, |top| top.size);
    let mut ranges = Vec::new();
    let walked = walk(&chain.layers, 0, size, &mut |offset, len, place| {
        let Place::Data { layer, file_offset } = place else {
            add_range(&mut ranges, DiskRange { offset, len, place: None });
            return Ok(());
        };
        let index = chain.layers.iter().position(|other| std::ptr::eq(other.as_ref(), layer)).unwrap_or(0);
        let mut done = 0;
        data_runs(layer, file_offset, len, &mut |len, data| {
            let place = FileRange { layer: index, offset: file_offset + done, hole: !data };
            add_range(&mut ranges, DiskRange { offset: offset + done, len, place: Some(place) });
            done += len;
            Ok(())
        })
    });
    walked.map_err(|source| MapError::Io { path: path.to_owned(), source })?;
    Ok(ranges)
}

/// Appends a range, merged with the last one if it goes on in disk and file.
fn add_range(ranges: &mut Vec<DiskRange>, range: DiskRange) {
    if let Some(last) = ranges.last_mut() {
        let goes_on = match (last.place, range.place) {
            (None, None) => true,
            (Some(a), Some(b)) => a.layer == b.layer && a.hole == b.hole && a.offset + last.len == b.offset,
            _ => false,
        };
        if goes_on {
            last.len += range.len;
            return;
        }
    }
    ranges.push(range);
}

/// Checks one VHD file: its structures, not its parents and not its payload.
///
/// # Errors
/// If the file cannot be opened or locked, or is not a VHD by option or name. Damage is in the report.
pub fn check_file(fs: &Arc<dyn FileSystem>, path: &Path, options: &DiskOptions) -> Result<Report, OpenError> {
    let file = open_vhd(fs, path, options, false)?;
    Ok(check(file.as_ref() as &dyn Storage, &how(path, options)))
}

/// Why a disk could not be repaired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// It cannot be opened or locked for itself alone.
    #[error("cannot open the disk")]
    Open(#[from] OpenError),
    /// Too damaged for a plan.
    #[error("{} is too damaged to be repaired", path.display())]
    Hopeless {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        #[source]
        source: backstay_vhd::OpenError,
    },
    /// A step failed.
    #[error("the repair of {} was interrupted; run it again", path.display())]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// Which step, and why.
        #[source]
        source: PlanError,
    },
}

/// Plans the repair of one VHD file and, unless `dry_run`, carries it out, all under an exclusive lock.
///
/// # Errors
/// [`RepairError`].
pub fn repair_file(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    options: &DiskOptions,
    dry_run: bool,
) -> Result<RepairPlan, RepairError> {
    let file = open_vhd(fs, path, options, true)?;
    let plan = repair::plan(file.as_ref() as &dyn Storage, &how(path, options))
        .map_err(|source| RepairError::Hopeless { path: path.to_owned(), source })?;
    if !dry_run {
        plan.execute(file.as_ref() as &dyn Storage)
            .map_err(|source| RepairError::Write { path: path.to_owned(), source })?;
    }
    Ok(plan)
}

fn how(path: &Path, options: &DiskOptions) -> OpenOptions {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    OpenOptions { name, size_rule: options.size_rule, ..OpenOptions::default() }
}

fn open_vhd(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    options: &DiskOptions,
    writable: bool,
) -> Result<Arc<dyn crate::fs::DiskFile>, OpenError> {
    match format_of(fs, path, options.format)? {
        DiskFormat::Vhd => open_locked(fs, path, writable),
        DiskFormat::Raw => Err(OpenError::NotVhd { path: path.to_owned() }),
    }
}

fn open_to_look(fs: &Arc<dyn FileSystem>, path: &Path, options: &DiskOptions) -> Result<Chain, OpenError> {
    let options = DiskOptions { read_only: true, gate: None, changed: None, ..options.clone() };
    Chain::open(fs, path, &options)
}

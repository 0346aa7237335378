//! Looking at files that nobody serves: whether they are sound, where their bytes are. Files are open and
//! locked only while a function runs. `served` looks at a disk that is being served.

use crate::{
    disk::{LayerInfo, describe},
    error::OpenError,
    fs::{DiskFile, FileSystem},
    image::ImageInfo,
    layer::{Layer, LayerMode, format_of, open_locked},
    options::{DiskFormat, DiskOptions},
    status::data_runs,
};
use backstay_vhd::{
    Format, OpenOptions, Storage,
    map::{MapKind, MapRange, map},
    vhdx,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The result of a check of one file of either format.
pub type Report = backstay_vhd::check::Report<ImageInfo>;

/// Why a disk could not be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// It cannot be opened.
    #[error("cannot open the disk")]
    Open(#[from] OpenError),
    /// The bitmaps or holes of a VHD or VHDX could not be read.
    #[error("cannot tell where the data of {} is", path.display())]
    Vhd {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: backstay_vhd::map::MapError,
    },
    /// The holes of a raw file could not be read.
    #[error("cannot find the holes of {}", path.display())]
    Raw {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Tells what one file of a chain holds of the disk, in order and without gaps. Writes of a process that died are in it.
///
/// # Errors
/// [`MapError`].
pub fn map_file(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    options: &DiskOptions,
) -> Result<Vec<MapRange>, MapError> {
    let format = format_of(fs, path, options.format)?;
    let options = DiskOptions { read_only: true, gate: None, changed: None, ..options.clone() };
    let layer = Layer::open(fs, path, LayerMode { writable: false, format }, &options)?;
    if let Some(image) = layer.image() {
        return map(image).map_err(|source| MapError::Vhd { path: path.to_owned(), source });
    }
    let mut ranges = Vec::new();
    let mut at = 0;
    let walked = data_runs(&layer, 0, layer.size, &mut |len, data| {
        let kind = match data {
            true => MapKind::Data { file_offset: at },
            false => MapKind::Hole { file_offset: at },
        };
        ranges.push(MapRange { offset: at, len, kind });
        at += len;
        Ok(())
    });
    walked.map_err(|source| MapError::Raw { path: path.to_owned(), source })?;
    Ok(ranges)
}

/// What one file says about itself, whether or not its parents are there. Writes of a process that died are in it.
///
/// # Errors
/// If the file cannot be opened or locked, or is damaged.
pub fn look_at(fs: &Arc<dyn FileSystem>, path: &Path, options: &DiskOptions) -> Result<LayerInfo, OpenError> {
    let format = format_of(fs, path, options.format)?;
    let options = DiskOptions { read_only: true, gate: None, changed: None, ..options.clone() };
    let layer = Layer::open(fs, path, LayerMode { writable: false, format }, &options)?;
    Ok(LayerInfo { path: path.to_owned(), ..describe(&Arc::new(layer)) })
}

/// Checks one VHD or VHDX file: its structures, not its parents and not its payload.
///
/// # Errors
/// If the file cannot be opened or locked, or is raw by option or name. Damage is in the report.
pub fn check_file(fs: &Arc<dyn FileSystem>, path: &Path, options: &DiskOptions) -> Result<Report, OpenError> {
    let format = match format_of(fs, path, options.format)? {
        DiskFormat::Vhd => Format::Vhd,
        DiskFormat::Vhdx => Format::Vhdx,
        DiskFormat::Raw => return Err(OpenError::NotVhd { path: path.to_owned() }),
    };
    Ok(check_image(&open_locked(fs, path, false)?, format, path, options))
}

/// Checks a file that is open and locked.
pub(crate) fn check_image(
    file: &Arc<dyn DiskFile>,
    format: Format,
    path: &Path,
    options: &DiskOptions,
) -> Report {
    match format {
        Format::Vhd => {
            let report = backstay_vhd::check::check(file.as_ref() as &dyn Storage, &how(path, options));
            report.map_info(|info| ImageInfo::Vhd(Box::new(info)))
        }
        Format::Vhdx => {
            let report = vhdx::check::check(&(Arc::clone(file) as Arc<dyn Storage>));
            report.map_info(|info| ImageInfo::Vhdx(Box::new(info)))
        }
    }
}

fn how(path: &Path, options: &DiskOptions) -> OpenOptions {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    OpenOptions { name, size_rule: options.size_rule, ..OpenOptions::default() }
}

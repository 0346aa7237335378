//! Another size for a disk that nobody uses.

use super::{
    Grown, ResizeControl, ResizeError,
    used::{Used, UsedBy},
};
use crate::{
    disk::Disk,
    family::children_near,
    fs::FileSystem,
    image::{AnyImage, ImageInfo},
    layer::{Body, Layer},
    options::DiskOptions,
};
use backstay_vhd::{DiskType, OpenOptions, SizeRule, Storage, resize};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The size that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// So many bytes.
    Bytes(u64),
    /// As few as hold what is in use.
    Minimum,
}

/// What another size for a disk would mean; printable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResizePlan {
    /// The file.
    pub path: PathBuf,
    /// What it is: "a dynamic VHDX".
    pub what: String,
    /// Size now, in bytes.
    pub old: u64,
    /// Size afterwards.
    pub new: u64,
    /// The smallest size it could have, and what is in the way of a smaller one. Only looked for where it gets smaller.
    pub minimum: Option<(u64, UsedBy)>,
    /// The disk has a GUID partition table whose copy is moved to the new end first.
    pub moves_partition_table: bool,
    /// The steps, one a line.
    pub steps: String,
}

impl fmt::Display for ResizePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, what, old, new, .. } = self;
        if old == new {
            return writeln!(f, "{}, {what}, has {new} bytes already", path.display());
        }
        writeln!(f, "make {}, {what} of {old} bytes, a disk of {new} bytes", path.display())?;
        if let Some((minimum, by)) = &self.minimum {
            writeln!(f, "  it could have {minimum} bytes: there ends {by}")?;
        }
        if self.moves_partition_table {
            writeln!(f, "  put the copy of the partition table where the disk will end")?;
        }
        f.write_str(&self.steps)
    }
}

/// Looks at a disk that nobody writes to and says what another size would mean.
///
/// # Errors
/// As [`resize`].
pub fn plan_resize(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    size: NewSize,
    options: &DiskOptions,
) -> Result<ResizePlan, ResizeError> {
    let looking = DiskOptions { read_only: true, gate: None, changed: None, ..options.clone() };
    let disk = open(fs, path, looking)?;
    Ok(plan_on(fs, &disk, size, &ResizeControl::new())?.0)
}

/// Gives a disk that nobody uses another size. It becomes smaller only over space that is not in use, and never smaller than its
/// parent. The call blocks, and can be ended by [`ResizeControl::cancel`] as long as nothing was changed.
///
/// # Errors
/// [`ResizeError`]; the disk has its old size then, or, if it was interrupted late, the new one.
pub fn resize_offline(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    size: NewSize,
    options: &DiskOptions,
    control: &ResizeControl,
) -> Result<ResizePlan, ResizeError> {
    let disk = open(fs, path, DiskOptions { read_only: false, ..options.clone() })?;
    let (plan, used) = plan_on(fs, &disk, size, control)?;
    if control.is_cancelled() {
        return Err(ResizeError::Cancelled { path: path.to_owned() });
    }
    if let Some(gpt) = used.and_then(|used| used.gpt).filter(|_| plan.moves_partition_table) {
        disk.move_gpt(&gpt, plan.new).map_err(|source| ResizeError::Io {
            path: path.to_owned(),
            action: "move the partition table of",
            source,
        })?;
    }
    let Grown { .. } = disk.resize_top(plan.new, control)?;
    disk.close().map_err(|error| ResizeError::Io {
        path: path.to_owned(),
        action: "close",
        source: std::io::Error::other(error),
    })?;
    Ok(plan)
}

fn open(fs: &Arc<dyn FileSystem>, path: &Path, options: DiskOptions) -> Result<Arc<Disk>, ResizeError> {
    Disk::open_on(Arc::clone(fs), path, options)
        .map_err(|source| ResizeError::Open { path: path.to_owned(), source: Box::new(source) })
}

/// Everything that can be refused is refused here.
fn plan_on(
    fs: &Arc<dyn FileSystem>,
    disk: &Disk,
    size: NewSize,
    control: &ResizeControl,
) -> Result<(ResizePlan, Option<Used>), ResizeError> {
    let layers = disk.chain.enter().layers.to_vec();
    let top = layers.first().cloned().ok_or_else(|| ResizeError::Closed { path: disk.top_path() })?;
    refuse_needed(fs, &top)?;
    let old = top.size;
    let used = match size {
        NewSize::Bytes(new) if new > old => {
            super::refuse_larger_parent(&top, layers.get(1).map(AsRef::as_ref))?;
            None
        }
        NewSize::Bytes(new) if new == old => None,
        _ => Some(disk.used(control)?),
    };
    let new = match (size, &used) {
        (NewSize::Bytes(new), _) => new,
        (NewSize::Minimum, used) => used.as_ref().map_or(old, |used| used.end.min(old)),
    };
    super::check(&top, new)?;
    if let Some(used) = used.as_ref().filter(|used| new < used.end.min(old)) {
        return Err(would_lose(disk, new, used));
    }
    let gpt = used.as_ref().is_some_and(|used| used.gpt.is_some());
    let plan = ResizePlan {
        path: top.path.clone(),
        what: describe(&top),
        old,
        new,
        minimum: used.as_ref().map(|used| (used.end.min(old), used.by.clone())),
        moves_partition_table: gpt && new < old,
        steps: steps(&top, new)?,
    };
    Ok((plan, used))
}

/// A disk that others are made on, or whose memory is saved, stays as it is.
fn refuse_needed(fs: &Arc<dyn FileSystem>, top: &Layer) -> Result<(), ResizeError> {
    if top.info().is_some_and(ImageInfo::saved_state) {
        return Err(ResizeError::SavedState { path: top.path.clone() });
    }
    let Some(identity) = top.identity() else { return Ok(()) };
    let children = children_near(fs, &top.path, identity).map_err(|error| ResizeError::Io {
        path: error.path.clone(),
        action: "tell the parent of",
        source: std::io::Error::other(error.source),
    })?;
    match children.is_empty() {
        true => Ok(()),
        false => Err(ResizeError::HasChildren { path: top.path.clone(), children }),
    }
}

fn would_lose(disk: &Disk, wanted: u64, used: &Used) -> ResizeError {
    let (path, minimum) = (disk.top_path(), used.end);
    let lost = match &used.by {
        UsedBy::Data => match disk.first_data(wanted) {
            Ok(Some((at, len))) => format!("{len} bytes of data at {at}"),
            _ => "data".to_owned(),
        },
        by => by.to_string(),
    };
    ResizeError::WouldLose { path, wanted, minimum, lost }
}

fn describe(layer: &Layer) -> String {
    let Some(info) = layer.info() else { return "a raw disk".to_owned() };
    let name = match info {
        ImageInfo::Vhd(_) => "VHD",
        ImageInfo::Vhdx(_) => "VHDX",
    };
    match info.disk_type() {
        DiskType::Fixed => format!("a fixed {name}"),
        DiskType::Dynamic => format!("a dynamic {name}"),
        DiskType::Differencing => format!("a differencing {name}"),
    }
}

fn steps(layer: &Layer, size: u64) -> Result<String, ResizeError> {
    let unsuitable = |source| ResizeError::Unsuitable { path: layer.path.clone(), source };
    Ok(match &layer.body {
        Body::Raw(_) => format!("  set the length of the file to {size}\n"),
        Body::Image(AnyImage::Vhdx(image)) => image.plan_resize(size).map_err(unsuitable)?.to_string(),
        Body::Image(AnyImage::Vhd(_)) => {
            let size_rule = match layer.info() {
                Some(ImageInfo::Vhd(info)) => info.size_rule,
                _ => SizeRule::default(),
            };
            let storage: &dyn Storage = layer.file.as_ref();
            let options = OpenOptions { size_rule, ..OpenOptions::default() };
            resize::plan(storage, &options, size).map_err(unsuitable)?.to_string()
        }
    })
}

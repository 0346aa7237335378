//! Children of a layer that is merged away, and disks whose parent was moved.

use super::ReparentError;
use crate::{
    error::OpenError,
    fs::FileSystem,
    image::{AnyImage, ImageInfo},
    layer::{Layer, LayerMode, NextIdentity, format_of},
    locator::{locator, parent_spec},
    options::{DiskFormat, DiskOptions},
    parent::{Found, open_parent, was_merged},
};
use backstay_vhd::{LayerFormat, VhdTime, vhdx::Locator};
use std::{
    collections::HashSet,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use uuid::Uuid;

/// What another parent for a differencing disk would mean; printable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReparentPlan {
    /// The disk.
    pub child: PathBuf,
    /// Its parent afterwards.
    pub parent: PathBuf,
    /// The parent is the one of the present parent, which is empty.
    pub skips_empty: bool,
}

impl fmt::Display for ReparentPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { child, parent, skips_empty } = self;
        writeln!(f, "write into the header of {} that its parent is {}", child.display(), parent.display())?;
        if *skips_empty {
            writeln!(f, "  it is the parent of its present one, which is empty")?;
        }
        Ok(())
    }
}

/// Looks at a differencing disk that nobody uses and at a file that is to be its parent: everything that can be refused is refused here.
///
/// # Errors
/// As [`reparent`].
pub fn plan_reparent(
    fs: &Arc<dyn FileSystem>,
    child: &Path,
    parent: &Path,
    options: &DiskOptions,
) -> Result<ReparentPlan, ReparentError> {
    Ok(checked(fs, child, parent, options)?.plan)
}

/// Tells a closed differencing disk that its parent is at `parent` now. The parent must be the one it was made from (by
/// unique id), or the parent of that if that one is empty. At every instant, also after a power cut, the file is whole and
/// names the old or the new parent.
///
/// # Errors
/// [`ReparentError`].
pub fn reparent(
    fs: &Arc<dyn FileSystem>,
    child: &Path,
    parent: &Path,
    options: &DiskOptions,
) -> Result<(), ReparentError> {
    let Checked { parent, wanted, .. } = checked(fs, child, parent, options)?;
    reparent_closed(fs, child, &[wanted], &parent, options)
}

/// A parent that may be one, under its lock.
struct Checked {
    plan: ReparentPlan,
    parent: Layer,
    /// Id of the parent that the child has.
    wanted: Uuid,
}

fn checked(
    fs: &Arc<dyn FileSystem>,
    child: &Path,
    parent: &Path,
    options: &DiskOptions,
) -> Result<Checked, ReparentError> {
    let looking = DiskOptions { read_only: true, gate: None, changed: None, ..options.clone() };
    let mode = LayerMode { writable: false, format: format_of(fs, parent, None)? };
    let parent = Layer::open(fs, parent, mode, &looking)?;
    let id = parent.identity().unwrap_or_default();
    let mode = LayerMode { writable: false, format: format_of(fs, child, None)? };
    let child = Layer::open(fs, child, mode, &looking)?;
    let link = child.image().and_then(LayerFormat::parent);
    let link = link.ok_or_else(|| ReparentError::NotDifferencing { child: child.path.clone() })?;
    let is_its_own = child.is_child_of(id);
    if !is_its_own && !empty_parent_of(fs, &child, id, &looking) {
        let (child, wanted) = (child.path.clone(), link.unique_id);
        return Err(ReparentError::OtherParent { child, parent: parent.path, wanted, found: id });
    }
    // Paths that cannot be written down.
    match parent.info() {
        Some(ImageInfo::Vhd(_)) => parent_spec(fs, &parent, &child.path, VhdTime(0)).map(drop),
        _ => locator(fs, &parent, &child.path).map(drop),
    }
    .map_err(|source| ReparentError::Describe { child: child.path.clone(), source: Box::new(source) })?;
    let plan =
        ReparentPlan { child: child.path.clone(), parent: parent.path.clone(), skips_empty: !is_its_own };
    Ok(Checked { plan, parent, wanted: link.unique_id })
}

/// Whether the disk's parent is empty and a child of the disk with that id.
fn empty_parent_of(fs: &Arc<dyn FileSystem>, child: &Layer, id: Uuid, options: &DiskOptions) -> bool {
    let Some(link) = child.image().and_then(LayerFormat::parent) else { return false };
    let Ok(Found::Parent { layer, .. }) =
        open_parent(fs, child, &link, &HashSet::from([child.id()]), options)
    else {
        return false;
    };
    is_empty_child(&layer, id)
}

/// Whether a layer holds nothing and is a child of the disk with that id.
pub(super) fn is_empty_child(layer: &Layer, parent: Uuid) -> bool {
    layer.is_child_of(parent) && matches!(layer.image().map(LayerFormat::is_blank), Some(Ok(true)))
}

/// Whether a merge has emptied the layer into that one, which has been written to since: a VHDX is known by another id then.
pub(super) fn was_merged_into(
    fs: &Arc<dyn FileSystem>,
    layer: &Layer,
    lower: &Layer,
    options: &DiskOptions,
) -> bool {
    let (Some(upper), Some(below)) =
        (layer.any_image().and_then(AnyImage::vhdx), lower.any_image().and_then(AnyImage::vhdx))
    else {
        return false;
    };
    if upper.info().disk_id != below.info().disk_id || !was_merged(upper) {
        return false;
    }
    let Some(link) = layer.image().and_then(LayerFormat::parent) else { return false };
    // What its locators lead to is the file itself.
    match open_parent(fs, layer, &link, &HashSet::from([lower.id()]), options) {
        Ok(Found::Again(path)) => fs.metadata(&path).is_ok_and(|meta| meta.id == lower.id()),
        _ => false,
    }
}

/// Gives a closed file another parent, if it has one of those `from`, or has it already.
pub(super) fn reparent_closed(
    fs: &Arc<dyn FileSystem>,
    child: &Path,
    from: &[Uuid],
    parent: &Layer,
    options: &DiskOptions,
) -> Result<(), ReparentError> {
    let format = parent.info().map_or(DiskFormat::Vhd, |info| info.format().into());
    let layer = Layer::open(fs, child, LayerMode { writable: true, format }, options)?;
    let link = layer.image().and_then(LayerFormat::parent);
    let wanted = link.ok_or_else(|| ReparentError::NotDifferencing { child: layer.path.clone() })?.unique_id;
    let found = parent.identity().unwrap_or_default();
    if !layer.is_child_of(found) && !from.iter().any(|id| layer.is_child_of(*id)) {
        let (child, parent) = (layer.path, parent.path.clone());
        return Err(ReparentError::OtherParent { child, parent, wanted, found });
    }
    let done = reparent_open(fs, &layer, parent);
    let closed = layer.close().map_err(|source| ReparentError::Write { child: layer.path.clone(), source });
    done.and(closed)
}

/// Gives a layer that is open for writing another parent.
pub(super) fn reparent_open(
    fs: &Arc<dyn FileSystem>,
    child: &Layer,
    parent: &Layer,
) -> Result<(), ReparentError> {
    let describe = |source| ReparentError::Describe { child: child.path.clone(), source: Box::new(source) };
    let write = |source: io::Error| ReparentError::Write { child: child.path.clone(), source };
    match (child.any_image(), parent.info()) {
        (Some(AnyImage::Vhd(image)), Some(ImageInfo::Vhd(_))) => {
            let spec = parent_spec(fs, parent, &child.path, VhdTime(0)).map_err(describe)?;
            image.reparent(&spec).map_err(|error| write(io::Error::other(error)))
        }
        (Some(AnyImage::Vhdx(image)), Some(ImageInfo::Vhdx(_))) => {
            let stored = image.parent();
            let stored =
                stored.ok_or_else(|| ReparentError::NotDifferencing { child: child.path.clone() })?;
            let named = locator(fs, parent, &child.path).map_err(describe)?;
            let done = image.set_parent(Locator { other: stored.other, ..named });
            done.map_err(|error| write(error.into()))
        }
        _ => Err(ReparentError::NotDifferencing { child: child.path.clone() }),
    }
}

/// Gives a layer of an open chain that is only read, or its top, another parent.
pub(super) fn reparent_in_chain(
    fs: &Arc<dyn FileSystem>,
    child: &Layer,
    is_top: bool,
    parent: &Layer,
    options: &DiskOptions,
) -> Result<(), ReparentError> {
    if is_top {
        return reparent_open(fs, child, parent);
    }
    let writable = child.strengthen(fs, options, NextIdentity::Fresh)?;
    let done = reparent_open(fs, &writable, parent);
    let closed =
        writable.weaken().map_err(|source| ReparentError::Write { child: child.path.clone(), source });
    // The opening that goes on has its lock again before the other one ends.
    let locked = child.file.lock(crate::fs::LockKind::Shared);
    let locked = locked.map_err(|error| OpenError::from_io(&child.path, "lock", error));
    done.and(closed).and(locked.map_err(Into::into))
}

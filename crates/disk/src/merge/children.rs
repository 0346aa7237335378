//! Children of a layer that is merged away, and disks whose parent was moved.

use super::ReparentError;
use crate::{
    create::parent_spec,
    error::OpenError,
    fs::FileSystem,
    layer::{Layer, LayerMode, format_of},
    options::{DiskFormat, DiskOptions},
    parent::{Found, open_parent},
};
use backstay_vhd::{Image, VhdTime};
use std::{collections::HashSet, io, path::Path, sync::Arc};
use uuid::Uuid;

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
    let looking = DiskOptions { read_only: true, gate: None, changed: None, ..options.clone() };
    let mode = LayerMode { writable: false, format: format_of(fs, parent, None)? };
    let parent = Layer::open(fs, parent, mode, &looking)?;
    let id = parent.info().map(|info| info.unique_id).unwrap_or_default();
    let (wanted, instead) = {
        let mode = LayerMode { writable: false, format: format_of(fs, child, None)? };
        let child = Layer::open(fs, child, mode, &looking)?;
        let link = child.info().and_then(|info| info.parent.clone());
        let link = link.ok_or_else(|| ReparentError::NotDifferencing { child: child.path.clone() })?;
        (link.unique_id, empty_parent_of(fs, &child, id, &looking))
    };
    if wanted != id && !instead {
        let (child, parent) = (child.to_owned(), parent.path);
        return Err(ReparentError::OtherParent { child, parent, wanted, found: id });
    }
    reparent_closed(fs, child, &[wanted], &parent, options)
}

/// Whether the disk's parent is empty and a child of the disk with that id.
fn empty_parent_of(fs: &Arc<dyn FileSystem>, child: &Layer, id: Uuid, options: &DiskOptions) -> bool {
    let Some(link) = child.info().and_then(|info| info.parent.as_ref()) else { return false };
    let Ok(Found::Parent { layer, .. }) =
        open_parent(fs, &child.path, link, &HashSet::from([child.id()]), options)
    else {
        return false;
    };
    is_empty_child(&layer, id)
}

/// Whether a layer holds nothing and is a child of the disk with that id.
pub(super) fn is_empty_child(layer: &Layer, parent: Uuid) -> bool {
    let linked =
        layer.info().and_then(|info| info.parent.as_ref()).is_some_and(|link| link.unique_id == parent);
    linked && matches!(layer.image().map(Image::is_blank), Some(Ok(true)))
}

/// Gives a closed file another parent, if it has one of those `from`, or has it already.
pub(super) fn reparent_closed(
    fs: &Arc<dyn FileSystem>,
    child: &Path,
    from: &[Uuid],
    parent: &Layer,
    options: &DiskOptions,
) -> Result<(), ReparentError> {
    let mode = LayerMode { writable: true, format: DiskFormat::Vhd };
    let layer = Layer::open(fs, child, mode, options)?;
    let link = layer.info().and_then(|info| info.parent.as_ref());
    let wanted = link.ok_or_else(|| ReparentError::NotDifferencing { child: layer.path.clone() })?.unique_id;
    let found = parent.info().map(|info| info.unique_id).unwrap_or_default();
    if wanted != found && !from.contains(&wanted) {
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
    let spec = parent_spec(fs, parent, &child.path, VhdTime(0)).map_err(describe)?;
    let image = child.image().ok_or_else(|| ReparentError::NotDifferencing { child: child.path.clone() })?;
    image.reparent(&spec).map_err(|source| ReparentError::Write {
        child: child.path.clone(),
        source: io::Error::other(source),
    })
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
    let writable = child.strengthen(fs, options)?;
    let done = reparent_open(fs, &writable, parent);
    let closed =
        writable.weaken().map_err(|source| ReparentError::Write { child: child.path.clone(), source });
    // The opening that goes on has its lock again before the other one ends.
    let locked = child.file.lock(crate::fs::LockKind::Shared);
    let locked = locked.map_err(|error| OpenError::from_io(&child.path, "lock", error));
    done.and(closed).and(locked.map_err(Into::into))
}

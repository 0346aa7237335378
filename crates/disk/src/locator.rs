//! How a differencing disk names its parent.

use crate::{
    create::{CreateError, failed},
    fs::{FileSystem, folder_of},
    image::AnyImage,
    layer::Layer,
};
use backstay_vhd::{VhdTime, create::ParentSpec, create::relative_text, vhdx::Locator};
use std::{
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// How a child at `path` refers to an open parent that was changed last at `modified`.
pub(crate) fn parent_spec(
    fs: &Arc<dyn FileSystem>,
    parent: &Layer,
    path: &Path,
    modified: VhdTime,
) -> Result<ParentSpec, CreateError> {
    let unique_id = parent.identity().ok_or_else(|| raw_parent(parent))?;
    let name = parent.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let relative = Some(relative_path(fs, parent, path)?);
    let absolute = parent.path.to_str().map(str::to_owned);
    Ok(ParentSpec { unique_id, time_stamp: modified, name, absolute, relative })
}

/// How a VHDX at `path` refers to an open parent of that identity.
///
/// `volume_path` is left out: it names a volume by the id that Windows gives it.
pub(crate) fn locator(fs: &Arc<dyn FileSystem>, parent: &Layer, path: &Path) -> Result<Locator, CreateError> {
    Ok(Locator {
        linkage: parent.identity().ok_or_else(|| raw_parent(parent))?,
        linkage2: None,
        relative: Some(relative_text(&relative_path(fs, parent, path)?)),
        volume: None,
        absolute: parent.path.to_str().map(str::to_owned),
        other: Vec::new(),
    })
}

/// Stores in an open VHDX where its parent was found, unless its relative path leads there. Nothing to do for a VHD, whose
/// paths are only changed on request.
pub(crate) fn refresh_parent_paths(
    fs: &Arc<dyn FileSystem>,
    child: &Layer,
    parent: &Layer,
) -> io::Result<()> {
    let Some(image) = child.any_image().and_then(AnyImage::vhdx) else { return Ok(()) };
    let Some(stored) = image.parent() else { return Ok(()) };
    let now = locator(fs, parent, &child.path).map_err(io::Error::other)?;
    if stored.relative == now.relative || leads_to(fs, child, &stored, parent) {
        return Ok(());
    }
    // The paths of another system are of no use to anybody once the file was moved.
    let fresh = Locator { relative: now.relative, absolute: now.absolute, volume: None, ..stored };
    Ok(image.set_parent(fresh)?)
}

/// Names the parent by the id it has now, before anything is written to a child that was merged into it: see
/// [`crate::parent`].
pub(crate) fn name_merged_parent(child: &Layer, parent: &Layer) -> io::Result<()> {
    let Some(image) = child.any_image().and_then(AnyImage::vhdx) else { return Ok(()) };
    match (image.parent(), parent.identity()) {
        (Some(stored), Some(linkage)) if !stored.accepts(linkage) => {
            Ok(image.set_parent(Locator { linkage, linkage2: None, ..stored })?)
        }
        _ => Ok(()),
    }
}

fn leads_to(fs: &Arc<dyn FileSystem>, child: &Layer, stored: &Locator, parent: &Layer) -> bool {
    stored.relative.as_ref().is_some_and(|relative| {
        let path = folder_of(&child.path).join(relative.replace('\\', "/"));
        fs.canonicalize(&path).is_ok_and(|path| path == parent.path)
    })
}

fn raw_parent(parent: &Layer) -> CreateError {
    CreateError::RawParent { parent: parent.path.clone() }
}

fn relative_path(fs: &Arc<dyn FileSystem>, parent: &Layer, path: &Path) -> Result<String, CreateError> {
    let folder = fs.canonicalize(folder_of(path)).map_err(|source| failed(path, source))?;
    let relative = relative(&folder, &parent.path);
    let relative = relative.to_str().map(str::to_owned);
    relative.ok_or_else(|| CreateError::ParentName { parent: parent.path.clone() })
}

/// The path of `file` seen from `folder`; both absolute and without links.
fn relative(folder: &Path, file: &Path) -> PathBuf {
    let shared = folder.components().zip(file.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(file.components().skip(shared)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths() {
        let case = |folder: &str, file: &str| relative(Path::new(folder), Path::new(file));
        assert_eq!(case("/vm/one", "/vm/one/a.vhd"), Path::new("a.vhd"));
        assert_eq!(case("/vm/one/Snapshots/x", "/vm/one/a.vhd"), Path::new("../../a.vhd"));
        assert_eq!(case("/vm", "/base/a.vhd"), Path::new("../base/a.vhd"));
    }
}

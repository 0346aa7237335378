//! Who was made of a disk, as far as can be told without a list of all disks: what lies beside it, and where checkpoints of machines
//! keep their files.

use crate::{
    fs::{FileKind, FileSystem, folder_of},
    kinship::{KinshipError, kinship},
    merge::children_in,
    options::DiskFormat,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use uuid::Uuid;

/// The folder of a machine's checkpoints, beside that of its disks or in it.
const SNAPSHOTS: &str = "Snapshots";

/// The differencing disks that were made of a disk: in its folder, and in the folders of checkpoints beside and above it. Elsewhere
/// there may be more, and files that cannot be read are passed over.
#[must_use]
pub fn children_beside(fs: &Arc<dyn FileSystem>, path: &Path) -> Vec<PathBuf> {
    let path = fs.canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let Ok(Some(kin)) = kinship(fs, &path) else { return Vec::new() };
    let beside = readable_in(fs, folder_of(&path));
    children_among(fs, &path, kin.identity, beside)
}

/// The same of a disk that is known by that id, for those who have to know.
///
/// # Errors
/// [`KinshipError`]: of a file in its own folder nobody can tell.
pub(crate) fn children_near(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    identity: Uuid,
) -> Result<Vec<PathBuf>, KinshipError> {
    let beside = children_in(fs, &[folder_of(path)])?;
    Ok(children_among(fs, path, identity, beside))
}

/// Those of them, and of what is in folders of checkpoints, that were made of the disk.
fn children_among(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    identity: Uuid,
    mut beside: Vec<(PathBuf, Vec<Uuid>)>,
) -> Vec<PathBuf> {
    for folder in checkpoint_folders(fs, folder_of(path)) {
        beside.extend(readable_in(fs, &folder));
    }
    let is_child = |(child, parents): (PathBuf, Vec<Uuid>)| {
        (child != path && parents.contains(&identity)).then_some(child)
    };
    let mut children: Vec<PathBuf> = beside.into_iter().filter_map(is_child).collect();
    children.sort();
    children.dedup();
    children
}

/// The differencing disks in a folder, as far as they can be read.
fn readable_in(fs: &Arc<dyn FileSystem>, folder: &Path) -> Vec<(PathBuf, Vec<Uuid>)> {
    let names = fs.list(folder).unwrap_or_default();
    let disks = names.into_iter().map(|name| folder.join(name));
    let disks =
        disks.filter(|path| DiskFormat::of_name(path).is_some_and(|format| format != DiskFormat::Raw));
    let known = disks.filter_map(|path| match kinship(fs, &path) {
        Ok(kin) => kin.map(|kin| (path, kin.parents)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "what this file was made of cannot be told");
            None
        }
    });
    known.collect()
}

/// Folders of checkpoints, one for each machine.
fn checkpoint_folders(fs: &Arc<dyn FileSystem>, folder: &Path) -> Vec<PathBuf> {
    let roots = [Some(folder), folder.parent()].into_iter().flatten().map(|root| root.join(SNAPSHOTS));
    let is_folder = |path: &PathBuf| fs.metadata(path).is_ok_and(|meta| meta.kind == FileKind::Folder);
    let mut found = Vec::new();
    for root in roots.filter(is_folder) {
        let inside = fs.list(&root).unwrap_or_default().into_iter().map(|name| root.join(name));
        found.extend(inside.filter(is_folder));
        found.push(root);
    }
    found
}

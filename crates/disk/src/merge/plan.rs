//! What a merge of files that nobody uses would do.

use super::MergeError;
use crate::{
    disk::Disk,
    error::OpenError,
    fs::{FileSystem, folder_of},
    kinship::{KinshipError, kinship},
    options::{DiskFormat, DiskOptions},
};
use backstay_vhd::DiskType;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};
use uuid::Uuid;

/// What a merge would do; printable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergePlan {
    /// The file that is emptied.
    pub upper: PathBuf,
    /// Its parent.
    pub lower: PathBuf,
    /// The parent is smaller, and gets this size first.
    pub grows_to: Option<u64>,
    /// What kind of disk the parent is.
    pub lower_type: DiskType,
    /// Blocks to be moved.
    pub blocks: u64,
    /// Bytes of data in them.
    pub bytes: u64,
    /// Bytes free where the parent is.
    pub free: u64,
    /// Children of the upper file in its folder and in that of the parent: they get the lower one as their parent.
    pub children: Vec<PathBuf>,
    /// Other children of the lower file there: their content would be destroyed, so while there are any nothing is merged.
    pub siblings: Vec<PathBuf>,
}

impl fmt::Display for MergePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { upper, lower, blocks, bytes, .. } = self;
        if let Some(size) = self.grows_to {
            writeln!(f, "make {} a disk of {size} bytes", lower.display())?;
        }
        writeln!(f, "move {bytes} bytes in {blocks} blocks of {} into its parent", upper.display())?;
        writeln!(f, "  {}, a {} disk", lower.display(), self.lower_type)?;
        for child in &self.children {
            writeln!(f, "make {} a child of that", child.display())?;
        }
        writeln!(f, "remove {}", upper.display())
    }
}

/// Looks at a differencing file that nobody writes to, its parent, and the files beside both.
///
/// # Errors
/// As [`super::merge_offline`].
pub fn plan_merge(
    fs: &Arc<dyn FileSystem>,
    upper: &Path,
    options: &DiskOptions,
) -> Result<MergePlan, MergeError> {
    let failed = |source: OpenError| MergeError::Open { upper: upper.to_owned(), source: Box::new(source) };
    let looking = DiskOptions { read_only: true, gate: None, changed: None, ..options.clone() };
    let disk = Disk::open_on(Arc::clone(fs), upper, looking).map_err(failed)?;
    let chain = disk.chain.enter();
    let no_parent = || MergeError::NoParent { upper: upper.to_owned() };
    let [upper, lower, ..] = &*chain.layers else { return Err(no_parent()) };
    super::check_pair(upper, lower)?;
    let (image, info) = (upper.image().ok_or_else(no_parent)?, lower.info().ok_or_else(no_parent)?);
    let held = image.held_blocks();
    let read = |source| MergeError::Io { path: upper.path.clone(), action: "read", source };
    let mut bytes = 0;
    for block in &held {
        bytes += image.held_bytes(*block).map_err(|error| read(error.into()))?;
    }
    let folders = [folder_of(&upper.path), folder_of(&lower.path)];
    let mut beside = children_in(fs, &folders).map_err(|error| {
        let path = error.path.clone();
        MergeError::Io { path, action: "tell the parent of", source: std::io::Error::other(error.source) }
    })?;
    beside.retain(|(path, _)| *path != upper.path && *path != lower.path);
    let of = |id: Option<Uuid>| {
        let named = move |links: &[Uuid]| id.is_some_and(|id| links.contains(&id));
        beside.iter().filter(move |(_, links)| named(links)).map(|(path, _)| path.clone())
    };
    let free = fs.free_space(folder_of(&lower.path));
    Ok(MergePlan {
        upper: upper.path.clone(),
        lower: lower.path.clone(),
        grows_to: (lower.size < upper.size).then_some(upper.size),
        lower_type: info.disk_type(),
        blocks: held.len() as u64,
        bytes,
        free: free.map_err(|source| MergeError::Io {
            path: lower.path.clone(),
            action: "look at",
            source,
        })?,
        children: of(upper.identity()).collect(),
        siblings: of(lower.identity()).collect(),
    })
}

/// The differencing disks in these folders that were made of a disk, by its id.
///
/// # Errors
/// [`KinshipError`]: of one of them nobody can tell.
pub fn children_of(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    folders: &[&Path],
) -> Result<Vec<PathBuf>, KinshipError> {
    let Some(kin) = kinship(fs, path)? else { return Ok(Vec::new()) };
    let made_of_it = |(child, parents): (PathBuf, Vec<Uuid>)| {
        (child != path && parents.contains(&kin.identity)).then_some(child)
    };
    let mut children: Vec<PathBuf> = children_in(fs, folders)?.into_iter().filter_map(made_of_it).collect();
    children.sort();
    Ok(children)
}

/// The differencing disks in these folders and the ids of their parents, also those that cannot be opened.
pub(crate) fn children_in(
    fs: &Arc<dyn FileSystem>,
    folders: &[&Path],
) -> Result<Vec<(PathBuf, Vec<Uuid>)>, KinshipError> {
    let mut found: Vec<(PathBuf, Vec<Uuid>)> = Vec::new();
    for folder in folders {
        for name in fs.list(folder).unwrap_or_default() {
            let path = folder.join(name);
            let is_disk = DiskFormat::of_name(&path).is_some_and(|format| format != DiskFormat::Raw);
            if !is_disk || found.iter().any(|(known, _)| *known == path) {
                continue;
            }
            if let Some(kin) = kinship(fs, &path)?.filter(|kin| !kin.parents.is_empty()) {
                found.push((path, kin.parents));
            }
        }
    }
    Ok(found)
}

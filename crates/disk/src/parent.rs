//! Finding and opening the parent of a differencing disk: `backstay_vhd::parent` decides which paths are tried, this
//! looks at them.

use crate::{
    error::OpenError,
    fs::{FileId, FileSystem, folder_of},
    image::AnyImage,
    layer::{Layer, LayerMode},
    options::{DiskFormat, DiskOptions},
};
use backstay_vhd::{
    ParentLink, VhdTime,
    parent::{ParentGate, ParentIdentity, ParentSearch, find},
    vhdx::{self, parent::MismatchError},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    error::Error,
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// What a search for a parent ends with.
#[derive(Debug)]
pub(crate) enum Found {
    Parent {
        layer: Box<Layer>,
        /// Its time of modification is not the one that the child recorded.
        time_differs: bool,
    },
    /// A file that is in the chain already.
    Again(PathBuf),
}

/// Opens the parent of `child`. `chain` are the files above it.
pub(crate) fn open_parent(
    fs: &Arc<dyn FileSystem>,
    layer: &Layer,
    link: &ParentLink,
    chain: &HashSet<FileId>,
    options: &DiskOptions,
) -> Result<Found, OpenError> {
    let child = layer.path.as_path();
    let root = options.root.as_ref().map(|root| fs.canonicalize(root));
    let root = root
        .transpose()
        .map_err(|error| OpenError::from_io(child, "resolve the allowed folder of", error))?;
    let search = ParentSearch {
        child_folder: folder_of(child).to_owned(),
        root,
        known: options.known_parents.clone(),
        path_map: options.path_map.clone(),
    };
    let vhdx = layer.any_image().and_then(AnyImage::vhdx);
    let (opened, again, stale) = <(RefCell<_>, Cell<_>, Cell<_>)>::default();
    let gate = Gate { fs, options, chain, vhdx, stale, opened, again };
    let found = match vhdx.and_then(vhdx::Image::parent) {
        Some(locator) => vhdx::parent::find(&locator, &search, &gate),
        None => find(link, &search, &gate),
    };
    if let Some(path) = gate.again.take() {
        return Ok(Found::Again(path));
    }
    match (found, gate.opened.take()) {
        (Ok(found), Some(parent)) => {
            if let (Some(above), Some(below)) = (vhdx, parent.any_image().and_then(AnyImage::vhdx))
                && let Err(source @ MismatchError::LogicalSector { .. }) =
                    vhdx::parent::check(above.info(), below.info())
            {
                return Err(OpenError::Mismatch { child: child.to_owned(), parent: parent.path, source });
            }
            let time_differs = found.time_differs || gate.stale.get();
            Ok(Found::Parent { layer: Box::new(parent), time_differs })
        }
        (Ok(found), None) => Err(OpenError::NotFound { path: found.path }),
        (Err(source), _) => Err(OpenError::Parent { child: child.to_owned(), source: Box::new(source) }),
    }
}

struct Gate<'a> {
    fs: &'a Arc<dyn FileSystem>,
    options: &'a DiskOptions,
    chain: &'a HashSet<FileId>,
    /// The child, if it is a VHDX: then its parent is one too.
    vhdx: Option<&'a vhdx::Image>,
    /// The child was merged into the parent, which was written to since.
    stale: Cell<bool>,
    /// The last disk that was identified, still open and locked.
    opened: RefCell<Option<Layer>>,
    again: Cell<Option<PathBuf>>,
}

impl ParentGate for Gate<'_> {
    fn real_path(&self, path: &Path) -> io::Result<PathBuf> {
        self.fs.canonicalize(path)
    }

    fn match_case(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        match_case(self.fs.as_ref(), path)
    }

    fn identify(&self, path: &Path) -> Result<ParentIdentity, Box<dyn Error + Send + Sync>> {
        let meta = self.fs.metadata(path)?;
        // Its lock would be refused, which says less.
        if self.chain.contains(&meta.id) {
            self.again.set(Some(path.to_owned()));
            return Err("it is in the chain already".into());
        }
        let format = if self.vhdx.is_some() { DiskFormat::Vhdx } else { DiskFormat::Vhd };
        let layer = Layer::open(self.fs, path, LayerMode { writable: false, format }, self.options)?;
        let unique_id = layer.identity().unwrap_or_default();
        if let (Some(child), Some(parent)) = (self.vhdx, layer.any_image().and_then(AnyImage::vhdx))
            // The same disk with another content.
            && child.info().disk_id == parent.info().disk_id
            && let Err(changed @ MismatchError::Changed { .. }) =
                vhdx::parent::check(child.info(), parent.info())
        {
            // What lies above it was made on the content that the parent had.
            let is_top = self.chain.len() <= 1;
            let Some(locator) = child.parent().filter(|_| is_top && was_merged(child)) else {
                return Err(changed.into());
            };
            self.stale.set(true);
            self.opened.replace(Some(layer));
            return Ok(ParentIdentity { unique_id: locator.linkage, modified: None });
        }
        self.opened.replace(Some(layer));
        Ok(ParentIdentity { unique_id, modified: Some(VhdTime::from_unix(meta.modified)) })
    }
}

/// Whether a merge has emptied the disk: its parent took its place and may have been written to before that was noted
/// everywhere. It holds nothing that could be wrong on another content.
pub(crate) fn was_merged(child: &vhdx::Image) -> bool {
    let announced = child.parent().and_then(|locator| locator.linkage2).is_some_and(|id| !id.is_nil());
    announced && child.is_blank().unwrap_or(false)
}

/// An existing path whose names differ from those of `path` at most in case.
fn match_case(fs: &dyn FileSystem, path: &Path) -> io::Result<Option<PathBuf>> {
    let mut real = PathBuf::new();
    for part in path.components() {
        let Component::Normal(name) = part else {
            real.push(part);
            continue;
        };
        if fs.metadata(&real.join(name)).is_ok() {
            real.push(name);
            continue;
        }
        let wanted = name.to_string_lossy().to_lowercase();
        let folder = if real.as_os_str().is_empty() { Path::new(".") } else { &real };
        let mut same = fs.list(folder)?;
        same.retain(|name| name.to_string_lossy().to_lowercase() == wanted);
        same.sort();
        match same.into_iter().next() {
            Some(name) => real.push(name),
            None => return Ok(None),
        }
    }
    Ok(Some(real))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::HostFs;

    #[test]
    fn case_is_ignored_only_where_the_exact_name_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("Base")).unwrap();
        std::fs::write(folder.path().join("Base/ROOT.VHD"), b"").unwrap();
        let found = |name: &str| match_case(&HostFs, &folder.path().join(name)).unwrap();
        assert_eq!(found("base/Root.vhd"), Some(folder.path().join("Base/ROOT.VHD")));
        std::fs::write(folder.path().join("Base/Root.vhd"), b"").unwrap();
        assert_eq!(found("base/Root.vhd"), Some(folder.path().join("Base/Root.vhd")));
        assert_eq!(found("base/other.vhd"), None);
    }
}

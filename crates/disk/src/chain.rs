//! A differencing disk and its parents, down to the one that has none.

use crate::{
    error::OpenError,
    fs::{FileId, FileSystem, folder_of},
    layer::{Body, Layer, LayerMode, format_of},
    options::{DiskFormat, DiskOptions},
    parent,
};
use backstay_vhd::{ParentLink, VhdTime, Warning};
use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Most disks in a chain.
pub const MAX_DEPTH: usize = 256;

/// The layers of a disk, the top first. Never empty.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) layers: Vec<Arc<Layer>>,
    /// Set by `close`: every later request is refused.
    pub(crate) closed: bool,
}

/// Something about a chain that is not as it should be but does not keep it from being used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChainWarning {
    /// In one file.
    Image {
        /// Which.
        path: PathBuf,
        /// What.
        warning: Warning,
    },
    /// A virtual machine was saved while it used the disk.
    SavedState {
        /// Which.
        path: PathBuf,
    },
    /// The parent's time stamp is not the one the child recorded.
    ParentChanged {
        /// The child.
        child: PathBuf,
        /// The parent.
        parent: PathBuf,
    },
}

impl fmt::Display for ChainWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image { path, warning } => write!(f, "{}: {warning}", path.display()),
            Self::SavedState { path } => write!(
                f,
                "{}: a virtual machine was saved while it used this disk; changing the disk makes the saved state useless",
                path.display()
            ),
            Self::ParentChanged { child, parent } => write!(
                f,
                "{} was changed or copied after {} was made from it; if its content changed, the child is worthless",
                parent.display(),
                child.display()
            ),
        }
    }
}

impl Chain {
    /// Opens a disk with all its parents.
    pub(crate) fn open(
        fs: &Arc<dyn FileSystem>,
        path: &Path,
        options: &DiskOptions,
    ) -> Result<Self, OpenError> {
        let format = format_of(fs, path, options.format)?;
        let top = Layer::open(fs, path, LayerMode { writable: !options.read_only, format }, options)?;
        Self::with_parents(fs, top, options)
    }

    /// Opens the parents of a layer.
    pub(crate) fn with_parents(
        fs: &Arc<dyn FileSystem>,
        top: Layer,
        options: &DiskOptions,
    ) -> Result<Self, OpenError> {
        let mut files = HashSet::from([top.id()]);
        let mut ids: HashSet<_> = top.info().map(|info| info.unique_id).into_iter().collect();
        let mut layers = vec![Arc::new(top)];
        while let Some(child) = layers.last()
            && let Some(link) = child.info().and_then(|info| info.parent.clone())
        {
            let top_path = || layers.first().map(|top| top.path.clone()).unwrap_or_default();
            if layers.len() >= MAX_DEPTH {
                return Err(OpenError::TooDeep { top: top_path() });
            }
            // A circle ends at a file that is in the chain already, perhaps under another name or as a copy.
            if !link.unique_id.is_nil() && ids.contains(&link.unique_id) {
                let again =
                    layers.iter().find(|l| l.info().is_some_and(|info| info.unique_id == link.unique_id));
                let path = again.map(|layer| layer.path.clone()).unwrap_or_default();
                return Err(OpenError::Cycle { top: top_path(), path });
            }
            let parent = match open_parent(fs, &child.path, &link, &files, options)? {
                Found::Parent(parent) => *parent,
                Found::Again(path) => return Err(OpenError::Cycle { top: top_path(), path }),
            };
            ids.insert(link.unique_id);
            files.insert(parent.id());
            layers.push(Arc::new(parent));
        }
        Ok(Self { layers, closed: false })
    }

    pub(crate) fn top(&self) -> Option<&Arc<Layer>> {
        self.layers.first()
    }

    /// Everything strange about its files.
    pub(crate) fn warnings(&self, fs: &Arc<dyn FileSystem>) -> Vec<ChainWarning> {
        let mut found = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let Some(info) = layer.info() else { continue };
            let path = || layer.path.clone();
            let of_image = info.warnings.iter().cloned();
            found.extend(of_image.map(|warning| ChainWarning::Image { path: path(), warning }));
            if info.saved_state {
                found.push(ChainWarning::SavedState { path: path() });
            }
            if let (Some(link), Some(parent)) = (&info.parent, self.layers.get(index + 1))
                && link.time_stamp != VhdTime(0)
                && fs
                    .metadata(&parent.path)
                    .is_ok_and(|meta| VhdTime::from_unix(meta.modified) != link.time_stamp)
            {
                found.push(ChainWarning::ParentChanged { child: path(), parent: parent.path.clone() });
            }
        }
        found
    }
}

/// What a search for a parent ends with.
enum Found {
    Parent(Box<Layer>),
    /// A file that is in the chain already.
    Again(PathBuf),
}

/// Opens the first candidate that is the parent.
fn open_parent(
    fs: &Arc<dyn FileSystem>,
    child: &Path,
    link: &ParentLink,
    chain: &HashSet<FileId>,
    options: &DiskOptions,
) -> Result<Found, OpenError> {
    let mut tried = Vec::new();
    let mut wrong = None;
    for candidate in parent::candidates(link, child, &options.path_map) {
        let path = match parent::existing(fs.as_ref(), &candidate) {
            Ok(path) => path,
            Err(error) => {
                tried.push((candidate, error.to_string()));
                continue;
            }
        };
        // Its lock would be refused, which says less.
        if fs.metadata(&path).is_ok_and(|meta| chain.contains(&meta.id)) {
            return Ok(Found::Again(path));
        }
        check_root(fs, child, &path, options.root.as_deref())?;
        let mode = LayerMode { writable: false, format: DiskFormat::Vhd };
        let layer = Layer::open(fs, &path, mode, options)?;
        let Body::Vhd(image) = &layer.body else { continue };
        if image.info().unique_id == link.unique_id {
            return Ok(Found::Parent(Box::new(layer)));
        }
        tried.push((candidate, "another disk".to_owned()));
        wrong.get_or_insert((layer.path.clone(), image.info().unique_id));
    }
    match wrong {
        Some((parent, found)) => {
            Err(OpenError::WrongParent { child: child.to_owned(), parent, expected: link.unique_id, found })
        }
        None => Err(OpenError::MissingParent { child: child.to_owned(), tried }),
    }
}

fn check_root(
    fs: &Arc<dyn FileSystem>,
    child: &Path,
    parent: &Path,
    root: Option<&Path>,
) -> Result<(), OpenError> {
    let Some(root) = root else { return Ok(()) };
    let real = fs.canonicalize(parent).map_err(|error| OpenError::from_io(parent, "resolve", error))?;
    let real_root = fs.canonicalize(root).map_err(|error| OpenError::from_io(root, "resolve", error))?;
    if folder_of(&real).starts_with(&real_root) {
        return Ok(());
    }
    Err(OpenError::OutsideRoot { child: child.to_owned(), parent: real, root: real_root })
}

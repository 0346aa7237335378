//! A differencing disk and its parents, down to the one that has none.

use crate::{
    compact::Holds,
    error::OpenError,
    flat::Layers,
    fs::FileSystem,
    image::ImageInfo,
    layer::{Layer, LayerMode, format_of},
    locator::{name_merged_parent, refresh_parent_paths},
    merge::Routing,
    options::{DiskFormat, DiskOptions},
    parent::{Found, open_parent},
};
use backstay_vhd::{LayerFormat, Warning, vhdx};
use std::{
    collections::HashSet,
    fmt,
    io::ErrorKind::{InvalidInput, ReadOnlyFilesystem, Unsupported},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Most disks in a chain.
pub const MAX_DEPTH: usize = 256;

/// The layers of a disk, the top first. Never empty.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) layers: Layers,
    /// What was strange about the files when they were opened.
    pub(crate) warnings: Vec<ChainWarning>,
    /// Set while the top moves into its parent.
    pub(crate) routing: Option<Arc<Routing>>,
    /// Set while the top is compacted.
    pub(crate) holds: Option<Arc<Holds>>,
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
    /// In one file that is a VHDX.
    Vhdx {
        /// Which.
        path: PathBuf,
        /// What.
        warning: vhdx::Warning,
    },
    /// A virtual machine was saved while it used the disk.
    SavedState {
        /// Which.
        path: PathBuf,
    },
    /// The folder for shadow files is of no use.
    NoShadow {
        /// The disk.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
        /// Why.
        reason: String,
    },
    /// The parent's time stamp is not the one the child recorded.
    ParentChanged {
        /// The child.
        child: PathBuf,
        /// The parent.
        parent: PathBuf,
    },
}

impl ChainWarning {
    /// The file it is about.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Image { path, .. }
            | Self::Vhdx { path, .. }
            | Self::SavedState { path }
            | Self::NoShadow { path, .. } => path,
            Self::ParentChanged { child, .. } => child,
        }
    }

    /// Writes of a process that died were found beside a file.
    pub(crate) fn is_adoption(&self) -> bool {
        match self {
            Self::Image { warning, .. } => matches!(warning, Warning::WritesAdopted { .. }),
            Self::Vhdx { warning, .. } => matches!(warning, vhdx::Warning::WritesAdopted { .. }),
            _ => false,
        }
    }
}

impl fmt::Display for ChainWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image { path, warning } => write!(f, "{}: {warning}", path.display()),
            Self::Vhdx { path, warning } => write!(f, "{}: {warning}", path.display()),
            Self::SavedState { path } => write!(
                f,
                "{}: a virtual machine was saved while it used this disk; changing the disk makes the saved state useless",
                path.display()
            ),
            Self::NoShadow { path, folder, reason } => write!(
                f,
                "{}: writes are slow, each is flushed where it is the first to its place, because shadow files cannot be kept in {} ({reason}); make it a folder that this user may write to",
                path.display(),
                folder.display()
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
        let chain = Self::with_parents(fs, top, options)?;
        if !options.read_only {
            chain.settle_parents()?;
            chain.refresh_locator(fs)?;
        }
        Ok(chain)
    }

    /// A process that merged into a parent and died may have left writes that a flush of the top would not cover.
    fn settle_parents(&self) -> Result<(), OpenError> {
        for parent in self.layers.iter().skip(1) {
            match parent.file.flush() {
                // Nothing can have been written there.
                Err(error) if matches!(error.kind(), ReadOnlyFilesystem | InvalidInput | Unsupported) => {}
                other => other.map_err(|error| OpenError::from_io(&parent.path, "make durable", error))?,
            }
        }
        Ok(())
    }

    /// A VHDX that was moved, or whose parent was, is told where it found it (MS-VHDX 2.2.4). What it could not be told it
    /// finds again the same way, so a failure is no reason not to use the disk.
    pub(crate) fn refresh_locator(&self, fs: &Arc<dyn FileSystem>) -> Result<(), OpenError> {
        let [child, parent, ..] = &*self.layers else { return Ok(()) };
        name_merged_parent(child, parent)
            .map_err(|error| OpenError::from_io(&child.path, "write to", error))?;
        if let Err(error) = refresh_parent_paths(fs, child, parent) {
            tracing::warn!(path = %child.path.display(), %error, "cannot store where the parent is now");
        }
        Ok(())
    }

    /// Parents beside which a process that died left bits of writes.
    pub(crate) fn unsettled(&self) -> Vec<(PathBuf, DiskFormat)> {
        let left = |layer: &&Arc<Layer>| layer.info().is_some_and(ImageInfo::adopted);
        let format = |layer: &Layer| layer.info().map_or(DiskFormat::Raw, |info| info.format().into());
        self.layers.iter().skip(1).filter(left).map(|layer| (layer.path.clone(), format(layer))).collect()
    }

    /// Opens the parents of a layer.
    pub(crate) fn with_parents(
        fs: &Arc<dyn FileSystem>,
        top: Layer,
        options: &DiskOptions,
    ) -> Result<Self, OpenError> {
        let mut files = HashSet::from([top.id()]);
        let mut ids: HashSet<_> = top.identity().into_iter().collect();
        let mut warnings = Vec::new();
        let mut layers = vec![Arc::new(top)];
        while let Some(child) = layers.last()
            && let Some(link) = child.image().and_then(LayerFormat::parent)
        {
            let top_path = || layers.first().map(|top| top.path.clone()).unwrap_or_default();
            if layers.len() >= MAX_DEPTH {
                return Err(OpenError::TooDeep { top: top_path() });
            }
            // A circle ends at a file that is in the chain already, perhaps under another name or as a copy.
            if !link.unique_id.is_nil() && ids.contains(&link.unique_id) {
                let again = layers.iter().find(|layer| layer.identity() == Some(link.unique_id));
                let path = again.map(|layer| layer.path.clone()).unwrap_or_default();
                return Err(OpenError::Cycle { top: top_path(), path });
            }
            let parent = match open_parent(fs, child, &link, &files, options)? {
                Found::Parent { layer, time_differs } => {
                    if time_differs {
                        let (child, parent) = (child.path.clone(), layer.path.clone());
                        warnings.push(ChainWarning::ParentChanged { child, parent });
                    }
                    *layer
                }
                Found::Again(path) => return Err(OpenError::Cycle { top: top_path(), path }),
            };
            ids.extend(parent.identity());
            files.insert(parent.id());
            layers.push(Arc::new(parent));
        }
        warnings.extend(layers.iter().flat_map(|layer| warnings_of(layer)));
        // Nobody writes to a parent that is open for reading only.
        let layers = Layers::new(layers);
        layers.settled();
        Ok(Self { layers, warnings, routing: None, holds: None, closed: false })
    }

    pub(crate) fn has_holds(&self) -> bool {
        self.holds.is_some()
    }

    /// A disk of one file that is open.
    pub(crate) fn of_layer(layer: Layer) -> Self {
        Self {
            layers: Layers::new(vec![Arc::new(layer)]),
            warnings: Vec::new(),
            routing: None,
            holds: None,
            closed: false,
        }
    }

    pub(crate) fn top(&self) -> Option<&Arc<Layer>> {
        self.layers.first()
    }
}

/// What is strange about one file.
fn warnings_of(layer: &Layer) -> Vec<ChainWarning> {
    let Some(info) = layer.info() else { return Vec::new() };
    let path = || layer.path.clone();
    let mut found: Vec<_> = match info {
        ImageInfo::Vhd(info) => {
            let of_image = info.warnings.iter().cloned();
            of_image.map(|warning| ChainWarning::Image { path: path(), warning }).collect()
        }
        ImageInfo::Vhdx(info) => {
            let of_image = info.warnings.iter().cloned();
            of_image.map(|warning| ChainWarning::Vhdx { path: path(), warning }).collect()
        }
    };
    found.extend(layer.warning.clone());
    if info.saved_state() {
        found.push(ChainWarning::SavedState { path: path() });
    }
    found
}

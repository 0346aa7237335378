//! New disk files, from a plan that can be shown first.

use crate::{
    chain::{Chain, MAX_DEPTH},
    error::OpenError,
    fs::{DiskFile, FileSystem, folder_of},
    layer::{Layer, LayerMode},
    options::{DiskFormat, DiskOptions},
    shadow::ShadowFile,
    temp::TempFile,
};
use backstay_vhd::{
    VhdTime, Warning,
    create::{CreateKind, CreateOptions, CreatePlan, ParentSpec},
    plan::{self, PlanError, Step},
};
use std::{
    fmt, io,
    path::{Component, Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use uuid::Uuid;

/// Default block size of dynamic and differencing disks, in bytes.
pub const DEFAULT_BLOCK_SIZE: u32 = 2 << 20;

/// What to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewDisk {
    /// A file of the bytes of the disk and nothing else, without space reserved.
    Raw {
        /// Bytes; a multiple of 512.
        size: u64,
    },
    /// A VHD with all its space.
    Fixed {
        /// Bytes; a multiple of 512.
        size: u64,
    },
    /// A VHD that grows.
    Dynamic {
        /// Bytes; a multiple of 512.
        size: u64,
        /// Bytes in a block: a power of two, 512 KiB–64 MiB.
        block_size: u32,
    },
    /// A VHD that holds what differs from its parent.
    Differencing {
        /// The parent; nobody may write to it from now on.
        parent: PathBuf,
        /// Bytes in a block: a power of two, 512 KiB–64 MiB.
        block_size: u32,
    },
}

/// Identity of a new disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Unique id.
    pub unique_id: Uuid,
    /// Time of creation.
    pub time: VhdTime,
}

impl Identity {
    /// A random id and the time of now.
    #[must_use]
    pub fn fresh() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = VhdTime::from_unix(i64::try_from(now.as_secs()).unwrap_or(0));
        Self { unique_id: Uuid::new_v4(), time }
    }
}

/// Why a disk was not made. No file is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The name is taken.
    #[error("{} exists already; choose another name or remove it first", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot create {}", path.display())]
    Io {
        /// The target.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The values make no disk.
    #[error("cannot create {}", path.display())]
    Invalid {
        /// The target.
        path: PathBuf,
        /// Which rule is broken.
        #[source]
        source: backstay_vhd::create::CreateError,
    },
    /// It does not fit.
    #[error(
        "{} needs {needed} bytes but its file system has only {free} free; make space or choose another folder",
        path.display()
    )]
    NoSpace {
        /// The target.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// Writing it failed.
    #[error("cannot create {}", path.display())]
    Write {
        /// The target.
        path: PathBuf,
        /// The step and why.
        #[source]
        source: PlanError,
    },
    /// The parent cannot be used.
    #[error("cannot create a differencing disk of {}", parent.display())]
    Parent {
        /// The parent.
        parent: PathBuf,
        /// Why not.
        #[source]
        source: Box<OpenError>,
    },
    /// The parent's content cannot be made durable.
    #[error("cannot write the last changes to {}", parent.display())]
    Flush {
        /// The parent.
        parent: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The child could never be opened.
    #[error(
        "{} has {} disks in its chain, the most there may be; convert it into one file with `backstay disk convert` and go on from that",
        parent.display(),
        crate::chain::MAX_DEPTH
    )]
    TooDeep {
        /// The parent.
        parent: PathBuf,
    },
    /// The child could not say where its parent is.
    #[error("the path of {} is not Unicode, and only such paths can be stored in a differencing disk; rename it", parent.display())]
    ParentName {
        /// The parent.
        parent: PathBuf,
    },
    /// Somebody asked for it.
    #[error("interrupted: {} was not made", path.display())]
    Cancelled {
        /// The target.
        path: PathBuf,
    },
    /// Only a VHD can be a parent.
    #[error("{} is a raw disk and cannot be the parent of a differencing disk; convert it to VHD first", parent.display())]
    RawParent {
        /// The parent.
        parent: PathBuf,
    },
}

/// Everything decided about a new disk; printable.
#[derive(Debug)]
pub struct NewDiskPlan {
    path: PathBuf,
    plan: CreatePlanKind,
    /// Kept locked until the child exists.
    parent: Option<Chain>,
}

#[derive(Debug)]
enum CreatePlanKind {
    Raw(Vec<Step>),
    Vhd(CreatePlan),
}

impl fmt::Display for NewDiskPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path.display())?;
        match &self.plan {
            CreatePlanKind::Raw(steps) => steps.iter().try_for_each(|step| writeln!(f, "  {step}")),
            CreatePlanKind::Vhd(plan) => plan.fmt(f),
        }
    }
}

impl NewDiskPlan {
    /// Plans a disk. A parent is opened, checked and kept locked against writers until the plan is dropped.
    ///
    /// # Errors
    /// [`CreateError`].
    pub fn new(
        fs: &Arc<dyn FileSystem>,
        path: &Path,
        what: &NewDisk,
        identity: Identity,
        options: &DiskOptions,
    ) -> Result<Self, CreateError> {
        let path_buf = || path.to_owned();
        let (size, kind, parent) = match what {
            NewDisk::Raw { size } => {
                let steps = vec![Step::SetLen(*size), Step::Flush];
                return Ok(Self { path: path_buf(), plan: CreatePlanKind::Raw(steps), parent: None });
            }
            NewDisk::Fixed { size } => (*size, CreateKind::Fixed, None),
            NewDisk::Dynamic { size, block_size } => {
                (*size, CreateKind::Dynamic { block_size: *block_size }, None)
            }
            NewDisk::Differencing { parent, block_size } => {
                let how = DiskOptions {
                    read_only: true,
                    format: None,
                    gate: None,
                    changed: None,
                    ..options.clone()
                };
                let unusable = |source: OpenError| CreateError::Parent {
                    parent: parent.clone(),
                    source: Box::new(source),
                };
                settle(fs, parent, options).map_err(unusable)?;
                let chain = Chain::open(fs, parent, &how).map_err(unusable)?;
                let (size, spec) = match chain.top() {
                    Some(top) => {
                        room_for_child(&chain)?;
                        (top.size, parent_spec(fs, top, path, modified(fs, top)?)?)
                    }
                    None => return Err(CreateError::RawParent { parent: parent.clone() }),
                };
                (size, CreateKind::Differencing { block_size: *block_size, parent: spec }, Some(chain))
            }
        };
        let plan = plan_vhd(path, size, kind, identity)?;
        Ok(Self { path: path_buf(), plan: CreatePlanKind::Vhd(plan), parent })
    }

    /// Carries it out: afterwards the file is there, whole and durable, or not at all.
    ///
    /// # Errors
    /// [`CreateError`].
    pub fn execute(&self, fs: &Arc<dyn FileSystem>) -> Result<(), CreateError> {
        self.execute_unless(fs, &AtomicBool::new(false))
    }

    /// As [`NewDiskPlan::execute`]; ends early, and leaves nothing, once `cancel` is set.
    ///
    /// # Errors
    /// [`CreateError`].
    pub fn execute_unless(&self, fs: &Arc<dyn FileSystem>, cancel: &AtomicBool) -> Result<(), CreateError> {
        // Its server may have died before it made everything durable, and a flush of the child will not do it.
        if let Some(parent) = self.parent.as_ref().and_then(Chain::top) {
            parent
                .file
                .flush()
                .map_err(|source| CreateError::Flush { parent: parent.path.clone(), source })?;
        }
        match &self.plan {
            CreatePlanKind::Raw(steps) => write_new(fs, &self.path, 0, steps, cancel),
            CreatePlanKind::Vhd(plan) => execute_vhd(fs, &self.path, plan, cancel),
        }
    }

    /// Carries it out on a file that is open already.
    pub(crate) fn write_to(&self, file: &dyn DiskFile) -> Result<(), CreateError> {
        let steps = match &self.plan {
            CreatePlanKind::Raw(steps) => steps,
            CreatePlanKind::Vhd(plan) => &plan.steps,
        };
        plan::execute(steps, file).map_err(|source| CreateError::Write { path: self.path.clone(), source })
    }
}

/// Makes a disk.
///
/// # Errors
/// [`CreateError`].
pub fn create_disk(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    what: &NewDisk,
    identity: Identity,
) -> Result<(), CreateError> {
    let options = DiskOptions { runtime_dir: DiskOptions::default_runtime_dir(), ..DiskOptions::default() };
    NewDiskPlan::new(fs, path, what, identity, &options)?.execute(fs)
}

/// Makes an empty child of an open layer, which stays as it is.
pub(crate) fn create_child(
    fs: &Arc<dyn FileSystem>,
    parent: &Layer,
    path: &Path,
    identity: Identity,
) -> Result<(), CreateError> {
    // The block size of the parent, so that a later merge can move whole blocks.
    let block_size = match parent.info() {
        Some(info) if info.block_size >= 512 << 10 && info.block_size <= 64 << 20 => info.block_size,
        _ => DEFAULT_BLOCK_SIZE,
    };
    // It is written to until the child takes its place: no time of now would be right.
    let spec = parent_spec(fs, parent, path, VhdTime(0))?;
    let kind = CreateKind::Differencing { block_size, parent: spec };
    execute_vhd(fs, path, &plan_vhd(path, parent.size, kind, identity)?, &AtomicBool::new(false))
}

fn plan_vhd(path: &Path, size: u64, kind: CreateKind, identity: Identity) -> Result<CreatePlan, CreateError> {
    let options = CreateOptions { size, kind, unique_id: identity.unique_id, time_stamp: identity.time };
    backstay_vhd::create::plan(&options)
        .map_err(|source| CreateError::Invalid { path: path.to_owned(), source })
}

fn execute_vhd(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    plan: &CreatePlan,
    cancel: &AtomicBool,
) -> Result<(), CreateError> {
    let reserved = plan.steps.iter().filter_map(|step| match step {
        Step::Allocate(len) => Some(*len),
        _ => None,
    });
    write_new(fs, path, reserved.max().unwrap_or(0), &plan.steps, cancel)
}

fn write_new(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    needed: u64,
    steps: &[Step],
    cancel: &AtomicBool,
) -> Result<(), CreateError> {
    let free = fs.free_space(folder_of(path)).map_err(|source| failed(path, source))?;
    if needed > free {
        return Err(CreateError::NoSpace { path: path.to_owned(), needed, free });
    }
    let temp = TempFile::create(fs, path).map_err(|source| failed(path, source))?;
    let give_up = || cancel.load(Ordering::Relaxed);
    let whole = plan::execute_unless(steps, temp.file().as_ref(), &give_up)
        .map_err(|source| CreateError::Write { path: path.to_owned(), source })?;
    if !whole {
        return Err(CreateError::Cancelled { path: path.to_owned() });
    }
    temp.commit().map_err(|source| failed(path, source))
}

/// When a parent was changed last, as a child records it.
fn modified(fs: &Arc<dyn FileSystem>, parent: &Layer) -> Result<VhdTime, CreateError> {
    let meta = fs.metadata(&parent.path).map_err(|source| CreateError::Parent {
        parent: parent.path.clone(),
        source: Box::new(OpenError::from_io(&parent.path, "look at", source)),
    })?;
    Ok(VhdTime::from_unix(meta.modified))
}

/// Puts into a file what a process that died left beside it. As a parent it is not written to again, and what is beside
/// it ends with the power.
pub(crate) fn settle(fs: &Arc<dyn FileSystem>, path: &Path, options: &DiskOptions) -> Result<(), OpenError> {
    let Some(folder) = &options.runtime_dir else { return Ok(()) };
    // What is wrong with the file is told by whoever opens it next.
    let Ok(meta) = fs.metadata(path) else { return Ok(()) };
    if !ShadowFile::exists(fs, folder, meta.id) {
        return Ok(());
    }
    let how = DiskOptions { runtime_dir: Some(folder.clone()), ..DiskOptions::default() };
    let mode = |writable| LayerMode { writable, format: DiskFormat::Vhd };
    // A shadow is named after an inode, which may have been another file's: then there is nothing to write, and the disk of
    // a template could not be written to either.
    let adopted = |layer: &Layer| {
        let warnings = layer.info().map_or(&[][..], |info| info.warnings.as_slice());
        warnings.iter().any(|warning| matches!(warning, Warning::WritesAdopted { .. }))
    };
    if Layer::open(fs, path, mode(false), &how).is_ok_and(|layer| !adopted(&layer)) {
        return Ok(());
    }
    match Layer::open(fs, path, mode(true), &how) {
        Ok(layer) => {
            layer.close().map_err(|source| OpenError::from_io(path, "write the last changes to", source))
        }
        // Either its server lives, and the file is refused as a parent, or it is a parent already.
        Err(OpenError::InUse { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Refuses a child that would make its chain too deep to be opened.
pub(crate) fn room_for_child(chain: &Chain) -> Result<(), CreateError> {
    match chain.top() {
        Some(top) if chain.layers.len() >= MAX_DEPTH => {
            Err(CreateError::TooDeep { parent: top.path.clone() })
        }
        _ => Ok(()),
    }
}

pub(crate) fn failed(path: &Path, source: io::Error) -> CreateError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::AlreadyExists => CreateError::Exists { path },
        _ => CreateError::Io { path, source },
    }
}

/// How a child at `path` refers to an open parent that was changed last at `modified`.
pub(crate) fn parent_spec(
    fs: &Arc<dyn FileSystem>,
    parent: &Layer,
    path: &Path,
    modified: VhdTime,
) -> Result<ParentSpec, CreateError> {
    let info = parent.info().ok_or_else(|| CreateError::RawParent { parent: parent.path.clone() })?;
    let folder = fs.canonicalize(folder_of(path)).map_err(|source| failed(path, source))?;
    let relative = relative(&folder, &parent.path);
    let relative =
        relative.to_str().ok_or_else(|| CreateError::ParentName { parent: parent.path.clone() })?;
    let name = parent.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(ParentSpec {
        unique_id: info.unique_id,
        time_stamp: modified,
        name,
        absolute: parent.path.to_str().map(str::to_owned),
        relative: Some(relative.to_owned()),
    })
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
    fn a_disk_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.vhd");
        let fs = crate::fs::HostFs::shared();
        let (size, id) = (8 << 20, Identity::fresh());
        let plan =
            NewDiskPlan::new(&fs, &path, &NewDisk::Fixed { size }, id, &DiskOptions::default()).unwrap();
        let cancel = AtomicBool::new(true);
        let refused = plan.execute_unless(&fs, &cancel);
        assert!(matches!(refused, Err(CreateError::Cancelled { .. })), "{refused:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        cancel.store(false, Ordering::Relaxed);
        plan.execute_unless(&fs, &cancel).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size + 512);
    }

    #[test]
    fn relative_paths() {
        let case = |folder: &str, file: &str| relative(Path::new(folder), Path::new(file));
        assert_eq!(case("/vm/one", "/vm/one/a.vhd"), Path::new("a.vhd"));
        assert_eq!(case("/vm/one/Snapshots/x", "/vm/one/a.vhd"), Path::new("../../a.vhd"));
        assert_eq!(case("/vm", "/base/a.vhd"), Path::new("../base/a.vhd"));
    }
}

//! New disk files, from a plan that can be shown first.

use crate::{
    chain::{Chain, MAX_DEPTH},
    error::OpenError,
    fs::{DiskFile, FileSystem, folder_of},
    image::ImageInfo,
    layer::{Layer, LayerMode},
    locator::{locator, parent_spec},
    options::{DiskFormat, DiskOptions},
    shadow::ShadowFile,
    temp::TempFile,
};
use backstay_vhd::{
    VhdTime,
    create::{CreateKind, CreateOptions, CreatePlan},
    plan::{self, PlanError, Step},
    vhdx,
};
use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use uuid::Uuid;

/// Stands for the usual block size of the format: 2 MiB, in a dynamic VHDX 32 MiB.
pub const DEFAULT_BLOCK_SIZE: u32 = 0;
/// The usual block size of a VHD, in bytes.
const VHD_BLOCK_SIZE: u32 = 2 << 20;

/// What to make. Which format is told by the name, or by [`DiskOptions::format`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewDisk {
    /// A file of the bytes of the disk and nothing else, without space reserved.
    Raw {
        /// Bytes; a multiple of 512.
        size: u64,
    },
    /// A disk with all its space.
    Fixed {
        /// Bytes; a multiple of 512.
        size: u64,
    },
    /// A disk that grows.
    Dynamic {
        /// Bytes; a multiple of 512.
        size: u64,
        /// Bytes in a block, or [`DEFAULT_BLOCK_SIZE`]: a power of two, 512 KiB–64 MiB, in a VHDX 1–256 MiB.
        block_size: u32,
    },
    /// A disk that holds what differs from its parent, which has to be of the same format.
    Differencing {
        /// The parent; nobody may write to it from now on.
        parent: PathBuf,
        /// Bytes in a block, or [`DEFAULT_BLOCK_SIZE`]: a power of two, 512 KiB–64 MiB, in a VHDX 1–256 MiB.
        block_size: u32,
    },
}

/// Identity of a new disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What children name the disk by: the unique id of a VHD, the first DataWriteGuid of a VHDX.
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
    /// The values make no VHDX.
    #[error("cannot create {}", path.display())]
    InvalidVhdx {
        /// The target.
        path: PathBuf,
        /// Which rule is broken.
        #[source]
        source: backstay_vhd::vhdx::create::CreateError,
    },
    /// A chain is of one format.
    #[error(
        "{} cannot be the parent of {}: a differencing VHD needs a VHD as its parent, a differencing VHDX a VHDX; choose the other extension, or convert the parent with `backstay disk convert`",
        parent.display(),
        path.display()
    )]
    MixedChain {
        /// The target.
        path: PathBuf,
        /// The parent.
        parent: PathBuf,
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
    /// Only a VHD or VHDX can be a parent.
    #[error("{} is a raw disk and cannot be the parent of a differencing disk; convert it to VHDX first", parent.display())]
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
    Vhd(CreatePlan, CreateOptions),
    Vhdx(vhdx::create::CreatePlan, Box<vhdx::create::CreateOptions>),
}

/// What a planned disk is like.
#[derive(Debug)]
pub(crate) enum Like {
    Raw,
    Vhd(CreateOptions),
    Vhdx(Box<vhdx::create::CreateOptions>),
}

impl CreatePlanKind {
    fn steps(&self) -> &[Step] {
        match self {
            Self::Raw(steps) => steps,
            Self::Vhd(plan, _) => &plan.steps,
            Self::Vhdx(plan, _) => &plan.steps,
        }
    }

    /// Bytes that have to be free.
    fn reserved(&self) -> u64 {
        let reserved = self.steps().iter().filter_map(|step| match step {
            Step::Allocate(len) => Some(*len),
            _ => None,
        });
        reserved.max().unwrap_or(0)
    }

    fn execute(&self, fs: &Arc<dyn FileSystem>, path: &Path, cancel: &AtomicBool) -> Result<(), CreateError> {
        write_new(fs, path, self.reserved(), self.steps(), cancel)
    }
}

impl fmt::Display for NewDiskPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path.display())?;
        match &self.plan {
            CreatePlanKind::Raw(steps) => steps.iter().try_for_each(|step| writeln!(f, "  {step}")),
            CreatePlanKind::Vhd(plan, _) => plan.fmt(f),
            CreatePlanKind::Vhdx(plan, _) => plan.fmt(f),
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
        let path = path.to_owned();
        let format = new_format(&path, options);
        let (size, plan, parent) = match what {
            NewDisk::Raw { size } => {
                let plan = CreatePlanKind::Raw(vec![Step::SetLen(*size), Step::Flush]);
                return Ok(Self { path, plan, parent: None });
            }
            NewDisk::Fixed { size } => (*size, Kind::Fixed, None),
            NewDisk::Dynamic { size, block_size } => (*size, Kind::Dynamic(*block_size), None),
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
                if let Some(format) = DiskFormat::of_name(parent).filter(|format| format.is_image()) {
                    settle(fs, parent, format, options).map_err(unusable)?;
                }
                let chain = Chain::open(fs, parent, &how).map_err(unusable)?;
                let top = chain.top().cloned();
                let top = top.ok_or_else(|| CreateError::RawParent { parent: parent.clone() })?;
                room_for_child(&chain)?;
                let modified = modified(fs, &top)?;
                let plan = plan_child(fs, &top, &path, format, (*block_size, modified), identity)?;
                return Ok(Self { path, plan, parent: Some(chain) });
            }
        };
        let plan = plan_image(&path, format, size, plan, identity)?;
        Ok(Self { path, plan, parent })
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
        self.plan.execute(fs, &self.path, cancel)
    }

    /// What the disk will be like.
    pub(crate) fn like(&self) -> Like {
        match &self.plan {
            CreatePlanKind::Raw(_) => Like::Raw,
            CreatePlanKind::Vhd(_, options) => Like::Vhd(options.clone()),
            CreatePlanKind::Vhdx(_, options) => Like::Vhdx(options.clone()),
        }
    }

    /// Carries it out on a file that is open already.
    pub(crate) fn write_to(&self, file: &dyn DiskFile) -> Result<(), CreateError> {
        plan::execute(self.plan.steps(), file)
            .map_err(|source| CreateError::Write { path: self.path.clone(), source })
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

/// Makes an empty child of an open layer. What it names its parent by stays until the parent is closed.
pub(crate) fn create_child(
    fs: &Arc<dyn FileSystem>,
    parent: &Layer,
    path: &Path,
    identity: Identity,
) -> Result<(), CreateError> {
    let image = parent.image().ok_or_else(|| CreateError::RawParent { parent: parent.path.clone() })?;
    image
        .settle_identity()
        .map_err(|error| CreateError::Flush { parent: parent.path.clone(), source: error.into() })?;
    // The block size of the parent, so that a later merge can move whole blocks; a VHDX has small ones as Windows makes it.
    let block_size = match parent.info() {
        Some(ImageInfo::Vhd(info)) if (512 << 10..=64 << 20).contains(&info.block_size) => info.block_size,
        _ => DEFAULT_BLOCK_SIZE,
    };
    let format = parent.info().map_or(DiskFormat::Vhd, |info| info.format().into());
    // It is written to until the child takes its place: no time of now would be right.
    let plan = plan_child(fs, parent, path, format, (block_size, VhdTime(0)), identity)?;
    plan.execute(fs, path, &AtomicBool::new(false))
}

/// The format of a new file.
fn new_format(path: &Path, options: &DiskOptions) -> DiskFormat {
    options.format.or_else(|| DiskFormat::of_name(path)).unwrap_or(DiskFormat::Vhdx)
}

/// Kinds of disk without parent.
enum Kind {
    Fixed,
    /// With blocks of that size.
    Dynamic(u32),
}

fn given(block_size: u32) -> Option<u32> {
    (block_size != DEFAULT_BLOCK_SIZE).then_some(block_size)
}

fn plan_image(
    path: &Path,
    format: DiskFormat,
    size: u64,
    kind: Kind,
    identity: Identity,
) -> Result<CreatePlanKind, CreateError> {
    match format {
        DiskFormat::Vhd | DiskFormat::Raw => {
            let kind = match kind {
                Kind::Fixed => CreateKind::Fixed,
                Kind::Dynamic(size) => {
                    CreateKind::Dynamic { block_size: given(size).unwrap_or(VHD_BLOCK_SIZE) }
                }
            };
            plan_vhd(path, size, kind, identity)
        }
        DiskFormat::Vhdx => {
            let (kind, block_size) = match kind {
                Kind::Fixed => (vhdx::create::CreateKind::Fixed, None),
                Kind::Dynamic(size) => (vhdx::create::CreateKind::Dynamic, given(size)),
            };
            let options = vhdx_options(size, kind, block_size, identity);
            plan_vhdx(path, options)
        }
    }
}

/// What a new VHDX is like, for [`vhdx::create`] and [`vhdx::convert`].
pub(crate) fn vhdx_options(
    size: u64,
    kind: vhdx::create::CreateKind,
    block_size: Option<u32>,
    identity: Identity,
) -> vhdx::create::CreateOptions {
    vhdx::create::CreateOptions {
        size,
        kind,
        block_size,
        logical_sector: 512,
        physical_sector: 4096,
        disk_id: Uuid::new_v4(),
        file_write_guid: Uuid::new_v4(),
        data_write_guid: identity.unique_id,
    }
}

/// Plans a child of an open layer. `how`: its block size, and when the parent was changed last.
fn plan_child(
    fs: &Arc<dyn FileSystem>,
    parent: &Layer,
    path: &Path,
    format: DiskFormat,
    how: (u32, VhdTime),
    identity: Identity,
) -> Result<CreatePlanKind, CreateError> {
    let (block_size, modified) = how;
    let mixed = || CreateError::MixedChain { path: path.to_owned(), parent: parent.path.clone() };
    match (parent.info(), format) {
        (None, _) => Err(CreateError::RawParent { parent: parent.path.clone() }),
        (Some(ImageInfo::Vhd(_)), DiskFormat::Vhd) => {
            let parent_of = parent_spec(fs, parent, path, modified)?;
            let block_size = given(block_size).unwrap_or(VHD_BLOCK_SIZE);
            let kind = CreateKind::Differencing { block_size, parent: parent_of };
            plan_vhd(path, parent.size, kind, identity)
        }
        (Some(ImageInfo::Vhdx(info)), DiskFormat::Vhdx) => {
            let kind = vhdx::create::CreateKind::Differencing(locator(fs, parent, path)?);
            let options = vhdx::create::CreateOptions {
                logical_sector: info.logical_sector,
                physical_sector: info.physical_sector,
                // The guest goes on with the same disk.
                disk_id: info.disk_id,
                ..vhdx_options(parent.size, kind, given(block_size), identity)
            };
            plan_vhdx(path, options)
        }
        (Some(_), _) => Err(mixed()),
    }
}

fn plan_vhd(
    path: &Path,
    size: u64,
    kind: CreateKind,
    identity: Identity,
) -> Result<CreatePlanKind, CreateError> {
    let options = CreateOptions { size, kind, unique_id: identity.unique_id, time_stamp: identity.time };
    let plan = backstay_vhd::create::plan(&options);
    plan.map(|plan| CreatePlanKind::Vhd(plan, options))
        .map_err(|source| CreateError::Invalid { path: path.to_owned(), source })
}

fn plan_vhdx(path: &Path, options: vhdx::create::CreateOptions) -> Result<CreatePlanKind, CreateError> {
    let plan = vhdx::create::plan(&options);
    plan.map(|plan| CreatePlanKind::Vhdx(plan, Box::new(options)))
        .map_err(|source| CreateError::InvalidVhdx { path: path.to_owned(), source })
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
pub(crate) fn settle(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    format: DiskFormat,
    options: &DiskOptions,
) -> Result<(), OpenError> {
    let Some(folder) = &options.runtime_dir else { return Ok(()) };
    // What is wrong with the file is told by whoever opens it next.
    let Ok(meta) = fs.metadata(path) else { return Ok(()) };
    if !ShadowFile::exists(fs, folder, meta.id) {
        return Ok(());
    }
    let how = DiskOptions { runtime_dir: Some(folder.clone()), ..DiskOptions::default() };
    let mode = |writable| LayerMode { writable, format };
    // A shadow is named after an inode, which may have been another file's: then there is nothing to write, and the disk of
    // a template could not be written to either.
    let adopted = |layer: &Layer| layer.info().is_some_and(ImageInfo::adopted);
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
}

//! What the daemon asks of the disk engine about files that no worker holds. Blocking.

use crate::failure::Failure;
use backstay_api::{DiskLayer, DiskType, ProblemCode};
use backstay_disk::{
    ConvertError, ConvertRequest, ConvertTo, CreateError, DEFAULT_BLOCK_SIZE, Disk, DiskFormat, DiskOptions,
    Identity, ImageInfo, Kinship, LayerInfo, MergeError, NewDisk, OpenError, Progress, RelocateControl,
    RelocateError, convert, create_disk, fs,
};
use backstay_worker::control::FailureKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use uuid::Uuid;

/// A chain as it was found.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Bytes the guest sees.
    pub size: u64,
    /// The files, the top first.
    pub layers: Vec<DiskLayer>,
    /// Blocks that the top file holds itself.
    pub top_blocks: u32,
    /// What was strange.
    pub warnings: Vec<String>,
}

impl Chain {
    /// The files, the top first.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.layers.iter().map(|layer| layer.path.clone()).collect()
    }
}

/// How files are opened to look at them.
#[must_use]
pub fn look_options() -> DiskOptions {
    DiskOptions { runtime_dir: DiskOptions::default_runtime_dir(), ..DiskOptions::read_only() }
}

/// Opens a chain for reading, checks all its files, and closes it again.
///
/// # Errors
/// `not-found`, `in-use`, `damaged`, `denied`.
pub fn probe(path: &Path) -> Result<Chain, Failure> {
    let disk = Disk::open(path, look_options()).map_err(open_failure)?;
    let infos = disk.chain();
    let warnings = disk.warnings().iter().map(ToString::to_string).collect();
    let _ = disk.close();
    Ok(Chain {
        size: infos.first().map_or(0, |top| top.size),
        top_blocks: infos.first().map_or(0, |top| top.allocated_blocks),
        layers: infos.iter().map(layer).collect(),
        warnings,
    })
}

fn layer(info: &LayerInfo) -> DiskLayer {
    DiskLayer {
        path: info.path.clone(),
        kind: info
            .image
            .as_ref()
            .map_or_else(|| "raw".into(), |image| image.disk_type().to_string().to_lowercase()),
        virtual_size: info.size,
        file_size: std::fs::metadata(&info.path).map_or(0, |m| m.len()),
    }
}

/// Removes files without a name that processes which died left in a folder.
pub fn remove_unfinished(folder: &Path) {
    backstay_disk::remove_unfinished(&fs::HostFs::shared(), folder);
}

/// The ids of a disk and of its parent, without opening either; none of a file that is no disk with metadata.
///
/// # Errors
/// `damaged`.
pub fn kinship(path: &Path) -> Result<Option<Kinship>, Failure> {
    backstay_disk::kinship(&fs::HostFs::shared(), path)
        .map_err(|error| Failure::because(ProblemCode::Damaged, "a disk cannot be used", error))
}

/// What of a disk's file stays the same whatever is written to it: its id, if it has one, and its size in bytes.
///
/// # Errors
/// As [`probe`].
pub fn likeness(path: &Path) -> Result<(Option<Uuid>, u64), Failure> {
    let disk = Disk::open(path, look_options()).map_err(open_failure)?;
    let top = disk.chain().into_iter().next();
    let _ = disk.close();
    let id = top.as_ref().and_then(|top| top.image.as_ref()).map(|image| match image {
        ImageInfo::Vhd(info) => info.unique_id,
        ImageInfo::Vhdx(info) => info.disk_id,
    });
    Ok((id, top.map_or(0, |top| top.size)))
}

/// Whether a disk reads as the file of its chain that `is_it` knows: all files above that one are empty.
///
/// # Errors
/// Why not, in words that follow the disk's name.
pub fn reads_as(top: &Path, is_it: impl Fn(&PathBuf) -> bool) -> Result<(), String> {
    let disk =
        Disk::open(top, look_options()).map_err(|error| format!(" ({})", crate::failure::chain(&error)))?;
    let chain = disk.chain();
    let _ = disk.close();
    match chain.iter().position(|layer| is_it(&layer.path)) {
        None => Err(String::new()),
        Some(at) if chain.iter().take(at).all(|above| above.allocated_blocks == 0) => Ok(()),
        Some(_) => Err(", which was written to".into()),
    }
}

/// Makes a disk.
///
/// # Errors
/// `exists`, `invalid`, `no-space`.
pub fn create(path: &Path, size: u64, disk_type: DiskType) -> Result<(), Failure> {
    let what = match disk_type {
        DiskType::Fixed => NewDisk::Fixed { size },
        DiskType::Dynamic => NewDisk::Dynamic { size, block_size: DEFAULT_BLOCK_SIZE },
    };
    create_disk(&fs::HostFs::shared(), path, &what, Identity::fresh()).map_err(create_failure)
}

/// Makes an empty differencing disk of `parent`, durably.
///
/// # Errors
/// `exists`, `damaged`, `no-space`.
pub fn create_child(parent: &Path, child: &Path) -> Result<(), Failure> {
    create_child_as(parent, child, Identity::fresh())
}

/// As [`create_child`], with an identity that is known before.
///
/// # Errors
/// As [`create_child`].
pub fn create_child_as(parent: &Path, child: &Path, identity: Identity) -> Result<(), Failure> {
    let what = NewDisk::Differencing { parent: parent.into(), block_size: DEFAULT_BLOCK_SIZE };
    create_disk(&fs::HostFs::shared(), child, &what, identity).map_err(create_failure)
}

/// The problem of a disk that cannot be opened.
#[must_use]
pub fn open_failure(error: OpenError) -> Failure {
    let (code, words) = match &error {
        OpenError::NotFound { .. } => (ProblemCode::NotFound, "a disk is missing"),
        OpenError::InUse { .. } | OpenError::Claimed { .. } => (ProblemCode::InUse, "a disk is in use"),
        // A parent that takes in its child, for example.
        OpenError::Parent { source, .. }
            if source.tried.iter().any(|t| t.reason.to_string().contains(" is in use by ")) =>
        {
            (ProblemCode::InUse, "a disk is in use")
        }
        OpenError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            (ProblemCode::Denied, "a disk may not be opened")
        }
        _ => (ProblemCode::Damaged, "a disk cannot be used"),
    };
    Failure::because(code, words, error)
}

/// The problem of a merge that ended early.
#[must_use]
pub fn merge_failure(error: MergeError) -> Failure {
    let code = code_of(FailureKind::of_merge(&error));
    Failure::because(code, "a file of a deleted checkpoint was not merged", error)
}

/// The code of a failure that the disk engine told, here or in a worker.
#[must_use]
pub fn code_of(kind: FailureKind) -> ProblemCode {
    match kind {
        FailureKind::InUse => ProblemCode::InUse,
        FailureKind::NoSpace => ProblemCode::NoSpace,
        FailureKind::Damaged => ProblemCode::Damaged,
        FailureKind::Refused => ProblemCode::Precondition,
        FailureKind::Trouble => ProblemCode::Unavailable,
    }
}

fn create_failure(error: CreateError) -> Failure {
    let mut causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    let full = causes.any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull)
    });
    let code = match &error {
        _ if full => ProblemCode::NoSpace,
        CreateError::Exists { .. } => ProblemCode::Exists,
        CreateError::NoSpace { .. } => ProblemCode::NoSpace,
        CreateError::Invalid { .. }
        | CreateError::InvalidVhdx { .. }
        | CreateError::MixedChain { .. }
        | CreateError::RawParent { .. } => ProblemCode::Invalid,
        CreateError::Parent { .. } => ProblemCode::Damaged,
        CreateError::TooDeep { .. } | CreateError::ParentName { .. } => ProblemCode::Precondition,
        _ => ProblemCode::Internal,
    };
    Failure::because(code, "a disk cannot be made", error)
}

/// Whether a file is a raw disk by its name, as the engine tells formats.
#[must_use]
pub fn is_raw_name(path: &Path) -> bool {
    DiskFormat::of_name(path) == Some(DiskFormat::Raw)
}

/// Puts into a disk and its parents what a process that died left beside them; nobody may have it open.
///
/// # Errors
/// As opening it for writing.
pub fn settle(path: &Path) -> Result<(), Failure> {
    let options = DiskOptions { runtime_dir: DiskOptions::default_runtime_dir(), ..DiskOptions::default() };
    backstay_disk::settle_parents(&fs::HostFs::shared(), path, &options).map_err(open_failure)?;
    let disk = Disk::open(path, options).map_err(open_failure)?;
    disk.close().map_err(|error| Failure::because(ProblemCode::Internal, "closing a disk failed", error))
}

/// Moves the top file of a disk that nobody uses. Only one of the two files is left then.
///
/// # Errors
/// As opening it for writing; `no-space`, `unavailable`: it is where it was.
pub fn relocate(from: &Path, to: &Path, control: &RelocateControl) -> Result<(), Failure> {
    let options = DiskOptions { runtime_dir: DiskOptions::default_runtime_dir(), ..DiskOptions::default() };
    let disk = Disk::open(from, options).map_err(open_failure)?;
    let moved = disk.relocate(to, control, &|| Ok(()));
    let closed = disk.close();
    moved.map_err(|error| {
        let code = match &error {
            RelocateError::NoSpace { .. } => ProblemCode::NoSpace,
            RelocateError::Write { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                ProblemCode::NoSpace
            }
            RelocateError::Cancelled { .. } => ProblemCode::Cancelled,
            _ => ProblemCode::Unavailable,
        };
        Failure::because(code, "a disk was not moved", error)
    })?;
    closed.map_err(|error| Failure::because(ProblemCode::Internal, "closing a disk failed", error))?;
    if let Err(error) = crate::durable::remove(from) {
        tracing::warn!(%error, path = %from.display(), "the old file of a disk that was moved stays for now");
    }
    Ok(())
}

/// The form of a copy of a disk: that of the first file of its chain.
///
/// # Errors
/// As [`probe`].
pub fn form_of(path: &Path) -> Result<ConvertTo, Failure> {
    let disk = Disk::open(path, look_options()).map_err(open_failure)?;
    let layers = disk.chain();
    let _ = disk.close();
    Ok(match layers.last().and_then(|layer| layer.image.as_ref()) {
        None => ConvertTo::Raw,
        Some(image) if image.disk_type() == backstay_vhd::DiskType::Fixed => ConvertTo::Fixed,
        Some(_) => ConvertTo::Dynamic { block_size: DEFAULT_BLOCK_SIZE },
    })
}

/// Copies the content of a disk, read through its whole chain, into a new file. `progress` gets bytes done.
///
/// # Errors
/// `exists`, `in-use`, `damaged`, `no-space`, `cancelled`; no file is left.
pub fn copy(
    from: &Path,
    to: &Path,
    form: ConvertTo,
    identity: Identity,
    progress: &(dyn Fn(u64) + Sync),
    cancel: &AtomicBool,
) -> Result<(), Failure> {
    let request = ConvertRequest {
        options: look_options(),
        identity,
        ..ConvertRequest::new(from.into(), to.into(), form)
    };
    let report = |at: Progress| progress(at.done);
    match convert(&fs::HostFs::shared(), &request, &report, cancel) {
        Ok(_) => Ok(()),
        Err(ConvertError::Source(error)) => Err(open_failure(error)),
        Err(ConvertError::Target(error)) => Err(create_failure(error)),
        Err(ConvertError::Cancelled { .. }) => Err(crate::tasks::cancelled()),
        Err(ConvertError::Write { path, source }) => Err(Failure::file("writing", &path, source)),
        Err(error) => Err(Failure::because(ProblemCode::Damaged, "a disk cannot be copied", error)),
    }
}

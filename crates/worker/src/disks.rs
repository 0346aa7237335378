//! The machine's drives: chains opened by the disk engine and offered to QEMU, one NBD export each.

mod plug;

pub(crate) use plug::MoveError;

use crate::checkpoint::tops::{Top, Tops};
use crate::control::{DiskStatus, LayerSwitch};
use crate::run_dir::{RunDir, share_with};
use backstay_disk::nbd::{BindError, ExportError, ExportSpec, Server};
use backstay_disk::{
    Backend, CacheMode, CloseError, CreateError, Disk, DiskFormat, DiskOptions, Identity, OpenError,
    RateLimit, Switch, SwitchError, Switched, fs::HostFs, nbd::Hurry, settle_parents, switch_back_all,
};
use backstay_model::{CheckpointDisk, DriveMedia, DriveSlot, DriveSpec, IoLimit, VmSpec};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

/// How long requests in flight may hold up a step.
const DRAIN: Duration = Duration::from_secs(10);
/// How long QEMU may take to read its last answers.
const HANG_UP: Duration = Duration::from_secs(2);

/// Something about the drives failed.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    /// A chain cannot be opened.
    #[error("the drive at {slot} cannot be opened")]
    Open {
        /// Where it is attached.
        slot: DriveSlot,
        /// Why.
        #[source]
        source: Box<OpenError>,
    },
    /// A worker died in the middle of a step, and what it had not written of the file below cannot be written now.
    #[error("the drive at {slot} cannot be opened")]
    Unflushed {
        /// Where it is attached.
        slot: DriveSlot,
        /// Why.
        #[source]
        source: CloseError,
    },
    /// QEMU could not reach them.
    #[error("the disks cannot be offered to QEMU")]
    Bind(#[source] BindError),
    /// QEMU could not reach one.
    #[error("a disk cannot be offered to QEMU")]
    Export(#[source] ExportError),
    /// A file in the run folder.
    #[error("{path} cannot be used")]
    RunFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A new top cannot be made.
    #[error("the differencing disk for {slot} cannot be made")]
    Child {
        /// Where its parent is attached.
        slot: DriveSlot,
        /// Why.
        #[source]
        source: Box<CreateError>,
    },
    /// The disks cannot get their new tops.
    #[error("the disks cannot step onto their new files")]
    Switch(#[source] Box<SwitchError>),
    /// A file system does not take what was written.
    #[error("the disk at {slot} cannot be flushed")]
    Flush {
        /// Where it is attached.
        slot: DriveSlot,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A defect of this program.
    #[error("the disk engine failed: {0}")]
    Failed(String),
    /// A disk that is not attached.
    #[error("there is no disk at {0}")]
    NoDisk(DriveSlot),
}

impl DisksError {
    /// Somebody has a disk locked, perhaps only to look at it.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        let by_others =
            |error: &OpenError| matches!(error, OpenError::InUse { .. } | OpenError::Claimed { .. });
        matches!(self, Self::Open { source, .. } if by_others(source))
    }
}

#[derive(Debug)]
struct Drive {
    slot: DriveSlot,
    /// The file as the configuration names it; changes with each switch.
    top: Mutex<PathBuf>,
    disk: Arc<Disk>,
    kind: Kind,
}

/// What is in a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A virtual hard disk, which can step onto new files.
    File,
    /// A device of the host.
    Device,
    /// A CD/DVD image.
    Iso,
}

impl Drive {
    fn top(&self) -> MutexGuard<'_, PathBuf> {
        self.top.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn export(&self) -> ExportSpec {
        ExportSpec {
            name: self.slot.export_name(),
            description: self.top().display().to_string(),
            backend: self.disk.clone(),
            read_only: self.kind == Kind::Iso,
        }
    }

    fn warnings(&self) -> Vec<String> {
        self.disk.warnings().iter().map(|warning| format!("{}: {warning}", self.slot)).collect()
    }

    /// What went wrong, in words.
    fn close(&self) -> Option<String> {
        let error: CloseError = self.disk.close().err()?;
        Some(format!("{}: {}", self.slot, crate::report::chain_of(&error)))
    }
}

/// All drives with a medium.
#[derive(Debug)]
pub struct DiskSet {
    drives: RwLock<Vec<Arc<Drive>>>,
    server: Mutex<Option<Server>>,
    /// Where the steps are written down.
    tops: PathBuf,
    cache: CacheMode,
}

impl DiskSet {
    /// Opens every chain at its newest top and serves it. Blocks.
    ///
    /// # Errors
    /// [`DisksError`]; nothing stays open then.
    pub fn open(
        run: &RunDir,
        spec: &VmSpec,
        qemu_gid: Option<u32>,
        cache: CacheMode,
    ) -> Result<Self, DisksError> {
        let run_file = |path: PathBuf| move |source| DisksError::RunFile { path, source };
        let tops = Tops::read(&run.tops()).map_err(run_file(run.tops()))?;
        let (mut drives, mut steps) = (Vec::new(), Vec::new());
        for drive in &spec.drives {
            drives.extend(open_drive(drive, cache, &tops, &mut steps)?.map(Arc::new));
        }
        if !steps.is_empty()
            && let Err(error) = Tops::conclude(&run.tops(), steps)
        {
            tracing::error!(%error, "it is not written down which files the disks continue in");
        }
        let server = Server::bind(&run.nbd(), 0o600).map_err(DisksError::Bind)?;
        share_with(&run.nbd(), qemu_gid).map_err(run_file(run.nbd()))?;
        for drive in &drives {
            server.add_export(drive.export()).map_err(DisksError::Export)?;
        }
        let tops = run.tops();
        let set = Self { drives: RwLock::new(drives), server: Mutex::new(Some(server)), tops, cache };
        spec.drives.iter().for_each(|drive| set.set_limit(drive.slot, drive.limit));
        Ok(set)
    }

    fn server(&self) -> MutexGuard<'_, Option<Server>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Limits what the guest may ask of a disk from now on.
    pub fn set_limit(&self, slot: DriveSlot, limit: IoLimit) {
        let rate = RateLimit { requests: limit.iops, bytes: limit.bytes_per_second };
        if let Some(server) = self.server().as_ref() {
            // An empty CD/DVD drive has no export, and no limit.
            let _ = server.set_limit(&slot.export_name(), rate);
        }
    }

    fn limit(&self, slot: DriveSlot) -> IoLimit {
        let rate = self.server().as_ref().map(|server| server.limit(&slot.export_name())).unwrap_or_default();
        IoLimit { iops: rate.requests, bytes_per_second: rate.bytes }
    }

    /// Has QEMU connect anew to a disk: it learns its size then. Blocks until its requests in flight are answered.
    pub(crate) fn renew(&self, slot: DriveSlot) {
        if let Some(server) = self.server().as_ref()
            && let Err(error) = server.renew(&slot.export_name(), HANG_UP)
        {
            tracing::warn!(%slot, %error, "QEMU cannot be made to connect anew");
        }
    }

    /// As long as the result lives, requests do not wait for limits: QEMU waits for them before it stops the guest.
    #[must_use]
    pub fn hurry(&self) -> Option<Hurry> {
        self.server().as_ref().map(Server::hurry)
    }

    /// What was strange about the files.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.drives().iter().flat_map(|drive| drive.warnings()).collect()
    }

    /// The file on top of each hard disk.
    #[must_use]
    pub fn tops(&self) -> Vec<(DriveSlot, PathBuf)> {
        self.files_disks().iter().map(|drive| (drive.slot, drive.top().clone())).collect()
    }

    /// Drives whose sectors are not of 512 bytes: how many they have.
    #[must_use]
    pub fn large_sectors(&self) -> BTreeMap<DriveSlot, u32> {
        let drives = self.hard_disks();
        let sectors = drives.iter().map(|drive| (drive.slot, drive.disk.sector_size()));
        sectors.filter(|(_, sector)| *sector != 512).collect()
    }

    /// Files that take more space when the guest writes: all but those of fixed size that have all of it already.
    #[must_use]
    pub fn growing(&self) -> Vec<PathBuf> {
        use std::os::unix::fs::MetadataExt;
        let whole = |drive: &Drive, path: &Path| {
            let flat = drive.disk.chain().first().is_some_and(|layer| !layer.grows());
            flat && std::fs::metadata(path).is_ok_and(|file| file.blocks() * 512 >= file.len())
        };
        let disks = self.files_disks();
        let tops = disks.iter().map(|drive| (drive, drive.top().clone()));
        tops.filter(|(drive, path)| !whole(drive, path)).map(|(_, path)| path).collect()
    }

    /// The disks' files as they belong to a checkpoint: those a step made read-only, else the tops (for a save).
    #[must_use]
    pub fn at_checkpoint(&self, switches: &[LayerSwitch]) -> Vec<CheckpointDisk> {
        let file = |drive: &Drive| match switches.iter().find(|s| s.slot == drive.slot) {
            Some(switch) => switch.from.clone(),
            None => drive.top().clone(),
        };
        self.files_disks()
            .iter()
            .map(|drive| CheckpointDisk { slot: drive.slot, file: file(drive) })
            .collect()
    }

    /// Chains and numbers of the hard disks.
    #[must_use]
    pub fn status(&self) -> Vec<DiskStatus> {
        let of_drive = |drive: &Arc<Drive>| {
            let (stats, chain) = (drive.disk.stats(), drive.disk.chain());
            DiskStatus {
                slot: drive.slot,
                size: chain.first().map_or(0, |layer| layer.size),
                chain: chain.into_iter().map(|layer| layer.path).collect(),
                reads: stats.reads,
                writes: stats.writes,
                read_bytes: stats.read_bytes,
                written_bytes: stats.written_bytes,
                limit: self.limit(drive.slot),
            }
        };
        self.hard_disks().iter().map(of_drive).collect()
    }

    /// Every file of every hard disk's chain, the tops among them.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.hard_disks().iter().flat_map(|drive| drive.disk.chain()).map(|layer| layer.path).collect()
    }

    /// Whether no write has come since the disks were opened.
    #[must_use]
    pub fn are_unwritten(&self) -> bool {
        self.hard_disks().iter().all(|drive| drive.disk.stats().writes == 0)
    }

    /// The open disk at a place.
    ///
    /// # Errors
    /// [`DisksError::NoDisk`].
    pub fn disk(&self, slot: DriveSlot) -> Result<Arc<Disk>, DisksError> {
        self.drive(slot).map(|drive| Arc::clone(&drive.disk))
    }

    /// Makes everything durable that was acknowledged so far. Blocks.
    ///
    /// # Errors
    /// [`DisksError::Flush`].
    pub fn flush(&self) -> Result<(), DisksError> {
        self.hard_disks().iter().try_for_each(|drive| {
            drive.disk.flush().map_err(|source| DisksError::Flush { slot: drive.slot, source })
        })
    }

    /// Makes the empty children, durably, and opens them: all that can be done while the guest runs. Blocks.
    ///
    /// # Errors
    /// [`DisksError`]; some children may exist then.
    pub fn prepare(&self, switches: &[LayerSwitch]) -> Result<Switch, DisksError> {
        let mut pairs = Vec::new();
        for switch in switches {
            let drive = self.drive(switch.slot)?;
            drive
                .disk
                .prepare_child(&switch.to, Identity::fresh())
                .map_err(|source| DisksError::Child { slot: switch.slot, source: Box::new(source) })?;
            pairs.push((Arc::clone(&drive.disk), switch.to.clone()));
        }
        Switch::prepare(pairs).map_err(|source| DisksError::Switch(Box::new(source)))
    }

    /// Steps onto the children at one instant and writes that down. Blocks for as long as requests are in flight, so call
    /// it while the guest is stopped. What is left to do with the result can wait until the guest runs.
    ///
    /// # Errors
    /// [`DisksError::Switch`]: no disk has stepped. [`DisksError::RunFile`]: all have, and must step back.
    pub fn flip(&self, prepared: Switch, switches: &[LayerSwitch]) -> Result<Switched, DisksError> {
        let switched = prepared.commit(DRAIN).map_err(|source| DisksError::Switch(Box::new(source)))?;
        for switch in switches {
            self.drive(switch.slot)?.top().clone_from(&switch.to);
        }
        Tops::conclude(&self.tops, switches.iter().map(|s| (s.slot, s.to.clone())))
            .map_err(|source| DisksError::RunFile { path: self.tops.clone(), source })?;
        Ok(switched)
    }

    /// Steps back from the children and removes them. A disk whose child has been written to stays on it and is named in
    /// the result. Blocks.
    pub fn unflip(&self, switches: &[LayerSwitch]) -> Vec<DriveSlot> {
        // A worker that takes over in the middle of this finds a child removed or empty.
        let announced = Tops::announce(&self.tops, switches);
        if let Err(error) = &announced {
            tracing::warn!(%error, "the disks stay on their new files: the way back cannot be written down");
        }
        let mut tops = Vec::new();
        for switch in switches {
            let Ok(drive) = self.drive(switch.slot) else { continue };
            let stepped = *drive.top() == switch.to;
            if stepped && (announced.is_err() || !step_back(&drive, switch)) {
                tops.push((switch.slot, switch.to.clone()));
                continue;
            }
            tops.push((switch.slot, switch.from.clone()));
            if let Err(error) = crate::durable::remove(&switch.to) {
                tracing::warn!(%error, path = %switch.to.display(), "an empty differencing disk was left");
            }
        }
        let kept =
            switches.iter().filter(|s| tops.contains(&(s.slot, s.to.clone()))).map(|s| s.slot).collect();
        if let Err(error) = Tops::conclude(&self.tops, tops) {
            tracing::warn!(%error, "it is not written down which files the disks continue in");
        }
        kept
    }

    /// Notes that the layer `upper` was merged into `lower`: if it was the top, the guest writes to `lower` now.
    ///
    /// # Errors
    /// [`DisksError`]: the next worker would open `upper`, which is empty and reads the same.
    pub fn merged(&self, slot: DriveSlot, upper: &Path, lower: &Path) -> Result<(), DisksError> {
        let drive = self.drive(slot)?;
        let same = |a: &Path, b: &Path| {
            a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
        };
        if !same(&drive.top().clone(), upper) {
            return Ok(());
        }
        *drive.top() = lower.into();
        Tops::conclude(&self.tops, [(slot, lower.into())])
            .map_err(|source| DisksError::RunFile { path: self.tops.clone(), source })
    }

    /// Ends service and closes the files, making everything durable. Blocks. Returns what went wrong, in words.
    pub fn close(&self) -> Vec<String> {
        let server = self.server().take();
        if let Some(server) = server {
            let ended = server.shutdown(HANG_UP);
            tracing::debug!(?ended, "NBD service ended");
        }
        self.drives().iter().filter_map(|drive| drive.close()).collect()
    }

    fn drives(&self) -> Vec<Arc<Drive>> {
        self.drives.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn files_disks(&self) -> Vec<Arc<Drive>> {
        self.drives().into_iter().filter(|drive| drive.kind == Kind::File).collect()
    }

    fn hard_disks(&self) -> Vec<Arc<Drive>> {
        self.drives().into_iter().filter(|drive| drive.kind != Kind::Iso).collect()
    }

    fn drive(&self, slot: DriveSlot) -> Result<Arc<Drive>, DisksError> {
        self.hard_disks().into_iter().find(|drive| drive.slot == slot).ok_or(DisksError::NoDisk(slot))
    }
}

/// Opens what is in a drive. A step of its disk that is under way is added to `steps`.
fn open_drive(
    drive: &DriveSpec,
    cache: CacheMode,
    tops: &Tops,
    steps: &mut Vec<(DriveSlot, PathBuf)>,
) -> Result<Option<Drive>, DisksError> {
    let slot = drive.slot;
    let (path, options, kind) = match &drive.media {
        DriveMedia::Disk(configured) => {
            let top = find_top(tops, slot, configured)?;
            if top.open {
                steps.push((slot, top.path.clone()));
            }
            (top.path, DiskOptions { cache, ..to_write() }, Kind::File)
        }
        DriveMedia::Device(path) => {
            (path.clone(), DiskOptions { format: Some(DiskFormat::Raw), cache, ..to_write() }, Kind::Device)
        }
        DriveMedia::Iso(path) => {
            let how = DiskOptions { format: Some(DiskFormat::Raw), ..DiskOptions::read_only() };
            (path.clone(), how, Kind::Iso)
        }
        DriveMedia::EmptyOptical => return Ok(None),
    };
    let failed = |source| DisksError::Open { slot, source: Box::new(source) };
    if kind == Kind::File {
        settle_parents(&HostFs::shared(), &path, &options).map_err(failed)?;
    }
    let disk = Disk::open(&path, options).map_err(failed)?;
    Ok(Some(Drive { slot, top: Mutex::new(path), disk, kind }))
}

/// How the hard disks are opened. All programs of this host share one folder for what is not in the files yet: whoever
/// opens a disk after our death, this machine's next worker or a command, finds its last writes.
fn to_write() -> DiskOptions {
    DiskOptions { runtime_dir: DiskOptions::default_runtime_dir(), ..DiskOptions::default() }
}

/// The file a disk continues in. Where a worker died in the middle of a step, the file below is made durable first: from
/// now on a flush by the guest reaches the new file only.
fn find_top(tops: &Tops, slot: DriveSlot, configured: &Path) -> Result<Top, DisksError> {
    let failed = |source| DisksError::Open { slot, source: Box::new(source) };
    let top = tops.resolve(slot, configured, Path::try_exists).map_err(|source| {
        failed(OpenError::Io { path: configured.into(), action: "find the present top of", source })
    })?;
    // A disk that was moved has none any more, and is all there.
    let gone = |error: &OpenError| matches!(error, OpenError::NotFound { .. });
    let below = top.unflushed.as_ref().map(|below| Disk::open(below, to_write()));
    if let Some(below) = below.filter(|opened| !opened.as_ref().is_err_and(gone)) {
        let below = below.map_err(failed)?;
        below.close().map_err(|source| DisksError::Unflushed { slot, source })?;
    }
    Ok(top)
}

fn step_back(drive: &Drive, switch: &LayerSwitch) -> bool {
    if let Err(error) = switch_back_all(&[Arc::clone(&drive.disk)]) {
        tracing::warn!(slot = %switch.slot, %error, "the disk stays on its new file");
        return false;
    }
    drive.top().clone_from(&switch.from);
    true
}

//! Converting: the content of a disk, read through its whole chain, into a new file of another form.
//!
//! The new file is written under a temporary name and gets its own when it is whole and durable. Until then no order of
//! writes matters, so the metadata of a growing target is not synced on the way.

mod bad;
mod sharing;
mod target;
mod unsynced;

pub use bad::BadRange;
pub use sharing::Reflink;

use crate::{
    chain::{Chain, ChainWarning},
    create::{CreateError, Identity, Like, NewDisk, NewDiskPlan},
    disk::read_chain,
    error::OpenError,
    foreign::{Foreign, ForeignError, ForeignSource, files_of},
    fs::{FileSystem, folder_of},
    layer::Layer,
    options::{DiskFormat, DiskOptions},
    share::CopyError,
    temp::TempFile,
    threads, zero,
};
use backstay_vhd::{
    convert::{ConvertPlan, Target as PlanTarget, plan},
    vhdx,
};
use bad::{BadRanges, is_medium, read_around};
use sharing::{Run, Sharing, runs_in, visit_runs};
use std::{
    io,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
};
use target::Target;

/// What a thread takes on at a time, in bytes.
const CLAIM: u64 = 4 << 20;
/// What is read and written in one call, in bytes; small enough to stay in a processor's cache.
const CHUNK: usize = 1 << 20;
/// Zeros between data are worth a second write from this length on, in bytes.
const GAP: usize = 64 << 10;
/// Writeback is started after each such step, so that the sync at the end finds little left, in bytes.
const WRITEBACK: u64 = 32 << 20;

/// Azure takes disks of whole MiB, and none that is smaller than this, in bytes.
const AZURE_UNIT: u64 = 1 << 20;
const AZURE_LEAST: u64 = 20 << 20;

/// Form of the new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvertTo {
    /// The bytes of the disk and nothing else; zeros become holes.
    Raw,
    /// A VHD or VHDX with all its space.
    Fixed,
    /// A VHD or VHDX that grows.
    Dynamic {
        /// Bytes in a block, or [`crate::DEFAULT_BLOCK_SIZE`]: a power of two, 512 KiB–64 MiB, in a VHDX 1–256 MiB.
        block_size: u32,
    },
}

/// What to convert and how.
#[derive(Clone, Debug)]
pub struct ConvertRequest {
    /// The disk to read, with its parents. It must not be open for writing anywhere.
    pub source: PathBuf,
    /// How the source is opened (always read-only).
    pub options: DiskOptions,
    /// The new file; must not exist.
    pub target: PathBuf,
    /// Its form.
    pub to: ConvertTo,
    /// Its format, unless raw; by its name if not given.
    pub format: Option<DiskFormat>,
    /// Identity of the new disk.
    pub identity: Identity,
    /// Whether the new file is durable before it gets its name. Without, power loss soon after can leave it damaged.
    pub durable: bool,
    /// Threads that copy.
    pub threads: usize,
    /// The source is a disk of another program.
    pub foreign: Option<ForeignSource>,
    /// The new disk gets zeros at its end until it has whole MiB, and 20 at least, as Azure wants it.
    pub azure: bool,
    /// Sectors that cannot be read become zeros, and the report tells which. Without, they end the conversion.
    pub skip_bad: bool,
    /// Whether data is shared with the source instead of copied.
    pub reflink: Reflink,
}

impl ConvertRequest {
    /// The usual way: durable, on all processors, shared where that can be.
    #[must_use]
    pub fn new(source: PathBuf, target: PathBuf, to: ConvertTo) -> Self {
        Self {
            source,
            options: DiskOptions::default(),
            target,
            to,
            format: None,
            identity: Identity::fresh(),
            durable: true,
            threads: threads::for_copying(),
            foreign: None,
            azure: false,
            skip_bad: false,
            reflink: Reflink::default(),
        }
    }
}

impl ConvertRequest {
    /// Size of the new disk, made of one of `size` bytes.
    fn new_size(&self, size: u64) -> u64 {
        match self.azure {
            true => size.max(AZURE_LEAST).checked_next_multiple_of(AZURE_UNIT).unwrap_or(u64::MAX),
            false => size,
        }
    }

    /// What is made.
    fn what(&self, size: u64) -> NewDisk {
        let size = self.new_size(size);
        match self.to {
            ConvertTo::Raw => NewDisk::Raw { size },
            ConvertTo::Fixed => NewDisk::Fixed { size },
            ConvertTo::Dynamic { block_size } => NewDisk::Dynamic { size, block_size },
        }
    }

    fn target_options(&self) -> DiskOptions {
        DiskOptions { format: self.format, ..DiskOptions::default() }
    }
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the disk dealt with.
    pub done: u64,
    /// Size of the disk in bytes.
    pub total: u64,
}

/// What a conversion did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConvertReport {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Bytes that were written; what was neither written nor shared is zeros.
    pub copied: u64,
    /// Bytes that were not copied: the new file shares their space with the source until either is written to.
    pub shared: u64,
    /// What could not be read and is zeros in the new disk, in its order; only with [`ConvertRequest::skip_bad`].
    pub bad: Vec<BadRange>,
    /// What was strange about the source.
    pub warnings: Vec<ChainWarning>,
}

/// Why a conversion failed. No file is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The source cannot be opened.
    #[error("cannot open the disk to convert")]
    Source(#[from] OpenError),
    /// The source is another program's and cannot be read.
    #[error("cannot open the disk to convert")]
    Foreign(#[from] ForeignError),
    /// A medium does not give its bytes back.
    #[error("{} has sectors that cannot be read: {first}; the first of them. --skip-bad goes on with zeros instead", path.display())]
    Unreadable {
        /// Top of the source.
        path: PathBuf,
        /// Where.
        first: BadRange,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The target cannot be made.
    #[error("cannot make the new disk")]
    Target(#[from] CreateError),
    /// A read failed.
    #[error("cannot read {} at {offset}", path.display())]
    Read {
        /// Top of the source.
        path: PathBuf,
        /// Offset in the disk.
        offset: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A write failed.
    #[error("cannot write {}", path.display())]
    Write {
        /// The target.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Data was to be shared, and cannot be.
    #[error("{} cannot share its data with {}: {why}. Without --reflink=always it is copied", source_file.display(), path.display())]
    NotShared {
        /// The target.
        path: PathBuf,
        /// The file of the source.
        source_file: PathBuf,
        /// What is in the way.
        why: &'static str,
    },
    /// It was asked to stop.
    #[error("the conversion was cancelled; {} was not made", path.display())]
    Cancelled {
        /// The target.
        path: PathBuf,
    },
}

/// Converts a disk. `progress` is called from the copying threads; setting `cancel` ends the work soon.
///
/// # Errors
/// [`ConvertError`]; nothing is left of the target.
pub fn convert(
    fs: &Arc<dyn FileSystem>,
    request: &ConvertRequest,
    progress: &(dyn Fn(Progress) + Sync),
    cancel: &AtomicBool,
) -> Result<ConvertReport, ConvertError> {
    let chain = open_source(fs, request, cancel)?;
    let size = chain.top().map_or(0, |top| top.size);
    let temp = TempFile::create(fs, &request.target)
        .map_err(|source| ConvertError::Target(crate::create::failed(&request.target, source)))?;
    let sharing = Sharing::find(request, &chain, temp.file().as_ref())?;
    check_space(fs, request, &chain, size, &sharing)?;
    let target = Target::new(fs, request, &temp, size)?;
    let (copied, shared, bad) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(BadRanges::default()));
    let job = Job {
        request,
        layers: &chain.layers,
        target: &target,
        size,
        progress,
        cancel,
        sharing: &sharing,
        copied: &copied,
        shared: &shared,
        bad: &bad,
    };
    job.run()?;
    target.finish().map_err(|source| write_error(request, source))?;
    let commit = if request.durable { temp.commit() } else { temp.commit_unsynced() };
    commit.map_err(|source| write_error(request, source))?;
    let bad = bad.into_inner().unwrap_or_else(PoisonError::into_inner).into_list();
    Ok(ConvertReport {
        size: request.new_size(size),
        copied: copied.into_inner(),
        shared: shared.into_inner(),
        bad,
        warnings: chain.warnings,
    })
}

/// The files that a conversion reads, the source first. A foreign source is not opened by QEMU for that.
///
/// # Errors
/// [`ConvertError`].
pub fn source_files(
    fs: &Arc<dyn FileSystem>,
    request: &ConvertRequest,
) -> Result<Vec<PathBuf>, ConvertError> {
    if let Some(how) = request.foreign {
        return Ok(files_of(fs, &request.source, how)?);
    }
    let how = DiskOptions { read_only: true, gate: None, changed: None, ..request.options.clone() };
    let chain = Chain::open(fs, &request.source, &how)?;
    Ok(chain.layers.iter().map(|layer| layer.path.clone()).collect())
}

/// The source with all its parents.
fn open_source(
    fs: &Arc<dyn FileSystem>,
    request: &ConvertRequest,
    cancel: &AtomicBool,
) -> Result<Chain, ConvertError> {
    let Some(how) = request.foreign else {
        let how = DiskOptions { read_only: true, gate: None, changed: None, ..request.options.clone() };
        return Ok(Chain::open(fs, &request.source, &how)?);
    };
    let cancelled = |error| match error {
        ForeignError::Cancelled { .. } => ConvertError::Cancelled { path: request.target.clone() },
        other => other.into(),
    };
    let Foreign { file, size, files } = Foreign::open(fs, &request.source, how, cancel).map_err(cancelled)?;
    let path = files.into_iter().next().unwrap_or_else(|| request.source.clone());
    Ok(Chain::of_layer(Layer::of_shown(path, file, size)))
}

/// What [`convert`] would do, as far as can be told without reading the content: zeros that it finds on the way it leaves
/// out as well, and with them blocks of a dynamic target that would hold nothing else.
///
/// # Errors
/// [`ConvertError`].
pub fn plan_convert(fs: &Arc<dyn FileSystem>, request: &ConvertRequest) -> Result<ConvertPlan, ConvertError> {
    let chain = open_source(fs, request, &AtomicBool::new(false))?;
    let size = chain.top().map_or(0, |top| top.size);
    let data = data_in(&chain.layers, 0, size).map_err(|source| ConvertError::Read {
        path: request.source.clone(),
        offset: 0,
        source,
    })?;
    let ranges: Vec<_> = data.into_iter().map(|(offset, len)| offset..offset + len).collect();
    let path = || request.target.clone();
    let what = request.what(size);
    let created = NewDiskPlan::new(fs, &request.target, &what, request.identity, &request.target_options())?;
    match created.like() {
        Like::Raw => plan(&PlanTarget::Raw { size: request.new_size(size) }, &ranges),
        Like::Vhd(options) => plan(&PlanTarget::Vhd(options), &ranges),
        Like::Vhdx(options) => {
            let planned = vhdx::convert::plan(&options, &ranges);
            return Ok(planned.map_err(|source| CreateError::InvalidVhdx { path: path(), source })?);
        }
    }
    .map_err(|source| CreateError::Invalid { path: path(), source }.into())
}

fn write_error(request: &ConvertRequest, source: io::Error) -> ConvertError {
    ConvertError::Write { path: request.target.clone(), source }
}

fn check_space(
    fs: &Arc<dyn FileSystem>,
    request: &ConvertRequest,
    chain: &Chain,
    size: u64,
    sharing: &Sharing,
) -> Result<(), ConvertError> {
    let mut needed = 0;
    let mut count = |run: Run<'_>| needed += if sharing.takes(&run) { 0 } else { run.len };
    match request.to {
        ConvertTo::Fixed => needed = request.new_size(size),
        ConvertTo::Raw | ConvertTo::Dynamic { .. } => {
            match visit_runs(&chain.layers, 0, size, &mut count) {
                Ok(()) => {}
                // Then nobody knows.
                Err(error) if request.skip_bad && is_medium(&error) => needed = 0,
                Err(source) => {
                    return Err(ConvertError::Read { path: request.source.clone(), offset: 0, source });
                }
            }
        }
    }
    let path = || request.target.clone();
    let free = fs
        .free_space(folder_of(&request.target))
        .map_err(|source| CreateError::Io { path: path(), source })?;
    if needed > free {
        return Err(CreateError::NoSpace { path: path(), needed, free }.into());
    }
    Ok(())
}

/// The parts of a range that are in files and not in holes of them: offset and length.
fn data_in(layers: &[Arc<Layer>], start: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    visit_runs(layers, start, len, &mut |Run { at, len, .. }| match found.last_mut() {
        Some((start, before)) if *start + *before == at => *before += len,
        _ => found.push((at, len)),
    })?;
    Ok(found)
}

struct Job<'a> {
    request: &'a ConvertRequest,
    layers: &'a [Arc<Layer>],
    target: &'a Target,
    size: u64,
    progress: &'a (dyn Fn(Progress) + Sync),
    cancel: &'a AtomicBool,
    sharing: &'a Sharing,
    copied: &'a AtomicU64,
    shared: &'a AtomicU64,
    bad: &'a Mutex<BadRanges>,
}

impl Job<'_> {
    fn run(&self) -> Result<(), ConvertError> {
        let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let failure = Mutex::new(None);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..self.request.threads.max(1) {
                scope.spawn(|| {
                    if let Err(error) = self.copy_claims(&next, &done, &stop) {
                        stop.store(true, Relaxed);
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                });
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Copies one claim after the other until none is left.
    fn copy_claims(&self, next: &AtomicU64, done: &AtomicU64, stop: &AtomicBool) -> Result<(), ConvertError> {
        let mut buf = vec![0; CHUNK];
        loop {
            let start = next.fetch_add(CLAIM, Relaxed);
            if start >= self.size || stop.load(Relaxed) {
                return Ok(());
            }
            if self.cancel.load(Relaxed) {
                return Err(ConvertError::Cancelled { path: self.request.target.clone() });
            }
            let len = CLAIM.min(self.size - start);
            self.copy_range(start, len, &mut buf)?;
            let total_done = done.fetch_add(len, Relaxed) + len;
            (self.progress)(Progress { done: total_done, total: self.size });
            if self.request.durable && total_done % WRITEBACK < len {
                self.target.start_writeback();
            }
        }
    }

    fn copy_range(&self, start: u64, len: u64, buf: &mut Vec<u8>) -> Result<(), ConvertError> {
        if self.sharing.is_possible() {
            match runs_in(self.layers, start, len) {
                // Which part of it that is about shows when it is read.
                Err(error) if is_medium(&error) => return self.copy_data(start, len, buf),
                Err(source) => return Err(self.read_error(start, source)),
                Ok(runs) => return self.share_runs(start..start + len, &runs, buf),
            }
        }
        let data = match data_in(self.layers, start, len) {
            Err(error) if is_medium(&error) => vec![(start, len)],
            found => found.map_err(|source| self.read_error(start, source))?,
        };
        data.into_iter().try_for_each(|(offset, len)| self.copy_data(offset, len, buf))
    }

    /// Shares what can be shared of some runs, and copies the rest.
    fn share_runs(&self, claim: Range<u64>, runs: &[Run<'_>], buf: &mut Vec<u8>) -> Result<(), ConvertError> {
        for run in runs {
            // It may go on outside of what this thread took on.
            let cut = run.at == claim.start || run.at + run.len == claim.end;
            if self.sharing.takes(run) || (cut && self.sharing.fits(run)) {
                let from = (run.layer, run.file_offset);
                match self.target.fill(run.at, from, run.len, buf) {
                    Ok(filled) => {
                        self.shared.fetch_add(filled.shared, Relaxed);
                        self.copied.fetch_add(filled.copied, Relaxed);
                        continue;
                    }
                    Err(CopyError::Write(source)) => return Err(write_error(self.request, source)),
                    // Where exactly shows when it is copied.
                    Err(CopyError::Read(_)) => {}
                }
            }
            self.copy_data(run.at, run.len, buf)?;
        }
        Ok(())
    }

    /// Copies a range, zeros left out.
    fn copy_data(&self, offset: u64, len: u64, buf: &mut Vec<u8>) -> Result<(), ConvertError> {
        buf.resize(CHUNK, 0);
        let mut at = offset;
        while at < offset + len {
            let step = usize::try_from(offset + len - at).unwrap_or(CHUNK).min(CHUNK);
            let Some(part) = buf.get_mut(..step) else { break };
            match read_chain(self.layers, at, part, true) {
                Err(error) if is_medium(&error) => self.read_around(at, part, error)?,
                read => read.map_err(|source| self.read_error(at, source))?,
            }
            self.write_data(at, part)?;
            at += step as u64;
        }
        Ok(())
    }

    fn read_error(&self, offset: u64, source: io::Error) -> ConvertError {
        ConvertError::Read { path: self.request.source.clone(), offset, source }
    }

    /// Reads what a medium gives of a range that it did not give as a whole, or tells where the first loss is.
    fn read_around(&self, offset: u64, buf: &mut [u8], error: io::Error) -> Result<(), ConvertError> {
        let path = || self.request.source.clone();
        let skip = self.request.skip_bad;
        let found = read_around(self.layers, offset, buf, !skip).map_err(|source| ConvertError::Read {
            path: path(),
            offset,
            source,
        })?;
        // A second attempt may have gone well.
        if let Some(first) = found.first().filter(|_| !skip) {
            return Err(ConvertError::Unreadable { path: path(), first: first.clone(), source: error });
        }
        let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        bad.add(found).map_err(|source| ConvertError::Read { path: path(), offset, source })
    }

    /// Writes what is not zero; short runs of zeros in between are written along.
    fn write_data(&self, offset: u64, data: &[u8]) -> Result<(), ConvertError> {
        let write = |from: usize, to: usize| {
            let Some(part) = data.get(from..to).filter(|part| !part.is_empty()) else { return Ok(()) };
            self.copied.fetch_add(part.len() as u64, Relaxed);
            self.target.write(offset + from as u64, part).map_err(|source| write_error(self.request, source))
        };
        let (mut start, mut end, mut at) = (0, 0, 0);
        while at < data.len() {
            let (run_end, zero) = zero::next_run(data, offset, at);
            if !zero {
                if at - end >= GAP || end == start {
                    write(start, end)?;
                    start = at;
                }
                end = run_end;
            }
            at = run_end;
        }
        write(start, end)
    }
}

//! An open disk.

use crate::{
    backend::{Backend, BatchDone, BatchOp, BlockStatus, ZeroMode},
    chain::{Chain, ChainWarning},
    create::settle,
    error::OpenError,
    fs::{FileSystem, HostFs},
    image::ImageInfo,
    layer::Layer,
    merge::{MergeSlot, Routing},
    options::DiskOptions,
    quiesce::{Quiesce, StillBusy, Using},
    stats::{Counters, DiskStats, Op},
    status::{self, Holes},
    walk::{Place, walk, walk_known},
};
use backstay_vhd::{Format, LayerFormat, MetaError};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Acquire},
    },
    time::{Duration, Instant},
};
use uuid::Uuid;

/// How long a close or a layer switch waits for requests in flight.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// A disk: the top of a chain and its parents, or a raw file.
///
/// Dropping it closes it; use [`Disk::close`] to learn whether that went well.
#[derive(Debug)]
pub struct Disk {
    pub(crate) fs: Arc<dyn FileSystem>,
    pub(crate) options: DiskOptions,
    pub(crate) chain: Quiesce<Chain>,
    pub(crate) size: AtomicU64,
    /// Unit of requests in bytes; that of all layers.
    sector: u32,
    pub(crate) merging: MergeSlot,
    counters: Counters,
}

/// One file of a chain, for people and programs.
#[derive(Clone, Debug)]
pub struct LayerInfo {
    /// The file.
    pub path: PathBuf,
    /// What the VHD or VHDX says about itself; `None` for a raw file.
    pub image: Option<ImageInfo>,
    /// What children name it by, as of now; `None` for a raw file.
    pub identity: Option<Uuid>,
    /// Bytes a user sees.
    pub size: u64,
    /// Blocks in the file now; 0 for raw and fixed disks.
    pub allocated_blocks: u32,
}

impl LayerInfo {
    /// Writes make its file longer: a dynamic or differencing disk.
    #[must_use]
    pub fn grows(&self) -> bool {
        self.image.as_ref().is_some_and(|image| image.disk_type() != backstay_vhd::DiskType::Fixed)
    }

    /// `vhd`, `vhdx` or `raw`.
    #[must_use]
    pub fn format(&self) -> &'static str {
        match self.image.as_ref().map(ImageInfo::format) {
            None => "raw",
            Some(Format::Vhd) => "vhd",
            Some(Format::Vhdx) => "vhdx",
        }
    }
}

/// Why a disk could not be closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// Requests hang.
    #[error("requests to {} have been in flight for more than 10 seconds; its storage does not answer", path.display())]
    Busy {
        /// Top of the chain.
        path: PathBuf,
    },
    /// The last flush failed.
    #[error("cannot write the last changes to {}", path.display())]
    Io {
        /// Top of the chain.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Disk {
    /// Opens a disk of the host with all its parents: for writing under an exclusive lock, else under a shared one;
    /// parents always only for reading, under shared locks.
    ///
    /// # Errors
    /// [`OpenError`] names the file and the cure.
    pub fn open(path: &Path, options: DiskOptions) -> Result<Arc<Self>, OpenError> {
        Self::open_on(HostFs::shared(), path, options)
    }

    /// Like [`Disk::open`] on any file system.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn open_on(
        fs: Arc<dyn FileSystem>,
        path: &Path,
        options: DiskOptions,
    ) -> Result<Arc<Self>, OpenError> {
        let mut chain = Chain::open(&fs, path, &options)?;
        let unsettled = if options.read_only { Vec::new() } else { chain.unsettled() };
        if !unsettled.is_empty() {
            // Bits of writes to a parent, by a process that merged into it and died: a flush of the top must cover them.
            drop(chain);
            unsettled.iter().try_for_each(|(parent, format)| settle(&fs, parent, *format, &options))?;
            chain = Chain::open(&fs, path, &options)?;
        }
        let size = chain.top().map_or(0, |top| top.size);
        let sector = chain.top().map_or(512, |top| top.sector_size());
        Ok(Arc::new(Self {
            fs,
            options,
            chain: Quiesce::new(chain),
            size: AtomicU64::new(size),
            sector,
            merging: MergeSlot::default(),
            counters: Counters::default(),
        }))
    }

    /// What was strange about the files when they were opened.
    #[must_use]
    pub fn warnings(&self) -> Vec<ChainWarning> {
        self.chain.enter().warnings.clone()
    }

    /// The files, the top first.
    #[must_use]
    pub fn chain(&self) -> Vec<LayerInfo> {
        self.chain.enter().layers.iter().map(describe).collect()
    }

    /// The file that is written to.
    #[must_use]
    pub fn top_path(&self) -> PathBuf {
        self.chain.enter().top().map(|top| top.path.clone()).unwrap_or_default()
    }

    /// What was done since it was opened.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        self.counters.snapshot()
    }

    /// Lets requests in flight end, makes everything durable, tidies the file up and lets go of all files. Later
    /// requests fail. Closing twice is fine.
    ///
    /// # Errors
    /// If requests hang or the last flush fails. The files are let go all the same in the second case.
    pub fn close(&self) -> Result<(), CloseError> {
        let busy = |StillBusy| CloseError::Busy { path: self.top_path() };
        let deadline = Instant::now() + DRAIN;
        self.merging.close(deadline).map_err(busy)?;
        let mut chain = self.chain.quiesce(deadline).map_err(busy)?;
        if std::mem::replace(&mut chain.closed, true) {
            return Ok(());
        }
        let layers = std::mem::take(chain.layers.edit());
        let closed = match layers.first() {
            Some(top) if !self.options.read_only => {
                top.close().map_err(|source| CloseError::Io { path: top.path.clone(), source })
            }
            _ => Ok(()),
        };
        // Only a merge that could not end leaves it so.
        let lower = layers.get(1).filter(|_| chain.routing.is_some());
        let closed = lower
            .map_or(Ok(()), |lower| {
                lower.close().map_err(|source| CloseError::Io { path: lower.path.clone(), source })
            })
            .and(closed);
        let_go(&layers);
        closed
    }

    /// Lets go of all files at once as the death of the process would: nothing is flushed. For tests.
    #[doc(hidden)]
    pub fn abandon(&self) {
        let deadline = Instant::now() + DRAIN;
        let _dies_with_the_rest = self.merging.close(deadline);
        if let Ok(mut chain) = self.chain.quiesce(deadline) {
            chain.closed = true;
            let_go(&std::mem::take(chain.layers.edit()));
        }
    }

    /// Makes every acknowledged write durable. The wait for the device is outside of the gate, so that a layer switch
    /// need not wait for it.
    fn flush_all(&self) -> io::Result<()> {
        loop {
            let (top, lower) = {
                let chain = self.enter()?;
                let Some(top) = chain.top().filter(|_| !self.options.read_only) else { return Ok(()) };
                let lower = chain.routing.as_ref().zip(chain.layers.get(1));
                (Arc::clone(top), lower.map(|(routing, lower)| (Arc::clone(routing), Arc::clone(lower))))
            };
            let flushed = match &lower {
                None => top.flush(),
                Some((routing, lower)) => routing.flush_lower(lower).and_then(|()| top.flush()),
            };
            // A layer that was taken off or closed meanwhile was flushed for that, and takes no flush any more.
            if flushed.is_ok() || self.is_still(&top, lower.as_ref().map(|(routing, _)| routing)) {
                return flushed;
            }
        }
    }

    fn is_still(&self, top: &Arc<Layer>, routing: Option<&Arc<Routing>>) -> bool {
        let chain = self.chain.enter();
        let same_top = chain.top().is_some_and(|now| Arc::ptr_eq(now, top));
        same_top && chain.routing.as_ref().map(Arc::as_ptr) == routing.map(Arc::as_ptr)
    }

    /// Enters the gate for one request.
    pub(crate) fn enter(&self) -> io::Result<Using<'_, Chain>> {
        let chain = self.chain.enter();
        if chain.closed { Err(MetaError::Closed.into()) } else { Ok(chain) }
    }

    /// Enters the gate for a request that changes something in that range.
    pub(crate) fn enter_to_write(&self, offset: u64, len: u64) -> io::Result<Using<'_, Chain>> {
        if self.options.read_only {
            return Err(MetaError::ReadOnly.into());
        }
        loop {
            let chain = self.enter()?;
            match &chain.holds {
                Some(holds) if holds.meets(offset, len) => {
                    let holds = Arc::clone(holds);
                    drop(chain);
                    holds.wait(offset, len);
                }
                _ => return Ok(chain),
            }
        }
    }

    pub(crate) fn changed(&self, offset: u64, len: u64) {
        if let Some(changed) = &self.options.changed {
            changed.changed(offset, len);
        }
    }

    pub(crate) fn count(&self, op: Op, result: io::Result<()>) -> io::Result<()> {
        self.counters.count(op, result)
    }

    pub(crate) fn check_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let size = self.size.load(Acquire);
        if !(offset | len).is_multiple_of(u64::from(self.sector)) {
            return Err(MetaError::UnalignedTo { offset, len, sector: self.sector }.into());
        }
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(MetaError::OutOfRange { offset, len, size }.into());
        }
        Ok(())
    }

    fn read_with(&self, offset: u64, buf: &mut [u8], wait: bool) -> io::Result<()> {
        let len = buf.len() as u64;
        self.check_range(offset, len)?;
        let chain = self.enter()?;
        fill_from(buf, wait, &mut |visit| walk_known(&chain.layers, offset, len, visit))
    }
}

/// Drops the locks at once, also where a flush that came too late still has the file.
fn let_go(layers: &[Arc<Layer>]) {
    for layer in layers {
        let _closing_drops_it_too = layer.file.unlock();
    }
}

/// One layer, for people and programs.
pub(crate) fn describe(layer: &Arc<Layer>) -> LayerInfo {
    LayerInfo {
        path: layer.path.clone(),
        image: layer.info().cloned(),
        identity: layer.identity(),
        size: layer.size,
        allocated_blocks: layer.image().map_or(0, LayerFormat::allocated_blocks),
    }
}

/// Fills `buf` from a chain. With `wait` false it fails with `WouldBlock` rather than wait for a device.
pub(crate) fn read_chain(layers: &[Arc<Layer>], offset: u64, buf: &mut [u8], wait: bool) -> io::Result<()> {
    let len = buf.len() as u64;
    fill_from(buf, wait, &mut |visit| walk(layers, offset, len, visit))
}

/// Visits the places of a range, in order and without gaps.
type Visit<'a, 'v> = &'v mut dyn FnMut(u64, u64, Place<'a>) -> io::Result<()>;

/// Fills `buf` from the places that `walk` visits.
fn fill_from<'a>(
    buf: &mut [u8],
    wait: bool,
    walk: &mut dyn FnMut(Visit<'a, '_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut rest = buf;
    walk(&mut |_, len, place| {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(rest.len());
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(len);
        rest = behind;
        match place {
            Place::Data { layer, file_offset } => layer.read_data(part, file_offset, wait),
            Place::Nowhere => {
                part.fill(0);
                Ok(())
            }
        }
    })
}

impl Backend for Disk {
    fn size(&self) -> u64 {
        self.size.load(Acquire)
    }

    fn sector_size(&self) -> u32 {
        self.sector
    }

    fn read_only(&self) -> bool {
        self.options.read_only
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let result = self.read_with(offset, buf, true);
        self.counters.count(Op::Read(buf.len() as u64), result)
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self.read_with(offset, buf, false) {
            // Not a failure: the caller comes again with `read`.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            result => self.counters.count(Op::Read(buf.len() as u64), result),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let len = data.len() as u64;
        let result = self.check_range(offset, len).and_then(|()| self.write_chain(offset, data));
        self.counters.count(Op::Write(len), result)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> io::Result<()> {
        let result = self.check_range(offset, len).and_then(|()| self.zero_chain(offset, len, mode));
        self.counters.count(Op::Zero, result)
    }

    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        let result = self.check_range(offset, len).and_then(|()| self.trim_chain(offset, len));
        self.counters.count(Op::Trim, result)
    }

    fn flush(&self) -> io::Result<()> {
        self.counters.count(Op::Flush, self.flush_all())
    }

    fn block_status(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockStatus>> {
        self.check_range(offset, len)?;
        status::block_status(&self.enter()?.layers, offset, len, limit, Holes::All)
    }

    fn batches(&self) -> bool {
        self.is_past_cache()
    }

    fn batch(&self, ops: Vec<BatchOp<'_>>, done: BatchDone<'_>) {
        self.run_batch(ops, done);
    }

    fn zeros_to_skip(&self, offset: u64, len: u64, limit: usize) -> io::Result<Vec<BlockStatus>> {
        self.check_range(offset, len)?;
        status::block_status(&self.enter()?.layers, offset, len, limit, Holes::OfFlatFiles)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(error = &error as &dyn std::error::Error, "disk was not closed cleanly");
        }
    }
}

//! Another size for a disk.
//!
//! The top file is closed, changed in an order that no crash makes wrong (`backstay_vhd::resize`, `vhdx::resize`), and opened again.
//! On a disk in use that happens while requests are held back, some milliseconds; what takes longer, space for a fixed disk, is
//! reserved before.

mod control;
mod error;
mod offline;
pub(crate) mod partition;
mod used;

pub use control::ResizeControl;
pub use error::ResizeError;
pub use offline::{NewSize, ResizePlan, plan_resize, resize_offline};
pub use used::UsedBy;

use crate::{
    backend::Backend,
    disk::{DRAIN, Disk},
    error::OpenError,
    fs::{FileKind, FileSystem},
    image::{AnyImage, ImageInfo},
    layer::{Body, Layer, NextIdentity},
    options::DiskOptions,
};
use backstay_vhd::{DiskType, FileSpan, OpenOptions, SizeRule, Storage, plan::PlanError, resize};
use std::{
    io::{self, ErrorKind},
    sync::{
        Arc,
        atomic::Ordering::{Acquire, Release},
    },
    time::Instant,
};

/// A disk that has another size now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Size before, in bytes.
    pub old: u64,
    /// Size now.
    pub new: u64,
}

impl Disk {
    /// Makes an open disk larger, durably; what is new reads as zeros. Requests wait some milliseconds, and
    /// [`Backend::size`] says the new size from then on. A disk that has the size already is left as it is.
    ///
    /// Only the top file changes: parents stay smaller. What was prepared as the next top, and is not yet one, has the old
    /// size and is refused by a switch: prepare it again.
    ///
    /// # Errors
    /// [`ResizeError`]; the disk is as before, or, if it says that the file cannot be opened again, takes no more writes
    /// until it is opened anew.
    pub fn grow(&self, size: u64) -> Result<Grown, ResizeError> {
        let old = self.size.load(Acquire);
        if size < old {
            return Err(ResizeError::Smaller { path: self.top_path(), size: old, wanted: size });
        }
        self.resize_top(size, &ResizeControl::new())
    }

    /// Gives the top file another size; what lies behind it is lost.
    fn resize_top(&self, size: u64, control: &ResizeControl) -> Result<Grown, ResizeError> {
        let path = || self.top_path();
        if self.options.read_only {
            return Err(ResizeError::ReadOnly { path: path() });
        }
        let Some(_turn) = self.merging.begin() else {
            return Err(match self.merging.closing() {
                true => ResizeError::Closed { path: path() },
                false => ResizeError::Busy { path: path() },
            });
        };
        let top = self.chain.enter().top().cloned().ok_or_else(|| ResizeError::Closed { path: path() })?;
        let old = top.size;
        check(&top, size)?;
        if size == old {
            return Ok(Grown { old, new: old });
        }
        if self.fs.metadata(&top.path).is_ok_and(|meta| meta.kind == FileKind::BlockDevice) {
            return Err(ResizeError::Device { path: top.path.clone() });
        }
        if size > old {
            let below = self.chain.enter().layers.get(1).cloned();
            refuse_larger_parent(&top, below.as_deref())?;
        }
        reserve(&top, size, control)?;
        // What is durable already need not be waited for while requests wait.
        let _whoever_flushes_meets_the_failure = self.flush();
        let mut chain = self
            .chain
            .quiesce(Instant::now() + DRAIN)
            .map_err(|_| ResizeError::Hanging { path: top.path.clone() })?;
        if !chain.layers.is_top(&top) {
            return Err(ResizeError::Closed { path: top.path.clone() });
        }
        // A file that is closed and for lack of space not opened again would be worse than one that keeps its size.
        top.settle().map_err(|error| failed(&top, size, 1 << 20, "write the last changes to", error))?;
        let changed = change(&top, size);
        // Also after a failure: the file says itself which size it has.
        let again = self.open_again(&top, changed.is_ok().then_some(size));
        match again {
            Ok(layer) => {
                // After a failed sync nothing is known about what was written before.
                if matches!(changed, Err(ResizeError::Io { .. })) {
                    layer.fail();
                }
                self.size.store(layer.size, Release);
                chain.layers.set_top(Arc::new(layer));
                drop(chain);
                changed?;
                self.changed(old.min(size), old.abs_diff(size));
                Ok(Grown { old, new: size })
            }
            Err(source) => {
                top.fail();
                changed?;
                Err(ResizeError::Open { path: top.path.clone(), source: Box::new(source) })
            }
        }
    }

    /// The layer as its file is now.
    fn open_again(&self, top: &Layer, raw_size: Option<u64>) -> Result<Layer, OpenError> {
        match &top.body {
            Body::Image(_) => top.reopen_writable(&self.fs, &self.options),
            Body::Raw(_) => {
                let size = raw_size.unwrap_or(top.size);
                Ok(Layer::raw(top.path.clone(), Arc::clone(&top.file), size, top.file_writable))
            }
        }
    }
}

/// Makes a layer larger that is open for writing, and that at most readers of its present content use. It is closed afterwards; what
/// it is now.
pub(crate) fn grow_layer(
    fs: &Arc<dyn FileSystem>,
    options: &DiskOptions,
    layer: &Layer,
    size: u64,
    next: NextIdentity,
) -> Result<Layer, ResizeError> {
    check(layer, size)?;
    reserve(layer, size, &ResizeControl::new())?;
    change(layer, size)?;
    let again = layer.reopen_as(fs, options, next);
    again.map_err(|source| ResizeError::Open { path: layer.path.clone(), source: Box::new(source) })
}

/// A disk that ends before its parent does hides what that has behind, and would show it if it grew.
pub(crate) fn refuse_larger_parent(layer: &Layer, parent: Option<&Layer>) -> Result<(), ResizeError> {
    match parent.filter(|parent| parent.size > layer.size) {
        None => Ok(()),
        Some(parent) => {
            let (path, parent) = (layer.path.clone(), parent.path.clone());
            Err(ResizeError::ParentLarger { path, size: layer.size, parent })
        }
    }
}

/// Refuses sizes that the format does not have.
fn check(layer: &Layer, size: u64) -> Result<(), ResizeError> {
    let checked = match &layer.body {
        Body::Image(AnyImage::Vhdx(image)) => image.plan_resize(size).map(drop),
        Body::Image(AnyImage::Vhd(_)) | Body::Raw(_) if !size.is_multiple_of(512) || size == 0 => {
            Err(resize::ResizeError::Unaligned { size, sector: 512 })
        }
        Body::Image(AnyImage::Vhd(_)) => resize::check_size(size),
        Body::Raw(_) => Ok(()),
    };
    checked.map_err(|source| ResizeError::Unsuitable { path: layer.path.clone(), source })
}

/// The space that a fixed disk needs behind the present end of its file.
fn needs(layer: &Layer, size: u64) -> Result<Option<FileSpan>, ResizeError> {
    let fixed = layer.info().is_some_and(|info| info.disk_type() == DiskType::Fixed);
    if !fixed || size <= layer.size {
        return Ok(None);
    }
    let offset = layer.file.len().map_err(|source| io_error(layer, "read the length of", source))?;
    let len = match layer.any_image().and_then(AnyImage::vhdx) {
        Some(image) => image.plan_resize(size).map_or(0, |plan| plan.reserve),
        None => size - layer.size,
    };
    Ok(Some(FileSpan { offset, len }).filter(|span| span.len > 0))
}

/// Reserves it, without making the file longer.
fn reserve(layer: &Layer, size: u64, control: &ResizeControl) -> Result<(), ResizeError> {
    // Some file systems take seconds for a GiB.
    const PART: u64 = 256 << 20;
    let Some(span) = needs(layer, size)? else { return Ok(()) };
    control.begin(span.len);
    let mut done = 0;
    while done < span.len {
        let part = PART.min(span.len - done);
        let reserved = match control.is_cancelled() {
            true => Err(ResizeError::Cancelled { path: layer.path.clone() }),
            false => match layer.file.allocate(span.offset + done, part) {
                Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(()),
                other => {
                    other.map_err(|error| failed(layer, size, span.len - done, "reserve space for", error))
                }
            },
        };
        if reserved.is_err() {
            // What was reserved lies behind the end of the file and goes with it.
            let _costs_only_space = layer.file.set_len(span.offset);
            return reserved;
        }
        done += part;
        control.passed(part);
    }
    Ok(())
}

/// Changes the file. It is closed then, well or not.
fn change(layer: &Layer, size: u64) -> Result<(), ResizeError> {
    let needed = size.saturating_sub(layer.size);
    match &layer.body {
        Body::Raw(raw) => {
            let done = raw.check().and_then(|()| layer.file.set_len(size)).and_then(|()| layer.file.flush());
            done.map_err(|error| failed(layer, size, needed, "change the length of", error))
        }
        Body::Image(AnyImage::Vhd(_)) => {
            layer.close().map_err(|error| io_error(layer, "write the last changes to", error))?;
            let storage: &dyn Storage = layer.file.as_ref();
            let unsuitable = |source| ResizeError::Unsuitable { path: layer.path.clone(), source };
            let size_rule = match layer.info() {
                Some(ImageInfo::Vhd(info)) => info.size_rule,
                _ => SizeRule::default(),
            };
            let options = OpenOptions { size_rule, ..OpenOptions::default() };
            let plan = resize::plan(storage, &options, size).map_err(unsuitable)?;
            plan.execute(storage).map_err(|error| {
                let (PlanError::NoSpace { source, .. } | PlanError::Io { source, .. }) = error;
                failed(layer, size, needed, "write to", source)
            })
        }
        Body::Image(AnyImage::Vhdx(image)) => {
            let unsuitable = |source| ResizeError::Unsuitable { path: layer.path.clone(), source };
            let plan = image.plan_resize(size).map_err(unsuitable)?;
            let resized =
                image.resize(&plan).map_err(|error| failed(layer, size, needed, "write to", error.into()));
            let closed = layer.close().map_err(|error| io_error(layer, "write the last changes to", error));
            resized.and(closed)
        }
    }
}

fn io_error(layer: &Layer, action: &'static str, source: io::Error) -> ResizeError {
    ResizeError::Io { path: layer.path.clone(), action, source }
}

fn failed(layer: &Layer, size: u64, needed: u64, action: &'static str, source: io::Error) -> ResizeError {
    let path = layer.path.clone();
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            ResizeError::NoSpace { path, size, needed, source }
        }
        _ => ResizeError::Io { path, action, source },
    }
}

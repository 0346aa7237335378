//! One file of a chain.

use crate::{
    chain::ChainWarning,
    error::OpenError,
    fs::{DiskFile, FileId, FileKind, FileSystem, LockKind, OpenMode},
    image::{AnyImage, ImageInfo, ImageMode},
    options::{CacheMode, DiskFormat, DiskOptions},
    seams::GatedFile,
    shadow::ShadowFile,
};
use backstay_vhd::{DiskType, Format, LayerFormat, MetaError, ReadExtent, Source, Storage};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Release},
    },
};
use uuid::Uuid;

const SECTOR: u64 = 512;

/// An open, locked file with its format.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Absolute, links resolved.
    pub(crate) path: PathBuf,
    /// Every access of the engine goes through this one: it asks the gate.
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) body: Body,
    /// Bytes a user sees.
    pub(crate) size: u64,
    /// What the file says about itself, as of its opening; none of a raw file.
    info: Option<ImageInfo>,
    /// The file was opened for writing, whether or not it is written to now.
    pub(crate) file_writable: bool,
    /// What was strange when it was opened, beyond what the image says itself.
    pub(crate) warning: Option<ChainWarning>,
}

#[derive(Debug)]
pub(crate) enum Body {
    Raw(Raw),
    Image(AnyImage),
}

/// What a raw file needs beyond the file.
#[derive(Debug, Default)]
pub(crate) struct Raw {
    /// Rounds of flushing that have begun.
    begun: AtomicU64,
    /// The last round that ended well. Held during a round.
    done: Mutex<u64>,
    failed: AtomicBool,
}

/// How a layer is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerMode {
    pub(crate) writable: bool,
    pub(crate) format: DiskFormat,
}

/// How a VHDX is known to its children from the first write on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextIdentity {
    /// By a new id: those it has lose it.
    Fresh,
    /// By one that its child was told.
    Announced(Uuid),
}

impl Layer {
    /// Opens and locks a file: exclusively for writing, else shared.
    pub(crate) fn open(
        fs: &Arc<dyn FileSystem>,
        path: &Path,
        mode: LayerMode,
        options: &DiskOptions,
    ) -> Result<Self, OpenError> {
        let file = open_locked(fs, path, mode.writable)?;
        let path = fs.canonicalize(path).map_err(|error| OpenError::from_io(path, "resolve", error))?;
        let file: Arc<dyn DiskFile> = match &options.gate {
            Some(gate) if mode.writable => Arc::new(GatedFile { file, gate: Arc::clone(gate) }),
            _ => file,
        };
        let format = match mode.format {
            DiskFormat::Raw => {
                let len =
                    file.len().map_err(|error| OpenError::from_io(&path, "read the length of", error))?;
                if len == 0 {
                    return Err(OpenError::Empty { path });
                }
                go_past_cache(&path, &file, options);
                return Ok(Self::raw(path, file, len.next_multiple_of(SECTOR), mode.writable));
            }
            DiskFormat::Vhd => Format::Vhd,
            DiskFormat::Vhdx => Format::Vhdx,
        };
        let how =
            ImageMode { format, size_rule: options.size_rule, writable: mode.writable, data_write: None };
        let (image, warning) = open_image(fs, &path, &file, how, options)?;
        Ok(Self::of_image(path, file, image, mode.writable, warning))
    }

    /// A layer of a raw file of that size.
    pub(crate) fn raw(path: PathBuf, file: Arc<dyn DiskFile>, size: u64, file_writable: bool) -> Self {
        Self { path, file, body: Body::Raw(Raw::default()), size, info: None, file_writable, warning: None }
    }

    /// A layer of an image that is open.
    pub(crate) fn of_image(
        path: PathBuf,
        file: Arc<dyn DiskFile>,
        image: AnyImage,
        file_writable: bool,
        warning: Option<ChainWarning>,
    ) -> Self {
        let (size, info) = (image.size(), Some(image.info()));
        Self { path, file, body: Body::Image(image), size, info, file_writable, warning }
    }

    /// A file that is read only and whose bytes are those of a disk.
    pub(crate) fn of_shown(path: PathBuf, file: Arc<dyn DiskFile>, size: u64) -> Self {
        let body = Body::Raw(Raw::default());
        Self { path, file, body, size, info: None, file_writable: false, warning: None }
    }

    /// Makes a layer that was closed for writing writable again. The lock is already exclusive.
    pub(crate) fn reopen_writable(
        &self,
        fs: &Arc<dyn FileSystem>,
        options: &DiskOptions,
    ) -> Result<Self, OpenError> {
        self.reopen_on(Arc::clone(&self.file), fs, options, NextIdentity::Fresh)
    }

    /// As [`Layer::reopen_writable`], known to its children by `next` once it is written to.
    pub(crate) fn reopen_as(
        &self,
        fs: &Arc<dyn FileSystem>,
        options: &DiskOptions,
        next: NextIdentity,
    ) -> Result<Self, OpenError> {
        self.reopen_on(Arc::clone(&self.file), fs, options, next)
    }

    /// A layer that was closed for writing, opened again by another file with the same content. The lock is exclusive
    /// already.
    pub(crate) fn moved(
        &self,
        path: PathBuf,
        file: Arc<dyn DiskFile>,
        fs: &Arc<dyn FileSystem>,
        options: &DiskOptions,
    ) -> Result<Self, OpenError> {
        let Some(info) = &self.info else {
            let body = Body::Raw(Raw::default());
            return Ok(Self {
                path,
                file,
                body,
                size: self.size,
                info: None,
                file_writable: true,
                warning: None,
            });
        };
        let (format, size_rule) = (info.format(), options.size_rule);
        let how = ImageMode { format, size_rule, writable: true, data_write: None };
        let (image, warning) = open_image(fs, &path, &file, how, options)?;
        Ok(Self::of_image(path, file, image, true, warning))
    }

    fn reopen_on(
        &self,
        file: Arc<dyn DiskFile>,
        fs: &Arc<dyn FileSystem>,
        options: &DiskOptions,
        next: NextIdentity,
    ) -> Result<Self, OpenError> {
        let how = ImageMode {
            format: self.info.as_ref().map_or(Format::Vhd, ImageInfo::format),
            size_rule: options.size_rule,
            writable: true,
            data_write: match next {
                NextIdentity::Fresh => None,
                NextIdentity::Announced(id) => Some(id),
            },
        };
        let (image, warning) = open_image(fs, &self.path, &file, how, options)?;
        Ok(Self::of_image(self.path.clone(), file, image, true, warning))
    }

    /// Opens a parent for writing as well, under an exclusive lock that follows its shared one without a gap. Until it is
    /// put in the place of `self` or [`Layer::weaken`]ed, both may be used for reading.
    ///
    /// # Errors
    /// If somebody else reads it, or it cannot be written to. The shared lock is back then.
    pub(crate) fn strengthen(
        &self,
        fs: &Arc<dyn FileSystem>,
        options: &DiskOptions,
        next: NextIdentity,
    ) -> Result<Self, OpenError> {
        if self.file_writable {
            take_lock(fs, &self.path, self.file.as_ref(), LockKind::Exclusive)?;
            let tidied = self
                .close()
                .map_err(|error| OpenError::from_io(&self.path, "write the last changes to", error));
            let reopen = |()| self.reopen_on(Arc::clone(&self.file), fs, options, next);
            return tidied.and_then(reopen).inspect_err(|_| self.relock());
        }
        let open = |error| OpenError::from_io(&self.path, "open", error);
        let file = fs.open(&self.path, OpenMode::ReadWrite).map_err(open)?;
        if file.id() != self.id() {
            return Err(OpenError::Replaced { path: self.path.clone() });
        }
        take_lock(fs, &self.path, file.as_ref(), LockKind::Shared)?;
        self.file.unlock().map_err(open)?;
        let file: Arc<dyn DiskFile> = match &options.gate {
            Some(gate) => Arc::new(GatedFile { file, gate: Arc::clone(gate) }),
            None => file,
        };
        let opened = take_lock(fs, &self.path, file.as_ref(), LockKind::Exclusive)
            .and_then(|()| self.reopen_on(Arc::clone(&file), fs, options, next));
        opened.inspect_err(|_| {
            let _shared_with_self = file.lock(LockKind::Shared);
            self.relock();
        })
    }

    /// Ends the writing that [`Layer::strengthen`] began; afterwards the layer is a parent again, under a shared lock.
    pub(crate) fn weaken(&self) -> io::Result<()> {
        let closed = self.close();
        self.relock();
        closed
    }

    fn relock(&self) {
        if let Err(error) = self.file.lock(LockKind::Shared) {
            tracing::warn!(path = %self.path.display(), %error, "cannot weaken the lock of a parent");
        }
    }

    /// Refuses writes and flushes from now on: what was written to a file below may be lost.
    pub(crate) fn fail(&self) {
        match &self.body {
            Body::Image(image) => image.fail(),
            Body::Raw(raw) => raw.failed.store(true, Release),
        }
    }

    pub(crate) fn id(&self) -> FileId {
        self.file.id()
    }

    pub(crate) fn image(&self) -> Option<&dyn LayerFormat> {
        self.any_image().map(|image| &**image)
    }

    pub(crate) fn any_image(&self) -> Option<&AnyImage> {
        match &self.body {
            Body::Image(image) => Some(image),
            Body::Raw(_) => None,
        }
    }

    /// What the file says about itself, as of its opening.
    pub(crate) fn info(&self) -> Option<&ImageInfo> {
        self.info.as_ref()
    }

    /// What children name the file by, as of now.
    pub(crate) fn identity(&self) -> Option<Uuid> {
        self.image().map(LayerFormat::identity)
    }

    /// Whether the file is a child of one with that identity.
    pub(crate) fn is_child_of(&self, parent: Uuid) -> bool {
        self.image().is_some_and(|image| image.accepts_parent(parent))
    }

    /// Unit of requests in bytes.
    pub(crate) fn sector_size(&self) -> u32 {
        self.info.as_ref().map_or_else(|| self.file.sector_size(), ImageInfo::sector_size)
    }

    /// Bytes in a block; 0 where there are none.
    pub(crate) fn block_size(&self) -> u32 {
        self.info.as_ref().map_or(0, ImageInfo::block_size)
    }

    /// Whether the file keeps space for every sector.
    pub(crate) fn is_flat(&self) -> bool {
        self.info().is_none_or(|info| info.disk_type() == DiskType::Fixed)
    }

    /// Appends where each part of a range inside this layer is.
    pub(crate) fn resolve(&self, offset: u64, len: u64, out: &mut Vec<ReadExtent>) -> Result<(), MetaError> {
        match &self.body {
            Body::Image(image) => image.resolve_read(offset, len, out),
            Body::Raw(_) => {
                out.push(ReadExtent { len, source: Source::Data { file_offset: offset } });
                Ok(())
            }
        }
    }

    /// Reads bytes that [`Layer::resolve`] found here.
    pub(crate) fn read_data(&self, buf: &mut [u8], file_offset: u64, wait: bool) -> io::Result<()> {
        let read = |buf: &mut [u8]| match wait {
            true => self.file.read_at(buf, file_offset),
            false => self.file.try_read_at(buf, file_offset),
        };
        match (read(buf), &self.body) {
            // A raw file may end inside a sector; a guest of ours cannot have cut it shorter.
            (Err(error), Body::Raw(_)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let there = self.file.len()?.saturating_sub(file_offset);
                let there = usize::try_from(there).unwrap_or(usize::MAX).min(buf.len());
                let (head, tail) = buf.split_at_mut(there);
                tail.fill(0);
                read(head)
            }
            (result, _) => result,
        }
    }

    /// Makes everything acknowledged durable.
    pub(crate) fn flush(&self) -> io::Result<()> {
        match &self.body {
            Body::Image(image) => Ok(image.flush()?),
            Body::Raw(raw) => raw.flush(self.file.as_ref()),
        }
    }

    /// Closes a file that nothing is read from any more, without the work of making it tidy.
    pub(crate) fn retire(&self) -> io::Result<()> {
        match &self.body {
            Body::Image(AnyImage::Vhd(image)) => Ok(image.retire()?),
            // Its log would have to be replayed by whoever opens it by its old name.
            Body::Image(AnyImage::Vhdx(image)) => Ok(image.close()?),
            Body::Raw(_) => Ok(()),
        }
    }

    /// Does what closing would fail at where a volume is full, as long as nothing is closed yet.
    pub(crate) fn settle(&self) -> io::Result<()> {
        match &self.body {
            Body::Image(AnyImage::Vhdx(image)) => Ok(image.settle()?),
            // Closing one only gives space back.
            Body::Image(AnyImage::Vhd(_)) | Body::Raw(_) => Ok(()),
        }
    }

    /// Flushes and tidies up; no write can follow.
    pub(crate) fn close(&self) -> io::Result<()> {
        match &self.body {
            Body::Image(image) => Ok(image.close()?),
            Body::Raw(raw) => raw.flush(self.file.as_ref()),
        }
    }
}

impl Raw {
    /// One sync serves every caller that came before it began. After a failure none succeeds: the kernel may have
    /// dropped the data that the failed one was about.
    fn flush(&self, file: &dyn DiskFile) -> io::Result<()> {
        let arrived = self.begun.load(Acquire);
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        if *done > arrived {
            return Ok(());
        }
        let round = self.begun.fetch_add(1, Release) + 1;
        file.flush().inspect_err(|_| self.failed.store(true, Release))?;
        *done = round;
        Ok(())
    }

    /// Refuses writes after a failed flush.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.failed.load(Acquire) {
            return Err(MetaError::FlushFailed.into());
        }
        Ok(())
    }
}

/// Opens a file and takes its lock.
pub(crate) fn open_locked(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    writable: bool,
) -> Result<Arc<dyn DiskFile>, OpenError> {
    let (mode, lock) = match writable {
        true => (OpenMode::ReadWrite, LockKind::Exclusive),
        false => (OpenMode::Read, LockKind::Shared),
    };
    let file = fs.open(path, mode).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => OpenError::claimed(path),
        _ => OpenError::from_io(path, "open", error),
    })?;
    take_lock(fs, path, file.as_ref(), lock)?;
    Ok(file)
}

/// Takes a lock or says who has it.
pub(crate) fn take_lock(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    file: &dyn DiskFile,
    kind: LockKind,
) -> Result<(), OpenError> {
    file.lock(kind).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => OpenError::InUse { path: path.to_owned(), holder: fs.holder(file.id()) },
        _ => OpenError::LockUnsupported { path: path.to_owned(), source: error },
    })
}

/// As the options want it, if it can be.
fn go_past_cache(path: &Path, file: &Arc<dyn DiskFile>, options: &DiskOptions) {
    if options.cache == CacheMode::None && !file.bypass_cache() {
        tracing::info!(path = %path.display(), "this file system or device needs the page cache");
    }
}

/// Opens the image in a locked file; with the bits that a dead process left, if any.
fn open_image(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    file: &Arc<dyn DiskFile>,
    mode: ImageMode,
    options: &DiskOptions,
) -> Result<Opened, OpenError> {
    go_past_cache(path, file, options);
    let writable = mode.writable;
    let open = |writable, shadow: Option<ShadowFile>| {
        let storage: Arc<dyn Storage> = Arc::clone(file) as Arc<dyn Storage>;
        AnyImage::open(storage, path, ImageMode { writable, ..mode }, shadow)
    };
    let Some(folder) = &options.runtime_dir else { return Ok((open(writable, None)?, None)) };
    if !writable && !ShadowFile::exists(fs, folder, file.id()) {
        return Ok((open(false, None)?, None));
    }
    // The shadow is known by an id in the file, so the file is looked at first.
    let looked = open(false, None)?;
    let Some(key) = looked.info().shadow_key(file.id()) else { return Ok((open(writable, None)?, None)) };
    let mode = if writable { OpenMode::ReadWrite } else { OpenMode::Read };
    let left = ShadowFile::adopt(fs, folder, key, mode).map_err(|source| {
        let shadow = ShadowFile::path(folder, file.id());
        OpenError::Shadow { path: path.to_owned(), shadow, source }
    })?;
    match (left, writable) {
        (None, false) => Ok((looked, None)),
        (Some(left), _) => Ok((open(writable, Some(left))?, None)),
        (None, true) => match ShadowFile::create(fs, folder, key) {
            Ok(shadow) => Ok((open(true, Some(shadow))?, None)),
            // Slower and as safe.
            Err(error) => {
                let (path, folder) = (path.to_owned(), folder.clone());
                let warning = ChainWarning::NoShadow { path, folder, reason: error.to_string() };
                Ok((open(true, None)?, Some(warning)))
            }
        },
    }
}

/// An image, and what was strange beyond what it says itself.
type Opened = (AnyImage, Option<ChainWarning>);

/// The format by option or name.
pub(crate) fn format_of(
    fs: &Arc<dyn FileSystem>,
    path: &Path,
    explicit: Option<DiskFormat>,
) -> Result<DiskFormat, OpenError> {
    if let Some(format) = explicit {
        return Ok(format);
    }
    if let Some(format) = DiskFormat::of_name(path) {
        return Ok(format);
    }
    let meta = fs.metadata(path).map_err(|error| OpenError::from_io(path, "look at", error))?;
    match meta.kind {
        FileKind::BlockDevice => Ok(DiskFormat::Raw),
        _ => Err(OpenError::of_unknown_name(path)),
    }
}

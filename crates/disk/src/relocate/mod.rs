//! Moving the top file of a disk in use to another folder or file system.
//!
//! ```text
//!  mirror     the top is opened again with a file that writes to two                 requests wait for milliseconds
//!  copy       the old file's bytes, piece by piece; every change goes to both         requests run
//!  switch     both are closed and durable, the new file gets its name, the disk goes on in it    requests wait again
//! ```
//! The new file's name is the change: before, the old file holds the disk, afterwards the new one does; at that instant they are
//! alike byte for byte. A crash before it leaves a temporary file. The old file stays: whoever names it decides when it goes.

mod mirror;
mod ranges;

use crate::{
    backend::Backend,
    disk::{DRAIN, Disk},
    error::OpenError,
    fs::{DiskFile, FileKind, folder_of},
    layer::Layer,
    seams::GatedFile,
    share::{CopyError, Possible, try_sharing},
    temp::TempFile,
};
use mirror::Mirror;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

/// What is copied at once, in bytes: writes of the guest wait that long.
const PIECE: usize = 256 << 10;
/// What is shared at once, in bytes: what the guest wrote to it last is written out for that.
const SHARED_PIECE: u64 = 1 << 20;
/// After so many bytes it is looked whether the new file's volume still has the room that it has to keep.
const LOOK: u64 = 16 << 20;

/// Why a disk was not moved. It goes on in its old file, unless the text says otherwise, and nothing is left of the new one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelocateError {
    /// Nothing may be written to it.
    #[error("{} is open for reading only and cannot be moved", path.display())]
    ReadOnly {
        /// The disk.
        path: PathBuf,
    },
    /// It has ended.
    #[error("{} is closed", path.display())]
    Closed {
        /// The disk.
        path: PathBuf,
    },
    /// It is no file.
    #[error("{} is a device of the host, and stays where it is: `backstay disk convert` copies what is on it", path.display())]
    Device {
        /// The device.
        path: PathBuf,
    },
    /// Its layers are being changed.
    #[error("{} is being merged or changed: wait for that, or cancel it", path.display())]
    Busy {
        /// The disk.
        path: PathBuf,
    },
    /// Requests hang.
    #[error("requests to {} have been in flight for more than 10 seconds; its storage does not answer", path.display())]
    Hanging {
        /// The disk.
        path: PathBuf,
    },
    /// The new file cannot be made.
    #[error("cannot make {}", path.display())]
    Create {
        /// The new file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no room for it.
    #[error("the volume of {} has no room for it: {needed} bytes are needed, {free} are free, and {reserve} of them have to stay so", path.display())]
    NoSpace {
        /// The new file.
        path: PathBuf,
        /// Bytes that are still needed.
        needed: u64,
        /// Bytes there are.
        free: u64,
        /// Bytes that stay free.
        reserve: u64,
    },
    /// The old file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The old file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The new file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The new file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The old file's last changes cannot be written.
    #[error("cannot write the last changes to {}", path.display())]
    Flush {
        /// The old file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The caller could not write down what is about to happen.
    #[error("it cannot be written down that {} is about to be moved", path.display())]
    Announce {
        /// The old file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file cannot be opened again. The disk takes no more writes.
    #[error("the disk cannot go on in {}: it takes no writes until it is opened anew", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<OpenError>,
    },
    /// On request.
    #[error("moving {} was cancelled", path.display())]
    Cancelled {
        /// The old file.
        path: PathBuf,
    },
}

/// Shared between the thread that moves a disk and those that watch it.
#[derive(Debug, Default)]
pub struct RelocateControl {
    cancelled: AtomicBool,
    total: AtomicU64,
    done: AtomicU64,
    /// Bytes that stay free on the volume of the new file.
    reserve: AtomicU64,
}

impl RelocateControl {
    /// Keeps so many bytes free on the volume that the disk moves to: others grow there too.
    pub fn keep_free(&self, bytes: u64) {
        self.reserve.store(bytes, Relaxed);
    }

    /// Ends it soon; not any more once the new file has its name.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    /// Bytes of the old file that were passed, and that there are.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.total.load(Relaxed))
    }
}

impl Disk {
    /// Moves the top file to `to`, which must not exist; the guest goes on meanwhile. Its parents stay where they are. The
    /// old file stays, as it was at the instant of the switch. `announce` is called right before that instant, while
    /// requests wait: what it writes down has to survive this process.
    ///
    /// # Errors
    /// [`RelocateError`].
    pub fn relocate(
        &self,
        to: &Path,
        control: &RelocateControl,
        announce: &dyn Fn() -> io::Result<()>,
    ) -> Result<(), RelocateError> {
        let path = || self.top_path();
        if self.options.read_only {
            return Err(RelocateError::ReadOnly { path: path() });
        }
        let Some(_turn) = self.merging.begin() else {
            return Err(match self.merging.closing() {
                true => RelocateError::Closed { path: path() },
                false => RelocateError::Busy { path: path() },
            });
        };
        let top = self.chain.enter().top().cloned().ok_or_else(|| RelocateError::Closed { path: path() })?;
        let create = |source| RelocateError::Create { path: to.to_owned(), source };
        let temp = TempFile::create(&self.fs, to).map_err(create)?;
        let possible = try_sharing(temp.file().as_ref(), top.file.as_ref()).map_err(create)?;
        if self.room_for(&top, to, possible, control)? {
            self.reserve(&top, temp.file().as_ref(), to, control)?;
        }
        let mirror = Arc::new(Mirror::new(Arc::clone(&top.file), Arc::clone(temp.file())));
        let mirrored = self.exchange(&top, Arc::clone(&mirror) as Arc<dyn DiskFile>)?;
        let copied = self.copy(&mirror, &top.path, to, control);
        let moved = copied.and_then(|()| self.switch_file(&mirrored, &mirror, temp, to, announce));
        if moved.is_err() {
            let now = self.chain.enter().top().cloned();
            // Not if the switch is over, or it takes no writes any more.
            if let Some(now) = now.filter(|now| Arc::ptr_eq(now, &mirrored)) {
                self.exchange(&now, Arc::clone(mirror.old()))?;
            }
        }
        moved
    }

    /// Whether the file has space for each of its bytes, as a fixed disk has, and the new one should.
    fn room_for(
        &self,
        top: &Layer,
        to: &Path,
        possible: Possible,
        control: &RelocateControl,
    ) -> Result<bool, RelocateError> {
        let read = |source| RelocateError::Read { path: top.path.clone(), source };
        let meta = self.fs.metadata(&top.path).map_err(read)?;
        if meta.kind == FileKind::BlockDevice {
            return Err(RelocateError::Device { path: top.path.clone() });
        }
        let whole = top.is_flat() && meta.allocated >= meta.len;
        // What is shared takes no room, unless all of it is reserved first.
        let needed = if whole || possible != Possible::Sharing { meta.allocated } else { 0 };
        self.keeps_room(needed, to, control)?;
        Ok(whole)
    }

    /// Refuses to take what has to stay free on the volume of the new file.
    fn keeps_room(&self, needed: u64, to: &Path, control: &RelocateControl) -> Result<(), RelocateError> {
        let create = |source| RelocateError::Create { path: to.to_owned(), source };
        let free = self.fs.free_space(folder_of(to)).map_err(create)?;
        let reserve = control.reserve.load(Relaxed);
        match needed.saturating_add(reserve) > free {
            true => Err(RelocateError::NoSpace { path: to.to_owned(), needed, free, reserve }),
            false => Ok(()),
        }
    }

    /// Reserves that space, where the file system can.
    fn reserve(
        &self,
        top: &Layer,
        file: &dyn DiskFile,
        to: &Path,
        control: &RelocateControl,
    ) -> Result<(), RelocateError> {
        // Some file systems take seconds for a GiB.
        const PART: u64 = 256 << 20;
        let needed =
            top.file.len().map_err(|source| RelocateError::Read { path: top.path.clone(), source })?;
        let mut done = 0;
        while done < needed {
            if control.cancelled.load(Relaxed) {
                return Err(RelocateError::Cancelled { path: top.path.clone() });
            }
            let part = PART.min(needed - done);
            match file.allocate(done, part) {
                Ok(()) => done += part,
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
                Err(source) => return Err(RelocateError::Write { path: to.to_owned(), source }),
            }
        }
        Ok(())
    }

    /// Closes the top and opens it again by another file that is alike. Requests wait meanwhile.
    fn exchange(&self, top: &Arc<Layer>, file: Arc<dyn DiskFile>) -> Result<Arc<Layer>, RelocateError> {
        // What is durable already need not be waited for while requests wait.
        let _whoever_flushes_meets_the_failure = self.flush();
        let mut chain = self
            .chain
            .quiesce(Instant::now() + DRAIN)
            .map_err(|_| RelocateError::Hanging { path: top.path.clone() })?;
        if !chain.layers.is_top(top) {
            return Err(RelocateError::Closed { path: top.path.clone() });
        }
        settle(top)?;
        close(top)?;
        let again = self.go_on_in(top, top.path.clone(), file)?;
        chain.layers.set_top(Arc::clone(&again));
        Ok(again)
    }

    /// A layer that was closed, by another file with the same content.
    fn go_on_in(
        &self,
        closed: &Layer,
        path: PathBuf,
        file: Arc<dyn DiskFile>,
    ) -> Result<Arc<Layer>, RelocateError> {
        let opened = closed.moved(path.clone(), file, &self.fs, &self.options);
        opened.map(Arc::new).map_err(|source| {
            closed.fail();
            RelocateError::Open { path, source: Box::new(source) }
        })
    }

    fn copy(
        &self,
        mirror: &Mirror,
        from: &Path,
        to: &Path,
        control: &RelocateControl,
    ) -> Result<(), RelocateError> {
        let read = |source| RelocateError::Read { path: from.to_owned(), source };
        let failed = |error| match error {
            CopyError::Read(source) => read(source),
            CopyError::Write(source) => RelocateError::Write { path: to.to_owned(), source },
        };
        let old = mirror.old();
        let (mut at, mut buf, mut unlooked) = (0, vec![0; PIECE], 0);
        loop {
            control.total.store(old.len().map_err(read)?, Relaxed);
            // What comes behind is written to both.
            let Some(data) = old.next_data(at).map_err(read)? else { break };
            let end = old.next_hole(data).map_err(read)?;
            at = data;
            while at < end {
                if control.cancelled.load(Relaxed) {
                    return Err(RelocateError::Cancelled { path: from.to_owned() });
                }
                let most = if mirror.may_share() { SHARED_PIECE } else { PIECE as u64 };
                let brought = mirror.copy(at, most.min(end - at), &mut buf).map_err(failed)?;
                at += brought;
                control.done.store(at, Relaxed);
                unlooked += brought;
                if unlooked >= LOOK {
                    // The rest may be holes.
                    self.keeps_room(0, to, control)?;
                    unlooked = 0;
                }
            }
        }
        mirror.copy_len().map_err(failed)?;
        // Most of it, so that requests wait for little.
        let write = |source| RelocateError::Write { path: to.to_owned(), source };
        mirror.target().flush().map_err(write)?;
        mirror.failure().map_or(Ok(()), |source| Err(write(source)))
    }

    fn switch_file(
        &self,
        mirrored: &Arc<Layer>,
        mirror: &Mirror,
        temp: TempFile,
        to: &Path,
        announce: &dyn Fn() -> io::Result<()>,
    ) -> Result<(), RelocateError> {
        let old = mirrored.path.clone();
        let _whoever_flushes_meets_the_failure = self.flush();
        let mut chain = self
            .chain
            .quiesce(Instant::now() + DRAIN)
            .map_err(|_| RelocateError::Hanging { path: old.clone() })?;
        if !chain.layers.is_top(mirrored) {
            return Err(RelocateError::Closed { path: old });
        }
        settle(mirrored)?;
        close(mirrored)?;
        let named = match give_name(mirror, temp, &old, to, announce) {
            Ok(()) => {
                // From here on the new file is the disk.
                let file = Arc::clone(mirror.target());
                let file: Arc<dyn DiskFile> = match &self.options.gate {
                    Some(gate) => Arc::new(GatedFile { file, gate: Arc::clone(gate) }),
                    None => file,
                };
                let path = self.fs.canonicalize(to).unwrap_or_else(|_| to.to_owned());
                chain.layers.set_top(self.go_on_in(mirrored, path, file)?);
                Ok(())
            }
            Err(error) => {
                chain.layers.set_top(self.go_on_in(mirrored, old, Arc::clone(mirror.old()))?);
                Err(error)
            }
        };
        if named.is_ok() {
            if let Err(error) = chain.refresh_locator(&self.fs) {
                tracing::warn!(%error, "a disk that was moved finds its parent by its old place only");
            }
            drop(chain);
            let _closing_drops_it_too = mirror.old().unlock();
        }
        named
    }
}

/// A file that is closed and for lack of space not opened again would be worse than one that stays where it is.
fn settle(layer: &Layer) -> Result<(), RelocateError> {
    layer.settle().map_err(|source| RelocateError::Flush { path: layer.path.clone(), source })
}

/// After a failure nothing is acknowledged any more: what was written may be lost.
fn close(layer: &Layer) -> Result<(), RelocateError> {
    layer.close().map_err(|source| {
        layer.fail();
        RelocateError::Flush { path: layer.path.clone(), source }
    })
}

/// The switch: the new file is durable and alike, and gets its name.
fn give_name(
    mirror: &Mirror,
    temp: TempFile,
    old: &Path,
    to: &Path,
    announce: &dyn Fn() -> io::Result<()>,
) -> Result<(), RelocateError> {
    let write = |source| RelocateError::Write { path: to.to_owned(), source };
    if let Some(source) = mirror.failure() {
        return Err(write(source));
    }
    mirror.target().flush().map_err(write)?;
    announce().map_err(|source| RelocateError::Announce { path: old.to_owned(), source })?;
    temp.commit_unsynced().map_err(write)
}

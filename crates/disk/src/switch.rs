//! Layer switches: a checkpoint makes every disk of a machine continue in a new differencing file, at one instant.
//!
//! ```text
//!  Disk::prepare_child   empty child on the platter, still nobody's
//!  Switch::prepare       child opened and locked, old top flushed once           requests run
//!  Switch::commit        requests held → flush the rest → put children on top   requests wait
//!  Switched::finish      old tops tidied up, their locks weakened to shared      requests run
//! ```
//! Everything that can fail comes before the first disk is changed, so a set is never half switched.

use crate::{
    chain::Chain,
    create::{CreateError, Identity, create_child, room_for_child},
    disk::{DRAIN, Disk},
    error::OpenError,
    fs::LockKind,
    layer::{Layer, LayerMode, take_lock},
    options::DiskFormat,
    quiesce::Quiet,
};
use backstay_vhd::{LayerFormat, MetaError};
use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// Stack of a thread that only flushes, in bytes.
const STACK: usize = 256 << 10;

/// Why disks were not switched. All of them are as they were.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// It is closed or read-only.
    #[error("{} is not open for writing, so no layer can be put on it", path.display())]
    NotWritable {
        /// Top of the chain.
        path: PathBuf,
    },
    /// Only once each.
    #[error("{} is in the list twice", path.display())]
    Twice {
        /// Top of the chain.
        path: PathBuf,
    },
    /// The new top cannot be opened.
    #[error("cannot open the new layer")]
    Open(#[from] OpenError),
    /// The new top is not an empty child of the present one.
    #[error("{} is not an empty differencing disk of {}", child.display(), parent.display())]
    NotAChild {
        /// The new top.
        child: PathBuf,
        /// The present top.
        parent: PathBuf,
    },
    /// Requests hang.
    #[error("requests to {} did not end in time; its storage does not answer", path.display())]
    Busy {
        /// Top of the chain.
        path: PathBuf,
    },
    /// The present top could not be made durable.
    #[error("cannot write the last changes to {}", path.display())]
    Flush {
        /// Top of the chain.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something was written after the switch.
    #[error("{} holds data by now, so it cannot be taken off", path.display())]
    NotEmpty {
        /// Top of the chain.
        path: PathBuf,
    },
    /// Its layers are being moved.
    #[error("the top layer of {} is being merged into its parent; cancel that first, it can go on later", path.display())]
    Merging {
        /// Top of the chain.
        path: PathBuf,
    },
    /// Its blocks are being moved.
    #[error("{} is being compacted; cancel that first, it can go on later", path.display())]
    Compacting {
        /// Top of the chain.
        path: PathBuf,
    },
    /// The layer below cannot be written to by this process.
    #[error("{} was not put on by this process, or has no parent, so it cannot be taken off while the disk is open", path.display())]
    NotSwitched {
        /// Top of the chain.
        path: PathBuf,
    },
}

/// Disks with their new tops open and locked, ready to be switched. Dropped, nothing has happened.
#[derive(Debug)]
pub struct Switch {
    disks: Vec<(Arc<Disk>, Layer)>,
}

/// Disks that were switched; what can wait is still to be done.
#[derive(Debug)]
pub struct Switched {
    old_tops: Vec<(Arc<Disk>, Arc<Layer>)>,
}

impl Disk {
    /// Creates an empty differencing disk of the present top, whole and durable. The disk goes on in its present top
    /// until a [`Switch`].
    ///
    /// # Errors
    /// [`CreateError`]; a raw disk can have no child.
    pub fn prepare_child(&self, path: &Path, identity: Identity) -> Result<(), CreateError> {
        let top = {
            let chain = self.chain.enter();
            room_for_child(&chain)?;
            chain.top().cloned()
        };
        let top =
            top.ok_or_else(|| CreateError::Io { path: path.to_owned(), source: MetaError::Closed.into() })?;
        create_child(&self.fs, &top, path, identity)
    }
}

impl Switch {
    /// Opens the new tops, made by [`Disk::prepare_child`], and writes most of what the old ones still have to write.
    ///
    /// # Errors
    /// [`SwitchError`].
    pub fn prepare(disks: impl IntoIterator<Item = (Arc<Disk>, PathBuf)>) -> Result<Self, SwitchError> {
        let mut ready = Vec::new();
        let mut seen = HashSet::new();
        for (disk, new_top) in disks {
            if !seen.insert(Arc::as_ptr(&disk)) {
                return Err(SwitchError::Twice { path: disk.top_path() });
            }
            let top = writable_top(&disk)?;
            let format = top.info().map_or(DiskFormat::Vhd, |info| info.format().into());
            let mode = LayerMode { writable: true, format };
            let child = Layer::open(&disk.fs, &new_top, mode, &disk.options)?;
            if !is_empty_child(&child, &top) {
                return Err(SwitchError::NotAChild { child: child.path, parent: top.path.clone() });
            }
            top.flush().map_err(|source| SwitchError::Flush { path: top.path.clone(), source })?;
            ready.push((disk, child));
        }
        // One order for all, so that two sets with common disks cannot wait for each other.
        ready.sort_by_key(|(disk, _)| Arc::as_ptr(disk));
        Ok(Self { disks: ready })
    }

    /// Switches all disks while no request is under way on any of them. Waits at most `patience` for requests in flight.
    ///
    /// # Errors
    /// [`SwitchError`]; then no disk has been switched.
    pub fn commit(self, patience: Duration) -> Result<Switched, SwitchError> {
        let (disks, children): (Vec<_>, Vec<_>) = self.disks.into_iter().unzip();
        let mut quiet = quiesce_all(&disks, patience)?;
        let mut old_tops = Vec::with_capacity(disks.len());
        for (disk, chain) in disks.iter().zip(&quiet) {
            not_merging(chain)?;
            let top = chain.top().cloned().filter(|_| !chain.closed);
            let top = top.ok_or_else(|| SwitchError::NotWritable { path: PathBuf::new() })?;
            old_tops.push((Arc::clone(disk), top));
        }
        flush_together(&old_tops)?;
        // Another switch may have come in between.
        for (child, (_, top)) in children.iter().zip(&old_tops) {
            if !is_empty_child(child, top) {
                return Err(SwitchError::NotAChild { child: child.path.clone(), parent: top.path.clone() });
            }
        }
        for (chain, child) in quiet.iter_mut().zip(children) {
            chain.layers.edit().insert(0, Arc::new(child));
        }
        for (disk, chain) in disks.iter().zip(&quiet) {
            // One that is merged further down is settled when that ends.
            if !disk.merging.is_running() {
                chain.layers.settled();
            }
        }
        drop(quiet);
        Ok(Switched { old_tops })
    }
}

/// Flushes all tops at the same time: each waits for its storage, and a guest stands still meanwhile.
fn flush_together(tops: &[(Arc<Disk>, Arc<Layer>)]) -> Result<(), SwitchError> {
    fn flush(top: &Layer) -> Result<(), SwitchError> {
        top.flush().map_err(|source| SwitchError::Flush { path: top.path.clone(), source })
    }
    let Some(((_, first), others)) = tops.split_first() else { return Ok(()) };
    thread::scope(|scope| {
        let start = |top| thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || flush(top));
        let begun: Vec<_> = others.iter().map(|(_, top)| (top, start(top))).collect();
        let mut result = flush(first);
        for (top, thread) in begun {
            // Where no thread could be had, it is done here.
            let ended =
                thread.map_or_else(|_| flush(top), |thread| thread.join().unwrap_or_else(|_| flush(top)));
            result = result.and(ended);
        }
        result
    })
}

/// Prepares, commits and finishes a switch of disks whose children exist.
///
/// # Errors
/// [`SwitchError`]; then no disk has been switched.
pub fn switch_all(disks: impl IntoIterator<Item = (Arc<Disk>, PathBuf)>) -> Result<(), SwitchError> {
    Switch::prepare(disks)?.commit(DRAIN)?.finish();
    Ok(())
}

impl Switched {
    /// Cuts reserved space off the old tops, drops their shadows and lets others read them. A failure costs space, not
    /// data, and is only logged.
    pub fn finish(mut self) {
        self.tidy();
    }

    fn tidy(&mut self) {
        for (disk, layer) in self.old_tops.drain(..) {
            // A disk may have been switched back, or closed, already; while this request is inside, it cannot be.
            let chain = disk.chain.enter();
            let still_below = chain.layers.iter().skip(1).any(|below| Arc::ptr_eq(below, &layer));
            if !still_below {
                continue;
            }
            let tidied = layer.close().and_then(|()| layer.file.lock(LockKind::Shared));
            if let Err(error) = tidied {
                tracing::warn!(path = %layer.path.display(), %error, "cannot tidy up after a layer switch");
            }
        }
    }
}

impl Drop for Switched {
    fn drop(&mut self) {
        self.tidy();
    }
}

/// Takes the top layers off again, all at one instant. Each must be empty still and have been put on by this process.
/// Returns their paths; the files are closed and can be removed.
///
/// # Errors
/// [`SwitchError`]; then no disk has been changed.
pub fn switch_back_all(disks: &[Arc<Disk>]) -> Result<Vec<PathBuf>, SwitchError> {
    let mut sorted = disks.to_vec();
    sorted.sort_by_key(Arc::as_ptr);
    sorted.dedup_by_key(|disk| Arc::as_ptr(disk));
    let mut quiet = quiesce_all(&sorted, DRAIN)?;
    for (disk, chain) in sorted.iter().zip(&quiet) {
        if disk.merging.is_running() {
            return Err(SwitchError::Merging { path: path_of_top(chain) });
        }
        can_be_taken_off(chain)?;
    }
    let mut strengthened = Vec::new();
    let result = sorted
        .iter()
        .zip(&quiet)
        .map(|(disk, chain)| writable_again(disk, chain, &mut strengthened))
        .collect();
    let reopened: Vec<Layer> = match result {
        Ok(reopened) => reopened,
        Err(error) => {
            for layer in strengthened {
                let _not_worse_than_before = layer.file.lock(LockKind::Shared);
            }
            return Err(error);
        }
    };
    let mut taken_off = Vec::new();
    for (chain, layer) in quiet.iter_mut().zip(reopened) {
        let layers = chain.layers.edit();
        taken_off.push(layers.remove(0));
        if let Some(top) = layers.first_mut() {
            *top = Arc::new(layer);
        }
        chain.layers.settled();
    }
    drop(quiet);
    for child in &taken_off {
        if let Err(error) = child.close() {
            tracing::warn!(path = %child.path.display(), %error, "cannot close an empty layer");
        }
    }
    let path_of = |disk: &Arc<Disk>| {
        let index = sorted.iter().position(|other| Arc::ptr_eq(disk, other));
        index.and_then(|index| taken_off.get(index)).map(|child| child.path.clone())
    };
    Ok(disks.iter().filter_map(path_of).collect())
}

fn can_be_taken_off(chain: &Chain) -> Result<(), SwitchError> {
    let [child, parent, ..] = &*chain.layers else {
        let path = chain.top().map(|top| top.path.clone()).unwrap_or_default();
        return Err(SwitchError::NotSwitched { path });
    };
    if !parent.file_writable {
        return Err(SwitchError::NotSwitched { path: child.path.clone() });
    }
    match child.image().map(LayerFormat::is_blank) {
        // One that has grown since says so.
        Some(Ok(true)) if child.size == parent.size => Ok(()),
        _ => Err(SwitchError::NotEmpty { path: child.path.clone() }),
    }
}

/// The second layer of a chain under an exclusive lock and open for writing.
fn writable_again(
    disk: &Arc<Disk>,
    chain: &Chain,
    strengthened: &mut Vec<Arc<Layer>>,
) -> Result<Layer, SwitchError> {
    let Some(parent) = chain.layers.get(1) else {
        return Err(SwitchError::NotSwitched { path: PathBuf::new() });
    };
    take_lock(&disk.fs, &parent.path, parent.file.as_ref(), LockKind::Exclusive)?;
    strengthened.push(Arc::clone(parent));
    // If `finish` has not run yet, two open images of the file would disagree about its free space.
    parent.close().map_err(|source| SwitchError::Flush { path: parent.path.clone(), source })?;
    Ok(parent.reopen_writable(&disk.fs, &disk.options)?)
}

fn quiesce_all(disks: &[Arc<Disk>], patience: Duration) -> Result<Vec<Quiet<'_, Chain>>, SwitchError> {
    let deadline = Instant::now() + patience;
    disks
        .iter()
        .map(|disk| disk.chain.quiesce(deadline).map_err(|_| SwitchError::Busy { path: disk.top_path() }))
        .collect()
}

fn writable_top(disk: &Disk) -> Result<Arc<Layer>, SwitchError> {
    let chain = disk.chain.enter();
    not_merging(&chain)?;
    let top = chain.top().filter(|_| !disk.options.read_only && !chain.closed);
    top.cloned().ok_or_else(|| SwitchError::NotWritable { path: PathBuf::new() })
}

fn not_merging(chain: &Chain) -> Result<(), SwitchError> {
    if chain.has_holds() {
        return Err(SwitchError::Compacting { path: path_of_top(chain) });
    }
    match chain.routing {
        None => Ok(()),
        Some(_) => Err(SwitchError::Merging { path: path_of_top(chain) }),
    }
}

fn path_of_top(chain: &Chain) -> PathBuf {
    chain.top().map(|top| top.path.clone()).unwrap_or_default()
}

fn is_empty_child(child: &Layer, parent: &Layer) -> bool {
    let (Some(image), Some(parent_id)) = (child.image(), parent.identity()) else { return false };
    image.accepts_parent(parent_id) && child.size == parent.size && image.is_blank().unwrap_or(false)
}

//! Merging: what a differencing file (the *upper*) holds moves into its parent (the *lower*), while the disk is in use.
//!
//! # For callers
//!
//! A checkpoint is deleted by moving the layer above its frozen file down into that file. With a chain
//! `[top … Y, X, P …]`, [`Disk::merge_layer`]`(X)` moves X into P; then
//! - if X was the top, P is the top and is written to;
//! - else Y, and the other children that were named, have P as their parent, and P is read only again.
//!
//! The call blocks (give it a thread), survives anything, and can be ended at any time by [`MergeControl::cancel`] or by closing
//! the disk. The chain reads the same at every instant, also after `kill -9` or a power cut; an unfinished merge leaves
//! `X → P` with less in X, and calling it again goes on from there. The caller does afterwards, in this order: write down that P is
//! in the place of X wherever X is named, make that durable, delete the file X. Until then X is an empty child of P and
//! reads the same, so both names are right. A caller that was killed in between calls `merge_layer(X)` again: if X has left the
//! chain already this checks it, finishes what is missing, and says the same.
//!
//! **P must have no other child than X**: its content changes. Open ones are found by their locks; others only the caller knows.
//!
//! While a top is merged, no layer can be put on it ([`crate::SwitchError::Merging`]): cancel, switch, merge again as a middle layer.

mod children;
mod control;
mod copier;
mod error;
mod mover;
mod plan;
mod room;
mod route;
mod slot;

pub use children::{ReparentPlan, plan_reparent, reparent};
pub(crate) use control::Pace;
pub use control::{MergeControl, MergeProgress, MergeStep};
pub use error::{MergeError, ReparentError};
pub(crate) use plan::children_in;
pub use plan::{MergePlan, children_of, plan_merge};
pub(crate) use route::Routing;
pub(crate) use slot::MergeSlot;

use crate::{
    chain::{Chain, ChainWarning},
    disk::{DRAIN, Disk},
    error::OpenError,
    fs::{FileSystem, LockKind},
    image::{AnyImage, ImageInfo},
    layer::{Layer, LayerMode, NextIdentity, format_of},
    options::{DiskFormat, DiskOptions},
    quiesce::Quiet,
    resize::{grow_layer, refuse_larger_parent},
};
use backstay_vhd::{LayerFormat, vhdx::Locator};
use children::{is_empty_child, reparent_closed, reparent_in_chain, was_merged_into};
use mover::Mover;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};
use uuid::Uuid;

/// A merge that is complete. The upper file is empty, closed, and nobody's parent any more: it can be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The file that is empty now.
    pub upper: PathBuf,
    /// The file that took its place.
    pub lower: PathBuf,
    /// The chain of the disk now, the top first.
    pub chain: Vec<PathBuf>,
    /// Bytes copied by this call.
    pub bytes_moved: u64,
    /// Files whose parent is the lower layer now.
    pub reparented: Vec<PathBuf>,
}

impl Disk {
    /// Moves the layer `upper` of this open disk into its parent and takes it off the chain. `children` are the files
    /// that have `upper` as their parent and are not in this chain (branches of a checkpoint tree); they must be closed.
    ///
    /// # Errors
    /// [`MergeError`]; the chain is valid and reads as before.
    pub fn merge_layer(
        &self,
        upper: &Path,
        children: &[PathBuf],
        control: &MergeControl,
    ) -> Result<Merged, MergeError> {
        self.merge(upper, children, control, Use::Served)
    }

    fn merge(
        &self,
        upper: &Path,
        children: &[PathBuf],
        control: &MergeControl,
        used: Use,
    ) -> Result<Merged, MergeError> {
        if self.options.read_only {
            return Err(MergeError::ReadOnly { path: self.top_path() });
        }
        let Some(_turn) = self.merging.begin() else {
            return Err(match self.merging.closing() {
                true => MergeError::Closed { upper: upper.to_owned() },
                false => MergeError::Busy { path: self.top_path() },
            });
        };
        let Some(pair) = self.find_pair(upper)? else { return self.finish_merged(upper, children, control) };
        pair.check(children, used)?;
        let merging = self.begin_merge(pair)?;
        let mut mover = merging.mover(self, control, used);
        let moved = mover.run();
        let (bytes_moved, layers) = (mover.moved.load(Relaxed), merging);
        if let Err(error) = moved {
            self.end_early(&layers);
            return Err(error);
        }
        match self.hand_children_over(&layers, children, control) {
            Ok(reparented) => {
                self.take_off(&layers, reparented, bytes_moved, control.progress().bytes_freed > 0)
            }
            Err(error) => {
                self.end_early(&layers);
                Err(error)
            }
        }
    }

    /// The layer and its parent; none if the chain has no such layer.
    fn find_pair(&self, upper: &Path) -> Result<Option<Pair>, MergeError> {
        let meta = self
            .fs
            .metadata(upper)
            .map_err(|error| open_failed(upper, OpenError::from_io(upper, "look at", error)))?;
        let chain = self.chain.enter();
        let Some(index) = chain.layers.iter().position(|layer| layer.id() == meta.id) else {
            return Ok(None);
        };
        let (Some(upper), lower) = (chain.layers.get(index), chain.layers.get(index + 1)) else {
            return Ok(None);
        };
        let lower = lower.ok_or_else(|| MergeError::NoParent { upper: upper.path.clone() })?;
        Ok(Some(Pair { upper: Arc::clone(upper), lower: Arc::clone(lower), is_top: index == 0 }))
    }

    /// Opens both layers for writing and puts them in the chain, with the routing if writes come.
    fn begin_merge(&self, pair: Pair) -> Result<Merging, MergeError> {
        let failed = |error| open_failed(&pair.upper.path, error);
        let upper = match pair.is_top {
            true => Arc::clone(&pair.upper),
            false => {
                let upper = pair.upper.strengthen(&self.fs, &self.options, NextIdentity::Fresh);
                Arc::new(upper.map_err(failed)?)
            }
        };
        let lower = announce(&upper, &pair.lower).and_then(|next| {
            let lower = pair.lower.strengthen(&self.fs, &self.options, next).map_err(failed)?;
            self.as_large(Arc::new(lower), &upper, &pair, next)
        });
        let lower = lower.inspect_err(|_| {
            pair.give_back(None, (!pair.is_top).then_some(&upper));
        })?;
        let merging = Merging { upper, lower, is_top: pair.is_top };
        let installed = self.install(&pair, &merging);
        if installed.is_err() {
            pair.give_back(Some(&merging.lower), (!pair.is_top).then_some(&merging.upper));
        }
        installed.map(|()| merging)
    }

    /// A parent that is smaller than its child grows first: what is new in it reads as zeros, as it did without.
    fn as_large(
        &self,
        lower: Arc<Layer>,
        upper: &Layer,
        pair: &Pair,
        next: NextIdentity,
    ) -> Result<Arc<Layer>, MergeError> {
        if lower.size >= upper.size {
            return Ok(lower);
        }
        let below = {
            let chain = self.chain.enter();
            let at = chain.layers.iter().position(|layer| Arc::ptr_eq(layer, &pair.lower));
            at.and_then(|at| chain.layers.get(at + 1)).cloned()
        };
        let grown = refuse_larger_parent(&lower, below.as_deref());
        let grown = grown.and_then(|()| grow_layer(&self.fs, &self.options, &lower, upper.size, next));
        grown.map(Arc::new).map_err(|source| {
            pair.give_back(Some(&lower), None);
            let (upper, lower) = (upper.path.clone(), lower.path.clone());
            MergeError::Resize { upper, lower, source: Box::new(source) }
        })
    }

    fn install(&self, pair: &Pair, merging: &Merging) -> Result<(), MergeError> {
        // What is durable already need not be waited for while requests wait.
        self.flush_quietly();
        let mut chain = self.quiet()?;
        let index = chain.layers.iter().position(|layer| Arc::ptr_eq(layer, &pair.upper));
        let below = index.and_then(|index| chain.layers.get(index + 1));
        let same =
            below.is_some_and(|lower| Arc::ptr_eq(lower, &pair.lower)) && (index == Some(0)) == pair.is_top;
        let Some(index) = index.filter(|_| same) else {
            return Err(MergeError::NotInChain { upper: pair.upper.path.clone(), top: path_of_top(&chain) });
        };
        // The end of a layer switch may have weakened them; it does not find them any more.
        for layer in [&merging.lower, &merging.upper] {
            let locked = layer.file.lock(LockKind::Exclusive);
            locked
                .map_err(|error| open_failed(&layer.path, OpenError::from_io(&layer.path, "lock", error)))?;
        }
        if pair.is_top {
            let held = merging.upper.image().map(LayerFormat::held_blocks).unwrap_or_default();
            let block_size = merging.upper.block_size().max(512);
            let routing = Routing::new(merging.upper.size, block_size.trailing_zeros(), &held);
            chain.routing = Some(Arc::new(routing));
        }
        for (at, layer) in [(index, &merging.upper), (index + 1, &merging.lower)] {
            if let Some(place) = chain.layers.edit().get_mut(at) {
                *place = Arc::clone(layer);
            }
        }
        Ok(())
    }

    /// The merge ends before the upper layer is empty: both stay, the lower one is a parent again.
    fn end_early(&self, merging: &Merging) {
        let routing = self.chain.enter().routing.clone();
        if let Some(routing) = routing {
            routing.end();
            // Writes to the lower layer end, and are made durable while flushes still ask for that.
            let deadline = Instant::now() + DRAIN;
            self.chain.wait_for_leavers(&|| Instant::now() >= deadline);
            if let Err(error) = routing.flush_lower_now(&merging.lower) {
                let path = merging.lower.path.display();
                tracing::error!(%path, %error, "a parent lost writes; the disk takes no more until it is opened again");
                merging.upper.fail();
            }
            loop {
                match self.chain.quiesce(Instant::now() + DRAIN) {
                    Ok(mut chain) => {
                        chain.routing = None;
                        chain.layers.settled();
                        break;
                    }
                    Err(_) if self.merging.closing() => return,
                    Err(_) => {
                        tracing::warn!(path = %merging.upper.path.display(), "a merge cannot end: requests hang")
                    }
                }
            }
        }
        merging.weaken(&merging.lower);
        if !merging.is_top {
            merging.weaken(&merging.upper);
            self.chain.enter().layers.settled();
        }
    }

    /// Gives every child of the upper layer, which is empty, the lower one as its parent.
    fn hand_children_over(
        &self,
        merging: &Merging,
        children: &[PathBuf],
        control: &MergeControl,
    ) -> Result<Vec<PathBuf>, MergeError> {
        let mut done = Vec::new();
        let upper = || merging.upper.path.clone();
        let above = {
            let chain = self.chain.enter();
            let index = chain.layers.iter().position(|layer| Arc::ptr_eq(layer, &merging.upper));
            let above = index.and_then(|index| index.checked_sub(1));
            above.and_then(|above| chain.layers.get(above).map(|layer| (Arc::clone(layer), above == 0)))
        };
        if let Some((child, is_top)) = above {
            reparent_in_chain(&self.fs, &child, is_top, &merging.lower, &self.options).map_err(|source| {
                MergeError::Reparent { upper: upper(), child: child.path.clone(), source: Box::new(source) }
            })?;
            control.step(MergeStep::Reparented);
            done.push(child.path.clone());
        }
        let id = merging.upper.identity().unwrap_or_default();
        done.extend(self.reparent_closed(&upper(), children, id, &merging.lower, control)?);
        Ok(done)
    }

    fn reparent_closed(
        &self,
        upper: &Path,
        children: &[PathBuf],
        id: Uuid,
        lower: &Layer,
        control: &MergeControl,
    ) -> Result<Vec<PathBuf>, MergeError> {
        for child in children {
            let done = reparent_closed(&self.fs, child, &[id], lower, &self.options);
            done.map_err(|source| MergeError::Reparent {
                upper: upper.to_owned(),
                child: child.clone(),
                source: Box::new(source),
            })?;
            control.step(MergeStep::Reparented);
        }
        Ok(children.to_vec())
    }

    /// The upper layer is empty and nobody's parent: it leaves the chain. `tidy`: where room was short, its file gets small.
    fn take_off(
        &self,
        merging: &Merging,
        reparented: Vec<PathBuf>,
        bytes_moved: u64,
        tidy: bool,
    ) -> Result<Merged, MergeError> {
        self.flush_quietly();
        let taken = self.quiet().and_then(|mut chain| {
            let index = chain.layers.iter().position(|layer| Arc::ptr_eq(layer, &merging.upper));
            let index = index.ok_or_else(|| MergeError::Closed { upper: merging.upper.path.clone() })?;
            chain.layers.edit().remove(index);
            chain.layers.settled();
            chain.routing = None;
            let of_upper = |warning: &ChainWarning| warning.path() == merging.upper.path;
            chain.warnings.retain(|warning| !of_upper(warning));
            Ok(chain.layers.iter().map(|layer| layer.path.clone()).collect())
        });
        let chain = match taken {
            Ok(chain) => chain,
            Err(error) => {
                self.end_early(merging);
                return Err(error);
            }
        };
        if let Err(error) = if tidy { merging.upper.close() } else { merging.upper.retire() } {
            tracing::warn!(path = %merging.upper.path.display(), %error, "cannot tidy up an empty layer");
        }
        let _closing_drops_it_too = merging.upper.file.unlock();
        if !merging.is_top {
            merging.weaken(&merging.lower);
        }
        Ok(Merged {
            upper: merging.upper.path.clone(),
            lower: merging.lower.path.clone(),
            chain,
            bytes_moved,
            reparented,
        })
    }

    /// The chain has no such layer: if it left the chain already, sees to it that nothing is missing.
    fn finish_merged(
        &self,
        upper: &Path,
        children: &[PathBuf],
        control: &MergeControl,
    ) -> Result<Merged, MergeError> {
        let not_in_chain = || MergeError::NotInChain { upper: upper.to_owned(), top: self.top_path() };
        let looking = DiskOptions { read_only: true, gate: None, changed: None, ..self.options.clone() };
        let format = format_of(&self.fs, upper, None).unwrap_or(DiskFormat::Vhd);
        let mode = LayerMode { writable: false, format };
        let layer =
            Layer::open(&self.fs, upper, mode, &looking).map_err(|error| open_failed(upper, error))?;
        let (lower, above) = {
            let chain = self.chain.enter();
            let is_lower = |lower: &Arc<Layer>| {
                lower.identity().is_some_and(|id| is_empty_child(&layer, id))
                    || was_merged_into(&self.fs, &layer, lower, &self.options)
            };
            let index = chain.layers.iter().position(is_lower).ok_or_else(not_in_chain)?;
            let above = index.checked_sub(1).and_then(|above| chain.layers.get(above)).cloned();
            (chain.layers.get(index).cloned(), above.zip(index.checked_sub(1)))
        };
        let lower = lower.ok_or_else(not_in_chain)?;
        let mut reparented = Vec::new();
        if let Some((child, index)) = above {
            // Its header is right, or this chain would be another one; the copy of its footer may not be.
            let done = reparent_in_chain(&self.fs, &child, index == 0, &lower, &self.options);
            done.map_err(|source| MergeError::Reparent {
                upper: upper.to_owned(),
                child: child.path.clone(),
                source: Box::new(source),
            })?;
            reparented.push(child.path.clone());
        }
        let id = layer.identity().unwrap_or_default();
        reparented.extend(self.reparent_closed(upper, children, id, &lower, control)?);
        let chain = self.chain.enter().layers.iter().map(|layer| layer.path.clone()).collect();
        Ok(Merged { upper: layer.path.clone(), lower: lower.path.clone(), chain, bytes_moved: 0, reparented })
    }

    fn quiet(&self) -> Result<Quiet<'_, Chain>, MergeError> {
        let quiet = self.chain.quiesce(Instant::now() + DRAIN);
        quiet.map_err(|_| MergeError::Hanging { path: self.top_path() })
    }

    /// Whoever needs it flushed meets the failure.
    fn flush_quietly(&self) {
        let _only_saves_time = crate::Backend::flush(self);
    }
}

/// Whether somebody may write to the disk meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Served,
    Alone,
}

/// A layer that is to be merged, and its parent, as they are in the chain.
struct Pair {
    upper: Arc<Layer>,
    lower: Arc<Layer>,
    is_top: bool,
}

/// The same two, both open for writing.
struct Merging {
    upper: Arc<Layer>,
    lower: Arc<Layer>,
    is_top: bool,
}

impl Pair {
    fn check(&self, children: &[PathBuf], used: Use) -> Result<(), MergeError> {
        let (upper, lower) = (&self.upper, &self.lower);
        if let Some(child) = children.first().filter(|_| self.is_top && used == Use::Served) {
            return Err(MergeError::ChildOfTop { upper: upper.path.clone(), child: child.clone() });
        }
        match check_pair(upper, lower) {
            // A machine that runs on this disk is not saved: the mark was left.
            Err(MergeError::SavedState { .. }) if used == Use::Served => Ok(()),
            checked => checked,
        }
    }

    /// Undoes what opened them for writing.
    fn give_back(&self, lower: Option<&Arc<Layer>>, upper: Option<&Arc<Layer>>) {
        for (before, now) in [(&self.lower, lower), (&self.upper, upper)] {
            let Some(now) = now else { continue };
            let given = now.weaken().and_then(|()| before.file.lock(LockKind::Shared));
            if let Err(error) = given {
                tracing::warn!(path = %before.path.display(), %error, "cannot give a parent back");
            }
        }
    }
}

impl Merging {
    fn mover<'a>(&self, disk: &'a Disk, control: &'a MergeControl, used: Use) -> Mover<'a> {
        let chain = disk.chain.enter();
        let below =
            chain.layers.iter().skip_while(|layer| !Arc::ptr_eq(layer, &self.lower)).cloned().collect();
        Mover {
            disk,
            control,
            upper: Arc::clone(&self.upper),
            below,
            routing: chain.routing.clone(),
            alone: used == Use::Alone,
            pace: Mutex::new(Pace::new()),
            moved: AtomicU64::new(0),
            since_writeback: AtomicU64::new(0),
            writeback: None,
            data_moved: AtomicU64::new(0),
            owed: Vec::new(),
        }
    }

    fn weaken(&self, layer: &Layer) {
        if let Err(error) = layer.weaken() {
            tracing::warn!(path = %layer.path.display(), %error, "cannot tidy up after a merge");
        }
    }
}

/// Tells a VHDX by which id its parent is known once the merge writes to it: at every instant, also after a crash, one of the
/// two ids that the file names is the parent's (MS-VHDX 2.6.2.6.3). A merge that goes on uses the id that the first one
/// announced; if the parent has that already, another one, so that who came to name the parent by it meanwhile loses it.
fn announce(upper: &Layer, lower: &Layer) -> Result<NextIdentity, MergeError> {
    let Some(image) = upper.any_image().and_then(AnyImage::vhdx) else { return Ok(NextIdentity::Fresh) };
    let Some(locator) = image.parent() else { return Ok(NextIdentity::Fresh) };
    let now = lower.identity().unwrap_or_default();
    let next = match locator.linkage2.filter(|id| !id.is_nil()) {
        Some(announced) if announced != now => return Ok(NextIdentity::Announced(announced)),
        _ => Uuid::new_v4(),
    };
    let told = image.set_parent(Locator { linkage: now, linkage2: Some(next), ..locator });
    told.map_err(|error| MergeError::Io {
        path: upper.path.clone(),
        action: "write to",
        source: error.into(),
    })?;
    Ok(NextIdentity::Announced(next))
}

/// Whether one can be merged into the other at all.
fn check_pair(upper: &Layer, lower: &Layer) -> Result<(), MergeError> {
    if upper.size < lower.size {
        return Err(MergeError::SizeDiffers {
            upper: upper.path.clone(),
            upper_size: upper.size,
            lower: lower.path.clone(),
            lower_size: lower.size,
        });
    }
    match [upper, lower].into_iter().find(|layer| layer.info().is_some_and(ImageInfo::saved_state)) {
        Some(saved) => Err(MergeError::SavedState { path: saved.path.clone() }),
        None => Ok(()),
    }
}

fn open_failed(upper: &Path, source: OpenError) -> MergeError {
    MergeError::Open { upper: upper.to_owned(), source: Box::new(source) }
}

fn path_of_top(chain: &Chain) -> PathBuf {
    chain.top().map(|top| top.path.clone()).unwrap_or_default()
}

/// Moves a differencing file that nobody uses into its parent. `children` are all files that have `upper` as their parent; they must be
/// closed too. `options` say where shadows lie and where parents are found.
///
/// # Errors
/// [`MergeError`]; the chain is valid and reads as before.
pub fn merge_offline(
    fs: &Arc<dyn FileSystem>,
    upper: &Path,
    children: &[PathBuf],
    options: &DiskOptions,
    control: &MergeControl,
) -> Result<Merged, MergeError> {
    let opened = Disk::open_on(Arc::clone(fs), upper, DiskOptions { read_only: false, ..options.clone() });
    let disk = opened.map_err(|source| open_failed(upper, source))?;
    let merged = disk.merge(upper, children, control, Use::Alone)?;
    disk.close().map_err(|error| MergeError::Io {
        path: merged.lower.clone(),
        action: "close",
        source: std::io::Error::other(error),
    })?;
    Ok(merged)
}

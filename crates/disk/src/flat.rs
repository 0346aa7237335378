//! One look instead of one per layer: where the layers below the top have the bytes of a unit of the disk.
//!
//! Nothing is written to those layers, so what was found once stays true until the chain is changed. Then the index is
//! replaced by an empty one ([`Layers::edit`]); while a merge writes to a lower layer nothing is kept.

use crate::{
    layer::Layer,
    walk::{Place, Reusable, Scratch, walk_below},
};
use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    ops::{Deref, Range},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::Acquire, Ordering::Release},
    },
};

/// Bytes of the disk that are looked up together.
const UNIT: u64 = 1 << 20;
/// Runs of one unit; one that is in more pieces is looked up layer by layer.
const MOST_RUNS: usize = 512;
/// Runs of one shard; when there are more, it begins anew. 16 bytes each: 8 MiB in all.
const SHARD_RUNS: usize = 32 << 10;
const SHARDS: usize = 16;
/// Chains that are shorter have nothing to gain.
const LEAST_LAYERS: usize = 3;
/// In no layer: zeros.
const NOWHERE: u16 = u16::MAX;

/// The layers of a chain, the top first.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    list: Vec<Arc<Layer>>,
    flat: FlatIndex,
}

impl Layers {
    pub(crate) fn new(list: Vec<Arc<Layer>>) -> Self {
        Self { list, flat: FlatIndex::default() }
    }

    /// To change them. What was known about their content is forgotten, and nothing is kept before [`Layers::settled`].
    pub(crate) fn edit(&mut self) -> &mut Vec<Arc<Layer>> {
        self.flat = FlatIndex::default();
        &mut self.list
    }

    /// Exchanges the top for one that the others are below just so.
    pub(crate) fn set_top(&mut self, top: Arc<Layer>) {
        let settled = self.flat.on.load(Acquire);
        if let Some(place) = self.edit().first_mut() {
            *place = top;
        }
        if settled {
            self.settled();
        }
    }

    /// Whether that is the top.
    pub(crate) fn is_top(&self, layer: &Arc<Layer>) -> bool {
        self.list.first().is_some_and(|top| Arc::ptr_eq(top, layer))
    }

    /// From now on nothing but the top is written to, until [`Layers::edit`].
    pub(crate) fn settled(&self) {
        self.flat.on.store(true, Release);
    }

    /// The index, where it is of use.
    pub(crate) fn flat(&self) -> Option<&FlatIndex> {
        (self.list.len() >= LEAST_LAYERS && self.flat.on.load(Acquire)).then_some(&self.flat)
    }
}

impl Deref for Layers {
    type Target = [Arc<Layer>];
    fn deref(&self) -> &Self::Target {
        &self.list
    }
}

/// Those of now; a copy knows nothing about their content.
impl Clone for Layers {
    fn clone(&self) -> Self {
        Self::new(self.list.clone())
    }
}

/// A part of a unit that is in one layer without gaps.
#[derive(Clone, Copy, Debug)]
struct Run {
    file_offset: u64,
    /// Where it ends in the unit.
    end: u32,
    layer: u16,
}

#[derive(Debug, Default)]
struct Shard {
    /// None of a unit in too many pieces.
    units: HashMap<u64, Option<Box<[Run]>>>,
    runs: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct FlatIndex {
    on: AtomicBool,
    shards: [RwLock<Shard>; SHARDS],
}

/// Part of a range that was looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    len: u64,
    layer: u16,
    file_offset: u64,
}

enum Look {
    Found,
    /// Nothing is known yet.
    Unknown,
    /// Layer by layer.
    Crumbs,
}

thread_local! {
    static FOUND: RefCell<Vec<Vec<Found>>> = const { RefCell::new(Vec::new()) };
}

impl Reusable for Vec<Found> {
    fn pool<R>(with: impl FnOnce(&RefCell<Vec<Self>>) -> R) -> R {
        FOUND.with(with)
    }
    fn wipe(&mut self) {
        self.clear();
    }
}

impl FlatIndex {
    /// As [`crate::walk::walk`] for the layers below the first of `layers`, which are those it is the index of.
    pub(crate) fn walk<'a>(
        &self,
        layers: &'a [Arc<Layer>],
        offset: u64,
        len: u64,
        visit: &mut dyn FnMut(u64, u64, Place<'a>) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let unit = at / UNIT;
            let stop = end.min((unit + 1) * UNIT);
            let mut found = Scratch::<Vec<Found>>::take();
            let mut look = self.look(unit, at..stop, &mut found);
            if matches!(look, Look::Unknown) {
                look = match self.fill(layers, unit) {
                    Ok(()) => self.look(unit, at..stop, &mut found),
                    // It may be about something that nobody asked for.
                    Err(_) => Look::Crumbs,
                };
            }
            if !matches!(look, Look::Found) {
                walk_below(layers, at, stop - at, visit)?;
                at = stop;
                continue;
            }
            for part in found.iter() {
                let place = match layers.get(usize::from(part.layer)) {
                    Some(layer) if part.layer != NOWHERE => {
                        Place::Data { layer: layer.as_ref(), file_offset: part.file_offset }
                    }
                    _ => Place::Nowhere,
                };
                visit(at, part.len, place)?;
                at += part.len;
            }
        }
        Ok(())
    }

    fn shard(&self, unit: u64) -> &RwLock<Shard> {
        #[expect(clippy::cast_possible_truncation, reason = "a remainder of 16")]
        let index = (unit % SHARDS as u64) as usize;
        &self.shards[index]
    }

    /// What is known about a range inside a unit.
    fn look(&self, unit: u64, range: Range<u64>, found: &mut Vec<Found>) -> Look {
        let shard = self.shard(unit).read().unwrap_or_else(PoisonError::into_inner);
        let runs = match shard.units.get(&unit) {
            None => return Look::Unknown,
            Some(None) => return Look::Crumbs,
            Some(Some(runs)) => runs,
        };
        let base = unit * UNIT;
        let mut at = range.start - base;
        let end = range.end - base;
        let first = runs.partition_point(|run| u64::from(run.end) <= at);
        let mut start = first.checked_sub(1).and_then(|before| runs.get(before)).map_or(0, |run| run.end);
        for run in runs.iter().skip(first) {
            if at >= end {
                break;
            }
            let len = end.min(u64::from(run.end)) - at;
            let file_offset = run.file_offset + (at - u64::from(start));
            found.push(Found { len, layer: run.layer, file_offset });
            at += len;
            start = run.end;
        }
        if at >= end { Look::Found } else { Look::Crumbs }
    }

    /// Looks into all layers for a whole unit.
    fn fill(&self, layers: &[Arc<Layer>], unit: u64) -> io::Result<()> {
        let size = layers.first().map_or(0, |top| top.size);
        let base = unit * UNIT;
        let mut runs: Vec<Run> = Vec::new();
        let mut crumbs = false;
        walk_below(layers, base, UNIT.min(size.saturating_sub(base)), &mut |at, len, place| {
            let Ok(end) = u32::try_from(at + len - base) else { return Ok(()) };
            let (layer, file_offset) = match place {
                Place::Nowhere => (NOWHERE, 0),
                Place::Data { layer, file_offset } => {
                    let depth = layers.iter().position(|one| std::ptr::eq(one.as_ref(), layer));
                    (depth.and_then(|depth| u16::try_from(depth).ok()).unwrap_or(NOWHERE), file_offset)
                }
            };
            let start =
                runs.len().checked_sub(2).and_then(|before| runs.get(before)).map_or(0, |run| run.end);
            let full = runs.len() >= MOST_RUNS;
            match runs.last_mut() {
                Some(last)
                    if last.layer == layer
                        && (layer == NOWHERE
                            || last.file_offset + u64::from(last.end - start) == file_offset) =>
                {
                    last.end = end;
                }
                _ if full => crumbs = true,
                _ => runs.push(Run { file_offset, end, layer }),
            }
            Ok(())
        })?;
        let known = (!crumbs).then(|| runs.into_boxed_slice());
        let mut shard = self.shard(unit).write().unwrap_or_else(PoisonError::into_inner);
        if shard.runs >= SHARD_RUNS {
            *shard = Shard::default();
        }
        // A unit costs something even if it is one run.
        shard.runs += 4 + known.as_ref().map_or(0, |runs| runs.len());
        shard.units.insert(unit, known);
        Ok(())
    }
}

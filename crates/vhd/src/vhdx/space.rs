//! Where new blocks go. A place that was never part of the file reads as zeros whatever a crash leaves of it, because the log
//! makes the file as long as it has to be. Any other place may hold old bytes: it is zeroed, and that made durable,
//! before an entry of the table may name it.

use std::{io, sync::Arc};

use super::layout::{MAX_FILE_LEN, MIB, round_up};
use crate::{MetaError, Storage, alloc::FLUSH, errors::IoContext};

/// The file grows by at least this.
const GROWTH: u64 = 32 << 20;
/// Used places that are zeroed with one sync.
const BATCH: u64 = 64 << 20;

/// Hands out places.
#[derive(Debug)]
pub(crate) struct Space {
    storage: Arc<dyn Storage>,
    /// Length of the file, whole MiB once the session has begun.
    pub(crate) len: u64,
    /// First byte behind everything that is in use.
    free: u64,
    /// Places with old bytes, as start and end.
    gaps: Vec<(u64, u64)>,
    /// Places that read as zeros and will after a crash.
    clean: Vec<(u64, u64)>,
}

impl Space {
    pub(crate) fn new(storage: Arc<dyn Storage>, len: u64, free: u64, gaps: Vec<(u64, u64)>) -> Self {
        Self { storage, len, free: round_up(free, MIB), gaps, clean: Vec::new() }
    }

    /// The file ends where its last block ends. What lies behind is cut off: it may hold what an earlier session lost.
    pub(crate) fn cut_tail(&mut self) -> Result<(), MetaError> {
        if self.len != self.free {
            self.storage.set_len(self.free).meta_context("set the length of the file to", self.free)?;
            self.len = self.free;
        }
        Ok(())
    }

    /// Nothing is in use behind `end` any more.
    pub(crate) fn give_back_tail(&mut self, end: u64) {
        self.free = self.free.min(round_up(end, MIB));
    }

    /// A place of `len` bytes (whole MiB) that reads as zeros.
    pub(crate) fn take(&mut self, len: u64) -> Result<u64, MetaError> {
        if let Some(place) = cut_from(&mut self.clean, len) {
            return Ok(place);
        }
        if self.gaps.iter().any(|(start, end)| end - start >= len) {
            self.clean_gaps(len)?;
            if let Some(place) = cut_from(&mut self.clean, len) {
                return Ok(place);
            }
        }
        let (place, end) = (self.free, self.free + len);
        if end > MAX_FILE_LEN {
            return Err(MetaError::FileLimit);
        }
        if end > self.len {
            let grown = end.max(self.len.saturating_add(GROWTH).min(MAX_FILE_LEN));
            self.storage.set_len(grown).map_err(no_space("grow the file to", grown))?;
            self.len = grown;
        }
        self.free = end;
        Ok(place)
    }

    /// Makes a place with old bytes usable: the old place of a block that has no data now.
    pub(crate) fn clean(&mut self, place: u64, len: u64) -> Result<(), MetaError> {
        self.storage.zero_range(place, len).map_err(no_space("zero a block", place))?;
        self.storage.flush().meta_context(FLUSH, place)
    }

    /// Places that may be taken, ascending.
    pub(crate) fn holes(&self) -> Vec<(u64, u64)> {
        let mut all: Vec<(u64, u64)> = self.gaps.iter().chain(&self.clean).copied().collect();
        all.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (start, end) in all {
            match joined.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        joined
    }

    /// Takes that place, whatever lies there; false if it is in use by now.
    pub(crate) fn take_at(&mut self, place: u64, len: u64) -> bool {
        let end = place + len;
        let free: u64 = [&self.gaps, &self.clean]
            .into_iter()
            .flatten()
            .map(|(start, stop)| end.min(*stop).saturating_sub(place.max(*start)))
            .sum();
        if free < len {
            return false;
        }
        for list in [&mut self.gaps, &mut self.clean] {
            let split = |(start, stop): (u64, u64)| match start < end && place < stop {
                true => [(start, place.max(start)), (end.min(stop), stop)],
                false => [(start, stop), (stop, stop)],
            };
            *list = list.drain(..).flat_map(split).filter(|(start, stop)| start < stop).collect();
        }
        true
    }

    /// Places that nothing needs any more. They hold old bytes.
    pub(crate) fn free_place(&mut self, place: u64, len: u64) {
        let (mut start, mut end) = (place, place + len);
        // One hole, so that larger things fit.
        self.gaps.retain(|(from, stop)| {
            let touches = *from <= end && start <= *stop;
            if touches {
                (start, end) = (start.min(*from), end.max(*stop));
            }
            !touches
        });
        self.gaps.push((start, end));
    }

    /// Gives back a place that nothing was written to.
    pub(crate) fn put_back(&mut self, place: u64, len: u64) {
        self.clean.push((place, place + len));
    }

    /// Zeroes gaps that hold `len` bytes, several with one sync.
    fn clean_gaps(&mut self, len: u64) -> Result<(), MetaError> {
        let mut done = 0;
        let mut cleaned = Vec::new();
        while done < BATCH.max(len) {
            let Some(index) = self.gaps.iter().position(|(start, end)| end - start >= len) else { break };
            let Some(gap) = self.gaps.get_mut(index) else { break };
            let (start, end) = (gap.0, gap.1.min(gap.0 + BATCH.max(len)));
            self.storage.zero_range(start, end - start).map_err(no_space("zero unused space", start))?;
            gap.0 = end;
            if gap.0 == gap.1 {
                self.gaps.swap_remove(index);
            }
            done += end - start;
            cleaned.push((start, end));
        }
        self.storage.flush().meta_context(FLUSH, 0)?;
        self.clean.extend(cleaned);
        Ok(())
    }
}

fn cut_from(list: &mut Vec<(u64, u64)>, len: u64) -> Option<u64> {
    let index = list.iter().position(|(start, end)| end - start >= len)?;
    let slot = list.get_mut(index)?;
    let place = slot.0;
    slot.0 += len;
    if slot.0 == slot.1 {
        list.swap_remove(index);
    }
    Some(place)
}

fn no_space(action: &'static str, offset: u64) -> impl FnOnce(io::Error) -> MetaError {
    move |source| match crate::alloc::is_full(&source) {
        true => MetaError::NoSpace(source),
        false => MetaError::Io { action, offset, source },
    }
}

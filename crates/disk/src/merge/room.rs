//! Room on the volumes: what is kept free, and what is given back on the way.

use super::{
    MergeError,
    mover::{Mover, as_usize},
};
use crate::{fs::folder_of, image::ImageInfo};
use backstay_vhd::{FileSpan, ReadExtent, Source, format::footer::CREATOR};
use std::{
    io::{self, ErrorKind},
    sync::atomic::Ordering::Relaxed,
};

/// Most bytes between two neighbours in a file of ours, whose data is aligned to pages; other programs may keep something there.
const PADDING: u64 = 4096 - 512;
/// Room on the volume of the lower layer beside what is still to be moved: with less, space is given back on the way.
const SPARE: u64 = 1 << 30;
/// Bytes given back in one step, in which no write to the upper layer's file goes on.
const PUNCH: u64 = 4 << 20;

impl Mover<'_> {
    /// Refuses to move blocks whose new places would take what has to stay free on another volume: guests that stand still for lack of
    /// room would gain nothing, because what the upper layer gives back is elsewhere.
    pub(super) fn keeps_reserve(&self, batch: &[u32]) -> Result<(), MergeError> {
        let (reserve, lower) = (self.control.reserve(), self.lower()?);
        if reserve == 0 || lower.id().dev == self.upper.id().dev {
            return Ok(());
        }
        let Ok(free) = self.disk.fs.free_space(folder_of(&lower.path)) else { return Ok(()) };
        let mut needed = 0_u64;
        for block in batch {
            needed = needed.saturating_add(self.new_bytes(*block)?);
        }
        if needed == 0 || free >= reserve.saturating_add(needed) {
            return Ok(());
        }
        let words = format!("{} MiB are free, and {} MiB have to stay so", free >> 20, reserve >> 20);
        Err(self.lower_failed(io::Error::new(ErrorKind::StorageFull, words)))
    }

    /// What a block of the upper layer takes on the volume of the lower one: nothing where that has a place for it.
    fn new_bytes(&self, block: u32) -> Result<u64, MergeError> {
        let lower = self.lower()?;
        let size = u64::from(self.upper.block_size());
        let start = u64::from(block) * size;
        let len = size.min(lower.size.saturating_sub(start));
        let mut extents: Vec<ReadExtent> = Vec::new();
        if len > 0 {
            let resolved = lower.resolve(start, len, &mut extents);
            resolved.map_err(|error| self.failed(lower, "read", error.into()))?;
        }
        if extents.iter().any(|extent| matches!(extent.source, Source::Data { .. })) {
            return Ok(0);
        }
        let held = self.image()?.held_bytes(block);
        held.map_err(|error| self.failed(&self.upper, "read", error.into()))
    }

    /// Gives the space of moved blocks back, once nobody can read them, if it is needed before the merge ends. A failure costs
    /// space and nothing else.
    pub(super) fn release(&mut self, spans: Vec<FileSpan>) -> Result<(), MergeError> {
        self.wait_for_leavers()?;
        self.owed.extend(spans);
        if self.room_is_short(1) {
            self.give_back();
        }
        Ok(())
    }

    pub(super) fn give_back(&mut self) {
        for span in self.take_owed() {
            for at in (span.offset..span.offset + span.len).step_by(as_usize(PUNCH)) {
                let len = PUNCH.min(span.offset + span.len - at);
                if let Err(error) = self.upper.file.zero_range(at, len) {
                    tracing::warn!(path = %self.upper.path.display(), %error, "cannot free the space of merged blocks");
                    return;
                }
                self.control.freed(len);
            }
        }
    }

    /// Whether the lower layer's volume may not take what is left `times` times. Where that cannot be told it is short.
    pub(super) fn room_is_short(&self, times: u64) -> bool {
        let fs = &self.disk.fs;
        let room = self.lower().map(|lower| fs.free_space(folder_of(&lower.path)));
        let held = fs.metadata(&self.upper.path).map(|meta| meta.allocated);
        let occupied_for_nothing =
            self.data_moved.load(Relaxed).saturating_sub(self.control.progress().bytes_freed);
        match (room, held) {
            (Ok(Ok(room)), Ok(held)) => {
                let left = held.saturating_sub(occupied_for_nothing).saturating_mul(times);
                room < left.saturating_add(self.control.spare(SPARE))
            }
            _ => true,
        }
    }

    /// What is owed, neighbours joined.
    fn take_owed(&mut self) -> Vec<FileSpan> {
        let mut spans = std::mem::take(&mut self.owed);
        spans.sort_by_key(|span| span.offset);
        let ours = matches!(self.upper.info(), Some(ImageInfo::Vhd(info)) if info.creator == CREATOR && info.block_size >= 512 << 10);
        let padding = if ours { PADDING } else { 0 };
        let mut joined: Vec<FileSpan> = Vec::new();
        for span in spans {
            match joined.last_mut() {
                Some(last) if span.offset - (last.offset + last.len) <= padding => {
                    last.len = span.offset + span.len - last.offset;
                }
                _ => joined.push(span),
            }
        }
        joined
    }
}

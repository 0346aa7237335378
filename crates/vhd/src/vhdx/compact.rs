//! What a compaction asks of a VHDX: the same calls in the same order as [`crate::Image::layout`] and its neighbours. Where blocks
//! are is not what a user sees, so the DataWriteGuid stays.

use std::{collections::HashMap, sync::atomic::Ordering};

use super::{
    bat::{Entry, State},
    image::Image,
    layout::{BITMAP_BLOCK_LEN, MIB, PAGE_LEN, to_usize},
    session::Level,
};
use crate::{
    DiskType, FileSpan, MetaError,
    alloc::is_full,
    compact::{Empty, Item, Layout, Move},
    errors::IoContext,
};

impl Image {
    /// What lies where in the file, for a compaction; empty for a fixed disk.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let mut layout = Layout { items: Vec::new(), holes: Vec::new(), fixed_end: 0, lead: 0, align: MIB };
        if self.info.disk_type == DiskType::Fixed {
            return layout;
        }
        layout.fixed_end = self.regions_end.load(Ordering::Acquire);
        let session = self.lock_session();
        let placed = self.table.iter().filter(|(_, entry)| entry.mib != 0);
        let span = |offset, len| FileSpan { offset, len };
        layout.items = placed
            .map(|(block, entry)| (Item::Block(block), span(entry.offset(), self.geometry.block_size)))
            .collect();
        if let Some(diff) = &self.diff {
            let bitmaps = (0..self.geometry.chunks).filter_map(|chunk| Some((chunk, diff.bitmap(chunk)?)));
            layout
                .items
                .extend(bitmaps.map(|(chunk, place)| (Item::Bitmap(chunk), span(place, BITMAP_BLOCK_LEN))));
        }
        layout.items.sort_unstable_by_key(|(_, span)| span.offset);
        layout.holes = match &session {
            Some(session) => {
                session.space.holes().into_iter().map(|(start, end)| span(start, end - start)).collect()
            }
            // Somebody who only looks has no list of what is free.
            None => {
                let regions = self.regions.iter().map(|region| (region.offset, region.end()));
                let items = layout.items.iter().map(|(_, span)| (span.offset, span.offset + span.len));
                Layout::holes_between(regions.chain(items).collect(), MIB)
            }
        };
        layout
    }

    /// Takes a hole that [`Image::layout`] told of; false if it is in use by now.
    #[must_use]
    pub fn take_place(&self, place: FileSpan) -> bool {
        self.lock_session().is_some_and(|mut session| session.space.take_at(place.offset, place.len))
    }

    /// Places that nothing needs any more, durably, and where nobody reads.
    pub fn free_places(&self, places: &[FileSpan]) {
        if let Some(mut session) = self.lock_session() {
            places.iter().for_each(|place| session.space.free_place(place.offset, place.len));
        }
    }

    /// Blocks lose their places. The places they had, which are free after a flush and when nobody reads there.
    ///
    /// # Errors
    /// As [`Image::clear_entries`].
    pub fn forget_blocks(&self, blocks: &[(u32, Empty)]) -> Result<Vec<FileSpan>, MetaError> {
        let how: HashMap<u32, Empty> = blocks.iter().copied().collect();
        let numbers: Vec<u32> = blocks.iter().map(|(block, _)| *block).collect();
        let entry = |block: u32| match how.get(&block) {
            Some(Empty::Zeros) if self.diff.is_some() => Entry { state: State::Zero, mib: 0 },
            _ => Entry::ABSENT,
        };
        self.forget_shadow(&numbers)?;
        self.change_entries(&numbers, &entry)?;
        let place = |block: &u32| {
            let old = self.table.get(*block);
            self.table.set(*block, entry(*block));
            (old.mib != 0).then(|| FileSpan { offset: old.offset(), len: self.geometry.block_size })
        };
        Ok(numbers.iter().filter_map(place).collect())
    }

    /// Blocks are somewhere else: their bytes are there, durably. A flush makes it so for good.
    ///
    /// # Errors
    /// As [`Image::clear_entries`].
    pub fn set_places(&self, moves: &[Move]) -> Result<(), MetaError> {
        let moved: HashMap<u32, Entry> = moves
            .iter()
            .filter_map(|step| match step.item {
                Item::Block(block) => Some((block, Entry::at(self.table.get(block).state, step.to.offset))),
                Item::Bitmap(_) => None,
            })
            .collect();
        let numbers: Vec<u32> = moved.keys().copied().collect();
        self.forget_shadow(&numbers)?;
        let entry = |block: u32| moved.get(&block).copied().unwrap_or_else(|| self.table.get(block));
        self.change_entries(&numbers, &entry)?;
        numbers.iter().for_each(|block| self.table.set(*block, entry(*block)));
        Ok(())
    }

    /// Through the log, for the file and not for readers.
    fn change_entries(&self, blocks: &[u32], entry: &dyn Fn(u32) -> Entry) -> Result<(), MetaError> {
        self.check_writable()?;
        if blocks.is_empty() {
            return Ok(());
        }
        self.begin_session(Level::File)?;
        let result = self.log_entries(blocks, entry);
        // What the file says and what readers are told must not stay different.
        if result.is_err() && self.log_entries(blocks, |block| self.table.get(block)).is_err() {
            self.commit.fail();
        }
        result
    }

    /// Moves a sector bitmap block, durably. Its old place is free when nobody reads there. Flushes wait meanwhile.
    ///
    /// # Errors
    /// As [`Image::clear_entries`].
    pub fn move_bitmap(&self, chunk: u32, to: FileSpan) -> Result<(), MetaError> {
        self.check_writable()?;
        let Some(diff) = &self.diff else { return Ok(()) };
        let Some(from) = diff.bitmap(chunk) else { return Ok(()) };
        self.begin_session(Level::File)?;
        let Some(mut session) = self.lock_session() else { return Err(MetaError::ReadOnly) };
        self.check_writable()?;
        let moved = (|| {
            let storage = &self.view.storage;
            let mut bytes = vec![0; to_usize(BITMAP_BLOCK_LEN)];
            session.read(&mut bytes, from)?;
            storage.zero_range(to.offset, to.len).meta_context("zero a place", to.offset)?;
            for (at, page) in (to.offset..).step_by(PAGE_LEN).zip(bytes.chunks(PAGE_LEN)) {
                if page.iter().any(|byte| *byte != 0) {
                    storage.write_at(page, at).map_err(|source| match is_full(&source) {
                        true => MetaError::NoSpace(source),
                        false => MetaError::Io { action: "write a sector bitmap", offset: at, source },
                    })?;
                }
            }
            // Nothing in the log may be about the old place when something else comes to lie there.
            session.settle()?;
            session.begin_change()?;
            session.set_bitmap(chunk, to.offset)?;
            session.commit()?;
            if let Some(slot) = diff.bitmaps.get(chunk as usize) {
                slot.store(Entry::at(State::Full, to.offset).mib, Ordering::Release);
            }
            session.sync_now()
        })();
        moved.inspect_err(|error| self.note_failure(error))
    }

    /// Bits beside the file are known by the place of their block, and are in the file since the last flush.
    fn forget_shadow(&self, blocks: &[u32]) -> Result<(), MetaError> {
        let Some(shadow) = self.diff.as_ref().and_then(|diff| diff.shadow.as_ref()) else { return Ok(()) };
        blocks.iter().try_for_each(|block| shadow.forget(*block).meta_context("clear the shadow", 0))
    }
}

//! Changing how a child names its parent: new paths, a new parent, and the two steps that let the parent's content change
//! while a merge writes to it (MS-VHDX 2.6.2.6.3).
//!
//! A merge of child data into the parent gives the parent a new DataWriteGuid, after which the child would not open any
//! more if the merge were interrupted. So the child first learns the new id as `parent_linkage2`
//! ([`Image::announce_parent_change`], durable on return); then the parent is opened with that id as
//! [`super::WriteIds::data_write`] and written; whoever stays a child of it at the end takes the id over
//! ([`Image::confirm_parent_change`]). At every moment one of the two ids is the parent's.

use std::sync::PoisonError;

use uuid::Uuid;

use super::{
    image::{Image, ParentPlace},
    layout::MIB,
    locator::Locator,
    metadata::{self, Item},
    session::Level,
};
use crate::MetaError;

/// Most bytes of a parent locator that is written: it has to fit into one entry of the log.
pub const MAX_STORED_LOCATOR: usize = 160 << 10;

/// Places of items are multiples of this.
const ITEM_ALIGN: u32 = 8;

impl Image {
    /// Stores another parent locator, durably. The content of this disk stays what it is, and so does its DataWriteGuid:
    /// its own children do not notice.
    ///
    /// # Errors
    /// If the disk is not a differencing disk open for writing, the paths are too long, or the change cannot be written.
    pub fn set_parent(&self, locator: Locator) -> Result<(), MetaError> {
        self.check_writable()?;
        let mut parent = self.parent.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(item) = parent.item else { return Err(MetaError::NoParent) };
        if parent.locator.as_ref() == Some(&locator) {
            return Ok(());
        }
        let bytes = locator.to_bytes();
        let place = place_for(&parent, item, bytes.len()).ok_or(MetaError::LocatorTooLong(bytes.len()))?;
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.begin_session(Level::File)?;
        {
            let Some(mut session) = self.lock_session() else { return Err(MetaError::ReadOnly) };
            self.check_writable()?;
            session.begin_change()?;
            session.edit(parent.region.offset + u64::from(place), &bytes)?;
            let listed = parent.region.offset + u64::from(item.listed);
            session.edit(listed, &metadata::locator_entry(place, length))?;
            session.commit().inspect_err(|error| self.note_failure(error))?;
        }
        parent.item = Some(Item { offset: place, length, ..item });
        parent.free = parent.free.max(place + length);
        parent.locator = Some(locator);
        drop(parent);
        self.flush()
    }

    /// First step of a merge into the parent: the id that the parent is about to get is accepted too. Durable on return.
    ///
    /// # Errors
    /// As [`Image::set_parent`].
    pub fn announce_parent_change(&self, next: Uuid) -> Result<(), MetaError> {
        let locator = self.parent().ok_or(MetaError::NoParent)?;
        self.set_parent(Locator { linkage2: Some(next), ..locator })
    }

    /// Last step: the announced id is the parent's only one. Nothing happens if none was announced.
    ///
    /// # Errors
    /// As [`Image::set_parent`].
    pub fn confirm_parent_change(&self) -> Result<(), MetaError> {
        let locator = self.parent().ok_or(MetaError::NoParent)?;
        match locator.linkage2 {
            Some(linkage) => self.set_parent(Locator { linkage, linkage2: None, ..locator }),
            None => Ok(()),
        }
    }
}

/// Where `len` bytes go: the old place if they fit there, else behind all items. The pages in between are not touched.
fn place_for(parent: &ParentPlace, item: Item, len: usize) -> Option<u32> {
    if len > MAX_STORED_LOCATOR {
        return None;
    }
    let len = u32::try_from(len).ok()?;
    if len <= item.length {
        return Some(item.offset);
    }
    // The last item may grow in its place.
    let last = item.offset + item.length >= parent.free;
    let place = if last { item.offset } else { parent.free.next_multiple_of(ITEM_ALIGN) };
    let end = u64::from(place) + u64::from(len);
    (end <= u64::from(parent.region.length).min(MIB)).then_some(place)
}

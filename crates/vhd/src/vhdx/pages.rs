//! Pages of metadata that were changed: in the log, and not yet in their places.

use std::{
    collections::{BTreeMap, btree_map},
    io,
};

use super::layout::{PAGE, PAGE_LEN, to_usize};
use crate::Storage;

/// A page.
type Bytes = Box<[u8; PAGE_LEN]>;

#[derive(Debug)]
struct Page {
    bytes: Bytes,
    /// Position in the log of the newest entry that holds it.
    logged: u64,
}

/// Changed pages by their offset in the file.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    logged: BTreeMap<u64, Page>,
    /// Being changed: they go into the next entry.
    edited: BTreeMap<u64, Bytes>,
}

impl Pages {
    /// Changes bytes at `offset`, in the pages that hold them. They count once [`Pages::logged`] says so.
    pub(crate) fn edit(&mut self, storage: &dyn Storage, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (page, within) = (at / PAGE * PAGE, to_usize(at % PAGE));
            let len = (bytes.len() - done).min(PAGE_LEN - within);
            let target = match self.edited.entry(page) {
                btree_map::Entry::Occupied(slot) => slot.into_mut(),
                btree_map::Entry::Vacant(slot) => {
                    let bytes = match self.logged.get(&page) {
                        Some(page) => page.bytes.clone(),
                        None => read(storage, page)?,
                    };
                    slot.insert(bytes)
                }
            };
            let from = bytes.get(done..done + len).unwrap_or_default();
            if let Some(to) = target.get_mut(within..within + len) {
                to.copy_from_slice(from);
            }
            done += len;
        }
        Ok(())
    }

    /// Reads bytes as they are after all edits.
    pub(crate) fn read(&self, storage: &dyn Storage, buf: &mut [u8], offset: u64) -> io::Result<()> {
        storage.read_at(buf, offset)?;
        let end = offset + buf.len() as u64;
        let from = offset / PAGE * PAGE;
        let logged = self.logged.range(from..end).map(|(at, page)| (*at, &page.bytes));
        let edited = self.edited.range(from..end).map(|(at, bytes)| (*at, bytes));
        for (at, bytes) in logged.chain(edited) {
            let (start, stop) = (at.max(offset), (at + PAGE).min(end));
            let source = bytes.get(to_usize(start - at)..to_usize(stop - at)).unwrap_or_default();
            if let Some(to) = buf.get_mut(to_usize(start - offset)..to_usize(stop - offset)) {
                to.copy_from_slice(source);
            }
        }
        Ok(())
    }

    /// Pages being changed.
    pub(crate) fn edited(&self) -> Vec<(u64, &[u8; PAGE_LEN])> {
        self.edited.iter().map(|(at, bytes)| (*at, bytes.as_ref())).collect()
    }

    /// How many pages are being changed.
    pub(crate) fn edited_len(&self) -> usize {
        self.edited.len()
    }

    /// The changes are in the log, in an entry at `position`.
    pub(crate) fn logged(&mut self, position: u64) {
        for (at, bytes) in std::mem::take(&mut self.edited) {
            self.logged.insert(at, Page { bytes, logged: position });
        }
    }

    /// Takes the changes back.
    pub(crate) fn forget_edits(&mut self) {
        self.edited.clear();
    }

    /// Puts pages whose newest entry lies before `position` in their places.
    pub(crate) fn apply(&mut self, storage: &dyn Storage, position: u64) -> io::Result<()> {
        let ready = self.logged.iter().filter(|(_, page)| page.logged < position);
        let ready: Vec<u64> = ready.map(|(at, _)| *at).collect();
        for at in ready {
            if let Some(page) = self.logged.get(&at) {
                storage.write_at(page.bytes.as_ref(), at)?;
                self.logged.remove(&at);
            }
        }
        Ok(())
    }
}

fn read(storage: &dyn Storage, at: u64) -> io::Result<Bytes> {
    let mut bytes = Box::new([0; PAGE_LEN]);
    storage.read_at(bytes.as_mut(), at)?;
    Ok(bytes)
}

//! The file as it is once its log has been replayed.

use std::{io, sync::Arc};

use super::{errors::OpenError, header::Header, layout::to_usize, log::replay::Overlay};
use crate::{Storage, vhdx::errors::io_at};

/// A file and what its log changes.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) overlay: Overlay,
    /// Length of the file itself.
    pub(crate) stored_len: u64,
}

impl View {
    pub(crate) fn open(storage: &Arc<dyn Storage>, header: &Header, len: u64) -> Result<Self, OpenError> {
        let overlay = Overlay::load(storage.as_ref(), header, len)?;
        Ok(Self { storage: Arc::clone(storage), overlay, stored_len: len })
    }

    /// Length after the replay.
    pub(crate) fn len(&self) -> u64 {
        self.stored_len.max(self.overlay.last_len)
    }

    /// Fills `buf` from `offset`; zeros where the log makes the file longer.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let stored = to_usize(self.stored_len.saturating_sub(offset)).min(buf.len());
        let (head, rest) = buf.split_at_mut(stored);
        if !head.is_empty() {
            self.storage.read_at(head, offset)?;
        }
        rest.fill(0);
        if self.overlay.is_empty() { Ok(()) } else { self.overlay.patch(self.storage.as_ref(), buf, offset) }
    }

    /// The first byte at or after `offset` and before `end` that may be something else than zero.
    pub(crate) fn next_data(&self, offset: u64, end: u64) -> u64 {
        let stored = match self.storage.next_data(offset) {
            Ok(next) => next.unwrap_or(end),
            Err(_) => offset,
        };
        let logged = self.overlay.next_changed(offset).unwrap_or(end);
        stored.min(logged).clamp(offset, end)
    }

    /// Writes what the log changes into the file, so that the log is not needed any more.
    pub(crate) fn settle(&mut self) -> Result<(), OpenError> {
        self.overlay.apply(self.storage.as_ref(), self.stored_len)?;
        self.overlay = Overlay::default();
        self.stored_len = self.storage.len().map_err(io_at("read the length of the file", 0))?;
        Ok(())
    }
}

//! A file whose every change is made to a second one too.

use super::ranges::Ranges;
use crate::{
    fs::{DiskFile, FileId, LockKind, Shared},
    share::CopyError,
};
use backstay_vhd::Storage;
use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

/// Reads come from the old file, which stays the only one that counts: what goes wrong with the new one ends its being kept alike,
/// and nobody else notices.
#[derive(Debug)]
pub(super) struct Mirror {
    old: Arc<dyn DiskFile>,
    new: Arc<dyn DiskFile>,
    /// What is being changed or copied: two changes of one place are made to both files in one order, and between the reading
    /// and the writing of a piece that is copied nothing changes there.
    ranges: Ranges,
    /// The new file is not like the old one any more, and nothing more goes to it.
    broken: AtomicBool,
    /// Why, until it is told.
    why: Mutex<Option<io::Error>>,
}

impl Mirror {
    pub(super) fn new(old: Arc<dyn DiskFile>, new: Arc<dyn DiskFile>) -> Self {
        let (broken, why) = (AtomicBool::new(false), Mutex::default());
        Self { old, new, ranges: Ranges::default(), broken, why }
    }

    pub(super) fn old(&self) -> &Arc<dyn DiskFile> {
        &self.old
    }

    pub(super) fn target(&self) -> &Arc<dyn DiskFile> {
        &self.new
    }

    /// Why the new file is not like the old one any more; tells it once.
    pub(super) fn failure(&self) -> Option<io::Error> {
        let told = self.why.lock().unwrap_or_else(PoisonError::into_inner).take();
        told.or_else(|| {
            self.is_broken().then(|| io::Error::other("the new file is not like the old one any more"))
        })
    }

    fn is_broken(&self) -> bool {
        self.broken.load(SeqCst)
    }

    fn break_with(&self, error: io::Error) {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.broken.store(true, SeqCst);
    }

    /// Whether the new file can share the old one's space, as far as is known by now.
    pub(super) fn may_share(&self) -> bool {
        self.new.may_share(self.old.as_ref())
    }

    /// Brings a range into the new file, shared or copied. Changes of the file wait meanwhile, so it should be short.
    /// Returns how many bytes of it are done: all that there are, or as many as the buffer holds.
    pub(super) fn copy(&self, offset: u64, len: u64, buf: &mut [u8]) -> Result<u64, CopyError> {
        let _turn = self.ranges.enter(offset, len);
        // It may have become shorter.
        let there = self.old.len().map_err(CopyError::Read)?.saturating_sub(offset).min(len);
        let shared = self.new.share_range(self.old.as_ref(), offset, offset, there);
        let (start, part) = match shared.map_err(CopyError::Write)? {
            Shared::Nothing => {
                let done = there.min(buf.len() as u64);
                self.copy_bytes(offset, done, buf)?;
                return Ok(if done < there { done } else { len });
            }
            Shared::Space { start, len } | Shared::Copied { start, len } => (start, len),
        };
        // Less than what a file system shares at least.
        self.copy_bytes(offset, start, buf)?;
        self.copy_bytes(offset + start + part, there - start - part, buf)?;
        Ok(len)
    }

    fn copy_bytes(&self, offset: u64, len: u64, buf: &mut [u8]) -> Result<(), CopyError> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let step = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
            let part = buf.get_mut(..step).unwrap_or_default();
            self.old.read_at(part, at).map_err(CopyError::Read)?;
            self.new.write_at(part, at).map_err(CopyError::Write)?;
            at += step as u64;
        }
        Ok(())
    }

    /// Gives the new file the length of the old one.
    pub(super) fn copy_len(&self) -> Result<(), CopyError> {
        let _alone = self.ranges.enter_all();
        let len = self.old.len().map_err(CopyError::Read)?;
        self.new.set_len(len).map_err(CopyError::Write)
    }

    /// The caller has its turn at what is changed.
    fn both(&self, change: impl Fn(&dyn DiskFile) -> io::Result<()>) -> io::Result<()> {
        if let Err(error) = change(self.old.as_ref()) {
            // A part of it may be in the old file.
            self.break_with(io::Error::new(error.kind(), error.to_string()));
            return Err(error);
        }
        if !self.is_broken()
            && let Err(error) = change(self.new.as_ref())
        {
            self.break_with(error);
        }
        Ok(())
    }
}

impl Storage for Mirror {
    fn len(&self) -> io::Result<u64> {
        self.old.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.old.read_at(buf, offset)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.old.try_read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let _turn = self.ranges.enter(offset, buf.len() as u64);
        self.both(|file| file.write_at(buf, offset))
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let _turn = self.ranges.enter(offset, len);
        self.both(|file| match file.len()? {
            // What the new file does not have yet is copied later, as it is then.
            end if offset >= end => Ok(()),
            end => file.zero_range(offset, len.min(end - offset)),
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // One that shortens must not meet a write behind the end.
        let _alone = self.ranges.enter_all();
        self.both(|file| file.set_len(len))
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.old.allocate(offset, len)?;
        // Only that later writes do not run out of space depends on it, and those to the new file may.
        let _hint = self.new.allocate(offset, len);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        // The new file counts from the moment when it has its name, and is flushed before.
        self.old.flush()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.old.next_data(offset)
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        self.old.next_hole(offset)
    }
}

impl DiskFile for Mirror {
    fn id(&self) -> FileId {
        self.old.id()
    }

    fn lock(&self, kind: LockKind) -> io::Result<()> {
        self.old.lock(kind)
    }

    fn unlock(&self) -> io::Result<()> {
        self.old.unlock()
    }

    fn punches(&self) -> bool {
        self.old.punches()
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        self.old.start_writeback(offset, len);
    }
}

#[cfg(test)]
mod tests;

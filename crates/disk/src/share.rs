//! Filling a range of a file from a layer: shared where the file system can, copied where not.

use crate::{
    fs::{DiskFile, Shared},
    layer::{Body, Layer},
    walk::Scratch,
};
use backstay_vhd::{LayerFormat, MetaError, WriteTicket};
use std::{io, ops::AddAssign, sync::Arc};

/// A range shorter than this is copied: sharing it takes as long as copying much more, and leaves the file in pieces. Bytes.
pub(crate) const WORTH_SHARING: u64 = 32 << 10;
/// Read and written at once where something is copied, in bytes.
const PIECE: u64 = 256 << 10;
/// More than any file system shares at least, in bytes.
const MOST_UNIT: u64 = 64 << 10;

/// Which side of a copy failed.
#[derive(Debug)]
pub(crate) enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// What a range was filled with, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) shared: u64,
    pub(crate) copied: u64,
}

impl AddAssign for Filled {
    fn add_assign(&mut self, more: Self) {
        self.shared += more.shared;
        self.copied += more.copied;
    }
}

/// What a new file can do with the bytes of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Possible {
    Sharing,
    /// The server of the file system copies.
    CopyByServer,
    Nothing,
}

/// Finds out by doing it. The new file is empty, and is again.
pub(crate) fn try_sharing(new: &dyn DiskFile, from: &dyn DiskFile) -> io::Result<Possible> {
    if !new.may_share(from) {
        return Ok(Possible::Nothing);
    }
    let done = new.share_range(from, 0, 0, MOST_UNIT.min(from.len()?))?;
    if done != Shared::Nothing {
        new.set_len(0)?;
    }
    Ok(match done {
        Shared::Space { .. } => Possible::Sharing,
        Shared::Copied { .. } => Possible::CopyByServer,
        Shared::Nothing => Possible::Nothing,
    })
}

/// Fills a range of `to` with what `from` has: shared as far as that is possible. `buf` is for what is copied.
pub(crate) fn fill(
    (to, at): (&dyn DiskFile, u64),
    (from, from_at): (&Layer, u64),
    len: u64,
    buf: &mut Vec<u8>,
) -> Result<Filled, CopyError> {
    let done = to.share_range(from.file.as_ref(), from_at, at, len).map_err(CopyError::Write)?;
    let (start, part) = match done {
        Shared::Nothing => (0, 0),
        Shared::Space { start, len } | Shared::Copied { start, len } => (start, len),
    };
    let mut copy = |start: u64, end: u64| copy((to, at + start), (from, from_at + start), end - start, buf);
    copy(0, start)?;
    copy(start + part, len)?;
    let shared = if matches!(done, Shared::Space { .. }) { part } else { 0 };
    Ok(Filled { shared, copied: len - shared })
}

/// Copies a range of `from`.
pub(crate) fn copy(
    (to, mut at): (&dyn DiskFile, u64),
    (from, mut from_at): (&Layer, u64),
    len: u64,
    buf: &mut Vec<u8>,
) -> Result<(), CopyError> {
    let end = at + len;
    while at < end {
        let step = PIECE.min(end - at);
        buf.resize(usize::try_from(step).unwrap_or(usize::MAX), 0);
        from.read_data(buf, from_at, true).map_err(CopyError::Read)?;
        to.write_payload(buf, at).map_err(CopyError::Write)?;
        at += step;
        from_at += step;
    }
    Ok(())
}

/// Fills a range of the first of these layers as [`fill`] does; zeros are filled in too.
pub(crate) fn fill_layers(
    layers: &[Arc<Layer>],
    offset: u64,
    from: (&Layer, u64),
    len: u64,
    buf: &mut Vec<u8>,
) -> Result<Filled, CopyError> {
    let Some(top) = layers.first() else { return Err(CopyError::Write(MetaError::Closed.into())) };
    match &top.body {
        Body::Raw(raw) => {
            raw.check().map_err(CopyError::Write)?;
            fill((top.file.as_ref(), offset), from, len, buf)
        }
        Body::Image(image) => fill_image((top, &**image), offset, from, len, buf),
    }
}

/// Fills a range of an image as [`fill`] does; blocks are added where it has none.
pub(crate) fn fill_image(
    (to, image): (&Layer, &dyn LayerFormat),
    offset: u64,
    (from, from_at): (&Layer, u64),
    len: u64,
    buf: &mut Vec<u8>,
) -> Result<Filled, CopyError> {
    let mut ticket = Scratch::<WriteTicket>::take();
    let failed = |error: MetaError| CopyError::Write(error.into());
    image.begin_write(offset, len, &mut ticket).map_err(failed)?;
    let (mut filled, mut done) = (Filled::default(), 0);
    for extent in ticket.extents() {
        let target = (to.file.as_ref(), extent.file_offset);
        filled += fill(target, (from, from_at + done), extent.len, buf)?;
        done += extent.len;
    }
    image.complete_write(&ticket).map_err(failed)?;
    Ok(filled)
}

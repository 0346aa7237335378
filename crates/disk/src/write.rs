//! Writes, zeros and trims into the top layer.

use crate::{
    backend::ZeroMode,
    disk::Disk,
    fs::DiskFile,
    layer::{Body, Layer},
    walk::{Place, Scratch, walk},
    zero,
};
use backstay_vhd::{LayerFormat, MetaError, ReadExtent, Source, WriteTicket};
use std::{io, ops::Range, sync::Arc};

/// Zeros up to this many bytes are written; more are punched out.
const PUNCH_FROM: usize = 64 << 10;
static ZEROS: [u8; PUNCH_FROM] = [0; PUNCH_FROM];

/// Holes smaller than this free nothing on any file system.
const HOLE: u64 = 4096;

impl Disk {
    pub(crate) fn write_chain(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let chain = self.enter_to_write(offset, data.len() as u64)?;
        match &chain.routing {
            None => write_layers(&chain.layers, offset, data)?,
            Some(routing) => routing.write(&chain.layers, offset, data)?,
        }
        self.changed(offset, data.len() as u64);
        Ok(())
    }

    pub(crate) fn zero_chain(&self, offset: u64, len: u64, mode: ZeroMode) -> io::Result<()> {
        let chain = self.enter_to_write(offset, len)?;
        match &chain.routing {
            None => zero_layers(&chain.layers, offset, len, mode)?,
            Some(routing) => routing.zero(&chain.layers, offset, len, mode)?,
        }
        self.changed(offset, len);
        Ok(())
    }

    pub(crate) fn trim_chain(&self, offset: u64, len: u64) -> io::Result<()> {
        let chain = self.enter_to_write(offset, len)?;
        match &chain.routing {
            None => trim_layers(&chain.layers, offset, len)?,
            Some(routing) => routing.trim(&chain.layers, offset, len)?,
        }
        self.changed(offset, len);
        Ok(())
    }
}

/// Writes into the first of these layers; the others are its parents.
pub(crate) fn write_layers(layers: &[Arc<Layer>], offset: u64, data: &[u8]) -> io::Result<()> {
    let Some((top, parents)) = layers.split_first() else { return Err(MetaError::Closed.into()) };
    match &top.body {
        Body::Raw(raw) => {
            raw.check()?;
            top.file.write_payload(data, offset)
        }
        Body::Image(image) if top.is_flat() => write_run(top, &**image, offset, data),
        Body::Image(image) => write_sparse(top, &**image, parents, offset, data),
    }
}

/// Makes a range of the first of these layers zero; the others are its parents.
pub(crate) fn zero_layers(layers: &[Arc<Layer>], offset: u64, len: u64, mode: ZeroMode) -> io::Result<()> {
    let Some((top, parents)) = layers.split_first() else { return Err(MetaError::Closed.into()) };
    if mode.fast_only && !top.file.punches() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    match &top.body {
        Body::Raw(raw) => {
            raw.check()?;
            zero_file(top.file.as_ref(), offset, len, mode.may_unmap)
        }
        Body::Image(image) => zero_image(top, &**image, parents, offset, len, mode),
    }
}

/// Trims a range of the first of these layers; the others are its parents.
pub(crate) fn trim_layers(layers: &[Arc<Layer>], offset: u64, len: u64) -> io::Result<()> {
    let Some(top) = layers.first() else { return Err(MetaError::Closed.into()) };
    match &top.body {
        Body::Raw(raw) => {
            raw.check()?;
            punch_inside(top.file.as_ref(), offset, len)
        }
        Body::Image(image) => {
            let mut extents = Vec::new();
            image.trim_extents(offset, len, &mut extents)?;
            extents
                .iter()
                .try_for_each(|extent| punch_inside(top.file.as_ref(), extent.file_offset, extent.len))
        }
    }
}

/// Writes a range that goes to the file as a whole.
pub(crate) fn write_run(top: &Layer, image: &dyn LayerFormat, offset: u64, data: &[u8]) -> io::Result<()> {
    let mut ticket = Scratch::<WriteTicket>::take();
    image.begin_write(offset, data.len() as u64, &mut ticket)?;
    let mut rest = data;
    for extent in ticket.extents() {
        let len = usize::try_from(extent.len).unwrap_or(usize::MAX).min(rest.len());
        let (part, behind) = rest.split_at(len);
        top.file.write_payload(part, extent.file_offset)?;
        rest = behind;
    }
    Ok(image.complete_write(&ticket)?)
}

/// Writes into a file that grows: zeros that nothing would be hidden by are left out, so that they need no block.
fn write_sparse(
    top: &Layer,
    image: &dyn LayerFormat,
    parents: &[Arc<Layer>],
    offset: u64,
    data: &[u8],
) -> io::Result<()> {
    let mut extents = Scratch::<Vec<ReadExtent>>::take();
    image.resolve_read(offset, data.len() as u64, &mut extents)?;
    if extents.iter().all(|extent| matches!(extent.source, Source::Data { .. })) {
        return write_run(top, image, offset, data);
    }
    // The range that waits to be written in one go.
    let mut waiting: Range<usize> = 0..0;
    let write_waiting = |waiting: &mut Range<usize>, next: usize| {
        let run = std::mem::replace(waiting, next..next);
        if run.is_empty() { Ok(()) } else { write_run(top, image, offset + run.start as u64, &data[run]) }
    };
    let mut at = 0_usize;
    for extent in extents.iter() {
        let len = usize::try_from(extent.len).unwrap_or(usize::MAX);
        let end = at.saturating_add(len).min(data.len());
        let zeros_may_go = match extent.source {
            Source::Data { .. } => false,
            Source::Zero => true,
            // Zeros are seldom, and the parents are many.
            Source::Parent => {
                zero::has_piece(&data[at..end], offset + at as u64)
                    && !holds_data(parents, offset + at as u64, extent.len)?
            }
        };
        while at < end {
            let (run_end, zero) = match zeros_may_go {
                true => zero::next_run(&data[..end], offset, at),
                false => (end, false),
            };
            match zero {
                true => write_waiting(&mut waiting, run_end)?,
                false => waiting.end = run_end,
            }
            at = run_end;
        }
    }
    write_waiting(&mut waiting, at)
}

/// Whether a file of the chain holds any part of the range.
fn holds_data(layers: &[Arc<Layer>], offset: u64, len: u64) -> io::Result<bool> {
    let mut holds = false;
    walk(layers, offset, len, &mut |_, _, place| {
        holds |= matches!(place, Place::Data { .. });
        Ok(())
    })?;
    Ok(holds)
}

fn zero_image(
    top: &Layer,
    image: &dyn LayerFormat,
    parents: &[Arc<Layer>],
    offset: u64,
    len: u64,
    mode: ZeroMode,
) -> io::Result<()> {
    let mut extents = Scratch::<Vec<ReadExtent>>::take();
    image.resolve_read(offset, len, &mut extents)?;
    let mut at = offset;
    for extent in extents.iter() {
        let skip = match extent.source {
            Source::Data { .. } => false,
            Source::Zero => true,
            Source::Parent => !holds_data(parents, at, extent.len)?,
        };
        if !skip {
            let mut ticket = Scratch::<WriteTicket>::take();
            image.begin_zero(at, extent.len, &mut ticket)?;
            // A fixed disk keeps its space.
            let unmap = mode.may_unmap && !top.is_flat();
            for part in ticket.extents() {
                zero_file(top.file.as_ref(), part.file_offset, part.len, unmap)?;
            }
            image.complete_write(&ticket)?;
        }
        at += extent.len;
    }
    Ok(())
}

/// Makes a range of a file read as zeros. Without `unmap` its space is kept, where the file system can.
fn zero_file(file: &dyn DiskFile, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    if let Some(zeros) = usize::try_from(len).ok().and_then(|len| ZEROS.get(..len)) {
        return file.write_payload(zeros, offset);
    }
    file.zero_range(offset, len)?;
    if unmap {
        return Ok(());
    }
    match file.allocate(offset, len) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        other => other,
    }
}

/// Frees the whole pages inside a range of a file; the rest keeps its content.
fn punch_inside(file: &dyn DiskFile, offset: u64, len: u64) -> io::Result<()> {
    let start = offset.next_multiple_of(HOLE);
    let end = (offset + len) / HOLE * HOLE;
    if start >= end || !file.punches() { Ok(()) } else { file.zero_range(start, end - start) }
}

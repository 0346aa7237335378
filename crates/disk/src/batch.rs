//! Several requests at a time.
//!
//! Those that are one run of one file, in whole pages, go to the kernel together, past the page cache. Whatever is not as simple
//! (blocks to allocate, a range in many layers, a merge under way) goes the way of a single request.

use crate::{
    backend::{Backend, BatchData, BatchDone, BatchOp},
    chain::Chain,
    disk::Disk,
    flat::Layers,
    fs::{
        DIRECT_UNIT, RingFile,
        ring::{self, Buf, Transfer},
    },
    layer::{Body, Layer},
    stats::Op,
    walk::{Place, Scratch, walk_known},
};
use backstay_vhd::{LayerFormat, ReadExtent, Source, WriteTicket};
use std::{io, sync::PoisonError};

/// What is to be done when a transfer has ended.
struct Waiting<'a> {
    /// Which request it is.
    index: usize,
    offset: u64,
    /// A write into an image.
    written: Option<(&'a dyn LayerFormat, Scratch<WriteTicket>)>,
}

impl Disk {
    /// Whether [`Disk::run_batch`] gains anything.
    pub(crate) fn is_past_cache(&self) -> bool {
        ring::available() && self.chain.enter().layers.first().is_some_and(|top| top.file.direct().is_some())
    }

    /// Carries requests out, which may be of any kind and in any order.
    pub(crate) fn run_batch(&self, ops: Vec<BatchOp<'_>>, done: BatchDone<'_>) {
        for (index, op) in self.run_together(ops, done) {
            match op.data {
                BatchData::Read(buf) => {
                    let result = self.read(op.offset, buf);
                    done(index, buf, result);
                }
                BatchData::Write(data) => {
                    let result = self.write(op.offset, data);
                    done(index, data, result);
                }
            }
        }
    }

    /// Those that can go together; returns the others.
    fn run_together<'b>(&self, ops: Vec<BatchOp<'b>>, done: BatchDone<'_>) -> Vec<(usize, BatchOp<'b>)> {
        let ops = ops.into_iter().enumerate();
        // Whoever closed it is told by the single requests.
        let Ok(chain) = self.enter() else { return ops.collect() };
        let Some(top) = chain.top().filter(|_| chain.routing.is_none() && chain.holds.is_none()) else {
            return ops.collect();
        };
        let (mut others, mut transfers, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for (index, op) in ops {
            match self.transfer(&chain, index, op) {
                Ok((transfer, then)) => {
                    transfers.push(transfer);
                    waiting.push(then);
                }
                Err(op) => others.push((index, op)),
            }
        }
        let direct = top.file.direct();
        let _others_write_parts_later =
            direct.as_ref().map(|direct| direct.parts.read().unwrap_or_else(PoisonError::into_inner));
        ring::run(&mut transfers, &mut |at, buf, result| {
            let Some(then) = waiting.get(at) else { return };
            let len = buf.bytes().len() as u64;
            let result = match buf {
                Buf::Read(_) => self.count(Op::Read(len), result),
                Buf::Write(_) => {
                    let result = result.and_then(|()| match &then.written {
                        Some((image, ticket)) => Ok(image.complete_write(ticket)?),
                        None => Ok(()),
                    });
                    self.count(Op::Write(len), result.inspect(|()| self.changed(then.offset, len)))
                }
            };
            done(then.index, buf.bytes(), result);
        });
        others
    }

    /// A request as one transfer; else it comes back.
    fn transfer<'a, 'b: 'a>(
        &self,
        chain: &'a Chain,
        index: usize,
        op: BatchOp<'b>,
    ) -> Result<(Transfer<'a>, Waiting<'a>), BatchOp<'b>> {
        let BatchOp { offset, data } = op;
        let len = data.bytes().len() as u64;
        let address = data.bytes().as_ptr().addr() as u64;
        if len == 0 || !(len | address).is_multiple_of(DIRECT_UNIT) || self.check_range(offset, len).is_err()
        {
            return Err(BatchOp { offset, data });
        }
        let place = match &data {
            BatchData::Read(_) => one_place(&chain.layers, offset, len).map(|place| (place, None)),
            BatchData::Write(_) if self.read_only() => None,
            BatchData::Write(_) => chain.top().and_then(|top| own_place(top, offset, len)),
        };
        let Some(((file, file_offset), written)) = place else { return Err(BatchOp { offset, data }) };
        let buf = match data {
            BatchData::Read(buf) => Buf::Read(buf),
            BatchData::Write(data) => Buf::Write(data),
        };
        Ok((Transfer { file, offset: file_offset, buf }, Waiting { index, offset, written }))
    }
}

type FilePlace<'a> = (RingFile<'a>, u64);

/// Where a file has the range, if it does in whole pages.
fn in_pages(layer: &Layer, file_offset: u64, len: u64) -> Option<FilePlace<'_>> {
    // A raw file may end inside its last sector.
    let ends = matches!(layer.body, Body::Raw(_)) && file_offset + len + DIRECT_UNIT > layer.size;
    let file = layer.file.direct().filter(|_| !ends && file_offset.is_multiple_of(DIRECT_UNIT))?;
    Some((file, file_offset))
}

/// Where a range is that is in one run of one file.
fn one_place(layers: &Layers, offset: u64, len: u64) -> Option<FilePlace<'_>> {
    let mut found = None;
    let walked = walk_known(layers, offset, len, &mut |at, run, place| match place {
        Place::Data { layer, file_offset } if at == offset && run == len => {
            found = in_pages(layer, file_offset, len);
            Ok(())
        }
        // In pieces: no need to look at them all.
        _ => Err(io::ErrorKind::Interrupted.into()),
    });
    found.filter(|_| walked.is_ok())
}

type Written<'a> = Option<(&'a dyn LayerFormat, Scratch<WriteTicket>)>;

/// Where a write goes that needs no space and overwrites one run of the top.
fn own_place(top: &Layer, offset: u64, len: u64) -> Option<(FilePlace<'_>, Written<'_>)> {
    let image = match &top.body {
        Body::Raw(raw) => {
            raw.check().ok()?;
            return in_pages(top, offset, len).map(|place| (place, None));
        }
        Body::Image(image) => &**image,
    };
    let mut extents = Scratch::<Vec<ReadExtent>>::take();
    image.resolve_read(offset, len, &mut extents).ok()?;
    let [ReadExtent { source: Source::Data { file_offset }, .. }] = extents.as_slice() else { return None };
    let place = in_pages(top, *file_offset, len)?;
    let mut ticket = Scratch::<WriteTicket>::take();
    image.begin_write(offset, len, &mut ticket).ok()?;
    let same =
        matches!(ticket.extents(), [extent] if extent.file_offset == *file_offset && extent.len == len);
    if !same {
        // Nothing was allocated for data that had its place; nothing is lost by beginning again.
        debug_assert!(same, "what is read from a place is written there");
        return None;
    }
    Some((place, Some((image, ticket))))
}

//! What of a range is allocated, for NBD's `base:allocation` and for copying.

use crate::{
    backend::BlockStatus,
    flat::Layers,
    layer::Layer,
    walk::{Place, walk_known},
};
use std::{io, ops::ControlFlow};

/// Whose files are asked for holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holes {
    /// All.
    All,
    /// Those of fixed disks and raw files. The blocks of others were written to, and each costs two system calls.
    OfFlatFiles,
}

/// Allocation of a range; at most `limit` runs.
pub(crate) fn block_status(
    layers: &Layers,
    offset: u64,
    len: u64,
    limit: usize,
    holes: Holes,
) -> io::Result<Vec<BlockStatus>> {
    let mut runs = Runs { found: Vec::new(), limit };
    let mut add = |status| match runs.add(status) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(io::Error::from(io::ErrorKind::Interrupted)),
    };
    let walked = walk_known(layers, offset, len, &mut |_, len, place| match place {
        Place::Nowhere => add(BlockStatus { len, hole: true, zero: true }),
        Place::Data { layer, .. } if holes == Holes::OfFlatFiles && !layer.is_flat() => {
            add(BlockStatus { len, hole: false, zero: false })
        }
        Place::Data { layer, file_offset } => data_runs(layer, file_offset, len, &mut |len, data| {
            add(BlockStatus { len, hole: !data && layer.is_flat(), zero: !data })
        }),
    });
    match walked {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(runs.found),
    }
}

/// Splits a range of a file into data and holes.
pub(crate) fn data_runs(
    layer: &Layer,
    file_offset: u64,
    len: u64,
    visit: &mut dyn FnMut(u64, bool) -> io::Result<()>,
) -> io::Result<()> {
    let end = file_offset + len;
    let mut at = file_offset;
    let sector = u64::from(layer.sector_size());
    // Sectors of the disk: those of the file may be shifted.
    let down = |place: u64| file_offset + place.saturating_sub(file_offset) / sector * sector;
    let up = |place: u64| file_offset + place.saturating_sub(file_offset).next_multiple_of(sector);
    while at < end {
        let data = layer.file.next_data(at)?.unwrap_or(u64::MAX);
        // Whole sectors: a run of a disk never ends inside one.
        let hole_end = down(data).clamp(at, end);
        if hole_end > at {
            visit(hole_end - at, false)?;
            at = hole_end;
        }
        if at < end {
            let hole = layer.file.next_hole(data.max(at))?;
            let data_end = up(hole.max(at + 1)).min(end);
            visit(data_end - at, true)?;
            at = data_end;
        }
    }
    Ok(())
}

struct Runs {
    found: Vec<BlockStatus>,
    limit: usize,
}

impl Runs {
    fn add(&mut self, status: BlockStatus) -> ControlFlow<()> {
        if let Some(last) = self.found.last_mut()
            && (last.hole, last.zero) == (status.hole, status.zero)
        {
            last.len += status.len;
            return ControlFlow::Continue(());
        }
        if self.found.len() >= self.limit.max(1) {
            return ControlFlow::Break(());
        }
        self.found.push(status);
        ControlFlow::Continue(())
    }
}

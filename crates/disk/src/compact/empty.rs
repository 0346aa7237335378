//! Whether a block holds anything that is worth its place.

use crate::{disk::read_chain, layer::Layer, status::data_runs, volume::FreeMap, zero};
use backstay_vhd::{Format, LayerFormat, ReadExtent, Source, compact::Empty};
use std::{io, sync::Arc};

/// Read first; most blocks with data show it at once.
const FIRST: u64 = 4096;
/// Read at most at once.
const MOST: u64 = 1 << 20;

/// Looks at blocks of the first of these layers; the others are its parents.
#[derive(Debug)]
pub(super) struct Looking<'a> {
    pub(super) layers: &'a [Arc<Layer>],
    /// What no file system on the disk needs: any content will do there.
    pub(super) free: Option<&'a FreeMap>,
    pub(super) buf: Vec<u8>,
}

impl Looking<'_> {
    /// How the block can be stored without a place; `None` if it cannot. Reads up to the first byte that is not zero.
    pub(super) fn empty(&mut self, image: &dyn LayerFormat, block: u32) -> io::Result<Option<Empty>> {
        let Some((top, parents)) = self.layers.split_first() else { return Ok(None) };
        let size = u64::from(top.block_size());
        let start = u64::from(block) * size;
        let Some(len) = top.size.checked_sub(start).map(|left| left.min(size)).filter(|len| *len > 0) else {
            return Ok(None);
        };
        let mut extents: Vec<ReadExtent> = Vec::new();
        image.resolve_read(start, len, &mut extents)?;
        let mut at = start;
        for extent in &extents {
            if let Source::Data { file_offset } = extent.source {
                for (used, len) in self.needed(at, extent.len) {
                    if !self.is_zero_in_file(top, file_offset + (used - at), len)? {
                        return Ok(None);
                    }
                }
            }
            at += extent.len;
        }
        // What is zero here must be so without the block: the parent is seen there then.
        if self.parent_is_zero(parents, start, &extents, false)? {
            return Ok(Some(Empty::Absent));
        }
        let hides = image.format() == Format::Vhdx && self.parent_is_zero(parents, start, &extents, true)?;
        Ok(hides.then_some(Empty::Zeros))
    }

    /// The parts of a range whose content counts.
    fn needed(&self, offset: u64, len: u64) -> Vec<(u64, u64)> {
        self.free.map_or_else(|| vec![(offset, len)], |free| free.used_in(offset, len))
    }

    /// Whether the parent is zero where it is seen (`shown`), or where it is not.
    fn parent_is_zero(
        &mut self,
        parents: &[Arc<Layer>],
        start: u64,
        extents: &[ReadExtent],
        shown: bool,
    ) -> io::Result<bool> {
        let mut at = start;
        for extent in extents.iter().filter(|_| !parents.is_empty()) {
            if (extent.source == Source::Parent) == shown {
                for (used, len) in self.needed(at, extent.len) {
                    if !self.is_zero_in_chain(parents, used, len)? {
                        return Ok(false);
                    }
                }
            }
            at += extent.len;
        }
        Ok(true)
    }

    fn is_zero_in_file(&mut self, top: &Layer, file_offset: u64, len: u64) -> io::Result<bool> {
        let mut zero = true;
        let mut at = file_offset;
        let buf = &mut self.buf;
        data_runs(top, file_offset, len, &mut |len, data| {
            if data && zero {
                zero = is_zero(buf, at, len, &mut |part, at| top.read_data(part, at, true))?;
            }
            at += len;
            Ok(())
        })?;
        Ok(zero)
    }

    fn is_zero_in_chain(&mut self, layers: &[Arc<Layer>], offset: u64, len: u64) -> io::Result<bool> {
        is_zero(&mut self.buf, offset, len, &mut |part, at| read_chain(layers, at, part, true))
    }
}

fn is_zero(
    buf: &mut Vec<u8>,
    offset: u64,
    len: u64,
    read: &mut dyn FnMut(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<bool> {
    let (mut done, mut piece) = (0, FIRST);
    while done < len {
        let part = piece.min(len - done);
        buf.resize(usize::try_from(part).unwrap_or(usize::MAX), 0);
        read(buf, offset + done)?;
        if !zero::is_zero(buf) {
            return Ok(false);
        }
        done += part;
        piece = (piece * 4).min(MOST);
    }
    Ok(true)
}

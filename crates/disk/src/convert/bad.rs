//! What to do where a medium does not give its bytes back: find out which sectors exactly, and either say so or go on with
//! zeros in their place. One sector less is no reason to lose a machine.

use crate::{
    disk::read_chain,
    layer::Layer,
    walk::{Place, walk},
};
use std::{fmt, io, path::PathBuf, sync::Arc};

/// Most ranges that are kept; a disk with more is not worth its list.
const MOST_RANGES: usize = 100_000;

/// A range that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRange {
    /// Offset in the disk, in bytes.
    pub offset: u64,
    /// Bytes: whole sectors.
    pub len: u64,
    /// The file that holds them.
    pub file: PathBuf,
    /// Where in that file, in bytes; none: the tables that would tell cannot be read either.
    pub file_offset: Option<u64>,
}

impl fmt::Display for BadRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (offset, len, file) = (self.offset, self.len, self.file.display());
        match self.file_offset {
            Some(at) => write!(f, "{len} bytes from {offset} of the disk, at {at} in {file}"),
            None => write!(f, "{len} bytes from {offset} of the disk, whose place in {file} cannot be read"),
        }
    }
}

/// Whether the error says that a medium lost these bytes, rather than that something is wrong with the request.
pub(super) fn is_medium(error: &io::Error) -> bool {
    // A checksum of the file system that does not fit is told as one of the last four.
    const LOST: [i32; 6] =
        [libc::EIO, libc::ENODATA, libc::EREMOTEIO, libc::EILSEQ, libc::EBADMSG, libc::EUCLEAN];
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if io.raw_os_error().is_some_and(|number| LOST.contains(&number)) {
                return true;
            }
            // An error that was wrapped is not among the sources of the wrapper.
            cause = io.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
        } else {
            cause = error.source();
        }
    }
    false
}

/// Ranges in the order of the disk, neighbours together.
#[derive(Debug, Default)]
pub(super) struct BadRanges(Vec<BadRange>);

impl BadRanges {
    pub(super) fn add(&mut self, found: Vec<BadRange>) -> io::Result<()> {
        self.0.extend(found);
        if self.0.len() > 2 * MOST_RANGES {
            self.tidy();
            if self.0.len() > MOST_RANGES {
                return Err(io::Error::other(format!(
                    "more than {MOST_RANGES} separate places of it cannot be read: this medium needs a recovery of its own"
                )));
            }
        }
        Ok(())
    }

    fn tidy(&mut self) {
        self.0.sort_by_key(|range| range.offset);
        self.0.dedup_by(|next, last| {
            let joins = last.offset + last.len == next.offset
                && last.file == next.file
                && last.file_offset.map(|at| at + last.len) == next.file_offset;
            if joins {
                last.len += next.len;
            }
            joins
        });
    }

    pub(super) fn into_list(mut self) -> Vec<BadRange> {
        self.tidy();
        self.0
    }
}

/// Reads a range that could not be read as a whole: what there is of it, and zeros in the places that are told. With
/// `first_only` it ends at the first of them.
pub(super) fn read_around(
    layers: &[Arc<Layer>],
    offset: u64,
    buf: &mut [u8],
    first_only: bool,
) -> io::Result<Vec<BadRange>> {
    let sector = layers.first().map_or(512, |top| top.sector_size());
    let mut lost = Vec::new();
    narrow(layers, offset, buf, usize::try_from(sector).unwrap_or(512), first_only, &mut lost)?;
    let mut found = Vec::new();
    for (offset, len) in lost {
        places(layers, offset, len, &mut found);
    }
    Ok(found)
}

/// Halves what cannot be read until it is one sector.
fn narrow(
    layers: &[Arc<Layer>],
    offset: u64,
    buf: &mut [u8],
    sector: usize,
    first_only: bool,
    lost: &mut Vec<(u64, u64)>,
) -> io::Result<()> {
    match read_chain(layers, offset, buf, true) {
        Ok(()) => return Ok(()),
        Err(error) if !is_medium(&error) => return Err(error),
        Err(_) => {}
    }
    if buf.len() <= sector {
        buf.fill(0);
        match lost.last_mut() {
            Some((start, len)) if *start + *len == offset => *len += buf.len() as u64,
            _ => lost.push((offset, buf.len() as u64)),
        }
        return Ok(());
    }
    let half = (buf.len() / 2).next_multiple_of(sector).min(buf.len());
    let (head, tail) = buf.split_at_mut(half);
    narrow(layers, offset, head, sector, first_only, lost)?;
    let ended = lost.last().is_some_and(|(start, len)| start + len < offset + half as u64);
    if first_only && ended {
        return Ok(());
    }
    narrow(layers, offset + half as u64, tail, sector, first_only, lost)
}

/// Where a lost range is.
fn places(layers: &[Arc<Layer>], offset: u64, len: u64, found: &mut Vec<BadRange>) {
    let before = found.len();
    let walked = walk(layers, offset, len, &mut |at, len, place| {
        if let Place::Data { layer, file_offset } = place {
            let file = layer.path.clone();
            found.push(BadRange { offset: at, len, file, file_offset: Some(file_offset) });
        }
        Ok(())
    });
    if walked.is_err() {
        found.truncate(before);
        let file = layers.first().map(|top| top.path.clone()).unwrap_or_default();
        found.push(BadRange { offset, len, file, file_offset: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_range_unless_their_places_are_not() {
        let at = |offset, file_offset| BadRange { offset, len: 512, file: "a".into(), file_offset };
        let mut ranges = BadRanges::default();
        ranges
            .add(vec![at(1024, Some(5024)), at(0, Some(4000)), at(512, Some(4512)), at(1536, None)])
            .unwrap();
        let found: Vec<_> = ranges.into_list().iter().map(|range| (range.offset, range.len)).collect();
        assert_eq!(found, [(0, 1536), (1536, 512)]);
    }

    #[test]
    fn only_what_a_medium_says_is_skipped() {
        let io = |number| io::Error::from_raw_os_error(number);
        assert!(is_medium(&io(libc::EIO)) && is_medium(&io(libc::ENODATA)));
        assert!(is_medium(&io::Error::other(io(libc::EIO))), "also below another error");
        assert!(!is_medium(&io(libc::ENOSPC)) && !is_medium(&io::ErrorKind::UnexpectedEof.into()));
    }
}

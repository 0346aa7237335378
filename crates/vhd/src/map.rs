//! What a disk's own file holds, range by range.

use std::io;

use thiserror::Error;

use crate::{LayerFormat, MetaError, Source};

/// A range of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRange {
    /// Offset in the disk, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where it is.
    pub kind: MapKind,
}

/// Where a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// In the file.
    Data {
        /// Offset in the file, in bytes.
        file_offset: u64,
    },
    /// In the file by its metadata, but as a hole: it reads as zeros and takes no space.
    Hole {
        /// Offset in the file, in bytes.
        file_offset: u64,
    },
    /// Nowhere: it reads as zeros.
    Zero,
    /// In the parent.
    Parent,
}

/// Why a map could not be made.
#[derive(Debug, Error)]
pub enum MapError {
    /// The metadata could not be read.
    #[error("cannot tell where the disk's data is")]
    Meta(#[source] MetaError),
    /// The file system did not tell its holes.
    #[error("cannot find the holes of the file at offset {offset}")]
    Holes {
        /// Where, in bytes.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Maps the whole disk, in order and without gaps.
///
/// # Errors
/// If a bitmap cannot be read or the file system does not tell its holes.
pub fn map(image: &dyn LayerFormat) -> Result<Vec<MapRange>, MapError> {
    let mut extents = Vec::new();
    image.resolve_read(0, image.size(), &mut extents).map_err(MapError::Meta)?;
    let mut ranges = Vec::with_capacity(extents.len());
    let mut offset = 0;
    for extent in extents {
        match extent.source {
            Source::Zero => ranges.push(MapRange { offset, len: extent.len, kind: MapKind::Zero }),
            Source::Parent => ranges.push(MapRange { offset, len: extent.len, kind: MapKind::Parent }),
            Source::Data { file_offset } => split_holes(image, offset, file_offset, extent.len, &mut ranges)?,
        }
        offset += extent.len;
    }
    Ok(ranges)
}

fn split_holes(
    image: &dyn LayerFormat,
    offset: u64,
    file_offset: u64,
    len: u64,
    ranges: &mut Vec<MapRange>,
) -> Result<(), MapError> {
    let storage = image.storage();
    let end = file_offset + len;
    let mut at = file_offset;
    while at < end {
        let holes = |source| MapError::Holes { offset: at, source };
        let data = storage.next_data(at).map_err(holes)?.unwrap_or(end).clamp(at, end);
        let (next, kind) = if data > at {
            (data, MapKind::Hole { file_offset: at })
        } else {
            let hole = storage.next_hole(at).map_err(holes)?.min(end);
            // A file that shrinks under us must not stop progress.
            (if hole > at { hole } else { end }, MapKind::Data { file_offset: at })
        };
        ranges.push(MapRange { offset: offset + (at - file_offset), len: next - at, kind });
        at = next;
    }
    Ok(())
}

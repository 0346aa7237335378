//! `disk map`

use super::files::{FormatArgs, OneFile};
use crate::context::Context;
use crate::output::{self, Column};
use backstay_disk::{Disk, DiskFormat, OpenError};
use backstay_vhd::map::{MapKind, MapRange, map};
use clap::{Args, ValueHint};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Where each range of a disk is stored: in which file of the chain and at which offset, or nowhere (it \
                  reads as zeros). `hole` has a place in a file but takes no space.",
    after_long_help = "Examples:\n  backstay disk map web.vhd\n  backstay disk map web.avhd --layer -o csv"
)]
pub struct MapArgs {
    /// The file
    #[arg(value_hint = ValueHint::FilePath)]
    path: PathBuf,
    /// Only what the named file holds; the rest is `parent`
    #[arg(long)]
    layer: bool,
    #[command(flatten)]
    format: FormatArgs,
}

/// A range of the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Range {
    offset: u64,
    length: u64,
    /// `data`, `hole`, `zero` or `parent`.
    kind: &'static str,
    /// Place in the chain of the file that decides, 0 is the named one.
    depth: usize,
    file: Option<PathBuf>,
    file_offset: Option<u64>,
}

const COLUMNS: [Column<Range>; 6] = [
    Column::new("OFFSET", |range| range.offset.to_string()),
    Column::new("LENGTH", |range| range.length.to_string()),
    Column::new("KIND", |range| range.kind.into()),
    Column::new("DEPTH", |range| range.depth.to_string()),
    Column::new("FILE OFFSET", |range| range.file_offset.map(|o| o.to_string()).unwrap_or_default()),
    Column::new("FILE", |range| range.file.as_ref().map(|f| f.display().to_string()).unwrap_or_default()),
];

/// One file of the chain and its own map.
struct Layer {
    path: PathBuf,
    ranges: Vec<MapRange>,
}

/// Runs it.
pub fn run(context: &Context, args: &MapArgs) -> anyhow::Result<()> {
    let top = args.format.of(&args.path)?;
    // Held until the end, so that no file of the chain changes meanwhile.
    let (_chain, files) = if args.layer {
        (None, vec![args.path.clone()])
    } else {
        let disk = Disk::open(&args.path, args.format.read_only())?;
        let files = disk.chain().into_iter().map(|layer| layer.path).collect();
        (Some(disk), files)
    };
    let mut layers = Vec::new();
    for (depth, path) in files.iter().enumerate() {
        let format = if depth == 0 { top } else { DiskFormat::Vhd };
        layers.push(Layer { path: path.clone(), ranges: own_ranges(path, format)? });
    }
    let size = layers.first().and_then(|top| top.ranges.last()).map_or(0, |last| last.offset + last.len);
    let mut ranges = Vec::new();
    resolve(&layers, 0, 0, size, &mut ranges);
    output::list(context.format, &ranges, &COLUMNS, |range| range.offset.to_string())
}

/// What one file holds of the disk.
fn own_ranges(path: &Path, format: DiskFormat) -> anyhow::Result<Vec<MapRange>> {
    let file = OneFile::open(path, false)?;
    if format == DiskFormat::Vhd {
        return Ok(map(&file.image()?)?);
    }
    let failed = |source| OpenError::Io { path: path.into(), action: "find the holes of", source };
    let end = file.file.len().map_err(failed)?;
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < end {
        let data = file.file.next_data(at).map_err(failed)?.unwrap_or(end).clamp(at, end);
        let (next, kind) = if data > at {
            (data, MapKind::Hole { file_offset: at })
        } else {
            (file.file.next_hole(at).map_err(failed)?.clamp(at + 1, end), MapKind::Data { file_offset: at })
        };
        ranges.push(MapRange { offset: at, len: next - at, kind });
        at = next;
    }
    Ok(ranges)
}

/// Adds the range as the chain from `depth` on resolves it. At most 256 layers deep.
fn resolve(layers: &[Layer], depth: usize, offset: u64, len: u64, out: &mut Vec<Range>) {
    let end = offset + len;
    let Some(layer) = layers.get(depth) else {
        // Past the end of a parent that is shorter than its child, or a parent nobody looked for.
        return add(out, Range { offset, length: len, kind: "zero", depth, file: None, file_offset: None });
    };
    let first = layer.ranges.partition_point(|range| range.offset + range.len <= offset);
    let mut at = offset;
    for range in layer.ranges.iter().skip(first).take_while(|range| range.offset < end) {
        let length = (range.offset + range.len).min(end) - at;
        let stored = |kind, file_offset: u64| Range {
            offset: at,
            length,
            kind,
            depth,
            file: Some(layer.path.clone()),
            file_offset: Some(file_offset + (at - range.offset)),
        };
        let nowhere = |kind| Range { offset: at, length, kind, depth, file: None, file_offset: None };
        match range.kind {
            MapKind::Data { file_offset } => add(out, stored("data", file_offset)),
            MapKind::Hole { file_offset } => add(out, stored("hole", file_offset)),
            MapKind::Zero => add(out, nowhere("zero")),
            MapKind::Parent if layers.len() == 1 => add(out, nowhere("parent")),
            MapKind::Parent => resolve(layers, depth + 1, at, length, out),
        }
        at += length;
    }
    if at < end {
        add(out, Range { offset: at, length: end - at, kind: "zero", depth, file: None, file_offset: None });
    }
}

/// Adds a range, or lengthens the last one when the new one goes on where it ends.
fn add(out: &mut Vec<Range>, range: Range) {
    if let Some(last) = out.last_mut()
        && (last.kind, last.depth) == (range.kind, range.depth)
        && last.file == range.file
        && last.file_offset.map(|offset| offset + last.length) == range.file_offset
    {
        last.length += range.length;
        return;
    }
    out.push(range);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_from_the_first_file_that_has_them() {
        let layer = |path: &str, ranges: &[(u64, u64, MapKind)]| Layer {
            path: path.into(),
            ranges: ranges.iter().map(|&(offset, len, kind)| MapRange { offset, len, kind }).collect(),
        };
        let layers = [
            layer(
                "top",
                &[
                    (0, 10, MapKind::Parent),
                    (10, 10, MapKind::Data { file_offset: 100 }),
                    (20, 20, MapKind::Parent),
                ],
            ),
            // Shorter than its child.
            layer("base", &[(0, 5, MapKind::Data { file_offset: 7 }), (5, 25, MapKind::Zero)]),
        ];
        let mut out = Vec::new();
        resolve(&layers, 0, 0, 40, &mut out);
        let seen: Vec<_> = out.iter().map(|r| (r.offset, r.length, r.kind, r.depth, r.file_offset)).collect();
        assert_eq!(
            seen,
            [
                (0, 5, "data", 1, Some(7)),
                (5, 5, "zero", 1, None),
                (10, 10, "data", 0, Some(100)),
                (20, 20, "zero", 1, None),
            ]
        );
    }
}

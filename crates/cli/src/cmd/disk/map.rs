//! `disk map`

use super::files::FormatArgs;
use super::in_use;
use crate::context::{Context, absolute};
use crate::output::{self, Column};
use backstay_api::{DiskMapQuery, DiskRange as Range};
use backstay_disk::fs::HostFs;
use backstay_disk::{Disk, DiskOptions, map_file};
use backstay_vhd::map::{MapKind, MapRange};
use clap::{Args, ValueHint};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Where each range of a disk is stored: in which file of the chain and at which offset, or nowhere (it \
                  reads as zeros). `hole` has a place in a file but takes no space. Of a file that a running machine \
                  writes to, the daemon tells.",
    after_long_help = "Examples:\n  backstay disk map web.vhdx\n  backstay disk map web.avhdx --layer -o csv"
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

const COLUMNS: [Column<Range>; 6] = [
    Column::new("OFFSET", |range| range.offset.to_string()),
    Column::new("LENGTH", |range| range.length.to_string()),
    Column::new("KIND", |range| range.kind.clone()),
    Column::new("DEPTH", |range| range.depth.map(|d| d.to_string()).unwrap_or_default()),
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
    let ranges = match here(args) {
        Err(error) if in_use::locked_file(&error).is_some() => in_use::from_daemon(context, error, async {
            let mut ranges = Vec::new();
            let path = absolute(&args.path)?;
            let mut query = DiskMapQuery { path, layer: args.layer, offset: 0, limit: None };
            loop {
                let part = context.client()?.disk_map(&query).await?;
                part.ranges.into_iter().for_each(|range| add(&mut ranges, range));
                match part.next {
                    Some(next) if next > query.offset => query.offset = next,
                    _ => return Ok(ranges),
                }
            }
        }),
        ranges => ranges,
    }?;
    output::list(context.format, &ranges, &COLUMNS, |range| range.offset.to_string())
}

/// The map of a disk that nobody writes to.
fn here(args: &MapArgs) -> anyhow::Result<Vec<Range>> {
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
        // A chain is of one format, whatever its parents are called.
        let format = if depth == 0 || top.is_image() { Some(top) } else { None };
        let options = DiskOptions { format, ..args.format.read_only() };
        layers.push(Layer { path: path.clone(), ranges: map_file(&HostFs::shared(), path, &options)? });
    }
    let size = layers.first().and_then(|top| top.ranges.last()).map_or(0, |last| last.offset + last.len);
    let mut ranges = Vec::new();
    resolve(&layers, 0, 0, size, &mut ranges);
    Ok(ranges)
}

/// Adds the range as the chain from `depth` on resolves it. At most 256 layers deep.
fn resolve(layers: &[Layer], depth: usize, offset: u64, len: u64, out: &mut Vec<Range>) {
    let end = offset + len;
    let Some(layer) = layers.get(depth) else {
        // Past the end of a parent that is shorter than its child, or a parent nobody looked for.
        return add(out, nowhere(offset, len, "zero"));
    };
    let first = layer.ranges.partition_point(|range| range.offset + range.len <= offset);
    let mut at = offset;
    for range in layer.ranges.iter().skip(first).take_while(|range| range.offset < end) {
        let length = (range.offset + range.len).min(end) - at;
        let stored = |kind: &str, file_offset: u64| Range {
            offset: at,
            length,
            kind: kind.into(),
            depth: Some(depth),
            file: Some(layer.path.clone()),
            file_offset: Some(file_offset + (at - range.offset)),
        };
        match range.kind {
            MapKind::Data { file_offset } => add(out, stored("data", file_offset)),
            MapKind::Hole { file_offset } => add(out, stored("hole", file_offset)),
            MapKind::Zero => add(out, nowhere(at, length, "zero")),
            MapKind::Parent if layers.len() == 1 => add(out, nowhere(at, length, "parent")),
            MapKind::Parent => resolve(layers, depth + 1, at, length, out),
        }
        at += length;
    }
    if at < end {
        add(out, nowhere(at, end - at, "zero"));
    }
}

/// A range that is in no file.
fn nowhere(offset: u64, length: u64, kind: &str) -> Range {
    Range { offset, length, kind: kind.into(), depth: None, file: None, file_offset: None }
}

/// Adds a range, or lengthens the last one when the new one goes on where it ends.
fn add(out: &mut Vec<Range>, range: Range) {
    if let Some(last) = out.last_mut()
        && (&last.kind, last.depth) == (&range.kind, range.depth)
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
        let seen: Vec<_> =
            out.iter().map(|r| (r.offset, r.length, r.kind.as_str(), r.depth, r.file_offset)).collect();
        assert_eq!(
            seen,
            [
                (0, 5, "data", Some(1), Some(7)),
                (5, 5, "zero", None, None),
                (10, 10, "data", Some(0), Some(100)),
                (20, 20, "zero", None, None),
            ]
        );
    }
}

//! `disk info`

use super::files::{FormatArgs, OneFile, lengths};
use super::in_use;
use crate::context::Context;
use crate::output::{self, Column};
use backstay_api::DiskFile;
use backstay_disk::fs::HostFs;
use backstay_disk::{Disk, DiskFormat, DiskOptions, ImageInfo, LayerInfo, look_at};
use backstay_vhd::{LocatorKind, vhdx};
use clap::{Args, ValueHint};
use jiff::Timestamp;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "What a disk says about itself. Without --chain only the named file is looked at, so it works when the \
                  parent is missing. Of a file that a running machine writes to, the daemon tells size and chain.",
    after_long_help = "Examples:\n  backstay disk info web.vhdx\n  backstay disk info web.avhdx --chain\n  \
                       backstay disk info web.vhdx -o json | jq .size"
)]
pub struct InfoArgs {
    /// The file
    #[arg(value_hint = ValueHint::FilePath)]
    path: PathBuf,
    /// All files of the chain, the named one first
    #[arg(long)]
    chain: bool,
    #[command(flatten)]
    format: FormatArgs,
}

/// A file, for people and programs.
#[derive(Debug, Serialize)]
struct FileInfo {
    path: PathBuf,
    format: &'static str,
    #[serde(rename = "type")]
    kind: String,
    size: u64,
    file_size: u64,
    space_taken: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    vhd: Option<VhdInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vhdx: Option<VhdxInfo>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// What only a VHD has.
#[derive(Debug, Serialize)]
struct VhdInfo {
    unique_id: String,
    created: Option<Timestamp>,
    creator: String,
    creator_version: String,
    creator_os: String,
    geometry: String,
    original_size: u64,
    block_size: u32,
    blocks: u32,
    blocks_allocated: u32,
    saved_state: bool,
    aligned_4k: bool,
    parent: Option<ParentInfo>,
}

/// What only a VHDX has.
#[derive(Debug, Serialize)]
struct VhdxInfo {
    disk_id: String,
    data_write_guid: String,
    file_write_guid: String,
    creator: String,
    logical_sector: u32,
    physical_sector: u32,
    block_size: u32,
    blocks: u32,
    blocks_allocated: u32,
    parent: Option<VhdxParent>,
}

/// The parent locator of a differencing VHDX.
#[derive(Debug, Serialize)]
struct VhdxParent {
    parent_linkage: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_linkage2: Option<String>,
    relative_path: Option<String>,
    volume_path: Option<String>,
    absolute_win32_path: Option<String>,
}

/// A differencing disk's reference to its parent.
#[derive(Debug, Serialize)]
struct ParentInfo {
    unique_id: String,
    name: String,
    relative_path: Option<String>,
    absolute_path: Option<String>,
}

fn describe(layer: &LayerInfo) -> FileInfo {
    let (file_size, space_taken) = lengths(&layer.path);
    let image = layer.image.as_ref();
    FileInfo {
        path: layer.path.clone(),
        format: layer.format(),
        kind: image.map_or_else(|| "raw".into(), |image| image.disk_type().to_string()),
        size: layer.size,
        file_size,
        space_taken,
        vhd: image.and_then(|image| match image {
            ImageInfo::Vhd(info) => Some(describe_vhd(info, layer.allocated_blocks)),
            ImageInfo::Vhdx(_) => None,
        }),
        vhdx: image.and_then(|image| match image {
            ImageInfo::Vhdx(info) => Some(describe_vhdx(info, layer.allocated_blocks)),
            ImageInfo::Vhd(_) => None,
        }),
        warnings: image.map(ImageInfo::warnings).unwrap_or_default(),
    }
}

fn describe_vhdx(image: &vhdx::ImageInfo, allocated: u32) -> VhdxInfo {
    VhdxInfo {
        disk_id: image.disk_id.to_string(),
        data_write_guid: image.data_write_guid.to_string(),
        file_write_guid: image.file_write_guid.to_string(),
        creator: image.creator.clone(),
        logical_sector: image.logical_sector,
        physical_sector: image.physical_sector,
        block_size: image.block_size,
        blocks: image.blocks,
        blocks_allocated: allocated,
        parent: image.parent.as_ref().map(|parent| VhdxParent {
            parent_linkage: parent.linkage.to_string(),
            parent_linkage2: parent.linkage2.map(|id| id.to_string()),
            relative_path: parent.relative.clone(),
            volume_path: parent.volume.clone(),
            absolute_win32_path: parent.absolute.clone(),
        }),
    }
}

fn describe_vhd(image: &backstay_vhd::ImageInfo, allocated: u32) -> VhdInfo {
    let geometry = image.geometry;
    VhdInfo {
        unique_id: image.unique_id.to_string(),
        created: Timestamp::from_second(image.time_stamp.to_unix()).ok().filter(|_| image.time_stamp.0 != 0),
        creator: image.creator_text(),
        creator_version: format!("{}.{}", image.creator_version >> 16, image.creator_version & 0xffff),
        creator_os: String::from_utf8_lossy(&image.creator_os).trim_end_matches(['\0', ' ']).to_owned(),
        geometry: format!("{}/{}/{}", geometry.cylinders, geometry.heads, geometry.sectors),
        original_size: image.original_size,
        block_size: image.block_size,
        blocks: image.blocks,
        blocks_allocated: allocated,
        saved_state: image.saved_state,
        aligned_4k: image.aligned_4k,
        parent: image.parent.as_ref().map(|parent| ParentInfo {
            unique_id: parent.unique_id.to_string(),
            name: parent.unicode_name.clone(),
            relative_path: parent.locator(LocatorKind::Relative).map(str::to_owned),
            absolute_path: parent.locator(LocatorKind::Absolute).map(str::to_owned),
        }),
    }
}

/// Runs it.
pub fn run(context: &Context, args: &InfoArgs) -> anyhow::Result<()> {
    let result = if args.chain { chain(context, args) } else { one(context, args) };
    let Err(error) = result else { return Ok(()) };
    let Some(file) = in_use::locked_file(&error).and_then(|_| in_use::ask(context, &args.path)) else {
        return Err(error);
    };
    from_daemon(context, &file)
}

fn one(context: &Context, args: &InfoArgs) -> anyhow::Result<()> {
    // That it is not there says more than that its name tells nothing.
    let file = OneFile::open(&args.path, false)?;
    let layer = match args.format.of(&args.path)? {
        DiskFormat::Raw => {
            let size = file.file.len()?;
            LayerInfo { path: args.path.clone(), image: None, identity: None, size, allocated_blocks: 0 }
        }
        format => {
            let looking = DiskOptions { format: Some(format), ..DiskOptions::read_only() };
            look_at(&HostFs::shared(), &args.path, &looking)?
        }
    };
    let info = describe(&layer);
    output::one(context.format, &info, &facts(&info), |info| info.path.display().to_string())?;
    for warning in &info.warnings {
        context.warn(warning);
    }
    Ok(())
}

fn facts(info: &FileInfo) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("File", info.path.display().to_string()),
        ("Format", info.format.to_owned()),
        ("Type", info.kind.clone()),
        ("Size", format!("{} ({} bytes)", output::size(info.size), info.size)),
        ("File size", format!("{}, {} taken", output::size(info.file_size), output::size(info.space_taken))),
    ];
    facts.extend(info.vhdx.iter().flat_map(vhdx_facts));
    let Some(vhd) = &info.vhd else { return facts };
    facts.extend([
        ("Unique id", vhd.unique_id.clone()),
        ("Created", vhd.created.map(output::time).unwrap_or_default()),
        ("Creator", format!("{} {} on {}", vhd.creator, vhd.creator_version, vhd.creator_os)),
        ("Geometry", vhd.geometry.clone()),
    ]);
    if vhd.block_size > 0 {
        let blocks = format!("{} of {} allocated", vhd.blocks_allocated, vhd.blocks);
        facts.push(("Blocks", format!("{blocks}, {} each", output::size(u64::from(vhd.block_size)))));
    }
    if vhd.saved_state {
        facts.push(("Saved state", "a machine was saved while it used this disk".into()));
    }
    if let Some(parent) = &vhd.parent {
        facts.extend([
            ("Parent", parent.name.clone()),
            ("Parent id", parent.unique_id.clone()),
            ("Relative path", parent.relative_path.clone().unwrap_or_default()),
            ("Absolute path", parent.absolute_path.clone().unwrap_or_default()),
        ]);
    }
    facts
}

fn vhdx_facts(vhdx: &VhdxInfo) -> Vec<(&'static str, String)> {
    let blocks = format!("{} of {} allocated", vhdx.blocks_allocated, vhdx.blocks);
    let mut facts = vec![
        ("Disk id", vhdx.disk_id.clone()),
        ("Content id", vhdx.data_write_guid.clone()),
        ("Creator", vhdx.creator.clone()),
        ("Sectors", format!("{} bytes, physically {}", vhdx.logical_sector, vhdx.physical_sector)),
        ("Blocks", format!("{blocks}, {} each", output::size(u64::from(vhdx.block_size)))),
    ];
    if let Some(parent) = &vhdx.parent {
        facts.push(("Parent content id", parent.parent_linkage.clone()));
        facts.extend(parent.parent_linkage2.iter().map(|id| ("or", id.clone())));
        let paths = [
            ("Relative path", &parent.relative_path),
            ("Volume path", &parent.volume_path),
            ("Absolute path", &parent.absolute_win32_path),
        ];
        facts.extend(paths.into_iter().filter_map(|(name, path)| Some((name, path.clone()?))));
    }
    facts
}

const COLUMNS: [Column<FileInfo>; 6] = [
    Column::new("FILE", |file| file.path.display().to_string()),
    Column::new("TYPE", |file| file.kind.clone()),
    Column::new("SIZE", |file| output::size(file.size)),
    Column::new("FILE SIZE", |file| output::size(file.file_size)),
    Column::wide("BLOCKS", |file| {
        let vhdx = file.vhdx.as_ref().map(|v| v.blocks_allocated);
        let blocks = file.vhd.as_ref().map(|v| v.blocks_allocated).or(vhdx);
        blocks.map(|blocks| blocks.to_string()).unwrap_or_default()
    }),
    Column::wide("UNIQUE ID", |file| {
        let vhdx = file.vhdx.as_ref().map(|v| v.data_write_guid.clone());
        file.vhd.as_ref().map(|v| v.unique_id.clone()).or(vhdx).unwrap_or_default()
    }),
];

fn chain(context: &Context, args: &InfoArgs) -> anyhow::Result<()> {
    let disk = Disk::open(&args.path, args.format.read_only())?;
    let files: Vec<FileInfo> = disk.chain().iter().map(describe).collect();
    output::list(context.format, &files, &COLUMNS, |file| file.path.display().to_string())?;
    for warning in disk.warnings() {
        context.warn(warning.to_string());
    }
    Ok(())
}

/// What the daemon knows of a file that a machine writes to.
fn from_daemon(context: &Context, file: &DiskFile) -> anyhow::Result<()> {
    let used = |h: &backstay_api::DiskHolder| {
        format!("'{}' at {}{}", h.name, h.place, if h.open { ", open" } else { "" })
    };
    let layer = |l: &backstay_api::DiskLayer| {
        format!(
            "{}  {}  {}  {}",
            l.path.display(),
            l.kind,
            output::size(l.virtual_size),
            output::size(l.file_size)
        )
    };
    let facts = [
        ("File", file.path.display().to_string()),
        ("Size", file.size.map(output::size).unwrap_or_default()),
        ("Used by", file.used_by.iter().map(used).collect::<Vec<_>>().join("\n")),
        ("Chain", file.chain.iter().map(layer).collect::<Vec<_>>().join("\n")),
        ("Error", file.error.clone().unwrap_or_default()),
    ];
    output::one(context.format, file, &facts, |file| file.path.display().to_string())
}

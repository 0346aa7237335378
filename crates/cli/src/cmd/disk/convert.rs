//! `disk convert`

use super::create::{Kind, RAW_TYPE, block_size};
use super::files::{FileFormat, format_of, options};
use super::interrupt::cancellable;
use crate::context::Context;
use crate::exit::Fail;
use crate::output::{self, Column};
use crate::progress::Progress;
use anyhow::Context as _;
use backstay_disk::fs::HostFs;
use backstay_disk::{
    BadRange, ConvertError, ConvertReport, ConvertRequest, ConvertTo, DEFAULT_BLOCK_SIZE, DiskFormat,
    DiskOptions, ForeignFormat, ForeignSource, Reflink, convert, plan_convert, source_files,
};
use backstay_model::ByteSize;
use clap::{Args, ValueEnum, ValueHint};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Copy a disk, with all its parents, into a new file of another form. The new file gets its name when it is \
                  whole and durable; Ctrl-C leaves nothing behind. A file that exists is never overwritten.\n\n\
                  qcow2, VMDK and VDI files are read by QEMU (package 'qemu-utils'), as they come from elsewhere under limits \
                  and only together with files of their own folder.\n\n\
                  Where source and new file lie on one file system that can share the space of files (XFS, Btrfs), data is not \
                  copied but shared until either is written to. A fixed disk gets space of its own unless --reflink=always is \
                  given.\n\n\
                  Sectors that a medium does not give back end the conversion with the place of the first one; with \
                  --skip-bad they become zeros, each range is printed, and the exit code is 7.",
    after_long_help = "Examples:\n  backstay disk convert web.vhd web.vhdx\n  backstay disk convert debian.qcow2 debian.vhdx\n  \
                       backstay disk convert web.avhdx web-flat.vhdx --type fixed\n  \
                       backstay disk convert web.vhdx web-for-azure.vhd --azure\n  \
                       backstay disk convert dying.vhd saved.vhdx --skip-bad -o csv > lost.csv"
)]
pub struct ConvertArgs {
    /// The disk to copy; nobody may have it open for writing
    #[arg(value_hint = ValueHint::FilePath)]
    source: PathBuf,
    /// The new file: .vhdx, .vhd, or .raw or .img
    #[arg(value_hint = ValueHint::FilePath)]
    target: PathBuf,
    /// How the new VHDX or VHD takes space; dynamic unless given
    #[arg(short, long = "type", value_enum)]
    kind: Option<Kind>,
    /// Format of the new file; by its name unless given
    #[arg(long, value_enum)]
    format: Option<FileFormat>,
    /// Format of the source; by its name unless given: also .qcow2, .vmdk and .vdi
    #[arg(long, value_enum)]
    source_format: Option<SourceFormat>,
    /// Unit in which a dynamic disk grows: a power of two, in a VHDX 1M to 256M, in a VHD 512K to 64M [default: 2M; 32M in a VHDX]
    #[arg(long, value_name = "SIZE")]
    block_size: Option<ByteSize>,
    /// Make a VHD that Azure takes: fixed, and of whole MiB, 20 at least; zeros are added at the end of the disk
    #[arg(long, conflicts_with_all = ["block_size"])]
    azure: bool,
    /// Go on where sectors cannot be read: they become zeros, every range is printed, and the exit code is 7
    #[arg(long)]
    skip_bad: bool,
    /// Whether data is shared with the source instead of copied: where that is possible, or fail, or not at all
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    reflink: ReflinkWhen,
    /// Also read files outside of its folder that a qcow2 or VMDK names as its parent or parts; only for sources you trust
    #[arg(long)]
    outside: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// When data is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReflinkWhen {
    /// Where the file system can; not for a fixed disk, and not with --skip-bad, which has to read everything
    Auto,
    /// Or fail; what does not lie in whole blocks of the file system is copied all the same
    Always,
    /// Copy everything
    Never,
}

impl From<ReflinkWhen> for Reflink {
    fn from(when: ReflinkWhen) -> Self {
        match when {
            ReflinkWhen::Auto => Self::Auto,
            ReflinkWhen::Always => Self::Always,
            ReflinkWhen::Never => Self::Never,
        }
    }
}

/// Formats of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceFormat {
    /// VHD
    Vhd,
    /// VHDX
    Vhdx,
    /// The bytes of the disk and nothing else
    Raw,
    /// QEMU's own format, read by QEMU
    Qcow2,
    /// VMware's format, read by QEMU
    Vmdk,
    /// VirtualBox's format, read by QEMU
    Vdi,
}

/// How the source is read: by us, or by QEMU.
fn source(args: &ConvertArgs) -> (Option<DiskFormat>, Option<ForeignSource>) {
    let foreign = |format| (None, Some(ForeignSource { format, outside: args.outside }));
    match args.source_format {
        Some(SourceFormat::Vhd) => (Some(DiskFormat::Vhd), None),
        Some(SourceFormat::Vhdx) => (Some(DiskFormat::Vhdx), None),
        Some(SourceFormat::Raw) => (Some(DiskFormat::Raw), None),
        Some(SourceFormat::Qcow2) => foreign(ForeignFormat::Qcow2),
        Some(SourceFormat::Vmdk) => foreign(ForeignFormat::Vmdk),
        Some(SourceFormat::Vdi) => foreign(ForeignFormat::Vdi),
        None => ForeignFormat::of_name(&args.source).map_or((None, None), foreign),
    }
}

fn wanted(args: &ConvertArgs, format: DiskFormat) -> anyhow::Result<ConvertTo> {
    if args.azure && (format != DiskFormat::Vhd || args.kind == Some(Kind::Dynamic)) {
        return Err(Fail::usage("Azure takes fixed VHDs: name the new file .vhd, or leave --azure out"));
    }
    match (format, args.kind) {
        (_, _) if args.azure => Ok(ConvertTo::Fixed),
        (DiskFormat::Raw, None) => Ok(ConvertTo::Raw),
        (DiskFormat::Raw, Some(_)) => Err(Fail::usage(RAW_TYPE)),
        (_, Some(Kind::Fixed)) => Ok(ConvertTo::Fixed),
        (format, _) => Ok(ConvertTo::Dynamic { block_size: block_size(args.block_size, format)? }),
    }
}

/// Runs it.
pub fn run(context: &Context, args: &ConvertArgs) -> anyhow::Result<()> {
    if args.skip_bad && args.reflink == ReflinkWhen::Always {
        return Err(Fail::usage(
            "--skip-bad reads everything, and what is shared is not read: leave one of them out",
        ));
    }
    let format = format_of(args.format, &args.target)?;
    let to = wanted(args, format)?;
    let mut request = ConvertRequest::new(args.source.clone(), args.target.clone(), to);
    let (source_format, foreign) = source(args);
    request.options = DiskOptions { format: source_format, ..options(true) };
    request.foreign = foreign;
    request.format = Some(format);
    request.azure = args.azure;
    request.skip_bad = args.skip_bad;
    request.reflink = args.reflink.into();
    if args.dry_run {
        return plan(&request);
    }
    let begun = Instant::now();
    let report = cancellable(|cancel| {
        let bar = Progress::bytes(context, 0, "converting");
        let progress = |now: backstay_disk::Progress| {
            bar.set_total(now.total);
            bar.set(now.done, "");
        };
        convert(&HostFs::shared(), &request, &progress, cancel)
    });
    let report = match report {
        Err(ConvertError::Cancelled { .. }) => {
            return Err(Fail::interrupted(format!("interrupted: {} was not made", args.target.display())));
        }
        other => other?,
    };
    for warning in &report.warnings {
        context.warn(warning.to_string());
    }
    let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    let shared = match report.shared {
        0 => String::new(),
        bytes => format!("{} of data shared with {}, ", output::size(bytes), args.source.display()),
    };
    context.note(format!(
        "{} is made: a disk of {}, {shared}{} of data copied in {}",
        args.target.display(),
        output::size(report.size),
        output::size(report.copied),
        output::duration(took)
    ));
    tell_bad(context, &args.target, &report)
}

/// A range that could not be read, as it is printed.
#[derive(Debug, Serialize)]
struct BadRow {
    offset: u64,
    length: u64,
    file: PathBuf,
    file_offset: Option<u64>,
}

const COLUMNS: [Column<BadRow>; 4] = [
    Column::new("OFFSET", |row| row.offset.to_string()),
    Column::new("LENGTH", |row| row.length.to_string()),
    Column::new("FILE OFFSET", |row| row.file_offset.map(|at| at.to_string()).unwrap_or_default()),
    Column::new("FILE", |row| row.file.display().to_string()),
];

fn tell_bad(context: &Context, target: &Path, report: &ConvertReport) -> anyhow::Result<()> {
    if report.bad.is_empty() {
        return Ok(());
    }
    let row = |range: &BadRange| BadRow {
        offset: range.offset,
        length: range.len,
        file: range.file.clone(),
        file_offset: range.file_offset,
    };
    let rows: Vec<BadRow> = report.bad.iter().map(row).collect();
    output::list(context.format, &rows, &COLUMNS, |row| row.offset.to_string())?;
    let lost: u64 = rows.iter().map(|row| row.length).sum();
    let ranges = if rows.len() == 1 { "1 range".to_owned() } else { format!("{} ranges", rows.len()) };
    Err(Fail::degraded(format!(
        "{} is made, but {lost} bytes in {ranges} could not be read and are zeros in it",
        target.display()
    )))
}

fn plan(request: &ConvertRequest) -> anyhow::Result<()> {
    let target = request.target.display();
    if request.target.try_exists().with_context(|| format!("cannot look for {target}"))? {
        return Err(Fail::conflict(format!("{target} exists already: choose another name")));
    }
    let by = request.foreign.map(|how| format!(" by QEMU, as {}", how.format)).unwrap_or_default();
    let files = source_files(&HostFs::shared(), request)?;
    let files: Vec<String> = files.iter().map(|path| format!("  read {}{by}\n", path.display())).collect();
    let plan = plan_convert(&HostFs::shared(), request)?;
    let name = if request.format == Some(DiskFormat::Vhdx) { "VHDX" } else { "VHD" };
    let form = match request.to {
        ConvertTo::Raw => "raw file".to_owned(),
        ConvertTo::Fixed => format!("fixed {name}"),
        ConvertTo::Dynamic { block_size: DEFAULT_BLOCK_SIZE } => format!("dynamic {name}"),
        ConvertTo::Dynamic { block_size } => {
            format!("dynamic {name} with blocks of {}", output::size(u64::from(block_size)))
        }
    };
    let shares = match (request.reflink, request.to) {
        (Reflink::Never, _) | (Reflink::Auto, ConvertTo::Fixed) => "",
        (Reflink::Auto, _) if request.skip_bad || request.foreign.is_some() => "",
        (Reflink::Auto, _) => {
            "  where the file system can share data between files, nothing is copied of it\n"
        }
        (Reflink::Always, _) => "  share its data between the files, or fail\n",
    };
    output::print(&format!("{target}, a {form}\n{}{plan}{shares}", files.concat()))
}

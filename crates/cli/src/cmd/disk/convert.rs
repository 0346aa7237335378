//! `disk convert`

use super::create::{Kind, RAW_TYPE, block_size};
use super::files::{FileFormat, FormatArgs, format_of};
use super::interrupt::cancellable;
use crate::context::Context;
use crate::exit::Fail;
use crate::output;
use crate::progress::Progress;
use anyhow::Context as _;
use backstay_disk::fs::HostFs;
use backstay_disk::{
    ConvertError, ConvertRequest, ConvertTo, DEFAULT_BLOCK_SIZE, Disk, DiskFormat, convert, plan_convert,
};
use backstay_model::ByteSize;
use clap::{Args, ValueHint};
use std::path::PathBuf;
use std::time::Instant;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Copy a disk, with all its parents, into a new file of another form. The new file gets its name when it is \
                  whole and durable; Ctrl-C leaves nothing behind. A file that exists is never overwritten.",
    after_long_help = "Examples:\n  backstay disk convert web.vhd web.vhdx\n  backstay disk convert debian.raw debian.vhdx\n  \
                       backstay disk convert web.avhdx web-flat.vhdx --type fixed"
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
    /// Format of the source; by its name unless given
    #[arg(long, value_enum)]
    source_format: Option<FileFormat>,
    /// Unit in which a dynamic disk grows: a power of two, in a VHDX 1M to 256M, in a VHD 512K to 64M [default: 2M; 32M in a VHDX]
    #[arg(long, value_name = "SIZE")]
    block_size: Option<ByteSize>,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

fn wanted(args: &ConvertArgs, format: DiskFormat) -> anyhow::Result<ConvertTo> {
    match (format, args.kind) {
        (DiskFormat::Raw, None) => Ok(ConvertTo::Raw),
        (DiskFormat::Raw, Some(_)) => Err(Fail::usage(RAW_TYPE)),
        (_, Some(Kind::Fixed)) => Ok(ConvertTo::Fixed),
        (format, _) => Ok(ConvertTo::Dynamic { block_size: block_size(args.block_size, format)? }),
    }
}

/// Runs it.
pub fn run(context: &Context, args: &ConvertArgs) -> anyhow::Result<()> {
    let format = format_of(args.format, &args.target)?;
    let to = wanted(args, format)?;
    let source = FormatArgs { format: args.source_format };
    let mut request = ConvertRequest::new(args.source.clone(), args.target.clone(), to);
    request.options = source.read_only();
    request.format = Some(format);
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
    context.note(format!(
        "{} is made: a disk of {}, {} of data copied in {}",
        args.target.display(),
        output::size(report.size),
        output::size(report.copied),
        output::duration(took)
    ));
    Ok(())
}

fn plan(request: &ConvertRequest) -> anyhow::Result<()> {
    let target = request.target.display();
    if request.target.try_exists().with_context(|| format!("cannot look for {target}"))? {
        return Err(Fail::conflict(format!("{target} exists already: choose another name")));
    }
    let disk = Disk::open(&request.source, request.options.clone())?;
    let files: Vec<String> = disk.chain().iter().map(|l| format!("  read {}\n", l.path.display())).collect();
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
    output::print(&format!("{target}, a {form}\n{}{plan}", files.concat()))
}

//! `disk create`

use super::files::{FileFormat, format_of, options};
use super::interrupt::cancellable;
use crate::context::Context;
use crate::exit::Fail;
use crate::output;
use backstay_disk::fs::HostFs;
use backstay_disk::{DEFAULT_BLOCK_SIZE, DiskFormat, DiskOptions, Identity, NewDisk, NewDiskPlan};
use backstay_model::ByteSize;
use clap::{Args, ValueEnum, ValueHint};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
#[command(after_long_help = "\
A file that exists is never overwritten. While differencing disks of a parent exist, nothing may write to the parent.

Examples:
  backstay disk create web.vhdx --size 40G
  backstay disk create db.vhdx --size 200G --type fixed
  backstay disk create web-test.vhdx --parent web.vhdx
  backstay disk create web.vhdx --size 40G --dry-run")]
pub struct CreateArgs {
    /// The new file: .vhdx or .avhdx, .vhd or .avhd, or .raw or .img for a raw one
    #[arg(value_hint = ValueHint::FilePath)]
    path: PathBuf,
    /// Size the guest sees, for example 40G: whole sectors of 512 bytes; a VHDX up to 64T, a VHD up to 2040G
    #[arg(short, long, required_unless_present = "parent", conflicts_with = "parent")]
    size: Option<ByteSize>,
    /// How space is taken; dynamic unless given
    #[arg(short, long = "type", value_enum, conflicts_with = "parent")]
    kind: Option<Kind>,
    /// Make a differencing disk that holds what differs from this disk, which has to be of the same format
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    parent: Option<PathBuf>,
    /// Unit in which dynamic and differencing disks grow: a power of two, in a VHDX 1M to 256M, in a VHD 512K to 64M [default: 2M; 32M in a dynamic VHDX]
    #[arg(long, value_name = "SIZE")]
    block_size: Option<ByteSize>,
    /// Format of the new file; by its name unless given
    #[arg(long, value_enum)]
    format: Option<FileFormat>,
    /// Print what would be written, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Kinds of disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// All space at once
    Fixed,
    /// Grows with its content
    Dynamic,
}

/// A block size as the engine takes it.
pub fn block_size(given: Option<ByteSize>, format: DiskFormat) -> anyhow::Result<u32> {
    let Some(ByteSize(bytes)) = given else { return Ok(DEFAULT_BLOCK_SIZE) };
    let (range, words) = match format {
        DiskFormat::Vhdx => (1 << 20..=256 << 20, "1M to 256M, as a VHDX has them"),
        _ => (512 << 10..=64 << 20, "512K to 64M, as a VHD has them"),
    };
    match u32::try_from(bytes) {
        Ok(size) if size.is_power_of_two() && range.contains(&size) => Ok(size),
        _ => Err(Fail::usage(format!("the block size {bytes} is no power of two from {words}"))),
    }
}

/// What a raw file cannot be.
pub const RAW_TYPE: &str = "a raw file has no type: leave --type out, or name the new file .vhdx or .vhd";

fn wanted(args: &CreateArgs) -> anyhow::Result<(NewDisk, DiskFormat)> {
    let format = format_of(args.format, &args.path)?;
    let block_size = block_size(args.block_size, format)?;
    let raw = format == DiskFormat::Raw;
    let what = match (&args.parent, args.size, args.kind) {
        (Some(_), ..) if raw => {
            return Err(Fail::usage(
                "a raw file cannot be a differencing disk: name the new file .vhdx or .vhd, as the parent is",
            ));
        }
        (None, Some(_), Some(_)) if raw => return Err(Fail::usage(RAW_TYPE)),
        (Some(parent), ..) => NewDisk::Differencing { parent: parent.clone(), block_size },
        (None, Some(ByteSize(size)), _) if raw => NewDisk::Raw { size },
        (None, Some(ByteSize(size)), Some(Kind::Fixed)) => NewDisk::Fixed { size },
        (None, Some(ByteSize(size)), _) => NewDisk::Dynamic { size, block_size },
        (None, None, _) => return Err(Fail::usage("give the size of the new disk: --size 40G")),
    };
    Ok((what, format))
}

/// Runs it.
pub fn run(context: &Context, args: &CreateArgs) -> anyhow::Result<()> {
    let (what, format) = wanted(args)?;
    if let NewDisk::Raw { size } = what
        && (size == 0 || size % 512 != 0)
    {
        return Err(Fail::usage(format!("the size {size} is not a multiple of 512 bytes above zero")));
    }
    let fs = HostFs::shared();
    let how = DiskOptions { format: Some(format), ..options(false) };
    let plan = NewDiskPlan::new(&fs, &args.path, &what, Identity::fresh(), &how)?;
    if args.dry_run {
        return output::print(&plan.to_string());
    }
    cancellable(|cancel| plan.execute_unless(&fs, cancel))?;
    context.note(format!("{} is made", args.path.display()));
    Ok(())
}

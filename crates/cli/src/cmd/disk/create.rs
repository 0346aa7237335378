//! `disk create`

use super::files::{FileFormat, format_of, options};
use super::interrupt::cancellable;
use crate::context::Context;
use crate::exit::Fail;
use crate::output;
use backstay_disk::fs::HostFs;
use backstay_disk::{DEFAULT_BLOCK_SIZE, DiskFormat, Identity, NewDisk, NewDiskPlan};
use backstay_model::ByteSize;
use clap::{Args, ValueEnum, ValueHint};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
#[command(after_long_help = "\
A file that exists is never overwritten. While differencing disks of a parent exist, nothing may write to the parent.

Examples:
  backstay disk create web.vhd --size 40G
  backstay disk create db.vhd --size 200G --type fixed
  backstay disk create web-test.vhd --parent web.vhd
  backstay disk create web.vhd --size 40G --dry-run")]
pub struct CreateArgs {
    /// The new file: .vhd or .avhd, or .raw or .img for a raw one
    #[arg(value_hint = ValueHint::FilePath)]
    path: PathBuf,
    /// Size the guest sees, for example 40G: whole sectors of 512 bytes, for a VHD up to 2040G
    #[arg(short, long, required_unless_present = "parent", conflicts_with = "parent")]
    size: Option<ByteSize>,
    /// How space is taken; dynamic unless given
    #[arg(short, long = "type", value_enum, conflicts_with = "parent")]
    kind: Option<Kind>,
    /// Make a differencing disk that holds what differs from this disk
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    parent: Option<PathBuf>,
    /// Unit in which dynamic and differencing disks grow: a power of two, 512K to 64M [default: 2M]
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
pub fn block_size(given: Option<ByteSize>) -> anyhow::Result<u32> {
    let Some(ByteSize(bytes)) = given else { return Ok(DEFAULT_BLOCK_SIZE) };
    match u32::try_from(bytes) {
        Ok(size) if size.is_power_of_two() && (512 << 10..=64 << 20).contains(&size) => Ok(size),
        _ => Err(Fail::usage(format!("the block size {bytes} is no power of two from 512K to 64M"))),
    }
}

fn wanted(args: &CreateArgs) -> anyhow::Result<NewDisk> {
    let format = format_of(args.format, &args.path)?;
    let block_size = block_size(args.block_size)?;
    match (&args.parent, args.size, format, args.kind) {
        (Some(_), _, DiskFormat::Raw, _) => {
            Err(Fail::usage("a raw file cannot be a differencing disk: name the new file .vhd"))
        }
        (Some(parent), _, DiskFormat::Vhd, _) => {
            Ok(NewDisk::Differencing { parent: parent.clone(), block_size })
        }
        (None, Some(ByteSize(size)), DiskFormat::Raw, None) => Ok(NewDisk::Raw { size }),
        (None, Some(_), DiskFormat::Raw, Some(_)) => {
            Err(Fail::usage("a raw file has no type: leave --type out, or name the new file .vhd"))
        }
        (None, Some(ByteSize(size)), DiskFormat::Vhd, Some(Kind::Fixed)) => Ok(NewDisk::Fixed { size }),
        (None, Some(ByteSize(size)), DiskFormat::Vhd, _) => Ok(NewDisk::Dynamic { size, block_size }),
        (None, None, ..) => Err(Fail::usage("give the size of the new disk: --size 40G")),
    }
}

/// Runs it.
pub fn run(context: &Context, args: &CreateArgs) -> anyhow::Result<()> {
    let what = wanted(args)?;
    if let NewDisk::Raw { size } = what
        && (size == 0 || size % 512 != 0)
    {
        return Err(Fail::usage(format!("the size {size} is not a multiple of 512 bytes above zero")));
    }
    let fs = HostFs::shared();
    let plan = NewDiskPlan::new(&fs, &args.path, &what, Identity::fresh(), &options(false))?;
    if args.dry_run {
        return output::print(&plan.to_string());
    }
    cancellable(|cancel| plan.execute_unless(&fs, cancel))?;
    context.note(format!("{} is made", args.path.display()));
    Ok(())
}

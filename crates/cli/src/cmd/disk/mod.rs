//! `backstay disk`: in this process, on files that no machine uses

mod check;
mod compact;
mod convert;
mod create;
mod files;
mod in_use;
mod info;
mod interrupt;
mod map;
mod merge;
mod mount;
mod reparent;
mod resize;
mod serve;

use crate::context::Context;
use clap::Subcommand;

/// Virtual hard disks.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Make a disk: fixed, dynamic, or differencing above a parent
    Create(create::CreateArgs),
    /// What a disk says about itself, or all files of its chain
    Info(info::InfoArgs),
    /// Look for damage, and repair what can be repaired
    Check(check::CheckArgs),
    /// Where each range of a disk is stored
    Map(map::MapArgs),
    /// Copy a disk, with all its parents, into a new file of another form
    Convert(convert::ConvertArgs),
    /// Move what a differencing disk holds into its parent, and remove it
    Merge(merge::MergeArgs),
    /// Tell a differencing disk where its parent is now
    Reparent(reparent::ReparentArgs),
    /// Give back what a disk does not need in its file
    Compact(compact::CompactArgs),
    /// Make a disk larger or smaller
    Resize(resize::ResizeArgs),
    /// Serve a disk by NBD on a unix socket
    Serve(serve::ServeArgs),
    /// Show a disk and its partitions as files of a folder
    Mount(mount::MountArgs),
}

impl DiskCommand {
    /// Runs the command.
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let result = match &self {
            Self::Create(args) => create::run(context, args),
            Self::Info(args) => info::run(context, args),
            Self::Check(args) => check::run(context, args),
            Self::Map(args) => map::run(context, args),
            Self::Convert(args) => convert::run(context, args),
            Self::Merge(args) => merge::run(context, args),
            Self::Reparent(args) => reparent::run(context, args),
            Self::Compact(args) => compact::run(context, args),
            Self::Resize(args) => resize::run(context, args),
            Self::Serve(args) => serve::run(context, args),
            Self::Mount(args) => mount::run(context, args),
        };
        let cure = match self {
            Self::Convert(_) => {
                "turn it off first, or take a checkpoint: then this file is only read and can be copied"
            }
            _ => "turn it off first",
        };
        result.map_err(|error| in_use::explain(context, error, cure))
    }
}

//! `disk reparent`

use super::files::options;
use crate::context::Context;
use crate::exit::Fail;
use crate::output;
use backstay_disk::fs::HostFs;
use backstay_disk::{ReparentError, plan_reparent, reparent};
use clap::{Args, ValueHint};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Tell a differencing disk where its parent is now, after that was moved or renamed. The parent must be the disk \
                  that this one was made from, by its id, or the parent of that if that one is empty; with any other the content \
                  would be destroyed. Nobody may have the disk open.",
    after_long_help = "Example:\n  backstay disk reparent web.avhd --parent /srv/base/web.vhd"
)]
pub struct ReparentArgs {
    /// The differencing disk
    #[arg(value_hint = ValueHint::FilePath)]
    path: PathBuf,
    /// Where its parent is
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    parent: PathBuf,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs it.
pub fn run(context: &Context, args: &ReparentArgs) -> anyhow::Result<()> {
    let (child, parent) = (args.path.display(), args.parent.display());
    let host = HostFs::shared();
    if args.dry_run {
        let plan = plan_reparent(&host, &args.path, &args.parent, &options(true)).map_err(refused)?;
        return output::print(&plan.to_string());
    }
    reparent(&host, &args.path, &args.parent, &options(false)).map_err(refused)?;
    context.note(format!("{child} has {parent} as its parent"));
    Ok(())
}

/// What the state of the files does not allow exits with 5.
fn refused(error: ReparentError) -> anyhow::Error {
    match error {
        ReparentError::OtherParent { .. } | ReparentError::NotDifferencing { .. } => {
            Fail::conflict(error.to_string())
        }
        other => other.into(),
    }
}

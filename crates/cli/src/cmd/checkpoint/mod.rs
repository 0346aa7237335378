//! `backstay checkpoint`

mod apply;
mod change;
mod create;
mod delete;
mod export;
mod list;
mod show;

use crate::context::Context;
use clap::Subcommand;

/// Checkpoints: a machine's disks and memory at one instant.
#[derive(Debug, Subcommand)]
pub enum CheckpointCommand {
    /// Take a checkpoint; a running machine stands still for milliseconds
    Create(create::CreateArgs),
    /// The checkpoints of a machine
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// One checkpoint with its files
    Show(show::ShowArgs),
    /// Go to a checkpoint: configuration, disks and memory as they were
    Apply(apply::ApplyArgs),
    /// Go back to the checkpoint that Now continues from
    Revert(apply::RevertArgs),
    /// Change a checkpoint's name
    Rename(change::RenameArgs),
    /// Change a checkpoint's notes
    Set(change::SetArgs),
    /// Delete a checkpoint, or it and everything below it; its space comes back while the machine runs
    #[command(visible_alias = "rm")]
    Delete(delete::DeleteArgs),
    /// Go on with merging the files of deleted checkpoints, or change its speed
    Merge(delete::MergeArgs),
    /// Write a checkpoint as a machine of its own
    Export(export::ExportArgs),
}

impl CheckpointCommand {
    /// Runs the command.
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        context.block_on(async {
            match self {
                Self::Create(args) => create::run(context, &args).await,
                Self::List(args) => list::run(context, &args).await,
                Self::Show(args) => show::run(context, &args).await,
                Self::Apply(args) => apply::run(context, &args).await,
                Self::Revert(args) => apply::revert(context, &args).await,
                Self::Rename(args) => change::rename(context, &args).await,
                Self::Set(args) => change::set(context, &args).await,
                Self::Delete(args) => delete::run(context, &args).await,
                Self::Merge(args) => delete::merge(context, &args).await,
                Self::Export(args) => export::run(context, &args).await,
            }
        })
    }
}

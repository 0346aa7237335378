//! `backstay checkpoint`

mod apply;
mod create;
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
            }
        })
    }
}

//! `checkpoint apply` and `checkpoint revert`

use crate::confirm::confirm;
use crate::context::Context;
use crate::tasks::{self, ChangeArgs};
use backstay_api::CheckpointApply;
use clap::Args;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Go to a checkpoint: configuration, disks and memory are as they were. What happened since the last \
                  checkpoint is lost, unless --checkpoint-first keeps it.",
    after_long_help = "Examples:\n  backstay checkpoint apply web 'before the upgrade' --checkpoint-first\n  \
                       backstay checkpoint apply web 'before the upgrade' --without-memory --yes"
)]
pub struct ApplyArgs {
    /// The machine: name or GUID
    vm: String,
    /// The checkpoint: name or GUID
    checkpoint: String,
    #[command(flatten)]
    how: How,
}

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Go back to the checkpoint that Now continues from. What happened since is lost, unless \
                  --checkpoint-first keeps it.",
    after_long_help = "Example:\n  backstay checkpoint revert web --yes"
)]
pub struct RevertArgs {
    /// The machine: name or GUID
    vm: String,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct How {
    /// Take a checkpoint of Now first, so that nothing is lost
    #[arg(long)]
    checkpoint_first: bool,
    /// Bring back configuration and disks only; the machine stays off
    #[arg(long)]
    without_memory: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

impl How {
    fn body(&self) -> CheckpointApply {
        CheckpointApply { checkpoint_first: self.checkpoint_first, without_memory: self.without_memory }
    }

    /// Asks, unless nothing can be lost.
    fn confirm(&self, context: &Context, vm: &str, to: &str) -> anyhow::Result<()> {
        if self.checkpoint_first || self.change.dry_run {
            return Ok(());
        }
        confirm(context, &format!("'{vm}' goes to {to}; what it did since its last checkpoint will be lost."))
    }
}

/// Goes to a checkpoint.
pub async fn run(context: &Context, args: &ApplyArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let checkpoint = client.resolve_checkpoint(vm, &args.checkpoint).await?;
    args.how.confirm(context, &args.vm, &format!("checkpoint '{}'", args.checkpoint))?;
    let options = args.how.change.options();
    let outcome = client.apply_checkpoint(vm, checkpoint, &args.how.body(), &options).await?;
    let done = |_: &_| format!("'{}' is at checkpoint '{}'", args.vm, args.checkpoint);
    tasks::finish(context, &client, outcome, &args.how.change, done).await?;
    Ok(())
}

/// Goes back to the latest one.
pub async fn revert(context: &Context, args: &RevertArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let list = client.checkpoints(vm).await?;
    let latest = list.items.iter().find(|checkpoint| Some(checkpoint.id) == list.now_parent);
    // Without one the daemon refuses, and says why.
    let to = latest
        .map_or("its latest checkpoint".into(), |checkpoint| format!("checkpoint '{}'", checkpoint.name));
    args.how.confirm(context, &args.vm, &to)?;
    let outcome = client.revert_vm(vm, &args.how.body(), &args.how.change.options()).await?;
    let done = |_: &_| format!("'{}' is back at {to}", args.vm);
    tasks::finish(context, &client, outcome, &args.how.change, done).await?;
    Ok(())
}

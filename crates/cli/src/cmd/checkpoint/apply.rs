//! `checkpoint apply` and `checkpoint revert`

use crate::confirm::{choose, confirm, declined, is_terminal};
use crate::context::Context;
use crate::tasks::{self, ChangeArgs};
use backstay_api::{CheckpointApply, Task};
use clap::Args;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Go to a checkpoint: configuration, disks and memory are as they were. Now becomes a checkpoint first, so \
                  that nothing is lost; on a terminal you are asked, and --no-checkpoint-first throws Now away.",
    after_long_help = "Examples:\n  backstay checkpoint apply web 'before the upgrade'\n  \
                       backstay checkpoint apply web 'before the upgrade' --no-checkpoint-first --yes\n  \
                       backstay checkpoint apply web 'before the upgrade' --without-memory"
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
                  --checkpoint-first keeps it; on a terminal you are asked.",
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
    /// Throw Now away: what happened since the last checkpoint is lost
    #[arg(long, conflicts_with = "checkpoint_first")]
    no_checkpoint_first: bool,
    /// Bring back configuration and disks only; the machine stays off
    #[arg(long)]
    without_memory: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// What a command does with Now when nobody says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Usually {
    /// `apply`
    Keeps,
    /// `revert`
    ThrowsAway,
}

impl How {
    /// What happens to Now: as the options say, else as the answer says, else as usual.
    fn body(
        &self,
        context: &Context,
        vm: &str,
        to: &str,
        usually: Usually,
    ) -> anyhow::Result<CheckpointApply> {
        let checkpoint_first = match (self.checkpoint_first, self.no_checkpoint_first) {
            (true, _) => true,
            (_, given) if self.change.dry_run || context.yes => !given && usually == Usually::Keeps,
            (_, true) => {
                confirm(context, &lost(vm, to))?;
                false
            }
            // A script that says nothing loses nothing.
            _ if usually == Usually::Keeps && !is_terminal() => true,
            _ if !is_terminal() => {
                confirm(context, &lost(vm, to))?;
                false
            }
            _ => match choose(
                &format!("'{vm}' goes to {to}. Take a checkpoint of Now first?"),
                usually == Usually::Keeps,
            )? {
                Some(first) => first,
                None => return Err(declined()),
            },
        };
        Ok(CheckpointApply { checkpoint_first: Some(checkpoint_first), without_memory: self.without_memory })
    }
}

fn lost(vm: &str, to: &str) -> String {
    format!("'{vm}' goes to {to}; what it did since its last checkpoint will be lost.")
}

/// Goes to a checkpoint.
pub async fn run(context: &Context, args: &ApplyArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let checkpoint = client.resolve_checkpoint(vm, &args.checkpoint).await?;
    let to = format!("checkpoint '{}'", args.checkpoint);
    let body = args.how.body(context, &args.vm, &to, Usually::Keeps)?;
    let outcome = client.apply_checkpoint(vm, checkpoint, &body, &args.how.change.options()).await?;
    let done = |task: &Task| format!("'{}' is at {to}{}", args.vm, kept(task));
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
    let body = args.how.body(context, &args.vm, &to, Usually::ThrowsAway)?;
    let outcome = client.revert_vm(vm, &body, &args.how.change.options()).await?;
    let done = |task: &Task| format!("'{}' is back at {to}{}", args.vm, kept(task));
    tasks::finish(context, &client, outcome, &args.how.change, done).await?;
    Ok(())
}

/// Under which name Now was kept.
fn kept(task: &Task) -> String {
    let name = task.result.as_ref().and_then(|result| result["checkpoint_first"]["name"].as_str());
    name.map_or(String::new(), |name| format!("; what it was before is checkpoint '{name}'"))
}

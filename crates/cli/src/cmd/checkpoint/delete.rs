//! `checkpoint delete` and `checkpoint merge`

use crate::confirm::confirm;
use crate::context::Context;
use crate::exit::Fail;
use crate::output;
use crate::tasks::{self, ChangeArgs, Waited};
use backstay_api::{CheckpointDelete, CheckpointDeleted, CheckpointMerge, Client, MergeResult, Task};
use backstay_model::ByteSize;
use clap::Args;
use std::time::Duration;

/// How long a merge may wait for something else before this command does not.
const STUCK: Duration = Duration::from_secs(5);

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Delete a checkpoint. Now and the other checkpoints stay as they are: what hung below it hangs below \
                  its parent. Its memory goes at once; its disks' files are merged into their neighbours while the \
                  machine runs, and then their space is free again. Waiting shows the merge; it goes on without. \
                  Where it cannot go on until something changes, the command says why and ends with 7.",
    after_long_help = "Examples:\n  backstay checkpoint delete web 'before the upgrade' --dry-run\n  \
                       backstay checkpoint delete web 'before the upgrade' --yes\n  \
                       backstay checkpoint delete web base --subtree --rate 50M --yes"
)]
pub struct DeleteArgs {
    /// The machine: name or GUID
    vm: String,
    /// The checkpoint: name or GUID
    checkpoint: String,
    /// Also delete every checkpoint below it
    #[arg(long)]
    subtree: bool,
    /// Merge at most so many bytes per second until all is merged, for example 50M; unless given, a limit that is in force stays
    #[arg(long, value_name = "SIZE")]
    rate: Option<ByteSize>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Merge the files of deleted checkpoints. That begins by itself when a checkpoint is deleted and when the \
                  daemon starts; this goes on with a merge that was cancelled or failed, and changes the speed of one that \
                  goes on.",
    after_long_help = "Examples:\n  backstay checkpoint merge web --dry-run\n  backstay checkpoint merge web --rate 20M\n  \
                       backstay checkpoint merge web --no-wait"
)]
pub struct MergeArgs {
    /// The machine: name or GUID
    vm: String,
    /// At most so many bytes per second from now on, for example 50M; as fast as it goes unless given
    #[arg(long, value_name = "SIZE")]
    rate: Option<ByteSize>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Deletes.
pub async fn run(context: &Context, args: &DeleteArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let checkpoint = client.resolve_checkpoint(vm, &args.checkpoint).await?;
    if !args.change.dry_run {
        let below = if args.subtree { " and every checkpoint below it" } else { "" };
        let question = format!(
            "Checkpoint '{}' of '{}'{below} will be deleted: there is no way back to it.",
            args.checkpoint, args.vm
        );
        confirm(context, &question)?;
    }
    let query = CheckpointDelete {
        dry_run: args.change.dry_run,
        subtree: args.subtree,
        rate: args.rate.map(|ByteSize(bytes)| bytes),
    };
    let outcome = client.delete_checkpoint(vm, checkpoint, &query, &args.change.options()).await?;
    let Some(task) = tasks::finish(context, &client, outcome, &args.change, told).await? else {
        return Ok(());
    };
    match deleted(&task).and_then(|result| result.merge_task) {
        Some(merge) => follow(context, &client, client.task(merge).await?, &args.change).await,
        None => Ok(()),
    }
}

fn deleted(task: &Task) -> Option<CheckpointDeleted> {
    serde_json::from_value(task.result.clone()?).ok()
}

fn told(task: &Task) -> String {
    let names = deleted(task).map(|result| result.deleted).unwrap_or_default();
    match names.as_slice() {
        [one] => format!("checkpoint '{one}' is deleted"),
        many => format!("{} checkpoints are deleted: {}", many.len(), many.join(", ")),
    }
}

/// Waits for the merge that a deletion began.
async fn follow(context: &Context, client: &Client, merge: Task, how: &ChangeArgs) -> anyhow::Result<()> {
    let id = merge.id;
    let merged = match tasks::wait_while_working(context, client, merge, how.timeout, STUCK).await? {
        Waited::Ended(merged) => *merged,
        Waited::Stuck(reason) => {
            return Err(Fail::degraded(format!(
                "the checkpoint is deleted, and its files are merged when they can be: {reason}. It is tried again by itself: \
                 `backstay task wait {id}` goes on waiting, `backstay checkpoint list` shows what is left"
            )));
        }
    };
    for warning in &merged.warnings {
        context.warn(warning);
    }
    context.note(merge_words(&merged));
    Ok(())
}

fn merge_words(task: &Task) -> String {
    let result: MergeResult =
        task.result.clone().and_then(|result| serde_json::from_value(result).ok()).unwrap_or_default();
    format!(
        "{} merged ({} copied), {} deleted",
        files(result.merged),
        output::size(result.bytes_moved),
        files(result.deleted)
    )
}

fn files(count: u32) -> String {
    if count == 1 { "1 file".into() } else { format!("{count} files") }
}

/// Merges.
pub async fn merge(context: &Context, args: &MergeArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let body = CheckpointMerge { rate: args.rate.map(|ByteSize(bytes)| bytes) };
    let outcome = client.merge_checkpoints(vm, &body, &args.change.options()).await?;
    tasks::finish(context, &client, outcome, &args.change, merge_words).await?;
    Ok(())
}

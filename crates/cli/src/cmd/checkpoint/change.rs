//! `checkpoint rename` and `checkpoint set`

use crate::context::Context;
use crate::tasks::{self, ChangeArgs};
use backstay_api::CheckpointUpdate;
use clap::Args;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  backstay checkpoint rename web 'web - (2026-01-31 - 09:15:00)' 'before the upgrade'"
)]
pub struct RenameArgs {
    /// The machine: name or GUID
    vm: String,
    /// The checkpoint: name or GUID
    checkpoint: String,
    /// Its new name, 1 to 100 characters
    name: String,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Arguments.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  backstay checkpoint set web 'before the upgrade' --notes 'ticket 4711'"
)]
pub struct SetArgs {
    /// The machine: name or GUID
    vm: String,
    /// The checkpoint: name or GUID
    checkpoint: String,
    /// New free text; '' removes it
    #[arg(long)]
    notes: String,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Renames.
pub async fn rename(context: &Context, args: &RenameArgs) -> anyhow::Result<()> {
    let body = CheckpointUpdate { name: Some(args.name.clone()), notes: None };
    let done = format!("checkpoint '{}' is named '{}'", args.checkpoint, args.name);
    change(context, &args.vm, &args.checkpoint, &body, &args.change, done).await
}

/// Changes the notes.
pub async fn set(context: &Context, args: &SetArgs) -> anyhow::Result<()> {
    let body = CheckpointUpdate { name: None, notes: Some(args.notes.clone()) };
    let done = format!("checkpoint '{}' has new notes", args.checkpoint);
    change(context, &args.vm, &args.checkpoint, &body, &args.change, done).await
}

async fn change(
    context: &Context,
    vm: &str,
    checkpoint: &str,
    body: &CheckpointUpdate,
    how: &ChangeArgs,
    done: String,
) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(vm).await?;
    let checkpoint = client.resolve_checkpoint(vm, checkpoint).await?;
    let outcome = client.update_checkpoint(vm, checkpoint, body, &how.options()).await?;
    tasks::finish(context, &client, outcome, how, |_| done).await?;
    Ok(())
}

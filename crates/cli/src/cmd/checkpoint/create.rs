//! `checkpoint create`

use crate::context::Context;
use crate::output;
use crate::tasks::{self, ChangeArgs};
use backstay_api::{CheckpointCreate, CheckpointResult, Task};
use clap::Args;

/// Arguments.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  backstay checkpoint create web
  backstay checkpoint create web 'before the upgrade' --notes 'ticket 4711'
  backstay checkpoint create web -o json | jq .result.pause_us")]
pub struct CreateArgs {
    /// The machine: name or GUID
    vm: String,
    /// The checkpoint's name; the machine's name and the time unless given
    name: Option<String>,
    /// Free text
    #[arg(long, default_value = "", hide_default_value = true)]
    notes: String,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs it.
pub async fn run(context: &Context, args: &CreateArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let body = CheckpointCreate { name: args.name.clone(), notes: args.notes.clone() };
    let outcome = client.create_checkpoint(vm, &body, &args.change.options()).await?;
    tasks::finish(context, &client, outcome, &args.change, told).await?;
    Ok(())
}

fn told(task: &Task) -> String {
    let result = task.result.clone().and_then(|r| serde_json::from_value::<CheckpointResult>(r).ok());
    let Some(result) = result else { return format!("'{}' has a new checkpoint", task.object.name) };
    let total = output::duration(result.total_us);
    match result.method {
        None => format!("checkpoint '{}' taken in {total}, without memory: the machine was off", result.name),
        Some(_) => format!(
            "checkpoint '{}' taken: the guest stood still for {}, {} of memory written in {total} ({})",
            result.name,
            output::duration(result.pause_us),
            output::size(result.memory_bytes),
            result.method_reason
        ),
    }
}

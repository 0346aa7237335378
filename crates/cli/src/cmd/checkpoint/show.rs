//! `checkpoint show`

use crate::cmd::checkpoint::list::method;
use crate::context::Context;
use crate::exit::Fail;
use crate::output;
use backstay_api::CheckpointInfo;
use clap::Args;

/// Arguments.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The machine: name or GUID
    vm: String,
    /// The checkpoint: name or GUID
    checkpoint: String,
}

/// Runs it.
pub async fn run(context: &Context, args: &ShowArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let id = client.resolve_checkpoint(vm, &args.checkpoint).await?;
    let list = client.checkpoints(vm).await?;
    let Some(checkpoint) = list.items.iter().find(|c| c.id == id) else {
        return Err(Fail::error(format!("checkpoint '{}' has just been deleted", args.checkpoint)));
    };
    let parent = checkpoint.parent.map(|parent| {
        list.items.iter().find(|c| c.id == parent).map_or_else(|| parent.to_string(), |c| c.name.clone())
    });
    output::one(context.format, checkpoint, &facts(checkpoint, parent), |c| c.name.clone())
}

fn facts(checkpoint: &CheckpointInfo, parent: Option<String>) -> Vec<(&'static str, String)> {
    let disk = |d: &backstay_api::CheckpointDiskInfo| {
        format!("{}  {}  {}", d.slot, output::size(d.file_size), d.file.display())
    };
    let disks: Vec<String> = checkpoint.disks.iter().map(disk).collect();
    let memory = if checkpoint.has_memory { output::size(checkpoint.memory_bytes) } else { "none".into() };
    vec![
        ("Name", checkpoint.name.clone()),
        ("Id", checkpoint.id.to_string()),
        ("Created", output::time(checkpoint.created)),
        ("Parent", parent.unwrap_or_default()),
        ("Notes", checkpoint.notes.clone()),
        ("Memory", memory),
        ("Method", method(checkpoint)),
        ("On disk", output::size(checkpoint.bytes_on_disk)),
        ("Disks", disks.join("\n")),
        ("Problems", checkpoint.problems.join("\n")),
    ]
}

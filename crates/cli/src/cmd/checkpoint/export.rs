//! `checkpoint export`

use crate::context::Context;
use crate::exit::Fail;
use crate::tasks::{self, ChangeArgs};
use backstay_api::CheckpointExport;
use clap::{Args, ValueHint};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Write one checkpoint as a machine of its own: a folder with its configuration, whole disks without \
                  parents, and its memory if it has one. Everything is read back and compared. The machine in the folder \
                  has the same name and GUID: `backstay vm register` runs it on another host, or here once the original \
                  is deleted. The machine may run meanwhile.",
    after_long_help = "Examples:\n  backstay checkpoint export web 'before the upgrade' /srv/export/web\n  \
                       backstay checkpoint export web 'before the upgrade' /srv/export/web --no-memory"
)]
pub struct ExportArgs {
    /// The machine: name or GUID
    vm: String,
    /// The checkpoint: name or GUID
    checkpoint: String,
    /// The new folder; must not exist, or be empty
    #[arg(value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// Leave out its memory: the machine boots from its disks
    #[arg(long)]
    no_memory: bool,
    /// Go on where sectors of its disks cannot be read: they become zeros, unreadable.csv in the folder lists every range, and the exit code is 7
    #[arg(long)]
    skip_bad: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs it.
pub async fn run(context: &Context, args: &ExportArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let checkpoint = client.resolve_checkpoint(vm, &args.checkpoint).await?;
    let folder = std::path::absolute(&args.dir)?;
    let body =
        CheckpointExport { folder: folder.clone(), without_memory: args.no_memory, skip_bad: args.skip_bad };
    let outcome = client.export_checkpoint(vm, checkpoint, &body, &args.change.options()).await?;
    let done = |_: &_| {
        format!(
            "checkpoint '{}' is in {}: `backstay vm register` brings it to a host",
            args.checkpoint,
            folder.display()
        )
    };
    let task = tasks::finish(context, &client, outcome, &args.change, done).await?;
    let lost = task.and_then(|task| task.result).and_then(|result| result.get("unreadable_ranges")?.as_u64());
    match lost {
        Some(1..) => Err(Fail::degraded("parts of the disks could not be read and are zeros in the export")),
        _ => Ok(()),
    }
}

//! `vm move-disk`

use crate::context::{Context, absolute};
use crate::tasks::{self, ChangeArgs};
use backstay_api::DiskMove;
use backstay_model::DriveSlot;
use clap::{Args, ValueHint};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Move the file of a disk to another folder or file system, while the machine is running, paused or off. The guest goes \
                  on meanwhile. The old file is deleted when the new one is durable and the configuration names it. A disk with \
                  checkpoints is not moved.",
    after_long_help = "Example:\n  backstay vm move-disk web scsi:0:1 /srv/fast"
)]
pub struct MoveDiskArgs {
    /// Name or GUID
    vm: String,
    /// Which disk, for example scsi:0:1
    slot: DriveSlot,
    /// The folder its file goes to
    #[arg(value_hint = ValueHint::DirPath)]
    folder: PathBuf,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs it.
pub async fn run(context: &Context, args: &MoveDiskArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let body = DiskMove { slot: args.slot, folder: absolute(&args.folder)? };
    let outcome = client.move_disk(vm, &body, &args.change.options()).await?;
    let folder = body.folder.display();
    tasks::finish(context, &client, outcome, &args.change, |task| {
        format!("the disk at {} of '{}' is in {folder}", args.slot, task.object.name)
    })
    .await?;
    Ok(())
}

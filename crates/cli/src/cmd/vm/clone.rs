//! `vm clone`

use crate::context::{Context, absolute};
use crate::tasks::{self, ChangeArgs};
use backstay_api::VmClone;
use clap::{Args, ValueHint};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Make a machine from another one that is off, from a template, or from a checkpoint, whose machine may \
                  be running. The new machine has GUIDs, network addresses and disks of its own, no checkpoints and no \
                  memory: it boots. A full clone copies the disks, each chain into one file; a linked clone begins with \
                  empty differencing disks, takes no time, and needs its template or checkpoint as long as it lives.",
    after_long_help = "Examples:\n  backstay vm clone web web-test --checkpoint 'before the upgrade'\n  \
                       backstay vm template golden && backstay vm clone golden lab-1 --linked\n  \
                       backstay vm clone web archive --to /srv/archive --dry-run"
)]
pub struct CloneArgs {
    /// The machine to clone: name or GUID
    vm: String,
    /// Display name of the new machine, 1 to 100 characters
    name: String,
    /// Differencing disks on those of the template or checkpoint instead of copies
    #[arg(long)]
    linked: bool,
    /// As it was at this checkpoint: name or GUID
    #[arg(long, value_name = "CHECKPOINT")]
    checkpoint: Option<String>,
    /// Folder for the new machine; it is registered. The daemon's own unless given
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    to: Option<PathBuf>,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs it.
pub async fn run(context: &Context, args: &CloneArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let checkpoint = match &args.checkpoint {
        Some(checkpoint) => Some(client.resolve_checkpoint(vm, checkpoint).await?),
        None => None,
    };
    let body = VmClone {
        name: args.name.clone(),
        linked: args.linked,
        checkpoint,
        folder: args.to.as_deref().map(absolute).transpose()?,
    };
    let outcome = client.clone_vm(vm, &body, &args.change.options()).await?;
    let kind = if args.linked { "a linked clone" } else { "a clone" };
    tasks::finish(context, &client, outcome, &args.change, |_| {
        format!("'{}' is {kind} of '{}'", args.name, args.vm)
    })
    .await?;
    Ok(())
}

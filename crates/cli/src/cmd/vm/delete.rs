//! `vm delete`

use crate::confirm::confirm_name;
use crate::context::Context;
use crate::tasks::{self, ChangeArgs};
use backstay_api::VmDelete;
use backstay_model::VmState;
use clap::Args;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Remove a machine: its configuration and its checkpoints. Its disks stay unless --delete-disks is \
                  given. The machine has to be off or saved; a saved memory goes with it.",
    after_long_help = "Examples:\n  backstay vm delete web --dry-run\n  backstay vm delete web --delete-disks --yes"
)]
pub struct DeleteArgs {
    /// Name or GUID
    vm: String,
    /// Delete the disk files too, unless another machine uses them
    #[arg(long)]
    delete_disks: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs it.
pub async fn run(context: &Context, args: &DeleteArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let id = client.resolve_vm(&args.vm).await?;
    if !args.change.dry_run {
        let vm = client.vm(id).await?;
        let disks = if args.delete_disks { " and its disks" } else { ", its disks stay" };
        let what = match vm.checkpoints {
            0 => format!("'{}' will be deleted{disks}.", vm.name),
            1 => format!("'{}' will be deleted with its checkpoint{disks}.", vm.name),
            count => format!("'{}' will be deleted with its {count} checkpoints{disks}.", vm.name),
        };
        let what = match vm.state {
            VmState::Saved => format!("{what} Its saved memory goes with it."),
            _ => what,
        };
        confirm_name(context, &what, &vm.name)?;
    }
    let query = VmDelete { dry_run: args.change.dry_run, delete_disks: args.delete_disks };
    let outcome = client.delete_vm(id, &query, &args.change.options()).await?;
    tasks::finish(context, &client, outcome, &args.change, |task| {
        format!("'{}' is deleted", task.object.name)
    })
    .await?;
    Ok(())
}

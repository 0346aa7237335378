//! `vm rename`

use crate::context::Context;
use crate::tasks::{self, ChangeArgs};
use backstay_api::VmRename;
use clap::Args;

/// Arguments.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  backstay vm rename web 'web (old)'")]
pub struct RenameArgs {
    /// Name or GUID
    vm: String,
    /// The new name, 1 to 100 characters
    name: String,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs it.
pub async fn run(context: &Context, args: &RenameArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let outcome = client.rename_vm(vm, &VmRename { name: args.name.clone() }, &args.change.options()).await?;
    tasks::finish(context, &client, outcome, &args.change, |_| {
        format!("'{}' is now '{}'", args.vm, args.name)
    })
    .await?;
    Ok(())
}

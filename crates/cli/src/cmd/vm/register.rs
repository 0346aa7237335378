//! `vm register`

use crate::context::{Context, absolute};
use crate::tasks::{self, ChangeArgs};
use backstay_api::VmRegister;
use clap::{Args, ValueHint};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Bring back the machines of a folder in Hyper-V's layout (`Virtual Machines/<GUID>.xml`), or the one \
                  of a configuration file. Nothing is copied: the machines run where they are. Disks that were moved \
                  with the folder are found again.",
    after_long_help = "Example:\n  backstay vm register /srv/vms/web"
)]
pub struct RegisterArgs {
    /// Folder or configuration file
    #[arg(value_hint = ValueHint::AnyPath)]
    path: PathBuf,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs it.
pub async fn run(context: &Context, args: &RegisterArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let body = VmRegister { path: absolute(&args.path)? };
    let outcome = client.register_vm(&body, &args.change.options()).await?;
    let done = |_: &_| format!("{} is registered", args.path.display());
    tasks::finish(context, &client, outcome, &args.change, done).await?;
    Ok(())
}

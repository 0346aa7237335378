//! `vm unregister`

use crate::context::{Context, absolute};
use crate::tasks::{self, ChangeArgs};
use backstay_api::VmUnregister;
use clap::{Args, ValueHint};
use std::path::Path;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Forget a folder that was registered, with its machines. None of its files is touched, and it may be \
                  gone: a file system that will not come back keeps disks of other machines from being deleted as long \
                  as its folder is registered. `vm register` brings it back.",
    after_long_help = "Examples:\n  backstay vm unregister web\n  backstay vm unregister /srv/vms/web"
)]
pub struct UnregisterArgs {
    /// Name or GUID of the one machine in it, or the path of the folder
    #[arg(value_hint = ValueHint::AnyPath)]
    target: String,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs it.
pub async fn run(context: &Context, args: &UnregisterArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    // A slash tells a path from a name.
    let target = match args.target.contains('/') {
        true => absolute(Path::new(&args.target))?.display().to_string(),
        false => args.target.clone(),
    };
    let outcome = client.unregister_vm(&VmUnregister { target }, &args.change.options()).await?;
    let done = |_: &_| format!("{} is forgotten; its files stay", args.target);
    tasks::finish(context, &client, outcome, &args.change, done).await?;
    Ok(())
}

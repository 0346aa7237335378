//! `vm template`

use crate::context::Context;
use crate::tasks::{self, ChangeArgs};
use backstay_api::VmTemplate;
use clap::Args;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Make a machine a template: its disks become read-only, and it is cloned, but never started or changed. \
                  The machine has to be off and without checkpoints. --off makes it a machine like any other again, \
                  which is possible as long as no linked clone needs it.",
    after_long_help = "Examples:\n  backstay vm template golden\n  backstay vm template golden --off"
)]
pub struct TemplateArgs {
    /// Name or GUID
    vm: String,
    /// Make it a machine like any other again
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Runs it.
pub async fn run(context: &Context, args: &TemplateArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let outcome =
        client.set_template(vm, &VmTemplate { template: !args.off }, &args.change.options()).await?;
    let now = if args.off { "no template any more" } else { "a template" };
    tasks::finish(context, &client, outcome, &args.change, |task| format!("'{}' is {now}", task.object.name))
        .await?;
    Ok(())
}

//! Power verbs.

use crate::confirm::confirm;
use crate::context::Context;
use crate::tasks::{self, ChangeArgs};
use backstay_api::VmStart;
use clap::Args;

/// `vm start`
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  backstay vm start web")]
pub struct StartArgs {
    /// Name or GUID
    vm: String,
    /// Leave the processors stopped
    #[arg(long)]
    paused: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// The other verbs.
#[derive(Debug, Args)]
pub struct PowerArgs {
    /// Name or GUID
    vm: String,
    #[command(flatten)]
    change: ChangeArgs,
}

/// Which verb.
#[derive(Clone, Copy, Debug)]
pub enum Verb {
    /// ACPI power button.
    Shutdown,
    /// Pull the plug.
    TurnOff,
    /// Stop the processors.
    Pause,
    /// Continue.
    Resume,
    /// Reset button.
    Reset,
    /// Memory to disk.
    Save,
}

/// Starts a machine.
pub async fn start(context: &Context, args: &StartArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let outcome = client.start_vm(vm, &VmStart { paused: args.paused }, &args.change.options()).await?;
    let state = if args.paused { "is paused" } else { "is running" };
    tasks::finish(context, &client, outcome, &args.change, |task| format!("'{}' {state}", task.object.name))
        .await?;
    Ok(())
}

/// Any other verb.
pub async fn run(context: &Context, args: &PowerArgs, verb: Verb) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.resolve_vm(&args.vm).await?;
    let options = args.change.options();
    let outcome = match verb {
        Verb::Shutdown => client.shutdown_vm(vm, &options).await,
        Verb::TurnOff => client.turn_off_vm(vm, &options).await,
        Verb::Pause => client.pause_vm(vm, &options).await,
        Verb::Resume => client.resume_vm(vm, &options).await,
        Verb::Reset => client.reset_vm(vm, &options).await,
        Verb::Save => client.save_vm(vm, &options).await,
    }?;
    let done = match verb {
        Verb::Shutdown => "has shut down",
        Verb::TurnOff => "is off",
        Verb::Pause => "is paused",
        Verb::Resume => "is running",
        Verb::Reset => "was reset",
        Verb::Save => "is saved",
    };
    tasks::finish(context, &client, outcome, &args.change, |task| format!("'{}' {done}", task.object.name))
        .await?;
    Ok(())
}

/// Throws a saved memory away, which cannot be undone.
pub async fn discard(context: &Context, args: &PowerArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let id = client.resolve_vm(&args.vm).await?;
    if !args.change.dry_run {
        let vm = client.vm(id).await?;
        let question = format!(
            "The saved memory of '{}' will be deleted: it will boot as after a power cut. Go on?",
            vm.name
        );
        confirm(context, &question)?;
    }
    let outcome = client.discard_saved_state(id, &args.change.options()).await?;
    let done =
        |task: &backstay_api::Task| format!("'{}' is off, its saved memory is deleted", task.object.name);
    tasks::finish(context, &client, outcome, &args.change, done).await?;
    Ok(())
}

//! `backstay sandbox-exec`: makes QEMU's view of the host and becomes QEMU.

use anyhow::Context;
use backstay_worker::sandbox::{View, enter};
use clap::Args;
use std::ffi::OsString;

/// Arguments.
#[derive(Debug, Args)]
pub struct SandboxExecArgs {
    /// What is to be seen, as JSON
    #[arg(long)]
    view: String,
    /// The command to become
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs the command; returns only when that fails.
pub fn run(args: &SandboxExecArgs) -> anyhow::Result<()> {
    let view: View = serde_json::from_str(&args.view).context("the view cannot be read")?;
    Err(enter(&view, &args.command).into())
}

//! `backstay daemon`

use clap::{Args, ValueHint};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Run the service that manages the machines of this host. It can be stopped and started at any time: \
                  machines go on without it. BACKSTAY_STATE_DIR and BACKSTAY_RUN_DIR override the folders of the \
                  settings file.",
    after_long_help = "Example:\n  backstay daemon --config /etc/backstay/backstay.toml"
)]
pub struct DaemonArgs {
    /// Settings; /etc/backstay/backstay.toml if it exists
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
}

/// Runs it.
pub fn run(args: &DaemonArgs) -> anyhow::Result<()> {
    let _ = &args.config;
    anyhow::bail!("the daemon is not part of this build")
}

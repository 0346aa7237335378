//! `backstay daemon`

use backstay_daemon::Config;
use clap::{Args, ValueHint};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Run the service that manages the machines of this host. It can be stopped and started at any time: \
                  machines go on without it. Settings: backstay.toml(5). BACKSTAY_STATE_DIR and BACKSTAY_RUN_DIR override the folders of the \
                  settings file.",
    after_long_help = "Example:\n  backstay daemon --config /etc/backstay/backstay.toml"
)]
pub struct DaemonArgs {
    /// Settings; /etc/backstay/backstay.toml if it exists
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
}

/// Runs it until it is told to stop.
pub fn run(args: &DaemonArgs) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref())?;
    backstay_daemon::logging::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(backstay_daemon::run(config))?;
    // Calls that never end by themselves must not hold up the end of the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(())
}

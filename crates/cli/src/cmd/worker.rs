//! `backstay worker`

use clap::{Args, ValueHint};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The machine's run folder with its launch record
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    run_dir: PathBuf,
}

/// Runs it; the code tells how the machine ended.
pub fn run(args: &WorkerArgs) -> anyhow::Result<ExitCode> {
    backstay_worker::run(&args.run_dir)
}

//! `backstay worker`

use clap::{Args, ValueHint};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The machine's run folder with its launch record
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    run_dir: PathBuf,
}

/// Runs it.
pub fn run(args: &WorkerArgs) -> anyhow::Result<()> {
    let _ = &args.run_dir;
    anyhow::bail!("the worker is not part of this build")
}

//! `man`: pages for the package

use anyhow::Context as _;
use clap::{Args, Command, ValueHint};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder for one page of each command
    #[arg(value_hint = ValueHint::DirPath)]
    folder: PathBuf,
}

/// Writes a page for every command.
pub fn run(args: &ManArgs, command: Command) -> anyhow::Result<()> {
    clap_mangen::generate_to(command, &args.folder)
        .with_context(|| format!("cannot write to {}", args.folder.display()))
}

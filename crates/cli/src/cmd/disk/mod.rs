//! `backstay disk`

use crate::context::Context;
use clap::Subcommand;

/// Virtual hard disks.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {}

impl DiskCommand {
    /// Runs the command.
    pub fn run(self, _context: &Context) -> anyhow::Result<()> {
        match self {}
    }
}

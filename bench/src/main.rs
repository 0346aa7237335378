//! Side by side with QEMU: disks over NBD, allocation, conversion. Writes `docs/benchmarks.md`.
//!
//! Every comparison runs the two sides in turns on equal data with equal flush and cache settings, at least five times, and
//! reports the median and the spread of both and of the ratio of each pair. On a busy machine only the ratios mean much.

mod compact;
mod convert;
mod disks;
mod load;
mod machine;
mod merge;
mod offline;
mod reflink;
mod report;
mod scale;
mod server;
mod stats;
mod vm;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use backstay_disk::CacheMode;
use clap::{Parser, Subcommand};

use crate::{disks::Sizes, report::Report};

#[derive(Debug, Parser)]
#[command(about = "Measures Backstay side by side with QEMU's own tools")]
struct Args {
    /// Small disks and short runs: the whole takes a few minutes.
    #[arg(long)]
    quick: bool,
    /// Pairs of runs per comparison.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only comparisons whose name contains this; the report is printed and not written.
    #[arg(long)]
    only: Option<String>,
    /// Folder for scratch files (several GiB); removed afterwards.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Where the report goes.
    #[arg(long, default_value = "docs/benchmarks.md")]
    out: PathBuf,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What the benchmark runs as processes of their own.
#[derive(Debug, Subcommand)]
enum Role {
    /// Serve a disk until standard input ends.
    #[command(hide = true)]
    Serve {
        file: PathBuf,
        socket: PathBuf,
        /// Past the page cache.
        #[arg(long)]
        past_cache: bool,
    },
    /// Serve a disk and merge its top into its parent when told to.
    #[command(hide = true)]
    MergeServer { file: PathBuf, socket: PathBuf },
    /// Convert an image.
    #[command(hide = true)]
    Convert { source: PathBuf, target: PathBuf },
    /// Merge a disk into its parent and remove it.
    #[command(hide = true)]
    Merge { upper: PathBuf },
    /// Compact a disk.
    #[command(hide = true)]
    Compact { file: PathBuf },
}

/// What all parts of the benchmark need.
#[derive(Debug)]
pub struct Bench {
    scratch: tempfile::TempDir,
    sizes: Sizes,
    rounds: usize,
    only: Option<String>,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.role {
        Some(Role::Serve { file, socket, past_cache }) => {
            let cache = if past_cache { CacheMode::None } else { CacheMode::Writeback };
            server::serve(&file, &socket, cache)
        }
        Some(Role::MergeServer { file, socket }) => merge::serve(&file, &socket),
        Some(Role::Convert { source, target }) => convert::convert(&source, &target),
        Some(Role::Merge { upper }) => offline::merge(&upper),
        Some(Role::Compact { file }) => compact::compact(&file),
        None => measure(&args),
    }
}

fn measure(args: &Args) -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("backstay-bench-").tempdir_in(&args.dir)?;
    let sizes = if args.quick { Sizes::quick() } else { Sizes::full() };
    let bench = Bench { scratch, sizes, rounds: args.rounds.max(1), only: args.only.clone() };
    let mut report = Report::new(args.quick, bench.rounds, &args.dir)?;
    disks::run(&bench, &mut report)?;
    convert::run(&bench, &mut report)?;
    merge::run(&bench, &mut report)?;
    offline::run(&bench, &mut report)?;
    compact::run(&bench, &mut report)?;
    reflink::run(&bench, &mut report)?;
    vm::run(&bench, &mut report)?;
    scale::run(&bench, &mut report)?;
    let text = report.finish();
    println!("{text}");
    if args.only.is_none() {
        write(&args.out, &text)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("written to {}", path.display());
    Ok(())
}

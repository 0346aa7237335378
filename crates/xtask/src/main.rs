//! The repository's chores: invariants that no compiler checks, the guests that tests boot, and `make run`.

mod cmd;
mod fixtures;
mod guest;
mod host;
mod package;
mod previous;
mod tidy;

use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo run -p xtask -- COMMAND

  tidy       check what the compiler cannot: crate arrows, purity, sizes, wording
  guest      build the test guests into target/guest (exit code 3: no Linux guest, its packages cannot be had)
  microguest build only the small one, which needs no packages
  fixtures   unpack the disk images that came from other systems into target/fixtures
  previous   build the previous release into target/previous, for the tests of upgrades
  run        start a daemon with the demo guest on this machine
  stop       end what `run` started
  package    make the Debian package from target/release/backstay (`package dev`: from target/debug, for tests)
";

/// Exit code of `guest` when only the Linux guest is missing, so that a caller can go on without it.
const NO_LINUX_GUEST: u8 = 3;

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let result = match command.as_str() {
        "tidy" => tidy::run(),
        "guest" => {
            guest::run().map(|linux| if linux { ExitCode::SUCCESS } else { ExitCode::from(NO_LINUX_GUEST) })
        }
        "microguest" => guest::micro().map(|()| ExitCode::SUCCESS),
        "fixtures" => fixtures::run().map(|()| ExitCode::SUCCESS),
        "previous" => previous::run().map(|()| ExitCode::SUCCESS),
        "run" => host::run().map(|()| ExitCode::SUCCESS),
        "stop" => host::stop().map(|()| ExitCode::SUCCESS),
        "package" => {
            let profile = std::env::args().nth(2).unwrap_or_else(|| "release".into());
            package::run(&profile).map(|()| ExitCode::SUCCESS)
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask {command}: {error:#}");
        ExitCode::FAILURE
    })
}

/// The repository's root folder.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(PathBuf::from).unwrap_or_default()
}

/// Cargo's target folder: the executable lies in its `debug/`.
fn target() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find this executable")?;
    exe.ancestors().nth(2).map(PathBuf::from).context("this executable is not in cargo's target folder")
}

//! What every command knows: options that go with all of them, and the way to the daemon.

use crate::output::Format;
use anyhow::Context as _;
use backstay_api::Client;
use clap::{Args, ValueHint};
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Options of every command.
#[derive(Debug, Args)]
pub struct GlobalArgs {
    /// How data is printed; `wide` is a table with more columns, `name` one name or id per line
    #[arg(short, long, global = true, value_enum, default_value = "table", help_heading = "Global options")]
    output: Format,
    /// Answer every question with yes
    #[arg(short, long, global = true, help_heading = "Global options")]
    yes: bool,
    /// No progress bar and no remarks, only data and errors
    #[arg(short, long, global = true, help_heading = "Global options")]
    quiet: bool,
    /// The socket of the daemon to talk to
    #[arg(
        long,
        global = true,
        env = "BACKSTAY_SOCKET",
        hide_env_values = true,
        value_name = "PATH",
        value_hint = ValueHint::FilePath,
        help_heading = "Global options"
    )]
    connect: Option<PathBuf>,
}

/// Options and surroundings of the running command.
#[derive(Debug)]
pub struct Context {
    /// How data is printed.
    pub format: Format,
    /// Questions are answered with yes.
    pub yes: bool,
    quiet: bool,
    socket: PathBuf,
}

impl Context {
    /// Takes the global options.
    pub fn new(args: GlobalArgs) -> Self {
        Self {
            format: args.output,
            yes: args.yes,
            quiet: args.quiet,
            socket: args.connect.unwrap_or_else(default_socket),
        }
    }

    /// A client for the daemon.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(&self.socket)?)
    }

    /// Runs a command that talks to the daemon.
    pub fn block_on<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("the asynchronous runtime cannot be started")?;
        let result = runtime.block_on(work);
        // A read from a terminal cannot be interrupted: do not wait for it.
        runtime.shutdown_background();
        result
    }

    /// Whether a progress bar makes sense.
    pub fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    /// A remark on standard error.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{}", text.as_ref());
        }
    }

    /// Something the user should know; told even when quiet.
    #[expect(clippy::unused_self, reason = "reads like note at the callers")]
    pub fn warn(&self, text: impl AsRef<str>) {
        let _ = writeln!(io::stderr(), "warning: {}", text.as_ref());
    }
}

fn default_socket() -> PathBuf {
    let run_dir = std::env::var_os("BACKSTAY_RUN_DIR").filter(|dir| !dir.is_empty());
    run_dir.map_or_else(|| PathBuf::from("/run/backstay"), PathBuf::from).join("backstay.sock")
}

/// The path as the daemon sees it.
pub fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("'{}' is no usable path", path.display()))
}

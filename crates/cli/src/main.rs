//! `backstay`: the command line, and the long-running forms of the one executable.

mod cmd;
mod confirm;
mod context;
mod exit;
mod mount;
mod output;
mod progress;
mod tasks;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Runs virtual machines from VHD files in place, takes checkpoints of them while they run, and brings them back.
///
/// Names and GUIDs can be used for each other everywhere. Data goes to standard output, everything else to standard
/// error. What changes something waits with a progress bar until it is done; --no-wait prints the task's id at once.
#[derive(Debug, Parser)]
#[command(
    name = "backstay",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    after_long_help = EXIT_CODES
)]
struct Cli {
    #[command(flatten)]
    global: context::GlobalArgs,
    #[command(subcommand)]
    noun: Noun,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 error; 2 usage; 3 not found; 4 denied; 5 conflict or precondition; 6 timed out, the task is \
still running; 7 done, but something is degraded; 130 interrupted.

Examples:
  backstay disk create web.vhd --size 40G
  backstay vm create web --memory 2G --cpus 2 --disk web.vhd --iso debian.iso
  backstay vm start web && backstay vm console web
  backstay checkpoint create web 'before the upgrade'
  backstay checkpoint list web --tree
  backstay checkpoint revert web";

#[derive(Debug, Subcommand)]
enum Noun {
    /// Virtual hard disks: create, look into, check, convert, serve
    #[command(subcommand)]
    Disk(cmd::disk::DiskCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(cmd::vm::VmCommand),
    /// Checkpoints: a machine's disks and memory at one instant
    #[command(subcommand, visible_alias = "snapshot")]
    Checkpoint(cmd::checkpoint::CheckpointCommand),
    /// What the daemon is doing and has done
    #[command(subcommand)]
    Task(cmd::task::TaskCommand),
    /// What happened, who did it, and why
    #[command(subcommand)]
    Event(cmd::event::EventCommand),
    /// What a code means, what usually causes it and what to do: ours and those of Windows
    Explain(cmd::explain::ExplainArgs),
    /// This host
    #[command(subcommand)]
    Host(cmd::host::HostCommand),
    /// Run the service that manages the machines of this host
    Daemon(cmd::daemon::DaemonArgs),
    /// Print a completion script for a shell
    Completions(cmd::completions::CompletionsArgs),
    /// Write man pages (for the package)
    #[command(hide = true)]
    Man(cmd::man::ManArgs),
    /// Run one machine (started by the daemon)
    #[command(hide = true)]
    Worker(cmd::worker::WorkerArgs),
    /// Shut a QEMU in (started by a worker)
    #[command(hide = true)]
    SandboxExec(cmd::sandbox_exec::SandboxExecArgs),
}

fn main() -> ExitCode {
    // A host has one of these for each machine: it does without the grammar of all other commands in its memory.
    if let Some(args) = cmd::worker::WorkerArgs::from_words(std::env::args_os()) {
        return cmd::worker::run(&args).unwrap_or_else(|error| exit::report(&error));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that has gone is no reason to complain.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let context = context::Context::new(cli.global);
    let result = match cli.noun {
        Noun::Disk(command) => command.run(&context),
        Noun::Vm(command) => command.run(&context),
        Noun::Checkpoint(command) => command.run(&context),
        Noun::Task(command) => command.run(&context),
        Noun::Event(command) => command.run(&context),
        Noun::Explain(args) => cmd::explain::run(&args, &context),
        Noun::Host(command) => command.run(&context),
        Noun::Daemon(args) => cmd::daemon::run(&args),
        Noun::Completions(args) => cmd::completions::run(&args, Cli::command()),
        Noun::Man(args) => cmd::man::run(&args, Cli::command()),
        Noun::SandboxExec(args) => cmd::sandbox_exec::run(&args),
        Noun::Worker(args) => return cmd::worker::run(&args).unwrap_or_else(|error| exit::report(&error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}

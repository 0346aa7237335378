//! `backstay host`

use crate::context::Context;
use crate::output::{self, Format};
use backstay_api::{HostInfo, LogLevel};
use clap::{Args, Subcommand};

/// This host.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// What this host is and can do
    Show,
    /// What the daemon logs, or change it until the daemon is started again
    LogLevel(LogLevelArgs),
}

/// Arguments.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  backstay host log-level\n  backstay host log-level debug\n  \
                       backstay host log-level info,backstay_daemon::workers=debug")]
pub struct LogLevelArgs {
    /// error, warn, info, debug, trace, or one for each part of the program
    level: Option<String>,
}

async fn log_level(context: &Context, args: LogLevelArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let now = match args.level {
        None => client.log_level().await?,
        Some(level) => client.set_log_level(&LogLevel { level }).await?,
    };
    match context.format {
        Format::Table | Format::Wide | Format::Name => output::print(&format!("{}\n", now.level)),
        format => output::one(format, &now, &[("Level", now.level.clone())], |now| now.level.clone()),
    }
}

impl HostCommand {
    /// Runs the command.
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        if let Self::LogLevel(args) = self {
            return context.block_on(log_level(context, args));
        }
        let host = context.block_on(async { Ok(context.client()?.host().await?) })?;
        output::one(context.format, &host, &facts(&host), |host| host.name.clone())?;
        for warning in &host.warnings {
            context.warn(warning);
        }
        Ok(())
    }
}

fn facts(host: &HostInfo) -> Vec<(&'static str, String)> {
    let qemu = match (&host.qemu_version, &host.qemu_reason) {
        (Some(version), _) => format!("{version}, {}", host.qemu.display()),
        (None, Some(reason)) => format!("{} does not run: {reason}", host.qemu.display()),
        (None, None) => host.qemu.display().to_string(),
    };
    let pauses = if host.background_snapshot { "milliseconds" } else { "longer" };
    vec![
        ("Name", host.name.clone()),
        ("Version", host.version.clone()),
        ("Daemon", format!("pid {}, since {}", host.daemon_pid, output::time(host.daemon_started))),
        ("QEMU", qemu),
        ("Accelerator", format!("{} ({})", host.accelerator, host.accelerator_reason)),
        ("Checkpoint pauses", format!("{pauses} ({})", host.background_snapshot_reason)),
        ("Processors", host.cpus.to_string()),
        (
            "Memory",
            format!(
                "{}, {} available, {} given to machines",
                output::size(host.memory_bytes),
                output::size(host.memory_available_bytes),
                output::size(host.memory_assigned_bytes)
            ),
        ),
        (
            "State folder",
            format!("{}, {} free", host.state_dir.display(), output::size(host.state_dir_free_bytes)),
        ),
        ("Run folder", host.run_dir.display().to_string()),
        ("Machines", format!("{}, {} on", host.vms, host.vms_active)),
    ]
}

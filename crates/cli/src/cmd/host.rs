//! `backstay host`

use crate::context::Context;
use crate::output::{self, Format};
use crate::tasks::{self, ChangeArgs, parse_duration};
use backstay_api::{HostInfo, HostPromise, HostStopGuests, LogLevel};
use clap::{Args, Subcommand};
use std::time::Duration;

/// This host.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// What this host is and can do
    Show,
    /// What the daemon logs, or change it until the daemon is started again
    LogLevel(LogLevelArgs),
    /// Stop all machines as their settings say for a host that goes down
    StopGuests(StopGuestsArgs),
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

/// Arguments of `host stop-guests`.
#[derive(Debug, Args)]
#[command(
    long_about = "Stop every machine that is on as its `--host-stop` says: save it, ask its guest to shut down, or turn it \
                  off; the last started first. A guest that does not shut down in time is saved, and what cannot be saved \
                  is turned off. The next boot starts those again whose `--host-start` says so. systemd calls this when \
                  the host goes down; a restart of the daemon touches no machine.",
    after_long_help = "Examples:\n  backstay host stop-guests --dry-run\n  backstay host stop-guests --shutdown-timeout 5m"
)]
pub struct StopGuestsArgs {
    /// How long a guest may take to shut down before it is saved instead
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    shutdown_timeout: Duration,
    /// How many machines of one start order are stopped at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: u32,
    #[command(flatten)]
    change: ChangeArgs,
}

impl HostCommand {
    /// Runs the command.
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Show => show(context),
            Self::LogLevel(args) => context.block_on(log_level(context, args)),
            Self::StopGuests(args) => context.block_on(stop_guests(context, &args)),
        }
    }
}

async fn stop_guests(context: &Context, args: &StopGuestsArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let body = HostStopGuests {
        shutdown_timeout_s: Some(u32::try_from(args.shutdown_timeout.as_secs()).unwrap_or(u32::MAX)),
        parallel: Some(args.parallel),
    };
    let outcome = client.stop_guests(&body, &args.change.options()).await?;
    let task =
        tasks::finish(context, &client, outcome, &args.change, |_| "all machines are stopped".into()).await?;
    let result = task.and_then(|task| task.result).unwrap_or_default();
    for machine in result["machines"].as_array().into_iter().flatten() {
        let word = |key: &str| machine[key].as_str().unwrap_or_default().to_owned();
        context.note(format!("{}: {}", word("name"), word("outcome")));
    }
    Ok(())
}

fn show(context: &Context) -> anyhow::Result<()> {
    let host = context.block_on(async { Ok(context.client()?.host().await?) })?;
    output::one(context.format, &host, &facts(&host), |host| host.name.clone())?;
    for warning in &host.warnings {
        context.warn(warning);
    }
    Ok(())
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
        ("Sandbox", format!("{} ({})", output::yes_no(host.sandbox), host.sandbox_reason)),
        ("Kernel messages", host.kernel_log.clone()),
        ("Disk health", host.disk_health.clone()),
        ("Processors", processors(host)),
        ("Processor control", host.capacity.processor_control_reason.clone()),
        ("Memory", memory(host)),
        ("Promised", promises(host)),
        (
            "State folder",
            format!("{}, {} free", host.state_dir.display(), output::size(host.state_dir_free_bytes)),
        ),
        ("Run folder", host.run_dir.display().to_string()),
        ("Machines", format!("{}, {} on", host.vms, host.vms_active)),
    ]
}

fn processors(host: &HostInfo) -> String {
    let room = &host.capacity;
    let counted =
        if room.processors == host.cpus { String::new() } else { format!(", {} count", room.processors) };
    format!(
        "{}{counted}: {:.2} cores promised, {:.2} left{}",
        host.cpus,
        room.cores_promised,
        room.cores_left,
        if room.cores_kept > 0.0 {
            format!(", {:.2} kept for the host", room.cores_kept)
        } else {
            String::new()
        }
    )
}

fn memory(host: &HostInfo) -> String {
    let room = &host.capacity;
    let size = |bytes: u64| output::size(bytes >> 20 << 20);
    let by = room.memory_limited_by.as_ref().map_or(String::new(), |by| format!(" (limited by {by})"));
    format!(
        "{} left for machines: {} available of {}{by}, less {} promised and not used yet, less {} kept for the host",
        size(room.memory_left_bytes),
        size(room.memory_available_bytes),
        size(room.memory_bytes),
        size(room.memory_outstanding_bytes),
        size(room.memory_kept_bytes),
    )
}

/// One line for each machine that is on.
fn promises(host: &HostInfo) -> String {
    let size = |bytes: u64| output::size(bytes >> 20 << 20);
    let line = |p: &HostPromise| {
        format!(
            "{}: {:.2} cores, {} of memory, {} used",
            p.name,
            p.cores,
            size(p.memory_bytes),
            size(p.memory_used_bytes)
        )
    };
    host.capacity.promises.iter().map(line).collect::<Vec<_>>().join("\n")
}

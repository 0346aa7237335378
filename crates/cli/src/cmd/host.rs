//! `backstay host`

use crate::context::Context;
use crate::output;
use backstay_api::HostInfo;
use clap::Subcommand;

/// This host.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// What this host is and can do
    Show,
}

impl HostCommand {
    /// Runs the command.
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self::Show = self;
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

//! `vm create`

use super::set::{DeviceArgs, SettingArgs, parse_memory};
use crate::context::Context;
use crate::tasks::{self, ChangeArgs};
use backstay_api::{NicRequest, VmCreate, VmStart};
use backstay_model::{VirtualHardware, VmId};
use clap::Args;

/// Arguments.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Drives take the next free place, IDE first; name one to choose it: `scsi:0:0=data.vhd`.

Examples:
  backstay vm create web --memory 2G --cpus 2 --disk web.vhd --iso debian.iso
  backstay vm create db --memory 4G --new-disk 40G --new-disk scsi:0:0=200G --start
  backstay vm create lab --memory 512M --disk lab.vhd --no-network --dry-run")]
pub struct CreateArgs {
    /// Display name, 1 to 100 characters
    name: String,
    /// Memory, for example 2G
    #[arg(short, long, value_name = "SIZE", value_parser = parse_memory)]
    memory: u64,
    /// Virtual hardware: 1 is BIOS and IDE, 2 is UEFI and SCSI
    #[arg(long, value_name = "1|2", default_value = "1", value_parser = parse_generation)]
    generation: VirtualHardware,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    devices: DeviceArgs,
    /// No network card; without this and --switch there is one on QEMU's user-mode network
    #[arg(long, conflicts_with_all = ["switch", "mac", "nic_model", "disconnected"])]
    no_network: bool,
    /// Versioned QEMU machine type; the newest unless given
    #[arg(long, value_name = "TYPE")]
    machine_type: Option<String>,
    /// GUID; a new one unless given
    #[arg(long, value_name = "GUID")]
    id: Option<VmId>,
    /// Start it when it is made
    #[arg(long, conflicts_with_all = ["dry_run", "no_wait"])]
    start: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

fn parse_generation(text: &str) -> Result<VirtualHardware, String> {
    match text {
        "1" => Ok(VirtualHardware::Gen1),
        "2" => Ok(VirtualHardware::Gen2),
        _ => Err("virtual hardware is of generation 1 or 2".into()),
    }
}

/// Runs it.
pub async fn run(context: &Context, args: &CreateArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let body = body(args)?;
    let outcome = client.create_vm(&body, &args.change.options()).await?;
    let done = |_: &_| format!("'{}' is made", args.name);
    let task = tasks::finish(context, &client, outcome, &args.change, done).await?;
    let Some(id) = task.filter(|_| args.start).and_then(|task| task.object.id) else { return Ok(()) };
    let change = ChangeArgs { timeout: args.change.timeout, ..ChangeArgs::default() };
    let outcome = client.start_vm(VmId(id), &VmStart { paused: false }, &change.options()).await?;
    tasks::finish(context, &client, outcome, &change, |_| format!("'{}' is running", args.name)).await?;
    Ok(())
}

fn body(args: &CreateArgs) -> anyhow::Result<VmCreate> {
    let settings = &args.settings;
    let mut nics = args.devices.nics();
    if nics.is_empty() && !args.no_network {
        nics.push(NicRequest::default());
    }
    Ok(VmCreate {
        notes: settings.notes.clone().unwrap_or_default(),
        hardware: args.generation,
        cpus: settings.cpus,
        cpu_reserve: settings.cpu_reserve,
        cpu_limit: settings.cpu_limit,
        cpu_weight: settings.cpu_weight,
        compat: args.devices.compat.map(Into::into),
        drives: args.devices.drives()?,
        nics,
        boot_order: settings.boot_order(),
        machine_type: args.machine_type.clone(),
        accel: settings.accel.map(Into::into).unwrap_or_default(),
        recovery: settings.recovery.map(Into::into).unwrap_or_default(),
        host_start: settings.host_start.map(Into::into).unwrap_or_default(),
        host_stop: settings.host_stop.map(Into::into).unwrap_or_default(),
        start_delay_s: settings.start_delay_s().unwrap_or(0),
        start_order: settings.start_order.unwrap_or(0),
        id: args.id,
        ..VmCreate::new(args.name.clone(), args.memory)
    })
}

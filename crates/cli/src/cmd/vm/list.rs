//! `vm list`

use crate::context::Context;
use crate::exit::Fail;
use crate::output::{self, Column};
use backstay_api::{Vm, VmQuery};
use backstay_model::{ByteSize, VirtualHardware, VmState};
use clap::Args;
use jiff::Timestamp;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  backstay vm list --state running\n  backstay vm list -o json | jq -r '.[].name'"
)]
pub struct ListArgs {
    /// Only those in this state: off, starting, running, paused, paused-critical, saving, saved, stopping, failed
    #[arg(long, value_parser = parse_state)]
    state: Option<VmState>,
}

fn parse_state(text: &str) -> Result<VmState, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|_| "there is no such state".into())
}

const COLUMNS: [Column<Vm>; 15] = [
    Column::new("NAME", |vm| vm.name.clone()),
    Column::new("STATE", |vm| vm.state.to_string()),
    Column::new("CPUS", |vm| vm.cpus.to_string()),
    Column::new("MEMORY", |vm| memory(vm.memory_mib)),
    Column::new("UPTIME", uptime),
    Column::new("CHECKPOINTS", |vm| vm.checkpoints.to_string()),
    Column::wide("GENERATION", |vm| generation(vm.hardware).into()),
    Column::wide("TEMPLATE", |vm| output::yes_no(vm.template).into()),
    Column::wide("RESERVE", |vm| share(vm.cpu_reserve, vm.cpu_reserve_cores)),
    Column::wide("LIMIT", |vm| share(vm.cpu_limit, vm.cpu_limit_cores)),
    Column::wide("WEIGHT", |vm| vm.cpu_weight.to_string()),
    Column::wide("DRIVES", |vm| vm.drives.len().to_string()),
    Column::wide("ACCELERATOR", |vm| vm.run.as_ref().map(|run| run.accelerator.clone()).unwrap_or_default()),
    Column::wide("ID", |vm| vm.id.to_string()),
    Column::wide("FOLDER", |vm| vm.folder.display().to_string()),
];

/// Runs it.
pub async fn run(context: &Context, args: &ListArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let list = client.vms(&VmQuery { name: None, state: args.state }).await?;
    output::list(context.format, &list.items, &COLUMNS, |vm| vm.name.clone())?;
    if list.unreadable.is_empty() {
        return Ok(());
    }
    for file in &list.unreadable {
        context.warn(file);
    }
    Err(Fail::degraded(format!(
        "{} configurations cannot be read and are not in the list",
        list.unreadable.len()
    )))
}

/// `75 % = 3 cores`
fn share(percent: u32, cores: f64) -> String {
    format!("{percent} % = {cores} cores")
}

/// `2 GiB`
pub fn memory(mib: u64) -> String {
    ByteSize(mib.saturating_mul(1 << 20)).to_string()
}

/// `1` or `2`
pub fn generation(hardware: VirtualHardware) -> &'static str {
    match hardware {
        VirtualHardware::Gen1 => "1",
        VirtualHardware::Gen2 => "2",
    }
}

/// How long QEMU has been up.
pub fn uptime(vm: &Vm) -> String {
    let Some(run) = &vm.run else { return String::new() };
    let micros = Timestamp::now().as_microsecond().saturating_sub(run.started.as_microsecond());
    output::duration(u64::try_from(micros).unwrap_or(0))
}

//! `vm show`

use super::list::{generation, memory, uptime};
use crate::context::Context;
use crate::output;
use backstay_api::{Nic, Vm};
use backstay_model::{CpuControl, IoLimit};
use clap::Args;

/// Arguments.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  backstay vm show web -o json | jq .state")]
pub struct ShowArgs {
    /// Name or GUID
    vm: String,
}

/// Runs it.
pub async fn run(context: &Context, args: &ShowArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let vm = client.vm(client.resolve_vm(&args.vm).await?).await?;
    output::one(context.format, &vm, &facts(&vm), |vm| vm.name.clone())?;
    for warning in &vm.warnings {
        context.warn(warning);
    }
    Ok(())
}

/// Word of an enumeration as the API spells it.
fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn facts(vm: &Vm) -> Vec<(&'static str, String)> {
    let boot: Vec<String> = vm.boot_order.iter().map(word).collect();
    let drives: Vec<String> = vm
        .drives
        .iter()
        .map(|d| {
            let path = d.path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
            let limit = d.limit.map(|l| format!("  limit {}", IoLimit::from(l))).unwrap_or_default();
            format!("{}  {}  {path}{limit}", d.slot, word(d.kind)).trim_end().to_owned()
        })
        .collect();
    let blocked: Vec<String> = vm.blocked.iter().map(|b| format!("{}: {}", b.verb, b.reason)).collect();
    let mut facts = vec![
        ("Name", vm.name.clone()),
        ("Id", vm.id.to_string()),
        ("State", state(vm)),
        ("Notes", vm.notes.clone()),
        ("Template", if vm.template { "yes".to_owned() } else { String::new() }),
        ("Generation", generation(vm.hardware).to_owned()),
        ("Memory", memory(vm.memory_mib)),
        ("Processors", processors(vm)),
        ("Drives", drives.join("\n")),
        ("SCSI controllers", vm.scsi_controllers.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")),
        ("Network cards", vm.nics.iter().map(nic).collect::<Vec<_>>().join("\n")),
        ("Boot order", boot.join(", ")),
        ("Machine type", vm.machine_type.clone()),
        ("Accelerator", word(vm.accel)),
        ("When QEMU ends", word(vm.recovery)),
        ("When the host starts", host_start(vm)),
        ("When the host stops", word(vm.host_stop)),
        ("Configuration", vm.config_file.display().to_string()),
        ("Checkpoints", vm.checkpoints.to_string()),
        ("Task", vm.task.map(|task| task.to_string()).unwrap_or_default()),
    ];
    if let Some(run) = &vm.run {
        let qemu = run.qemu_pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
        facts.extend([
            ("Up", uptime(vm)),
            ("Runs on", format!("{} ({})", run.accelerator, run.accelerator_reason)),
            ("QEMU", format!("{}{qemu}", run.qemu_version)),
            ("Worker", format!("pid {}", run.worker_pid)),
            ("Processor control", run.processors.clone()),
            ("Restarts", restarts(run.recoveries)),
        ]);
    }
    facts.push(("Not possible now", blocked.join("\n")));
    facts
}

/// How often the recovery action was at work lately.
fn restarts(count: u32) -> String {
    if count == 0 { String::new() } else { format!("{count} by the recovery action") }
}

fn state(vm: &Vm) -> String {
    match &vm.state_reason {
        Some(reason) => format!("{} ({reason})", vm.state),
        None => vm.state.to_string(),
    }
}

fn host_start(vm: &Vm) -> String {
    let mut text = word(vm.host_start);
    if vm.start_order > 0 {
        text += &format!(", order {}", vm.start_order);
    }
    if vm.start_delay_s > 0 {
        text += &format!(", after {} s", vm.start_delay_s);
    }
    text
}

/// Count, and the controls where they are not at their defaults, with what they mean on the host.
pub fn processors(vm: &Vm) -> String {
    let mut text = vm.cpus.to_string();
    let control = CpuControl {
        count: vm.cpus,
        reserve_percent: vm.cpu_reserve,
        limit_percent: vm.cpu_limit,
        weight: vm.cpu_weight,
    };
    if vm.cpu_limit < 100 {
        text += &format!(", limit {} % of {} vCPU = {} cores", vm.cpu_limit, vm.cpus, control.limit());
    }
    if vm.cpu_reserve > 0 {
        text += &format!(", reserve {} % of {} vCPU = {} cores", vm.cpu_reserve, vm.cpus, control.reserved());
    }
    if vm.cpu_weight != 100 {
        text += &format!(", weight {}", vm.cpu_weight);
    }
    text
}

fn nic(nic: &Nic) -> String {
    let place =
        nic.switch.as_ref().map_or_else(|| nic.attachment.clone(), |switch| format!("switch {switch}"));
    format!("{}  {}  {place}", nic.mac, word(nic.model))
}

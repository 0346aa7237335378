//! Taking over what workers tell: states into the inventory, events into the history.

use super::outlived::remove_outlived;
use super::supervise::Following;
use crate::app::App;
use crate::events::Happening;
use crate::failure::chain;
use backstay_api::RunInfo;
use backstay_model::{Merging, VmId, VmState};
use backstay_worker::client::WorkerClient;
use backstay_worker::control::{
    CheckpointOutcome, EventFrame, MergeOutcome, Reply, Request, WorkerEvent, WorkerStatus,
};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;

const QUICK: Duration = Duration::from_secs(10);

/// The last event of its worker that is in the history.
pub(super) async fn cursor(app: &App, vm: VmId) -> u64 {
    match app.store.runtime(vm).await {
        Ok(known) => known.map_or(0, |(last, _)| last).max(app.events.heard_of(vm)),
        Err(error) => {
            tracing::error!(%vm, error = chain(&error), "the history cannot be read");
            0
        }
    }
}

/// Asks a worker how its machine is, and takes that over.
pub(super) async fn status(app: &Arc<App>, vm: VmId, client: &WorkerClient) -> Option<Box<WorkerStatus>> {
    let pid = match client.call(Request::Hello, QUICK).await {
        Ok(Reply::Hello { pid, .. }) => pid,
        _ => return None,
    };
    let status = match client.call(Request::Status, QUICK).await {
        Ok(Reply::Status(status)) => status,
        other => {
            tracing::warn!(%vm, ?other, "the worker does not tell its status");
            return None;
        }
    };
    if status.state.is_active() {
        app.inventory.set_state(vm, status.state, status.reason.clone());
    }
    app.inventory.set_run(vm, Some(run_info(&status, pid)));
    remove_outlived(app, vm, client).await;
    Some(status)
}

fn run_info(status: &WorkerStatus, worker_pid: u32) -> RunInfo {
    RunInfo {
        worker_pid,
        qemu_pid: status.qemu_pid,
        qemu_version: status.qemu_version.clone(),
        accelerator: status.accelerator.clone(),
        accelerator_reason: status.accelerator_reason.clone(),
        recoveries: status.recoveries,
        started: Timestamp::from_millisecond(status.started_unix_ms).unwrap_or_default(),
        console_socket: status.console_socket.clone(),
        vnc_socket: status.vnc_socket.clone(),
        processors: status.processors.clone(),
    }
}

/// What a worker's event is in the history.
struct Told {
    kind: &'static str,
    reason: String,
    before: Option<String>,
    after: Option<String>,
}

impl Told {
    fn new(kind: &'static str, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), before: None, after: None }
    }
}

fn merging_of(app: &App, vm: VmId) -> Option<Merging> {
    app.inventory.get(vm).ok().and_then(|machine| machine.config.merging())
}

/// A merge that goes on writes to a parent; that its child says so is no reason to worry anybody.
fn is_of_merge(merging: Option<Merging>, warning: &str) -> bool {
    merging.is_some_and(|pair| {
        [pair.upper, pair.lower].iter().all(|file| warning.contains(&file.display().to_string()))
    })
}

/// How long no worker served the disks: from the moment this daemon saw the former one go. Not known to a daemon that was
/// started in between.
fn gap_ms(lost: Option<i64>, adopted: i64) -> Option<i64> {
    lost.map(|lost| adopted - lost).filter(|gap| *gap >= 0)
}

/// Takes one event over. The machine's end goes to `following`: it counts when the worker has gone, because only then can
/// it be started again.
pub(super) async fn event(app: &Arc<App>, vm: VmId, frame: EventFrame, following: &mut Following) {
    if frame.seq <= cursor(app, vm).await {
        return;
    }
    let mut refresh = false;
    let told = match frame.event {
        WorkerEvent::State { from, to, reason } => {
            if to.is_active() {
                app.inventory.set_state(vm, to, standing_reason(app, vm, to, &reason));
                refresh = to == VmState::Running || to == VmState::Paused;
            } else {
                let telling = to == VmState::Failed || (to == VmState::Saved && reason != "saved");
                following.ending = (to, telling.then(|| reason.clone()));
            }
            Told {
                before: Some(from.to_string()),
                after: Some(to.to_string()),
                ..Told::new("vm.state", reason)
            }
        }
        WorkerEvent::QemuDied { reason, log, action } => {
            let log =
                if log.is_empty() { String::new() } else { format!("; its last words: {}", log.join(" | ")) };
            let file = app.workers.run_folder(vm).join("qemu.log");
            let place = format!("; all of them in {}", file.display());
            Told { after: Some(action), ..Told::new("vm.qemu-died", format!("{reason}{log}{place}")) }
        }
        WorkerEvent::Adopted { qemu_pid } => {
            let gap = gap_ms(following.lost_at_unix_ms, frame.at_unix_ms)
                .map_or(String::new(), |ms| format!("; its disks were not served for {ms} ms"));
            Told::new("worker.adopted", format!("QEMU (process {qemu_pid}) was taken over{gap}"))
        }
        WorkerEvent::StorageStalled { slot, reason } => {
            app.inventory.set_state(vm, VmState::PausedCritical, Some(format!("{slot}: {reason}")));
            Told::new("disk.stalled", format!("{slot}: {reason}"))
        }
        WorkerEvent::StorageRecovered => Told::new("disk.recovered", "the guest runs again"),
        WorkerEvent::SpaceLow { reason } => Told::new("storage.low-space", reason),
        WorkerEvent::SpaceBack { reason } => Told::new("storage.space-back", reason),
        WorkerEvent::CheckpointFinished { checkpoint, outcome } => Told {
            after: Some(checkpoint.to_string()),
            ..Told::new("checkpoint.memory", outcome_words(&outcome))
        },
        WorkerEvent::MergeFinished { upper, lower, outcome } => Told {
            before: Some(upper.display().to_string()),
            after: Some(lower.display().to_string()),
            ..Told::new("disk.merged", merge_words(&outcome))
        },
        WorkerEvent::Warning { message } if is_of_merge(merging_of(app, vm), &message) => return,
        WorkerEvent::Warning { message } => Told::new("vm.warning", message),
    };
    let at = Timestamp::from_millisecond(frame.at_unix_ms).unwrap_or_else(|_| Timestamp::now());
    let who = app.tasks.who_worked_on(vm, at).unwrap_or_else(|| {
        let guest = told.reason.starts_with("guest");
        if guest { "guest".into() } else { "backstay".into() }
    });
    let what =
        Happening { kind: told.kind, who: &who, reason: told.reason, before: told.before, after: told.after };
    app.events.vm_from_worker(vm, &app.name_of(vm), what, frame.at_unix_ms, frame.seq).await;
    if refresh {
        refresh_run(app, vm).await;
    }
}

/// Why a guest stands still without having been asked to; what a stalled disk told says more than the change of state.
fn standing_reason(app: &App, vm: VmId, to: VmState, reason: &str) -> Option<String> {
    if to == VmState::Starting && reason.contains("starts again") {
        return Some(reason.to_owned());
    }
    if to != VmState::PausedCritical {
        return None;
    }
    let told = app.inventory.get(vm).ok().filter(|m| m.state == to).and_then(|m| m.reason);
    told.or_else(|| Some(reason.to_owned()))
}

/// QEMU's process and accelerator are known once it runs.
async fn refresh_run(app: &Arc<App>, vm: VmId) {
    let client = app.workers.table().get(&vm).and_then(|c| c.borrow().clone());
    let Some(client) = client else { return };
    let Ok(Reply::Status(status)) = client.call(Request::Status, QUICK).await else { return };
    let pid = app.inventory.get(vm).ok().and_then(|m| m.run).map_or(0, |r| r.worker_pid);
    app.inventory.set_run(vm, Some(run_info(&status, pid)));
    remove_outlived(app, vm, &client).await;
}

fn merge_words(outcome: &MergeOutcome) -> String {
    match outcome {
        MergeOutcome::Complete { bytes_moved } => format!("complete: {bytes_moved} bytes were copied"),
        MergeOutcome::Failed { message, .. } => format!("failed: {message}"),
        MergeOutcome::Stopped => "stopped".into(),
        MergeOutcome::Unknown | MergeOutcome::Running { .. } => "going on".into(),
    }
}

fn outcome_words(outcome: &CheckpointOutcome) -> String {
    match outcome {
        CheckpointOutcome::Unknown => "unknown".into(),
        CheckpointOutcome::Writing { .. } => "memory is being written".into(),
        CheckpointOutcome::Complete { pause_us, total_us, memory_bytes, .. } => {
            format!("complete: paused for {pause_us} µs, {memory_bytes} bytes of memory in {total_us} µs")
        }
        CheckpointOutcome::Failed { message, .. } => format!("failed: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pair_that_is_merged_is_not_worried_about() {
        let pair = Merging { upper: "/s/web_2.avhdx".into(), lower: "/s/web_1.avhdx".into() };
        let warning = |parent: &str, child: &str| {
            format!("ide:0:0: {parent} was changed or copied after {child} was made from it")
        };
        assert!(is_of_merge(Some(pair.clone()), &warning("/s/web_1.avhdx", "/s/web_2.avhdx")));
        assert!(!is_of_merge(Some(pair.clone()), &warning("/s/web.vhdx", "/s/web_1.avhdx")));
        assert!(!is_of_merge(
            Some(pair),
            "ide:0:0: /s/web_2.avhdx: writes of a process that died were found"
        ));
        assert!(!is_of_merge(None, &warning("/s/web_1.avhdx", "/s/web_2.avhdx")));
    }
}

//! Checkpoints that were begun and not finished: each is completed if everything it needs is there, else given up. Done by
//! the next daemon, and before the next operation on the machine where a daemon could not do it at once (a full disk).

use super::App;
use super::checkpoint::CheckpointPlan;
use super::checkpoint_finish::{Captured, complete, give_up, kept_by_worker, move_now};
use super::checkpoint_run::settle_live;
use super::former::settle_former;
use super::hotplug::settle_drives;
use super::move_settle::settle_move;
use crate::disks;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking, read_config};
use crate::store::TaskNote;
use crate::tasks::TaskContext;
use crate::workers::LAUNCH_RECORD;
use backstay_api::{CheckpointResult, ProblemCode};
use backstay_hyperv::PendingCheckpoint;
use backstay_model::{MemoryMethod, VmId};
use std::path::Path;
use std::sync::Arc;

/// Settles what a former operation on `id` left half done, so that the next one starts from a whole machine.
///
/// # Errors
/// What hinders it, as it hindered the former operation.
pub(super) async fn settle_before(
    app: &Arc<App>,
    context: &TaskContext,
    id: VmId,
) -> Result<Machine, Failure> {
    settle_former(app, id).await?;
    settle_move(app, id).await?;
    let machine = settle_drives(app, id).await?;
    let Some(pending) = machine.config.pending() else { return Ok(machine) };
    context.progress(1, "settling a checkpoint that was interrupted");
    let noted = app.store.checkpoint_note(id).await.unwrap_or_default();
    let plan = plan_of(&machine, pending, noted);
    let settled = settle_pending(app, context, &machine, plan).await;
    let machine = app.inventory.get(id)?;
    match settled {
        Ok(done) => context
            .warn(format!("the checkpoint '{}', which had been interrupted, was finished first", done.name)),
        Err(failure) if machine.config.pending().is_none() => context.warn(failure.full_message()),
        Err(failure) => {
            let words =
                format!("a checkpoint of '{}' that was interrupted cannot be settled", machine.name());
            return Err(Failure::because(failure.code(), words, failure));
        }
    }
    Ok(machine)
}

/// What was decided about a pending checkpoint, as far as a task's note tells it.
pub(super) fn plan_of(
    machine: &Machine,
    pending: PendingCheckpoint,
    note: Option<TaskNote>,
) -> CheckpointPlan {
    match note {
        Some(TaskNote::Checkpoint { checkpoint, name, notes, created_unix_ms, .. })
            if checkpoint == pending.checkpoint =>
        {
            CheckpointPlan { vm: machine.id, pending, name, notes, created_unix_ms }
        }
        _ => CheckpointPlan {
            vm: machine.id,
            name: format!("Recovered {}", pending.checkpoint),
            pending,
            notes: String::new(),
            created_unix_ms: jiff::Timestamp::now().as_millisecond(),
        },
    }
}

/// Finishes a pending checkpoint, or gives it up; in both cases it is pending no longer.
pub(super) async fn settle_pending(
    app: &Arc<App>,
    context: &TaskContext,
    machine: &Machine,
    plan: CheckpointPlan,
) -> Result<CheckpointResult, Failure> {
    let id = plan.pending.checkpoint;
    new_files_can_be_looked_for(machine, &plan.pending).await?;
    if let Some(done) = written_checkpoint(app, machine, &plan).await? {
        return Ok(done);
    }
    if app.workers.run_folder(machine.id).join(LAUNCH_RECORD).exists() {
        return settle_live(app, context, machine, &plan).await;
    }
    if let Some(captured) = captured_before_end(machine, &plan).await {
        return complete(app, &context.who(), machine, &plan, captured).await;
    }
    let kept = written_layers(app, machine, &plan.pending).await;
    give_up(app, machine, &kept).await?;
    Err(Failure::new(
        ProblemCode::Interrupted,
        format!(
            "checkpoint {id} of '{}' was interrupted and was not taken; the machine is as it was: take it again",
            machine.name()
        ),
    ))
}

/// A new file that is missing was never made, and the old one is right. That can only be said where its folder is there,
/// which was made before: else everything written since would be given up.
async fn new_files_can_be_looked_for(machine: &Machine, pending: &PendingCheckpoint) -> Result<(), Failure> {
    let (name, layers) = (machine.name().clone(), pending.layers.clone());
    blocking(move || {
        for layer in layers {
            let folder = layer.to.parent().unwrap_or(&layer.to);
            let there = |path: &Path| path.try_exists().map_err(|e| Failure::file("looking for", path, e));
            if !there(&layer.to)? && !there(folder)? {
                return Err(Failure::not_found(format!(
                    "the folder {} is not there, and without it nobody can tell whether '{name}' has written to {}: \
                     mount or bring back that folder, or register the machine's folder where it is now",
                    folder.display(),
                    layer.to.display()
                )));
            }
        }
        Ok(())
    })
    .await
}

/// The checkpoint's configuration was written: only the machine's is missing.
async fn written_checkpoint(
    app: &Arc<App>,
    machine: &Machine,
    plan: &CheckpointPlan,
) -> Result<Option<CheckpointResult>, Failure> {
    let (file, id) = (machine.layout.checkpoint_config(plan.pending.checkpoint), plan.pending.checkpoint);
    let meta = blocking(move || Ok(read_config(&file).ok().and_then(|c| c.checkpoint_meta()))).await?;
    let Some(meta) = meta.filter(|m| m.id == id) else { return Ok(None) };
    move_now(app, machine, &plan.pending).await?;
    Ok(Some(CheckpointResult {
        checkpoint: id,
        name: meta.name,
        pause_us: 0,
        total_us: 0,
        memory_bytes: std::fs::metadata(machine.layout.checkpoint_memory(id)).map_or(0, |m| m.len()),
        method: meta.method,
        method_reason: "finished after a restart of the daemon".into(),
    }))
}

/// The worker finished the checkpoint and the machine ended before a daemon could write it down. The descriptor is
/// written last, so its presence says that everything else is there.
pub(super) async fn captured_before_end(machine: &Machine, plan: &CheckpointPlan) -> Option<Captured> {
    let id = plan.pending.checkpoint;
    let (descriptor, memory) =
        (machine.layout.checkpoint_descriptor(id), machine.layout.checkpoint_memory(id));
    let layers = plan.pending.layers.clone();
    let read = blocking(move || {
        if !layers.iter().all(|layer| layer.to.exists()) {
            return Ok(None);
        }
        let method: Option<MemoryMethod> =
            backstay_worker::read_descriptor(&descriptor).ok().map(|d| d.method);
        Ok(method.map(|method| (method, std::fs::metadata(&memory).map_or(0, |m| m.len()))))
    });
    let (method, memory_bytes) = read.await.ok()??;
    Some(Captured {
        pause_us: 0,
        total_us: 0,
        memory_bytes,
        method: Some(method),
        method_reason: "finished while no daemon was running".into(),
    })
}

/// New files that hold data; empty ones can go, because they read as the old file.
pub(super) async fn written_layers(
    app: &App,
    machine: &Machine,
    pending: &PendingCheckpoint,
) -> Vec<backstay_model::DriveSlot> {
    let mut kept = Vec::new();
    for slot in kept_by_worker(app, machine, pending).await {
        let Some(layer) = pending.layers.iter().find(|layer| layer.slot == slot) else { continue };
        let file = layer.to.clone();
        let empty = blocking(move || disks::probe(&file)).await.is_ok_and(|chain| chain.top_blocks == 0);
        if !empty {
            kept.push(slot);
        }
    }
    kept
}

/// Settles the checkpoint of a machine that was just registered.
pub(super) async fn settle_machine(app: &Arc<App>, id: VmId) -> Result<(), Failure> {
    let machine = app.inventory.get(id)?;
    let Some(pending) = machine.config.pending() else { return Ok(()) };
    let plan = plan_of(&machine, pending, None);
    new_files_can_be_looked_for(&machine, &plan.pending).await?;
    if written_checkpoint(app, &machine, &plan).await?.is_some() {
        return Ok(());
    }
    if let Some(captured) = captured_before_end(&machine, &plan).await {
        complete(app, "backstay", &machine, &plan, captured).await?;
        return Ok(());
    }
    let kept = written_layers(app, &machine, &plan.pending).await;
    give_up(app, &machine, &kept).await
}

#[cfg(test)]
mod tests;

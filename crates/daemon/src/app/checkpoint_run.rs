//! Taking a checkpoint, in an order that a crash at any point leaves whole:
//!
//! 1. the configuration names the step of every disk (`pending`): from here on whoever finds it knows both files;
//! 2. new tops, and memory if the machine is on: by the worker, or by the disk engine when it is off;
//! 3. the configuration as it was goes to `Snapshots/<GUID>.xml`: from here on the checkpoint exists;
//! 4. the configuration names the new tops, Now continues from the checkpoint, `pending` is gone.

use super::App;
use super::checkpoint::CheckpointPlan;
use super::checkpoint_finish::{Captured, complete, give_up, kept_by_worker};
use super::restorable::own_state;
use super::settle::{captured_before_end, written_layers};
use crate::disks;
use crate::durable;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use crate::tasks::{TaskContext, cancelled};
use backstay_api::{CheckpointResult, ProblemCode};
use backstay_hyperv::LayerStep;
use backstay_model::{CheckpointId, VmId, VmState};
use backstay_worker::control::{
    CheckpointOutcome, CheckpointRequest, LayerSwitch, Reply, Request, RestoreFrom,
};
use backstay_worker::saved_state;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long the worker may take until the guest runs on. With the fallback methods that is the whole memory.
const TAKE: Duration = Duration::from_mins(30);

/// How long the worker may take to answer a question.
const QUICK: Duration = Duration::from_secs(20);

/// How often progress is asked for.
const STEP: Duration = Duration::from_millis(200);

/// How often a worker that does not answer is asked again; each attempt waits for its respawn.
const ATTEMPTS: u32 = 4;

/// Takes the checkpoint. On failure the machine is as it was.
pub(super) async fn take(
    app: &Arc<App>,
    context: &TaskContext,
    machine: &Machine,
    plan: CheckpointPlan,
) -> Result<CheckpointResult, Failure> {
    let live = machine.state.is_active();
    // From here on a checkpoint of a machine that is on can be cancelled until memory is complete; one of a machine that is
    // off is a matter of milliseconds.
    context.cancellable(live)?;
    context.progress(2, "preparing");
    context.note(&plan.note()).await;
    let mut folders = vec![machine.layout.layers(machine.id)];
    if live || machine.state == VmState::Saved {
        folders.push(machine.layout.checkpoint_folder(plan.pending.checkpoint));
    }
    make_folders(folders).await?;
    let mut config = (*machine.config).clone();
    config.set_pending(Some(&plan.pending)).map_err(|error| Failure::invalid(error.to_string()))?;
    let machine = app.inventory.save(machine, config).await?;
    if live {
        take_live(app, context, &machine, &plan).await
    } else {
        take_offline(app, context, &machine, &plan).await
    }
}

async fn make_folders(folders: Vec<PathBuf>) -> Result<(), Failure> {
    blocking(move || {
        folders.iter().try_for_each(|folder| {
            durable::create_folder(folder).map_err(|e| Failure::file("making the folder", folder, e))
        })
    })
    .await
}

async fn take_offline(
    app: &Arc<App>,
    context: &TaskContext,
    machine: &Machine,
    plan: &CheckpointPlan,
) -> Result<CheckpointResult, Failure> {
    context.progress(10, "making differencing disks");
    let started = std::time::Instant::now();
    let layers = plan.pending.layers.clone();
    let made = blocking(move || make_children(&layers)).await;
    let captured = match made {
        Ok(()) if machine.state == VmState::Saved => saved_memory(machine, plan).await,
        Ok(()) => Ok(Captured::off(0)),
        Err(failure) => Err(failure),
    };
    match captured {
        Ok(captured) => {
            let total_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            complete(app, &context.who(), machine, plan, Captured { total_us, ..captured }).await
        }
        Err(failure) => {
            give_up(app, machine, &[]).await?;
            Err(failure)
        }
    }
}

/// A saved machine's checkpoint has the saved memory; Now keeps it too, over new differencing disks that are empty.
async fn saved_memory(machine: &Machine, plan: &CheckpointPlan) -> Result<Captured, Failure> {
    let from = own_state(machine);
    let checkpoint = plan.pending.checkpoint;
    let to = RestoreFrom {
        memory_file: machine.layout.checkpoint_memory(checkpoint),
        descriptor_file: machine.layout.checkpoint_descriptor(checkpoint),
        once: false,
    };
    let layers = plan.pending.layers.clone();
    blocking(move || {
        let descriptor = saved_state::copy_to_checkpoint(&from, &to, checkpoint)
            .map_err(|reason| Failure::new(ProblemCode::Internal, reason))?;
        let tops = |pick: fn(&LayerStep) -> PathBuf| -> Vec<_> {
            layers.iter().map(|layer| (layer.slot, pick(layer))).collect()
        };
        saved_state::mark(&tops(|layer| layer.from.clone()), false);
        saved_state::mark(&tops(|layer| layer.to.clone()), true);
        Ok(Captured {
            pause_us: 0,
            total_us: 0,
            memory_bytes: descriptor.file_len,
            method: Some(descriptor.method),
            method_reason: "the machine was saved: its saved memory is the checkpoint's too".into(),
        })
    })
    .await
}

/// Makes the new tops; on failure none is left.
pub(super) fn make_children(layers: &[LayerStep]) -> Result<(), Failure> {
    for (index, layer) in layers.iter().enumerate() {
        let made = disks::create_child(&layer.from, &layer.to);
        if let Err(failure) = made {
            for former in layers.iter().take(index) {
                let _ = durable::remove(&former.to);
            }
            return Err(failure);
        }
    }
    Ok(())
}

async fn take_live(
    app: &Arc<App>,
    context: &TaskContext,
    machine: &Machine,
    plan: &CheckpointPlan,
) -> Result<CheckpointResult, Failure> {
    let checkpoint = plan.pending.checkpoint;
    let switch =
        |layer: &LayerStep| LayerSwitch { slot: layer.slot, from: layer.from.clone(), to: layer.to.clone() };
    let request = CheckpointRequest {
        checkpoint,
        disks: plan.pending.layers.iter().map(switch).collect(),
        memory_file: machine.layout.checkpoint_memory(checkpoint),
        descriptor_file: machine.layout.checkpoint_descriptor(checkpoint),
    };
    context.progress(5, "capturing disks and memory");
    match begin(app, context, machine.id, request).await {
        Ok(_) => {}
        // It said no: nothing was begun.
        Err(refused) if refused.code() == ProblemCode::Precondition => {
            give_up(app, machine, &[]).await?;
            context.cancellable(false)?;
            return Err(refused);
        }
        // It may have acted before it was lost or failed: its own word on that follows.
        Err(lost) => {
            tracing::warn!(vm = %machine.id, error = lost.full_message(), "the checkpoint call failed")
        }
    }
    settle_live(app, context, machine, plan).await
}

/// Has the worker take the checkpoint, until the guest runs again. With the fallback methods that is the end of it, so
/// progress and the wish to cancel are passed on meanwhile.
async fn begin(
    app: &Arc<App>,
    context: &TaskContext,
    vm: VmId,
    request: CheckpointRequest,
) -> Result<Reply, Failure> {
    let checkpoint = request.checkpoint;
    let call = app.workers.call(vm, Request::Checkpoint(request), TAKE);
    let aside = async {
        loop {
            tokio::select! {
                () = tokio::time::sleep(STEP) => {}
                // Asked again until the call ends: the first time may have come too early.
                () = async { context.cancelled().await; tokio::time::sleep(STEP / 10).await } => {
                    let _ = app.workers.call(vm, Request::CancelCheckpoint { checkpoint }, QUICK).await;
                    continue;
                }
            }
            let status = app.workers.call(vm, Request::CheckpointStatus { checkpoint }, QUICK).await;
            if let Ok(Reply::Checkpoint(CheckpointOutcome::Writing { written, total, .. })) = status {
                tell_progress(context, written, total);
            }
        }
    };
    tokio::select! {
        biased;
        answer = call => answer,
        () = aside => Err(cancelled()),
    }
}

fn tell_progress(context: &TaskContext, written: u64, total: u64) {
    let part = written.min(total).saturating_mul(85).checked_div(total).unwrap_or(0);
    context.progress(10 + u8::try_from(part).unwrap_or(85), "writing memory");
}

/// Waits for the end of a checkpoint that a worker takes, and writes down what came of it.
pub(super) async fn settle_live(
    app: &Arc<App>,
    context: &TaskContext,
    machine: &Machine,
    plan: &CheckpointPlan,
) -> Result<CheckpointResult, Failure> {
    let outcome = follow(app, context, machine.id, plan.pending.checkpoint).await?;
    match outcome {
        CheckpointOutcome::Complete { pause_us, total_us, memory_bytes, method, method_reason } => {
            let captured = Captured { pause_us, total_us, memory_bytes, method: Some(method), method_reason };
            if context.cancellable(false).is_err() {
                context.warn(format!("'{}' was complete when it was cancelled: it stays", plan.name));
            }
            complete(app, &context.who(), machine, plan, captured).await
        }
        CheckpointOutcome::Failed { message, kept_layers } => {
            give_up(app, machine, &kept_layers).await?;
            context.cancellable(false)?;
            Err(Failure::new(
                ProblemCode::Unavailable,
                format!("the checkpoint of '{}' failed and the machine goes on: {message}", machine.name()),
            ))
        }
        CheckpointOutcome::Unknown | CheckpointOutcome::Writing { .. } => {
            let ended = app.inventory.get(machine.id).is_ok_and(|now| !now.state.is_active());
            // The machine may have ended right after it.
            if ended && let Some(captured) = captured_before_end(machine, plan).await {
                return complete(app, &context.who(), machine, plan, captured).await;
            }
            // A worker that has ended uses no new file: one without data is not needed.
            let kept = if ended {
                written_layers(app, machine, &plan.pending).await
            } else {
                kept_by_worker(app, machine, &plan.pending).await
            };
            give_up(app, machine, &kept).await?;
            context.cancellable(false)?;
            Err(Failure::new(
                ProblemCode::Unavailable,
                format!(
                    "the checkpoint of '{}' was not taken: its worker knows nothing of it",
                    machine.name()
                ),
            ))
        }
    }
}

/// Asks the worker how far it is until it has ended. A worker that dies meanwhile is started again and asked on.
async fn follow(
    app: &Arc<App>,
    context: &TaskContext,
    vm: VmId,
    checkpoint: CheckpointId,
) -> Result<CheckpointOutcome, Failure> {
    let mut failures = 0;
    let mut asked_to_cancel = false;
    loop {
        match app.workers.call(vm, Request::CheckpointStatus { checkpoint }, QUICK).await {
            Ok(Reply::Checkpoint(CheckpointOutcome::Writing { written, total, .. })) => {
                failures = 0;
                tell_progress(context, written, total);
            }
            Ok(Reply::Checkpoint(outcome)) => return Ok(outcome),
            Ok(other) => {
                return Err(Failure::new(
                    ProblemCode::Internal,
                    format!("the worker answered a question for a checkpoint with {other:?}"),
                ));
            }
            Err(failure) => {
                failures += 1;
                let off = app.inventory.get(vm).is_ok_and(|m| !m.state.is_active());
                if off || failures >= ATTEMPTS {
                    tracing::warn!(%vm, error = failure.full_message(), "the worker does not tell of its checkpoint");
                    return Ok(CheckpointOutcome::Unknown);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(STEP) => {}
            () = context.cancelled(), if !asked_to_cancel => {
                asked_to_cancel = true;
                // If it has ended by now the next answer tells.
                let cancel = Request::CancelCheckpoint { checkpoint };
                let _ = app.workers.call(vm, cancel, QUICK).await;
            }
        }
    }
}

//! Writing a machine's memory to disk and powering it off; throwing a saved memory away.

use super::restorable::own_state;
use super::settle::settle_before;
use super::{Accepted, App, Call, check_verb, vm_task};
use crate::durable;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use crate::tasks::{TaskContext, cancelled};
use backstay_api::{Plan, ProblemCode};
use backstay_model::{CheckpointId, DriveSlot, VmId, VmState, VmVerb};
use backstay_worker::control::{CheckpointOutcome, Reply, Request, SaveRequest};
use backstay_worker::saved_state;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How long writing a large memory may take.
const SAVE: Duration = Duration::from_mins(60);

/// How long the worker may take to answer a question.
const QUICK: Duration = Duration::from_secs(20);

/// How often progress is asked for.
const STEP: Duration = Duration::from_millis(200);

/// How long QEMU may take to end when memory is on disk.
const END: Duration = Duration::from_mins(2);

/// Writes memory to disk and powers off. Cancelling it, and every failure, leaves the machine as it was.
///
/// # Errors
/// `not-found`, `precondition`, `busy`; the task: `no-space`, `unavailable`, `cancelled`.
pub async fn save(app: &Arc<App>, vm: &str, call: &Call) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    let mut plan = Plan::new("vm.save");
    if check_verb(&machine, VmVerb::Save)? {
        let from = own_state(&machine);
        plan.step("stop", machine.name(), "the processors");
        plan.step("write", from.memory_file.display(), "memory");
        plan.step("write", from.descriptor_file.display(), "what it takes to load it");
        plan.step("end", machine.name(), "QEMU");
    }
    let mut spec = vm_task("vm.save", &machine);
    // Nothing may hold up the power button.
    (spec.cancellable, spec.yields) = (true, true);
    let id = machine.id;
    app.accept(call, plan, spec, move |app, context| async move {
        let machine = settle_before(&app, &context, id).await?;
        if check_verb(&machine, VmVerb::Save)? {
            save_machine(&app, &context, &machine).await?;
        } else {
            context.warn(format!("'{}' is {} already", machine.name(), machine.state));
        }
        Ok(None)
    })
    .await
}

/// Saves a machine that is on and waits until it is off.
pub(super) async fn save_machine(
    app: &Arc<App>,
    context: &TaskContext,
    machine: &Machine,
) -> Result<(), Failure> {
    let folder = machine.layout.vm_folder(machine.id);
    blocking(move || {
        durable::create_folder(&folder).map_err(|e| Failure::file("making the folder", &folder, e))
    })
    .await?;
    let from = own_state(machine);
    let request = SaveRequest {
        id: CheckpointId(Uuid::new_v4()),
        memory_file: from.memory_file,
        descriptor_file: from.descriptor_file,
    };
    context.progress(2, "writing memory");
    let id = request.id;
    let asked = ask(app, context, machine.id, request).await;
    let written = match asked {
        Ok(Reply::Checkpoint(CheckpointOutcome::Complete { .. })) => Ok(()),
        Ok(other) => {
            Err(Failure::new(ProblemCode::Internal, format!("the worker answered a save with {other:?}")))
        }
        // It may have been lost after it had begun: the next worker finishes what is whole.
        Err(failure) if failure.code() == ProblemCode::Unavailable => {
            follow(app, machine.id, id, failure).await
        }
        Err(failure) => Err(failure),
    };
    if let Err(failure) = written {
        let left = machine.layout.vm_folder(machine.id);
        let _ = blocking(move || {
            durable::remove_empty_folder(&left);
            Ok(())
        })
        .await;
        context.cancellable(false)?;
        let code = match failure.code() {
            ProblemCode::Internal if failure.full_message().contains("No space left") => ProblemCode::NoSpace,
            ProblemCode::Internal => ProblemCode::Unavailable,
            code => code,
        };
        let words = format!("'{}' was not saved and goes on", machine.name());
        return Err(Failure::because(code, words, failure));
    }
    if context.cancellable(false).is_err() {
        context.warn(format!(
            "the memory of '{}' was complete when it was cancelled: it is saved",
            machine.name()
        ));
    }
    context.progress(95, "ending QEMU");
    match app.wait_state(machine.id, END, |state| !state.is_active()).await? {
        (VmState::Saved, _) => Ok(()),
        (state, reason) => Err(Failure::new(
            ProblemCode::Unavailable,
            format!("'{}' went {state} while it was saved: {}", machine.name(), reason.unwrap_or_default()),
        )),
    }
}

/// Has the worker save; progress and the wish to cancel are passed on meanwhile.
async fn ask(
    app: &Arc<App>,
    context: &TaskContext,
    vm: VmId,
    request: SaveRequest,
) -> Result<Reply, Failure> {
    let checkpoint = request.id;
    let call = app.workers.call(vm, Request::Save(request), SAVE);
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
                let part = written.min(total).saturating_mul(85).checked_div(total).unwrap_or(0);
                context.progress(5 + u8::try_from(part).unwrap_or(85), "writing memory");
            }
        }
    };
    tokio::select! {
        biased;
        answer = call => answer,
        () = aside => Err(cancelled()),
    }
}

/// Its worker was lost: asks the next one, unless the machine has ended.
async fn follow(app: &Arc<App>, vm: VmId, save: CheckpointId, lost: Failure) -> Result<(), Failure> {
    loop {
        let ended = async { app.wait_state(vm, SAVE, |state| !state.is_active()).await };
        let question = app.workers.call(vm, Request::CheckpointStatus { checkpoint: save }, QUICK);
        let answer = tokio::select! {
            ended = ended => return match ended? {
                (VmState::Saved, _) => Ok(()),
                (state, reason) => {
                    let words = format!("it went {state}: {}", reason.unwrap_or_default());
                    Err(Failure::because(ProblemCode::Unavailable, words, lost))
                }
            },
            answer = question => answer,
        };
        match answer {
            Ok(Reply::Checkpoint(CheckpointOutcome::Complete { .. })) => return Ok(()),
            Ok(Reply::Checkpoint(CheckpointOutcome::Failed { message, .. })) => {
                return Err(Failure::new(ProblemCode::Unavailable, message));
            }
            Ok(Reply::Checkpoint(CheckpointOutcome::Unknown)) | Err(_)
                if app.inventory.get(vm).is_ok_and(|m| m.state.is_active()) =>
            {
                return Err(lost);
            }
            _ => tokio::time::sleep(STEP).await,
        }
    }
}

/// Throws a saved memory away: the machine is off, its disks as after a power cut.
///
/// # Errors
/// `not-found`, `precondition` unless it is saved, `busy`.
pub async fn discard_saved_state(app: &Arc<App>, vm: &str, call: &Call) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    check_verb(&machine, VmVerb::DiscardSavedState)?;
    let from = own_state(&machine);
    let mut plan = Plan::new("vm.discard-saved-state");
    plan.step("delete", from.descriptor_file.display(), "what it takes to load the memory");
    plan.step(
        "delete",
        from.memory_file.display(),
        "memory; what the guest had not written to its disks is lost",
    );
    let (id, spec) = (machine.id, vm_task("vm.discard-saved-state", &machine));
    app.accept(call, plan, spec, move |app, context| async move {
        let machine = app.inventory.get(id)?;
        check_verb(&machine, VmVerb::DiscardSavedState)?;
        drop_state(&app, &context, &machine, machine.disks(), "requested").await?;
        Ok(None)
    })
    .await
}

/// Removes a saved machine's memory and the marks of its disks `tops`; the machine is off then.
pub(super) async fn drop_state(
    app: &Arc<App>,
    context: &TaskContext,
    machine: &Machine,
    tops: Vec<(DriveSlot, PathBuf)>,
    reason: &str,
) -> Result<(), Failure> {
    let from = own_state(machine);
    blocking(move || {
        saved_state::remove(&from.descriptor_file, &from.memory_file)
            .map_err(|e| Failure::file("deleting the saved memory", &from.descriptor_file, e))?;
        saved_state::mark(&tops, false);
        Ok(())
    })
    .await?;
    app.inventory.set_state(machine.id, VmState::Off, None);
    let what = Happening {
        kind: "vm.saved-state-discarded",
        who: &context.who(),
        reason: reason.into(),
        before: Some(VmState::Saved.to_string()),
        after: Some(VmState::Off.to_string()),
    };
    app.events.vm(machine.id, machine.name().as_str(), what).await;
    Ok(())
}

/// What a machine without processes is: saved if its folder says so. What an interrupted save left there is removed.
pub(crate) async fn at_rest(
    app: &App,
    vm: VmId,
    told: (VmState, Option<String>),
) -> (VmState, Option<String>) {
    let Ok(machine) = app.inventory.get(vm) else { return told };
    let from = own_state(&machine);
    let settled = blocking(move || {
        saved_state::settle(&from.descriptor_file, &from.memory_file)
            .map_err(|e| Failure::file("looking for a saved memory at", &from.descriptor_file, e))
    });
    match (settled.await, told) {
        (Ok(true), (state, reason)) => (VmState::Saved, reason.filter(|_| state == VmState::Failed)),
        (Ok(false), (VmState::Saved, _)) => (VmState::Off, None),
        (Ok(false), told) => told,
        (Err(failure), (state, _)) => {
            tracing::error!(%vm, error = failure.full_message(), "whether the machine is saved is not known");
            (state, Some(failure.full_message()))
        }
    }
}

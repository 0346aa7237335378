//! Verbs on a machine that is on: shutdown, turn-off, pause, resume, reset.

use super::{Accepted, App, Call, Done, check_verb, vm_task};
use crate::failure::Failure;
use crate::tasks::{TaskContext, cancelled};
use backstay_api::{Plan, ProblemCode};
use backstay_model::{VmId, VmState, VmVerb};
use backstay_worker::control::Request;
use std::sync::Arc;
use std::time::Duration;

/// How long a guest may take to shut down.
const SHUTDOWN: Duration = Duration::from_mins(5);

/// How long QEMU may take to end.
const TURN_OFF: Duration = Duration::from_secs(60);

/// How long the worker may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Asks the guest to shut down and waits until it has. Cancelling stops the waiting; the guest was asked all the same.
///
/// # Errors
/// `not-found`, `precondition`, `busy`; the task fails with `timeout` when the guest does not follow.
pub async fn shutdown(app: &Arc<App>, vm: &str, call: &Call) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    check_verb(&machine, VmVerb::Shutdown)?;
    let mut plan = Plan::new("vm.shutdown");
    plan.step("ask", machine.name(), "the guest is asked to shut down (ACPI power button)");
    let mut spec = vm_task("vm.shutdown", &machine);
    (spec.cancellable, spec.yields) = (true, true);
    let id = machine.id;
    app.accept(call, plan, spec, move |app, context| run_shutdown(app, context, id)).await
}

async fn run_shutdown(app: Arc<App>, context: TaskContext, id: VmId) -> Done {
    let machine = app.inventory.get(id)?;
    if !check_verb(&machine, VmVerb::Shutdown)? {
        context.warn(format!("'{}' is {} already", machine.name(), machine.state));
        return Ok(None);
    }
    ask_to_shut_down(&app, &context, id, SHUTDOWN).await.map(|()| None)
}

/// Asks the guest, unless that was done before, and waits for its end.
///
/// # Errors
/// `timeout` when it does not follow, `cancelled`.
pub(super) async fn ask_to_shut_down(
    app: &Arc<App>,
    context: &TaskContext,
    id: VmId,
    patience: Duration,
) -> Result<(), Failure> {
    let machine = app.inventory.get(id)?;
    if machine.state != VmState::Stopping {
        app.workers.call(id, Request::Shutdown, ANSWER).await?;
    }
    context.progress(10, "waiting for the guest to shut down");
    let off = app.wait_state(id, patience, |state| !state.is_active());
    tokio::select! {
        reached = off => match reached {
            Ok(_) => Ok(()),
            Err(failure) if failure.code() == ProblemCode::Timeout => Err(Failure::because(
                ProblemCode::Timeout,
                format!("the guest of '{}' does not shut down: use turn-off to pull the plug", machine.name()),
                failure,
            )),
            Err(failure) => Err(failure),
        },
        () = context.cancelled() => Err(cancelled()),
    }
}

/// Pulls the plug. A shutdown that is still waiting for the guest, and a checkpoint that is being taken, give way.
///
/// # Errors
/// `not-found`, `precondition`, `busy`.
pub async fn turn_off(app: &Arc<App>, vm: &str, call: &Call) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    check_verb(&machine, VmVerb::TurnOff)?;
    let mut plan = Plan::new("vm.turn-off");
    plan.step("end", machine.name(), "QEMU ends at once; what the guest has not written is lost");
    let id = machine.id;
    let mut spec = vm_task("vm.turn-off", &machine);
    let left = if call.dry_run { Vec::new() } else { app.tasks.preempt(id).await };
    if !left.is_empty() {
        // It waits for a QEMU that hangs, and ends with it. Until then it keeps everything else away from the machine.
        spec.holds.clear();
    }
    app.accept(call, plan, spec, move |app, context| async move {
        let machine = app.inventory.get(id)?;
        if check_verb(&machine, VmVerb::TurnOff)? {
            context.progress(10, "ending QEMU");
            end_machine(&app, id).await?;
        } else {
            context.warn(format!("'{}' is {} already", machine.name(), machine.state));
        }
        for task in left {
            let _ = app.tasks.wait(task, u64::MAX, TURN_OFF).await;
        }
        Ok(None)
    })
    .await
}

/// Ends QEMU and its worker and waits until both have gone.
pub(super) async fn end_machine(app: &Arc<App>, id: VmId) -> Result<(), Failure> {
    match app.workers.call(id, Request::TurnOff, ANSWER).await {
        Ok(_) => {}
        // The worker may have gone before its answer came.
        Err(failure) if failure.code() == ProblemCode::Unavailable => {}
        Err(failure) => return Err(failure),
    }
    app.wait_state(id, TURN_OFF, |state| !state.is_active()).await.map(drop)
}

/// Stops the processors.
///
/// # Errors
/// `not-found`, `precondition`, `busy`.
pub async fn pause(app: &Arc<App>, vm: &str, call: &Call) -> Result<Accepted, Failure> {
    simple(app, vm, call, &PAUSE).await
}

/// Continues after a pause.
///
/// # Errors
/// `not-found`, `precondition`, `busy`.
pub async fn resume(app: &Arc<App>, vm: &str, call: &Call) -> Result<Accepted, Failure> {
    simple(app, vm, call, &RESUME).await
}

/// Presses the reset button.
///
/// # Errors
/// `not-found`, `precondition`, `busy`.
pub async fn reset(app: &Arc<App>, vm: &str, call: &Call) -> Result<Accepted, Failure> {
    simple(app, vm, call, &RESET).await
}

/// A verb that is one request to the worker.
struct Simple {
    verb: VmVerb,
    operation: &'static str,
    request: Request,
    reaches: Option<VmState>,
    detail: &'static str,
}

const PAUSE: Simple = Simple {
    verb: VmVerb::Pause,
    operation: "vm.pause",
    request: Request::Pause,
    reaches: Some(VmState::Paused),
    detail: "the processors stop; memory stays",
};
const RESUME: Simple = Simple {
    verb: VmVerb::Resume,
    operation: "vm.resume",
    request: Request::Resume,
    reaches: Some(VmState::Running),
    detail: "the processors go on",
};
const RESET: Simple = Simple {
    verb: VmVerb::Reset,
    operation: "vm.reset",
    request: Request::Reset,
    reaches: None,
    detail: "the guest starts anew at once; what it has not written is lost",
};

async fn simple(app: &Arc<App>, vm: &str, call: &Call, what: &'static Simple) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    check_verb(&machine, what.verb)?;
    let mut plan = Plan::new(what.operation);
    plan.step(what.verb.as_str(), machine.name(), what.detail);
    let id = machine.id;
    let spec = vm_task(what.operation, &machine);
    app.accept(call, plan, spec, move |app, context| async move {
        let machine = app.inventory.get(id)?;
        if !check_verb(&machine, what.verb)? {
            context.warn(format!("'{}' is {} already", machine.name(), machine.state));
            return Ok(None);
        }
        app.workers.call(id, what.request.clone(), ANSWER).await?;
        if let Some(wanted) = what.reaches {
            let (state, reason) =
                app.wait_state(id, ANSWER, |state| state == wanted || !state.is_active()).await?;
            if state != wanted {
                return Err(Failure::precondition(format!(
                    "'{}' went {state} meanwhile{}",
                    machine.name(),
                    reason.map_or(String::new(), |r| format!(": {r}"))
                )));
            }
        }
        Ok(None)
    })
    .await
}

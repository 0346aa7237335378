//! Making the file of a disk smaller while its machine is on. It gives way to every other operation on the machine and goes on after
//! it, with what is left: nothing has to be written down, because the disk reads the same at every instant.

use super::look::{checked, writer_of};
use super::settle::settle_before;
use super::{Accepted, App, Call, Done, vm_task};
use crate::disks::code_of;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::Machine;
use crate::tasks::{BackgroundHold, Hold, TaskContext, cancelled};
use backstay_api::{DiskCompact, DiskCompacted, Plan, ProblemCode};
use backstay_model::{ByteSize, DriveSlot, VmId};
use backstay_worker::control::{CompactOutcome, FailureKind, Reply, Request};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

const OPERATION: &str = "disk.compact";
/// How long a worker may take to begin, or to tell how far it is.
const ANSWER: Duration = Duration::from_secs(60);
/// How often it is asked.
const STEP: Duration = Duration::from_millis(200);
/// How often, while it ends.
const ENDING: Duration = Duration::from_millis(20);
/// Before it is tried again.
const AGAIN: Duration = Duration::from_millis(300);
/// How often other work on the disk may be in the way.
const ATTEMPTS: u32 = 20;

/// Compacts the disk of a machine that is on.
///
/// # Errors
/// `invalid`, `precondition` for a file that no running machine writes to; the task: `precondition` for a fixed or raw disk,
/// `no-space`, `unavailable`, `cancelled`.
pub async fn compact_disk(app: &Arc<App>, body: DiskCompact, call: &Call) -> Result<Accepted, Failure> {
    let (machine, slot) = decide(app, &body).await?;
    let mut plan = Plan::new(OPERATION);
    let speed =
        body.rate.map_or_else(String::new, |rate| format!(", at most {} in a second", ByteSize(rate)));
    let words = "blocks of zeros lose their places, the last blocks move to the front, and the file is cut";
    plan.step("compact", body.path.display(), format!("{slot}: {words}{speed}"));
    let mut spec = vm_task(OPERATION, &machine);
    (spec.cancellable, spec.holds) = (true, Vec::new());
    let id = machine.id;
    app.accept(call, plan, spec, move |app, context| run(app, context, id, body)).await
}

async fn decide(app: &App, body: &DiskCompact) -> Result<(Machine, DriveSlot), Failure> {
    checked(&body.path)?;
    if body.rate == Some(0) {
        return Err(Failure::invalid("a rate of 0 bytes per second: leave it out to have no limit"));
    }
    let Some((vm, slot)) = writer_of(app, &body.path).await else {
        return Err(Failure::precondition(format!(
            "no running machine writes to {}: `backstay disk compact` does this with a disk that nobody uses; of a disk with \
             checkpoints it is the top file, which `backstay vm disks` names",
            body.path.display()
        )));
    };
    Ok((app.inventory.get(vm)?, slot))
}

/// How a part of the work ended.
enum Pass {
    Done(DiskCompacted),
    /// Somebody wanted the machine, or its worker was lost.
    Later,
    /// Other work on the disk is in the way.
    Hindered(Failure),
}

async fn run(app: Arc<App>, context: TaskContext, id: VmId, body: DiskCompact) -> Done {
    let mut attempts = 0;
    let done = loop {
        context.cancellable(true)?;
        context.progress(1, "waiting for other work on the machine");
        let holds = [Hold::Vm(id)];
        let hold = tokio::select! {
            hold = app.tasks.background(context.id(), OPERATION, &holds) => hold,
            () = context.cancelled() => return Err(cancelled()),
        };
        let pass = pass(&app, &context, &hold, id, &body).await;
        drop(hold);
        match pass? {
            Pass::Done(done) => break done,
            Pass::Later => {}
            Pass::Hindered(failure) if attempts == ATTEMPTS => return Err(failure),
            Pass::Hindered(_) => attempts += 1,
        }
        tokio::select! {
            () = sleep(AGAIN) => {}
            () = context.cancelled() => return Err(cancelled()),
        }
    };
    let what = Happening {
        kind: "disk.compacted",
        who: &context.who(),
        reason: format!("{}: {} given back", done.path.display(), ByteSize(done.freed)),
        before: Some(ByteSize(done.old_len).to_string()),
        after: Some(ByteSize(done.new_len).to_string()),
    };
    app.events.vm(id, &app.name_of(id), what).await;
    serde_json::to_value(done)
        .map(Some)
        .map_err(|error| Failure::because(ProblemCode::Internal, "the result cannot be written", error))
}

async fn pass(
    app: &Arc<App>,
    context: &TaskContext,
    hold: &BackgroundHold,
    id: VmId,
    body: &DiskCompact,
) -> Result<Pass, Failure> {
    let machine = settle_before(app, context, id).await?;
    if !machine.state.is_active() {
        return Err(Failure::precondition(format!(
            "'{}' is {} now: `backstay disk compact {}` goes on with what is left",
            machine.name(),
            machine.state,
            body.path.display()
        )));
    }
    if !app.workers.is_connected(id) {
        return Ok(Pass::Later);
    }
    let (machine, slot) = decide(app, body).await?;
    if machine.id != id {
        return Err(Failure::precondition(format!("{} is not this machine's any more", body.path.display())));
    }
    let call = |request| app.workers.call(id, request, ANSWER);
    // What a former daemon began with another disk.
    if !matches!(
        call(Request::CompactStatus { slot }).await,
        Ok(Reply::Compact(CompactOutcome::Running { .. }))
    ) {
        call(Request::CancelCompact).await?;
    }
    match call(Request::CompactDisk { slot, rate: body.rate }).await {
        Ok(_) => {}
        Err(refused) if refused.code() == ProblemCode::Precondition => return Ok(Pass::Hindered(refused)),
        Err(lost) if lost.code() == ProblemCode::Unavailable => return Ok(Pass::Later),
        Err(failure) => return Err(failure),
    }
    follow(app, context, hold, id, (slot, body)).await
}

/// Until it has ended, or has to.
async fn follow(
    app: &Arc<App>,
    context: &TaskContext,
    hold: &BackgroundHold,
    id: VmId,
    (slot, body): (DriveSlot, &DiskCompact),
) -> Result<Pass, Failure> {
    let call = |request| app.workers.call(id, request, ANSWER);
    let mut ending = false;
    loop {
        tokio::select! {
            () = sleep(if ending { ENDING } else { STEP }) => {}
            () = hold.wanted(), if !ending => {
                ending = true;
                context.progress(1, "waiting: somebody else works on the machine");
                let _ = call(Request::CancelCompact).await;
            }
            () = context.cancelled(), if !ending => {
                ending = true;
                let _ = call(Request::CancelCompact).await;
            }
        }
        let outcome = match call(Request::CompactStatus { slot }).await {
            Ok(Reply::Compact(outcome)) => outcome,
            // The next worker tells.
            _ => return Ok(Pass::Later),
        };
        match outcome {
            CompactOutcome::Running { blocks_total, blocks_done, bytes_moved } if !ending => {
                tell(context, blocks_done, blocks_total, bytes_moved);
            }
            CompactOutcome::Running { .. } => {}
            CompactOutcome::Complete {
                dropped_blocks,
                moved_blocks,
                bytes_moved,
                old_len,
                new_len,
                freed,
            } => {
                let path = body.path.clone();
                return Ok(Pass::Done(DiskCompacted {
                    path,
                    dropped_blocks,
                    moved_blocks,
                    bytes_moved,
                    old_len,
                    new_len,
                    freed,
                }));
            }
            CompactOutcome::Unknown | CompactOutcome::Stopped => return Ok(Pass::Later),
            CompactOutcome::Failed { message, kind } => {
                let failure = Failure::new(
                    code_of(kind),
                    format!("{} was not compacted: {message}", body.path.display()),
                );
                return match kind {
                    FailureKind::InUse => Ok(Pass::Hindered(failure)),
                    _ => Err(failure),
                };
            }
        }
    }
}

fn tell(context: &TaskContext, done: u64, total: u64, bytes: u64) {
    let percent = done.min(total).saturating_mul(98).checked_div(total).unwrap_or(0);
    let words = format!("compacting: {done} of {total} blocks, {} MiB moved", bytes >> 20);
    context.progress(1 + u8::try_from(percent).unwrap_or(98), &words);
}

/// A compaction that a former daemon began and nobody waits for any more ends: it would keep checkpoints waiting.
pub(super) async fn stop_former(app: &App, vm: VmId) {
    if let Err(failure) = app.workers.call(vm, Request::CancelCompact, ANSWER).await {
        tracing::debug!(%vm, error = failure.full_message(), "there is no compaction to end");
    }
}

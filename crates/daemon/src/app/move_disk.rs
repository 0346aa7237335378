//! Moving a disk's file to another folder or file system, while the machine is on or off.
//!
//! 1. The configuration gets a record: the disk, its file, and the file that will be.
//! 2. The disk engine (in the worker, or here) copies the file and keeps both alike; the new file gets its name at the instant from
//!    which on it counts, and then the old one is removed. So the record means: the one that exists, the new one if both do.
//! 3. The configuration names the new file, and the record goes with the same write.
//!
//! What is left of a move that was interrupted is for `move_settle`.

use super::move_settle::{Fate, conclude, settle_move};
use super::settle::settle_before;
use super::strangers::strangers_on;
use super::usage::{parent_of, same_file, usage, used_by};
use super::{Accepted, App, Call, Done, vm_task};
use crate::disks;
use crate::durable;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use crate::tasks::{TaskContext, cancelled};
use backstay_api::{DiskMove, Plan, ProblemCode};
use backstay_disk::RelocateControl;
use backstay_hyperv::LayerStep;
use backstay_model::{ByteSize, DriveMedia, VmId, VmState};
use backstay_worker::control::{MoveOutcome, Reply, Request};
use std::sync::Arc;
use std::time::Duration;

/// How long a worker may take to begin, or to tell how far it is.
pub(super) const ANSWER: Duration = Duration::from_secs(60);
/// How often it is asked.
pub(super) const STEP: Duration = Duration::from_millis(200);
/// How long the next worker may take to open the disks.
const NEXT_WORKER: Duration = Duration::from_mins(2);
/// How often a worker may die before that is the machine's business.
const MOST_WORKERS: u32 = 5;

/// Moves a disk's file into a folder.
///
/// # Errors
/// `not-found`, `invalid`, `exists`, `in-use`, `precondition`, `busy`; the task: `no-space`, `cancelled`, `unavailable`.
pub async fn move_disk(app: &Arc<App>, vm: &str, body: DiskMove, call: &Call) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    let step = decide(app, &machine, &body).await?;
    let mut plan = Plan::new("vm.move-disk");
    plan.step("copy", step.to.display(), format!("the file of {}, byte for byte", step.slot));
    plan.step("write", machine.config_file.display(), format!("{} is in {}", step.slot, step.to.display()));
    plan.step("delete", step.from.display(), "when the new file is durable and named");
    let mut spec = vm_task("vm.move-disk", &machine);
    (spec.cancellable, spec.yields) = (true, true);
    let id = machine.id;
    app.accept(call, plan, spec, move |app, context| run(app, context, id, body)).await
}

async fn decide(app: &App, machine: &Machine, body: &DiskMove) -> Result<LayerStep, Failure> {
    let (slot, name) = (body.slot, machine.name());
    let from = match machine.spec.drive(slot).map(|drive| &drive.media) {
        Some(DriveMedia::Disk(file)) => file.clone(),
        Some(_) => return Err(Failure::invalid(format!("the drive at {slot} of '{name}' is no hard disk"))),
        None => return Err(Failure::not_found(format!("'{name}' has no drive at {slot}"))),
    };
    let refuse = |words: String| Err(Failure::precondition(words));
    if machine.is_template() {
        return refuse(format!("'{name}' is a template, whose disks stay as they are"));
    }
    if !matches!(machine.state, VmState::Running | VmState::Paused | VmState::Off | VmState::Failed) {
        return refuse(format!(
            "'{name}' is {}: its disks are moved while it is running, paused or off",
            machine.state
        ));
    }
    if machine
        .checkpoints
        .all()
        .iter()
        .any(|checkpoint| checkpoint.disks.iter().any(|disk| disk.slot == slot))
    {
        return refuse(format!(
            "the disk at {slot} of '{name}' has checkpoints, whose files belong together with it: delete them first, which \
             merges them, and move the disk then"
        ));
    }
    let usage = usage(app, None).await?;
    if let Some(holder) = usage.of(&from).iter().find(|holder| holder.vm != machine.id) {
        let children = usage.dependents(machine.id, [&from]);
        return Err(children.map_or_else(|| used_by(&from, holder), |names| parent_of(&from, &names)));
    }
    let usage = Arc::new(usage);
    if let Some(stranger) = strangers_on(app, machine, Arc::clone(&usage), vec![from.clone()]).await?.first()
    {
        return refuse(format!(
            "{} is made on {} and would not find it any more: attach it to a machine, delete it, or make it a disk of its own \
             with `backstay disk convert` and delete it then",
            stranger.child.display(),
            from.display()
        ));
    }
    let folder = super::drives::absolute(&body.folder)?;
    let Some(file) = from.file_name() else {
        return Err(Failure::invalid(format!("{} names no file", from.display())));
    };
    let to = folder.join(file);
    if to.exists() {
        let same = same_file(&to) == same_file(&from);
        let words = if same {
            format!("{} is there already", from.display())
        } else {
            format!("{} exists already: choose another folder", to.display())
        };
        return Err(Failure::new(ProblemCode::Exists, words));
    }
    Ok(LayerStep { slot, from, to })
}

async fn run(app: Arc<App>, context: TaskContext, id: VmId, body: DiskMove) -> Done {
    let machine = settle_before(&app, &context, id).await?;
    let step = decide(&app, &machine, &body).await?;
    let folder = body.folder.clone();
    blocking(move || {
        durable::create_folder(&folder).map_err(|e| Failure::file("making the folder", &folder, e))
    })
    .await?;
    let mut workers = 1;
    let settled = loop {
        let machine = note(&app, &app.inventory.get(id)?, &step).await?;
        context.progress(1, "copying");
        let ended = match machine.state.is_active() {
            true => by_worker(&app, &context, id, &step).await,
            false => here(&app, &context, &step).await.map_or_else(Ended::Stays, |()| Ended::Moved),
        };
        let failure = match ended {
            Ended::Moved => break conclude(&app, &app.inventory.get(id)?, &step, Fate::Moved).await?,
            Ended::Stays(failure) if !machine.state.is_active() => {
                // The engine said so, in this process.
                conclude(&app, &app.inventory.get(id)?, &step, Fate::Stays).await?;
                return Err(failure);
            }
            Ended::Stays(failure) | Ended::Lost(failure) => failure,
        };
        let settled = settle_soon(&app, id).await?;
        if settled.spec.drive(step.slot).is_some_and(|d| d.media == DriveMedia::Disk(step.to.clone())) {
            break settled;
        }
        // With the next worker all goes on as if nothing had been.
        context.cancellable(true)?;
        if failure.code() != ProblemCode::Interrupted || workers == MOST_WORKERS {
            return Err(failure);
        }
        workers += 1;
        decide(&app, &settled, &body).await?;
    };
    let what = Happening {
        kind: "disk.moved",
        who: &context.who(),
        reason: format!("{}: requested", step.slot),
        before: Some(step.from.display().to_string()),
        after: Some(step.to.display().to_string()),
    };
    app.events.vm(id, settled.name().as_str(), what).await;
    Ok(Some(serde_json::json!({ "slot": step.slot, "from": step.from, "path": step.to })))
}

/// What became of it as soon as there is a worker that can tell.
async fn settle_soon(app: &Arc<App>, id: VmId) -> Result<Machine, Failure> {
    let limit = tokio::time::Instant::now() + NEXT_WORKER;
    loop {
        match settle_move(app, id).await {
            Err(failure) if app.inventory.get(id)?.state.is_active() => {
                if tokio::time::Instant::now() > limit {
                    return Err(failure);
                }
                tokio::time::sleep(STEP).await;
            }
            settled => return settled,
        }
    }
}

async fn note(app: &App, machine: &Machine, step: &LayerStep) -> Result<Machine, Failure> {
    let mut config = (*machine.config).clone();
    config.set_moving(Some(step)).map_err(|error| Failure::invalid(error.to_string()))?;
    app.inventory.save(machine, config).await
}

/// How far it came.
enum Ended {
    Moved,
    Stays(Failure),
    /// Nobody told.
    Lost(Failure),
}

async fn by_worker(app: &App, context: &TaskContext, vm: VmId, step: &LayerStep) -> Ended {
    let request = Request::MoveDisk { slot: step.slot, to: step.to.clone() };
    if let Err(failure) = app.workers.call(vm, request, ANSWER).await {
        return without_worker(step, failure);
    }
    let mut cancelling = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(STEP) => {}
            () = context.cancelled(), if !cancelling => {
                cancelling = true;
                let _ = app.workers.call(vm, Request::CancelMove { to: step.to.clone() }, ANSWER).await;
            }
        }
        match app.workers.call(vm, Request::MoveStatus { to: step.to.clone() }, ANSWER).await {
            Ok(Reply::Move(MoveOutcome::Running { done, total })) => tell(context, done, total),
            Ok(Reply::Move(MoveOutcome::Complete)) => return Ended::Moved,
            Ok(Reply::Move(MoveOutcome::Failed { .. })) if cancelling => return Ended::Stays(cancelled()),
            Ok(Reply::Move(MoveOutcome::Failed { message })) => {
                return Ended::Stays(not_moved(step, &message));
            }
            Ok(Reply::Move(MoveOutcome::Unknown)) => return lost(step),
            Ok(other) => {
                let words = format!("the worker answered the wish to move a disk with {other:?}");
                return Ended::Lost(Failure::new(ProblemCode::Internal, words));
            }
            Err(failure) => return without_worker(step, failure),
        }
    }
}

/// A worker that died is followed by another one; what it refuses, it refuses.
fn without_worker(step: &LayerStep, failure: Failure) -> Ended {
    match failure.code() {
        ProblemCode::Unavailable => lost(step),
        _ => Ended::Lost(failure),
    }
}

fn lost(step: &LayerStep) -> Ended {
    let words = format!(
        "the disk at {} stays in {}: its worker was lost while it was moved; move it again",
        step.slot,
        step.from.display()
    );
    Ended::Lost(Failure::new(ProblemCode::Interrupted, words))
}

fn not_moved(step: &LayerStep, why: &str) -> Failure {
    let full = ["No space left", "has no room"].iter().any(|words| why.contains(words));
    let code = if full { ProblemCode::NoSpace } else { ProblemCode::Unavailable };
    Failure::new(code, format!("the disk at {} stays in {}: {why}", step.slot, step.from.display()))
}

fn tell(context: &TaskContext, done: u64, total: u64) {
    let percent = done.saturating_mul(95).checked_div(total).unwrap_or(0);
    let words = format!("copying: {} of {}", ByteSize(done), ByteSize(total));
    context.progress(u8::try_from(percent).unwrap_or(95).max(1), &words);
}

/// Nobody has the disk open: the same engine does it in this process.
async fn here(app: &App, context: &TaskContext, step: &LayerStep) -> Result<(), Failure> {
    let control = Arc::new(RelocateControl::default());
    let (from, to, how) = (step.from.clone(), step.to.clone(), Arc::clone(&control));
    let guard = app.config.guard;
    let mut work = tokio::spawn(blocking(move || {
        how.keep_free(guard.reserve_beside(&to));
        disks::relocate(&from, &to, &how)
    }));
    loop {
        tokio::select! {
            ended = &mut work => {
                let fault = |error| Failure::because(ProblemCode::Internal, "the disk was not moved", error);
                return ended.map_err(fault)?;
            }
            () = context.cancelled() => {
                control.cancel();
                let _ = (&mut work).await;
                return Err(cancelled());
            }
            () = tokio::time::sleep(STEP) => {
                let (done, total) = control.progress();
                tell(context, done, total);
            }
        }
    }
}

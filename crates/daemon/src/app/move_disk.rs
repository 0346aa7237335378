//! Moving a disk's file to another folder or file system, while the machine is on or off.
//!
//! 1. The configuration gets a record: the disk, its file, and the file that will be.
//! 2. The disk engine (in the worker, or here) copies the file and keeps both alike; the new file gets its name at the instant from
//!    which on it counts. So the record means, at any instant: the new file if it exists, else the old one.
//! 3. The configuration names the new file, and the record goes with the same write. Then the old file is removed.

use super::settle::settle_before;
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
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a worker may take to begin, or to tell how far it is.
const ANSWER: Duration = Duration::from_secs(60);
/// How often it is asked.
const STEP: Duration = Duration::from_millis(200);

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
    let machine = note(&app, &machine, Some(&step)).await?;
    context.progress(1, "copying");
    let was_active = machine.state.is_active();
    let copied = match was_active {
        true => by_worker(&app, &context, id, &step).await,
        false => here(&context, &step).await,
    };
    let machine = app.inventory.get(id)?;
    let settled = match (&copied, machine.state.is_active()) {
        (Ok(()), _) => conclude(&app, &machine, &step, Fate::Moved).await?,
        // The engine said so, in this process.
        (Err(_), false) if !was_active => conclude(&app, &machine, &step, Fate::Stays).await?,
        (Err(_), _) => settle_move(&app, id).await?,
    };
    let moved = settled.spec.drive(step.slot).is_some_and(|d| d.media == DriveMedia::Disk(step.to.clone()));
    match copied {
        Err(failure) if !moved => return Err(failure),
        Err(failure) => context.warn(failure.full_message()),
        Ok(()) => {}
    }
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

async fn note(app: &App, machine: &Machine, step: Option<&LayerStep>) -> Result<Machine, Failure> {
    let mut config = (*machine.config).clone();
    config.set_moving(step).map_err(|error| Failure::invalid(error.to_string()))?;
    app.inventory.save(machine, config).await
}

async fn by_worker(app: &App, context: &TaskContext, vm: VmId, step: &LayerStep) -> Result<(), Failure> {
    let request = Request::MoveDisk { slot: step.slot, to: step.to.clone() };
    app.workers.call(vm, request, ANSWER).await?;
    let mut cancelling = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(STEP) => {}
            () = context.cancelled(), if !cancelling => {
                cancelling = true;
                let _ = app.workers.call(vm, Request::CancelMove { to: step.to.clone() }, ANSWER).await;
            }
        }
        match app.workers.call(vm, Request::MoveStatus { to: step.to.clone() }, ANSWER).await? {
            Reply::Move(MoveOutcome::Running { done, total }) => tell(context, done, total),
            Reply::Move(MoveOutcome::Complete) => return Ok(()),
            Reply::Move(MoveOutcome::Failed { .. }) if cancelling => return Err(cancelled()),
            Reply::Move(MoveOutcome::Failed { message }) => return Err(not_moved(step, &message)),
            Reply::Move(MoveOutcome::Unknown) => {
                return Err(not_moved(step, "its worker was lost meanwhile"));
            }
            other => {
                let words = format!("the worker answered the wish to move a disk with {other:?}");
                return Err(Failure::new(ProblemCode::Internal, words));
            }
        }
    }
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
async fn here(context: &TaskContext, step: &LayerStep) -> Result<(), Failure> {
    let control = Arc::new(RelocateControl::default());
    let (from, to, how) = (step.from.clone(), step.to.clone(), Arc::clone(&control));
    let mut work = tokio::spawn(blocking(move || disks::relocate(&from, &to, &how)));
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

/// What became of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Moved,
    /// The new file is there, and nobody saw it get its name: the old one is kept.
    Found,
    Stays,
}

/// Takes over what became of a move that was interrupted: the new file counts if it has its name. Its worker is asked, if it has one.
///
/// # Errors
/// The configuration cannot be written; it cannot be told what became of it.
pub(super) async fn settle_move(app: &Arc<App>, id: VmId) -> Result<Machine, Failure> {
    let machine = app.inventory.get(id)?;
    let Some(step) = machine.config.moving() else { return Ok(machine) };
    let fate = if machine.state.is_active() {
        end_in_worker(app, id, &step.to).await?;
        if is_top(app, id, &step).await? { Fate::Moved } else { Fate::Stays }
    } else {
        let to = step.to.clone();
        let there =
            blocking(move || to.try_exists().map_err(|e| Failure::file("looking for", &to, e))).await?;
        if there { Fate::Found } else { Fate::Stays }
    };
    conclude(app, &machine, &step, fate).await
}

async fn is_top(app: &App, vm: VmId, step: &LayerStep) -> Result<bool, Failure> {
    match app.workers.call(vm, Request::Disks, ANSWER).await? {
        Reply::Disks { disks, .. } => {
            let disk = disks.iter().find(|disk| disk.slot == step.slot);
            let top = disk.and_then(|disk| disk.chain.first());
            Ok(top.is_some_and(|top| same_file(top) == same_file(&step.to)))
        }
        other => {
            let words = format!("the worker answered a question about its disks with {other:?}");
            Err(Failure::new(ProblemCode::Internal, words))
        }
    }
}

async fn conclude(
    app: &Arc<App>,
    machine: &Machine,
    step: &LayerStep,
    fate: Fate,
) -> Result<Machine, Failure> {
    let mut config = (*machine.config).clone();
    let wrong = |error: backstay_hyperv::ApplyError| Failure::invalid(error.to_string());
    config.set_moving(None).map_err(wrong)?;
    if fate != Fate::Stays && machine.spec.drive(step.slot).is_some() {
        config.set_drive_path(step.slot, &step.to).map_err(wrong)?;
    }
    let saved = app.inventory.save(machine, config).await?;
    let (from, to) = (step.from.clone(), step.to.clone());
    let tidied = blocking(move || {
        match (fate, to.parent()) {
            (Fate::Moved, _) => durable::remove(&from).map_err(|e| Failure::file("deleting", &from, e))?,
            (Fate::Found, _) => {
                tracing::warn!(old = %from.display(), new = %to.display(), "a disk was moved; its old file is kept");
            }
            (Fate::Stays, Some(folder)) => disks::remove_unfinished(folder),
            (Fate::Stays, None) => {}
        }
        Ok(())
    });
    if let Err(failure) = tidied.await {
        tracing::warn!(vm = %machine.id, error = failure.full_message(), "the old file of a disk that was moved stays");
    }
    Ok(saved)
}

/// Waits until no worker copies any more: one whose task has ended is not worth going on with.
async fn end_in_worker(app: &App, vm: VmId, to: &Path) -> Result<(), Failure> {
    let to: PathBuf = to.into();
    loop {
        match app.workers.call(vm, Request::MoveStatus { to: to.clone() }, ANSWER).await? {
            Reply::Move(MoveOutcome::Running { .. }) => {
                let _ = app.workers.call(vm, Request::CancelMove { to: to.clone() }, ANSWER).await;
                tokio::time::sleep(STEP).await;
            }
            _ => return Ok(()),
        }
    }
}

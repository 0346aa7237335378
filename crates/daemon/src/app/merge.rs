//! Merging the files of deleted checkpoints: at most one task per machine, in the background. It gives way to every other
//! operation on the machine and goes on after it: with the worker while the machine is on, else by itself.

use super::deleting::finish_deleting;
use super::merge_files::{conclude, forget, is_own_layer, name_in, note};
use super::merge_run::{Ran, Running, finished_meanwhile, merge, stop_former};
use super::settle::settle_before;
use super::usage::same_file;
use super::world::world;
use super::{Accepted, App, Call, Done, vm_task};
use crate::durable;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use crate::tasks::{BackgroundHold, Caller, Hold, TaskContext, cancelled};
use backstay_api::{CheckpointMerge, KeptFile, MergeResult, Plan, ProblemCode, Task};
use backstay_model::{FileStep, Generation, Layers, Merging, StateOf, TaskId, VmId, VmState};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

const OPERATION: &str = "checkpoint.merge";

/// How long to wait before a worker that was lost is asked again.
const AGAIN: Duration = Duration::from_millis(300);

/// Between two looks at a machine that is saved.
const WHILE_SAVED: Duration = Duration::from_secs(5);

/// The pause before a file that is in use is tried again doubles so often: up to 38 seconds.
const MOST_DOUBLINGS: u32 = 7;

/// The pause after anything else: up to 5 minutes.
const MOST_DOUBLINGS_OF_TROUBLE: u32 = 10;

/// How fast, in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rate {
    /// As it was; without limit at first.
    Same,
    /// From now on; none is without limit.
    Of(Option<u64>),
}

/// A machine's merges under way.
#[derive(Debug)]
struct Merger {
    task: TaskId,
    rate: watch::Sender<Option<u64>>,
    /// Something was released since the last look.
    again: bool,
    /// Ends a pause.
    nudge: Arc<Notify>,
}

/// The merges of all machines.
#[derive(Debug, Default)]
pub struct Mergers {
    table: Mutex<BTreeMap<VmId, Merger>>,
    /// Held while a task is started, so that a machine has one.
    starting: tokio::sync::Mutex<()>,
    /// Machines whose merge is against a rule, with their configuration then: it is not tried again before something is changed.
    refused: Mutex<BTreeMap<VmId, Generation>>,
}

impl Mergers {
    fn table(&self) -> MutexGuard<'_, BTreeMap<VmId, Merger>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something was released since the last look; if not, the machine has no task any more.
    fn goes_on(&self, vm: VmId) -> bool {
        let mut table = self.table();
        match table.get_mut(&vm) {
            Some(merger) if merger.again => {
                merger.again = false;
                true
            }
            _ => {
                table.remove(&vm);
                false
            }
        }
    }

    fn refused(&self) -> MutexGuard<'_, BTreeMap<VmId, Generation>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a merge was refused, and all is as it was then.
    fn is_refused(&self, machine: &Machine) -> bool {
        self.refused().get(&machine.id) == Some(&machine.generation)
    }

    /// The task that merges files of a machine.
    #[must_use]
    pub fn task(&self, vm: VmId) -> Option<TaskId> {
        self.table().get(&vm).map(|merger| merger.task)
    }
}

/// Whether files of a machine are to be merged or deleted.
#[must_use]
pub(super) fn is_pending(machine: &Machine) -> bool {
    let config = &machine.config;
    !config.released().is_empty()
        || !config.deleting().is_empty()
        || config.merging().is_some()
        || !config.applying().is_empty()
}

/// Merges the files of deleted checkpoints, or changes the speed at which that goes on.
///
/// # Errors
/// `not-found`; `precondition` when there is nothing to merge.
pub async fn merge_checkpoints(
    app: &Arc<App>,
    vm: &str,
    body: CheckpointMerge,
    call: &Call,
) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    if call.dry_run {
        let files = world(app, &machine).await?.plan();
        let mut plan = Plan::new(OPERATION);
        for step in &files.steps {
            match step {
                FileStep::Delete(file) => plan.step("delete", file.display(), "nothing needs it any more"),
                FileStep::Merge { upper, lower, .. } => {
                    plan.step("merge", upper.display(), format!("into {}", lower.display()));
                }
            }
        }
        for kept in files.kept {
            plan.step("keep", kept.file.display(), kept.reason);
        }
        return Ok(Accepted::Plan(plan));
    }
    match kick(app, machine.id, &call.caller, Rate::Of(body.rate)).await? {
        Some(task) => Ok(Accepted::Task(Box::new(task))),
        None => Err(Failure::precondition(format!(
            "'{}' has no files of deleted checkpoints: there is nothing to merge",
            machine.name()
        ))),
    }
}

/// Sees to it that released files of a machine are looked at; the task that does so, if there is something to do.
pub(super) async fn kick(
    app: &Arc<App>,
    vm: VmId,
    caller: &Caller,
    rate: Rate,
) -> Result<Option<Task>, Failure> {
    let machine = app.inventory.get(vm)?;
    if !is_pending(&machine) {
        return Ok(None);
    }
    let _starting = app.mergers.starting.lock().await;
    let going_on = app.mergers.table().get_mut(&vm).map(|merger| {
        merger.again = true;
        merger.nudge.notify_one();
        if let Rate::Of(rate) = rate {
            merger.rate.send_replace(rate);
        }
        merger.task
    });
    if let Some(task) = going_on {
        return app.tasks.get(task).await.map(Some);
    }
    let (rate, wanted) = watch::channel(match rate {
        Rate::Of(rate) => rate,
        Rate::Same => machine.config.merge_rate(),
    });
    let nudge = Arc::new(Notify::new());
    let listens = Listens { rate: wanted, nudge: Arc::clone(&nudge) };
    let mut spec = vm_task(OPERATION, &machine);
    (spec.cancellable, spec.holds) = (true, Vec::new());
    let (begin, begun) = tokio::sync::oneshot::channel::<()>();
    let app_too = Arc::clone(app);
    let task = app
        .tasks
        .start(spec, caller, move |context| async move {
            // It is in the table before it can leave it.
            let _ = begun.await;
            run(&app_too, &context, vm, &listens).await
        })
        .await?;
    app.mergers.table().insert(vm, Merger { task: task.id, rate, again: false, nudge });
    let _ = begin.send(());
    Ok(Some(task))
}

/// As [`kick`], by itself and soon; an error is only worth a line in the log.
pub(super) fn kick_quietly(app: &Arc<App>, vm: VmId) {
    let app = Arc::clone(app);
    tokio::spawn(async move {
        if let Err(failure) = kick(&app, vm, &Caller::backstay(), Rate::Same).await {
            tracing::warn!(%vm, error = failure.full_message(), "merging did not begin");
        }
    });
}

/// As [`kick_quietly`] for every machine whose files may be free now: another machine ended, was deleted, became known …
pub(crate) fn kick_all(app: &Arc<App>) {
    let app = Arc::clone(app);
    tokio::spawn(async move {
        for machine in app.inventory.all().into_iter().filter(is_pending) {
            let goes_on = app.mergers.task(machine.id).is_some();
            if !goes_on && app.mergers.is_refused(&machine) {
                continue;
            }
            if goes_on || has_something_to_do(&app, &machine).await {
                kick_quietly(&app, machine.id);
            }
        }
    });
}

/// Whether a task would do more than to say what it waits for.
async fn has_something_to_do(app: &App, machine: &Machine) -> bool {
    let config = &machine.config;
    let begun = !config.deleting().is_empty() || config.merging().is_some() || !config.applying().is_empty();
    // What cannot be told now may be in a moment.
    begun || world(app, machine).await.map_or(true, |layers| layers.next_step().is_some())
}

/// What a merge hears while it goes on.
struct Listens {
    rate: watch::Receiver<Option<u64>>,
    /// The reason to wait may be gone.
    nudge: Arc<Notify>,
}

async fn run(app: &Arc<App>, context: &TaskContext, vm: VmId, listens: &Listens) -> Done {
    let mut result = MergeResult::default();
    loop {
        let ended = passes(app, context, vm, listens, &mut result).await;
        if ended.is_ok() && app.mergers.goes_on(vm) {
            continue;
        }
        if let Err(failure) = ended {
            app.mergers.table().remove(&vm);
            if Hindrance::of(failure.code()).is_none()
                && let Ok(machine) = app.inventory.get(vm)
            {
                app.mergers.refused().insert(vm, machine.generation);
            }
            if failure.code() != ProblemCode::Cancelled {
                tell(app, vm, failure.full_message()).await;
            }
            return Err(failure);
        }
        break;
    }
    for kept in &result.kept {
        context.warn(format!("{} stays for now: {}", kept.file.display(), kept.reason));
    }
    serde_json::to_value(result)
        .map(Some)
        .map_err(|error| Failure::because(ProblemCode::Internal, "the result cannot be written", error))
}

/// Space that does not come back is worth a line in the history.
async fn tell(app: &App, vm: VmId, reason: String) {
    let what = Happening { kind: "disk.merge-failed", who: "backstay", reason, before: None, after: None };
    app.events.vm(vm, &app.name_of(vm), what).await;
}

/// What hinders a merge for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hindrance {
    /// Somebody has a file open for a moment, or a worker is just being followed by the next one.
    InUse,
    /// No space, storage that is away, files of which nobody knows what needs them.
    Trouble,
}

impl Hindrance {
    /// None: trying again would not help.
    fn of(code: ProblemCode) -> Option<Self> {
        match code {
            ProblemCode::InUse => Some(Self::InUse),
            ProblemCode::Unavailable | ProblemCode::NoSpace | ProblemCode::Timeout => Some(Self::Trouble),
            _ => None,
        }
    }

    /// How long to wait after so many attempts.
    fn pause(self, attempts: u32) -> Duration {
        let most = if self == Self::InUse { MOST_DOUBLINGS } else { MOST_DOUBLINGS_OF_TROUBLE };
        AGAIN.saturating_mul(1 << attempts.min(most))
    }

    /// Whether it is time to say so: once, and not of what is over in a moment.
    fn is_news(self, attempts: u32) -> bool {
        attempts == if self == Self::InUse { MOST_DOUBLINGS } else { 0 }
    }
}

/// What came of one look at the files.
enum Pass {
    /// Nothing is left that could be done.
    Done(Vec<KeptFile>),
    /// There may be more.
    Again,
    /// Somebody else wants the machine, or its worker was lost.
    Later,
    /// Nothing until the machine is not saved any more.
    Saved,
    /// It is not known which files are needed: somebody has to repair something.
    Unknown(Failure),
}

async fn passes(
    app: &Arc<App>,
    context: &TaskContext,
    vm: VmId,
    listens: &Listens,
    result: &mut MergeResult,
) -> Result<(), Failure> {
    let holds = [Hold::Vm(vm), Hold::Files(vm)];
    let mut attempts = 0u32;
    let mut told = String::new();
    loop {
        context.cancellable(true)?;
        let hold = tokio::select! {
            hold = app.tasks.background(context.id(), OPERATION, &holds) => hold,
            () = context.cancelled() => return Err(cancelled()),
        };
        // Deleted meanwhile.
        let Ok(machine) = app.inventory.get(vm) else { return Ok(()) };
        let pass = pass(app, context, machine, &hold, &listens.rate, result).await;
        drop(hold);
        let (hindrance, failure) = match pass {
            Ok(Pass::Done(kept)) => {
                result.kept = kept;
                return Ok(());
            }
            Ok(Pass::Again) => {
                attempts = 0;
                continue;
            }
            Ok(Pass::Later) => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            Ok(Pass::Saved) => {
                pause(context, listens, WHILE_SAVED).await;
                continue;
            }
            Ok(Pass::Unknown(failure)) => {
                (Hindrance::of(failure.code()).unwrap_or(Hindrance::Trouble), failure)
            }
            Err(failure) => match Hindrance::of(failure.code()) {
                Some(hindrance) => (hindrance, failure),
                None => return Err(failure),
            },
        };
        let words = failure.full_message();
        context.progress(1, &format!("{}{words}", Task::WAITING));
        // Between two attempts there may have been something else to do.
        if hindrance.is_news(attempts) && told != words {
            tell(app, vm, format!("it is tried again by itself: {words}")).await;
            told = words;
        }
        pause(context, listens, hindrance.pause(attempts)).await;
        attempts += 1;
    }
}

/// Waits, but no longer than until something has changed.
async fn pause(context: &TaskContext, listens: &Listens, most: Duration) {
    tokio::select! {
        () = tokio::time::sleep(most) => {}
        () = listens.nudge.notified() => {}
        () = context.cancelled() => {}
    }
}

/// The limit outlives the daemon.
pub(super) async fn keep_rate(app: &Arc<App>, vm: VmId, rate: Option<u64>) -> Result<Machine, Failure> {
    let machine = app.inventory.get(vm)?;
    if machine.config.merge_rate() == rate {
        return Ok(machine);
    }
    let mut config = (*machine.config).clone();
    config.set_merge_rate(rate);
    app.inventory.save(&machine, config).await
}

async fn pass(
    app: &Arc<App>,
    context: &TaskContext,
    machine: Machine,
    hold: &BackgroundHold,
    rate: &watch::Receiver<Option<u64>>,
    result: &mut MergeResult,
) -> Result<Pass, Failure> {
    let machine = settle_before(app, context, machine.id).await?;
    if !machine.config.applying().is_empty() {
        // Memory is being loaded.
        return Ok(Pass::Later);
    }
    if is_pending(&machine) {
        let wanted = *rate.borrow();
        keep_rate(app, machine.id, wanted).await?;
    }
    let machine = match finish_deleting(app, &app.inventory.get(machine.id)?).await {
        Ok(machine) => machine,
        Err(failure) => return Ok(Pass::Unknown(failure)),
    };
    stop_former(app, &machine).await?;
    let running = Running { app, context, hold, rate };
    if let Some((merging, slot, bytes_moved)) = finished_meanwhile(&running, &machine).await? {
        let machine = app.inventory.get(machine.id)?;
        conclude(app, &machine, &merging, &[StateOf::Now(slot)]).await?;
        result.merged += 1;
        result.bytes_moved += bytes_moved;
        return Ok(Pass::Again);
    }
    let machine = tidy(app, machine).await?;
    let Some(attaching) = keep_from_attaching(app, context, hold).await? else { return Ok(Pass::Later) };
    let layers = match world(app, &machine).await {
        Ok(layers) => layers,
        Err(failure) => return Ok(Pass::Unknown(failure)),
    };
    if end_stale_record(app, &machine, &layers).await? {
        return Ok(Pass::Again);
    }
    match layers.next_step() {
        None => {
            let kept = layers.plan().kept;
            if !is_pending(&machine) {
                keep_rate(app, machine.id, None).await?;
            }
            Ok(Pass::Done(kept.into_iter().map(|k| KeptFile { file: k.file, reason: k.reason }).collect()))
        }
        Some(FileStep::Delete(file)) => {
            delete(app, &machine, &file).await?;
            result.deleted += 1;
            Ok(Pass::Again)
        }
        // Its memory fits the disks' files as they are only.
        Some(FileStep::Merge { .. }) if has_saved_memory(&machine) => {
            context.progress(1, "waiting: the machine is saved");
            Ok(Pass::Saved)
        }
        Some(FileStep::Merge { upper, lower, children, states }) => {
            context.progress(1, &format!("merging {}", words(&upper)));
            let merging = Merging { upper, lower };
            let machine = note(app, &machine, &merging).await?;
            // From here on whoever wants a disk sees what is written down.
            drop(attaching);
            match merge(&running, &machine, &merging, &children).await? {
                Ran::Whole { bytes_moved } => {
                    // The limit may have been changed meanwhile.
                    let machine = app.inventory.get(machine.id)?;
                    conclude(app, &machine, &merging, &states).await?;
                    result.merged += 1;
                    result.bytes_moved += bytes_moved;
                    Ok(Pass::Again)
                }
                Ran::Stopped => Ok(Pass::Later),
            }
        }
    }
}

/// Until it is known what is merged or deleted nobody gets a disk that is made on one of these files: such a disk may lie where
/// nobody looks for it before. None: somebody else wants the machine.
async fn keep_from_attaching<'a>(
    app: &'a App,
    context: &TaskContext,
    hold: &BackgroundHold,
) -> Result<Option<tokio::sync::MutexGuard<'a, ()>>, Failure> {
    tokio::select! {
        attaching = app.attaching.lock() => Ok(Some(attaching)),
        () = hold.wanted() => Ok(None),
        () = context.cancelled() => Err(cancelled()),
    }
}

/// Also while the memory is loaded and the guest has not run since: until then it may be turned off to be saved again.
fn has_saved_memory(machine: &Machine) -> bool {
    machine.state == VmState::Saved || machine.layout.vm_descriptor(machine.id).exists()
}

fn words(file: &Path) -> String {
    file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Forgets released files that are not there any more.
async fn tidy(app: &Arc<App>, machine: Machine) -> Result<Machine, Failure> {
    let released = machine.config.released();
    let gone = blocking(move || {
        let away = |file: &std::path::PathBuf| {
            file.parent().is_some_and(Path::is_dir) && matches!(file.try_exists(), Ok(false))
        };
        Ok(released.into_iter().filter(away).collect::<Vec<_>>())
    })
    .await?;
    if gone.is_empty() { Ok(machine) } else { forget(app, &machine, &gone).await }
}

/// Whether there was a record of a merge whose upper file is gone: it must not hinder the others.
async fn end_stale_record(app: &Arc<App>, machine: &Machine, layers: &Layers) -> Result<bool, Failure> {
    let Some(merging) = machine.config.merging() else { return Ok(false) };
    // One that is there and cannot be opened now is no reason to forget what was begun.
    if layers.contains(&same_file(&merging.upper)) || !matches!(merging.upper.try_exists(), Ok(false)) {
        return Ok(false);
    }
    let mut config = (*machine.config).clone();
    config.set_merging(None).map_err(|error| Failure::invalid(error.to_string()))?;
    app.inventory.save(machine, config).await.map(|_| true)
}

/// Deletes a released file that nothing needs. A disk that a user gave the machine is only not ours any more.
async fn delete(app: &Arc<App>, machine: &Machine, file: &Path) -> Result<(), Failure> {
    if is_own_layer(machine, file) {
        let file = file.to_path_buf();
        blocking(move || durable::remove(&file).map_err(|e| Failure::file("deleting", &file, e))).await?;
    }
    forget(app, machine, &[name_in(machine, file)]).await?;
    Ok(())
}

#[cfg(test)]
mod tests;

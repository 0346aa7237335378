//! What a daemon does when it starts: find machines, take over living workers, settle what the former one left half done.

use super::checkpoint::CheckpointPlan;
use super::compact::stop_former;
use super::former::settle_former;
use super::host_actions::start_with_host;
use super::hotplug::settle_drives;
use super::merge::kick_quietly;
use super::move_settle::settle_move;
use super::power::end_machine;
use super::settle::{plan_of, settle_pending};
use super::{App, Done, vm_task};
use crate::failure::Failure;
use crate::inventory::{Machine, Search, blocking, find_moved, scan};
use crate::layout::Layout;
use crate::store::{StoredTask, TaskNote};
use crate::tasks::{Caller, Hold, TaskContext, store_failure};
use crate::workers::{LAUNCH_RECORD, hear_the_end, supervise};
use backstay_api::ProblemCode;
use backstay_model::{VmId, VmState};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long a start waits for living workers to tell their state, so that the first list is right.
const HELLO: Duration = Duration::from_secs(3);

/// Finds machines, takes over workers and settles interrupted operations. Settling itself runs in tasks.
///
/// # Errors
/// The state folder cannot be read, or the database.
pub async fn recover(app: &Arc<App>) -> Result<(), Failure> {
    find_machines(app).await?;
    let mut unfinished = app.tasks.unfinished().await?;
    let machines = app.inventory.all();
    for machine in &machines {
        if app.workers.run_folder(machine.id).join(LAUNCH_RECORD).exists() {
            app.inventory.set_state(
                machine.id,
                VmState::Starting,
                Some("its worker is being taken over".into()),
            );
            supervise(app, machine.id, false);
        } else {
            hear_the_end(app, machine.id).await;
        }
    }
    for machine in &machines {
        let _ = app.wait_state(machine.id, HELLO, |state| state != VmState::Starting).await;
    }
    for machine in machines {
        if machine.state.is_active() {
            let (app, id) = (Arc::clone(app), machine.id);
            tokio::spawn(async move { stop_former(&app, id).await });
        }
        // Before anybody can start it.
        if let Err(failure) = settle_former(app, machine.id).await {
            tracing::error!(vm = %machine.id, error = failure.full_message(), "the files of a former Now wait");
        }
        if let Err(failure) = settle_move(app, machine.id).await {
            tracing::error!(vm = %machine.id, error = failure.full_message(), "where one of its disks is waits");
        }
        if let Err(failure) = settle_drives(app, machine.id).await {
            tracing::error!(vm = %machine.id, error = failure.full_message(), "its disks are not those it runs with");
        }
        let machine = app.inventory.get(machine.id)?;
        if machine.config.pending().is_some() {
            let at = unfinished.iter().position(|t| note_of(t, machine.id).is_some());
            let stored = at.map(|index| unfinished.remove(index));
            start_settling(app, &machine, stored).await?;
        }
    }
    for stored in unfinished {
        take_up(app, stored).await;
    }
    for machine in app.inventory.all() {
        // After what was interrupted: it waits for the others.
        kick_quietly(app, machine.id);
    }
    start_with_host(app).await;
    Ok(())
}

async fn find_machines(app: &Arc<App>) -> Result<(), Failure> {
    let mut roots = vec![app.config.state_dir.clone()];
    roots.extend(app.store.folders().await.map_err(store_failure)?);
    let mut seen: BTreeMap<VmId, std::path::PathBuf> = BTreeMap::new();
    for root in roots {
        let registered = root != app.config.state_dir;
        let layout = Layout::new(&root);
        let found =
            blocking(move || scan(&layout).map_err(|e| Failure::file("listing", layout.root(), e))).await;
        let found = match found {
            Ok(found) => found,
            Err(failure) => {
                // A folder on a file system that is not mounted now.
                tracing::error!(
                    error = failure.full_message(),
                    "a folder with virtual machines cannot be read"
                );
                app.inventory.set_unreadable(root, Some(failure.full_message()));
                continue;
            }
        };
        if registered && found.machines.is_empty() && found.unreadable.is_empty() {
            let reason = "no virtual machine is in this registered folder: mount its file system and register it again";
            app.inventory.set_unreadable(root, Some(reason.into()));
            continue;
        }
        for (path, reason) in found.unreadable {
            app.inventory.set_unreadable(path, Some(reason));
        }
        for machine in found.machines {
            match seen.get(&machine.id) {
                Some(other) => {
                    let reason = format!(
                        "its GUID {} belongs to {} already: move one of the two away",
                        machine.id,
                        other.display()
                    );
                    app.inventory.set_unreadable(machine.config_file.clone(), Some(reason));
                }
                None => {
                    seen.insert(machine.id, machine.config_file.clone());
                    app.inventory.put(machine);
                }
            }
        }
    }
    // Only now it is known which files belong to whom.
    for machine in app.inventory.all() {
        let others = app.inventory.places_of_others(machine.id);
        let found = blocking(move || Ok(find_moved(machine, Search::Moved(&others)))).await?;
        app.inventory.put(found);
    }
    Ok(())
}

/// What a stored task says about a checkpoint of `vm`.
fn note_of(stored: &StoredTask, vm: VmId) -> Option<&TaskNote> {
    stored.note.as_ref().filter(|note| matches!(note, TaskNote::Checkpoint { vm: noted, .. } if *noted == vm))
}

/// Settles a checkpoint that was begun, under the id of the task that began it.
async fn start_settling(
    app: &Arc<App>,
    machine: &Machine,
    stored: Option<StoredTask>,
) -> Result<(), Failure> {
    let Some(pending) = machine.config.pending() else { return Ok(()) };
    let plan = plan_of(machine, pending, stored.as_ref().and_then(|stored| stored.note.clone()));
    let id = machine.id;
    let app_too = Arc::clone(app);
    let work = move |context: TaskContext| async move { settle(&app_too, &context, id, plan).await };
    match stored {
        Some(stored) => app.tasks.resume(stored, &[Hold::Vm(id)], work),
        None => {
            let spec = vm_task("checkpoint.recover", machine);
            app.tasks.start(spec, &Caller::backstay(), work).await.map(drop)
        }
    }
}

async fn settle(app: &Arc<App>, context: &TaskContext, id: VmId, plan: CheckpointPlan) -> Done {
    context.progress(5, "settling a checkpoint that was interrupted");
    let machine = app.inventory.get(id)?;
    let result = settle_pending(app, context, &machine, plan).await?;
    serde_json::to_value(result)
        .map(Some)
        .map_err(|error| Failure::because(ProblemCode::Internal, "the result cannot be written", error))
}

/// Goes on with a task of the former daemon where that is safe; ends it otherwise.
async fn take_up(app: &Arc<App>, stored: StoredTask) {
    let vm = stored.task.object.id.map(VmId).filter(|id| app.inventory.get(*id).is_ok());
    let operation = stored.task.operation.clone();
    let launched = vm.is_some_and(|id| app.workers.run_folder(id).join(LAUNCH_RECORD).exists());
    let task = stored.task.clone();
    let app_too = Arc::clone(app);
    let resumed = match (operation.as_str(), vm) {
        ("vm.start", Some(id)) if launched => {
            app.tasks.resume(stored, &[Hold::Vm(id)], move |_| async move {
                let settled =
                    app_too.wait_state(id, Duration::from_mins(10), |s| s != VmState::Starting).await?;
                if settled.0.is_active() {
                    return Ok(None);
                }
                let reason = settled.1.unwrap_or_else(|| "see its events".into());
                Err(Failure::new(ProblemCode::Unavailable, format!("the machine did not start: {reason}")))
            })
        }
        ("vm.turn-off", Some(id)) if launched => {
            app.tasks.resume(stored, &[Hold::Vm(id)], move |_| async move {
                end_machine(&app_too, id).await.map(|()| None)
            })
        }
        // The merge goes on under a new id.
        ("checkpoint.merge" | "checkpoint.delete", Some(_)) => {
            let detail =
                "the daemon was stopped while this ran: what was begun goes on by itself in another task";
            app.tasks.interrupt(task, detail).await;
            return;
        }
        ("vm.save", Some(id)) => app.tasks.resume(stored, &[Hold::Vm(id)], move |_| async move {
            let (state, reason) = app_too
                .wait_state(id, Duration::from_mins(60), |s| s != VmState::Saving && s != VmState::Stopping)
                .await?;
            if state == VmState::Saved {
                return Ok(None);
            }
            let reason = reason.map_or(String::new(), |reason| format!(": {reason}"));
            let words = format!(
                "the daemon was stopped meanwhile, and the machine is {state}{reason}: save it again"
            );
            Err(Failure::new(ProblemCode::Interrupted, words))
        }),
        ("vm.turn-off" | "vm.shutdown", Some(id)) if !launched => {
            app.tasks.resume(stored, &[Hold::Vm(id)], move |_| async move { Ok(None) })
        }
        ("disk.compact", _) => {
            let detail = "the daemon was stopped while this ran: what is done stays done, and asking again goes on from there";
            app.tasks.interrupt(task, detail).await;
            return;
        }
        _ => {
            super::clone::clear_up(stored.note.as_ref()).await;
            super::export::clear_up(stored.note.as_ref()).await;
            let detail =
                "the daemon was stopped while this ran: look at the state of the machine, and ask again";
            app.tasks.interrupt(task, detail).await;
            return;
        }
    };
    if let Err(failure) = resumed {
        app.tasks.interrupt(task, &failure.full_message()).await;
    }
}

#[cfg(test)]
mod tests;

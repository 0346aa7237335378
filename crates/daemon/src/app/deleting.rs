//! Deleting a checkpoint, or it and everything below it. One write of the machine's configuration makes them gone: it lists
//! them as being deleted and their disks' files as released. What hung below them hangs below their parent. Their files
//! go afterwards, and the space of their disks comes back by the merges that follow; both go on after a crash.

use super::apply::settle_step;
use super::merge::{self, Rate};
use super::settle::settle_before;
use super::world::world;
use super::{Accepted, App, Call, Done, vm_task};
use crate::durable;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking, read_config};
use crate::tasks::{Hold, TaskContext};
use backstay_api::{CheckpointDelete, CheckpointDeleted, Plan, ProblemCode};
use backstay_model::{Checkpoint, CheckpointId, FileStep, VmId};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// The one checkpoint of a machine that `text` (GUID or name) stands for.
pub(super) fn find_checkpoint(machine: &Machine, text: &str) -> Result<Checkpoint, Failure> {
    match machine.checkpoints.find(text).as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Failure::not_found(format!(
            "'{}' has no checkpoint '{text}': `backstay checkpoint list` shows all",
            machine.name()
        ))),
        many => {
            let ids = many.iter().map(|c| c.id.to_string()).collect::<Vec<_>>().join(", ");
            Err(Failure::precondition(format!(
                "{} checkpoints are named '{text}': use a GUID ({ids})",
                many.len()
            )))
        }
    }
}

/// Deletes a checkpoint in any state of its machine.
///
/// # Errors
/// `not-found`, `precondition`, `busy`.
pub async fn delete_checkpoint(
    app: &Arc<App>,
    vm: &str,
    checkpoint: &str,
    query: CheckpointDelete,
    call: &Call,
) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    let target = find_checkpoint(&machine, checkpoint)?;
    let plan = if call.dry_run {
        describe(app, &machine, target.id, query).await?
    } else {
        Plan::new("checkpoint.delete")
    };
    let (id, target) = (machine.id, target.id);
    let mut spec = vm_task("checkpoint.delete", &machine);
    // An export reads them.
    spec.holds.push(Hold::Files(id));
    app.accept(call, plan, spec, move |app, context| run(app, context, id, target, query)).await
}

/// The checkpoints that go.
fn gone(machine: &Machine, target: CheckpointId, subtree: bool) -> Vec<Checkpoint> {
    let ids = if subtree { machine.checkpoints.subtree(target) } else { vec![target] };
    ids.into_iter().filter_map(|id| machine.checkpoints.get(id).cloned()).collect()
}

async fn describe(
    app: &App,
    machine: &Machine,
    target: CheckpointId,
    query: CheckpointDelete,
) -> Result<Plan, Failure> {
    let mut plan = Plan::new("checkpoint.delete");
    settle_step(&mut plan, machine);
    let gone = gone(machine, target, query.subtree);
    for checkpoint in &gone {
        plan.step("delete", &checkpoint.name, "configuration and memory");
    }
    let ids: BTreeSet<_> = gone.iter().map(|checkpoint| checkpoint.id).collect();
    let mut then = machine.clone();
    then.checkpoints = Arc::new(machine.checkpoints.without(&ids).0);
    let mut layers = world(app, &then).await?;
    for disk in gone.iter().flat_map(|checkpoint| &checkpoint.disks) {
        layers.release(&super::usage::same_file(&disk.file));
    }
    let files = layers.plan();
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
    Ok(plan)
}

async fn run(
    app: Arc<App>,
    context: TaskContext,
    id: VmId,
    target: CheckpointId,
    query: CheckpointDelete,
) -> Done {
    let machine = settle_before(&app, &context, id).await?;
    let gone = gone(&machine, target, query.subtree);
    if gone.is_empty() {
        return Err(Failure::not_found(format!("'{}' has no checkpoint {target} any more", machine.name())));
    }
    context.progress(10, "deleting");
    let ids: BTreeSet<_> = gone.iter().map(|checkpoint| checkpoint.id).collect();
    let mut config = (*machine.config).clone();
    let mut deleting = config.deleting();
    deleting.extend(&ids);
    config.set_deleting(&deleting);
    let mut released = config.released();
    released.extend(gone.iter().flat_map(|checkpoint| &checkpoint.disks).map(|disk| disk.file.clone()));
    config.set_released(&released).map_err(|error| Failure::invalid(error.to_string()))?;
    config.set_now_parent(machine.checkpoints.without(&ids).0.now_parent_id());
    if query.rate.is_some() {
        config.set_merge_rate(query.rate);
    }
    // This is what deletes them.
    let machine = app.inventory.save(&machine, config).await?;
    for checkpoint in &gone {
        let what = Happening {
            kind: "checkpoint.deleted",
            who: &context.who(),
            reason: if query.subtree {
                "requested, with what hung below it".into()
            } else {
                "requested".into()
            },
            before: Some(checkpoint.name.clone()),
            after: None,
        };
        app.events.vm(id, machine.name().as_str(), what).await;
    }
    if let Err(failure) = finish_deleting(&app, &machine).await {
        context.warn(format!("some files are left for later: {}", failure.full_message()));
    }
    let caller = crate::tasks::Caller { who: context.who(), idempotency: None };
    let merge_task = match merge::kick(
        &app,
        id,
        &caller,
        query.rate.map_or(Rate::Same, |rate| Rate::Of(Some(rate))),
    )
    .await
    {
        Ok(task) => task.map(|task| task.id),
        Err(failure) => {
            context.warn(failure.full_message());
            None
        }
    };
    let result = CheckpointDeleted {
        deleted: gone.into_iter().map(|checkpoint| checkpoint.name).collect(),
        merge_task,
    };
    serde_json::to_value(result)
        .map(Some)
        .map_err(|error| Failure::because(ProblemCode::Internal, "the result cannot be written", error))
}

/// Does what is left of a deletion: children get their new parent, the checkpoints' own files go. Nothing if nothing is left.
pub(super) async fn finish_deleting(app: &Arc<App>, machine: &Machine) -> Result<Machine, Failure> {
    let deleting = machine.config.deleting();
    if deleting.is_empty() {
        return Ok(machine.clone());
    }
    // One that could not be read before may be a child, too.
    if let Some(problem) = machine.problems.iter().next() {
        let words =
            format!("deleted checkpoints of '{}' leave files while {problem}: repair that", machine.name());
        return Err(Failure::precondition(words));
    }
    let (layout, ids) = (machine.layout.clone(), deleting);
    let tree = Arc::clone(&machine.checkpoints);
    blocking(move || {
        for checkpoint in tree.all() {
            let file = layout.checkpoint_config(checkpoint.id);
            // It keeps its place in the tree only if it can be told of its new parent.
            let mut config = read_config(&file).map_err(|reason| {
                Failure::new(ProblemCode::Damaged, format!("{} cannot be used: {reason}", file.display()))
            })?;
            let Some(mut meta) = config.checkpoint_meta() else { continue };
            if meta.parent.is_some_and(|parent| ids.contains(&parent)) {
                meta.parent = checkpoint.parent;
                config.set_checkpoint_meta(Some(&meta)).map_err(|e| Failure::invalid(e.to_string()))?;
                replace(file, &config)?;
            }
        }
        for id in ids {
            // The configuration last: it is what tells whose the others are.
            for file in [layout.checkpoint_descriptor(id), layout.checkpoint_memory(id)] {
                durable::remove(&file).map_err(|e| Failure::file("deleting", &file, e))?;
            }
            durable::remove_empty_folder(&layout.checkpoint_folder(id));
            let file = layout.checkpoint_config(id);
            durable::remove(&file).map_err(|e| Failure::file("deleting", &file, e))?;
        }
        Ok(())
    })
    .await?;
    let mut config = (*machine.config).clone();
    config.set_deleting(&BTreeSet::new());
    app.inventory.save(machine, config).await
}

/// Writes a checkpoint's configuration.
pub(super) fn replace(file: PathBuf, config: &backstay_hyperv::VmConfig) -> Result<(), Failure> {
    durable::replace(&file, &config.to_bytes())
        .map_err(|e| Failure::file("writing the checkpoint's configuration", &file, e))
}

#[cfg(test)]
mod tests;

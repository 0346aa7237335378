//! Changing a checkpoint's name and notes, in every state of its machine.

use super::deleting::{find_checkpoint, replace};
use super::settle::settle_before;
use super::{Accepted, App, Call, Done, vm_task};
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{blocking, read_config};
use crate::tasks::TaskContext;
use backstay_api::{CheckpointUpdate, Plan, ProblemCode};
use backstay_model::{CheckpointId, VmId, VmName};
use std::sync::Arc;

/// Renames a checkpoint, or changes its notes.
///
/// # Errors
/// `not-found`, `invalid`, `busy`.
pub async fn update_checkpoint(
    app: &Arc<App>,
    vm: &str,
    checkpoint: &str,
    body: CheckpointUpdate,
    call: &Call,
) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    let found = find_checkpoint(&machine, checkpoint)?;
    let body = CheckpointUpdate { name: body.name.map(check_name).transpose()?, ..body };
    if body == CheckpointUpdate::default() {
        return Err(Failure::invalid("nothing is to be changed: give a name or notes"));
    }
    let mut plan = Plan::new("checkpoint.update");
    let file = machine.layout.checkpoint_config(found.id);
    if let Some(name) = &body.name {
        plan.step("write", file.display(), format!("name '{}' becomes '{name}'", found.name));
    }
    if body.notes.is_some() {
        plan.step("write", file.display(), "new notes");
    }
    let (id, target) = (machine.id, found.id);
    let spec = vm_task("checkpoint.update", &machine);
    app.accept(call, plan, spec, move |app, context| run(app, context, id, target, body)).await
}

/// A checkpoint's name obeys the rules of a machine's.
pub(super) fn check_name(name: String) -> Result<String, Failure> {
    VmName::new(name)
        .map(|name| name.to_string())
        .map_err(|error| Failure::invalid(format!("this cannot be a checkpoint's name: {error}")))
}

async fn run(
    app: Arc<App>,
    context: TaskContext,
    id: VmId,
    target: CheckpointId,
    body: CheckpointUpdate,
) -> Done {
    let machine = settle_before(&app, &context, id).await?;
    let found = find_checkpoint(&machine, &target.to_string())?;
    let (file, wanted) = (machine.layout.checkpoint_config(target), body.clone());
    blocking(move || {
        let damaged = |reason: String| {
            let words = format!("the checkpoint's configuration {} cannot be used: {reason}", file.display());
            Failure::new(ProblemCode::Damaged, words)
        };
        let mut config = read_config(&file).map_err(damaged)?;
        let mut meta = config.checkpoint_meta().ok_or_else(|| damaged("it names no checkpoint".into()))?;
        meta.name = wanted.name.unwrap_or(meta.name);
        meta.notes = wanted.notes.unwrap_or(meta.notes);
        config.set_checkpoint_meta(Some(&meta)).map_err(|e| Failure::invalid(e.to_string()))?;
        replace(file.clone(), &config)
    })
    .await?;
    app.inventory.reread(id).await?;
    let name = body.name.unwrap_or_else(|| found.name.clone());
    let what = Happening {
        kind: if name == found.name { "checkpoint.changed" } else { "checkpoint.renamed" },
        who: &context.who(),
        reason: if body.notes.is_some() { "requested, with new notes".into() } else { "requested".into() },
        before: Some(found.name),
        after: Some(name),
    };
    app.events.vm(id, machine.name().as_str(), what).await;
    Ok(None)
}

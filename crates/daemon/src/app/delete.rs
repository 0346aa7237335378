//! Removing a machine. The configuration goes first: a crash leaves files that nobody refers to, never a machine that
//! lacks some.

use super::cleanup::{Doomed, delete_files, own_disks, released_leaves};
use super::merge::kick_all;
use super::restorable::own_state;
use super::settle::settle_before;
use super::usage::{Part, usage};
use super::{Accepted, App, Call, Done, check_verb, vm_task};
use crate::durable;
use crate::events::Happening;
use crate::failure::{Failure, chain};
use crate::inventory::{Machine, blocking};
use crate::tasks::{Hold, TaskContext};
use backstay_api::{Plan, ProblemCode, VmDelete};
use backstay_model::{VmId, VmState, VmVerb};
use backstay_worker::saved_state;
use std::path::PathBuf;
use std::sync::Arc;

/// Removes a machine: its configuration, its checkpoints and their memory. Disk files stay unless asked.
///
/// # Errors
/// `not-found`, `precondition`, `busy`.
pub async fn delete_vm(app: &Arc<App>, vm: &str, query: VmDelete, call: &Call) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    check_verb(&machine, VmVerb::Delete)?;
    check_children(app, &machine, &query).await?;
    let disks = doomed_disks(app, &machine, &query).await?;
    let plan = describe(&machine, &disks, &query);
    let id = machine.id;
    let mut spec = vm_task("vm.delete", &machine);
    // An export of a checkpoint reads them.
    spec.holds.push(Hold::Files(id));
    app.accept(call, plan, spec, move |app, context| run(app, context, id, query)).await
}

/// A template with linked clones stays, and so do disks that other machines' disks were made from.
async fn check_children(app: &App, machine: &Machine, query: &VmDelete) -> Result<(), Failure> {
    if !query.delete_disks && !machine.is_template() {
        return Ok(());
    }
    let usage = usage(app, Some((machine.id, Part::Nothing))).await?;
    let files: Vec<PathBuf> = machine.disk_places().into_iter().map(|(file, _)| file).collect();
    let Some(children) = usage.dependents(machine.id, &files) else { return Ok(()) };
    let name = machine.name();
    let words = match (machine.is_template(), query.delete_disks) {
        (true, _) => format!(
            "'{name}' is the template of {children}, which need its disks: delete those linked clones first, or replace them \
             by full clones"
        ),
        _ => format!(
            "disks of '{name}' are parents of disks of {children}: delete those first, or keep the disks (without \
             --delete-disks)"
        ),
    };
    Err(Failure::new(ProblemCode::InUse, words))
}

async fn doomed_disks(app: &App, machine: &Machine, query: &VmDelete) -> Result<Doomed, Failure> {
    let mut doomed = if query.delete_disks { own_disks(app, machine).await? } else { Doomed::default() };
    let leaves = released_leaves(app, machine).await;
    doomed.files.extend(leaves.into_iter().filter(|file| !doomed.files.contains(file)).collect::<Vec<_>>());
    Ok(doomed)
}

/// Configurations and memory of the checkpoints.
fn checkpoint_files(machine: &Machine) -> Vec<PathBuf> {
    let layout = &machine.layout;
    let files =
        |id| [layout.checkpoint_config(id), layout.checkpoint_descriptor(id), layout.checkpoint_memory(id)];
    let ids = machine.checkpoints.all().into_iter().map(|c| c.id).chain(machine.config.deleting());
    ids.flat_map(files).collect()
}

fn describe(machine: &Machine, disks: &Doomed, query: &VmDelete) -> Plan {
    let mut plan = Plan::new("vm.delete");
    plan.step("delete", machine.config_file.display(), format!("configuration of '{}'", machine.name()));
    for file in checkpoint_files(machine) {
        plan.step("delete", file.display(), "of a checkpoint");
    }
    if machine.state == VmState::Saved {
        let from = own_state(machine);
        plan.step("delete", from.descriptor_file.display(), "what it takes to load the saved memory");
        plan.step("delete", from.memory_file.display(), "the saved memory");
    }
    for file in &disks.files {
        plan.step("delete", file.display(), "disk");
    }
    if !query.delete_disks {
        for (file, place) in machine.disk_places() {
            plan.step("keep", file.display(), place);
        }
    }
    plan.warnings.clone_from(&disks.notes);
    plan
}

async fn run(app: Arc<App>, context: TaskContext, id: VmId, query: VmDelete) -> Done {
    let machine = match settle_before(&app, &context, id).await {
        Ok(machine) => machine,
        // Its files may then stay behind; a machine that cannot be deleted would be worse.
        Err(failure) => {
            context.warn(failure.full_message());
            app.inventory.get(id)?
        }
    };
    check_verb(&machine, VmVerb::Delete)?;
    check_children(&app, &machine, &query).await?;
    let disks = doomed_disks(&app, &machine, &query).await?;
    for note in disks.notes {
        context.warn(note);
    }
    let name = machine.name().to_string();
    let config_file = machine.config_file.clone();
    blocking(move || {
        durable::remove(&config_file)
            .map_err(|e| Failure::file("deleting the configuration", &config_file, e))
    })
    .await?;
    app.inventory.remove(id);
    let mut files = checkpoint_files(&machine);
    if machine.state == VmState::Saved {
        let from = own_state(&machine);
        files.extend([from.descriptor_file, from.memory_file]);
        let tops = machine.disks();
        blocking(move || {
            saved_state::mark(&tops, false);
            Ok(())
        })
        .await?;
    }
    files.extend(disks.files);
    for failed in delete_files(files).await {
        context.warn(failed);
    }
    let root = machine.layout.root().to_path_buf();
    if app.inventory.all().iter().all(|other| other.layout.root() != root)
        && let Err(error) = app.store.remove_folder(&root).await
    {
        tracing::warn!(error = chain(&error), "an empty folder could not be forgotten");
    }
    let run_folder = app.workers.run_folder(id);
    let folders = blocking(move || {
        for checkpoint in machine.checkpoints.all() {
            durable::remove_empty_folder(&machine.layout.checkpoint_folder(checkpoint.id));
        }
        durable::remove_empty_folder(&machine.layout.layers(id));
        durable::remove_empty_folder(&machine.layout.vm_folder(id));
        // Logs and sockets of the last run.
        let _ = std::fs::remove_dir_all(&run_folder);
        Ok(())
    });
    folders.await?;
    if let Err(error) = app.store.forget_runtime(id).await {
        tracing::warn!(error = chain(&error), "a deleted machine could not be forgotten");
    }
    let what = Happening {
        kind: "vm.deleted",
        who: &context.who(),
        reason: if query.delete_disks { "requested, with its disks".into() } else { "requested".into() },
        before: Some(name.clone()),
        after: None,
    };
    app.events.vm(id, &name, what).await;
    kick_all(&app);
    Ok(None)
}

//! Going to a checkpoint: configuration, disks and memory as they were. The checkpoint's own files stay as they are; Now
//! continues on new differencing disks above them.
//!
//! Everything is checked and the new disks are made before the machine is touched. Then: turn off, replace the
//! configuration (the instant of the change), continue from memory, delete layers that nobody needs any more: last, because
//! until the guest runs again they are all that is left of the former Now.

use super::apply_checks::{Checked, Memory, check};
use super::capacity::reserve;
use super::checkpoint::{check_limit, decide};
use super::checkpoint_run::{make_children, take};
use super::cleanup::delete_files;
use super::deleting::find_checkpoint;
use super::former::{self, Fate};
use super::merge::kick_quietly;
use super::merge_files::is_own_layer;
use super::power::end_machine;
use super::save::drop_state;
use super::settle::settle_before;
use super::start::{Beginning, launch};
use super::world::world;
use super::{Accepted, App, Call, Done, check_verb, vm_task};
use crate::durable;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use crate::tasks::{Hold, TaskContext};
use backstay_api::{CheckpointApply, CheckpointCreate, Plan, ProblemCode};
use backstay_hyperv::{ApplyError, LayerStep, VmConfig};
use backstay_model::{Checkpoint, CheckpointId, VmId, VmSpec, VmState, VmVerb};
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

const APPLY: &str = "checkpoint.apply";
const REVERT: &str = "checkpoint.revert";

/// Whether Now becomes a checkpoint first. Going to any checkpoint, people want to come back; a revert means to throw away.
fn checkpoint_first(operation: &str, body: &CheckpointApply) -> bool {
    body.checkpoint_first.unwrap_or(operation == APPLY)
}

fn memory_of(body: &CheckpointApply) -> Memory {
    if body.without_memory { Memory::Without } else { Memory::Loadable }
}

/// Goes back to the checkpoint that Now continues from.
///
/// # Errors
/// As [`apply_checkpoint`]; `precondition` when there is none.
pub async fn revert(
    app: &Arc<App>,
    vm: &str,
    body: CheckpointApply,
    call: &Call,
) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    if machine.config.pending().is_some() && machine.now_parent().is_none() {
        // Whether there is one to go back to is known when that checkpoint is finished.
        check_verb(&machine, VmVerb::ApplyCheckpoint)?;
        let mut plan = Plan::new(REVERT);
        settle_step(&mut plan, &machine);
        let (id, spec) = (machine.id, vm_task(REVERT, &machine));
        return app.accept(call, plan, spec, move |app, context| run(app, context, id, None, body)).await;
    }
    let parent = former(&machine)?;
    accept(app, &machine, parent, REVERT, body, call).await
}

/// The checkpoint that Now continues from.
fn former(machine: &Machine) -> Result<CheckpointId, Failure> {
    machine.now_parent().ok_or_else(|| {
        Failure::precondition(format!(
            "'{}' has no checkpoint to go back to: `backstay checkpoint list` shows all",
            machine.name()
        ))
    })
}

pub(super) fn settle_step(plan: &mut Plan, machine: &Machine) {
    if let Some(pending) = machine.config.pending() {
        plan.step("settle", pending.checkpoint, "this checkpoint was interrupted: finish it or give it up");
    }
}

/// Goes to any checkpoint, named by GUID or name.
///
/// # Errors
/// `not-found`, `precondition`, `damaged`, `not-restorable`, `busy`.
pub async fn apply_checkpoint(
    app: &Arc<App>,
    vm: &str,
    checkpoint: &str,
    body: CheckpointApply,
    call: &Call,
) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    let id = find_checkpoint(&machine, checkpoint)?.id;
    accept(app, &machine, id, APPLY, body, call).await
}

async fn accept(
    app: &Arc<App>,
    machine: &Machine,
    checkpoint: CheckpointId,
    operation: &'static str,
    body: CheckpointApply,
    call: &Call,
) -> Result<Accepted, Failure> {
    // A merge has its files open.
    let _way = app.tasks.make_way(&[Hold::Vm(machine.id)]).await;
    let machine = &app.inventory.get(machine.id)?;
    check_verb(machine, VmVerb::ApplyCheckpoint)?;
    let target = target(machine, checkpoint)?;
    let checked = check(app, machine, &target, memory_of(&body)).await?;
    let first = checkpoint_first(operation, &body);
    if first {
        check_limit(app, machine)?;
    }
    let plan = describe(operation, machine, &target, &checked, first);
    let id = machine.id;
    let spec = vm_task(operation, machine);
    // What a revert goes back to may change when an interrupted checkpoint is finished first.
    let wanted = (operation != REVERT).then_some(checkpoint);
    app.accept(call, plan, spec, move |app, context| run(app, context, id, wanted, body)).await
}

fn target(machine: &Machine, id: CheckpointId) -> Result<Checkpoint, Failure> {
    machine
        .checkpoints
        .get(id)
        .cloned()
        .ok_or_else(|| Failure::not_found(format!("'{}' has no checkpoint {id}", machine.name())))
}

fn describe(operation: &str, machine: &Machine, target: &Checkpoint, checked: &Checked, first: bool) -> Plan {
    let mut plan = Plan::new(operation);
    settle_step(&mut plan, machine);
    if first {
        plan.step("checkpoint", machine.name(), "Now is kept as a checkpoint");
    } else {
        plan.warnings.push("what has changed since the last checkpoint is lost".into());
    }
    for disk in &target.disks {
        plan.step("create", disk.slot, format!("new differencing disk of {}", disk.file.display()));
    }
    if machine.state.is_active() {
        plan.step("turn-off", machine.name(), "");
    }
    if machine.state == VmState::Saved {
        plan.step("delete", machine.layout.vm_memory(machine.id).display(), "the saved memory of Now");
    }
    plan.step("write", machine.config_file.display(), format!("the configuration of '{}'", target.name));
    match &checked.restore {
        Some(from) => {
            plan.step("start", machine.name(), format!("from memory {}", from.memory_file.display()))
        }
        None => plan.step("stay", machine.name(), "off"),
    }
    plan.warnings.extend(checked.warnings.iter().cloned());
    plan
}

async fn run(
    app: Arc<App>,
    context: TaskContext,
    id: VmId,
    wanted: Option<CheckpointId>,
    body: CheckpointApply,
) -> Done {
    let machine = settle_before(&app, &context, id).await?;
    check_verb(&machine, VmVerb::ApplyCheckpoint)?;
    let checkpoint = match wanted {
        Some(checkpoint) => checkpoint,
        None => former(&machine)?,
    };
    let target = target(&machine, checkpoint)?;
    context.progress(2, "checking the checkpoint");
    let checked = check(&app, &machine, &target, memory_of(&body)).await?;
    let mut first = None;
    let operation = if wanted.is_some() { APPLY } else { REVERT };
    if checkpoint_first(operation, &body) {
        let decided = decide(&app, &machine, &CheckpointCreate::default()).await?;
        let taken = take(&app, &context, &machine, decided).await?;
        // Whoever was told that it is cancelled keeps the machine as it is.
        context.cancellable(false)?;
        first = Some(taken);
    }
    let machine = app.inventory.get(id)?;
    context.progress(96, "making new differencing disks");
    let layers = new_layers(&machine, &target).await?;
    let result = switch(&app, &context, &machine, &target, &checked, &layers).await;
    if result.is_err() {
        // Before the configuration was replaced nobody knows them; after that they are its disks.
        let tops = app.inventory.get(id).map(|m| m.disks()).unwrap_or_default();
        let unused = layers.into_iter().map(|l| l.to).filter(|to| tops.iter().all(|(_, top)| top != to));
        delete_files(unused.collect()).await;
    }
    result?;
    Ok(Some(serde_json::json!({ "checkpoint": checkpoint, "name": target.name, "checkpoint_first": first })))
}

/// Makes empty differencing disks of the checkpoint's disks.
async fn new_layers(machine: &Machine, target: &Checkpoint) -> Result<Vec<LayerStep>, Failure> {
    let layers: Vec<LayerStep> = target
        .disks
        .iter()
        .map(|disk| LayerStep {
            slot: disk.slot,
            from: disk.file.clone(),
            to: machine.layout.new_layer(machine.id, &disk.file, Uuid::new_v4()),
        })
        .collect();
    let folder = machine.layout.layers(machine.id);
    let made = layers.clone();
    blocking(move || {
        durable::create_folder(&folder).map_err(|e| Failure::file("making the folder", &folder, e))?;
        make_children(&made)
    })
    .await?;
    Ok(layers)
}

async fn switch(
    app: &Arc<App>,
    context: &TaskContext,
    machine: &Machine,
    target: &Checkpoint,
    checked: &Checked,
    layers: &[LayerStep],
) -> Result<(), Failure> {
    let id = machine.id;
    let former = machine.disks();
    let former_tops: Vec<PathBuf> = former.iter().map(|(_, path)| path.clone()).collect();
    // Before anything is torn down: the memory of a checkpoint is that of a machine that runs.
    let _held = match &checked.restore {
        Some(_) => {
            Some(reserve(app, &VmSpec { id, name: machine.name().clone(), ..checked.spec.clone() }).await?)
        }
        None => None,
    };
    if machine.state.is_active() {
        context.progress(97, "turning the machine off");
        end_machine(app, id).await?;
    }
    context.progress(98, "replacing the configuration");
    let machine = app.inventory.get(id)?;
    let mut config = checked.config.clone();
    let mut spec = checked.spec.clone();
    spec.id = id;
    spec.name = machine.name().clone();
    let wrong = |error: backstay_hyperv::ApplyError| Failure::invalid(error.to_string());
    config.apply_spec(&spec).map_err(wrong)?;
    config.set_checkpoint_meta(None).map_err(wrong)?;
    config.set_pending(None).map_err(wrong)?;
    for layer in layers {
        config.set_drive_path(layer.slot, &layer.to).map_err(wrong)?;
    }
    config.set_now_parent(Some(target.id));
    carry_records(&machine, &mut config, &former_tops, checked.restore.is_some()).map_err(wrong)?;
    let saved = app.inventory.save(&machine, config).await?;
    let what = Happening {
        kind: "checkpoint.applied",
        who: &context.who(),
        reason: "requested".into(),
        before: machine.checkpoints.now_parent().map(|c| c.name.clone()),
        after: Some(target.name.clone()),
    };
    app.events.vm(id, saved.name().as_str(), what).await;
    if saved.state == VmState::Saved {
        drop_state(app, context, &saved, former, "a checkpoint was applied").await?;
    }
    if let Some(restore) = checked.restore.clone() {
        context.progress(99, "loading memory");
        let beginning = Beginning { paused: false, restore: Some(restore) };
        if let Err(failure) = launch(app, context, &saved, beginning).await {
            // It may still be on its way.
            let off = !app.inventory.get(id)?.state.is_active();
            former::end(app, id, if off { Fate::Keep } else { Fate::Wait }).await?;
            return Err(not_loaded(&saved, target, &former_tops, failure));
        }
        // Not if somebody turned it off meanwhile: before its memory was there, perhaps.
        let stopping = app.inventory.get(id)?.state == VmState::Stopping;
        former::end(app, id, if stopping { Fate::Wait } else { Fate::Release }).await?;
    }
    // Else nobody would hear why the space does not come back.
    if let Err(failure) = world(app, &app.inventory.get(id)?).await {
        context.warn(failure.full_message());
    }
    kick_quietly(app, id);
    Ok(())
}

/// The records about files belong to the machine, not to the checkpoint whose configuration is taken over. The files that
/// Now wrote to before are released with the same write, and go when this task lets go of the machine; where memory has to be
/// loaded first they are only noted.
fn carry_records(
    machine: &Machine,
    config: &mut VmConfig,
    former_tops: &[PathBuf],
    with_memory: bool,
) -> Result<(), ApplyError> {
    let own = || former_tops.iter().filter(|top| is_own_layer(machine, top)).cloned();
    let mut released = machine.config.released();
    released.extend(own().filter(|_| !with_memory));
    config.set_released(&released)?;
    config.set_applying(&own().filter(|_| with_memory).collect())?;
    config.set_merge_rate(machine.config.merge_rate());
    config.set_deleting(&machine.config.deleting());
    config.set_merging(machine.config.merging().as_ref())
}

fn not_loaded(machine: &Machine, target: &Checkpoint, former_tops: &[PathBuf], failure: Failure) -> Failure {
    let tops: Vec<_> = former_tops.iter().map(|top| top.display().to_string()).collect();
    Failure::because(
        ProblemCode::NotRestorable,
        format!(
            "disks and configuration of '{}' are those of '{}', but its memory could not be loaded, and the machine is \
             off: start it from its disks, or apply the checkpoint again; the disks it had before are kept ({})",
            machine.name(),
            target.name,
            tops.join(", ")
        ),
        failure,
    )
}

//! Taking a checkpoint: what will be done is decided here, once; see `checkpoint_run` for the doing.

use super::checkpoint_run::take;
use super::rename_checkpoint::check_name;
use super::settle::settle_before;
use super::usage::chain_of;
use super::views::tree_warnings;
use super::{Accepted, App, Call, Done, check_verb, vm_task};
use crate::disks;
use crate::failure::Failure;
use crate::inventory::Machine;
use crate::store::TaskNote;
use crate::tasks::{Hold, TaskContext};
use backstay_api::{Blocker, CheckpointCreate, Plan, ProblemCode};
use backstay_hyperv::{LayerStep, PendingCheckpoint};
use backstay_model::{CheckpointId, VmId, VmState, VmVerb};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::sync::Arc;
use uuid::Uuid;

/// Everything decided about a checkpoint that is to be taken.
#[derive(Clone, Debug)]
pub(super) struct CheckpointPlan {
    pub(super) vm: VmId,
    pub(super) pending: PendingCheckpoint,
    pub(super) name: String,
    pub(super) notes: String,
    pub(super) created_unix_ms: i64,
}

impl CheckpointPlan {
    /// What the next daemon needs to go on.
    pub(super) fn note(&self) -> TaskNote {
        TaskNote::Checkpoint {
            vm: self.vm,
            checkpoint: self.pending.checkpoint,
            name: self.name.clone(),
            notes: self.notes.clone(),
            created_unix_ms: self.created_unix_ms,
        }
    }
}

/// Takes a checkpoint of a machine that is running, paused or off.
///
/// # Errors
/// `not-found`, `invalid`, `precondition`, `damaged`, `busy`.
pub async fn create_checkpoint(
    app: &Arc<App>,
    vm: &str,
    body: CheckpointCreate,
    call: &Call,
) -> Result<Accepted, Failure> {
    let id = app.inventory.find(vm)?.id;
    // A merge has its files open.
    let _way = app.tasks.make_way(&[Hold::Vm(id)]).await;
    let machine = app.inventory.get(id)?;
    let decided = decide(app, &machine, &body).await?;
    let plan = describe(&machine, &decided);
    let mut spec = vm_task("checkpoint.create", &machine);
    // Nothing may hold up the power button.
    (spec.cancellable, spec.yields) = (true, true);
    app.accept(call, plan, spec, move |app, context| run(app, context, id, body)).await
}

async fn run(app: Arc<App>, context: TaskContext, id: VmId, body: CheckpointCreate) -> Done {
    let machine = settle_before(&app, &context, id).await?;
    let decided = decide(&app, &machine, &body).await?;
    let result = take(&app, &context, &machine, decided).await?;
    for warning in app.inventory.get(id).map(|m| tree_warnings(&app, &m)).unwrap_or_default() {
        context.warn(warning);
    }
    serde_json::to_value(result)
        .map(Some)
        .map_err(|error| Failure::because(ProblemCode::Internal, "the result cannot be written", error))
}

/// Decides everything: ids, names, files. While another checkpoint is pending that is provisional: the task settles that
/// one first and decides anew.
pub(super) async fn decide(
    app: &App,
    machine: &Machine,
    body: &CheckpointCreate,
) -> Result<CheckpointPlan, Failure> {
    check_verb(machine, VmVerb::Checkpoint)?;
    let now = Timestamp::now();
    check_limit(app, machine)?;
    let name = match &body.name {
        Some(name) => check_name(name.clone())?,
        None => default_name(machine, now),
    };
    if machine.config.pending().is_none() {
        check_disks(app, machine).await?;
    }
    let step = |(slot, from): (_, std::path::PathBuf)| {
        let to = machine.layout.new_layer(machine.id, &from, Uuid::new_v4());
        LayerStep { slot, from, to }
    };
    Ok(CheckpointPlan {
        vm: machine.id,
        pending: PendingCheckpoint {
            checkpoint: CheckpointId(Uuid::new_v4()),
            layers: machine.disks().into_iter().map(step).collect(),
        },
        name,
        notes: body.notes.clone(),
        created_unix_ms: now.as_millisecond(),
    })
}

/// One more checkpoint than the host's settings allow is refused.
pub(super) fn check_limit(app: &App, machine: &Machine) -> Result<(), Failure> {
    let (count, limit) = (machine.checkpoints.all().len(), app.config.checkpoints.limit);
    if u32::try_from(count).unwrap_or(u32::MAX) < limit {
        return Ok(());
    }
    Err(Failure::precondition(format!(
        "'{}' has {count} checkpoints, and a virtual machine may have {limit} on this host: delete some with `backstay \
         checkpoint delete`, or raise 'limit' below [checkpoints] in backstay.toml",
        machine.name()
    )))
}

/// As Hyper-V names checkpoints: `web - (2026-01-31 - 09:15:00)`, in local time; a second one of that second is numbered.
fn default_name(machine: &Machine, now: Timestamp) -> String {
    let local = now.to_zoned(TimeZone::system());
    let stem: String = machine.name().as_str().chars().take(66).collect();
    let name = format!("{} - ({})", stem.trim_end(), local.strftime("%Y-%m-%d - %H:%M:%S"));
    let free = |name: &String| machine.checkpoints.find(name).is_empty();
    (1u32..).map(|n| if n == 1 { name.clone() } else { format!("{name} ({n})") }).find(free).unwrap_or(name)
}

async fn check_disks(app: &App, machine: &Machine) -> Result<(), Failure> {
    let mut blockers = super::devices::refusals(
        &machine.spec,
        "detach it, or copy it into a VHDX with `backstay disk convert` and attach that",
    );
    for (slot, path) in machine.disks() {
        let problem = if disks::is_raw_name(&path) {
            Some((
                ProblemCode::Precondition,
                format!("{slot}: {} is a raw disk, which cannot have checkpoints", path.display()),
                Some("convert it to VHDX with `backstay disk convert`".to_owned()),
            ))
        } else {
            let failure = chain_of(app, &path).await.err();
            failure.map(|f| (f.code(), format!("{slot}: {}", f.full_message()), None))
        };
        if let Some((code, detail, cure)) = problem {
            blockers.push(Blocker { code, detail, cure });
        }
    }
    match blockers.first() {
        None => Ok(()),
        Some(first) => {
            let code = first.code;
            let message = format!("no checkpoint of '{}' can be taken", machine.name());
            Err(Failure::new(code, message).with_blockers(blockers))
        }
    }
}

fn describe(machine: &Machine, decided: &CheckpointPlan) -> Plan {
    let mut plan = Plan::new("checkpoint.create");
    if let Some(pending) = machine.config.pending() {
        plan.step("settle", pending.checkpoint, "this checkpoint was interrupted: finish it or give it up");
    }
    let id = decided.pending.checkpoint;
    for layer in &decided.pending.layers {
        plan.step("create", layer.to.display(), format!("new top of {}", layer.slot));
    }
    if machine.state.is_active() || machine.state == VmState::Saved {
        plan.step("write", machine.layout.checkpoint_memory(id).display(), "memory");
        plan.step("write", machine.layout.checkpoint_descriptor(id).display(), "what it takes to load it");
    }
    let detail = format!("'{}', the configuration as it is", decided.name);
    plan.step("write", machine.layout.checkpoint_config(id).display(), detail);
    plan.step("write", machine.config_file.display(), "the new tops; Now continues from this checkpoint");
    plan
}

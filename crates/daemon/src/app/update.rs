//! Changing settings.

use super::capacity::{check_count, reserve_cores};
use super::changes::changes;
use super::controllers::check_places;
use super::create::{make_disks, remove_disks};
use super::drives::{check_files, nics, place};
use super::hotplug::{self, PlugStep, places};
use super::limits::{change_limits, limits_differ, share_limits};
use super::merge::kick_all;
use super::processors::share_out;
use super::settle::settle_before;
use super::strangers::refuse_parents;
use super::usage::same_file;
use super::views::media_words;
use super::{Accepted, App, Call, Done, check_verb, vm_task};
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use crate::tasks::TaskContext;
use backstay_api::{Change as SettingChange, Plan, ProblemCode, VmUpdate};
use backstay_model::{DriveMedia, DriveSpec, VmId, VmSpec, VmState, VmVerb};
use std::path::PathBuf;
use std::sync::Arc;

/// Changes settings. Notes, the share of the processors, limits of disks and what happens with the host can be changed at any
/// time; disks on SCSI come and go while the machine runs; most else needs it off.
///
/// # Errors
/// `not-found`, `invalid`, `precondition`, `stale`, `in-use`, `busy`.
pub async fn update_vm(app: &Arc<App>, vm: &str, body: VmUpdate, call: &Call) -> Result<Accepted, Failure> {
    let machine = app.inventory.find(vm)?;
    let change = decide(app, &machine, &body).await?;
    let plan = describe(&machine, &change);
    let id = machine.id;
    let spec = vm_task("vm.update", &machine);
    app.accept(call, plan, spec, move |app, context| run(app, context, id, body)).await
}

struct Change {
    spec: VmSpec,
    make: Vec<super::drives::DiskToMake>,
    warnings: Vec<String>,
}

async fn decide(app: &App, machine: &Machine, body: &VmUpdate) -> Result<Change, Failure> {
    if let Some(wanted) = body.generation
        && wanted != machine.generation.0
    {
        return Err(Failure::new(
            ProblemCode::Stale,
            format!(
                "the configuration of '{}' has changed (generation {} instead of {wanted}): read it again",
                machine.name(),
                machine.generation.0
            ),
        ));
    }
    check_state(machine, body)?;
    let mut spec = (*machine.spec).clone();
    set_values(&mut spec, body);
    for slot in &body.remove_drives {
        // A guest that runs keeps the controller; one that is off has it as long as it has a drive, or had one when it ran.
        let removed = if machine.state.is_active() {
            spec.detach(*slot).is_some()
        } else {
            let before = spec.drives.len();
            spec.drives.retain(|drive| drive.slot != *slot);
            spec.drives.len() < before
        };
        if !removed {
            return Err(Failure::not_found(format!("'{}' has no drive at {slot}", machine.name())));
        }
    }
    for id in &body.remove_nics {
        let before = spec.nics.len();
        spec.nics.retain(|nic| nic.id != *id);
        if spec.nics.len() == before {
            return Err(Failure::not_found(format!("'{}' has no network card {id}", machine.name())));
        }
    }
    spec.nics.extend(nics(&body.add_nics));
    let placed = place(&body.add_drives, &spec.drives, &places(machine), &machine.layout, &spec.name)?;
    let mut warnings = if placed.drives.is_empty() {
        Vec::new()
    } else {
        check_files(app, machine.id, &placed.drives, &placed.make, body.compat).await?
    };
    if machine.state.is_active() {
        // One that is off is looked at when it is started.
        let file = |drive: &DriveSpec| match &drive.media {
            DriveMedia::Disk(path) if !placed.make.iter().any(|made| made.path == *path) => {
                Some(path.clone())
            }
            _ => None,
        };
        let files: Vec<PathBuf> = placed.drives.iter().filter_map(file).collect();
        if !files.is_empty() {
            refuse_parents(app, machine, files).await?;
        }
    }
    placed.drives.into_iter().for_each(|drive| spec.attach(drive));
    change_limits(&mut spec, &body.disk_limits)?;
    if spec.drives != machine.spec.drives {
        warnings.extend(check_places(&spec));
    }
    super::create::check_spec(&spec)?;
    if body.cpus.is_some() {
        check_count(app, &spec.name, &spec.cpu)?;
    }
    Ok(Change { spec, make: placed.make, warnings })
}

/// Whether the changes may be made in this state: at any time those that no guest notices, while it runs those that a guest can
/// follow, while it is saved also those that its memory does not depend on.
fn check_state(machine: &Machine, body: &VmUpdate) -> Result<(), Failure> {
    let mut rest = VmUpdate {
        generation: None,
        notes: None,
        cpu_reserve: None,
        cpu_limit: None,
        cpu_weight: None,
        host_start: None,
        host_stop: None,
        start_delay_s: None,
        start_order: None,
        disk_limits: Vec::new(),
        ..body.clone()
    };
    if machine.state == VmState::Saved {
        rest.recovery = None;
    }
    if rest == VmUpdate::default() {
        return Ok(());
    }
    let drives =
        VmUpdate { add_drives: rest.add_drives, remove_drives: rest.remove_drives, ..VmUpdate::default() };
    (rest.add_drives, rest.remove_drives) = (Vec::new(), Vec::new());
    if machine.state.is_active() && rest == VmUpdate::default() && !machine.is_template() {
        return hotplug::check_drives(machine, &drives);
    }
    check_verb(machine, VmVerb::Configure).map(drop)
}

fn set_values(spec: &mut VmSpec, body: &VmUpdate) {
    fn set<T: Clone>(place: &mut T, value: &Option<T>) {
        if let Some(value) = value {
            place.clone_from(value);
        }
    }
    set(&mut spec.notes, &body.notes);
    set(&mut spec.memory_mib, &body.memory_mib);
    set(&mut spec.cpu.count, &body.cpus);
    set(&mut spec.cpu.reserve_percent, &body.cpu_reserve);
    set(&mut spec.cpu.limit_percent, &body.cpu_limit);
    set(&mut spec.cpu.weight, &body.cpu_weight);
    set(&mut spec.boot_order, &body.boot_order);
    set(&mut spec.accel, &body.accel);
    set(&mut spec.recovery, &body.recovery);
    set(&mut spec.host_start, &body.host_start);
    set(&mut spec.host_stop, &body.host_stop);
    set(&mut spec.start_delay_s, &body.start_delay_s);
    set(&mut spec.start_order, &body.start_order);
}

fn describe(machine: &Machine, change: &Change) -> Plan {
    let mut plan = Plan::new("vm.update");
    for disk in &change.make {
        plan.step("create", disk.path.display(), format!("disk of {} bytes", disk.size));
    }
    for step in hotplug::steps(machine, &change.spec) {
        match step {
            PlugStep::Goes(slot) => {
                plan.step("detach", slot, "the guest is not asked: unmount it there first")
            }
            PlugStep::Comes(drive) => plan.step("attach", drive.slot, media_words(&drive.media)),
        }
    }
    plan.step("write", machine.config_file.display(), words(&changes(&machine.spec, &change.spec)));
    plan.warnings.clone_from(&change.warnings);
    plan
}

/// What differs, in words: `memory_mib 512 → 1024`.
fn words(changes: &[SettingChange]) -> String {
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".into());
    let one = |c: &SettingChange| format!("{} {} → {}", c.field, value(&c.before), value(&c.after));
    changes.iter().map(one).collect::<Vec<_>>().join(", ")
}

async fn run(app: Arc<App>, context: TaskContext, id: VmId, body: VmUpdate) -> Done {
    let machine = settle_before(&app, &context, id).await?;
    let attaching = app.attaching.lock().await;
    let change = decide(&app, &machine, &body).await?;
    for warning in &change.warnings {
        context.warn(warning.clone());
    }
    let share_changes = machine.state.is_active() && machine.spec.cpu != change.spec.cpu;
    let held = match share_changes {
        true => Some(reserve_cores(&app, &change.spec).await?),
        false => None,
    };
    let saved = make_and_save(&app, &machine, &change).await?;
    drop((attaching, held));
    if share_changes && let Some(failure) = share_out(&app).await.remove(&id) {
        context.warn(format!("the settings are kept but do not act now: {}", failure.full_message()));
    }
    if machine.state.is_active()
        && limits_differ(&machine.spec, &saved.spec)
        && let Err(failure) = share_limits(&app, id).await
    {
        context.warn(format!("the limits are kept but do not act now: {}", failure.full_message()));
    }
    let changes = changes(&machine.spec, &saved.spec);
    let what = Happening {
        kind: "vm.updated",
        who: &context.who(),
        reason: words(&changes),
        before: Some(format!("generation {}", machine.generation.0)),
        after: Some(format!("generation {}", saved.generation.0)),
    };
    app.events.vm_changed(id, saved.name().as_str(), what, changes).await;
    // A disk that it has no more may have kept files of another one.
    kick_all(&app);
    Ok(None)
}

/// Makes new disks, has the guest follow where it runs, and writes the configuration.
async fn make_and_save(app: &Arc<App>, machine: &Machine, change: &Change) -> Result<Machine, Failure> {
    let make = change.make.clone();
    let made = blocking(move || make_disks(&make)).await?;
    let saved = plug_and_save(app, machine, change).await;
    if saved.is_err() {
        // Where nobody can tell whether the guest has them, they stay.
        let Some(kept) = hotplug::files_in_use(app, machine.id).await else { return saved };
        blocking(move || {
            // The worker tells real paths.
            let unused = |path: &PathBuf| !kept.iter().any(|kept| same_file(kept) == same_file(path));
            remove_disks(&made.into_iter().filter(unused).collect::<Vec<_>>());
            Ok(())
        })
        .await?;
    }
    saved
}

async fn plug_and_save(app: &Arc<App>, machine: &Machine, change: &Change) -> Result<Machine, Failure> {
    let mut machine = machine.clone();
    for step in hotplug::steps(&machine, &change.spec) {
        machine = hotplug::carry_out(app, &machine, step).await?;
    }
    if *machine.spec == change.spec {
        return Ok(machine);
    }
    let mut config = (*machine.config).clone();
    config.apply_spec(&change.spec).map_err(|error| Failure::invalid(error.to_string()))?;
    app.inventory.save(&machine, config).await
}

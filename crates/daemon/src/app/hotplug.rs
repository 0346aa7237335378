//! Hard disks on SCSI that come and go while the machine runs.
//!
//! The worker acts first, the configuration follows: what the worker has in a place that the configuration does not know came by
//! such a change whose daemon was stopped in between, and places that the worker says were vacated are. So what was interrupted is
//! settled by a look, before the next operation and at the daemon's start.

use super::App;
use super::drives::Places;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::Machine;
use backstay_api::{DriveKind, ProblemCode, VmUpdate};
use backstay_model::{DriveMedia, DriveSlot, DriveSpec, VmId, VmSpec, VmState};
use backstay_worker::control::{DiskStatus, Reply, Request};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a guest may take for a disk that comes or goes, and its chain to be opened or closed.
const PLUG: Duration = Duration::from_secs(90);

/// How long a worker may take to tell of its disks.
const LOOK: Duration = Duration::from_secs(10);

/// One step while the machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PlugStep {
    Comes(DriveSpec),
    Goes(DriveSlot),
}

/// Refuses drives of an update that need the machine off.
pub(super) fn check_drives(machine: &Machine, body: &VmUpdate) -> Result<(), Failure> {
    let name = machine.name();
    if machine.state != VmState::Running {
        return Err(Failure::precondition(format!(
            "'{name}' is {}: disks on SCSI are attached and detached while it is running or off, all other drives while \
             it is off",
            machine.state
        )));
    }
    let needs_off = |what: String| {
        Failure::precondition(format!(
            "'{name}' is running, and {what}: only hard disks on SCSI are attached and detached while it runs; turn it \
             off first"
        ))
    };
    for slot in &body.remove_drives {
        match machine.spec.drive(*slot) {
            Some(drive) if !matches!(drive.media, DriveMedia::Disk(_)) => {
                return Err(needs_off(format!("at {slot} is a CD/DVD drive")));
            }
            Some(_) if slot.scsi_controller().is_none() => {
                return Err(needs_off(format!("{slot} is not on SCSI")));
            }
            _ => {}
        }
    }
    let there = machine.spec.all_scsi_controllers();
    for request in &body.add_drives {
        if request.kind != DriveKind::Disk {
            return Err(needs_off("a CD/DVD drive is to be attached".into()));
        }
        match request.slot.map(|slot| (slot, slot.scsi_controller())) {
            Some((slot, None)) => return Err(needs_off(format!("{slot} is not on SCSI"))),
            Some((_, Some(controller))) if !there.contains(&controller) => {
                return Err(no_controller(machine, &format!("SCSI controller {controller}")));
            }
            None if there.is_empty() => return Err(no_controller(machine, "SCSI controller")),
            _ => {}
        }
    }
    Ok(())
}

fn no_controller(machine: &Machine, what: &str) -> Failure {
    Failure::precondition(format!(
        "'{}' runs without {what}: turn it off and attach the disk then; from then on it has the controller, and disks on \
         it come and go while it runs",
        machine.name()
    ))
}

/// Where a drive goes that names no place.
pub(super) fn places(machine: &Machine) -> Places {
    if machine.state.is_active() {
        Places::Scsi(machine.spec.all_scsi_controllers())
    } else {
        Places::All(machine.spec.hardware)
    }
}

/// What has to be done at a machine that runs, so that it has the drives of `wanted`.
pub(super) fn steps(machine: &Machine, wanted: &VmSpec) -> Vec<PlugStep> {
    if !machine.state.is_active() {
        return Vec::new();
    }
    let now = &machine.spec;
    let same = |a: &DriveSpec, b: &DriveSpec| a.slot == b.slot && a.media == b.media;
    let goes = now.drives.iter().filter(|drive| !wanted.drives.iter().any(|other| same(drive, other)));
    let comes = wanted.drives.iter().filter(|drive| !now.drives.iter().any(|other| same(drive, other)));
    goes.map(|drive| PlugStep::Goes(drive.slot)).chain(comes.cloned().map(PlugStep::Comes)).collect()
}

/// Carries one step out: at the guest, then in the configuration.
pub(super) async fn carry_out(app: &Arc<App>, machine: &Machine, step: PlugStep) -> Result<Machine, Failure> {
    let (request, slot, comes) = match &step {
        PlugStep::Comes(drive) => (Request::AddDisk { drive: drive.clone() }, drive.slot, true),
        PlugStep::Goes(slot) => (Request::RemoveDisk { slot: *slot }, *slot, false),
    };
    let asked = app.workers.call(machine.id, request, PLUG).await;
    if let Err(failure) = asked {
        let unsure = matches!(failure.code(), ProblemCode::Unavailable | ProblemCode::Timeout);
        // Its worker was lost: the next one knows how far it came.
        let came_about = unsure && look(app, machine.id).await.is_ok_and(|found| found.has(slot) == comes);
        if !came_about {
            let what = if comes { "attached" } else { "detached" };
            let words = format!("the disk at {slot} of '{}' was not {what}", machine.name());
            return Err(Failure::because(failure.code(), words, failure));
        }
    }
    let mut spec = (*machine.spec).clone();
    match step {
        PlugStep::Comes(drive) => spec.attach(drive),
        PlugStep::Goes(slot) => _ = spec.detach(slot),
    }
    let saved = save(app, machine, &spec).await;
    if saved.is_err() && comes {
        // Else the next look takes it over.
        let _ = app.workers.call(machine.id, Request::RemoveDisk { slot }, PLUG).await;
    }
    saved
}

/// Tops that the configuration names or the worker has open; none when it does not tell.
pub(super) async fn files_in_use(app: &App, id: VmId) -> Option<Vec<PathBuf>> {
    let machine = app.inventory.get(id).ok()?;
    let mut files: Vec<PathBuf> = machine.disks().into_iter().map(|(_, file)| file).collect();
    if machine.state.is_active() {
        let found = look(app, id).await.ok()?;
        files.extend(found.disks.into_iter().flat_map(|disk| disk.chain));
    }
    Some(files)
}

async fn save(app: &App, machine: &Machine, spec: &VmSpec) -> Result<Machine, Failure> {
    let mut config = (*machine.config).clone();
    config.apply_spec(spec).map_err(|error| Failure::invalid(error.to_string()))?;
    app.inventory.save(machine, config).await
}

/// What a worker says of its disks.
struct Found {
    disks: Vec<DiskStatus>,
    removed: Vec<DriveSlot>,
}

impl Found {
    fn has(&self, slot: DriveSlot) -> bool {
        self.disks.iter().any(|disk| disk.slot == slot)
    }
}

async fn look(app: &App, vm: VmId) -> Result<Found, Failure> {
    match app.workers.call(vm, Request::Disks, LOOK).await? {
        Reply::Disks { disks, removed } => Ok(Found { disks, removed }),
        other => {
            let words = format!("the worker answered a question about its disks with {other:?}");
            Err(Failure::new(ProblemCode::Internal, words))
        }
    }
}

/// What a former change that was interrupted means for the configuration; none if there was none.
fn settled(spec: &VmSpec, found: &Found) -> Option<VmSpec> {
    let mut now = spec.clone();
    for slot in found.removed.iter().filter(|slot| !found.has(**slot)) {
        if now.drive(*slot).is_some_and(|drive| matches!(drive.media, DriveMedia::Disk(_))) {
            now.detach(*slot);
        }
    }
    for disk in &found.disks {
        let top: Option<&PathBuf> = disk.chain.first();
        if let (Some(top), Some(_), None) = (top, disk.slot.scsi_controller(), now.drive(disk.slot)) {
            let drive = DriveSpec::new(disk.slot, DriveMedia::Disk(top.clone()));
            now.attach(DriveSpec { limit: disk.limit, ..drive });
        }
    }
    (now.drives != spec.drives).then_some(now)
}

/// Takes over what became of a change that was interrupted. The machine may be in any state; while nobody can tell, nothing
/// happens.
///
/// # Errors
/// The configuration cannot be written.
pub(super) async fn settle_drives(app: &Arc<App>, id: VmId) -> Result<Machine, Failure> {
    let machine = app.inventory.get(id)?;
    // While a checkpoint is pending, tops are not what the configuration says, and no disk can come or go.
    let settles =
        machine.state.is_active() && app.workers.is_connected(id) && machine.config.pending().is_none();
    if !settles {
        return Ok(machine);
    }
    let Ok(found) = look(app, id).await else { return Ok(machine) };
    let Some(spec) = settled(&machine.spec, &found) else { return Ok(machine) };
    let saved = save(app, &machine, &spec).await?;
    let changes = super::changes::changes(&machine.spec, &saved.spec);
    let what = Happening {
        kind: "vm.updated",
        who: "backstay",
        reason: "a disk had come or gone when Backstay was stopped".into(),
        before: Some(format!("generation {}", machine.generation.0)),
        after: Some(format!("generation {}", saved.generation.0)),
    };
    app.events.vm_changed(id, saved.name().as_str(), what, changes).await;
    Ok(saved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_model::IoLimit;

    fn spec(slots: &[&str]) -> VmSpec {
        let json = serde_json::json!({
            "id": uuid::Uuid::nil(), "name": "x", "memory_mib": 16, "bios_guid": uuid::Uuid::nil(), "machine_type": ""
        });
        let mut spec: VmSpec = serde_json::from_value(json).unwrap();
        for slot in slots {
            spec.attach(DriveSpec::new(slot.parse().unwrap(), DriveMedia::Disk(format!("/{slot}").into())));
        }
        spec
    }

    fn found(slots: &[&str], removed: &[&str]) -> Found {
        let disk = |slot: &&str| DiskStatus {
            slot: slot.parse().unwrap(),
            size: 512,
            chain: vec![format!("/{slot}").into()],
            reads: 0,
            writes: 0,
            read_bytes: 0,
            written_bytes: 0,
            limit: IoLimit { iops: Some(100), bytes_per_second: None },
        };
        Found {
            disks: slots.iter().map(disk).collect(),
            removed: removed.iter().map(|slot| slot.parse().unwrap()).collect(),
        }
    }

    fn slots(spec: &VmSpec) -> Vec<String> {
        spec.drives.iter().map(|drive| drive.slot.to_string()).collect()
    }

    #[test]
    fn what_was_interrupted_is_taken_over_and_nothing_else_is_touched() {
        let known = spec(&["ide:0:0", "scsi:0:1"]);
        assert!(settled(&known, &found(&["ide:0:0", "scsi:0:1"], &[])).is_none());
        // A worker of a former version, or one that does not have its disks open yet, says nothing of what was removed.
        assert!(settled(&known, &found(&["ide:0:0"], &[])).is_none());
        let gone = settled(&known, &found(&["ide:0:0"], &["scsi:0:1"])).unwrap();
        assert_eq!(slots(&gone), ["ide:0:0"]);
        assert!(gone.scsi_controllers.contains(&0), "the guest keeps it");
        let come = settled(&known, &found(&["ide:0:0", "scsi:0:1", "scsi:0:5"], &["scsi:0:4"])).unwrap();
        assert_eq!(slots(&come), ["ide:0:0", "scsi:0:1", "scsi:0:5"]);
        assert_eq!(come.drives[2].media, DriveMedia::Disk("/scsi:0:5".into()));
        assert_eq!(come.drives[2].limit.iops, Some(100));
        let back = settled(&known, &found(&["ide:0:0", "scsi:0:1"], &["scsi:0:1"]));
        assert!(back.is_none(), "one that came back");
    }
}

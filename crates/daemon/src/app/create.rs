//! Making a machine: everything is checked first, and a failure leaves nothing behind.

use super::capacity::check_count;
use super::controllers::check_places;
use super::drives::{DiskToMake, Places, check_files, nics, place};
use super::{Accepted, App, Call, Done};
use crate::disks;
use crate::durable;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{blocking, read_machine, set_generation, set_home};
use crate::layout::Layout;
use crate::tasks::{Hold, TaskContext, TaskSpec};
use backstay_api::{Compat, ObjectKind, ObjectRef, Plan, ProblemCode, VmCreate};
use backstay_hyperv::{VmConfig, filetime_from_unix_ms};
use backstay_model::{BootDevice, CpuControl, Generation, VmId, VmName, VmSpec};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// What will be made; nothing is left to decide.
#[derive(Debug)]
struct Creation {
    spec: VmSpec,
    make: Vec<DiskToMake>,
    layout: Layout,
    compat: Option<Compat>,
    warnings: Vec<String>,
}

/// Makes a machine.
///
/// # Errors
/// `invalid`, `exists`, `not-found`, `in-use`, `damaged`.
pub async fn create_vm(app: &Arc<App>, body: VmCreate, call: &Call) -> Result<Accepted, Failure> {
    let creation = decide(app, body).await?;
    let name = creation.spec.name.to_string();
    let task = TaskSpec {
        operation: "vm.create",
        object: ObjectRef { kind: ObjectKind::Vm, id: Some(creation.spec.id.0), name: name.clone() },
        holds: vec![Hold::Vm(creation.spec.id), Hold::Name(name)],
        cancellable: false,
        yields: false,
    };
    let plan = describe(&creation);
    app.accept(call, plan, task, move |app, context| run(app, context, creation)).await
}

async fn decide(app: &App, body: VmCreate) -> Result<Creation, Failure> {
    let name = VmName::new(body.name).map_err(|error| Failure::invalid(error.to_string()))?;
    app.inventory.name_is_free(name.as_str(), None)?;
    let id = body.id.unwrap_or_else(|| VmId(Uuid::new_v4()));
    let layout = Layout::new(&app.config.state_dir);
    id_is_free(app, id, &layout)?;
    let placed = place(&body.drives, &[], &Places::All(body.hardware), &layout, &name)?;
    let normal = CpuControl::default();
    let spec = VmSpec {
        id,
        name,
        notes: body.notes,
        hardware: body.hardware,
        memory_mib: body.memory_mib,
        cpu: CpuControl {
            count: body.cpus.unwrap_or(normal.count),
            reserve_percent: body.cpu_reserve.unwrap_or(normal.reserve_percent),
            limit_percent: body.cpu_limit.unwrap_or(normal.limit_percent),
            weight: body.cpu_weight.unwrap_or(normal.weight),
        },
        drives: placed.drives,
        // So that disks can be added while it runs.
        scsi_controllers: BTreeSet::from([0]),
        nics: nics(&body.nics),
        boot_order: body.boot_order.unwrap_or_else(|| {
            vec![BootDevice::Optical, BootDevice::HardDrive, BootDevice::Network, BootDevice::Floppy]
        }),
        bios_guid: Uuid::new_v4(),
        machine_type: match body.machine_type {
            Some(machine_type) => machine_type,
            None => app.host.default_machine_type(body.hardware).await?,
        },
        accel: body.accel,
        recovery: body.recovery,
        host_start: body.host_start,
        host_stop: body.host_stop,
        start_delay_s: body.start_delay_s,
        start_order: body.start_order,
    };
    check_spec(&spec)?;
    check_count(app, &spec.name, &spec.cpu)?;
    let mut warnings = check_files(app, id, &spec.drives, &placed.make, body.compat).await?;
    warnings.extend(check_places(&spec));
    Ok(Creation { spec, make: placed.make, layout, compat: body.compat, warnings })
}

pub(super) fn id_is_free(app: &App, id: VmId, layout: &Layout) -> Result<(), Failure> {
    let file = layout.vm_config(id);
    if let Ok(other) = app.inventory.get(id) {
        return Err(Failure::new(
            ProblemCode::Exists,
            format!("the GUID {id} belongs to '{}': leave id out to get a new one", other.name()),
        ));
    }
    if file.exists() {
        return Err(Failure::new(
            ProblemCode::Exists,
            format!("{} exists already: leave id out to get a new GUID", file.display()),
        ));
    }
    Ok(())
}

/// The rules that hold whatever the host looks like.
pub(super) fn check_spec(spec: &VmSpec) -> Result<(), Failure> {
    spec.validate().map_err(|error| Failure::invalid(crate::failure::chain(&error)))
}

fn describe(creation: &Creation) -> Plan {
    let mut plan = Plan::new("vm.create");
    for disk in &creation.make {
        let kind = format!("{:?} disk of {} bytes", disk.disk_type, disk.size).to_lowercase();
        plan.step("create", disk.path.display(), kind);
    }
    let file = creation.layout.vm_config(creation.spec.id);
    plan.step(
        "write",
        file.display(),
        format!(
            "configuration of '{}': {} MiB of memory, {} processors, {}",
            creation.spec.name, creation.spec.memory_mib, creation.spec.cpu.count, creation.spec.machine_type
        ),
    );
    for drive in &creation.spec.drives {
        plan.step("attach", drive.slot, super::views::media_words(&drive.media));
    }
    plan.warnings.clone_from(&creation.warnings);
    plan
}

async fn run(app: Arc<App>, context: TaskContext, mut creation: Creation) -> Done {
    // What was checked before this task began may have been taken by another one.
    let attaching = app.attaching.lock().await;
    app.inventory.name_is_free(creation.spec.name.as_str(), None)?;
    id_is_free(&app, creation.spec.id, &creation.layout)?;
    let (spec, make) = (&creation.spec, &creation.make);
    let mut warnings = check_files(&app, spec.id, &spec.drives, make, creation.compat).await?;
    warnings.extend(check_places(spec));
    creation.warnings = warnings;
    for warning in &creation.warnings {
        context.warn(warning.clone());
    }
    let (id, name) = (creation.spec.id, creation.spec.name.to_string());
    let told = context.clone();
    let machine = blocking(move || {
        told.progress(10, "making disks");
        let made = make_disks(&creation.make)?;
        write_config(&creation).inspect_err(|_| remove_disks(&made))?;
        let file = creation.layout.vm_config(creation.spec.id);
        read_machine(&creation.layout, &file)
            .map_err(|reason| Failure::new(ProblemCode::Internal, format!("{}: {reason}", file.display())))
    })
    .await?;
    let file = machine.config_file.display().to_string();
    app.inventory.put(machine);
    drop(attaching);
    let what = Happening {
        kind: "vm.created",
        who: &context.who(),
        reason: "requested".into(),
        before: None,
        after: Some(file),
    };
    app.events.vm(id, &name, what).await;
    Ok(Some(serde_json::json!({ "id": id, "name": name })))
}

/// Makes disks and tells which. On failure none of them is left, and no file that was there before is touched.
pub(super) fn make_disks(wanted: &[DiskToMake]) -> Result<Vec<PathBuf>, Failure> {
    let mut made = Vec::new();
    for disk in wanted {
        let done = match disk.path.parent() {
            Some(folder) => make_folder(folder),
            None => Ok(()),
        };
        // The engine refuses a name that is taken, so what it made is ours.
        match done.and_then(|()| disks::create(&disk.path, disk.size, disk.disk_type)) {
            Ok(()) => made.push(disk.path.clone()),
            Err(failure) => {
                remove_disks(&made);
                return Err(failure);
            }
        }
    }
    Ok(made)
}

/// Removes disks that were just made.
pub(super) fn remove_disks(made: &[PathBuf]) {
    for path in made {
        if let Err(error) = durable::remove(path) {
            tracing::warn!(path = %path.display(), %error, "a disk that was just made could not be removed again");
        }
    }
}

pub(super) fn make_folder(folder: &Path) -> Result<(), Failure> {
    durable::create_folder(folder).map_err(|e| Failure::file("making the folder", folder, e))
}

fn write_config(creation: &Creation) -> Result<(), Failure> {
    let created = filetime_from_unix_ms(Timestamp::now().as_millisecond());
    let mut config =
        VmConfig::new(&creation.spec, created).map_err(|error| Failure::invalid(error.to_string()))?;
    set_generation(&mut config, Generation(1));
    set_home(&mut config, creation.layout.root());
    make_folder(&creation.layout.machines())?;
    let file = creation.layout.vm_config(creation.spec.id);
    durable::replace(&file, &config.to_bytes()).map_err(|e| Failure::file("writing", &file, e))
}

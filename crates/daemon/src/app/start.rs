//! Powering a machine on.

use super::capacity::{obstacles, reserve};
use super::host_actions::forget_stop;
use super::processors::weight_of;
use super::restorable::{Look, saved_restorable};
use super::settle::settle_before;
use super::usage::{chain_of, usage};
use super::{Accepted, App, Call, Done, check_verb, vm_task};
use crate::disks::Chain;
use crate::durable;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use crate::tasks::{Hold, TaskContext, store_failure};
use crate::workers::supervise;
use backstay_api::{Blocker, Plan, ProblemCode, VmStart};
use backstay_model::{DriveMedia, VmId, VmState, VmVerb};
use backstay_qemu::version::check_machine;
use backstay_worker::control::{LaunchRecord, RestoreFrom};
use backstay_worker::guard::Volume;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long QEMU may take until the guest runs; a large memory state is loaded meanwhile.
const START: Duration = Duration::from_mins(10);

/// How a machine begins.
#[derive(Clone, Debug, Default)]
pub(super) struct Beginning {
    /// Stay stopped.
    pub(super) paused: bool,
    /// Continue from this state instead of booting.
    pub(super) restore: Option<RestoreFrom>,
}

/// Powers a machine on.
///
/// # Errors
/// `not-found`, `precondition`, `damaged`, `in-use`, `busy`.
pub async fn start_vm(app: &Arc<App>, vm: &str, body: VmStart, call: &Call) -> Result<Accepted, Failure> {
    let id = app.inventory.find(vm)?.id;
    // A merge has its files open.
    let _way = app.tasks.make_way(&[Hold::Vm(id)]).await;
    let machine = app.inventory.get(id)?;
    let mut plan = Plan::new("vm.start");
    if check_verb(&machine, VmVerb::Start)? {
        // Where a disk is that was being moved is settled by the task, which looks again.
        if machine.config.moving().is_none() {
            plan.warnings = preflight(app, &machine).await?;
        }
        if machine.state == VmState::Saved {
            let from = saved_restorable(app, &machine, Look::Quick).await?;
            plan.step("load", from.memory_file.display(), "the saved memory; it goes when the guest runs");
        }
        plan.step(
            "start",
            machine.name(),
            format!("a worker in {}", app.workers.run_folder(machine.id).display()),
        );
    }
    let beginning = Beginning { paused: body.paused, restore: None };
    let spec = vm_task("vm.start", &machine);
    app.accept(call, plan, spec, move |app, context| run(app, context, id, beginning)).await
}

async fn run(app: Arc<App>, context: TaskContext, id: VmId, beginning: Beginning) -> Done {
    let machine = settle_before(&app, &context, id).await?;
    if !check_verb(&machine, VmVerb::Start)? {
        context.warn(format!("'{}' is {} already", machine.name(), machine.state));
        return Ok(None);
    }
    context.progress(5, "checking disks");
    for warning in preflight(&app, &machine).await? {
        context.warn(warning);
    }
    let mut beginning = beginning;
    if machine.state == VmState::Saved {
        context.progress(8, "checking the saved memory");
        beginning.restore = Some(saved_restorable(&app, &machine, Look::Whole).await?);
    }
    let machine = pin_machine_type(&app, machine).await?;
    launch(&app, &context, &machine, beginning).await?;
    Ok(None)
}

/// Checks everything that a start needs. All that is wrong is told at once. Returns warnings.
pub(super) async fn preflight(app: &Arc<App>, machine: &Machine) -> Result<Vec<String>, Failure> {
    let (mut warnings, mut blockers) = check_drives(app, machine).await?;
    blockers.extend(super::strangers::blockers(app, machine).await?);
    blockers.extend(obstacles(app, machine).await?);
    let choice = app.host.accelerator(machine.spec.accel).await?;
    if choice.warning {
        warnings.push(format!("the machine will be slow: {}", choice.reason));
    }
    blockers.extend(full_volume(app, machine).await);
    let version = app.host.qemu_version().await?;
    if let Err(error) = check_machine(version, &machine.spec.machine_type) {
        blockers.push(Blocker { code: ProblemCode::Precondition, detail: error.to_string(), cure: None });
    }
    match blockers.first() {
        None => Ok(warnings),
        Some(first) => {
            let code = first.code;
            Err(Failure::new(code, format!("'{}' cannot be started", machine.name())).with_blockers(blockers))
        }
    }
}

/// A volume below its reserve: the guest would be paused at once.
async fn full_volume(app: &App, machine: &Machine) -> Option<Blocker> {
    let mut folders = BTreeSet::new();
    for (_, path) in machine.disks() {
        // One that cannot be opened is told elsewhere.
        let grows = chain_of(app, &path).await.is_ok_and(|chain| grows(&chain, &path));
        folders.extend(path.parent().filter(|_| grows).map(Path::to_path_buf));
    }
    let guard = app.config.guard;
    let look = move || {
        Ok(folders.iter().find_map(|folder| Volume::of(folder).ok().and_then(|v| v.shortage(&guard))))
    };
    let detail = blocking(look).await.ok().flatten()?;
    let cure = Some("or lower the reserve in [guard] of the settings file".to_owned());
    Some(Blocker { code: ProblemCode::NoSpace, detail, cure })
}

/// Whether a machine is not started only until others give something back: memory, processors, space on a volume.
pub(super) async fn lacks_room(app: &Arc<App>, vm: VmId) -> bool {
    let Ok(machine) = app.inventory.get(vm) else { return false };
    let obstacles = obstacles(app, &machine).await.unwrap_or_default();
    !obstacles.is_empty() || full_volume(app, &machine).await.is_some()
}

/// Whether writes of the guest take more space, as the guard sees it: not those to a file of fixed size that has all of it.
fn grows(chain: &Chain, top: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let flat = chain.layers.first().is_some_and(|layer| matches!(layer.kind.as_str(), "fixed" | "raw"));
    !flat || std::fs::metadata(top).map_or(true, |file| file.blocks().saturating_mul(512) < file.len())
}

/// Whether the files are there, whole, and nobody else's. Returns warnings and what stands in the way.
pub(super) async fn check_drives(
    app: &App,
    machine: &Machine,
) -> Result<(Vec<String>, Vec<Blocker>), Failure> {
    let usage = usage(app, None).await?;
    let mut warnings = Vec::new();
    let mut blockers = Vec::new();
    for drive in &machine.spec.drives {
        let checked = match &drive.media {
            DriveMedia::EmptyOptical => Ok(()),
            DriveMedia::Iso(path) => {
                std::fs::File::open(path).map(drop).map_err(|e| Failure::file("reading", path, e))
            }
            DriveMedia::Device(_) => {
                let seen = super::devices::check_device(app, machine.id, drive, &machine.spec.drives).await;
                seen.map(|(_, told)| warnings.extend(told))
            }
            DriveMedia::Disk(path) => chain_of(app, path).await.and_then(|chain| {
                match usage.conflict(machine.id, &chain.files(), None) {
                    Some(refusal) => Err(refusal),
                    None => {
                        // Of a saved machine that is no news.
                        let news = |warning: &String| {
                            machine.state != VmState::Saved
                                || !warning.contains("was saved while it used this disk")
                        };
                        warnings.extend(chain.warnings.into_iter().filter(news));
                        Ok(())
                    }
                }
            }),
        };
        if let Err(failure) = checked {
            blockers.push(Blocker {
                code: failure.code(),
                detail: format!("{}: {}", drive.slot, failure.full_message()),
                cure: None,
            });
        }
    }
    Ok((warnings, blockers))
}

/// A configuration from Hyper-V names no QEMU machine type: the newest one is chosen at its first start and kept.
async fn pin_machine_type(app: &App, machine: Machine) -> Result<Machine, Failure> {
    if !machine.spec.machine_type.is_empty() {
        return Ok(machine);
    }
    let mut spec = (*machine.spec).clone();
    spec.machine_type = app.host.default_machine_type(spec.hardware).await?;
    let mut config = (*machine.config).clone();
    config.apply_spec(&spec).map_err(|error| Failure::invalid(error.to_string()))?;
    app.inventory.save(&machine, config).await
}

/// Starts a worker and waits until the guest runs (or is paused, as asked).
pub(super) async fn launch(
    app: &Arc<App>,
    context: &TaskContext,
    machine: &Machine,
    beginning: Beginning,
) -> Result<(), Failure> {
    let id = machine.id;
    if app.tasks.stops_guests() {
        let words =
            format!("'{}' cannot be started: all machines are being stopped with the host", machine.name());
        return Err(Failure::precondition(words));
    }
    // Until the machine counts as one that is on, which is long before this ends.
    let _held = reserve(app, &machine.spec).await?;
    let before = machine.state;
    let folder = app.workers.run_folder(id);
    blocking(move || durable::create_folder(&folder).map_err(|e| Failure::file("making", &folder, e)))
        .await?;
    let user = app.host.qemu_user();
    let ids = app.workers.user_for(id, user).await?;
    let record = LaunchRecord {
        version: 1,
        spec: (*machine.spec).clone(),
        restore: beginning.restore,
        start_paused: beginning.paused,
        avoid_background: false,
        qemu: app.host.qemu().into(),
        qemu_uid_gid: ids,
        qemu_groups: if ids.is_some() { user.groups() } else { Vec::new() },
        sandbox: app.host.sandbox()?,
        guard: app.config.guard,
        disk_cache: app.config.disks.cache,
        processors: app.processors.settings().clone(),
        cpu_weight: weight_of(app, id),
    };
    context.progress(20, "starting QEMU");
    if let Err(error) = app.store.set_boot(id, app.host.boot_id().into()).await {
        context.warn(store_failure(error).full_message());
    }
    app.inventory.set_state(id, VmState::Starting, None);
    if let Err(failure) = app.workers.launch(id, record).await {
        app.inventory.set_state(id, if before.is_active() { VmState::Off } else { before }, None);
        let _ = app.store.set_boot(id, String::new()).await;
        return Err(failure);
    }
    supervise(app, id, true);
    match app.wait_state(id, START, |state| state != VmState::Starting).await? {
        (VmState::Off | VmState::Failed | VmState::Saved, reason) => {
            let reason = match reason {
                Some(reason) => reason,
                None => last_state_reason(app, id).await,
            };
            Err(Failure::new(
                ProblemCode::Unavailable,
                format!("'{}' did not start: {reason}", machine.name()),
            ))
        }
        _ => {
            // Not before: one that did not start with this boot starts with the next.
            forget_stop(app, &app.inventory.get(id)?).await;
            Ok(())
        }
    }
}

/// Why the machine changed its state last, from the history.
async fn last_state_reason(app: &App, id: VmId) -> String {
    let events = app.events.list(Some(id), None, None, 20).await.unwrap_or_default();
    let last = events.into_iter().rev().find(|e| e.kind == "vm.state" || e.kind == "vm.qemu-died");
    last.map_or_else(
        || format!("see worker.log in {}", app.workers.run_folder(id).display()),
        |event| event.reason,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_api::DiskLayer;

    #[test]
    fn a_disk_that_has_all_its_space_needs_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.vhd");
        let chain = |kind: &str| Chain {
            size: 1 << 20,
            layers: vec![DiskLayer {
                path: path.clone(),
                kind: kind.into(),
                virtual_size: 1 << 20,
                file_size: 1 << 20,
            }],
            top_blocks: 0,
            warnings: Vec::new(),
        };
        std::fs::write(&path, vec![1_u8; 1 << 20]).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
        assert!(!grows(&chain("fixed"), &path) && !grows(&chain("raw"), &path));
        assert!(grows(&chain("dynamic"), &path) && grows(&chain("differencing"), &path));
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        assert!(grows(&chain("fixed"), &path), "a sparse one");
    }
}

//! Making a machine from another one: from one that is off, from a template, or from a checkpoint, whose machine may run.
//! The configuration is written last; a failure, or a daemon that dies, leaves nothing behind.

use super::create::{check_spec, id_is_free, make_folder, remove_disks};
use super::drives::{absolute, new_mac};
use super::settle::settle_before;
use super::usage::chain_of;
use super::{Accepted, App, Call, Done};
use crate::disks;
use crate::durable;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking, read_config, read_machine, set_generation, set_home};
use crate::layout::{Layout, extension_like};
use crate::store::TaskNote;
use crate::tasks::{Hold, TaskContext, TaskSpec, store_failure};
use backstay_api::{Blocker, ObjectKind, ObjectRef, Plan, ProblemCode, VmClone};
use backstay_disk::{ConvertTo, Identity};
use backstay_hyperv::{VmConfig, filetime_from_unix_ms};
use backstay_model::{CheckpointId, DriveMedia, DriveSlot, Generation, NicId, VmId, VmName, VmSpec, VmState};
use jiff::Timestamp;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use uuid::Uuid;

/// A disk of the new machine.
#[derive(Clone, Debug)]
struct NewDisk {
    slot: DriveSlot,
    from: PathBuf,
    to: PathBuf,
    size: u64,
    /// None: a differencing disk on `from`.
    copy: Option<ConvertTo>,
}

/// What will be made; nothing is left to decide.
#[derive(Debug)]
struct Cloning {
    source: VmId,
    /// In words: `'web'` or `'web' at checkpoint 'x'`.
    origin: String,
    spec: VmSpec,
    config: VmConfig,
    layout: Layout,
    disks: Vec<NewDisk>,
    linked: bool,
    warnings: Vec<String>,
}

/// Makes a machine from another one.
///
/// # Errors
/// `not-found`, `invalid`, `exists`, `precondition`, `in-use`, `damaged`, `no-space`, `cancelled`, `busy`.
pub async fn clone_vm(app: &Arc<App>, vm: &str, body: VmClone, call: &Call) -> Result<Accepted, Failure> {
    let source = app.inventory.find(vm)?.id;
    // A merge has its files open.
    let _way = app.tasks.make_way(&[Hold::Vm(source)]).await;
    let machine = app.inventory.get(source)?;
    let id = VmId(Uuid::new_v4());
    let cloning = decide(app, &machine, &body, id).await?;
    let name = cloning.spec.name.to_string();
    let mut holds = vec![Hold::Vm(id), Hold::Name(name.clone())];
    if needs_source_off(&machine, &body) {
        holds.push(Hold::Vm(machine.id));
    }
    if body.checkpoint.is_some() {
        // What it is made from is not merged away meanwhile.
        holds.push(Hold::Files(machine.id));
    }
    let task = TaskSpec {
        operation: "vm.clone",
        object: ObjectRef { kind: ObjectKind::Vm, id: Some(id.0), name },
        holds,
        cancellable: true,
        yields: false,
    };
    let plan = describe(&cloning);
    app.accept(call, plan, task, move |app, context| run(app, context, source, body, id)).await
}

/// A template and a checkpoint do not change, whatever their machine does.
fn needs_source_off(machine: &Machine, body: &VmClone) -> bool {
    body.checkpoint.is_none() && !machine.is_template()
}

/// Ends what a former daemon left of a clone that it did not finish.
pub(super) async fn clear_up(note: Option<&TaskNote>) {
    let Some(TaskNote::Clone { config, files, next }) = note else { return };
    let (config, mut files, next) = (config.clone(), files.clone(), next.clone());
    let cleared = blocking(move || {
        if !config.exists() {
            // The daemon may have died just after it got its name.
            files.extend(next.filter(|(path, id)| is_disk(path, *id)).map(|(path, _)| path));
            remove_disks(&files);
        }
        Ok(())
    });
    if let Err(failure) = cleared.await {
        tracing::warn!(error = failure.full_message(), "what is left of a clone could not be removed");
    }
}

/// Whether it is the disk with that identity, and no other file that took its name.
fn is_disk(path: &std::path::Path, id: Uuid) -> bool {
    disks::kinship(path).ok().flatten().is_some_and(|kin| kin.identity == id)
}

async fn decide(app: &App, machine: &Machine, body: &VmClone, id: VmId) -> Result<Cloning, Failure> {
    let name = VmName::new(body.name.clone()).map_err(|error| Failure::invalid(error.to_string()))?;
    app.inventory.name_is_free(name.as_str(), None)?;
    let layout = match &body.folder {
        Some(folder) => Layout::new(absolute(folder)?),
        None => Layout::new(&app.config.state_dir),
    };
    id_is_free(app, id, &layout)?;
    let (origin, from) = origin(machine, body).await?;
    let created = filetime_from_unix_ms(Timestamp::now().as_millisecond());
    let mut config = from.for_clone(Uuid::new_v4(), created);
    let (mut spec, _) = from.spec();
    spec.id = id;
    spec.name = name;
    spec.bios_guid = Uuid::new_v4();
    for nic in &mut spec.nics {
        nic.id = NicId(Uuid::new_v4());
        nic.mac = new_mac();
    }
    let disks = decide_disks(app, &mut spec, &layout, body.linked).await?;
    check_spec(&spec)?;
    config.apply_spec(&spec).map_err(|error| Failure::invalid(error.to_string()))?;
    set_generation(&mut config, Generation(1));
    set_home(&mut config, layout.root());
    let mut warnings = Vec::new();
    let remembers = body.checkpoint.and_then(|id| machine.checkpoints.get(id)).is_some_and(|c| c.has_memory);
    if remembers {
        warnings.push(
            "the checkpoint's memory is not cloned: the new machine boots from its disks as after a power failure"
                .into(),
        );
    }
    Ok(Cloning { source: machine.id, origin, spec, config, layout, disks, linked: body.linked, warnings })
}

/// Where the clone comes from, in words, and the configuration there with files that exist.
async fn origin(machine: &Machine, body: &VmClone) -> Result<(String, VmConfig), Failure> {
    let name = machine.name();
    if let Some(wanted) = body.checkpoint {
        let config = checkpoint_config(machine, wanted).await?;
        let checkpoint = machine.checkpoints.get(wanted).map(|c| c.name.clone()).unwrap_or_default();
        return Ok((format!("'{name}' at checkpoint '{checkpoint}'"), config));
    }
    if !matches!(machine.state, VmState::Off | VmState::Failed) {
        return Err(Failure::precondition(format!(
            "'{name}' is {}: clone is possible while it is off, or from one of its checkpoints (--checkpoint)",
            machine.state
        )));
    }
    if body.linked && !machine.is_template() {
        return Err(Failure::precondition(format!(
            "'{name}' is no template: a linked clone needs disks that never change. Make it a template \
             (`backstay vm template {name}`), or take a checkpoint and clone that (--checkpoint)"
        )));
    }
    Ok((format!("'{name}'"), (*machine.config).clone()))
}

async fn checkpoint_config(machine: &Machine, id: CheckpointId) -> Result<VmConfig, Failure> {
    let Some(checkpoint) = machine.checkpoints.get(id) else {
        return Err(Failure::not_found(format!(
            "'{name}' has no checkpoint {id}: `backstay checkpoint list {name}` shows all",
            name = machine.name()
        )));
    };
    let file = machine.layout.checkpoint_config(id);
    let mut config = blocking(move || {
        read_config(&file)
            .map_err(|reason| Failure::new(ProblemCode::Damaged, format!("{}: {reason}", file.display())))
    })
    .await?;
    for disk in &checkpoint.disks {
        config.set_drive_path(disk.slot, &disk.file).map_err(|error| Failure::invalid(error.to_string()))?;
    }
    Ok(config)
}

/// Decides about every disk and points the specification to the new files.
async fn decide_disks(
    app: &App,
    spec: &mut VmSpec,
    layout: &Layout,
    linked: bool,
) -> Result<Vec<NewDisk>, Failure> {
    let mut new: Vec<NewDisk> = Vec::new();
    let mut blockers = super::devices::refusals(
        spec,
        "detach it first, or copy it into a VHDX with `backstay disk convert` for the clone",
    );
    let name = spec.name.clone();
    for drive in &mut spec.drives {
        let DriveMedia::Disk(path) = &mut drive.media else { continue };
        match decide_disk(app, drive.slot, path.clone(), linked).await {
            Ok(mut disk) => {
                let taken = |to: &std::path::Path| to.exists() || new.iter().any(|other| other.to == to);
                let extension = match disk.copy {
                    Some(ConvertTo::Raw) => path
                        .extension()
                        .map_or_else(|| "img".into(), |text| text.to_string_lossy().into_owned()),
                    // A copy is like its original; a child has to be.
                    _ => extension_like(path).to_owned(),
                };
                disk.to = layout.new_disk(&name, &extension, taken);
                path.clone_from(&disk.to);
                new.push(disk);
            }
            Err(failure) => blockers.push(Blocker {
                code: failure.code(),
                detail: format!("{}: {}", drive.slot, failure.full_message()),
                cure: None,
            }),
        }
    }
    match blockers.first() {
        None => Ok(new),
        Some(first) => {
            let code = first.code;
            Err(Failure::new(code, "the machine cannot be cloned").with_blockers(blockers))
        }
    }
}

async fn decide_disk(app: &App, slot: DriveSlot, from: PathBuf, linked: bool) -> Result<NewDisk, Failure> {
    let chain = chain_of(app, &from).await?;
    let is_raw = chain.layers.last().is_some_and(|layer| layer.kind == "raw");
    if linked && chain.layers.len() == 1 && is_raw {
        return Err(Failure::precondition(format!(
            "{} is a raw disk, which cannot be the parent of a differencing disk: make a full clone, or convert it to VHDX \
             with `backstay disk convert`",
            from.display()
        )));
    }
    let copy = if linked {
        None
    } else {
        let last = chain.files().pop().unwrap_or_else(|| from.clone());
        Some(blocking(move || disks::form_of(&last)).await?)
    };
    Ok(NewDisk { slot, from, to: PathBuf::new(), size: chain.size, copy })
}

fn describe(cloning: &Cloning) -> Plan {
    let mut plan = Plan::new("vm.clone");
    for disk in &cloning.disks {
        let how = match disk.copy {
            None => format!("{}, an empty differencing disk on {}", disk.slot, disk.from.display()),
            Some(_) => format!("{}, a copy of {} ({} bytes)", disk.slot, disk.from.display(), disk.size),
        };
        plan.step("create", disk.to.display(), how);
    }
    let file = cloning.layout.vm_config(cloning.spec.id);
    let kind = if cloning.linked { "a linked clone" } else { "a clone" };
    plan.step(
        "write",
        file.display(),
        format!("configuration of '{}', {kind} of {}", cloning.spec.name, cloning.origin),
    );
    plan.warnings.clone_from(&cloning.warnings);
    plan
}

async fn run(app: Arc<App>, context: TaskContext, source: VmId, body: VmClone, id: VmId) -> Done {
    let machine = app.inventory.get(source)?;
    let machine = if needs_source_off(&machine, &body) {
        settle_before(&app, &context, source).await?
    } else {
        machine
    };
    if !body.linked {
        let cloning = decide(&app, &machine, &body, id).await?;
        return make(&app, &context, cloning).await;
    }
    // A template can stop being one, and a checkpoint go, until the differencing disk is known.
    let attaching = app.attaching.lock().await;
    let machine = app.inventory.get(source)?;
    let cloning = decide(&app, &machine, &body, id).await?;
    let done = make(&app, &context, cloning).await;
    drop(attaching);
    done
}

async fn make(app: &Arc<App>, context: &TaskContext, cloning: Cloning) -> Done {
    for warning in &cloning.warnings {
        context.warn(warning.clone());
    }
    let mut made = Vec::new();
    let machine = match fill(app, context, &cloning, &mut made).await {
        Ok(machine) => machine,
        Err(failure) => {
            let layout = cloning.layout.clone();
            blocking(move || {
                remove_disks(&made);
                for folder in [layout.disks(), layout.machines(), layout.root().into()] {
                    durable::remove_empty_folder(&folder);
                }
                Ok(())
            })
            .await?;
            return Err(failure);
        }
    };
    let name = machine.name().to_string();
    let (id, file) = (machine.id, machine.config_file.display().to_string());
    app.inventory.put(machine);
    let kind = if cloning.linked { "linked clone" } else { "full clone" };
    let what = Happening {
        kind: "vm.cloned",
        who: &context.who(),
        reason: format!("{kind} of {} ({})", cloning.origin, cloning.source),
        before: None,
        after: Some(file),
    };
    app.events.vm(id, &name, what).await;
    let disks: Vec<_> = cloning.disks.iter().map(|disk| &disk.to).collect();
    Ok(Some(serde_json::json!({ "id": id, "name": name, "linked": cloning.linked, "disks": disks })))
}

/// Makes everything; `made` tells which disks there are when it fails.
async fn fill(
    app: &Arc<App>,
    context: &TaskContext,
    cloning: &Cloning,
    made: &mut Vec<PathBuf>,
) -> Result<Machine, Failure> {
    let config_file = cloning.layout.vm_config(cloning.spec.id);
    let folders = [cloning.layout.disks(), cloning.layout.machines()];
    blocking(move || folders.iter().try_for_each(|folder| make_folder(folder))).await?;
    let total: u64 = cloning.disks.iter().map(|disk| disk.size).sum::<u64>().max(1);
    let mut before = 0;
    for disk in &cloning.disks {
        let identity = Identity::fresh();
        let next = Some((disk.to.clone(), identity.unique_id));
        context.note(&TaskNote::Clone { config: config_file.clone(), files: made.clone(), next }).await;
        make_disk(context, disk, identity, (before, total)).await?;
        before += disk.size;
        made.push(disk.to.clone());
    }
    context.note(&TaskNote::Clone { config: config_file.clone(), files: made.clone(), next: None }).await;
    context.cancellable(false)?;
    let root = cloning.layout.root().to_path_buf();
    let registered =
        root != app.config.state_dir && !app.store.folders().await.map_err(store_failure)?.contains(&root);
    if registered {
        app.store.add_folder(&root).await.map_err(store_failure)?;
    }
    let (layout, bytes) = (cloning.layout.clone(), cloning.config.to_bytes());
    let written = blocking(move || {
        durable::replace(&config_file, &bytes).map_err(|e| Failure::file("writing", &config_file, e))?;
        read_machine(&layout, &config_file).map_err(|reason| {
            Failure::new(ProblemCode::Internal, format!("{}: {reason}", config_file.display()))
        })
    })
    .await;
    if written.is_err() && registered {
        let _ = app.store.remove_folder(&root).await;
    }
    written
}

async fn make_disk(
    context: &TaskContext,
    disk: &NewDisk,
    identity: Identity,
    (before, total): (u64, u64),
) -> Result<(), Failure> {
    context.progress(percent(before, total), &format!("making the disk at {}", disk.slot));
    let Some(form) = disk.copy else {
        let (from, to) = (disk.from.clone(), disk.to.clone());
        return blocking(move || disks::create_child_as(&from, &to, identity)).await;
    };
    let cancel = Arc::new(AtomicBool::new(false));
    let copying = {
        let (disk, cancel, context) = (disk.clone(), Arc::clone(&cancel), context.clone());
        let words = format!("copying the disk at {}", disk.slot);
        blocking(move || {
            let progress = |done| context.progress(percent(before + done, total), &words);
            disks::copy(&disk.from, &disk.to, form, identity, &progress, &cancel)
        })
    };
    tokio::pin!(copying);
    tokio::select! {
        done = &mut copying => done,
        () = context.cancelled() => {
            cancel.store(true, Ordering::Relaxed);
            copying.await
        }
    }
}

fn percent(done: u64, of: u64) -> u8 {
    u8::try_from(done.saturating_mul(94) / of).unwrap_or(94).saturating_add(2)
}

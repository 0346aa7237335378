//! Writing one checkpoint as a machine of its own: a folder in the usual layout, with a configuration, whole disks instead of
//! chains, and the memory if it has one. The machine keeps its GUID and its name: registered on another host it is the same
//! machine as it was at the checkpoint; on this host it can be registered once the original is gone.

use super::apply_checks::{Checked, Memory, check};
use super::deleting::find_checkpoint;
use super::{Accepted, App, Call, Done, vm_task};
use crate::disks;
use crate::durable;
use crate::events::Happening;
use crate::failure::Failure;
use crate::flatten::flatten;
use crate::inventory::{Machine, blocking, set_home};
use crate::layout::{Layout, extension_like, free_disk};
use crate::store::TaskNote;
use crate::tasks::{Hold, TaskContext};
use backstay_api::{CheckpointExport, Plan, ProblemCode, UnreadableRange};
use backstay_disk::BadRange;
use backstay_hyperv::VmConfig;
use backstay_model::{Checkpoint, CheckpointId, DriveMedia, DriveSlot, VmId};
use backstay_worker::read_descriptor;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Everything that is written.
#[derive(Clone, Debug)]
struct Export {
    layout: Layout,
    /// Each disk: where it is attached, what is read, what is written.
    disks: Vec<(DriveSlot, PathBuf, PathBuf)>,
    /// Memory and descriptor: what is read, what is written.
    memory: Option<[(PathBuf, PathBuf); 2]>,
    config: VmConfig,
    warnings: Vec<String>,
}

/// Exports a checkpoint in any state of its machine.
///
/// # Errors
/// `not-found`, `invalid`, `exists`, `damaged`, `busy`.
pub async fn export_checkpoint(
    app: &Arc<App>,
    vm: &str,
    checkpoint: &str,
    body: CheckpointExport,
    call: &Call,
) -> Result<Accepted, Failure> {
    let id = app.inventory.find(vm)?.id;
    // A merge has its files open.
    let _way = app.tasks.make_way(&[Hold::Files(id)]).await;
    let machine = app.inventory.get(id)?;
    let target = find_checkpoint(&machine, checkpoint)?;
    let export = decide(app, &machine, &target, &body).await?;
    let plan = describe(&machine, &target, &export);
    let target = target.id;
    let mut spec = vm_task("checkpoint.export", &machine);
    // The machine may do what it wants meanwhile, only the checkpoint's files must stay.
    spec.holds = vec![Hold::Files(id)];
    spec.cancellable = true;
    app.accept(call, plan, spec, move |app, context| run(app, context, id, target, body)).await
}

async fn decide(
    app: &App,
    machine: &Machine,
    target: &Checkpoint,
    body: &CheckpointExport,
) -> Result<Export, Failure> {
    let folder = body.folder.clone();
    if !folder.is_absolute() {
        return Err(Failure::invalid(format!(
            "{} is not an absolute path: give it from / on",
            folder.display()
        )));
    }
    is_free(folder.clone()).await?;
    // Of its memory only that it is whole matters: it is loaded elsewhere.
    let memory = if body.without_memory { Memory::Without } else { Memory::Whole };
    let Checked { mut config, spec, restore, mut warnings } = check(app, machine, target, memory).await?;
    let layout = Layout::new(&folder);
    let mut taken = BTreeSet::new();
    let mut disks = Vec::new();
    let wrong = |error: backstay_hyperv::ApplyError| Failure::invalid(error.to_string());
    for drive in &spec.drives {
        match &drive.media {
            DriveMedia::Disk(from) => {
                let to = free_name(&layout, from, &mut taken);
                config.set_drive_path(drive.slot, &to).map_err(wrong)?;
                disks.push((drive.slot, from.clone(), to));
            }
            DriveMedia::Device(path) => warnings.push(format!(
                "{} in {} is a device of this host and is not exported: detach it on the other host, or give it one there",
                path.display(),
                drive.slot
            )),
            DriveMedia::Iso(path) => warnings.push(format!(
                "{} in {} is not exported: the other host needs it at the same place, or the drive emptied",
                path.display(),
                drive.slot
            )),
            DriveMedia::EmptyOptical => {}
        }
    }
    config.set_checkpoint_meta(None).map_err(wrong)?;
    config.set_now_parent(None);
    config.set_pending(None).map_err(wrong)?;
    config.set_released(&BTreeSet::new()).map_err(wrong)?;
    config.set_deleting(&BTreeSet::new());
    config.set_merging(None).map_err(wrong)?;
    config.set_applying(&BTreeSet::new()).map_err(wrong)?;
    config.set_merge_rate(None);
    set_home(&mut config, &folder);
    let saved = |extension| layout.vm_folder(machine.id).join(format!("{}.{extension}", machine.id));
    let memory = restore.map(|from| [(from.memory_file, saved("bin")), (from.descriptor_file, saved("vsv"))]);
    Ok(Export { layout, disks, memory, config, warnings })
}

/// Nothing is overwritten, and nothing is mixed with what is there.
async fn is_free(folder: PathBuf) -> Result<(), Failure> {
    blocking(move || match std::fs::read_dir(&folder).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(
            ProblemCode::Exists,
            format!("{} is not empty: name a new folder for the export", folder.display()),
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::file("listing", &folder, error)),
    })
    .await
}

/// The name of the first disk of the chain, without the GUID that a checkpoint added.
fn free_name(layout: &Layout, file: &Path, taken: &mut BTreeSet<PathBuf>) -> PathBuf {
    let (stem, extension) = (Layout::first_name(file), extension_like(file));
    let path = free_disk(&layout.disks(), &stem, extension, |path| taken.contains(path));
    taken.insert(path.clone());
    path
}

fn describe(machine: &Machine, target: &Checkpoint, export: &Export) -> Plan {
    let mut plan = Plan::new("checkpoint.export");
    for (slot, from, to) in &export.disks {
        plan.step("write", to.display(), format!("{slot}: what {} shows, as one file", from.display()));
    }
    if let Some([(_, memory), (_, descriptor)]) = &export.memory {
        plan.step("write", memory.display(), "memory");
        plan.step("write", descriptor.display(), "what it takes to load it");
    }
    let config = export.layout.vm_config(machine.id);
    plan.step("write", config.display(), format!("the configuration of '{}'", target.name));
    plan.warnings.clone_from(&export.warnings);
    plan
}

async fn run(
    app: Arc<App>,
    context: TaskContext,
    id: VmId,
    target: CheckpointId,
    body: CheckpointExport,
) -> Done {
    let machine = app.inventory.get(id)?;
    let target = find_checkpoint(&machine, &target.to_string())?;
    let export = decide(&app, &machine, &target, &body).await?;
    for warning in &export.warnings {
        context.warn(warning);
    }
    context.note(&export.note(id)).await;
    let cancel = Arc::new(AtomicBool::new(false));
    let (work, telling, stop) = (export.clone(), context.clone(), Arc::clone(&cancel));
    let skip_bad = body.skip_bad;
    let mut thread = tokio::task::spawn_blocking(move || write(&work, id, skip_bad, &telling, &stop));
    let written = loop {
        tokio::select! {
            ended = &mut thread => break ended,
            () = context.cancelled(), if !cancel.load(Relaxed) => cancel.store(true, Relaxed),
        }
    };
    let written = written.unwrap_or_else(|fault| {
        Err(Failure::because(ProblemCode::Internal, "the export ended by a fault of Backstay", fault))
    });
    let unreadable = match written {
        Ok(unreadable) => unreadable,
        Err(failure) => {
            clear(&export, id).await;
            return Err(failure);
        }
    };
    tell_unreadable(&context, &export, &unreadable);
    let what = Happening {
        kind: "checkpoint.exported",
        who: &context.who(),
        reason: "requested".into(),
        before: Some(target.name.clone()),
        after: Some(body.folder.display().to_string()),
    };
    app.events.vm(id, machine.name().as_str(), what).await;
    Ok(Some(serde_json::json!({
        "folder": body.folder,
        "config": export.layout.vm_config(id),
        "disks": export.disks.iter().map(|(_, _, to)| to).collect::<Vec<_>>(),
        "has_memory": export.memory.is_some(),
        "unreadable": unreadable.iter().take(MOST_TOLD).collect::<Vec<_>>(),
        "unreadable_ranges": unreadable.len(),
    })))
}

/// Ranges that a task's result lists; the file in the folder has all.
const MOST_TOLD: usize = 1000;
/// That file.
const UNREADABLE: &str = "unreadable.csv";

fn tell_unreadable(context: &TaskContext, export: &Export, unreadable: &[UnreadableRange]) {
    if unreadable.is_empty() {
        return;
    }
    let bytes: u64 = unreadable.iter().map(|range| range.length).sum();
    context.warn(format!(
        "{bytes} bytes in {} places of its disks could not be read and are zeros in the export: {} lists them",
        unreadable.len(),
        export.layout.root().join(UNREADABLE).display()
    ));
    if export.memory.is_some() {
        context.warn(
            "its memory was exported too, and may rely on what is lost: to be on the safe side register it and throw the \
             memory away with `backstay vm discard-saved-state`",
        );
    }
}

/// Writes down what could not be read.
fn write_unreadable(export: &Export, unreadable: &[UnreadableRange]) -> Result<(), Failure> {
    if unreadable.is_empty() {
        return Ok(());
    }
    let quoted = |path: &Path| format!("\"{}\"", path.display().to_string().replace('"', "\"\""));
    let mut text = "disk,offset,length,file,file_offset\n".to_owned();
    for range in unreadable {
        let at = range.file_offset.map(|at| at.to_string()).unwrap_or_default();
        let (disk, file) = (quoted(&range.disk), quoted(&range.file));
        text += &format!("{disk},{},{},{file},{at}\n", range.offset, range.length);
    }
    let path = export.layout.root().join(UNREADABLE);
    durable::replace(&path, text.as_bytes()).map_err(|e| Failure::file("writing", &path, e))
}

fn unreadable_of(disk: &Path, bad: Vec<BadRange>) -> impl Iterator<Item = UnreadableRange> {
    bad.into_iter().map(|range| UnreadableRange {
        disk: disk.into(),
        offset: range.offset,
        length: range.len,
        file: range.file,
        file_offset: range.file_offset,
    })
}

/// Writes everything, the configuration last: without it there is no machine in the folder. What could not be read.
fn write(
    export: &Export,
    id: VmId,
    skip_bad: bool,
    context: &TaskContext,
    cancel: &AtomicBool,
) -> Result<Vec<UnreadableRange>, Failure> {
    let folder = |path: PathBuf| {
        durable::create_folder(&path).map_err(|e| Failure::file("making the folder", &path, e))
    };
    folder(export.layout.machines())?;
    folder(export.layout.disks())?;
    let count = export.disks.len().max(1);
    let mut unreadable = Vec::new();
    for (index, (slot, from, to)) in export.disks.iter().enumerate() {
        let tell = |done: u64, total: u64| {
            let part = done.min(total).saturating_mul(90).checked_div(total).unwrap_or(0);
            let all = (index as u64 * 90 + part) / count as u64;
            context.progress(u8::try_from(all).unwrap_or(90), &format!("writing and checking {slot}"));
        };
        unreadable.extend(unreadable_of(to, flatten(from, to, skip_bad, &tell, cancel)?));
    }
    write_unreadable(export, &unreadable)?;
    if let Some([(memory, memory_to), (descriptor, descriptor_to)]) = &export.memory {
        context.progress(92, "copying memory");
        folder(export.layout.vm_folder(id))?;
        copy(memory, memory_to)?;
        let mut saved = read_descriptor(descriptor).map_err(|e| {
            Failure::because(ProblemCode::Damaged, "the descriptor of its memory cannot be used", e)
        })?;
        for disk in &mut saved.disks {
            if let Some((_, _, to)) = export.disks.iter().find(|(slot, _, _)| *slot == disk.slot) {
                disk.file.clone_from(to);
            }
        }
        let bytes = serde_json::to_vec_pretty(&saved)
            .map_err(|e| Failure::because(ProblemCode::Internal, "the descriptor cannot be written", e))?;
        durable::replace(descriptor_to, &bytes).map_err(|e| Failure::file("writing", descriptor_to, e))?;
    }
    if cancel.load(Relaxed) {
        return Err(crate::tasks::cancelled());
    }
    let config = export.layout.vm_config(id);
    durable::replace(&config, &export.config.to_bytes()).map_err(|e| Failure::file("writing", &config, e))?;
    Ok(unreadable)
}

/// Copies a file and makes it durable.
fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    std::fs::copy(from, to)
        .and_then(|_| std::fs::File::open(to)?.sync_all())
        .and_then(|()| durable::sync_folder_of(to))
        .map_err(|e| Failure::file("copying to", to, e))
}

impl Export {
    /// What the next daemon needs to clear up.
    fn note(&self, id: VmId) -> TaskNote {
        let memory = self.memory.iter().flatten().map(|(_, to)| to.clone());
        let disks = self.disks.iter().map(|(_, _, to)| to.clone());
        let layout = &self.layout;
        let folders = [layout.vm_folder(id), layout.machines(), layout.disks(), layout.root().to_path_buf()];
        TaskNote::Export {
            config: self.layout.vm_config(id),
            files: disks.chain(memory).chain([self.layout.root().join(UNREADABLE)]).collect(),
            folders: folders.into(),
        }
    }
}

/// Removes what a failed export has written; nothing else is in the folder.
async fn clear(export: &Export, id: VmId) {
    clear_up(Some(&export.note(id))).await;
}

/// Ends what a former daemon left of an export that it did not finish.
pub(super) async fn clear_up(note: Option<&TaskNote>) {
    let Some(TaskNote::Export { config, files, folders }) = note else { return };
    let (config, files, folders) = (config.clone(), files.clone(), folders.clone());
    let cleared = blocking(move || {
        if config.exists() {
            return Ok(());
        }
        for file in files {
            let _ = durable::remove(&file);
        }
        for folder in folders {
            // What has no name yet; nobody else writes there.
            disks::remove_unfinished(&folder);
            durable::remove_empty_folder(&folder);
        }
        Ok(())
    });
    let _ = cleared.await;
}

#[cfg(test)]
mod tests;

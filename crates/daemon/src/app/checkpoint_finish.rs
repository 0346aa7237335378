//! The end of a checkpoint: it exists, or the machine goes on without it.

use super::App;
use super::checkpoint::CheckpointPlan;
use super::merge::kick_quietly;
use super::usage::same_file;
use crate::durable;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use backstay_api::CheckpointResult;
use backstay_hyperv::{ApplyError, CheckpointMeta, LayerStep, PendingCheckpoint, VmConfig};
use backstay_model::{DriveSlot, MemoryMethod};
use backstay_worker::control::{DiskStatus, Reply, Request};
use std::sync::Arc;
use std::time::Duration;

/// What was captured besides the disks.
#[derive(Clone, Debug)]
pub(super) struct Captured {
    pub(super) pause_us: u64,
    pub(super) total_us: u64,
    pub(super) memory_bytes: u64,
    /// None: no memory, the machine was off.
    pub(super) method: Option<MemoryMethod>,
    pub(super) method_reason: String,
}

impl Captured {
    /// The machine was off.
    pub(super) fn off(total_us: u64) -> Self {
        let method_reason = "the machine was off: there was no memory to save".into();
        Self { pause_us: 0, total_us, memory_bytes: 0, method: None, method_reason }
    }
}

fn wrong(error: ApplyError) -> Failure {
    Failure::invalid(error.to_string())
}

/// Writes the checkpoint's configuration, then the machine's. Both may be done already.
pub(super) async fn complete(
    app: &Arc<App>,
    who: &str,
    machine: &Machine,
    plan: &CheckpointPlan,
    captured: Captured,
) -> Result<CheckpointResult, Failure> {
    let id = plan.pending.checkpoint;
    let mut then = (*machine.config).clone();
    then.set_pending(None).map_err(wrong)?;
    for layer in &plan.pending.layers {
        then.set_drive_path(layer.slot, &layer.from).map_err(wrong)?;
    }
    let meta = CheckpointMeta {
        id,
        name: plan.name.clone(),
        notes: plan.notes.clone(),
        parent: machine.config.now_parent(),
        created_unix_ms: plan.created_unix_ms,
        has_memory: captured.method.is_some(),
        method: captured.method,
    };
    then.set_checkpoint_meta(Some(&meta)).map_err(wrong)?;
    let file = machine.layout.checkpoint_config(id);
    blocking(move || {
        durable::replace(&file, &then.to_bytes())
            .map_err(|e| Failure::file("writing the checkpoint's configuration", &file, e))
    })
    .await?;
    move_now(app, machine, &plan.pending).await?;
    let what = Happening {
        kind: "checkpoint.created",
        who,
        reason: captured.method_reason.clone(),
        before: None,
        after: Some(plan.name.clone()),
    };
    app.events.vm(machine.id, machine.name().as_str(), what).await;
    Ok(CheckpointResult {
        checkpoint: id,
        name: plan.name.clone(),
        pause_us: captured.pause_us,
        total_us: captured.total_us,
        memory_bytes: captured.memory_bytes,
        method: captured.method,
        method_reason: captured.method_reason,
    })
}

/// The machine's configuration names the new tops and continues from the checkpoint.
pub(super) async fn move_now(
    app: &Arc<App>,
    machine: &Machine,
    pending: &PendingCheckpoint,
) -> Result<Machine, Failure> {
    let mut now: VmConfig = (*machine.config).clone();
    for layer in &pending.layers {
        now.set_drive_path(layer.slot, &layer.to).map_err(wrong)?;
    }
    now.set_now_parent(Some(pending.checkpoint));
    now.set_pending(None).map_err(wrong)?;
    app.inventory.save(machine, now).await
}

/// The checkpoint was not taken. Disks in `kept` continue on their new file, because the guest has written to it; the
/// others on the old one. What else was made for it is removed.
pub(super) async fn give_up(app: &Arc<App>, machine: &Machine, kept: &[DriveSlot]) -> Result<(), Failure> {
    let Some(pending) = machine.config.pending() else { return Ok(()) };
    let mut now: VmConfig = (*machine.config).clone();
    let (stay, back): (Vec<LayerStep>, Vec<LayerStep>) =
        pending.layers.into_iter().partition(|layer| kept.contains(&layer.slot));
    for layer in &stay {
        now.set_drive_path(layer.slot, &layer.to).map_err(wrong)?;
    }
    let mut released = now.released();
    released.extend(stay.iter().map(|layer| layer.from.clone()));
    now.set_released(&released).map_err(wrong)?;
    now.set_pending(None).map_err(wrong)?;
    let saved = app.inventory.save(machine, now).await?;
    let (layout, id) = (machine.layout.clone(), pending.checkpoint);
    blocking(move || {
        // Not needed by anything any more: an error leaves garbage, no damage.
        let memory = [layout.checkpoint_descriptor(id), layout.checkpoint_memory(id)];
        for file in memory.into_iter().chain(back.into_iter().map(|layer| layer.to)) {
            let _ = durable::remove(&file);
        }
        durable::remove_empty_folder(&layout.checkpoint_folder(id));
        Ok(())
    })
    .await?;
    for layer in stay {
        let what = Happening {
            kind: "disk.merge-pending",
            who: "backstay",
            reason: format!("{} continues on its new file after a checkpoint that failed", layer.slot),
            before: Some(layer.from.display().to_string()),
            after: Some(layer.to.display().to_string()),
        };
        app.events.vm(saved.id, saved.name().as_str(), what).await;
    }
    kick_quietly(app, saved.id);
    Ok(())
}

/// The disks that a worker has moved onto their new files; by the files where there is no worker.
pub(super) async fn kept_by_worker(
    app: &App,
    machine: &Machine,
    pending: &PendingCheckpoint,
) -> Vec<DriveSlot> {
    let told = app.workers.call(machine.id, Request::Disks, Duration::from_secs(20)).await;
    let moved = |layer: &LayerStep| match &told {
        Ok(Reply::Disks { disks, .. }) => is_top(disks, layer),
        // Whoever finds the record takes the new file if it exists: an empty one reads as the old.
        _ => layer.to.exists(),
    };
    pending.layers.iter().filter(|layer| moved(layer)).map(|layer| layer.slot).collect()
}

/// Whether a worker has a disk on its new file. It names files by their real paths, the configuration perhaps by others.
fn is_top(disks: &[DiskStatus], layer: &LayerStep) -> bool {
    let top = disks.iter().find(|disk| disk.slot == layer.slot).and_then(|disk| disk.chain.first());
    top.is_some_and(|top| same_file(top) == same_file(&layer.to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_new_top_is_known_by_any_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, folder.path().join("link")).unwrap();
        let (old, new) = (real.join("a.vhd"), real.join("a_1.avhd"));
        for file in [&old, &new] {
            std::fs::write(file, b"x").unwrap();
        }
        let slot = DriveSlot::Ide { controller: 0, unit: 0 };
        let disk = |chain: &[&PathBuf]| DiskStatus {
            slot,
            size: 512,
            chain: chain.iter().map(|&file| file.clone()).collect(),
            reads: 0,
            writes: 0,
            read_bytes: 0,
            written_bytes: 0,
            limit: backstay_model::IoLimit::default(),
        };
        let link = folder.path().join("link");
        let layer = LayerStep { slot, from: link.join("a.vhd"), to: link.join("a_1.avhd") };
        assert!(is_top(&[disk(&[&new, &old])], &layer), "the guest writes to it");
        assert!(!is_top(&[disk(&[&old])], &layer));
    }
}

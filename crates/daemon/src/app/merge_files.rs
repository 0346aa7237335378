//! The files around a merge: what is written down before and after it.

use super::App;
use super::deleting::replace;
use super::usage::same_file;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking, read_config};
use crate::layout::is_layer;
use backstay_api::ProblemCode;
use backstay_model::{CheckpointId, DriveSlot, Merging, StateOf};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whether a checkpoint of this machine made the file: a layer in the folder of its layers. What a user attached from elsewhere
/// is the user's.
pub(super) fn is_own_layer(machine: &Machine, file: &Path) -> bool {
    let home = same_file(&machine.layout.layers(machine.id));
    is_layer(file) && same_file(file).parent() == Some(home.as_path())
}

/// A file by the name that configurations of this machine give it: below the folder as it is written there.
pub(super) fn name_in(machine: &Machine, file: &Path) -> PathBuf {
    let root = machine.layout.root();
    match file.strip_prefix(same_file(root)) {
        Ok(rest) => root.join(rest),
        Err(_) => file.into(),
    }
}

fn wrong(error: impl std::fmt::Display) -> Failure {
    Failure::invalid(error.to_string())
}

/// Notes the merge before it begins.
pub(super) async fn note(app: &Arc<App>, machine: &Machine, merging: &Merging) -> Result<Machine, Failure> {
    let named = Merging { upper: name_in(machine, &merging.upper), lower: name_in(machine, &merging.lower) };
    if machine.config.merging().as_ref() == Some(&named) {
        return Ok(machine.clone());
    }
    let mut config = (*machine.config).clone();
    config.set_merging(Some(&named)).map_err(wrong)?;
    app.inventory.save(machine, config).await
}

/// Takes files off the list of released ones.
pub(super) async fn forget(app: &Arc<App>, machine: &Machine, files: &[PathBuf]) -> Result<Machine, Failure> {
    let gone: Vec<_> = files.iter().map(|file| same_file(file)).collect();
    let mut released = machine.config.released();
    released.retain(|file| !files.contains(file) && !gone.contains(&same_file(file)));
    let mut config = (*machine.config).clone();
    config.set_released(&released).map_err(wrong)?;
    app.inventory.save(machine, config).await
}

/// After a merge `upper` is empty and nobody's parent, and reads as `lower`. Whatever named it names `lower`; then it is
/// released itself, which deletes it. In this order a crash leaves names that are right.
pub(super) async fn conclude(
    app: &Arc<App>,
    machine: &Machine,
    merging: &Merging,
    states: &[StateOf],
) -> Result<(), Failure> {
    let lower = name_in(machine, &merging.lower);
    let mut config = (*machine.config).clone();
    let mut named: Vec<(CheckpointId, DriveSlot)> = Vec::new();
    for state in states {
        match state {
            StateOf::Now(slot) => config.set_drive_path(*slot, &lower).map_err(wrong)?,
            StateOf::Checkpoint(id, slot) => named.push((*id, *slot)),
        }
    }
    let (layout, target) = (machine.layout.clone(), lower.clone());
    blocking(move || {
        for (id, slot) in named {
            let file = layout.checkpoint_config(id);
            let mut config = read_config(&file).map_err(|reason| {
                Failure::new(ProblemCode::Damaged, format!("{} cannot be used: {reason}", file.display()))
            })?;
            config.set_drive_path(slot, &target).map_err(wrong)?;
            replace(file, &config)?;
        }
        Ok(())
    })
    .await?;
    let was_released = |released: &std::collections::BTreeSet<PathBuf>, file: &Path| {
        released.iter().any(|f| same_file(f) == file)
    };
    let mut released = config.released();
    if !was_released(&released, &merging.upper) {
        released.retain(|file| same_file(file) != merging.lower);
    }
    released.insert(name_in(machine, &merging.upper));
    config.set_released(&released).map_err(wrong)?;
    config.set_merging(None).map_err(wrong)?;
    let saved = app.inventory.save(machine, config).await?;
    if !saved.state.is_active() {
        // The worker tells it of a machine that is on.
        let what = Happening {
            kind: "disk.merged",
            who: "backstay",
            reason: "complete".into(),
            before: Some(merging.upper.display().to_string()),
            after: Some(lower.display().to_string()),
        };
        app.events.vm(saved.id, saved.name().as_str(), what).await;
    }
    Ok(())
}

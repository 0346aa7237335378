//! The files around a merge: what is known of them before it, what is written down before and after it.

use super::App;
use super::deleting::replace;
use super::usage::{same_file, usage};
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking, read_config};
use crate::layout::is_layer;
use backstay_api::ProblemCode;
use backstay_model::{CheckpointId, DriveSlot, Layers, Merging, StateOf};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// All that is known of a machine's files, under their real paths.
///
/// # Errors
/// `precondition` or (if that may pass) `in-use` where it is not known which files are needed.
pub(super) async fn world(app: &App, machine: &Machine) -> Result<Layers, Failure> {
    let usage = usage(app, None).await?;
    if !usage.unknown.is_empty() {
        let words = format!(
            "no file of '{}' is merged or deleted because it is not known which files are needed by {}",
            machine.name(),
            usage.unknown.join("; ")
        );
        // What is open now may be looked at in a moment.
        let passing = usage.unknown.iter().any(|why| why.contains("in use") || why.contains("does not tell"));
        let code = if passing { ProblemCode::InUse } else { ProblemCode::Precondition };
        return Err(Failure::new(code, words));
    }
    let mut layers = Layers::default();
    for chain in &usage.chains {
        layers.add_chain(chain);
    }
    for (slot, file) in machine.disks() {
        layers.add_state(&same_file(&file), StateOf::Now(slot));
    }
    for checkpoint in machine.checkpoints.all() {
        for disk in &checkpoint.disks {
            layers.add_state(&same_file(&disk.file), StateOf::Checkpoint(checkpoint.id, disk.slot));
        }
    }
    for (file, holder) in usage.by_others(machine.id) {
        layers.forbid(file, format!("'{}' uses it ({})", holder.name, holder.place));
    }
    for file in machine.config.released() {
        layers.release(&same_file(&file));
    }
    let real = |m: Merging| Merging { upper: same_file(&m.upper), lower: same_file(&m.lower) };
    layers.set_merging(machine.config.merging().map(real));
    add_others(app, machine, layers).await
}

/// Files that no configuration names: released ones, and those that nobody can tell anything about.
async fn add_others(app: &App, machine: &Machine, mut layers: Layers) -> Result<Layers, Failure> {
    let (folder, chains) = (machine.layout.layers(machine.id), Arc::clone(&app.chains));
    let name = machine.name().clone();
    blocking(move || {
        let home = same_file(&folder);
        let mut files: Vec<PathBuf> = layers.released().iter().cloned().collect();
        // Children that somebody made by hand lie beside them as a rule.
        let beside: std::collections::BTreeSet<PathBuf> =
            files.iter().filter_map(|file| file.parent().map(Path::to_path_buf)).collect();
        for folder in beside {
            let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            files.extend(entries.map(|entry| same_file(&entry.path())).filter(|path| is_vhd(path)));
        }
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        files.extend(entries.map(|entry| same_file(&entry.path())).filter(|path| is_layer(path)));
        for file in files {
            if layers.contains(&file) || !file.exists() {
                continue;
            }
            match chains.files(&file) {
                Ok(chain) => layers.add_chain(&chain.iter().map(|f| same_file(f)).collect::<Vec<_>>()),
                // The file below is written to, and nothing that is known needs this one: what it is made on does not matter.
                Err(failure) if failure.code() == ProblemCode::InUse && layers.released().contains(&file) => {
                    layers.add_chain(&[file]);
                }
                Err(failure) if failure.code() == ProblemCode::InUse => {
                    return Err(Failure::because(
                        ProblemCode::InUse,
                        format!("no file of '{name}' is merged while {} is in use", file.display()),
                        failure,
                    ));
                }
                // Its chain is broken: it is no working child of anything.
                Err(failure) => {
                    tracing::warn!(file = %file.display(), error = failure.full_message(), "a file that nobody names");
                }
            }
        }
        // What a user made by hand above a file of a checkpoint is not consumed.
        let by_hand: Vec<(PathBuf, PathBuf)> = layers
            .released()
            .iter()
            .flat_map(|file| layers.children(file).into_iter().map(|child| (file.clone(), child)))
            .filter(|(_, child)| !is_layer(child) || child.parent() != Some(home.as_path()))
            .collect();
        for (file, child) in by_hand {
            layers.forbid(&file, format!("{}, which no checkpoint made, needs it", child.display()));
        }
        Ok(layers)
    })
    .await
}

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

/// Whether a file may be a differencing disk, by its name.
fn is_vhd(file: &Path) -> bool {
    let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["vhd", "avhd", "vhdx", "avhdx"].iter().any(|known| extension.eq_ignore_ascii_case(known))
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

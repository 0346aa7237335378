//! Which files of a machine may go. A file is only ever deleted when everything that could need it was looked at.

use super::App;
use super::merge_files::is_own_layer;
use super::strangers::{Stranger, strangers_on};
use super::usage::{Part, chain_of, same_file, usage};
use super::world::world;
use crate::durable;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use crate::layout::is_layer;
use backstay_model::FileStep;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Files to delete, and what keeps others.
#[derive(Debug, Default)]
pub(super) struct Doomed {
    pub(super) files: Vec<PathBuf>,
    pub(super) notes: Vec<String>,
}

/// Files of deleted checkpoints on which nothing is made: they go with a deleted machine in any case. None where that cannot
/// be told: kept disks may be made on them.
pub(super) async fn released_leaves(app: &App, machine: &Machine) -> Vec<PathBuf> {
    let Ok(layers) = world(app, machine).await else { return Vec::new() };
    let deleted = layers.plan().steps.into_iter().map_while(|step| match step {
        FileStep::Delete(file) => Some(file),
        FileStep::Merge { .. } => None,
    });
    deleted.filter(|file| is_own_layer(machine, file)).collect()
}

/// The disk files that go with a deleted machine: layers of its checkpoints, and the disks below them that were attached
/// in the first place, if nobody else uses them. Their parents stay: a template outlives its copies.
pub(super) async fn own_disks(app: &App, machine: &Machine) -> Result<Doomed, Failure> {
    let mut doomed = Doomed::default();
    let others = usage(app, Some((machine.id, Part::Nothing))).await?;
    if !others.unknown.is_empty() {
        return Err(Failure::precondition(format!(
            "disks cannot be deleted because it is not known which files are needed by {}: repair those, or keep the \
             disks",
            others.unknown.join("; ")
        )));
    }
    let mut candidates = BTreeSet::new();
    for (top, place) in machine.disk_places() {
        let files = match chain_of(app, &top).await {
            Ok(chain) => chain.files(),
            Err(failure) => {
                doomed.notes.push(format!("{} ({place}) is kept: {}", top.display(), failure.full_message()));
                continue;
            }
        };
        let mut at_first_disk = false;
        for file in files {
            if at_first_disk {
                break;
            }
            at_first_disk = !is_layer(&file);
            if others.needs(&file) {
                doomed.notes.push(format!("{} is kept: another virtual machine uses it", file.display()));
                break;
            }
            if candidates.insert(file.clone()) {
                doomed.files.push(file);
            }
        }
    }
    let strangers = strangers_on(app, machine, Arc::new(others), doomed.files.clone()).await?;
    keep_parents_of(&mut doomed, strangers);
    Ok(doomed)
}

/// A disk that nobody has keeps all that it is made on; what goes too keeps nothing.
fn keep_parents_of(doomed: &mut Doomed, strangers: Vec<Stranger>) {
    for stranger in strangers {
        if doomed.files.iter().any(|file| same_file(file) == same_file(&stranger.child)) {
            continue;
        }
        let (kept, files) = doomed.files.drain(..).partition(|file| stranger.needs(file));
        doomed.files = files;
        let kept: Vec<PathBuf> = kept;
        let child = stranger.child.display();
        doomed
            .notes
            .extend(kept.iter().map(|file| format!("{} is kept: {child} is made on it", file.display())));
    }
}

/// Deletes files; one that cannot be deleted is told and left.
pub(super) async fn delete_files(files: Vec<PathBuf>) -> Vec<String> {
    let deleted = blocking(move || {
        let failed = files.iter().filter_map(|file| {
            let error = durable::remove(file).err()?;
            Some(format!("{} could not be deleted: {error}", file.display()))
        });
        Ok(failed.collect())
    });
    deleted.await.unwrap_or_default()
}

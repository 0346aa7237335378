//! Which files of a machine may go. A file is only ever deleted when everything that could need it was looked at.

use super::App;
use super::usage::{Part, chain_of, same_file, usage};
use crate::durable;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use crate::layout::is_layer;
use std::path::PathBuf;

/// Files to delete, and what keeps others.
#[derive(Debug, Default)]
pub(super) struct Doomed {
    pub(super) files: Vec<PathBuf>,
    pub(super) notes: Vec<String>,
}

/// The layers of Now that no checkpoint and no other machine needs once Now has moved on: from each top down to the first
/// file that somebody refers to.
pub(super) async fn abandoned_layers(app: &App, machine: &Machine, tops: &[PathBuf]) -> Doomed {
    let mut doomed = Doomed::default();
    let needed = match usage(app, Some((machine.id, Part::Checkpoints))).await {
        Ok(needed) => needed,
        Err(failure) => {
            doomed.notes.push(format!("no layer is deleted: {}", failure.full_message()));
            return doomed;
        }
    };
    if !needed.unknown.is_empty() {
        doomed.notes.push(format!(
            "no layer is deleted because it is not known which files are needed by {}",
            needed.unknown.join("; ")
        ));
        return doomed;
    }
    let needed = needed.files();
    let home = same_file(&machine.layout.layers(machine.id));
    for top in tops {
        let files = match chain_of(app, top).await {
            Ok(chain) => chain.files(),
            Err(failure) => {
                doomed.notes.push(format!("{} is kept: {}", top.display(), failure.full_message()));
                continue;
            }
        };
        let own = |file: &PathBuf| {
            let file = same_file(file);
            !needed.contains(&file) && is_layer(&file) && file.parent() == Some(home.as_path())
        };
        doomed.files.extend(files.into_iter().take_while(own));
    }
    doomed
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
    let needed = others.files();
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
            if needed.contains(&same_file(&file)) {
                doomed.notes.push(format!("{} is kept: another virtual machine uses it", file.display()));
                break;
            }
            if !doomed.files.contains(&file) {
                doomed.files.push(file);
            }
        }
    }
    Ok(doomed)
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

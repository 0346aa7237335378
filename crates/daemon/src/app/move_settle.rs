//! What became of a move of a disk that was interrupted: by a look at its files, or by asking the worker that did it.

use super::App;
use super::move_disk::{ANSWER, STEP};
use super::usage::same_file;
use crate::disks;
use crate::durable;
use crate::events::Happening;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use backstay_api::ProblemCode;
use backstay_hyperv::LayerStep;
use backstay_model::VmId;
use backstay_worker::control::{MoveOutcome, Reply, Request};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What became of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Moved,
    /// The new file is there, and nobody saw it get its name: the old one is kept.
    Found,
    Stays,
}

/// Takes over what became of a move that was interrupted: the new file counts if it has its name. Its worker is asked, if it has one.
///
/// # Errors
/// The configuration cannot be written; it cannot be told what became of it.
pub(super) async fn settle_move(app: &Arc<App>, id: VmId) -> Result<Machine, Failure> {
    let machine = app.inventory.get(id)?;
    let Some(step) = machine.config.moving() else { return Ok(machine) };
    let fate = if machine.state.is_active() {
        end_in_worker(app, id, &step.to).await?;
        if is_top(app, id, &step).await? { Fate::Moved } else { Fate::Stays }
    } else {
        let (name, step) = (machine.name().to_string(), step.clone());
        blocking(move || {
            let there = |path: &Path| path.try_exists().map_err(|e| Failure::file("looking for", path, e));
            let seen = Seen {
                folder: there(step.to.parent().unwrap_or(&step.to))?,
                new: there(&step.to)?,
                old: there(&step.from)?,
            };
            let alike = seen.new && seen.old && are_alike(&step)?;
            fate(seen, alike).ok_or_else(|| unknown(&name, &step, seen))
        })
        .await?
    };
    conclude(app, &machine, &step, fate).await
}

/// Which files there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    /// The folder of the new file.
    folder: bool,
    new: bool,
    old: bool,
}

/// What the files say; none: nothing. The old file goes right after the new one got its name, so a volume that is not there makes
/// nobody take the old one for the disk. `alike`: if both are there, they are one disk.
fn fate(seen: Seen, alike: bool) -> Option<Fate> {
    match seen {
        Seen { new: true, old: false, .. } => Some(Fate::Moved),
        Seen { new: true, old: true, .. } if alike => Some(Fate::Found),
        // Somebody else made a file of that name.
        Seen { new: true, old: true, .. } => Some(Fate::Stays),
        Seen { new: false, old: true, folder: true } => Some(Fate::Stays),
        Seen { new: false, .. } => None,
    }
}

/// Whether the new file may be the old one, moved.
fn are_alike(step: &LayerStep) -> Result<bool, Failure> {
    let of = |file: &Path| {
        disks::likeness(file).map_err(|failure| {
            let words = format!(
                "the disk at {} was being moved from {} to {} when Backstay was stopped, and which of them it is cannot be told: \
                 repair that, or move the file away that it is not",
                step.slot,
                step.from.display(),
                step.to.display()
            );
            Failure::because(failure.code(), words, failure)
        })
    };
    Ok(of(&step.from)? == of(&step.to)?)
}

fn unknown(name: &str, step: &LayerStep, seen: Seen) -> Failure {
    let (from, to) = (step.from.display(), step.to.display());
    let words = if seen.old {
        format!(
            "the disk at {} of '{name}' was being moved to {to} when Backstay was stopped, and that folder is not there now: mount \
             its file system, or make the folder anew if nothing was in it",
            step.slot
        )
    } else {
        format!(
            "the disk at {} of '{name}' was being moved when Backstay was stopped, and neither {from} nor {to} is there: mount the \
             file systems that they are on",
            step.slot
        )
    };
    Failure::new(ProblemCode::Unavailable, words)
}

async fn is_top(app: &App, vm: VmId, step: &LayerStep) -> Result<bool, Failure> {
    match app.workers.call(vm, Request::Disks, ANSWER).await? {
        Reply::Disks { disks, .. } => {
            let disk = disks.iter().find(|disk| disk.slot == step.slot);
            let top = disk.and_then(|disk| disk.chain.first());
            Ok(top.is_some_and(|top| same_file(top) == same_file(&step.to)))
        }
        other => {
            let words = format!("the worker answered a question about its disks with {other:?}");
            Err(Failure::new(ProblemCode::Internal, words))
        }
    }
}

/// Writes down where the disk is, and removes what is left of the move.
pub(super) async fn conclude(
    app: &Arc<App>,
    machine: &Machine,
    step: &LayerStep,
    fate: Fate,
) -> Result<Machine, Failure> {
    let mut config = (*machine.config).clone();
    let wrong = |error: backstay_hyperv::ApplyError| Failure::invalid(error.to_string());
    config.set_moving(None).map_err(wrong)?;
    if fate != Fate::Stays && machine.spec.drive(step.slot).is_some() {
        config.set_drive_path(step.slot, &step.to).map_err(wrong)?;
    }
    let saved = app.inventory.save(machine, config).await?;
    let (from, to) = (step.from.clone(), step.to.clone());
    let tidied = blocking(move || {
        match (fate, to.parent()) {
            (Fate::Moved, _) => durable::remove(&from).map_err(|e| Failure::file("deleting", &from, e))?,
            (Fate::Stays, Some(folder)) => disks::remove_unfinished(folder),
            (Fate::Found, _) | (Fate::Stays, None) => {}
        }
        Ok(())
    });
    if let Err(failure) = tidied.await {
        tracing::warn!(vm = %machine.id, error = failure.full_message(), "the old file of a disk that was moved stays");
    }
    if fate == Fate::Found {
        tell_found(app, &saved, step).await;
    }
    Ok(saved)
}

/// The host ended right at the switch.
async fn tell_found(app: &App, machine: &Machine, step: &LayerStep) {
    let what = Happening {
        kind: "disk.moved",
        who: "backstay",
        reason: format!(
            "{}: Backstay was stopped at the instant of the switch; the old file is kept, delete it when the machine has what it needs",
            step.slot
        ),
        before: Some(step.from.display().to_string()),
        after: Some(step.to.display().to_string()),
    };
    app.events.vm(machine.id, machine.name().as_str(), what).await;
}

/// Waits until no worker copies any more: one whose task has ended is not worth going on with.
async fn end_in_worker(app: &App, vm: VmId, to: &Path) -> Result<(), Failure> {
    let to: PathBuf = to.into();
    loop {
        match app.workers.call(vm, Request::MoveStatus { to: to.clone() }, ANSWER).await? {
            Reply::Move(MoveOutcome::Running { .. }) => {
                let _ = app.workers.call(vm, Request::CancelMove { to: to.clone() }, ANSWER).await;
                tokio::time::sleep(STEP).await;
            }
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;

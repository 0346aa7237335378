//! Disks that no machine has and that are made on one that a machine has: what is written to that, or its deletion, would destroy
//! them, and nobody would be told.

use super::App;
use super::usage::{Usage, same_file};
use super::world::{disk_folders, disks_in};
use crate::chains::Chains;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use backstay_api::{Blocker, ProblemCode};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A disk that nobody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stranger {
    pub(super) child: PathBuf,
    /// The file that was asked about.
    parent: PathBuf,
    /// All that it is read with, real paths.
    chain: Vec<PathBuf>,
}

impl Stranger {
    /// Whether it is read with that file.
    pub(super) fn needs(&self, file: &Path) -> bool {
        self.chain.contains(&same_file(file))
    }
}

/// Disks that are made on one of `files` and that nobody has, in the folders of those files and in all folders for disks. The
/// layers of the machine's own checkpoints are not among them: their folder is the daemon's.
///
/// # Errors
/// If the folders of the machines cannot be listed.
pub(super) async fn strangers_on(
    app: &App,
    machine: &Machine,
    usage: Arc<Usage>,
    files: Vec<PathBuf>,
) -> Result<Vec<Stranger>, Failure> {
    let mut folders = disk_folders(app).await?;
    folders.extend(files.iter().filter_map(|file| file.parent()).map(same_file));
    let home = same_file(&machine.layout.layers(machine.id));
    let chains = Arc::clone(&app.chains);
    blocking(move || {
        folders.retain(|folder| same_file(folder) != home);
        Ok(search(&chains, &usage, &folders, &files))
    })
    .await
}

fn search(chains: &Chains, usage: &Usage, folders: &BTreeSet<PathBuf>, files: &[PathBuf]) -> Vec<Stranger> {
    let id_of = |file: &PathBuf| chains.kinship(file).ok().flatten().map(|kin| kin.identity);
    let parents: Vec<_> = files.iter().filter_map(|file| Some((file, id_of(file)?))).collect();
    let mut found = Vec::new();
    // What cannot be listed or read tells nothing: this is a search for what can be lost, not a condition.
    for child in folders.iter().flat_map(|folder| disks_in(folder).unwrap_or_default()) {
        if usage.needs(&child) {
            continue;
        }
        let Ok(Some(kin)) = chains.kinship(&child) else { continue };
        let Some((parent, _)) = parents.iter().find(|(_, id)| kin.parents.contains(id)) else { continue };
        // A copy of a file has the same id: what counts is what the child is read with.
        let Ok(chain) = chains.files(&child) else { continue };
        let stranger = Stranger {
            parent: (*parent).clone(),
            chain: chain.iter().map(|file| same_file(file)).collect(),
            child,
        };
        if stranger.needs(parent) {
            found.push(stranger);
        }
    }
    found
}

/// What keeps a machine from starting: the guest would write to the parent of a disk that nobody has.
pub(super) async fn blockers(app: &App, machine: &Machine) -> Result<Vec<Blocker>, Failure> {
    let usage = Arc::new(super::usage::usage(app, None).await?);
    let tops = machine.disks().into_iter().map(|(_, file)| file).collect();
    let found = strangers_on(app, machine, usage, tops).await?;
    Ok(found.into_iter().map(blocker).collect())
}

/// Why a machine that is on must not get these disks: its guest would write to the parent of a disk that nobody has.
///
/// # Errors
/// That, or the folders of the machines cannot be listed.
pub(super) async fn refuse_parents(app: &App, machine: &Machine, files: Vec<PathBuf>) -> Result<(), Failure> {
    let usage = Arc::new(super::usage::usage(app, None).await?);
    let found: Vec<Blocker> =
        strangers_on(app, machine, usage, files).await?.into_iter().map(blocker).collect();
    match found.first() {
        None => Ok(()),
        Some(first) => {
            let words = format!("'{}' is {} and cannot get the disk", machine.name(), machine.state);
            Err(Failure::new(first.code, words).with_blockers(found))
        }
    }
}

fn blocker(Stranger { child, parent, .. }: Stranger) -> Blocker {
    let (child, parent) = (child.display(), parent.display());
    Blocker {
        code: ProblemCode::Precondition,
        detail: format!(
            "{child} is made on {parent}, and what the guest writes to a parent destroys its children"
        ),
        cure: Some(format!(
            "attach {child} to the machine instead of its parent, or delete it, or make it a disk of its own with `backstay disk \
             convert` and delete it then"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fixture, call};
    use super::super::{Call, update_vm};
    use backstay_api::{DiskType, DriveKind, DriveRequest, VmUpdate};
    use backstay_model::VmState;

    /// At the start of a machine its disks are looked at; one that comes later is too.
    #[tokio::test]
    async fn a_machine_that_runs_does_not_get_the_parent_of_a_disk_that_nobody_has() {
        let fixture = Fixture::new();
        let machine = fixture.machine("web").await;
        let (parent, child) = (fixture.path("parent.vhdx"), fixture.path("child.vhdx"));
        crate::disks::create(&parent, 8 << 20, DiskType::Dynamic).unwrap();
        crate::disks::create_child(&parent, &child).unwrap();
        let attach = async || {
            let slot = Some("scsi:0:4".parse().unwrap());
            let disk = DriveRequest { slot, kind: DriveKind::Disk, path: Some(parent.clone()), create: None };
            let body = VmUpdate { add_drives: vec![disk], ..VmUpdate::default() };
            update_vm(&fixture.app, "web", body, &Call { dry_run: true, ..call() }).await
        };
        fixture.app.inventory.set_state(machine.id, VmState::Running, None);
        let refused = attach().await.unwrap_err().to_problem();
        assert!(format!("{refused:?}").contains("child.vhdx is made on"), "{refused:?}");
        std::fs::remove_file(&child).unwrap();
        attach().await.unwrap();
    }
}

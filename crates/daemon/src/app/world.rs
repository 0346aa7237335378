//! What is known of a machine's files before any of them is merged or deleted: what the configurations name, and what nobody
//! names and is made on one of them all the same.

use super::App;
use super::usage::{FileKey, same_file, usage};
use crate::chains::Chains;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use crate::layout::{Layout, is_layer};
use backstay_api::ProblemCode;
use backstay_model::{Layers, Merging, StateOf, VmName};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// All that is known of a machine's files, each under one real path.
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
        let code = if usage.unknown_for_now { ProblemCode::InUse } else { ProblemCode::Precondition };
        return Err(Failure::new(code, words));
    }
    let folders = disk_folders(app).await?;
    let (machine, chains) = (machine.clone(), Arc::clone(&app.chains));
    blocking(move || {
        let mut names = Names::default();
        let mut layers = named(&machine, &mut names);
        for chain in &usage.chains {
            layers.add_chain(&names.all(chain));
        }
        for (file, holder) in usage.by_others(machine.id) {
            layers.forbid(&names.real(file), format!("'{}' uses it ({})", holder.name, holder.place));
        }
        let home = same_file(&machine.layout.layers(machine.id));
        Others { machine: machine.name(), chains: &chains, home: &home, names, layers }.add(folders)
    })
    .await
}

/// Where disks lie that nobody has attached: the folders for disks of all known folders of machines.
pub(super) async fn disk_folders(app: &App) -> Result<BTreeSet<PathBuf>, Failure> {
    let mut roots: BTreeSet<PathBuf> =
        app.inventory.all().iter().map(|machine| machine.layout.root().to_path_buf()).collect();
    roots.insert(app.config.state_dir.clone());
    roots.extend(app.store.folders().await.map_err(crate::tasks::store_failure)?);
    Ok(roots.into_iter().map(|root| Layout::new(&root).disks()).collect())
}

/// What the machine itself says.
fn named(machine: &Machine, names: &mut Names) -> Layers {
    let mut layers = Layers::default();
    for (slot, file) in machine.disks() {
        layers.add_state(&names.real(&file), StateOf::Now(slot));
    }
    for checkpoint in machine.checkpoints.all() {
        for disk in &checkpoint.disks {
            layers.add_state(&names.real(&disk.file), StateOf::Checkpoint(checkpoint.id, disk.slot));
        }
    }
    for file in machine.config.released() {
        layers.release(&names.real(&file));
    }
    let mut real = |m: Merging| Merging { upper: names.real(&m.upper), lower: names.real(&m.lower) };
    let merging = machine.config.merging().map(&mut real);
    layers.set_merging(merging);
    layers
}

/// One real path for every file, whatever names it has: the first one that was asked for.
#[derive(Debug, Default)]
struct Names(BTreeMap<FileKey, PathBuf>);

impl Names {
    fn real(&mut self, path: &Path) -> PathBuf {
        self.0.entry(FileKey::of(path)).or_insert_with(|| same_file(path)).clone()
    }

    fn all(&mut self, files: &[PathBuf]) -> Vec<PathBuf> {
        files.iter().map(|file| self.real(file)).collect()
    }
}

/// Whether a file may be a differencing disk, by its name.
fn is_disk(file: &Path) -> bool {
    let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["vhd", "avhd", "vhdx", "avhdx"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// The files that have an id: copies have the same one.
type Ids = BTreeMap<Uuid, BTreeSet<PathBuf>>;

/// The ids of the parents of files, as far as they have any.
type Parents = BTreeMap<PathBuf, Vec<Uuid>>;

/// The search for files that no configuration names: released ones, and those that somebody made by hand or left.
struct Others<'a> {
    machine: &'a VmName,
    chains: &'a Chains,
    /// Where layers of this machine's checkpoints lie.
    home: &'a Path,
    names: Names,
    layers: Layers,
}

impl Others<'_> {
    fn add(mut self, folders: BTreeSet<PathBuf>) -> Result<Layers, Failure> {
        let mut ids = Ids::new();
        let parents = self.look(folders, &mut ids)?;
        let lone: Vec<PathBuf> =
            self.layers.released().iter().filter(|f| !parents.contains_key(*f)).cloned().collect();
        for file in lone {
            if !self.layers.contains(&file) && self.chains.files(&file).is_ok() {
                self.layers.add_chain(&[file]);
            }
        }
        for (file, of) in &parents {
            let below: Vec<PathBuf> = of.iter().filter_map(|id| ids.get(id)).flatten().cloned().collect();
            self.add_child(file, &below)?;
        }
        self.keep_what_was_made_by_hand();
        Ok(self.layers)
    }

    /// Reads whose children the files are that nobody names. `ids` gets all that were met.
    fn look(&mut self, mut folders: BTreeSet<PathBuf>, ids: &mut Ids) -> Result<Parents, Failure> {
        folders.insert(self.home.into());
        let mut files = BTreeSet::new();
        for released in self.layers.released().clone() {
            // Children lie beside their parents as a rule, and those of the file that is merged away count too.
            let near = self.layers.children(&released).into_iter().chain([released]);
            for file in near {
                folders.extend(file.parent().map(Path::to_path_buf));
                files.insert(file);
            }
        }
        for folder in folders {
            let entries = disks_in(&folder).map_err(|e| Failure::file("listing", &folder, e))?;
            files.extend(entries.iter().map(|file| self.names.real(file)));
        }
        let mut parents = Parents::new();
        for file in files {
            let is_known = self.layers.contains(&file);
            let kin = match self.chains.kinship(&file) {
                Ok(Some(kin)) => kin,
                Ok(None) => continue,
                // Its chain was opened, so that passes.
                Err(error) => return Err(self.unknown(&file, is_known, error)),
            };
            ids.entry(kin.identity).or_default().insert(file.clone());
            if !is_known && !kin.parents.is_empty() {
                parents.insert(file, kin.parents);
            }
        }
        Ok(parents)
    }

    fn unknown(&self, file: &Path, passing: bool, error: Failure) -> Failure {
        let code = if passing { ProblemCode::InUse } else { ProblemCode::Precondition };
        let words = format!(
            "no file of '{}' is merged or deleted because it is not known which files are needed by {}: repair that, or move it \
             elsewhere",
            self.machine,
            file.display()
        );
        Failure::because(code, words, error)
    }

    /// Adds a differencing disk that nobody names. `below` are the files that may be its parent, if it cannot be opened.
    fn add_child(&mut self, file: &Path, below: &[PathBuf]) -> Result<(), Failure> {
        let failure = match self.chains.files(file) {
            Ok(chain) => {
                let chain = self.names.all(&chain);
                self.layers.add_chain(&chain);
                return Ok(());
            }
            Err(failure) => failure,
        };
        let released = self.layers.released().contains(file);
        for parent in below {
            self.layers.add_chain(&[file.to_path_buf(), parent.clone()]);
            if !released {
                let words = format!(
                    "{} is made on it and cannot be opened ({})",
                    file.display(),
                    failure.full_message()
                );
                self.layers.forbid(parent, words);
            }
        }
        match failure.code() {
            _ if !below.is_empty() => {}
            // The file below is written to, and nothing that is known needs this one: what it is made on does not matter.
            ProblemCode::InUse if released => self.layers.add_chain(&[file.to_path_buf()]),
            ProblemCode::InUse => {
                let words =
                    format!("no file of '{}' is merged while {} is in use", self.machine, file.display());
                return Err(Failure::because(ProblemCode::InUse, words, failure));
            }
            // What it is made on is none of these files.
            _ => {
                tracing::warn!(file = %file.display(), error = failure.full_message(), "a file that nobody names")
            }
        }
        Ok(())
    }

    /// What a user made by hand above a file of a checkpoint is not consumed.
    fn keep_what_was_made_by_hand(&mut self) {
        let home = self.home;
        let by_hand: Vec<(PathBuf, PathBuf)> = self
            .layers
            .released()
            .iter()
            .flat_map(|file| self.layers.children(file).into_iter().map(|child| (file.clone(), child)))
            .filter(|(_, child)| !is_layer(child) || child.parent() != Some(home))
            .collect();
        for (file, child) in by_hand {
            self.layers.forbid(&file, format!("{}, which no checkpoint made, needs it", child.display()));
        }
    }
}

/// The files of a folder that may be differencing disks, if it is there.
pub(super) fn disks_in(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if is_disk(&path) {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;

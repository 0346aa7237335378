//! Files of a folder that was moved as a whole: its configurations name them at their former place. A file that is missing
//! for another reason (a file system that is not mounted) is never replaced by one that only has its name.

use crate::layout::Layout;
use backstay_hyperv::{Element, LayerStep, Value, VmConfig};
use backstay_model::Merging;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The folder that a configuration's paths were right for.
const HOME: &str = "backstay/home";

/// Where files may be looked for that are not where a configuration says. Files of other machines (the slice) are never
/// taken.
#[derive(Clone, Copy, Debug)]
pub enum Search<'a> {
    /// Nowhere: as written.
    Nowhere,
    /// At the same place below the folder's new path, if the folder was moved.
    Moved(&'a [PathBuf]),
    /// Also by name in the folder, if it was moved or comes from another host: somebody has just pointed at it.
    Registered(&'a [PathBuf]),
}

impl Search<'_> {
    /// A checkpoint's configuration is not rewritten when its machine is registered.
    #[must_use]
    pub fn of_checkpoint(self) -> Self {
        match self {
            Self::Moved(others) => Self::Registered(others),
            other => other,
        }
    }

    fn others(&self) -> &[PathBuf] {
        match self {
            Self::Nowhere => &[],
            Self::Moved(others) | Self::Registered(others) => others,
        }
    }
}

/// The folder that the configuration's paths are right for; none in one that Hyper-V wrote.
fn home(config: &VmConfig) -> Option<PathBuf> {
    match config.get(HOME).and_then(Element::value) {
        Some(Value::String(home)) if !home.is_empty() => Some(home.into()),
        _ => None,
    }
}

/// Notes that the configuration's paths are right for a machine in `root`.
pub fn set_home(config: &mut VmConfig, root: &Path) {
    // A path that XML cannot hold is not noted: then nothing is ever looked for elsewhere.
    if let Some(root) = root.to_str() {
        let _ = config.set(HOME, &Value::String(root.into()));
    }
}

/// A path in the form in which two names of one file are equal.
fn same_file(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.into())
}

/// Also true where that cannot be told.
fn present(path: &Path) -> bool {
    path.is_absolute() && path.try_exists().unwrap_or(true)
}

struct Places<'a> {
    layout: &'a Layout,
    home: Option<PathBuf>,
    moved: bool,
    search: Search<'a>,
}

impl Places<'_> {
    fn is_free(&self, file: &Path) -> bool {
        let file = same_file(file);
        self.search.others().iter().all(|other| same_file(other) != file)
    }

    /// Where a file is now, if it moved.
    fn find(&self, old: &Path) -> Option<PathBuf> {
        if present(old) {
            return None;
        }
        let foreign = !old.is_absolute();
        let by_name = match self.search {
            Search::Nowhere => return None,
            Search::Moved(_) => foreign && self.home.is_none(),
            Search::Registered(_) => foreign || self.moved || self.home.is_none(),
        };
        let home = self.home.as_ref().filter(|_| self.moved);
        let along =
            home.and_then(|home| old.strip_prefix(home).ok()).map(|rest| self.layout.root().join(rest));
        along
            .filter(|file| file.is_file())
            .or_else(|| if by_name { self.layout.relocate(old) } else { None })
            .filter(|file| self.is_free(file))
    }

    /// A new file that may not have been made yet: where it would be.
    fn find_new(&self, old: &Path, folder: &Path) -> Option<PathBuf> {
        if present(old) || matches!(self.search, Search::Nowhere) || !(self.moved || self.home.is_none()) {
            return None;
        }
        let new = folder.join(old.file_name()?);
        let gone = !old.parent().is_some_and(present);
        (new.is_file() || gone && folder.is_dir()).then_some(new).filter(|file| self.is_free(file))
    }

    /// Released files, and those of a merge that was begun.
    fn files(&self, config: &mut VmConfig) {
        let moved = |file: &PathBuf| self.find(file).unwrap_or_else(|| file.clone());
        let released = config.released();
        let found: BTreeSet<PathBuf> = released.iter().map(moved).collect();
        if found != released {
            let _ = config.set_released(&found);
        }
        if let Some(merging) = config.merging() {
            let found = Merging { upper: moved(&merging.upper), lower: moved(&merging.lower) };
            if found != merging {
                let _ = config.set_merging(Some(&found));
            }
        }
    }

    fn steps(&self, layers: &mut [LayerStep], folder: &Path) -> bool {
        let mut changed = false;
        for layer in layers {
            if let Some(from) = self.find(&layer.from) {
                (layer.from, changed) = (from, true);
            }
            if let Some(to) = self.find_new(&layer.to, folder) {
                (layer.to, changed) = (to, true);
            }
        }
        changed
    }
}

/// Points drives, and the steps of a checkpoint that was interrupted, to the files that moved along with the folder; tells
/// what was done.
pub fn relocate(config: &mut VmConfig, layout: &Layout, search: Search<'_>) -> Vec<String> {
    let home = home(config);
    let moved = home.as_ref().is_some_and(|home| same_file(home) != same_file(layout.root()));
    let places = Places { layout, home, moved, search };
    let (spec, _) = config.spec();
    let mut told = Vec::new();
    for drive in &spec.drives {
        let Some(old) = config.drive_path(drive.slot) else { continue };
        let Some(found) = places.find(&old) else { continue };
        if config.set_drive_path(drive.slot, &found).is_ok() {
            let words = format!(
                "the file of {} is not at {}: {} is used",
                drive.slot,
                old.display(),
                found.display()
            );
            told.push(words);
        }
    }
    // A path that was read is one that can be written.
    let folder = layout.layers(spec.id);
    if let Some(mut pending) = config.pending()
        && places.steps(&mut pending.layers, &folder)
    {
        let _ = config.set_pending(Some(&pending));
    }
    let mut kept = config.kept_layers();
    if places.steps(&mut kept, &folder) {
        let _ = config.set_kept_layers(&kept);
    }
    places.files(config);
    settle_home(config, &places);
    told
}

/// Once every file was found, the paths are right for this place.
fn settle_home(config: &mut VmConfig, places: &Places<'_>) {
    let (spec, _) = config.spec();
    let mut files = spec.drives.iter().filter_map(|drive| config.drive_path(drive.slot));
    let found = match (&places.home, places.search) {
        (None, Search::Registered(_)) => files.all(|file| present(&file)),
        (Some(home), Search::Moved(_) | Search::Registered(_)) if places.moved => {
            files.all(|file| !file.starts_with(home))
        }
        _ => false,
    };
    drop(files);
    if found {
        set_home(config, places.layout.root());
    }
}

#[cfg(test)]
mod tests;

//! What becomes of the files of deleted checkpoints: which are merged into their neighbour, which are deleted, which stay
//! and why. A pure plan over the tree of files; it can be made again after a crash at any point and then goes on.
//!
//! A file is *released* when its checkpoint was deleted, and only a released file ever loses its content:
//! - no child: it is deleted;
//! - one child: the child is merged into it, and it takes the child's place: whatever named the child names it from then
//!   on, children of the child become its children, the child is deleted;
//! - more children: it stays until one is left.

use crate::{CheckpointId, DriveSlot};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What names a file as the content of a disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateOf {
    /// The machine writes to it.
    Now(DriveSlot),
    /// The disk at a checkpoint.
    Checkpoint(CheckpointId, DriveSlot),
}

/// A merge that was begun: `lower` holds a part of what is in `upper`, or all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merging {
    /// The file whose content goes down.
    pub upper: PathBuf,
    /// Its parent, which takes it.
    pub lower: PathBuf,
}

/// One change of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileStep {
    /// Nothing needs it.
    Delete(PathBuf),
    /// `upper` goes into `lower`, which takes its place.
    Merge {
        /// The file whose content goes down; deleted in the end.
        upper: PathBuf,
        /// The released file below it.
        lower: PathBuf,
        /// Files above `upper` that get `lower` as their parent.
        children: Vec<PathBuf>,
        /// What names `upper` and names `lower` afterwards.
        states: Vec<StateOf>,
    },
}

/// A released file that stays for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptFile {
    /// The file.
    pub file: PathBuf,
    /// Why, in words.
    pub reason: String,
}

/// What will be done, in order, and what is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilePlan {
    /// In order.
    pub steps: Vec<FileStep>,
    /// Released files that stay.
    pub kept: Vec<KeptFile>,
}

/// The files of a machine's disks as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layers {
    below: BTreeMap<PathBuf, Option<PathBuf>>,
    states: BTreeMap<PathBuf, BTreeSet<StateOf>>,
    released: BTreeSet<PathBuf>,
    untouchable: BTreeMap<PathBuf, String>,
    merging: Option<Merging>,
}

impl Layers {
    /// Notes a chain, the top first.
    pub fn add_chain(&mut self, files: &[PathBuf]) {
        for (index, file) in files.iter().enumerate() {
            let below = files.get(index + 1).cloned();
            let known = self.below.entry(file.clone()).or_default();
            if below.is_some() {
                *known = below;
            }
        }
    }

    /// Notes what names a file.
    pub fn add_state(&mut self, file: &Path, state: StateOf) {
        self.states.entry(file.into()).or_default().insert(state);
    }

    /// Notes that the checkpoint of a file was deleted.
    pub fn release(&mut self, file: &Path) {
        self.released.insert(file.into());
    }

    /// Notes why a file must stay as it is, in words that complete "it stays because".
    pub fn forbid(&mut self, file: &Path, reason: impl Into<String>) {
        self.untouchable.entry(file.into()).or_insert_with(|| reason.into());
    }

    /// Notes the merge that was begun.
    pub fn set_merging(&mut self, merging: Option<Merging>) {
        self.merging = merging;
    }

    /// Whether a file is known.
    #[must_use]
    pub fn contains(&self, file: &Path) -> bool {
        self.below.contains_key(file)
    }

    /// The released files.
    #[must_use]
    pub fn released(&self) -> &BTreeSet<PathBuf> {
        &self.released
    }

    /// Files whose parent is `file`.
    #[must_use]
    pub fn children(&self, file: &Path) -> Vec<PathBuf> {
        let above = self.below.iter().filter(|(_, below)| below.as_deref() == Some(file));
        above.map(|(child, _)| child.clone()).collect()
    }

    /// Files below `file`, at most as many as are known: a ring cannot hold it up.
    fn depth(&self, file: &Path) -> usize {
        let next = |at: &&PathBuf| self.below.get(*at).and_then(Option::as_ref);
        let first = self.below.get(file).and_then(Option::as_ref);
        std::iter::successors(first, next).take(self.below.len()).count()
    }

    /// The next step, if there is one.
    #[must_use]
    pub fn next_step(&self) -> Option<FileStep> {
        if let Some(merging) = &self.merging {
            let Merging { upper, lower } = merging;
            match self.why_stuck(merging) {
                None => return Some(self.merge(upper, lower)),
                // What is made on a file that is missing is not known either.
                Some(_) if !self.contains(upper) || !self.contains(lower) => return None,
                Some(_) => {}
            }
        }
        let stuck = self.merging.is_some();
        let mut released: Vec<_> = self.released.iter().collect();
        // From the bottom: so every byte is copied once on its way down a row of released files.
        released.sort_by_key(|file| (self.depth(file), (*file).clone()));
        let steps: Vec<_> =
            released.into_iter().filter_map(|file| self.step_for(file).ok().flatten()).collect();
        // What goes away need not be merged first; the file above a merge is one of those.
        let delete = steps.iter().find(|step| matches!(step, FileStep::Delete(_)));
        delete.or(steps.first().filter(|_| !stuck)).cloned()
    }

    /// Why a merge that was begun cannot go on. The children of its upper file may be those of the lower one already, so they are
    /// not counted.
    fn why_stuck(&self, merging: &Merging) -> Option<String> {
        let Merging { upper, lower } = merging;
        let missing = [upper, lower].into_iter().find(|file| !self.contains(file));
        let kept = || [upper, lower].into_iter().find_map(|file| self.untouchable.get(file));
        // At its end what named the upper file names the lower one before the record goes.
        let named = |file| self.states.contains_key(file) || self.released.contains(file);
        match (missing, kept()) {
            (Some(file), _) => Some(format!("{} is missing", file.display())),
            (None, Some(reason)) => Some(reason.clone()),
            (None, None) if !named(upper) && !self.states.contains_key(lower) => {
                Some(format!("{} belongs to no checkpoint and is no disk of the machine", upper.display()))
            }
            (None, None) => None,
        }
    }

    /// Why a released file is still there when all that can be done is done.
    fn why_kept(&self, file: &Path) -> Option<String> {
        let stuck = self.merging.as_ref().and_then(|merging| Some((merging, self.why_stuck(merging)?)));
        match (self.step_for(file), stuck) {
            (Err(reason), _) => Some(reason),
            (Ok(Some(FileStep::Merge { .. })), Some((merging, reason))) => {
                let Merging { upper, lower } = merging;
                let (upper, lower) = (upper.display(), lower.display());
                Some(format!(
                    "{upper} is half merged into {lower}, which comes first and cannot go on: {reason}"
                ))
            }
            _ => None,
        }
    }

    fn merge(&self, upper: &Path, lower: &Path) -> FileStep {
        FileStep::Merge {
            upper: upper.into(),
            lower: lower.into(),
            children: self.children(upper),
            states: self.states.get(upper).into_iter().flatten().cloned().collect(),
        }
    }

    /// What is done about a released file; why nothing is.
    fn step_for(&self, file: &Path) -> Result<Option<FileStep>, String> {
        if !self.contains(file) || self.states.contains_key(file) {
            return Ok(None);
        }
        if let Some(reason) = self.untouchable.get(file) {
            return Err(reason.clone());
        }
        match self.children(file).as_slice() {
            [] => Ok(Some(FileStep::Delete(file.into()))),
            [one] => {
                if let Some(reason) = self.untouchable.get(one) {
                    return Err(format!("the file above it, {}, must stay: {reason}", one.display()));
                }
                if !self.states.contains_key(one) && !self.released.contains(one) {
                    return Err(format!("the file above it, {}, belongs to no checkpoint", one.display()));
                }
                Ok(Some(self.merge(one, file)))
            }
            many => Err(format!("{} files are made on it; it is merged when one is left", many.len())),
        }
    }

    /// The files after a step.
    pub fn apply(&mut self, step: &FileStep) {
        match step {
            FileStep::Delete(file) => self.forget(file),
            FileStep::Merge { upper, lower, children, states } => {
                for child in children {
                    self.below.insert(child.clone(), Some(lower.clone()));
                }
                if !self.released.contains(upper) {
                    self.released.remove(lower);
                }
                if !states.is_empty() {
                    self.states.entry(lower.clone()).or_default().extend(states.iter().cloned());
                }
                self.forget(upper);
                self.merging = None;
            }
        }
    }

    fn forget(&mut self, file: &Path) {
        self.below.remove(file);
        self.states.remove(file);
        self.released.remove(file);
    }

    /// Everything that can be done, in order.
    #[must_use]
    pub fn plan(&self) -> FilePlan {
        let mut after = self.clone();
        let mut plan = FilePlan::default();
        // Each step takes a file away.
        for _ in 0..self.below.len() {
            let Some(step) = after.next_step() else { break };
            after.apply(&step);
            plan.steps.push(step);
        }
        let reason =
            |file: &PathBuf| after.why_kept(file).map(|reason| KeptFile { file: file.clone(), reason });
        plan.kept = after.released.iter().filter_map(reason).collect();
        plan
    }
}

#[cfg(test)]
mod tests;

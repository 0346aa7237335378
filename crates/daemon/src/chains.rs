//! Which files each chain consists of, remembered as long as none of them changes: with hundreds of machines nobody wants
//! to open every disk for every question.

use crate::disks::{self, Chain};
use crate::failure::Failure;
use crate::stamp::Stamp;
use backstay_api::ProblemCode;
use backstay_disk::Kinship;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// A chain as it was read.
#[derive(Clone, Debug)]
struct Known {
    files: Vec<PathBuf>,
    stamps: Vec<Stamp>,
}

/// All chains that were looked at. Blocking.
#[derive(Debug, Default)]
pub struct Chains {
    known: Mutex<BTreeMap<PathBuf, Known>>,
    kin: Mutex<BTreeMap<PathBuf, (Stamp, Option<Kinship>)>>,
}

/// Files whose ids are remembered.
const MOST_KIN: usize = 1 << 16;

impl Chains {
    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files of the chain whose top is `top`, the top first. Whether they are in use or could be written to is not
    /// looked at.
    ///
    /// # Errors
    /// As [`disks::probe`].
    pub fn files(&self, top: &Path) -> Result<Vec<PathBuf>, Failure> {
        let known = self.table().get(top).cloned();
        if let Some(known) = known
            && stamps_of(&known.files).is_some_and(|now| now == known.stamps)
        {
            return Ok(known.files);
        }
        let begun = SystemTime::now();
        let files = match (self.read(top), self.remembered(top)) {
            // Somebody writes to one of them, for example a merge: it was made of the same files, or of more.
            (Err(failure), Some(files)) if failure.code() == ProblemCode::InUse => return Ok(files),
            (files, _) => files?,
        };
        if let Some(stamps) = stamps_of(&files)
            && stamps.iter().all(|stamp| stamp.is_older_than(begun))
        {
            self.table().insert(top.into(), Known { files: files.clone(), stamps });
        }
        Ok(files)
    }

    /// The files of a chain that cannot be looked at now, as they were when it last could.
    #[must_use]
    pub fn remembered(&self, top: &Path) -> Option<Vec<PathBuf>> {
        self.table().get(top).map(|known| known.files.clone())
    }

    fn read(&self, top: &Path) -> Result<Vec<PathBuf>, Failure> {
        match disks::probe(top) {
            Ok(chain) => Ok(Chain::files(&chain)),
            Err(failure) => {
                if failure.code() != ProblemCode::InUse {
                    self.table().remove(top);
                }
                Err(failure)
            }
        }
    }

    /// The ids of a disk and of its parent, whether or not it can be opened; none of a file that is no disk, or is gone.
    ///
    /// # Errors
    /// `damaged`.
    pub fn kinship(&self, file: &Path) -> Result<Option<Kinship>, Failure> {
        let stamp = Stamp::of(file).ok();
        let table = || self.kin.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(now), Some((then, kin))) = (&stamp, table().get(file))
            && now == then
        {
            return Ok(kin.clone());
        }
        let begun = SystemTime::now();
        let kin = disks::kinship(file)?;
        if let Some(stamp) = stamp.filter(|stamp| stamp.is_older_than(begun)) {
            let mut table = table();
            if table.len() >= MOST_KIN {
                table.clear();
            }
            table.insert(file.into(), (stamp, kin.clone()));
        }
        Ok(kin)
    }

    /// Forgets every chain but those of `tops`.
    pub fn keep(&self, tops: &BTreeSet<PathBuf>) {
        self.table().retain(|top, _| tops.contains(top));
    }
}

fn stamps_of(files: &[PathBuf]) -> Option<Vec<Stamp>> {
    files.iter().map(|file| Stamp::of(file).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_api::DiskType;

    #[test]
    fn a_chain_that_changes_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().canonicalize().unwrap().join(name);
        let (base, other, top) = (path("base.vhd"), path("other.vhd"), path("top.avhd"));
        disks::create(&base, 8 << 20, DiskType::Dynamic).unwrap();
        disks::create_child(&base, &top).unwrap();
        let chains = Chains::default();
        assert_eq!(chains.files(&top).unwrap(), [top.clone(), base.clone()]);
        assert_eq!(chains.files(&top).unwrap(), [top.clone(), base.clone()]);

        std::fs::remove_file(&top).unwrap();
        assert!(chains.files(&top).is_err(), "a top that is gone");
        disks::create(&other, 8 << 20, DiskType::Dynamic).unwrap();
        disks::create_child(&other, &top).unwrap();
        assert_eq!(
            chains.files(&top).unwrap(),
            [top.clone(), other.clone()],
            "another file of the same name"
        );
        std::fs::remove_file(&other).unwrap();
        assert!(chains.files(&top).is_err(), "a parent that is gone");
    }
}

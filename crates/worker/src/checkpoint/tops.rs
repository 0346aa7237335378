//! Which file is the top of each disk that was switched since the launch record was written: `tops.json`.

use crate::control::LayerSwitch;
use crate::durable;
use backstay_model::DriveSlot;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// One disk's last step. While it is made the two differ, and the top is `to` if that file exists (an empty child reads
/// as its parent), else `from`. Before the guest can write to a new top both name it: then nothing can stand in for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The top before.
    pub from: PathBuf,
    /// The top after.
    pub to: PathBuf,
}

/// Today's top of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top {
    /// The file.
    pub path: PathBuf,
    /// The file below it, if a worker died in the middle of the step: what it had not flushed may be only beside it.
    pub unflushed: Option<PathBuf>,
    /// The step was under way; what came of it is to be written down.
    pub open: bool,
}

impl Top {
    fn certain(path: &Path) -> Self {
        Self { path: path.into(), unflushed: None, open: false }
    }
}

/// The last step of every disk that made one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tops(BTreeMap<DriveSlot, Step>);

impl Tops {
    /// Reads the file; no file is no steps.
    ///
    /// # Errors
    /// As the file system; `InvalidData` for a damaged file.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(durable::read_json(path)?.unwrap_or_default())
    }

    /// Records steps that are about to be made, before the first of them.
    ///
    /// # Errors
    /// As the file system; the file is as before then.
    pub fn announce(path: &Path, switches: &[LayerSwitch]) -> io::Result<()> {
        let mut tops = Self::read(path)?;
        for switch in switches {
            tops.0.insert(switch.slot, Step { from: switch.from.clone(), to: switch.to.clone() });
        }
        durable::replace_json(path, &tops)
    }

    /// Records what came of steps, before the guest can write to the new files. It outlives the process, which is enough:
    /// a run folder does not outlive the host. So the guest does not wait for a disk.
    ///
    /// # Errors
    /// As the file system; the file is as before then.
    pub fn conclude(path: &Path, tops: impl IntoIterator<Item = (DriveSlot, PathBuf)>) -> io::Result<()> {
        let mut all = Self::read(path)?;
        all.0.extend(tops.into_iter().map(|(slot, top)| (slot, Step { from: top.clone(), to: top })));
        durable::swap_json(path, &all)
    }

    /// Forgets the steps of a disk that was attached at a place: another one comes there, or none.
    ///
    /// # Errors
    /// As the file system; the file is as before then.
    pub fn forget(path: &Path, slot: DriveSlot) -> io::Result<()> {
        let mut all = Self::read(path)?;
        if all.0.remove(&slot).is_some() {
            durable::swap_json(path, &all)?;
        }
        Ok(())
    }

    /// Today's top of a disk whose configuration names `configured`.
    ///
    /// # Errors
    /// When it cannot be told whether a file exists.
    pub fn resolve(
        &self,
        slot: DriveSlot,
        configured: &Path,
        exists: impl Fn(&Path) -> io::Result<bool>,
    ) -> io::Result<Top> {
        match self.0.get(&slot) {
            None => Ok(Top::certain(configured)),
            Some(step) if step.from == step.to => Ok(Top::certain(&step.to)),
            Some(step) if exists(&step.to)? => {
                Ok(Top { path: step.to.clone(), unflushed: Some(step.from.clone()), open: true })
            }
            Some(step) => Ok(Top { path: step.from.clone(), unflushed: None, open: true }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: DriveSlot = DriveSlot::Scsi { controller: 1, lun: 3 };

    fn step(from: &str, to: &str) -> LayerSwitch {
        LayerSwitch { slot: SLOT, from: from.into(), to: to.into() }
    }

    #[test]
    fn in_the_middle_of_a_step_the_newest_file_that_exists_is_the_top() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tops.json");
        let none = Tops::read(&file).unwrap();
        assert_eq!(none.resolve(SLOT, Path::new("a"), |_| Ok(true)).unwrap(), Top::certain(Path::new("a")));

        Tops::announce(&file, &[step("a", "b")]).unwrap();
        Tops::announce(&file, &[step("b", "c")]).unwrap();
        let tops = Tops::read(&file).unwrap();
        let top = tops.resolve(SLOT, Path::new("a"), |_| Ok(true)).unwrap();
        assert_eq!((top.path, top.unflushed, top.open), ("c".into(), Some("b".into()), true));
        let top = tops.resolve(SLOT, Path::new("a"), |p| Ok(p != Path::new("c"))).unwrap();
        assert_eq!((top.path, top.unflushed, top.open), ("b".into(), None, true));
        // A folder that does not answer says nothing about the file.
        let silent = |_: &Path| Err(io::ErrorKind::StaleNetworkFileHandle.into());
        assert!(tops.resolve(SLOT, Path::new("a"), silent).is_err());
    }

    #[test]
    fn after_the_step_nothing_stands_in_for_a_file_that_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tops.json");
        Tops::announce(&file, &[step("a", "b")]).unwrap();
        Tops::conclude(&file, [(SLOT, "b".into())]).unwrap();
        let tops = Tops::read(&file).unwrap();
        assert_eq!(tops.resolve(SLOT, Path::new("a"), |_| Ok(false)).unwrap(), Top::certain(Path::new("b")));
    }
}

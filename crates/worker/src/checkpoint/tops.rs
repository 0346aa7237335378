//! Which file is the top of each disk that was switched since the launch record was written: `tops.json`.

use crate::control::LayerSwitch;
use crate::durable;
use backstay_model::DriveSlot;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// One disk's last step: the top is `to` if that file exists (an empty child reads as its parent), else `from`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The top before.
    pub from: PathBuf,
    /// The top after.
    pub to: PathBuf,
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
    pub fn announce(&self, path: &Path, switches: &[LayerSwitch]) -> io::Result<Self> {
        let mut next = self.clone();
        for switch in switches {
            next.0.insert(switch.slot, Step { from: switch.from.clone(), to: switch.to.clone() });
        }
        durable::replace_json(path, &next)?;
        Ok(next)
    }

    /// Today's top of a disk whose configuration names `configured`.
    #[must_use]
    pub fn resolve(&self, slot: DriveSlot, configured: &Path, exists: impl Fn(&Path) -> bool) -> PathBuf {
        match self.0.get(&slot) {
            Some(step) if exists(&step.to) => step.to.clone(),
            Some(step) => step.from.clone(),
            None => configured.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_file_that_exists_is_the_top() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tops.json");
        let slot = DriveSlot::Scsi { controller: 1, lun: 3 };
        let step = |from: &str, to: &str| LayerSwitch { slot, from: from.into(), to: to.into() };
        let none = Tops::read(&file).unwrap();
        assert_eq!(none.resolve(slot, Path::new("a"), |_| true), Path::new("a"));

        none.announce(&file, &[step("a", "b")]).unwrap();
        Tops::read(&file).unwrap().announce(&file, &[step("b", "c")]).unwrap();
        let tops = Tops::read(&file).unwrap();
        assert_eq!(tops.resolve(slot, Path::new("a"), |_| true), Path::new("c"));
        assert_eq!(tops.resolve(slot, Path::new("a"), |p| p != Path::new("c")), Path::new("b"));
    }
}

//! Our records about a machine's files: which belong to deleted checkpoints, and which of them is being merged.

use crate::config::{VmConfig, path_text};
use crate::error::ApplyError;
use crate::tree::{Element, Value};
use backstay_model::{CheckpointId, Merging};
use std::collections::BTreeSet;
use std::path::PathBuf;

const RELEASED: &str = "backstay/released";
const DELETING: &str = "backstay/deleting";
const MERGING: &str = "backstay/merging";
const APPLYING: &str = "backstay/applying";
const MERGE_RATE: &str = "backstay/merge_rate";
/// Hyper-V's own word for it.
const MERGE_PENDING: &str = "global_settings/disk_merge_pending";

/// The values of the leaves below a node.
fn leaves<'a>(node: Option<&'a Element>) -> impl Iterator<Item = String> + 'a {
    node.into_iter().flat_map(Element::children).filter_map(|leaf| match leaf.value() {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    })
}

impl VmConfig {
    /// Replaces the texts below a node of ours; none removes it.
    fn set_leaves(&mut self, path: &str, name: &str, texts: &[String]) {
        self.root.remove(path);
        if texts.is_empty() {
            return;
        }
        let node = self.root.make(path);
        for (index, text) in texts.iter().enumerate() {
            node.set_str(&format!("{name}{index:03}"), text);
        }
    }

    /// Files whose checkpoint was deleted, or was never taken: only these may be merged or deleted.
    #[must_use]
    pub fn released(&self) -> BTreeSet<PathBuf> {
        let listed = leaves(self.root.at(RELEASED)).map(PathBuf::from);
        listed.chain(self.kept_layers().into_iter().map(|step| step.from)).collect()
    }

    /// Replaces the list of released files, and Hyper-V's own flag `disk_merge_pending` with it.
    ///
    /// # Errors
    /// A path that a configuration cannot hold; the configuration is unchanged.
    pub fn set_released(&mut self, files: &BTreeSet<PathBuf>) -> Result<(), ApplyError> {
        let texts: Vec<String> =
            files.iter().map(|file| path_text(file).map(str::to_owned)).collect::<Result<_, _>>()?;
        // The older way of noting it.
        self.set_kept_layers(&[])?;
        self.set_leaves(RELEASED, "file", &texts);
        if !files.is_empty() || self.root.boolean(MERGE_PENDING) == Some(true) {
            self.root.set(MERGE_PENDING, &Value::Bool(!files.is_empty()));
        }
        Ok(())
    }

    /// Checkpoints that are deleted and whose files may still be there.
    #[must_use]
    pub fn deleting(&self) -> BTreeSet<CheckpointId> {
        leaves(self.root.at(DELETING)).filter_map(|text| text.parse().ok()).collect()
    }

    /// Replaces the list of checkpoints that are being deleted.
    pub fn set_deleting(&mut self, checkpoints: &BTreeSet<CheckpointId>) {
        let texts: Vec<_> = checkpoints.iter().map(ToString::to_string).collect();
        self.set_leaves(DELETING, "id", &texts);
    }

    /// The files that were written to before a checkpoint was applied whose memory has not been loaded yet: all that is left of the
    /// former Now if it cannot be.
    #[must_use]
    pub fn applying(&self) -> BTreeSet<PathBuf> {
        leaves(self.root.at(APPLYING)).map(PathBuf::from).collect()
    }

    /// Replaces that list.
    ///
    /// # Errors
    /// A path that a configuration cannot hold; the configuration is unchanged.
    pub fn set_applying(&mut self, files: &BTreeSet<PathBuf>) -> Result<(), ApplyError> {
        let texts: Vec<String> =
            files.iter().map(|file| path_text(file).map(str::to_owned)).collect::<Result<_, _>>()?;
        self.set_leaves(APPLYING, "file", &texts);
        Ok(())
    }

    /// How fast released files are merged at most, in bytes per second; none: as fast as it goes.
    #[must_use]
    pub fn merge_rate(&self) -> Option<u64> {
        self.root.string(MERGE_RATE)?.parse().ok()
    }

    /// Sets that limit.
    pub fn set_merge_rate(&mut self, bytes_per_second: Option<u64>) {
        self.root.remove(MERGE_RATE);
        if let Some(rate) = bytes_per_second {
            self.root.set(MERGE_RATE, &Value::String(rate.to_string()));
        }
    }

    /// The merge that was begun. Children of `upper` may be those of `lower` already.
    #[must_use]
    pub fn merging(&self) -> Option<Merging> {
        let node = self.root.at(MERGING)?;
        let path = |name| node.string(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        Some(Merging { upper: path("upper")?, lower: path("lower")? })
    }

    /// Notes or clears the merge that was begun.
    ///
    /// # Errors
    /// A path that a configuration cannot hold; the configuration is unchanged.
    pub fn set_merging(&mut self, merging: Option<&Merging>) -> Result<(), ApplyError> {
        let texts = match merging {
            Some(m) => Some((path_text(&m.upper)?.to_owned(), path_text(&m.lower)?.to_owned())),
            None => None,
        };
        self.root.remove(MERGING);
        if let Some((upper, lower)) = texts {
            let node = self.root.make(MERGING);
            node.set_str("lower", &lower);
            node.set_str("upper", &upper);
        }
        Ok(())
    }
}

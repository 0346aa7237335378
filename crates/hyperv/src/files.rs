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

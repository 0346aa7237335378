//! Checkpoints form a tree; the machine's current state, "Now", hangs below the checkpoint it continues from.

use crate::{CheckpointId, DriveSlot};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// How a checkpoint's memory was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryMethod {
    /// QEMU background snapshot: the guest is paused for milliseconds, pages are written while it runs.
    Background,
    /// Live mapped-ram save with several channels: where userfaultfd is missing; the pause is the last round.
    LiveMappedRam,
    /// Stopped mapped-ram save: the machine was paused.
    Stopped,
}

/// One disk as it was at the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointDisk {
    /// Where it was attached.
    pub slot: DriveSlot,
    /// The file that holds its content at that instant (read-only from then on).
    pub file: PathBuf,
}

/// A checkpoint as the tree shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its GUID.
    pub id: CheckpointId,
    /// Display name.
    pub name: String,
    /// Free text.
    #[serde(default)]
    pub notes: String,
    /// The checkpoint it was taken on top of; none for the first.
    pub parent: Option<CheckpointId>,
    /// Milliseconds since the Unix epoch.
    pub created_unix_ms: i64,
    /// Whether memory was saved with it; a checkpoint taken while off has none.
    pub has_memory: bool,
    /// How memory was captured.
    #[serde(default)]
    pub method: Option<MemoryMethod>,
    /// The disks at that instant.
    pub disks: Vec<CheckpointDisk>,
}

/// A set of checkpoints that does not form a tree.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TreeError {
    /// Two checkpoints share a GUID.
    #[error("two checkpoints have the GUID {0}")]
    Duplicate(CheckpointId),
    /// Following parents comes back to the start.
    #[error("checkpoint {0} is its own ancestor")]
    Cycle(CheckpointId),
}

/// One line of the printed tree, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeLine {
    /// Branch drawing in front of the name, for example `│  └─ `.
    pub prefix: String,
    /// The checkpoint, or `None` for Now.
    pub checkpoint: Option<CheckpointId>,
}

/// All checkpoints of a machine and the place of Now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointTree {
    by_id: BTreeMap<CheckpointId, Checkpoint>,
    now_parent: Option<CheckpointId>,
}

impl CheckpointTree {
    /// Builds the tree. A parent that does not exist makes its child a root: a lost file must not hide the rest.
    ///
    /// # Errors
    /// Duplicate GUIDs and cycles.
    pub fn new(checkpoints: Vec<Checkpoint>, now_parent: Option<CheckpointId>) -> Result<Self, TreeError> {
        let mut by_id = BTreeMap::new();
        for checkpoint in checkpoints {
            let id = checkpoint.id;
            if by_id.insert(id, checkpoint).is_some() {
                return Err(TreeError::Duplicate(id));
            }
        }
        for start in by_id.keys() {
            let mut seen = BTreeSet::from([*start]);
            let mut at = *start;
            while let Some(parent) = by_id.get(&at).and_then(|c| c.parent) {
                if !seen.insert(parent) {
                    return Err(TreeError::Cycle(parent));
                }
                at = parent;
            }
        }
        Ok(Self { by_id, now_parent })
    }

    /// The checkpoint Now continues from: where `revert` goes.
    #[must_use]
    pub fn now_parent(&self) -> Option<&Checkpoint> {
        self.now_parent.and_then(|id| self.by_id.get(&id))
    }

    /// One checkpoint by id.
    #[must_use]
    pub fn get(&self, id: CheckpointId) -> Option<&Checkpoint> {
        self.by_id.get(&id)
    }

    /// Checkpoints whose name or GUID is `text`; more than one when names repeat.
    #[must_use]
    pub fn find(&self, text: &str) -> Vec<&Checkpoint> {
        if let Ok(id) = text.parse::<CheckpointId>()
            && let Some(found) = self.by_id.get(&id)
        {
            return vec![found];
        }
        self.by_id.values().filter(|c| c.name == text).collect()
    }

    /// `of` and everything that hangs below it, children before their parents.
    #[must_use]
    pub fn subtree(&self, of: CheckpointId) -> Vec<CheckpointId> {
        let mut ids = Vec::new();
        self.collect(of, &mut ids);
        ids
    }

    fn collect(&self, of: CheckpointId, ids: &mut Vec<CheckpointId>) {
        if self.by_id.contains_key(&of) {
            for child in self.children(Some(of)).into_iter().flatten() {
                self.collect(child, ids);
            }
            ids.push(of);
        }
    }

    /// The tree without `gone`: what hung below one of them hangs below its nearest ancestor that stays. Also returned are
    /// the checkpoints whose parent changed by that.
    #[must_use]
    pub fn without(&self, gone: &BTreeSet<CheckpointId>) -> (Self, Vec<CheckpointId>) {
        let ancestor = |from: Option<CheckpointId>| {
            let mut at = from;
            while let Some(id) = at.filter(|id| gone.contains(id)) {
                at = self.by_id.get(&id).and_then(|c| c.parent);
            }
            at
        };
        let (mut by_id, mut moved) = (self.by_id.clone(), Vec::new());
        by_id.retain(|id, _| !gone.contains(id));
        for checkpoint in by_id.values_mut() {
            let parent = ancestor(checkpoint.parent);
            if parent != checkpoint.parent {
                checkpoint.parent = parent;
                moved.push(checkpoint.id);
            }
        }
        (Self { by_id, now_parent: ancestor(self.now_parent) }, moved)
    }

    /// The checkpoint Now continues from as it was recorded, whether or not it still exists.
    #[must_use]
    pub fn now_parent_id(&self) -> Option<CheckpointId> {
        self.now_parent
    }

    /// All checkpoints, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<&Checkpoint> {
        let mut all: Vec<_> = self.by_id.values().collect();
        all.sort_by_key(|c| (c.created_unix_ms, c.id));
        all
    }

    /// The tree top down with branch drawing; Now is the last child of its parent.
    #[must_use]
    pub fn lines(&self) -> Vec<TreeLine> {
        let mut lines = Vec::new();
        self.walk(None, "", &mut lines);
        lines
    }

    fn children(&self, of: Option<CheckpointId>) -> Vec<Option<CheckpointId>> {
        let effective = |parent: Option<CheckpointId>| parent.filter(|p| self.by_id.contains_key(p));
        let mut children: Vec<_> = self.by_id.values().filter(|c| effective(c.parent) == of).collect();
        children.sort_by_key(|c| (c.created_unix_ms, c.id));
        let mut ids: Vec<_> = children.into_iter().map(|c| Some(c.id)).collect();
        if effective(self.now_parent) == of {
            ids.push(None);
        }
        ids
    }

    fn walk(&self, of: Option<CheckpointId>, indent: &str, lines: &mut Vec<TreeLine>) {
        let children = self.children(of);
        let count = children.len();
        for (index, child) in children.into_iter().enumerate() {
            let last = index + 1 == count;
            let (branch, deeper) = match (of, last) {
                (None, _) => ("", ""),
                (Some(_), true) => ("└─ ", "   "),
                (Some(_), false) => ("├─ ", "│  "),
            };
            lines.push(TreeLine { prefix: format!("{indent}{branch}"), checkpoint: child });
            if child.is_some() {
                self.walk(child, &format!("{indent}{deeper}"), lines);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn checkpoint(n: u128, parent: Option<u128>) -> Checkpoint {
        Checkpoint {
            id: CheckpointId(Uuid::from_u128(n)),
            name: format!("c{n}"),
            notes: String::new(),
            parent: parent.map(|p| CheckpointId(Uuid::from_u128(p))),
            created_unix_ms: i64::try_from(n).unwrap(),
            has_memory: true,
            method: None,
            disks: vec![],
        }
    }

    #[test]
    fn the_tree_ends_in_now() {
        let tree = CheckpointTree::new(
            vec![checkpoint(1, None), checkpoint(2, Some(1)), checkpoint(3, Some(1)), checkpoint(4, Some(2))],
            Some(CheckpointId(Uuid::from_u128(3))),
        )
        .unwrap();
        let text: Vec<_> = tree
            .lines()
            .into_iter()
            .map(|l| {
                format!(
                    "{}{}",
                    l.prefix,
                    l.checkpoint.map_or("Now".into(), |id| tree.get(id).unwrap().name.clone())
                )
            })
            .collect();
        assert_eq!(text, ["c1", "├─ c2", "│  └─ c4", "└─ c3", "   └─ Now"]);
    }

    #[test]
    fn cycles_and_duplicates_are_refused() {
        assert!(matches!(
            CheckpointTree::new(vec![checkpoint(1, Some(2)), checkpoint(2, Some(1))], None),
            Err(TreeError::Cycle(_))
        ));
        assert!(matches!(
            CheckpointTree::new(vec![checkpoint(1, None), checkpoint(1, None)], None),
            Err(TreeError::Duplicate(_))
        ));
    }

    #[test]
    fn what_hung_below_a_deleted_checkpoint_hangs_below_its_parent() {
        let id = |n| CheckpointId(Uuid::from_u128(n));
        let tree = CheckpointTree::new(
            vec![checkpoint(1, None), checkpoint(2, Some(1)), checkpoint(3, Some(2)), checkpoint(4, Some(3))],
            Some(id(3)),
        )
        .unwrap();
        assert_eq!(tree.subtree(id(2)), [id(4), id(3), id(2)]);
        assert_eq!(tree.subtree(id(9)), []);
        let (left, moved) = tree.without(&BTreeSet::from([id(2), id(3)]));
        assert_eq!(moved, [id(4)]);
        assert_eq!(left.get(id(4)).unwrap().parent, Some(id(1)));
        assert_eq!(left.now_parent().unwrap().id, id(1));
        let (none, moved) = tree.without(&tree.subtree(id(1)).into_iter().collect());
        assert!(none.all().is_empty() && moved.is_empty());
        assert_eq!(none.now_parent_id(), None);
    }

    #[test]
    fn a_lost_parent_makes_a_root() {
        let tree =
            CheckpointTree::new(vec![checkpoint(5, Some(99))], Some(CheckpointId(Uuid::from_u128(98))))
                .unwrap();
        assert_eq!(tree.lines().len(), 2);
    }
}

//! Checkpoints that lie in files of their own come to their machine.

use super::machine::{Checkpoint, Machine, NotUnderstood};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

impl Machine {
    /// Whether a checkpoint names this machine, or this machine names it.
    #[must_use]
    pub fn owns(&self, checkpoint: &Checkpoint) -> bool {
        let names_us = checkpoint.machine.is_some() && checkpoint.machine == self.id;
        names_us || checkpoint.id.is_some_and(|id| self.named_checkpoints.contains(&id))
    }

    /// Puts a checkpoint from a file of its own here. One with the same GUID that is here already is replaced when it has
    /// fewer drives: an export names checkpoints twice, once without their devices.
    /// More than 1,024 are not taken: Hyper-V has at most 50.
    pub fn adopt(&mut self, checkpoint: Checkpoint) {
        const MOST: usize = 1024;
        if let Some(id) = checkpoint.id {
            self.named_checkpoints.retain(|named| *named != id);
        }
        let known = checkpoint.id.and_then(|id| self.checkpoints.iter().position(|c| c.id == Some(id)));
        match known {
            Some(at) => {
                let drives = |c: &Checkpoint| c.settings.drives().count();
                let here = &mut self.checkpoints[at];
                if drives(&checkpoint) >= drives(here) {
                    let parent = checkpoint.parent.or(here.parent);
                    let created = checkpoint.created_unix_ms.or(here.created_unix_ms);
                    *here = Checkpoint { parent, created_unix_ms: created, ..checkpoint };
                }
            }
            None if self.checkpoints.len() < MOST => self.checkpoints.push(checkpoint),
            None => {
                let why = format!("a machine has at most {MOST} checkpoints here");
                self.not_understood.push(NotUnderstood::new("checkpoint", checkpoint.name, why));
            }
        }
    }

    /// Makes the checkpoints a tree: a parent that does not exist and one that leads back to its own child are taken
    /// away, each with a note. Checkpoints come in the order of their times.
    pub fn settle_tree(&mut self) {
        self.checkpoints.sort_by_key(|c| (c.created_unix_ms, c.id));
        let ids: BTreeSet<Uuid> = self.checkpoints.iter().filter_map(|c| c.id).collect();
        for checkpoint in &mut self.checkpoints {
            if let Some(parent) = checkpoint.parent.filter(|parent| !ids.contains(parent)) {
                let why = "the checkpoint that it names as its parent does not exist";
                checkpoint.parent = None;
                checkpoint.not_understood.push(NotUnderstood::new("parent", parent.to_string(), why));
            }
        }
        // Each checkpoint at most once on a way up: whoever meets itself again is in a ring.
        let mut parents: BTreeMap<Uuid, Option<Uuid>> =
            self.checkpoints.iter().filter_map(|c| Some((c.id?, c.parent))).collect();
        for checkpoint in &mut self.checkpoints {
            let Some(id) = checkpoint.id else { continue };
            let mut passed = BTreeSet::from([id]);
            let mut at = parents.get(&id).copied().flatten();
            while let Some(above) = at.filter(|above| passed.insert(*above)) {
                at = parents.get(&above).copied().flatten();
            }
            if at == Some(id) {
                let why = "it is an ancestor of itself";
                let parent = checkpoint.parent.take().unwrap_or(id);
                checkpoint.not_understood.push(NotUnderstood::new("parent", parent.to_string(), why));
                parents.insert(id, None);
            }
        }
        if let Some(parent) = self.now_parent.filter(|parent| !ids.contains(parent)) {
            let why = "the checkpoint that now continues from does not exist";
            self.now_parent = None;
            self.not_understood.push(NotUnderstood::new("now", parent.to_string(), why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::SourceKind;
    use super::super::{Bus, Drive, DriveKind, DriveQos};
    use super::*;

    fn checkpoint(id: u128, parent: Option<u128>, drives: u32) -> Checkpoint {
        let mut checkpoint = Checkpoint::empty(SourceKind::Xml);
        checkpoint.id = Some(Uuid::from_u128(id));
        checkpoint.machine = Some(Uuid::from_u128(1));
        checkpoint.parent = parent.map(Uuid::from_u128);
        checkpoint.created_unix_ms = i64::try_from(id).ok();
        for location in 0..drives {
            let drive =
                Drive { location, kind: DriveKind::Vhd, path: "x.vhd".into(), qos: DriveQos::default() };
            checkpoint.settings.controller_mut(Bus::Ide, 0).put(drive).unwrap();
        }
        checkpoint
    }

    fn machine() -> Machine {
        let mut machine = Machine::empty(SourceKind::Xml);
        machine.id = Some(Uuid::from_u128(1));
        machine
    }

    #[test]
    fn the_fuller_description_of_a_checkpoint_stays() {
        let mut machine = machine();
        machine.named_checkpoints = vec![Uuid::from_u128(5), Uuid::from_u128(6)];
        assert!(machine.owns(&checkpoint(5, None, 0)));
        machine.adopt(checkpoint(5, Some(4), 0));
        machine.adopt(checkpoint(5, None, 2));
        machine.adopt(checkpoint(5, None, 1));
        assert_eq!(machine.checkpoints.len(), 1);
        assert_eq!(machine.checkpoints[0].settings.drives().count(), 2);
        assert_eq!(machine.checkpoints[0].parent, Some(Uuid::from_u128(4)), "known from the other");
        assert_eq!(machine.named_checkpoints, [Uuid::from_u128(6)]);
        let mut stranger = checkpoint(7, None, 0);
        stranger.machine = Some(Uuid::from_u128(2));
        assert!(!machine.owns(&stranger));
    }

    #[test]
    fn rings_and_lost_parents_become_roots_and_the_rest_stays() {
        let mut machine = machine();
        for (id, parent) in [(13, Some(12)), (11, Some(13)), (12, Some(11)), (14, Some(13)), (15, Some(99))] {
            machine.adopt(checkpoint(id, parent, 0));
        }
        machine.now_parent = Some(Uuid::from_u128(98));
        machine.settle_tree();
        let parents: Vec<_> = machine
            .checkpoints
            .iter()
            .map(|c| (c.id.unwrap().as_u128(), c.parent.map(|p| p.as_u128())))
            .collect();
        assert_eq!(parents, [(11, None), (12, Some(11)), (13, Some(12)), (14, Some(13)), (15, None)]);
        assert_eq!(machine.now_parent, None);
        let notes = machine.checkpoints.iter().map(|c| c.not_understood.len()).sum::<usize>();
        assert_eq!((notes, machine.not_understood.len()), (2, 1));
    }
}

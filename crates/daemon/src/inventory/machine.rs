//! One machine as its folder describes it, with what is known of its processes.

use crate::layout::Layout;
use backstay_api::RunInfo;
use backstay_hyperv::{Element, Value, VmConfig};
use backstay_model::{CheckpointId, CheckpointTree, DriveSlot, Generation, VmId, VmName, VmSpec, VmState};
use std::path::PathBuf;
use std::sync::Arc;

/// Where our count of configuration changes is kept.
const GENERATION: &str = "backstay/generation";

/// A machine. Cheap to clone: what is large is shared and never changed in place.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its GUID.
    pub id: VmId,
    /// The folder it lives in.
    pub layout: Layout,
    /// Its configuration file.
    pub config_file: PathBuf,
    /// The configuration, with paths that exist here.
    pub config: Arc<VmConfig>,
    /// What the configuration says.
    pub spec: Arc<VmSpec>,
    /// Changes of the configuration so far.
    pub generation: Generation,
    /// What deserves attention.
    pub warnings: Arc<Vec<String>>,
    /// Files that could not be read and may belong to its checkpoints: which disks they need is not known.
    pub problems: Arc<Vec<String>>,
    /// Its checkpoints.
    pub checkpoints: Arc<CheckpointTree>,
    /// What it does.
    pub state: VmState,
    /// Why, where that needs words.
    pub reason: Option<String>,
    /// Its processes.
    pub run: Option<RunInfo>,
}

impl Machine {
    /// Display name.
    #[must_use]
    pub fn name(&self) -> &VmName {
        &self.spec.name
    }

    /// Whether it is a template: cloned, and never started or changed.
    #[must_use]
    pub fn is_template(&self) -> bool {
        self.config.is_template()
    }

    /// The hard disks with their top files, in slot order.
    #[must_use]
    pub fn disks(&self) -> Vec<(DriveSlot, PathBuf)> {
        self.spec.disks().into_iter().map(|(slot, path)| (slot, path.clone())).collect()
    }

    /// The host's devices that it has as hard disks, in slot order.
    #[must_use]
    pub fn devices(&self) -> Vec<(DriveSlot, PathBuf)> {
        self.spec.devices().into_iter().map(|(slot, path)| (slot, path.clone())).collect()
    }

    /// The checkpoint Now continues from, if it still exists.
    #[must_use]
    pub fn now_parent(&self) -> Option<CheckpointId> {
        self.checkpoints.now_parent().map(|c| c.id)
    }

    /// Every file that Now or a checkpoint names as a disk's top, with the place for people.
    #[must_use]
    pub fn disk_places(&self) -> Vec<(PathBuf, String)> {
        let now = self.disks().into_iter().map(|(slot, path)| (path, slot.to_string()));
        let then = self.checkpoints.all().into_iter().flat_map(|checkpoint| {
            let place = format!("checkpoint '{}'", checkpoint.name);
            checkpoint.disks.iter().map(move |disk| (disk.file.clone(), place.clone()))
        });
        now.chain(then).collect()
    }
}

/// The generation that a configuration carries.
#[must_use]
pub fn generation_of(config: &VmConfig) -> Generation {
    match config.get(GENERATION).and_then(Element::value) {
        Some(Value::Integer(count)) => Generation(u64::try_from(count).unwrap_or(0)),
        _ => Generation(0),
    }
}

/// Writes the generation into a configuration.
pub fn set_generation(config: &mut VmConfig, generation: Generation) {
    let value = Value::Integer(i64::try_from(generation.0).unwrap_or(i64::MAX));
    // Only strings can be refused.
    let _ = config.set(GENERATION, &value);
}

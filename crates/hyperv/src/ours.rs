//! Our own data: the node `<backstay>` of the root.

use crate::config::{VmConfig, check_text, path_text};
use crate::devices::BIOS;
use crate::error::ApplyError;
use crate::tree::{Element, Value};
use backstay_model::{Checkpoint, CheckpointDisk, CheckpointId, DriveSlot, MemoryMethod};
use std::path::PathBuf;
use uuid::Uuid;

const NOW_PARENT: &str = "backstay/now/parent";
const PENDING: &str = "backstay/pending";
const KEPT: &str = "backstay/kept_layers";
const STOPPED_WITH_HOST: &str = "settings/stopped_at_host_shutdown";
const META: &str = "backstay/checkpoint";
const TEMPLATE: &str = "backstay/template";
const MOVING: &str = "backstay/moving";

/// One disk's step from a file that becomes read-only onto a new one above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerStep {
    /// Which drive.
    pub slot: DriveSlot,
    /// The file below.
    pub from: PathBuf,
    /// The differencing disk on top of it.
    pub to: PathBuf,
}

/// A checkpoint that was begun: written before the first disk steps onto its new file, removed when the configuration
/// names the new files. Whoever finds it after a crash takes `to` where it exists, else `from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingCheckpoint {
    /// The checkpoint being taken.
    pub checkpoint: CheckpointId,
    /// Every disk's step.
    pub layers: Vec<LayerStep>,
}

/// What a checkpoint's copy of the configuration says about the checkpoint itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointMeta {
    /// Its GUID.
    pub id: CheckpointId,
    /// Display name.
    pub name: String,
    /// Free text.
    pub notes: String,
    /// The checkpoint it was taken on top of.
    pub parent: Option<CheckpointId>,
    /// Milliseconds since the Unix epoch.
    pub created_unix_ms: i64,
    /// Whether memory was saved with it.
    pub has_memory: bool,
    /// How memory was captured.
    pub method: Option<MemoryMethod>,
}

/// Text of a [`MemoryMethod`] in the file.
fn method_text(method: MemoryMethod) -> &'static str {
    match method {
        MemoryMethod::Background => "background",
        MemoryMethod::LiveMappedRam => "live-mapped-ram",
        MemoryMethod::Stopped => "stopped",
    }
}

/// A serial number as Hyper-V makes them: `1234-5678-9012-3456-7890-1234-56`.
fn serial_number(unique: Uuid) -> String {
    let digits = format!("{:039}", unique.as_u128());
    let tail = digits.get(13..).unwrap_or(&digits);
    let groups: Vec<&str> =
        (0..tail.len()).step_by(4).filter_map(|at| tail.get(at..tail.len().min(at + 4))).collect();
    groups.join("-")
}

fn method_from(text: &str) -> Option<MemoryMethod> {
    match text {
        "background" => Some(MemoryMethod::Background),
        "live-mapped-ram" => Some(MemoryMethod::LiveMappedRam),
        "stopped" => Some(MemoryMethod::Stopped),
        _ => None,
    }
}

/// Texts of a list of steps, checked.
fn step_texts(layers: &[LayerStep]) -> Result<Vec<[String; 3]>, ApplyError> {
    layers
        .iter()
        .map(|l| Ok([path_text(&l.from)?.into(), l.slot.to_string(), path_text(&l.to)?.into()]))
        .collect()
}

fn write_steps(parent: &mut Element, texts: &[[String; 3]]) {
    for (index, [from, slot, to]) in texts.iter().enumerate() {
        let mut layer = Element::new(format!("layer{index:03}"));
        layer.set_str("from", from);
        layer.set_str("slot", slot);
        layer.set_str("to", to);
        parent.insert_sorted(layer);
    }
}

/// Steps below `parent`; one that cannot be read is left out, because it names no drive of ours.
fn read_steps(parent: &Element) -> Vec<LayerStep> {
    parent
        .children()
        .filter(|e| e.name().starts_with("layer"))
        .filter_map(|e| {
            Some(LayerStep {
                slot: e.string("slot")?.parse().ok()?,
                from: e.string("from")?.into(),
                to: e.string("to")?.into(),
            })
        })
        .collect()
}

impl VmConfig {
    /// Whether this machine is a template: it is cloned, and never started or changed.
    #[must_use]
    pub fn is_template(&self) -> bool {
        self.root.boolean(TEMPLATE).unwrap_or(false)
    }

    /// Makes it a template, or a machine again.
    pub fn set_template(&mut self, template: bool) {
        if template {
            self.root.set(TEMPLATE, &Value::Bool(true));
        } else {
            self.root.remove(TEMPLATE);
        }
    }

    /// The configuration that a clone begins with: settings and hardware, Hyper-V's own included, without what belongs to
    /// the life of one machine. Serial numbers become digits of `unique`; GUIDs, addresses and files are the caller's to
    /// set with [`VmConfig::apply_spec`]. `created` is a FILETIME.
    #[must_use]
    pub fn for_clone(&self, unique: Uuid, created: u64) -> Self {
        let mut clone = self.clone();
        let root = &mut clone.root;
        let kept = ["accelerator", "limits", "machine_type", "nics", "scsi_controllers", "virtio"];
        let ours: Vec<String> = root
            .at("backstay")
            .into_iter()
            .flat_map(Element::children)
            .map(|e| e.name().to_owned())
            .collect();
        for name in ours.iter().filter(|name| !kept.contains(&name.as_str())) {
            root.remove(&format!("backstay/{name}"));
        }
        root.remove("savedstate");
        if root.boolean(STOPPED_WITH_HOST).is_some() {
            root.set(STOPPED_WITH_HOST, &Value::Bool(false));
        }
        let flag = "global_settings/disk_merge_pending";
        if root.boolean(flag).is_some() {
            root.set(flag, &Value::Bool(false));
        }
        root.set("properties/creation_time", &Value::Bytes(created.to_le_bytes().to_vec()));
        for leaf in ["base_board/serial_number", "bios_serial_number", "chassis/serial_number"] {
            let path = format!("{BIOS}/{leaf}");
            // One that Hyper-V never gave stays empty.
            if root.string(&path).is_some_and(|serial| !serial.is_empty()) {
                root.set_str(&path, &serial_number(unique));
            }
        }
        clone
    }

    /// Whether the machine was on when the host was shut down in order, and has not been started since (Hyper-V's own
    /// node).
    #[must_use]
    pub fn stopped_with_host(&self) -> bool {
        self.root.boolean(STOPPED_WITH_HOST).unwrap_or(false)
    }

    /// Notes whether the machine was on when the host was shut down.
    pub fn set_stopped_with_host(&mut self, stopped: bool) {
        if stopped != self.stopped_with_host() {
            self.root.set(STOPPED_WITH_HOST, &Value::Bool(stopped));
        }
    }

    /// The checkpoint that Now continues from.
    #[must_use]
    pub fn now_parent(&self) -> Option<CheckpointId> {
        self.root.string(NOW_PARENT)?.parse().ok()
    }

    /// Sets the checkpoint that Now continues from.
    pub fn set_now_parent(&mut self, parent: Option<CheckpointId>) {
        match parent {
            Some(id) => self.root.set_str(NOW_PARENT, &id.to_string()),
            None => self.root.remove("backstay/now"),
        }
    }

    /// The checkpoint that was begun and not finished.
    #[must_use]
    pub fn pending(&self) -> Option<PendingCheckpoint> {
        let node = self.root.at(PENDING)?;
        Some(PendingCheckpoint {
            checkpoint: node.string("checkpoint")?.parse().ok()?,
            layers: read_steps(node),
        })
    }

    /// Notes or clears the checkpoint that is being taken.
    ///
    /// # Errors
    /// A path that a configuration cannot hold; the configuration is unchanged.
    pub fn set_pending(&mut self, pending: Option<&PendingCheckpoint>) -> Result<(), ApplyError> {
        let texts = pending.map(|p| step_texts(&p.layers)).transpose()?;
        self.root.remove(PENDING);
        if let (Some(pending), Some(texts)) = (pending, texts) {
            let node = self.root.make(PENDING);
            node.set_str("checkpoint", &pending.checkpoint.to_string());
            write_steps(node, &texts);
        }
        Ok(())
    }

    /// The disk that is being moved to another file, if one is: whoever finds it after a crash takes `to` if that file exists,
    /// else `from`.
    #[must_use]
    pub fn moving(&self) -> Option<LayerStep> {
        self.root.at(MOVING).and_then(|node| read_steps(node).into_iter().next())
    }

    /// Notes or clears the disk that is being moved.
    ///
    /// # Errors
    /// A path that a configuration cannot hold; the configuration is unchanged.
    pub fn set_moving(&mut self, moving: Option<&LayerStep>) -> Result<(), ApplyError> {
        let texts = step_texts(moving.map(std::slice::from_ref).unwrap_or_default())?;
        self.root.remove(MOVING);
        if !texts.is_empty() {
            write_steps(self.root.make(MOVING), &texts);
        }
        Ok(())
    }

    /// Disks that stay on a file of a checkpoint that failed: `from` and `to` have to be merged later.
    #[must_use]
    pub fn kept_layers(&self) -> Vec<LayerStep> {
        self.root.at(KEPT).map(read_steps).unwrap_or_default()
    }

    /// Replaces the list of layers to be merged, and Hyper-V's own flag `disk_merge_pending` with it.
    ///
    /// # Errors
    /// A path that a configuration cannot hold; the configuration is unchanged.
    pub fn set_kept_layers(&mut self, layers: &[LayerStep]) -> Result<(), ApplyError> {
        let texts = step_texts(layers)?;
        self.root.remove(KEPT);
        if !texts.is_empty() {
            write_steps(self.root.make(KEPT), &texts);
        }
        let flag = "global_settings/disk_merge_pending";
        if !layers.is_empty() || self.root.boolean(flag) == Some(true) {
            self.root.set(flag, &Value::Bool(!layers.is_empty()));
        }
        Ok(())
    }

    /// What this copy says about its checkpoint; none in a machine's own configuration.
    #[must_use]
    pub fn checkpoint_meta(&self) -> Option<CheckpointMeta> {
        let node = self.root.at(META)?;
        Some(CheckpointMeta {
            id: node.string("id")?.parse().ok()?,
            name: node.string("name").unwrap_or_default(),
            notes: node.string("notes").unwrap_or_default(),
            parent: node.string("parent").and_then(|p| p.parse().ok()),
            created_unix_ms: node.integer("created").unwrap_or(0),
            has_memory: node.boolean("has_memory").unwrap_or(false),
            method: node.string("method").and_then(|m| method_from(&m)),
        })
    }

    /// Makes this configuration the copy that belongs to a checkpoint, or (with none) a machine's own again.
    ///
    /// # Errors
    /// A name or notes that a configuration cannot hold; the configuration is unchanged.
    pub fn set_checkpoint_meta(&mut self, meta: Option<&CheckpointMeta>) -> Result<(), ApplyError> {
        let Some(meta) = meta else {
            self.root.remove(META);
            return Ok(());
        };
        check_text("name", &meta.name)?;
        check_text("notes", &meta.notes)?;
        let node = self.root.make(META);
        node.set_str("id", &meta.id.to_string());
        node.set_str("name", &meta.name);
        node.set_str("notes", &meta.notes);
        node.set("created", &Value::Integer(meta.created_unix_ms));
        node.set("has_memory", &Value::Bool(meta.has_memory));
        match meta.parent {
            Some(parent) => node.set_str("parent", &parent.to_string()),
            None => node.remove("parent"),
        }
        match meta.method {
            Some(method) => node.set_str("method", method_text(method)),
            None => node.remove("method"),
        }
        Ok(())
    }

    /// The checkpoint this copy describes, with the disks as they were; none in a machine's own configuration.
    #[must_use]
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        let meta = self.checkpoint_meta()?;
        let (spec, _) = self.spec();
        let disks = spec
            .disks()
            .into_iter()
            .map(|(slot, file)| CheckpointDisk { slot, file: file.clone() })
            .collect();
        Some(Checkpoint {
            id: meta.id,
            name: meta.name,
            notes: meta.notes,
            parent: meta.parent,
            created_unix_ms: meta.created_unix_ms,
            has_memory: meta.has_memory,
            method: meta.method,
            disks,
        })
    }
}

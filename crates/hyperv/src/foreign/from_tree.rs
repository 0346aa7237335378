//! The tree of a `.xml` or `.vmcx` as a neutral description.

use super::device_names::CLOCK;
use super::hardware::{DynamicMemory, Firmware, Memory, Processors, Settings};
use super::machine::{
    Actions, Checkpoint, CheckpointKind, DataRoots, Document, Machine, NotUnderstood, Recovery, SavedState,
    Source, SourceKind,
};
use super::read::Place;
use crate::config::unix_ms_from_filetime;
use crate::devices::BIOS;
use crate::tree::{Element, Value};
use backstay_model::{BootDevice, HostStartAction, HostStopAction, VirtualHardware};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Entries of a list of what was not understood; the rest is counted.
pub(super) const MOST_NOTES: usize = 300;

/// What is of no interest to another host: counters, versions of devices, topology, and what is read in another way.
/// `*` stands for one name, a last `**` for everything below.
const OF_NO_INTEREST: &[&str] = &[
    "*/VDEVVersion",
    "*/ChannelInstanceGuid",
    "*/VpciInstanceGuid",
    "*/ClusterMonitored",
    "*/TargetVtl",
    "*/PortName",
    "*/Connection/AltPortName",
    "*/Connection/HostResources/**",
    "*/Connection/Features/**",
    "*/Connection/ChimneyOffloadWeight",
    "*/Connection/PreventIPSpoofing",
    "*/Connection/PoolId",
    "*/Connection/Feature_C885BFD1-ABB7-418F-8163-9F379C9F7166/**",
    "*/controller*/drive*/weight",
    "*/controller*/drive*/pool_id",
    "*/num_lock",
    "*/pxe_preferred_protocol",
    "_7d80d3db-61ee-4879-8879-5609f1100ad0_/**",
    "_f3cf6965-e8d3-44a9-9b7d-a04245ea7525_/**",
    "backstay/**",
    "manifest/**",
    "global_settings/devices/generation_id",
    "global_settings/metrics/**",
    "global_settings/owner/**",
    "global_settings/vhd_path_acled",
    "global_settings/snapshots/list/**",
    "properties/last_powered_off_time",
    "properties/last_powered_on_time",
    "properties/last_state_change_time",
    "properties/type_id",
    "settings/memory/vnuma/**",
    "settings/processors/vnuma/**",
    "settings/processors/hw_threads_per_core",
    "settings/vnuma/**",
    "settings/topology/**",
    "settings/stopped_at_host_shutdown",
];

/// Reads leaves and remembers which, so that the others can be listed.
pub(super) struct Tree<'a> {
    pub(super) root: &'a Element,
    /// The root's children by name, so that finding one does not depend on how many there are.
    sections: BTreeMap<&'a str, &'a Element>,
    seen: BTreeSet<String>,
    pub(super) notes: Vec<NotUnderstood>,
}

impl<'a> Tree<'a> {
    fn new(root: &'a Element) -> Self {
        let mut sections = BTreeMap::new();
        for child in root.children() {
            sections.entry(child.name()).or_insert(child);
        }
        Self { root, sections, seen: BTreeSet::new(), notes: Vec::new() }
    }

    /// The element at a path below the root.
    pub(super) fn at(&self, path: &str) -> Option<&'a Element> {
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        let section = self.sections.get(first).copied()?;
        if rest.is_empty() { Some(section) } else { section.at(rest) }
    }

    pub(super) fn note(&mut self, path: &str, value: &str, why: &str) {
        if self.notes.len() < MOST_NOTES {
            self.notes.push(NotUnderstood::new(path, value, why));
        }
    }

    /// A text; none where the leaf is missing or empty.
    pub(super) fn text(&mut self, path: &str) -> Option<String> {
        self.seen.insert(path.to_owned());
        self.at(path).map(Element::text).filter(|text| !text.is_empty())
    }

    /// A value made of a text; one that cannot be is noted.
    pub(super) fn parsed<T>(
        &mut self,
        path: &str,
        what: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(path)?;
        let value = read(text.trim());
        if value.is_none() {
            self.note(path, &text, &format!("this is no {what}"));
        }
        value
    }

    pub(super) fn integer(&mut self, path: &str) -> Option<i64> {
        self.parsed(path, "number", |text| text.parse().ok())
    }

    /// A number that cannot be negative.
    pub(super) fn count<T: TryFrom<i64>>(&mut self, path: &str) -> Option<T> {
        self.parsed(path, "number in its range", |text| T::try_from(text.parse().ok()?).ok())
    }

    pub(super) fn boolean(&mut self, path: &str) -> bool {
        self.maybe(path).unwrap_or(false)
    }

    pub(super) fn maybe(&mut self, path: &str) -> Option<bool> {
        self.parsed(path, "truth value", |text| match text {
            "True" | "true" | "1" => Some(true),
            "False" | "false" | "0" => Some(false),
            _ => None,
        })
    }

    pub(super) fn guid(&mut self, path: &str) -> Option<Uuid> {
        self.parsed(path, "GUID", |text| Uuid::try_parse(text).ok())
    }

    /// Marks everything below `path` as read.
    pub(super) fn saw(&mut self, path: String) {
        self.seen.insert(path);
    }

    /// Notes every leaf with a value that nobody read and that may matter.
    fn note_the_rest(&mut self) {
        let mut left = 0usize;
        let mut open = vec![(String::new(), self.root)];
        while let Some((path, element)) = open.pop() {
            let mut children: Vec<_> = element
                .children()
                .map(|child| {
                    let below = if path.is_empty() {
                        child.name().into()
                    } else {
                        format!("{path}/{}", child.name())
                    };
                    (below, child)
                })
                .collect();
            if !children.is_empty() {
                children.reverse();
                open.append(&mut children);
                continue;
            }
            let value = element.text();
            let says_nothing = matches!(value.trim(), "" | "False" | "0");
            let known = self.seen.contains(&path) || OF_NO_INTEREST.iter().any(|p| matches_path(p, &path));
            if says_nothing || known {
                continue;
            }
            if self.notes.len() < MOST_NOTES {
                self.note(&path, value.trim(), "nothing here corresponds to it");
            } else {
                left += 1;
            }
        }
        if left > 0 {
            self.notes.push(NotUnderstood::new(
                "",
                left.to_string(),
                "further values nothing here corresponds to",
            ));
        }
    }
}

/// Whether a path fits a pattern of [`OF_NO_INTEREST`].
fn matches_path(pattern: &str, path: &str) -> bool {
    let mut names = path.split('/');
    for wanted in pattern.split('/') {
        if wanted == "**" {
            return true;
        }
        let Some(name) = names.next() else { return false };
        let fits = match wanted.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == wanted,
        };
        if !fits {
            return false;
        }
    }
    names.next().is_none()
}

/// What the tree below `<configuration>` says.
pub(super) fn document(root: &Element, kind: SourceKind, place: Place) -> Document {
    let mut tree = Tree::new(root);
    let tree = &mut tree;
    let (global, logical) = (tree.guid("properties/global_id"), tree.guid("settings/global/logical_id"));
    let version = tree.integer("properties/version").map(|v| format!("{}.{}", v >> 8 & 0xFFFF, v & 0xFF));
    let source = Source { kind, version, host: None };
    let type_id = root.string("properties/type_id").unwrap_or_default().to_ascii_lowercase();
    let ours = root.string("backstay/checkpoint/id").and_then(|id| Uuid::try_parse(&id).ok());
    if place.in_snapshots || ours.is_some() || type_id.contains("snapshot") {
        let id = ours.or(place.guid).or(global);
        let machine = [global, logical].into_iter().flatten().find(|guid| Some(*guid) != id);
        let checkpoint = Checkpoint { source, id, machine, ..read_checkpoint(tree, kind) };
        return Document::Checkpoint(Box::new(checkpoint));
    }
    let id = global.or(place.guid).or(logical);
    Document::Machine(Box::new(Machine { source, id, ..read_machine(tree, kind) }))
}

/// Adds what the reader of the form itself doubted.
pub(super) fn add_doubts(document: &mut Document, doubts: &[String]) {
    let notes = match document {
        Document::Machine(machine) => &mut machine.not_understood,
        Document::Checkpoint(checkpoint) => &mut checkpoint.not_understood,
    };
    notes.extend(doubts.iter().map(|doubt| NotUnderstood::new("the file", "", doubt.clone())));
}

fn read_machine(tree: &mut Tree<'_>, kind: SourceKind) -> Machine {
    let mut machine = Machine::empty(kind);
    machine.name = tree.text("properties/name").unwrap_or_default();
    machine.notes = tree.text("properties/notes").unwrap_or_default();
    machine.created_unix_ms = created(tree);
    machine.generation = generation(tree);
    machine.actions = actions(tree);
    machine.clustered = tree.boolean("properties/highly_available");
    machine.roots = DataRoots {
        configuration: tree.text("global_settings/data_root").unwrap_or_default(),
        snapshots: tree.text("global_settings/snapshots/data_root").unwrap_or_default(),
    };
    machine.scope_of_residence = tree.text("global_settings/scope_of_residence").unwrap_or_default();
    machine.saved_state = saved_state(tree);
    machine.merge_pending = tree.boolean("global_settings/disk_merge_pending");
    machine.settings = settings(tree, machine.generation);
    machine.now_parent = parent(tree, "backstay/now/parent");
    machine.named_checkpoints = named_checkpoints(tree.root);
    tree.note_the_rest();
    machine.not_understood = std::mem::take(&mut tree.notes);
    machine
}

fn read_checkpoint(tree: &mut Tree<'_>, kind: SourceKind) -> Checkpoint {
    let mut checkpoint = Checkpoint::empty(kind);
    let ours = |name: &str| tree.at(&format!("backstay/checkpoint/{name}")).map(Element::text);
    let (name, notes) = (ours("name"), ours("notes"));
    let created_ours = ours("created").and_then(|text| text.parse().ok());
    checkpoint.name = name.or(tree.text("properties/name")).unwrap_or_default();
    checkpoint.notes = notes.or(tree.text("properties/notes")).unwrap_or_default();
    checkpoint.created_unix_ms = created_ours.or(created(tree));
    checkpoint.kind = match tree.text("properties/snapshot_type").as_deref() {
        Some("Recovery") => CheckpointKind::Recovery,
        Some("Production") => CheckpointKind::Production,
        Some("Standard") => CheckpointKind::Standard,
        _ => CheckpointKind::Unknown,
    };
    checkpoint.generation = generation(tree);
    // They are the machine's, and the same in every copy.
    actions(tree);
    for path in
        ["global_settings/data_root", "global_settings/snapshots/data_root", "properties/highly_available"]
    {
        tree.saw(path.into());
    }
    checkpoint.saved_state = saved_state(tree);
    checkpoint.settings = settings(tree, checkpoint.generation);
    checkpoint.parent = parent(tree, "backstay/checkpoint/parent");
    tree.note_the_rest();
    checkpoint.not_understood = std::mem::take(&mut tree.notes);
    checkpoint
}

fn created(tree: &mut Tree<'_>) -> Option<i64> {
    const PATH: &str = "properties/creation_time";
    tree.saw(PATH.into());
    let Some(Value::Bytes(bytes)) = tree.at(PATH)?.value() else { return None };
    let filetime = u64::from_le_bytes(bytes.try_into().ok()?);
    (filetime > 0).then(|| unix_ms_from_filetime(filetime))
}

fn generation(tree: &mut Tree<'_>) -> VirtualHardware {
    match tree.integer("properties/subtype") {
        Some(1) => VirtualHardware::Gen2,
        Some(other) if other != 0 => {
            tree.note("properties/subtype", &other.to_string(), "generation 1 is assumed");
            VirtualHardware::Gen1
        }
        _ => VirtualHardware::Gen1,
    }
}

fn actions(tree: &mut Tree<'_>) -> Actions {
    let mut one_of = |path: &str| {
        let found = tree.integer(path);
        if let Some(other) = found.filter(|n| !(0..=2).contains(n)) {
            tree.note(path, &other.to_string(), "the default is assumed");
        }
        found
    };
    let start = match one_of("global_settings/power/host_startup/action") {
        Some(0) => HostStartAction::Nothing,
        Some(2) => HostStartAction::Start,
        _ => HostStartAction::StartIfRunning,
    };
    let stop = match one_of("global_settings/power/host_shutdown/action") {
        Some(0) => HostStopAction::TurnOff,
        Some(2) => HostStopAction::Shutdown,
        _ => HostStopAction::Save,
    };
    let recovery = match one_of("global_settings/unexpected_termination/action") {
        Some(0) => Recovery::None,
        Some(2) => Recovery::Revert,
        _ => Recovery::Restart,
    };
    let start_delay_s = tree.count("global_settings/power/host_startup/delay").unwrap_or(0);
    Actions { start, start_delay_s, stop, recovery }
}

/// Saved memory: the node names its files.
fn saved_state(tree: &mut Tree<'_>) -> Option<SavedState> {
    let node = tree.at("savedstate")?;
    let mut files = Vec::new();
    for leaf in node.children() {
        tree.seen.insert(format!("savedstate/{}", leaf.name()));
        let text = leaf.text();
        if leaf.name().ends_with("location") && !text.trim().is_empty() {
            files.push(text);
        }
    }
    (!files.is_empty()).then_some(SavedState { files })
}

/// The parent among the checkpoints. In Hyper-V's own files the leaf has no documented name: any leaf whose name speaks
/// of a parent and that is a GUID is taken.
fn parent(tree: &mut Tree<'_>, ours: &str) -> Option<Uuid> {
    if let Some(parent) = tree.at(ours).map(Element::text).and_then(|text| Uuid::try_parse(&text).ok()) {
        return Some(parent);
    }
    for place in ["properties", "settings/global", "settings/snapshots", "global_settings/snapshots"] {
        let Some(node) = tree.at(place) else { continue };
        for leaf in node.children().filter(|leaf| leaf.name().to_ascii_lowercase().contains("parent")) {
            if let Ok(guid) = Uuid::try_parse(leaf.text().trim())
                && !guid.is_nil()
            {
                let path = format!("{place}/{}", leaf.name());
                tree.seen.insert(path);
                return Some(guid);
            }
        }
    }
    None
}

/// Every GUID in the list of checkpoints.
fn named_checkpoints(root: &Element) -> Vec<Uuid> {
    const MOST: usize = 1024;
    let mut found = Vec::new();
    let mut open: Vec<&Element> = root.at("global_settings/snapshots/list").into_iter().collect();
    while let Some(element) = open.pop() {
        open.extend(element.children());
        if let Ok(guid) = Uuid::try_parse(element.text().trim())
            && !found.contains(&guid)
            && found.len() < MOST
        {
            found.push(guid);
        }
    }
    found.sort();
    found
}

fn settings(tree: &mut Tree<'_>, generation: VirtualHardware) -> Settings {
    let mut settings = Settings {
        processors: processors(tree),
        memory: memory(tree),
        firmware: firmware(tree, generation),
        time_skew_100ns: tree.integer(&format!("{CLOCK}/RtcDevice/CmosUtcSkew")),
        ..Settings::default()
    };
    super::tree_devices::read(tree, &mut settings);
    settings
}

fn processors(tree: &mut Tree<'_>) -> Processors {
    let normal = Processors::default();
    Processors {
        count: tree.count("settings/processors/count").unwrap_or(normal.count),
        reserve: tree.count("settings/processors/reservation").unwrap_or(normal.reserve),
        limit: tree.count("settings/processors/limit").unwrap_or(normal.limit),
        weight: tree.count("settings/processors/weight").unwrap_or(normal.weight),
        for_migration: tree.boolean("settings/processors/features/limit"),
        for_old_systems: tree.boolean("settings/processors/limit_cpuid"),
        nested: tree.boolean("settings/processors/nested_virtualization/enabled"),
    }
}

fn memory(tree: &mut Tree<'_>) -> Memory {
    const BANK: &str = "settings/memory/bank";
    let normal = Memory::default();
    let mut number = |name: &str| tree.count::<u64>(&format!("{BANK}/{name}"));
    let (size, min, max) = (number("size"), number("reservation"), number("limit"));
    let buffer = tree.count(&format!("{BANK}/target_memory_buffer")).unwrap_or(20);
    let weight = tree.count(&format!("{BANK}/priority")).unwrap_or(normal.weight);
    let dynamic = tree.boolean(&format!("{BANK}/dynamic_memory_enabled"));
    let startup_mib = size.unwrap_or_else(|| {
        tree.notes.push(NotUnderstood::new(format!("{BANK}/size"), "", "missing: 1024 MiB are assumed"));
        normal.startup_mib
    });
    let dynamic = dynamic.then(|| DynamicMemory {
        min_mib: min.unwrap_or(startup_mib),
        max_mib: max.unwrap_or(startup_mib),
        buffer_percent: buffer,
    });
    Memory { startup_mib, dynamic, weight }
}

fn firmware(tree: &mut Tree<'_>, generation: VirtualHardware) -> Firmware {
    let mut text = |name: &str| tree.text(&format!("{BIOS}/{name}")).unwrap_or_default();
    let bios_serial = text("bios_serial_number");
    let base_board_serial = text("base_board/serial_number");
    let chassis_serial = text("chassis/serial_number");
    let chassis_asset_tag = text("chassis/asset_tag");
    let secure_boot_template = text("secure_boot_template_id");
    let secure = tree.maybe(&format!("{BIOS}/secure_boot_enabled"));
    let secure_boot = match generation {
        VirtualHardware::Gen1 => None,
        VirtualHardware::Gen2 => secure,
    };
    Firmware {
        bios_guid: tree.guid(&format!("{BIOS}/bios_guid")),
        bios_serial,
        base_board_serial,
        chassis_serial,
        chassis_asset_tag,
        boot_order: boot_order(tree),
        num_lock: tree.boolean(&format!("{BIOS}/num_lock")),
        secure_boot,
        secure_boot_template,
    }
}

fn boot_order(tree: &mut Tree<'_>) -> Vec<BootDevice> {
    let place = format!("{BIOS}/boot");
    let names: Vec<String> = tree
        .at(&place)
        .into_iter()
        .flat_map(Element::children)
        .map(|e| e.name().to_owned())
        .filter(|name| name.starts_with("device"))
        .take(16)
        .collect();
    let mut order = Vec::new();
    for name in names {
        let device = tree.parsed(
            &format!("{place}/{name}"),
            "boot device that is known here",
            crate::spec::boot_device,
        );
        order.extend(device.filter(|device| !order.contains(device)));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_paths() {
        for (pattern, path, fits) in [
            ("*/VDEVVersion", "_x_/VDEVVersion", true),
            ("*/VDEVVersion", "VDEVVersion", false),
            ("*/VDEVVersion", "_x_/a/VDEVVersion", false),
            ("manifest/**", "manifest/vdev001/name", true),
            ("manifest/**", "manifesto/a", false),
            ("*/controller*/drive*/weight", "_x_/controller0/drive12/weight", true),
            ("a/b", "a/b/c", false),
        ] {
            assert_eq!(matches_path(pattern, path), fits, "{pattern} {path}");
        }
    }
}

//! Devices: class GUIDs, the manifest, and where a drive's node is.

use crate::config::VmConfig;
use crate::tree::{Element, Node, Value};
use backstay_model::DriveSlot;
use uuid::Uuid;

/// Section of the emulated IDE controllers; it has no manifest entry.
pub(crate) const IDE: &str = "_83f8638b-8dca-4152-9eda-2ca8b33039b4_";
/// Section of the BIOS.
pub(crate) const BIOS: &str = "_ac6b8dc1-3257-4a70-b1b2-a9c9215659ad_";
/// Class of a synthetic SCSI controller.
pub(crate) const SCSI_CLASS: &str = "d422512d-2bf2-4752-809d-7b82b5fcb1b4";
/// Class of a synthetic network adapter.
pub(crate) const NIC_CLASS: &str = "2fc216b0-d2e2-4967-9b6d-b8a5c9ca2778";

/// Classes without a counterpart that need none: integration services and the devices every machine has.
pub(crate) const SILENT_CLASSES: [&str; 14] = [
    "58f75a6d-d949-4320-99e1-a2a2576d581c", // mouse
    "197f74e3-b84b-46de-8ae6-82f1cd181cdc", // keyboard
    "f3cf6965-e8d3-44a9-9b7d-a04245ea7525", // video
    "bc12c717-8898-4688-8ee4-2cd14894f8ea", // activation
    "6c09bb55-d683-4da0-8931-c9bf705f6480", // guest interface
    "84eaae65-2f2e-45f5-9bb5-0e857dc8eb47", // heartbeat
    "2a34b1c2-fd73-4043-8a5b-dd2159bc743f", // key-value exchange
    "9f8233ac-be49-4c79-8ee3-e7e1985b2077", // shutdown
    "2497f4de-e9fa-4204-80e4-4b75c46419c0", // time synchronization
    "5ced1297-4598-4915-a5fc-ad21bb4d02a4", // VSS
    "6c5addb9-a11a-4e8e-84cb-e6208201db63", // remote desktop
    "83f8638b-8dca-4152-9eda-2ca8b33039b4", // IDE
    "8e3a359f-559a-4b6a-98a9-1690a6100ed7", // serial ports
    "8f0d2762-0b00-4e04-af4f-19010527cb93", // floppy
];

/// Manifest entries looked at; a machine has at most 4 SCSI controllers, 12 network cards and some 15 others.
pub(crate) const MAX_VDEVS: usize = 256;
/// SCSI controllers of a machine.
pub(crate) const MAX_SCSI: usize = 4;

/// One manifest entry.
pub(crate) struct Vdev {
    /// Class, lower case.
    pub(crate) device: String,
    /// Instance, lower case.
    pub(crate) instance: String,
    /// Display name.
    pub(crate) name: String,
}

impl Vdev {
    /// Name of the instance's section in the root.
    pub(crate) fn section(&self) -> String {
        format!("_{}_", self.instance)
    }
}

/// The section name of an instance.
pub(crate) fn section_of(instance: Uuid) -> String {
    format!("_{:x}_", instance.hyphenated())
}

fn is_vdev(element: &Element) -> bool {
    element.name.strip_prefix("vdev").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

fn guid_text(element: &Element, name: &str) -> String {
    let text = element.string(name).unwrap_or_default();
    text.trim().trim_matches(['{', '}']).to_ascii_lowercase()
}

/// The first [`MAX_VDEVS`] manifest entries in order.
pub(crate) fn vdevs(root: &Element) -> Vec<Vdev> {
    let Some(manifest) = root.child("manifest") else { return Vec::new() };
    manifest
        .children()
        .filter(|e| is_vdev(e))
        .take(MAX_VDEVS)
        .map(|e| Vdev {
            device: guid_text(e, "device"),
            instance: guid_text(e, "instance"),
            name: e.string("name").unwrap_or_default(),
        })
        .collect()
}

/// Whether the entry is a network card: the synthetic class, or any device whose section has an address.
pub(crate) fn is_nic(root: &Element, vdev: &Vdev) -> bool {
    vdev.device == NIC_CLASS || root.child(&vdev.section()).is_some_and(|s| s.child("MacAddress").is_some())
}

/// Section names of the SCSI controllers, in manifest order.
pub(crate) fn scsi_sections(root: &Element) -> Vec<String> {
    vdevs(root).iter().filter(|v| v.device == SCSI_CLASS).map(Vdev::section).collect()
}

/// Adds a manifest entry at the end.
pub(crate) fn add_vdev(root: &mut Element, device: &str, instance: Uuid, name: &str) {
    let manifest = root.make("manifest");
    let number = manifest.children().filter(|e| is_vdev(e)).count() + 1;
    let mut vdev = Element::new(format!("vdev{number:03}"));
    vdev.set_str("device", device);
    vdev.set("flags", &Value::Integer(1));
    vdev.set_str("instance", &format!("{:X}", instance.hyphenated()));
    vdev.set_str("name", name);
    manifest.insert_sorted(vdev);
    renumber(manifest);
}

/// Removes the manifest entry of an instance (lower-case GUID).
pub(crate) fn remove_vdev(root: &mut Element, instance: &str) {
    let Some(manifest) = root.child_mut("manifest") else { return };
    manifest.nodes.retain(
        |node| !matches!(node, Node::Element(e) if is_vdev(e) && guid_text(e, "instance") == instance),
    );
    renumber(manifest);
}

/// Gives the entries consecutive numbers and counts them, as Hyper-V does.
fn renumber(manifest: &mut Element) {
    let mut count = 0i64;
    for node in &mut manifest.nodes {
        if let Node::Element(element) = node
            && is_vdev(element)
        {
            count += 1;
            element.name = format!("vdev{count:03}");
        }
    }
    manifest.set("size", &Value::Integer(count));
}

/// Puts the network cards' manifest entries into the order of `instances` (lower case), in the places they have.
pub(crate) fn order_vdevs(root: &mut Element, instances: &[String]) {
    let Some(manifest) = root.child_mut("manifest") else { return };
    let rank = |e: &Element| instances.iter().position(|i| *i == guid_text(e, "instance"));
    let mut places = Vec::new();
    let mut entries = Vec::new();
    for (index, node) in manifest.nodes.iter().enumerate() {
        if let Node::Element(element) = node
            && is_vdev(element)
            && let Some(rank) = rank(element)
        {
            places.push(index);
            entries.push((rank, node.clone()));
        }
    }
    entries.sort_by_key(|(rank, _)| *rank);
    for (place, (_, entry)) in places.into_iter().zip(entries) {
        manifest.nodes[place] = entry;
    }
    renumber(manifest);
}

/// SCSI controllers that are there also without a drive.
pub(crate) const SCSI_CONTROLLERS: &str = "backstay/scsi_controllers";
/// Where the limits of all disks are.
pub(crate) const LIMITS: &str = "backstay/limits";

/// Path of the node with a disk's limit, whether it exists or not.
pub(crate) fn limit_place(slot: DriveSlot) -> String {
    format!("{LIMITS}/{}", slot.export_name())
}

impl VmConfig {
    /// Path of a drive's node, whether it exists or not; none when its SCSI controller does not exist.
    pub(crate) fn drive_place(&self, slot: DriveSlot) -> Option<String> {
        match slot {
            DriveSlot::Ide { controller, unit } => Some(format!("{IDE}/controller{controller}/drive{unit}")),
            DriveSlot::Scsi { controller, lun } => {
                let sections = scsi_sections(&self.root);
                let section = sections.get(usize::from(controller))?;
                Some(format!("{section}/controller0/drive{lun}"))
            }
            DriveSlot::Virtio { index } => Some(format!("backstay/virtio/drive{index}")),
        }
    }

    pub(crate) fn drive(&self, slot: DriveSlot) -> Option<&Element> {
        self.root.at(&self.drive_place(slot)?)
    }
}

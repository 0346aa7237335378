//! Devices of a `.xml` or `.vmcx` tree.

use super::device_names::{FLOPPY, INTEGRATION, PLATFORM, READ_ELSEWHERE, SERIAL, TPM_CLASS, VLAN_FEATURE};
use super::from_tree::Tree;
use super::hardware::{
    Bus, ComPort, Drive, DriveKind, DriveQos, IntegrationService, Nic, NicKind, OtherDevice, Settings, Vlan,
};
use crate::devices::{IDE, SCSI_CLASS, SILENT_CLASSES, Vdev, is_nic, vdevs};
use crate::tree::Element;
use backstay_model::MacAddress;
use uuid::Uuid;

/// Everything with a section of its own.
pub(super) fn read(tree: &mut Tree<'_>, settings: &mut Settings) {
    let vdevs = vdevs(tree.root);
    drives_of(tree, settings, Bus::Ide, IDE, None);
    let scsi = vdevs.iter().filter(|v| v.device == SCSI_CLASS);
    for (number, vdev) in (0u32..).zip(scsi) {
        let controller = settings.controller_mut(Bus::Scsi, number);
        controller.instance = Uuid::try_parse(&vdev.instance).ok();
        drives_of(tree, settings, Bus::Scsi, &vdev.section(), Some(number));
    }
    drives_of(tree, settings, Bus::Floppy, FLOPPY, None);
    settings.controllers.retain(|c| c.bus == Bus::Scsi || !c.drives.is_empty());
    serial_ports(tree, settings);
    integration(tree, &vdevs, settings);
    settings.tpm = vdevs.iter().any(|v| v.device == TPM_CLASS);
    for vdev in &vdevs {
        if is_nic(tree.root, vdev) {
            let nic = nic(tree, vdev);
            settings.nics.push(nic);
        } else if !is_known(&vdev.device) {
            let other = other_device(tree, vdev);
            settings.other_devices.push(other);
        }
    }
}

fn is_known(class: &str) -> bool {
    class == SCSI_CLASS
        || SILENT_CLASSES.contains(&class)
        || PLATFORM.contains(&class)
        || READ_ELSEWHERE.contains(&class)
}

/// Names of child elements that are `word` and a number, with the number; as many as any controller has places.
fn numbered(node: Option<&Element>, word: &str) -> Vec<(u32, String)> {
    let children = node.into_iter().flat_map(Element::children);
    children
        .filter_map(|e| Some((e.name().strip_prefix(word)?.parse().ok()?, e.name().to_owned())))
        .take(64)
        .collect()
}

/// Drives of one section. `fixed` is the controller's number on the bus where the section is one controller.
fn drives_of(tree: &mut Tree<'_>, settings: &mut Settings, bus: Bus, section: &str, fixed: Option<u32>) {
    for (number, controller) in numbered(tree.at(section), "controller") {
        let place = format!("{section}/{controller}");
        for (location, name) in numbered(tree.at(&place), "drive") {
            let at = format!("{place}/{name}");
            let Some((kind, path)) = medium(tree, &at) else { continue };
            let mut limit = |leaf: &str| tree.count(&format!("{at}/{leaf}")).unwrap_or(0);
            let qos = DriveQos { max_iops: limit("iops_limit"), min_iops: limit("iops_reservation") };
            let drive = Drive { location, kind, path, qos };
            let controller = settings.controller_mut(bus, fixed.unwrap_or(number));
            if let Err(second) = controller.put(drive) {
                tree.note(&at, &second.path, "a second drive at one location");
            }
        }
    }
}

/// What is in a drive; none in one that is not there.
fn medium(tree: &mut Tree<'_>, at: &str) -> Option<(DriveKind, String)> {
    let path = tree.text(&format!("{at}/pathname")).unwrap_or_default();
    let word = tree.text(&format!("{at}/type")).unwrap_or_default();
    let kind = match (word.as_str(), path.is_empty()) {
        ("NONE" | "", true) | ("VHD" | "VFD" | "PHYSICAL", true) => return None,
        ("ISO", true) => DriveKind::EmptyOptical,
        ("VHD", false) => DriveKind::of_disk(&path),
        ("ISO", false) if is_host_drive(&path) => DriveKind::HostOptical,
        ("ISO", false) => DriveKind::Iso,
        ("VFD", false) => DriveKind::Floppy,
        ("PHYSICAL", false) => DriveKind::PassThrough,
        (_, _) => {
            tree.note(at, &format!("{word} {path}"), "a drive of a kind that is not known here");
            return None;
        }
    };
    Some((kind, path))
}

/// `D:` or a device of Windows: no file.
pub(super) fn is_host_drive(path: &str) -> bool {
    let bare = path.strip_prefix(r"\\.\").unwrap_or(path).trim_end_matches('\\');
    let letter = bare.len() == 2 && bare.ends_with(':');
    letter || (path.starts_with(r"\\.\") && !bare.contains('\\'))
}

fn serial_ports(tree: &mut Tree<'_>, settings: &mut Settings) {
    for (number, name) in numbered(tree.at(SERIAL), "port") {
        if let Some(path) = tree.text(&format!("{SERIAL}/{name}/connection")) {
            settings.com_ports.push(ComPort { number: number.saturating_add(1), path });
        }
    }
}

fn integration(tree: &mut Tree<'_>, vdevs: &[Vdev], settings: &mut Settings) {
    for (class, service) in INTEGRATION {
        let section = format!("_{class}_");
        let listed = vdevs.iter().any(|v| v.device == class);
        if !listed && tree.at(&section).is_none() {
            continue;
        }
        let enabled = tree.maybe(&format!("{section}/Enabled")).unwrap_or(true);
        settings.integration.push(IntegrationService { service, enabled });
    }
}

fn nic(tree: &mut Tree<'_>, vdev: &Vdev) -> Nic {
    let section = vdev.section();
    let mut text = |name: &str| tree.text(&format!("{section}/{name}")).unwrap_or_default();
    let friendly = text("FriendlyName");
    let switch_name = text("Connection/AltSwitchName");
    let switch = text("SwitchName");
    let address = text("MacAddress");
    let mac = address.trim().parse::<MacAddress>().ok();
    if mac.is_none() && !address.is_empty() {
        tree.note(&format!("{section}/MacAddress"), &address, "this is no MAC address");
    }
    let mac = mac.filter(|mac| *mac != MacAddress([0; 6]));
    let legacy = [&friendly, &vdev.name].iter().any(|n| n.contains("Legacy") || n.contains("Emulated"));
    let connected = tree.maybe(&format!("{section}/IsConnected"));
    let vlan = vlan(tree, &section);
    let switch_id = Uuid::try_parse(switch.trim()).ok();
    // Before 2012 the leaf held the switch's name where it was made with one.
    let switch_name = if switch_name.is_empty() && switch_id.is_none() { switch } else { switch_name };
    Nic {
        id: Uuid::try_parse(&vdev.instance).ok(),
        name: if friendly.is_empty() { vdev.name.clone() } else { friendly },
        kind: if legacy { NicKind::Legacy } else { NicKind::Synthetic },
        mac,
        mac_is_static: tree.boolean(&format!("{section}/MacAddressIsStatic")),
        connected: connected.unwrap_or(switch_id.is_some() || !switch_name.is_empty()),
        switch_name,
        switch_id,
        vlan,
        mac_spoofing: None,
        bandwidth: None,
    }
}

/// The VLAN is in binary data whose layout is not documented.
fn vlan(tree: &mut Tree<'_>, section: &str) -> Vlan {
    let connection = format!("{section}/Connection");
    let Some(node) = tree.at(&connection) else { return Vlan::None };
    let Some(feature) = node.children().find(|e| e.name().eq_ignore_ascii_case(VLAN_FEATURE)) else {
        return Vlan::None;
    };
    let setting = feature.children().find(|e| e.name().starts_with("Setting_"));
    let Some((setting, data)) = setting.and_then(|s| Some((s, s.string("Data")?))) else { return Vlan::None };
    tree.saw(format!("{connection}/{}/{}/Data", feature.name(), setting.name()));
    tree.saw(format!("{connection}/{}/{}/Version", feature.name(), setting.name()));
    Vlan::Unreadable(data.split_whitespace().collect())
}

fn other_device(tree: &mut Tree<'_>, vdev: &Vdev) -> OtherDevice {
    let section = vdev.section();
    let places = ["HostResource", "HostResources/HostResource/Instance", "Connection/AltSwitchName"];
    let mut host_resource = String::new();
    for place in places {
        if let Some(text) = tree.text(&format!("{section}/{place}")) {
            host_resource = text;
            break;
        }
    }
    OtherDevice { name: vdev.name.clone(), class: vdev.device.clone(), host_resource }
}

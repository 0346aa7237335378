//! Resource allocations of a `.exp`: processors, memory, drives, network cards, serial ports.

use super::exp::{Record, path_key, split_id};
use super::hardware::{
    Bus, ComPort, Drive, DriveKind, DriveQos, DynamicMemory, Nic, NicKind, OtherDevice, Settings, Vlan,
};
use super::tree_devices::is_host_drive;
use backstay_model::MacAddress;
use std::collections::BTreeMap;
use uuid::Uuid;

/// The IDE controllers' device GUID.
const IDE: &str = "83F8638B-8DCA-4152-9EDA-2CA8B33039B4";
/// The floppy controller's.
const FLOPPY: &str = "8F0D2762-0B00-4E04-AF4F-19010527CB93";
/// SCSI controllers that are looked at: Hyper-V has four.
const MOST_SCSI: usize = 256;

pub(super) fn is_known(class: &str) -> bool {
    matches!(
        class,
        "Msvm_ProcessorSettingData"
            | "Msvm_MemorySettingData"
            | "Msvm_ResourceAllocationSettingData"
            | "Msvm_StorageAllocationSettingData"
            | "Msvm_SyntheticEthernetPortSettingData"
            | "Msvm_EmulatedEthernetPortSettingData"
    )
}

/// What an allocation allocates. The sub-type says it; the type only where that is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    IdeController,
    ScsiController,
    DiskDrive,
    PhysicalDisk,
    OpticalDrive,
    FloppyDrive,
    DiskImage,
    OpticalImage,
    PhysicalOptical,
    FloppyImage,
    SerialPort,
    OfEveryMachine,
    Other,
}

fn kind_of(sub_type: &str, number: u32) -> Kind {
    // Both spellings: `Microsoft Synthetic Disk Drive` before 2012, `Microsoft:Hyper-V:Synthetic Disk Drive` since.
    let word = sub_type.strip_prefix("Microsoft:Hyper-V:").or_else(|| sub_type.strip_prefix("Microsoft "));
    match word.unwrap_or(sub_type) {
        "Emulated IDE Controller" => Kind::IdeController,
        "Synthetic SCSI Controller" => Kind::ScsiController,
        "Synthetic Disk Drive" => Kind::DiskDrive,
        "Physical Disk Drive" => Kind::PhysicalDisk,
        "Synthetic DVD Drive" | "Synthetic CD Drive" => Kind::OpticalDrive,
        "Synthetic Diskette Drive" => Kind::FloppyDrive,
        "Virtual Hard Disk" => Kind::DiskImage,
        "Virtual CD/DVD Disk" | "ISO Image" => Kind::OpticalImage,
        "Physical DVD Drive" | "Physical CD Drive" | "Physical CD/DVD Disk" => Kind::PhysicalOptical,
        "Virtual Floppy Disk" => Kind::FloppyImage,
        "Serial Port" => Kind::SerialPort,
        "Serial Controller"
        | "Virtual Keyboard"
        | "Virtual PS2 Mouse"
        | "S3 Display Controller"
        | "Synthetic Mouse"
        | "Synthetic Keyboard"
        | "Synthetic Display Controller"
        | "Diskette Controller" => Kind::OfEveryMachine,
        "" => match number {
            1 => Kind::OfEveryMachine,
            5 => Kind::IdeController,
            6 => Kind::ScsiController,
            16 => Kind::OpticalDrive,
            17 => Kind::SerialPort,
            22 => Kind::DiskDrive,
            _ => Kind::Other,
        },
        _ => Kind::Other,
    }
}

/// SCSI controllers in the order of the file.
#[derive(Default)]
struct ScsiNumbers {
    known: Vec<String>,
}

impl ScsiNumbers {
    /// The number of a controller by its instance, a new one if it was not met before.
    fn number(&mut self, instance: &str) -> Option<u32> {
        let at = self.known.iter().position(|known| known.eq_ignore_ascii_case(instance)).or_else(|| {
            (self.known.len() < MOST_SCSI).then(|| {
                self.known.push(instance.to_owned());
                self.known.len() - 1
            })
        })?;
        u32::try_from(at).ok()
    }
}

/// Reads all devices of one state. `switches` names switches by GUID.
pub(super) fn read(records: &mut [Record<'_>], settings: &mut Settings, switches: &BTreeMap<Uuid, String>) {
    let mut scsi = ScsiNumbers::default();
    for record in records.iter_mut() {
        match record.instance.class() {
            "Msvm_ProcessorSettingData" => processors(record, settings),
            "Msvm_MemorySettingData" => memory(record, settings),
            "Msvm_SyntheticEthernetPortSettingData" => nic(record, settings, NicKind::Synthetic, switches),
            "Msvm_EmulatedEthernetPortSettingData" => nic(record, settings, NicKind::Legacy, switches),
            _ => {}
        }
    }
    // Controllers before what is on them, drives before what is in them.
    for stage in 0..3 {
        for record in records.iter_mut() {
            if !matches!(
                record.instance.class(),
                "Msvm_ResourceAllocationSettingData" | "Msvm_StorageAllocationSettingData"
            ) {
                continue;
            }
            let sub_type = record.text("ResourceSubType").unwrap_or_default();
            let number = record.text("ResourceType").and_then(|text| text.trim().parse().ok()).unwrap_or(0);
            let kind = kind_of(&sub_type, number);
            match (stage, kind) {
                (0, Kind::ScsiController) => scsi_controller(record, settings, &mut scsi),
                (0, Kind::SerialPort) => serial_port(record, settings),
                (0, Kind::IdeController | Kind::OfEveryMachine) => of_every_machine(record),
                (0, Kind::Other) => other(record, settings, &sub_type),
                (1, Kind::DiskDrive | Kind::OpticalDrive | Kind::FloppyDrive | Kind::PhysicalDisk) => {
                    drive(record, settings, &mut scsi, kind);
                }
                (2, Kind::DiskImage | Kind::OpticalImage | Kind::PhysicalOptical | Kind::FloppyImage) => {
                    medium(record, settings, &mut scsi, kind);
                }
                _ => {}
            }
        }
    }
    // A hard disk drive without a disk is nothing to a guest of ours.
    for controller in &mut settings.controllers {
        controller.drives.retain(|d| !(d.path.is_empty() && d.kind != DriveKind::EmptyOptical));
    }
    settings.controllers.retain(|c| c.bus == Bus::Scsi || !c.drives.is_empty());
    settings.com_ports.sort_by_key(|port| port.number);
}

/// Numbers of the allocation itself, the same in every machine.
fn of_every_machine(record: &mut Record<'_>) {
    for name in [
        "Address",
        "ElementName",
        "Limit",
        "Parent",
        "Reservation",
        "VirtualQuantity",
        "VirtualSystemIdentifiers",
        "Weight",
    ] {
        record.texts(name);
    }
}

fn processors(record: &mut Record<'_>, settings: &mut Settings) {
    record.text("ElementName");
    let processors = &mut settings.processors;
    processors.count = record.number("VirtualQuantity").unwrap_or(processors.count);
    processors.reserve = record.number("Reservation").unwrap_or(processors.reserve);
    processors.limit = record.number("Limit").unwrap_or(processors.limit);
    processors.weight = record.number("Weight").unwrap_or(processors.weight);
    processors.for_migration = record.boolean("LimitProcessorFeatures").unwrap_or(false);
    processors.for_old_systems = record.boolean("LimitCPUID").unwrap_or(false);
}

fn memory(record: &mut Record<'_>, settings: &mut Settings) {
    record.text("ElementName");
    let memory = &mut settings.memory;
    match record.number("VirtualQuantity") {
        Some(size) => memory.startup_mib = size,
        None => record.note("VirtualQuantity", "", "missing: 1024 MiB are assumed"),
    }
    let (min, max) = (record.number("Reservation"), record.number("Limit"));
    memory.weight = record.number("Weight").unwrap_or(memory.weight);
    let buffer_percent = record.number("TargetMemoryBuffer").unwrap_or(20);
    if record.boolean("DynamicMemoryEnabled") == Some(true) {
        let size = memory.startup_mib;
        memory.dynamic = Some(DynamicMemory {
            min_mib: min.unwrap_or(size),
            max_mib: max.unwrap_or(size),
            buffer_percent,
        });
    }
}

fn scsi_controller(record: &mut Record<'_>, settings: &mut Settings, scsi: &mut ScsiNumbers) {
    of_every_machine(record);
    // A copy of the definition has no place of its own: the identifiers name its channel.
    let instance = record.identifier().get(1).cloned();
    let channel = record.texts("VirtualSystemIdentifiers").into_iter().next();
    let Some(instance) = instance.or(channel) else {
        record.note("InstanceID", "", "a SCSI controller that cannot be told from others");
        return;
    };
    if let Some(number) = scsi.number(&instance) {
        settings.controller_mut(Bus::Scsi, number).instance = Uuid::try_parse(&instance).ok();
    }
}

/// Bus, controller and location that an identifier speaks of. `location` is what follows the controller's number, or
/// comes from elsewhere. Numbers beyond 255 exist nowhere.
fn place(parts: &[String], scsi: &mut ScsiNumbers, location: Option<u32>) -> Option<(Bus, u32, u32)> {
    let [_, device, rest @ ..] = parts else { return None };
    let number: u32 = rest.first().map_or(Some(0), |n| n.parse().ok())?;
    let location = match location {
        Some(location) => location,
        None => rest.get(1)?.parse().ok()?,
    };
    if number > 255 || location > 255 {
        return None;
    }
    if device.eq_ignore_ascii_case(IDE) {
        Some((Bus::Ide, number, location))
    } else if device.eq_ignore_ascii_case(FLOPPY) {
        Some((Bus::Floppy, number, location))
    } else {
        Some((Bus::Scsi, scsi.number(device)?, location))
    }
}

fn drive(record: &mut Record<'_>, settings: &mut Settings, scsi: &mut ScsiNumbers, kind: Kind) {
    of_every_machine(record);
    let address: Option<u32> = record.number("Address");
    let parent = record.parent_identifier();
    let on_floppy = kind == Kind::FloppyDrive;
    let at = if on_floppy { Some((Bus::Floppy, 0, 0)) } else { place(&parent, scsi, address.or(Some(0))) };
    let Some((bus, number, location)) = at else {
        let parent = record.text("Parent").unwrap_or_default();
        record.note("Parent", &parent, "a drive whose controller is not known");
        return;
    };
    let kind = match kind {
        Kind::OpticalDrive => DriveKind::EmptyOptical,
        Kind::FloppyDrive => DriveKind::Floppy,
        Kind::PhysicalDisk => DriveKind::PassThrough,
        _ => DriveKind::OtherDisk,
    };
    let path = record.texts("HostResource").into_iter().next().unwrap_or_default();
    let path = if kind == DriveKind::PassThrough { path } else { String::new() };
    let drive = Drive { location, kind, path, qos: DriveQos::default() };
    if settings.controller_mut(bus, number).put(drive).is_err() {
        record.note("Parent", &format!("{bus:?} {number} {location}"), "a second drive at one location");
    }
}

fn medium(record: &mut Record<'_>, settings: &mut Settings, scsi: &mut ScsiNumbers, kind: Kind) {
    of_every_machine(record);
    let first = |texts: Vec<String>| texts.into_iter().find(|text| !text.is_empty());
    // Before 2012 the path is the connection, since then the host's resource.
    let connection = first(record.texts("Connection"));
    let path = connection.or_else(|| first(record.texts("HostResource"))).unwrap_or_default();
    let parent = record.parent_identifier();
    let at = if kind == Kind::FloppyImage { Some((Bus::Floppy, 0, 0)) } else { place(&parent, scsi, None) };
    let Some((bus, number, location)) = at else {
        record.note("Parent", &path, "a medium whose drive is not known");
        return;
    };
    let kind = match kind {
        Kind::OpticalImage if path.is_empty() => DriveKind::EmptyOptical,
        Kind::OpticalImage if is_host_drive(&path) => DriveKind::HostOptical,
        Kind::OpticalImage => DriveKind::Iso,
        Kind::PhysicalOptical => DriveKind::HostOptical,
        Kind::FloppyImage => DriveKind::Floppy,
        _ => DriveKind::of_disk(&path),
    };
    let controller = settings.controller_mut(bus, number);
    match controller.drives.iter_mut().find(|d| d.location == location) {
        Some(drive) if drive.path.is_empty() => {
            drive.kind = kind;
            drive.path = path;
        }
        Some(_) => record.note("Parent", &path, "a second medium in one drive"),
        None => _ = controller.put(Drive { location, kind, path, qos: DriveQos::default() }),
    }
}

fn serial_port(record: &mut Record<'_>, settings: &mut Settings) {
    of_every_machine(record);
    let paths = record.texts("Connection");
    let name = record.text("ElementName").unwrap_or_default();
    let id = record.text("InstanceID").map(|id| split_id(&id)).unwrap_or_default();
    // `COM 2`; else the identifier's last part counts from 0.
    let of_name = name.trim().strip_prefix("COM").and_then(|number| number.trim().parse().ok());
    let of_id = || id.last().and_then(|last| last.parse::<u32>().ok()).and_then(|n| n.checked_add(1));
    let Some(path) = paths.into_iter().find(|path| !path.is_empty()) else { return };
    match of_name.or_else(of_id) {
        Some(number) => settings.com_ports.push(ComPort { number, path }),
        None => record.note("Connection", &path, "a serial port without a number"),
    }
}

fn other(record: &mut Record<'_>, settings: &mut Settings, sub_type: &str) {
    of_every_machine(record);
    let name = record.text("ElementName").unwrap_or_default();
    let host_resource = record.texts("HostResource").into_iter().next().unwrap_or_default();
    settings.other_devices.push(OtherDevice { name, class: sub_type.into(), host_resource });
}

fn nic(record: &mut Record<'_>, settings: &mut Settings, kind: NicKind, switches: &BTreeMap<Uuid, String>) {
    let name = record.text("ElementName").unwrap_or_default();
    let mac = record.parsed("Address", "MAC address", |text| text.parse::<MacAddress>().ok());
    let mac_is_static = record.boolean("StaticMacAddress").unwrap_or(false);
    let connection = record.texts("Connection").into_iter().find(|path| !path.is_empty());
    let identifiers = record.texts("VirtualSystemIdentifiers");
    let of_id = |id: &String| Uuid::try_parse(id.trim()).ok();
    let own = record.text("InstanceID").map(|id| split_id(&id)).unwrap_or_default();
    for property in ["Limit", "Reservation", "VirtualQuantity", "Weight", "Parent"] {
        record.texts(property);
    }
    let switch = connection.as_deref().and_then(|path| path_key(path, "SystemName"));
    let switch_id = switch.and_then(|id| Uuid::try_parse(id.trim()).ok());
    // A switch may have any text for a name in place of a GUID.
    let unnamed = || switch.filter(|_| switch_id.is_none()).map(str::to_owned);
    let switch_name =
        switch_id.and_then(|id| switches.get(&id).cloned()).or_else(unnamed).unwrap_or_default();
    settings.nics.push(Nic {
        id: own.get(1).and_then(of_id).or_else(|| identifiers.iter().find_map(of_id)),
        name,
        kind,
        mac: mac.filter(|mac| *mac != MacAddress([0; 6])),
        mac_is_static,
        connected: connection.is_some(),
        switch_name,
        switch_id,
        vlan: Vlan::None,
        mac_spoofing: None,
        bandwidth: None,
    });
}

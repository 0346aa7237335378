//! A neutral description as the instances of a `.exp`.

use super::exp::class_of;
use super::hardware::{Bus, Controller, Drive, DriveKind, Integration, Nic, NicKind, Settings};
use super::machine::{Checkpoint, Machine, Recovery};
use crate::cim::{CimDocument, InstanceBuilder, cim_interval, cim_time, envelope};
use crate::template::derive;
use crate::tree::Element;
use backstay_model::{BootDevice, HostStartAction, HostStopAction, VmId};
use std::fmt::Write as _;
use uuid::Uuid;

const IDE: &str = "83F8638B-8DCA-4152-9EDA-2CA8B33039B4";
const FLOPPY: &str = "8F0D2762-0B00-4E04-AF4F-19010527CB93";
const SERIAL: &str = "8E3A359F-559A-4B6A-98A9-1690A6100ED7";
const PROCESSOR: &str = "b637f346-6a0e-4dec-af52-bd70cb80a21d";
const MEMORY: &str = "4764334d-e001-4176-82ee-5594ec9b530e";

/// The machine with its state of now.
pub(super) fn machine(machine: &Machine, id: Uuid) -> CimDocument {
    let mut instances = vec![global(machine, id)];
    let mut system = InstanceBuilder::new("Msvm_VirtualSystemSettingData");
    let parent = machine.now_parent.map(system_path);
    let words = [machine.name.as_str(), machine.notes.as_str()];
    system_settings(&mut system, id, id, words, machine.created_unix_ms, parent, &machine.settings);
    system.number("SettingType", "uint16", 3);
    instances.push(system.build());
    hardware(&machine.settings, id, &mut instances);
    envelope(instances)
}

/// A checkpoint with its settings.
pub(super) fn checkpoint(machine: &Machine, checkpoint: &Checkpoint, id: Uuid) -> CimDocument {
    let own = checkpoint.id.unwrap_or_default();
    let mut system = InstanceBuilder::new("Msvm_VirtualSystemSettingData");
    let parent = checkpoint.parent.map(system_path);
    let words = [checkpoint.name.as_str(), checkpoint.notes.as_str()];
    system_settings(
        &mut system,
        own,
        machine.id.unwrap_or(id),
        words,
        checkpoint.created_unix_ms,
        parent,
        &checkpoint.settings,
    );
    system.number("SettingType", "uint16", 5);
    let mut instances = vec![system.build()];
    hardware(&checkpoint.settings, own, &mut instances);
    envelope(instances)
}

/// Text that XML can hold.
fn clean(text: &str) -> String {
    text.chars().filter(|c| crate::tree::is_xml_char(*c)).collect()
}

fn guid(id: Uuid) -> String {
    VmId(id).to_string()
}

/// The object path of the settings with that GUID.
fn system_path(id: Uuid) -> String {
    format!(r#"\\.\root\virtualization:Msvm_VirtualSystemSettingData.InstanceID="Microsoft:{}""#, guid(id))
}

fn global(machine: &Machine, id: Uuid) -> Element {
    let actions = machine.actions;
    let start = match actions.start {
        HostStartAction::Nothing => 0,
        HostStartAction::StartIfRunning => 1,
        HostStartAction::Start => 2,
    };
    let stop = match actions.stop {
        HostStopAction::TurnOff => 0,
        HostStopAction::Save => 1,
        HostStopAction::Shutdown => 2,
    };
    let recovery = match actions.recovery {
        Recovery::None => 0,
        // A checkpoint to revert to would have to be named by the target's own path.
        Recovery::Restart | Recovery::Revert => 1,
    };
    let mut instance = InstanceBuilder::new("Msvm_VirtualSystemGlobalSettingData");
    instance
        .string("AdditionalRecoveryInformation", "")
        .boolean("AllowFullSCSICommandSet", false)
        .number("AutomaticRecoveryAction", "uint16", recovery)
        .number("AutomaticShutdownAction", "uint16", stop)
        .number("AutomaticStartupAction", "uint16", start)
        .one("AutomaticStartupActionDelay", "datetime", Some(&cim_interval(actions.start_delay_s)))
        .string("Caption", "Global Virtual Machine Settings")
        .string("Description", "Global settings for the virtual machine")
        .string("ElementName", &clean(&machine.name))
        .string("ExternalDataRoot", &clean(&machine.roots.configuration))
        .string("InstanceID", &format!(r"Microsoft:{}\Global", guid(id)))
        // Never the source's: with one the import fails on another domain.
        .string("ScopeOfResidence", "")
        .number("SettingType", "uint16", 32_768)
        .string("SnapshotDataRoot", &clean(&machine.roots.snapshots))
        .string("SystemName", &guid(id))
        .number("VirtualSystemType", "uint16", 301);
    instance.build()
}

fn system_settings(
    instance: &mut InstanceBuilder,
    own: Uuid,
    system: Uuid,
    [name, notes]: [&str; 2],
    created_unix_ms: Option<i64>,
    parent: Option<String>,
    settings: &Settings,
) {
    let firmware = &settings.firmware;
    let order: Vec<String> = firmware
        .boot_order
        .iter()
        .map(|device| match device {
            BootDevice::Floppy => "0".to_owned(),
            BootDevice::Optical => "1".to_owned(),
            BootDevice::HardDrive => "2".to_owned(),
            BootDevice::Network => "3".to_owned(),
        })
        .collect();
    let bios_guid = firmware.bios_guid.map(|id| format!("{{{}}}", guid(id))).unwrap_or_default();
    instance
        .string("BaseBoardSerialNumber", &clean(&firmware.base_board_serial))
        .string("BIOSGUID", &bios_guid)
        .boolean("BIOSNumLock", firmware.num_lock)
        .string("BIOSSerialNumber", &clean(&firmware.bios_serial))
        .many("BootOrder", "uint16", &order)
        .string("Caption", "Virtual Machine Settings")
        .string("ChassisAssetTag", &clean(&firmware.chassis_asset_tag))
        .string("ChassisSerialNumber", &clean(&firmware.chassis_serial))
        .one("CreationTime", "datetime", created_unix_ms.map(cim_time).as_deref())
        .string("Description", "Settings for the virtual machine")
        .string("ElementName", &clean(name))
        .string("InstanceID", &format!("Microsoft:{}", guid(own)))
        .string("Notes", &clean(notes))
        .string("Parent", &parent.unwrap_or_default())
        .string("SystemName", &guid(system))
        .number("VirtualSystemType", "uint16", 3);
}

/// Everything that is allocated to one state.
fn hardware(settings: &Settings, owner: Uuid, instances: &mut Vec<Element>) {
    let owner_text = guid(owner);
    instances.push(processors(settings, &owner_text));
    instances.push(memory(settings, &owner_text));
    // Both IDE controllers always exist.
    for number in 0..2 {
        let id = format!(r"{owner_text}\{IDE}\{number}");
        let mut controller = allocation(
            "Microsoft Emulated IDE Controller",
            5,
            &format!("IDE Controller {number}"),
            &id,
            None,
        );
        controller.string("Address", &number.to_string());
        instances.push(controller.build());
    }
    for controller in &settings.controllers {
        drives_of(controller, owner, &owner_text, instances);
    }
    for port in &settings.com_ports {
        let Some(number) = port.number.checked_sub(1) else { continue };
        let id = format!(r"{owner_text}\{SERIAL}\{number}");
        let mut instance =
            allocation("Microsoft Serial Port", 17, &format!("COM {}", port.number), &id, None);
        instance.many("Connection", "string", &[clean(&port.path)]);
        instances.push(instance.build());
    }
    for (number, nic) in (0u64..).zip(&settings.nics) {
        instances.push(network_card(nic, owner, number));
    }
    for service in &settings.integration {
        if service.service == Integration::GuestServices {
            // It came with 2012 R2.
            continue;
        }
        let mut instance = InstanceBuilder::new(class_of(service.service));
        let id = derive(owner, class_of(service.service), 0);
        instance
            .number("EnabledState", "uint16", if service.enabled { 2 } else { 3 })
            .string("InstanceID", &format!(r"Microsoft:{owner_text}\{}", guid(id)));
        instances.push(instance.build());
    }
}

/// A resource allocation; `id` is what follows `Microsoft:`.
fn allocation(sub_type: &str, number: u64, name: &str, id: &str, parent: Option<&str>) -> InstanceBuilder {
    let mut instance = InstanceBuilder::new("Msvm_ResourceAllocationSettingData");
    basics(&mut instance, sub_type, number, name, id);
    let parent = parent.map(|parent| {
        format!(
            r#"\\.\root\virtualization:Msvm_ResourceAllocationSettingData.InstanceID="Microsoft:{parent}""#
        )
    });
    instance
        .number("Limit", "uint64", 1)
        .string("Parent", &parent.unwrap_or_default())
        .number("Reservation", "uint64", 1)
        .number("VirtualQuantity", "uint64", 1)
        .number("Weight", "uint32", 0);
    instance
}

fn basics(instance: &mut InstanceBuilder, sub_type: &str, number: u64, name: &str, id: &str) {
    instance
        .boolean("AutomaticAllocation", true)
        .boolean("AutomaticDeallocation", true)
        .string("ElementName", &clean(name))
        .string("InstanceID", &format!("Microsoft:{id}"))
        .string("ResourceSubType", sub_type)
        .number("ResourceType", "uint16", number);
}

fn processors(settings: &Settings, owner: &str) -> Element {
    let processors = settings.processors;
    let mut instance = InstanceBuilder::new("Msvm_ProcessorSettingData");
    basics(&mut instance, "Microsoft Processor", 3, "Processor", &format!(r"{owner}\{PROCESSOR}\0"));
    instance
        .number("Limit", "uint64", processors.limit)
        .boolean("LimitCPUID", processors.for_old_systems)
        .boolean("LimitProcessorFeatures", processors.for_migration)
        .number("ProcessorsPerSocket", "uint16", 1)
        .number("Reservation", "uint64", processors.reserve)
        .number("SocketCount", "uint16", 1)
        .number("VirtualQuantity", "uint64", processors.count.into())
        .number("Weight", "uint32", processors.weight.into());
    instance.build()
}

fn memory(settings: &Settings, owner: &str) -> Element {
    let memory = settings.memory;
    let size = memory.startup_mib;
    let mut instance = InstanceBuilder::new("Msvm_MemorySettingData");
    basics(&mut instance, "Microsoft Virtual Machine Memory", 4, "Memory", &format!(r"{owner}\{MEMORY}"));
    instance
        .string("AllocationUnits", "MB")
        .boolean("DynamicMemoryEnabled", memory.dynamic.is_some())
        .number("Limit", "uint64", memory.dynamic.map_or(size, |d| d.max_mib))
        .number("Reservation", "uint64", memory.dynamic.map_or(size, |d| d.min_mib))
        .number("TargetMemoryBuffer", "uint32", memory.dynamic.map_or(20, |d| d.buffer_percent).into())
        .number("VirtualQuantity", "uint64", size)
        .number("Weight", "uint32", memory.weight.into());
    instance.build()
}

/// A controller's own instance where it has one, its drives and their media.
fn drives_of(controller: &Controller, owner: Uuid, owner_text: &str, instances: &mut Vec<Element>) {
    let place = match controller.bus {
        Bus::Ide => format!(r"{owner_text}\{IDE}\{}", controller.number),
        Bus::Floppy => format!(r"{owner_text}\{FLOPPY}\{}", controller.number),
        Bus::Scsi => {
            let made = || derive(owner, "scsi controller", controller.number.into());
            let id = guid(controller.instance.unwrap_or_else(made));
            let place = format!(r"{owner_text}\{id}\0");
            let mut instance =
                allocation("Microsoft Synthetic SCSI Controller", 6, "SCSI Controller", &place, None);
            instance.many("VirtualSystemIdentifiers", "string", &[format!("{{{}}}", id.to_lowercase())]);
            instances.push(instance.build());
            place
        }
    };
    for drive in &controller.drives {
        drive_and_medium(drive, &place, instances);
    }
}

fn drive_and_medium(drive: &Drive, controller: &str, instances: &mut Vec<Element>) {
    let mut place = String::new();
    // Writing to a text cannot fail.
    let _ = write!(place, r"{controller}\{}", drive.location);
    let drive_id = format!(r"{place}\D");
    let (sub_type, number, name, image) = match drive.kind {
        DriveKind::PassThrough => ("Microsoft Physical Disk Drive", 22, "Hard Drive", None),
        DriveKind::Iso | DriveKind::EmptyOptical | DriveKind::HostOptical => (
            "Microsoft Synthetic DVD Drive",
            16,
            "DVD Drive",
            Some(("Microsoft Virtual CD/DVD Disk", "ISO Disk Image")),
        ),
        DriveKind::Floppy => (
            "Microsoft Synthetic Diskette Drive",
            14,
            "Diskette Drive",
            Some(("Microsoft Virtual Floppy Disk", "Floppy Disk Image")),
        ),
        DriveKind::Vhd | DriveKind::Vhdx | DriveKind::VhdSet | DriveKind::OtherDisk => (
            "Microsoft Synthetic Disk Drive",
            22,
            "Hard Drive",
            Some(("Microsoft Virtual Hard Disk", "Hard Disk Image")),
        ),
    };
    let mut instance = allocation(sub_type, number, name, &drive_id, Some(controller));
    instance.string("Address", &drive.location.to_string());
    if drive.kind == DriveKind::PassThrough {
        instance.many("HostResource", "string", &[clean(&drive.path)]);
    }
    instances.push(instance.build());
    if let Some((sub_type, name)) = image
        && !drive.path.is_empty()
    {
        let mut instance = allocation(sub_type, 21, name, &format!(r"{place}\L"), Some(&drive_id));
        instance.many("Connection", "string", &[clean(&drive.path)]);
        instances.push(instance.build());
    }
}

fn network_card(nic: &Nic, owner: Uuid, number: u64) -> Element {
    let (class, sub_type, name) = match nic.kind {
        NicKind::Synthetic => {
            ("Msvm_SyntheticEthernetPortSettingData", "Microsoft Synthetic Ethernet Port", "Network Adapter")
        }
        NicKind::Legacy => (
            "Msvm_EmulatedEthernetPortSettingData",
            "Microsoft Emulated Ethernet Port",
            "Legacy Network Adapter",
        ),
    };
    let id = nic.id.unwrap_or_else(|| derive(owner, "network card", number));
    let name = if nic.name.is_empty() { name } else { &nic.name };
    let mut instance = InstanceBuilder::new(class);
    basics(&mut instance, sub_type, 10, name, &format!(r"{}\{}", guid(owner), guid(id)));
    let address = nic.mac.map(|mac| mac.to_string().replace('-', "")).unwrap_or_default();
    let switch = nic.switch_id.map(guid).unwrap_or_else(|| clean(&nic.switch_name));
    let connection: Vec<String> = (nic.connected && !switch.is_empty())
        .then(|| {
            let port = guid(derive(id, "switch port", 0));
            format!(
                r#"\\.\root\virtualization:Msvm_SwitchPort.CreationClassName="Msvm_SwitchPort",Name="{port}",SystemCreationClassName="Msvm_VirtualSwitch",SystemName="{}""#,
                switch.replace('"', "")
            )
        })
        .into_iter()
        .collect();
    instance
        .string("Address", &address)
        .many("Connection", "string", &connection)
        .number("Limit", "uint64", 1)
        .number("Reservation", "uint64", 1)
        .boolean("StaticMacAddress", nic.mac_is_static)
        .number("VirtualQuantity", "uint64", 1)
        .many("VirtualSystemIdentifiers", "string", &[format!("{{{:x}}}", id.hyphenated())])
        .number("Weight", "uint32", 0);
    instance.build()
}

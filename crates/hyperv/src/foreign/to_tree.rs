//! A neutral description as the tree of a `.xml`.

use super::device_names::{CLOCK, FLOPPY, INTEGRATION, SERIAL};
use super::hardware::{Bus, Controller, Drive, DriveKind, Firmware, Nic, NicKind, Settings};
use super::machine::{Actions, Checkpoint, Machine, Recovery};
use crate::apply::boot_word;
use crate::config::{check_text, filetime_from_unix_ms};
use crate::devices::{BIOS, IDE, NIC_CLASS, SCSI_CLASS, add_vdev, section_of};
use crate::error::ApplyError;
use crate::template::{bare, derive};
use crate::tree::{Element, Value};
use crate::{CheckpointMeta, VmConfig};
use backstay_model::{CheckpointId, HostStartAction, HostStopAction, VirtualHardware, VmId};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Name that the manifest gives an emulated network card, and the class it is told by: Hyper-V's own is not documented.
const LEGACY_NAME: &str = "Microsoft Emulated Ethernet Port";

impl Machine {
    /// The machine as a configuration tree, in the state of now: what [`VmConfig::new`] makes, with everything that only
    /// the source knows (serial numbers, clock, integration services, dynamic memory, controllers' identities). A machine
    /// without a GUID gets `id`.
    ///
    /// # Errors
    /// A text that a configuration file cannot hold.
    pub fn to_config(&self, id: VmId) -> Result<VmConfig, ApplyError> {
        let id = self.id.map_or(id, VmId);
        let mut config = build(id, self.generation, self.created_unix_ms, &self.settings)?;
        names(&mut config, &self.name, &self.notes)?;
        self.global(&mut config)?;
        config.set_now_parent(self.now_parent.map(CheckpointId));
        Ok(config)
    }

    /// One of its checkpoints as a configuration tree. The GUIDs in it are the machine's; those of the checkpoint are in
    /// the node of this product.
    ///
    /// # Errors
    /// A text that a configuration file cannot hold, or a checkpoint without a GUID.
    pub fn checkpoint_to_config(&self, checkpoint: &Checkpoint, id: VmId) -> Result<VmConfig, ApplyError> {
        let id = self.id.map_or(id, VmId);
        let created = checkpoint.created_unix_ms;
        let mut config = build(id, checkpoint.generation, created, &checkpoint.settings)?;
        names(&mut config, &checkpoint.name, &checkpoint.notes)?;
        self.global(&mut config)?;
        let meta = CheckpointMeta {
            id: CheckpointId(checkpoint.id.unwrap_or_default()),
            name: checkpoint.name.clone(),
            notes: checkpoint.notes.clone(),
            parent: checkpoint.parent.map(CheckpointId),
            created_unix_ms: created.unwrap_or(0),
            // Memory of another hypervisor is of no use to anybody.
            has_memory: false,
            method: None,
        };
        config.set_checkpoint_meta(Some(&meta))?;
        Ok(config)
    }

    /// What is the machine's and not a state's.
    fn global(&self, config: &mut VmConfig) -> Result<(), ApplyError> {
        let root = &mut config.root;
        actions(root, self.actions);
        for (path, text) in [
            ("global_settings/data_root", &self.roots.configuration),
            ("global_settings/snapshots/data_root", &self.roots.snapshots),
        ] {
            check_text("path", text)?;
            if !text.is_empty() {
                root.set_str(path, text);
            }
        }
        if self.clustered {
            root.set("properties/highly_available", &Value::Bool(true));
        }
        if self.merge_pending {
            root.set("global_settings/disk_merge_pending", &Value::Bool(true));
        }
        Ok(())
    }
}

fn names(config: &mut VmConfig, name: &str, notes: &str) -> Result<(), ApplyError> {
    check_text("name", name)?;
    check_text("notes", notes)?;
    config.root.set_str("properties/name", name);
    config.root.set_str("properties/notes", notes);
    Ok(())
}

fn build(
    id: VmId,
    generation: VirtualHardware,
    created_unix_ms: Option<i64>,
    settings: &Settings,
) -> Result<VmConfig, ApplyError> {
    check_settings(settings)?;
    let mut config = bare(id, generation, created_unix_ms.map_or(0, filetime_from_unix_ms))?;
    let root = &mut config.root;
    let subtype = i64::from(generation == VirtualHardware::Gen2);
    root.set("properties/subtype", &Value::Integer(subtype));
    processors_and_memory(root, settings);
    firmware(root, &settings.firmware, id);
    controllers(root, settings, id);
    for (number, nic) in (0u64..).zip(&settings.nics) {
        network_card(root, nic, id, number);
    }
    for port in &settings.com_ports {
        if let Some(number) = port.number.checked_sub(1) {
            root.set_str(&format!("{SERIAL}/port{number}/connection"), &port.path);
        }
    }
    for service in &settings.integration {
        let class = INTEGRATION.iter().find(|(_, known)| *known == service.service).map(|(class, _)| class);
        if let Some(class) = class {
            root.set(&format!("_{class}_/Enabled"), &Value::Bool(service.enabled));
        }
    }
    if let Some(skew) = settings.time_skew_100ns {
        root.set(&format!("{CLOCK}/RtcDevice/CmosUtcSkew"), &Value::Integer(skew));
    }
    Ok(config)
}

/// Everything that could fail, before the first change.
fn check_settings(settings: &Settings) -> Result<(), ApplyError> {
    let firmware = &settings.firmware;
    for text in [
        &firmware.bios_serial,
        &firmware.base_board_serial,
        &firmware.chassis_serial,
        &firmware.chassis_asset_tag,
        &firmware.secure_boot_template,
    ] {
        check_text("serial number", text)?;
    }
    for (_, drive) in settings.drives() {
        check_text("path", &drive.path)?;
    }
    for nic in &settings.nics {
        check_text("network card's name", &nic.name)?;
        check_text("switch name", &nic.switch_name)?;
    }
    settings.com_ports.iter().try_for_each(|port| check_text("serial port's path", &port.path))
}

fn integer(root: &mut Element, path: &str, number: u64) {
    root.set(path, &Value::Integer(i64::try_from(number).unwrap_or(i64::MAX)));
}

fn processors_and_memory(root: &mut Element, settings: &Settings) {
    let processors = &settings.processors;
    integer(root, "settings/processors/count", processors.count.into());
    integer(root, "settings/processors/reservation", processors.reserve);
    integer(root, "settings/processors/limit", processors.limit);
    integer(root, "settings/processors/weight", processors.weight.into());
    root.set("settings/processors/features/limit", &Value::Bool(processors.for_migration));
    root.set("settings/processors/limit_cpuid", &Value::Bool(processors.for_old_systems));
    if processors.nested {
        root.set("settings/processors/nested_virtualization/enabled", &Value::Bool(true));
    }
    let memory = &settings.memory;
    integer(root, "settings/memory/bank/size", memory.startup_mib);
    integer(root, "settings/memory/bank/priority", memory.weight.into());
    root.set("settings/memory/bank/dynamic_memory_enabled", &Value::Bool(memory.dynamic.is_some()));
    if let Some(dynamic) = memory.dynamic {
        integer(root, "settings/memory/bank/reservation", dynamic.min_mib);
        integer(root, "settings/memory/bank/limit", dynamic.max_mib);
        integer(root, "settings/memory/bank/target_memory_buffer", dynamic.buffer_percent.into());
        // Hyper-V refuses both together.
        root.set("settings/vnuma/enabled", &Value::Bool(false));
    }
}

fn firmware(root: &mut Element, firmware: &Firmware, id: VmId) {
    let guid = firmware.bios_guid.unwrap_or(id.0);
    root.set_str(&format!("{BIOS}/bios_guid"), &format!("{{{:X}}}", guid.hyphenated()));
    for (leaf, text) in [
        ("bios_serial_number", &firmware.bios_serial),
        ("base_board/serial_number", &firmware.base_board_serial),
        ("chassis/serial_number", &firmware.chassis_serial),
        ("chassis/asset_tag", &firmware.chassis_asset_tag),
    ] {
        root.set_str(&format!("{BIOS}/{leaf}"), text);
    }
    root.set(&format!("{BIOS}/num_lock"), &Value::Bool(firmware.num_lock));
    root.set(&format!("{BIOS}/secure_boot_enabled"), &Value::Bool(firmware.secure_boot == Some(true)));
    if !firmware.secure_boot_template.is_empty() {
        root.set_str(&format!("{BIOS}/secure_boot_template_id"), &firmware.secure_boot_template);
    }
    if firmware.boot_order.is_empty() {
        return;
    }
    root.remove(&format!("{BIOS}/boot"));
    for (index, device) in firmware.boot_order.iter().enumerate() {
        root.set_str(&format!("{BIOS}/boot/device{index}"), boot_word(*device));
    }
}

fn controllers(root: &mut Element, settings: &Settings, id: VmId) {
    let mut taken = BTreeSet::new();
    for controller in &settings.controllers {
        let place = match controller.bus {
            Bus::Ide => format!("{IDE}/controller{}", controller.number),
            Bus::Floppy => format!("{FLOPPY}/controller{}", controller.number),
            Bus::Scsi => format!("{}/controller0", scsi_controller(root, controller, id, &mut taken)),
        };
        for drive in &controller.drives {
            put_drive(root, &format!("{place}/drive{}", drive.location), drive);
        }
    }
}

/// Makes a SCSI controller; returns its section.
fn scsi_controller(
    root: &mut Element,
    controller: &Controller,
    id: VmId,
    taken: &mut BTreeSet<Uuid>,
) -> String {
    let instance = unused(root, controller.instance, id, "scsi controller", controller.number.into(), taken);
    let channel = derive(instance, "channel", 0);
    let section = root.make(&section_of(instance));
    section.set_str("ChannelInstanceGuid", &format!("{{{:x}}}", channel.hyphenated()));
    section.set("VDEVVersion", &Value::Integer(256));
    add_vdev(root, SCSI_CLASS, instance, "Synthetic SCSI Controller");
    section_of(instance)
}

/// The wanted GUID of a device, or another one when something has it already.
fn unused(
    root: &Element,
    wanted: Option<Uuid>,
    id: VmId,
    purpose: &str,
    number: u64,
    taken: &mut BTreeSet<Uuid>,
) -> Uuid {
    let free = |guid: &Uuid, taken: &BTreeSet<Uuid>| {
        !taken.contains(guid) && root.child(&section_of(*guid)).is_none()
    };
    let mut salt = number;
    let mut guid = wanted.unwrap_or_else(|| derive(id.0, purpose, salt));
    while !free(&guid, taken) {
        salt = salt.wrapping_add(1 << 32);
        guid = derive(id.0, purpose, salt);
    }
    taken.insert(guid);
    guid
}

fn put_drive(root: &mut Element, place: &str, drive: &Drive) {
    let word = match drive.kind {
        DriveKind::Vhd | DriveKind::Vhdx | DriveKind::VhdSet | DriveKind::OtherDisk => "VHD",
        DriveKind::Iso | DriveKind::EmptyOptical | DriveKind::HostOptical => "ISO",
        DriveKind::PassThrough => "PHYSICAL",
        DriveKind::Floppy => "VFD",
    };
    let node = root.make(place);
    node.set_str("pathname", &drive.path);
    node.set_str("type", word);
    if drive.qos.max_iops > 0 || drive.qos.min_iops > 0 {
        integer(node, "iops_limit", drive.qos.max_iops);
        integer(node, "iops_reservation", drive.qos.min_iops);
    }
}

fn network_card(root: &mut Element, nic: &Nic, id: VmId, number: u64) {
    let instance = unused(root, nic.id, id, "network card", number, &mut BTreeSet::new());
    let braced = |guid: Uuid| format!("{{{:x}}}", guid.hyphenated());
    let section = root.make(&section_of(instance));
    if nic.kind == NicKind::Synthetic {
        section.set_str("ChannelInstanceGuid", &braced(derive(instance, "channel", 0)));
        section.set_str("VpciInstanceGuid", &braced(derive(instance, "vpci", 0)));
    }
    section.set("ClusterMonitored", &Value::Bool(true));
    section.set_str("Connection/AltPortName", "");
    section.set_str("Connection/AltSwitchName", &nic.switch_name);
    section.set_str("Connection/AuthorizationScope", "");
    section.set("Connection/ChimneyOffloadWeight", &Value::Integer(0));
    section.set_str("Connection/PoolId", "");
    section.set("Connection/PreventIPSpoofing", &Value::Bool(false));
    let name = match (nic.name.is_empty(), nic.kind) {
        (false, _) => nic.name.as_str(),
        (true, NicKind::Synthetic) => "Network Adapter",
        (true, NicKind::Legacy) => "Legacy Network Adapter",
    };
    section.set_str("FriendlyName", name);
    section.set("IsConnected", &Value::Bool(nic.connected));
    // Zeros: the host gives it one at the first start.
    let mac = nic.mac.map_or_else(|| "00-00-00-00-00-00".to_owned(), |mac| mac.to_string());
    section.set_str("MacAddress", &mac);
    section.set("MacAddressIsStatic", &Value::Bool(nic.mac_is_static));
    section.set_str("PortName", "");
    let switch = nic.switch_id.map(|guid| format!("{:X}", guid.hyphenated())).unwrap_or_default();
    section.set_str("SwitchName", &switch);
    section.set("VDEVVersion", &Value::Integer(256));
    let (class, name) = match nic.kind {
        NicKind::Synthetic => (NIC_CLASS, "Synthetic Ethernet Port"),
        NicKind::Legacy => (NIC_CLASS, LEGACY_NAME),
    };
    add_vdev(root, class, instance, name);
}

fn actions(root: &mut Element, actions: Actions) {
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
        Recovery::Restart => 1,
        Recovery::Revert => 2,
    };
    integer(root, "global_settings/power/host_startup/action", start);
    integer(root, "global_settings/power/host_shutdown/action", stop);
    integer(root, "global_settings/unexpected_termination/action", recovery);
    if actions.start_delay_s > 0 {
        integer(root, "global_settings/power/host_startup/delay", actions.start_delay_s);
    }
}

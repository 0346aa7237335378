//! Writes a specification into the tree: only what differs from what the tree says already.

use crate::config::{VmConfig, check_text, path_text};
use crate::devices::{
    BIOS, LIMITS, NIC_CLASS, SCSI_CLASS, SCSI_CONTROLLERS, add_vdev, limit_place, order_vdevs, remove_vdev,
    scsi_sections, section_of,
};
use crate::error::ApplyError;
use crate::spec::PER_PERCENT;
use crate::template::derive;
use crate::tree::{Element, Value};
use backstay_model::{
    AccelPolicy, BootDevice, DriveMedia, DriveSlot, HostStartAction, HostStopAction, NicAttachment, NicModel,
    NicSpec, RecoveryAction, VirtualHardware, VmSpec,
};
use std::collections::BTreeSet;

impl VmConfig {
    /// Changes the tree so that [`VmConfig::spec`] returns `spec` (drives in slot order). Nodes whose meaning does not
    /// change stay as they are, byte for byte, and so do all unknown ones.
    ///
    /// # Errors
    /// Text or paths a configuration cannot hold, two drives in one slot, two cards with one GUID. The
    /// configuration is unchanged then.
    pub fn apply_spec(&mut self, spec: &VmSpec) -> Result<(), ApplyError> {
        check(spec)?;
        let (old, _) = self.spec();
        self.apply_identity(spec, &old);
        self.apply_hardware(spec, &old);
        self.apply_actions(spec, &old);
        self.apply_drives(spec, &old)?;
        self.apply_limits(spec, &old);
        self.apply_controllers(spec, &old);
        self.apply_nics(spec, &old);
        Ok(())
    }

    fn apply_identity(&mut self, spec: &VmSpec, old: &VmSpec) {
        let root = &mut self.root;
        if spec.id != old.id {
            root.set_str("properties/global_id", &spec.id.to_string());
            root.set_str("settings/global/logical_id", &spec.id.to_string());
        }
        // An empty name reads as the GUID, which a caller may also have chosen.
        if spec.name != old.name || root.string("properties/name").is_none_or(|name| name.is_empty()) {
            root.set_str("properties/name", spec.name.as_str());
        }
        if spec.notes != old.notes {
            root.set_str("properties/notes", &spec.notes);
        }
        if spec.bios_guid != old.bios_guid {
            root.set_str(&format!("{BIOS}/bios_guid"), &format!("{{{:X}}}", spec.bios_guid.hyphenated()));
        }
    }

    fn apply_hardware(&mut self, spec: &VmSpec, old: &VmSpec) {
        let root = &mut self.root;
        if spec.hardware != old.hardware {
            let subtype = i64::from(spec.hardware == VirtualHardware::Gen2);
            root.set("properties/subtype", &Value::Integer(subtype));
        }
        if spec.memory_mib != old.memory_mib {
            let size = i64::try_from(spec.memory_mib).unwrap_or(i64::MAX);
            root.set("settings/memory/bank/size", &Value::Integer(size));
        }
        let mut number = |path: &str, new: u32, old: u32, unit: i64| {
            if new != old {
                root.set(path, &Value::Integer(i64::from(new) * unit));
            }
        };
        number("settings/processors/count", spec.cpu.count, old.cpu.count, 1);
        number("settings/processors/weight", spec.cpu.weight, old.cpu.weight, 1);
        number("settings/processors/limit", spec.cpu.limit_percent, old.cpu.limit_percent, PER_PERCENT);
        // A reserve above the old limit was read as that limit: with a new limit it has to be written out.
        let cpu_changed = spec.cpu.limit_percent != old.cpu.limit_percent;
        let old_reserve = if cpu_changed { u32::MAX } else { old.cpu.reserve_percent };
        number("settings/processors/reservation", spec.cpu.reserve_percent, old_reserve, PER_PERCENT);
        if spec.boot_order != old.boot_order {
            let boot = root.make(&format!("{BIOS}/boot"));
            let surplus: Vec<String> =
                boot.children().filter(|e| e.name().starts_with("device")).map(|e| e.name().into()).collect();
            for name in surplus {
                boot.remove(&name);
            }
            for (index, device) in spec.boot_order.iter().enumerate() {
                boot.set_str(&format!("device{index}"), boot_word(*device));
            }
        }
        if spec.machine_type != old.machine_type {
            root.set_str("backstay/machine_type", &spec.machine_type);
        }
        if spec.accel != old.accel {
            let word = match spec.accel {
                AccelPolicy::Auto => "auto",
                AccelPolicy::Kvm => "kvm",
                AccelPolicy::Tcg => "tcg",
            };
            root.set_str("backstay/accelerator", word);
        }
    }

    fn apply_actions(&mut self, spec: &VmSpec, old: &VmSpec) {
        let root = &mut self.root;
        if spec.recovery != old.recovery {
            let action = match spec.recovery {
                RecoveryAction::None => 0,
                RecoveryAction::Restart => 1,
            };
            root.set("global_settings/unexpected_termination/action", &Value::Integer(action));
        }
        if spec.host_start != old.host_start {
            let action = match spec.host_start {
                HostStartAction::Nothing => 0,
                HostStartAction::StartIfRunning => 1,
                HostStartAction::Start => 2,
            };
            root.set("global_settings/power/host_startup/action", &Value::Integer(action));
        }
        if spec.host_stop != old.host_stop {
            let action = match spec.host_stop {
                HostStopAction::TurnOff => 0,
                HostStopAction::Save => 1,
                HostStopAction::Shutdown => 2,
            };
            root.set("global_settings/power/host_shutdown/action", &Value::Integer(action));
        }
        if spec.start_delay_s != old.start_delay_s {
            let delay = Value::Integer(spec.start_delay_s.into());
            root.set("global_settings/power/host_startup/delay", &delay);
        }
        if spec.start_order != old.start_order {
            root.set("backstay/start_order", &Value::Integer(spec.start_order.into()));
        }
    }

    fn apply_drives(&mut self, spec: &VmSpec, old: &VmSpec) -> Result<(), ApplyError> {
        for drive in &old.drives {
            if spec.drives.iter().all(|d| d.slot != drive.slot) {
                self.remove_drive(drive.slot);
            }
        }
        for drive in &spec.drives {
            if old.drives.iter().any(|d| d == drive) {
                continue;
            }
            if let DriveSlot::Scsi { controller, .. } = drive.slot {
                self.make_scsi(usize::from(controller), spec);
            }
            let (path, kind) = match &drive.media {
                DriveMedia::Disk(path) => (path_text(path)?, "VHD"),
                DriveMedia::Device(path) => (path_text(path)?, "PHYSICAL"),
                DriveMedia::Iso(path) => (path_text(path)?, "ISO"),
                DriveMedia::EmptyOptical => ("", "ISO"),
            };
            if let Some(place) = self.drive_place(drive.slot) {
                let node = self.root.make(&place);
                node.set_str("pathname", path);
                node.set_str("type", kind);
            }
        }
        Ok(())
    }

    fn apply_controllers(&mut self, spec: &VmSpec, old: &VmSpec) {
        if spec.scsi_controllers == old.scsi_controllers {
            return;
        }
        let words: Vec<String> = spec.scsi_controllers.iter().map(u8::to_string).collect();
        match spec.scsi_controllers.last() {
            Some(last) => {
                self.make_scsi(usize::from(*last), spec);
                self.root.set_str(SCSI_CONTROLLERS, &words.join(","));
            }
            None => self.root.remove(SCSI_CONTROLLERS),
        }
    }

    fn apply_limits(&mut self, spec: &VmSpec, old: &VmSpec) {
        let limit_of = |spec: &VmSpec, slot| {
            spec.drives.iter().find(|drive| drive.slot == slot).map(|drive| drive.limit).unwrap_or_default()
        };
        for slot in old.drives.iter().chain(&spec.drives).map(|drive| drive.slot) {
            let (limit, place) = (limit_of(spec, slot), limit_place(slot));
            // What is left of a drive that somebody removed by hand is not the new one's.
            let stale = limit.is_unlimited() && self.root.at(&place).is_some();
            if limit == limit_of(old, slot) && !stale {
                continue;
            }
            for (name, number) in [("iops", limit.iops), ("bytes_per_second", limit.bytes_per_second)] {
                let path = format!("{place}/{name}");
                match number {
                    Some(number) => {
                        self.root.set(&path, &Value::Integer(i64::try_from(number).unwrap_or(i64::MAX)));
                    }
                    None => self.root.remove(&path),
                }
            }
            if limit.is_unlimited() {
                self.root.remove(&place);
            }
        }
        if self.root.at(LIMITS).is_some_and(|limits| limits.children().next().is_none()) {
            self.root.remove(LIMITS);
        }
    }

    /// IDE units always exist and become empty; others go.
    fn remove_drive(&mut self, slot: DriveSlot) {
        let Some(place) = self.drive_place(slot) else { return };
        if matches!(slot, DriveSlot::Ide { .. }) {
            let node = self.root.make(&place);
            node.set_str("pathname", "");
            node.set_str("type", "NONE");
        } else {
            self.root.remove(&place);
        }
    }

    /// Adds SCSI controllers until number `index` exists.
    fn make_scsi(&mut self, index: usize, spec: &VmSpec) {
        for number in scsi_sections(&self.root).len()..=index {
            let mut salt = number as u64;
            let instance = loop {
                let instance = derive(spec.id.0, "scsi controller", salt);
                if self.root.child(&section_of(instance)).is_none() {
                    break instance;
                }
                salt += 16;
            };
            let channel = derive(instance, "channel", 0);
            let section = self.root.make(&section_of(instance));
            section.set_str("ChannelInstanceGuid", &format!("{{{:x}}}", channel.hyphenated()));
            section.set("VDEVVersion", &Value::Integer(256));
            add_vdev(&mut self.root, SCSI_CLASS, instance, "Synthetic SCSI Controller");
        }
    }

    fn apply_nics(&mut self, spec: &VmSpec, old: &VmSpec) {
        for nic in &old.nics {
            if spec.nics.iter().all(|n| n.id != nic.id) {
                let section = section_of(nic.id.0);
                remove_vdev(&mut self.root, section.trim_matches('_'));
                self.root.remove(&section);
                self.root.remove(&format!("backstay/nics/{section}"));
            }
        }
        for nic in &spec.nics {
            let known = old.nics.iter().find(|n| n.id == nic.id);
            if known.is_none() {
                self.add_nic(nic);
            }
            if known != Some(nic) {
                set_nic(&mut self.root, nic);
            }
        }
        let order = |nics: &[NicSpec]| nics.iter().map(|n| n.id).collect::<Vec<_>>();
        if order(&self.spec().0.nics) != order(&spec.nics) {
            let instances: Vec<String> =
                spec.nics.iter().map(|n| section_of(n.id.0).trim_matches('_').into()).collect();
            order_vdevs(&mut self.root, &instances);
        }
    }

    fn add_nic(&mut self, nic: &NicSpec) {
        let section = self.root.make(&section_of(nic.id.0));
        let braced = |guid: uuid::Uuid| format!("{{{:x}}}", guid.hyphenated());
        section.set_str("ChannelInstanceGuid", &braced(derive(nic.id.0, "channel", 0)));
        section.set("ClusterMonitored", &Value::Bool(true));
        for name in ["AltPortName", "AltSwitchName", "AuthorizationScope", "PoolId"] {
            section.set_str(&format!("Connection/{name}"), "");
        }
        section.set("Connection/ChimneyOffloadWeight", &Value::Integer(0));
        section.set("Connection/PreventIPSpoofing", &Value::Bool(false));
        section.set_str("FriendlyName", "Network Adapter");
        section.set("IsConnected", &Value::Bool(false));
        section.set("MacAddressIsStatic", &Value::Bool(true));
        section.set_str("PortName", "");
        section.set_str("SwitchName", "");
        section.set("VDEVVersion", &Value::Integer(256));
        section.set_str("VpciInstanceGuid", &braced(derive(nic.id.0, "vpci", 0)));
        add_vdev(&mut self.root, NIC_CLASS, nic.id.0, "Synthetic Ethernet Port");
    }
}

/// Writes a card's address, model and connection; its section exists.
fn set_nic(root: &mut Element, nic: &NicSpec) {
    let section_name = section_of(nic.id.0);
    let ours = format!("backstay/nics/{section_name}");
    let section = root.make(&section_name);
    let address = section.string("MacAddress").and_then(|text| text.trim().parse().ok());
    if address != Some(nic.mac) {
        section.set_str("MacAddress", &nic.mac.to_string());
    }
    match &nic.attachment {
        NicAttachment::Switch(name) => {
            if section.string("Connection/AltSwitchName").as_deref() != Some(name) {
                section.set_str("Connection/AltSwitchName", name);
                // Switch and port GUIDs belong to the switch it was plugged into before.
                section.set_str("SwitchName", "");
                section.set_str("PortName", "");
            }
            section.set("IsConnected", &Value::Bool(true));
        }
        NicAttachment::Disconnected | NicAttachment::User => section.set("IsConnected", &Value::Bool(false)),
    }
    match nic.attachment {
        NicAttachment::User => root.set_str(&format!("{ours}/attachment"), "user"),
        NicAttachment::Disconnected | NicAttachment::Switch(_) => root.remove(&format!("{ours}/attachment")),
    }
    match nic.model {
        NicModel::Virtio => root.set_str(&format!("{ours}/model"), "virtio"),
        NicModel::E1000 => root.remove(&format!("{ours}/model")),
    }
}

pub(crate) fn boot_word(device: BootDevice) -> &'static str {
    match device {
        BootDevice::Optical => "Optical",
        BootDevice::HardDrive => "HardDrive",
        BootDevice::Network => "Network",
        BootDevice::Floppy => "Floppy",
    }
}

/// Everything that could fail, before the first change.
fn check(spec: &VmSpec) -> Result<(), ApplyError> {
    check_text("name", spec.name.as_str())?;
    check_text("notes", &spec.notes)?;
    check_text("machine type", &spec.machine_type)?;
    let mut slots = BTreeSet::new();
    for drive in &spec.drives {
        if !slots.insert(drive.slot) {
            return Err(ApplyError::SlotTaken(drive.slot));
        }
        if let DriveMedia::Disk(path) | DriveMedia::Device(path) | DriveMedia::Iso(path) = &drive.media {
            path_text(path)?;
        }
    }
    let mut cards = BTreeSet::new();
    for nic in &spec.nics {
        if !cards.insert(nic.id) {
            return Err(ApplyError::NicTwice(nic.id));
        }
        if let NicAttachment::Switch(name) = &nic.attachment {
            check_text("switch name", name)?;
        }
    }
    Ok(())
}

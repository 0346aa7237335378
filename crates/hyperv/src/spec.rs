//! What the tree says about the machine.

use crate::config::VmConfig;
use crate::devices::{
    BIOS, IDE, MAX_SCSI, MAX_VDEVS, SCSI_CLASS, SCSI_CONTROLLERS, SILENT_CLASSES, Vdev, is_nic, limit_place,
    scsi_sections, vdevs,
};
use crate::error::Warning;
use crate::tree::Element;
use backstay_model::{
    AccelPolicy, BootDevice, CpuControl, DriveMedia, DriveSlot, DriveSpec, HostStartAction, HostStopAction,
    IoLimit, MacAddress, NicAttachment, NicId, NicModel, NicSpec, RecoveryAction, VirtualHardware, VmId,
    VmName, VmSpec,
};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Hyper-V's unit for processor limit and reserve: 100 000 is 100 %.
pub(crate) const PER_PERCENT: i64 = 1000;

impl VmConfig {
    /// The machine this configuration describes. Reading never fails: what is missing or out of range is replaced
    /// and reported. A missing GUID reads as the nil GUID (see [`VmConfig::id`]), a missing machine type as empty.
    /// Drives come in slot order, network cards in manifest order.
    #[must_use]
    pub fn spec(&self) -> (VmSpec, Vec<Warning>) {
        let mut reader = SpecReader { root: &self.root, warnings: Vec::new() };
        let spec = reader.read();
        (spec, reader.warnings)
    }
}

struct SpecReader<'a> {
    root: &'a Element,
    warnings: Vec<Warning>,
}

impl SpecReader<'_> {
    fn read(&mut self) -> VmSpec {
        let id = self.guid("properties/global_id");
        let machine_type = self.root.string("backstay/machine_type").unwrap_or_default();
        if machine_type.is_empty() {
            self.warnings.push(Warning::NoMachineType);
        }
        let memory_mib = self.memory();
        let mut drives = Vec::new();
        self.ide(&mut drives);
        self.scsi(&mut drives);
        self.virtio(&mut drives);
        drives.sort_by_key(|drive: &DriveSpec| drive.slot);
        let nics = self.devices();
        VmSpec {
            id: VmId(id),
            name: self.name(id),
            notes: self.root.string("properties/notes").unwrap_or_default(),
            hardware: self.hardware(),
            memory_mib,
            cpu: self.cpu(),
            drives,
            scsi_controllers: self.scsi_controllers(),
            nics,
            boot_order: self.boot_order(),
            bios_guid: self.guid(&format!("{BIOS}/bios_guid")),
            machine_type,
            accel: self.accel(),
            recovery: self.recovery(),
            host_start: self.host_start(),
            host_stop: self.host_stop(),
            start_delay_s: self.count("global_settings/power/host_startup/delay", VmSpec::MOST_START_DELAY_S),
            start_order: self.count("backstay/start_order", u32::MAX),
        }
    }

    fn missing(&mut self, path: &str, used: impl ToString) {
        self.warnings.push(Warning::Missing { path: path.into(), used: used.to_string() });
    }

    fn adjusted(&mut self, path: &str, found: impl ToString, used: impl ToString) {
        self.warnings.push(Warning::Adjusted {
            path: path.into(),
            found: found.to_string(),
            used: used.to_string(),
        });
    }

    fn guid(&mut self, path: &str) -> Uuid {
        match self.root.string(path).and_then(|text| Uuid::try_parse(text.trim()).ok()) {
            Some(guid) => guid,
            None => {
                self.missing(path, Uuid::nil());
                Uuid::nil()
            }
        }
    }

    fn name(&mut self, id: Uuid) -> VmName {
        const PATH: &str = "properties/name";
        let found = self.root.string(PATH).unwrap_or_default();
        if let Ok(name) = VmName::new(found.as_str()) {
            return name;
        }
        let fallback = safe_name(&found, id);
        self.adjusted(PATH, found.escape_debug(), &fallback);
        fallback
    }

    fn hardware(&mut self) -> VirtualHardware {
        match self.root.integer("properties/subtype") {
            // Hyper-V before 2012 R2 knew no generations and wrote no subtype.
            None | Some(0) => VirtualHardware::Gen1,
            Some(1) => VirtualHardware::Gen2,
            Some(other) => {
                self.adjusted("properties/subtype", other, 0);
                VirtualHardware::Gen1
            }
        }
    }

    fn memory(&mut self) -> u64 {
        const PATH: &str = "settings/memory/bank/size";
        let size = match self.root.integer(PATH).map(u64::try_from) {
            Some(Ok(size @ 1..)) => size,
            _ => {
                self.missing(PATH, 1024);
                1024
            }
        };
        if self.root.boolean("settings/memory/bank/dynamic_memory_enabled") == Some(true) {
            self.warnings.push(Warning::DynamicMemory(size));
        }
        size
    }

    fn cpu(&mut self) -> CpuControl {
        let limit_percent = self.percent("settings/processors/limit", 1, 100);
        let reserve = self.percent("settings/processors/reservation", 0, 0);
        let reserve_percent = reserve.min(limit_percent);
        if reserve_percent != reserve {
            self.adjusted("settings/processors/reservation", reserve, reserve_percent);
        }
        CpuControl {
            count: self.ranged("settings/processors/count", 1, 240, 1),
            reserve_percent,
            limit_percent,
            weight: self.ranged("settings/processors/weight", 1, 10_000, 100),
        }
    }

    /// An integer moved into `low..=high`; `default` when it is missing.
    fn ranged(&mut self, path: &str, low: u32, high: u32, default: u32) -> u32 {
        let Some(found) = self.root.integer(path) else {
            self.missing(path, default);
            return default;
        };
        let used = u32::try_from(found.clamp(i64::from(low), i64::from(high))).unwrap_or(default);
        if i64::from(used) != found {
            self.adjusted(path, found, used);
        }
        used
    }

    /// A share in Hyper-V's unit as a percentage `low..=100`, rounded to the nearest.
    fn percent(&mut self, path: &str, low: u32, default: u32) -> u32 {
        let Some(found) = self.root.integer(path) else {
            self.missing(path, format!("{default} %"));
            return default;
        };
        let rounded = found.saturating_add(PER_PERCENT / 2).div_euclid(PER_PERCENT);
        let used = u32::try_from(rounded.clamp(i64::from(low), 100)).unwrap_or(default);
        if i64::from(used) * PER_PERCENT != found {
            self.adjusted(path, found, format!("{used} %"));
        }
        used
    }

    fn ide(&mut self, drives: &mut Vec<DriveSpec>) {
        for controller in 0..2u8 {
            for unit in 0..2u8 {
                let slot = DriveSlot::Ide { controller, unit };
                let place = format!("{IDE}/controller{controller}/drive{unit}");
                if let Some(drive) = self.root.at(&place) {
                    self.drive(drive, slot, drives);
                }
            }
        }
    }

    fn scsi(&mut self, drives: &mut Vec<DriveSpec>) {
        let sections = scsi_sections(self.root);
        for (controller, section) in (0u8..).zip(&sections) {
            if usize::from(controller) >= MAX_SCSI {
                self.warnings.push(Warning::Beyond { what: format!("SCSI controller {controller}") });
                return;
            }
            let Some(node) = self.root.at(&format!("{section}/controller0")) else { continue };
            for drive in node.children() {
                let Some(number) = drive.name().strip_prefix("drive") else { continue };
                match number.parse::<u8>() {
                    Ok(lun @ 0..=63) if number == lun.to_string() => {
                        self.drive(drive, DriveSlot::Scsi { controller, lun }, drives);
                    }
                    _ => {
                        let what = format!("SCSI controller {controller}, {}", drive.name());
                        self.warnings.push(Warning::Beyond { what });
                    }
                }
            }
        }
    }

    /// Controllers that our machines have without a drive: Hyper-V's own list says nothing of what QEMU's guest has.
    fn scsi_controllers(&mut self) -> BTreeSet<u8> {
        let text = self.root.string(SCSI_CONTROLLERS).unwrap_or_default();
        let mut found = BTreeSet::new();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word.parse::<u8>() {
                Ok(controller @ 0..=3) => _ = found.insert(controller),
                _ => self.adjusted(SCSI_CONTROLLERS, word, "nothing"),
            }
        }
        found
    }

    fn virtio(&mut self, drives: &mut Vec<DriveSpec>) {
        for index in 0..16u8 {
            if let Some(drive) = self.root.at(&format!("backstay/virtio/drive{index}")) {
                self.drive(drive, DriveSlot::Virtio { index }, drives);
            }
        }
    }

    fn drive(&mut self, node: &Element, slot: DriveSlot, drives: &mut Vec<DriveSpec>) {
        if drives.iter().any(|drive| drive.slot == slot) {
            self.warnings.push(Warning::Beyond { what: format!("a second drive at {slot}") });
            return;
        }
        let path = node.string("pathname").unwrap_or_default();
        let kind = node.string("type").unwrap_or_default();
        let media = match (kind.as_str(), path.is_empty()) {
            ("NONE", _) | ("VHD", true) => return,
            // Windows' names of devices mean nothing here.
            ("PHYSICAL", false) if path.starts_with('/') => DriveMedia::Device(path.into()),
            ("VHD", false) => DriveMedia::Disk(path.into()),
            ("ISO", true) => DriveMedia::EmptyOptical,
            ("ISO", false) => DriveMedia::Iso(path.into()),
            _ => {
                self.warnings.push(Warning::Medium { at: slot.to_string(), kind });
                return;
            }
        };
        let limit = match media {
            DriveMedia::Disk(_) => self.limit(slot),
            DriveMedia::Device(_) | DriveMedia::Iso(_) | DriveMedia::EmptyOptical => IoLimit::default(),
        };
        drives.push(DriveSpec { limit, ..DriveSpec::new(slot, media) });
    }

    fn limit(&mut self, slot: DriveSlot) -> IoLimit {
        let place = limit_place(slot);
        let mut number = |name: &str, least: u64| {
            let path = format!("{place}/{name}");
            let found = self.root.integer(&path)?;
            let used = u64::try_from(found).unwrap_or(0).max(least);
            if i64::try_from(used) != Ok(found) {
                self.adjusted(&path, found, used);
            }
            Some(used)
        };
        IoLimit {
            iops: number("iops", IoLimit::LEAST_IOPS),
            bytes_per_second: number("bytes_per_second", IoLimit::LEAST_BYTES_PER_SECOND),
        }
    }

    /// Network cards, and a word about every device without a counterpart.
    fn devices(&mut self) -> Vec<NicSpec> {
        let vdevs = vdevs(self.root);
        if vdevs.len() == MAX_VDEVS {
            self.warnings.push(Warning::Beyond { what: format!("any device after the first {MAX_VDEVS}") });
        }
        let mut nics: Vec<NicSpec> = Vec::new();
        for vdev in vdevs {
            if is_nic(self.root, &vdev) {
                if let Some(nic) = self.nic(&vdev)
                    && nics.iter().all(|other| other.id != nic.id)
                {
                    nics.push(nic);
                }
            } else if vdev.device != SCSI_CLASS && !SILENT_CLASSES.contains(&vdev.device.as_str()) {
                self.warnings.push(Warning::Device { name: vdev.name, device: vdev.device });
            }
        }
        nics
    }

    fn nic(&mut self, vdev: &Vdev) -> Option<NicSpec> {
        let section = vdev.section();
        let (Ok(id), Some(node)) = (Uuid::try_parse(&vdev.instance), self.root.child(&section)) else {
            self.missing(&section, "no network card");
            return None;
        };
        let address = node.string("MacAddress").and_then(|text| text.trim().parse().ok());
        let mac = match address {
            Some(mac) if mac != MacAddress([0; 6]) => mac,
            // Hyper-V leaves it zero until the first start.
            _ => {
                let mac = derived_mac(id);
                self.missing(&format!("{section}/MacAddress"), mac);
                mac
            }
        };
        let ours = |name: &str| self.root.string(&format!("backstay/nics/{section}/{name}"));
        let model = match ours("model").as_deref() {
            Some("virtio") => NicModel::Virtio,
            _ => NicModel::E1000,
        };
        let switch = node.string("Connection/AltSwitchName").unwrap_or_default();
        let attachment = match (node.boolean("IsConnected"), ours("attachment").as_deref()) {
            (_, Some("user")) => NicAttachment::User,
            (Some(true), _) if !switch.is_empty() => NicAttachment::Switch(switch),
            _ => NicAttachment::Disconnected,
        };
        Some(NicSpec { id: NicId(id), mac, model, attachment })
    }

    fn boot_order(&mut self) -> Vec<BootDevice> {
        let Some(boot) = self.root.at(&format!("{BIOS}/boot")) else { return Vec::new() };
        let mut order = Vec::new();
        for device in boot.children().filter(|e| e.name().starts_with("device")) {
            let word = device.text();
            match boot_device(word.trim()) {
                Some(device) if order.contains(&device) => {}
                Some(device) => order.push(device),
                None => self.adjusted(&format!("{BIOS}/boot/{}", device.name()), word, "nothing"),
            }
        }
        order
    }

    fn accel(&mut self) -> AccelPolicy {
        const PATH: &str = "backstay/accelerator";
        match self.root.string(PATH).as_deref() {
            None | Some("auto") => AccelPolicy::Auto,
            Some("kvm") => AccelPolicy::Kvm,
            Some("tcg") => AccelPolicy::Tcg,
            Some(other) => {
                self.adjusted(PATH, other, "auto");
                AccelPolicy::Auto
            }
        }
    }

    fn recovery(&mut self) -> RecoveryAction {
        const PATH: &str = "global_settings/unexpected_termination/action";
        match self.root.integer(PATH) {
            Some(0) => RecoveryAction::None,
            None | Some(1) => RecoveryAction::Restart,
            Some(other) => {
                self.adjusted(PATH, other, "1 (restart)");
                RecoveryAction::Restart
            }
        }
    }

    fn host_start(&mut self) -> HostStartAction {
        const PATH: &str = "global_settings/power/host_startup/action";
        match self.root.integer(PATH) {
            Some(0) => HostStartAction::Nothing,
            None | Some(1) => HostStartAction::StartIfRunning,
            Some(2) => HostStartAction::Start,
            Some(other) => {
                self.adjusted(PATH, other, "1 (start if it was running)");
                HostStartAction::StartIfRunning
            }
        }
    }

    /// A number from 0 to `most`; 0 where there is none.
    fn count(&mut self, path: &str, most: u32) -> u32 {
        match self.root.integer(path) {
            None => 0,
            Some(found) => match u32::try_from(found).ok().filter(|count| *count <= most) {
                Some(count) => count,
                None => {
                    self.adjusted(path, found, 0);
                    0
                }
            },
        }
    }

    fn host_stop(&mut self) -> HostStopAction {
        const PATH: &str = "global_settings/power/host_shutdown/action";
        match self.root.integer(PATH) {
            Some(0) => HostStopAction::TurnOff,
            None | Some(1) => HostStopAction::Save,
            Some(2) => HostStopAction::Shutdown,
            Some(other) => {
                self.adjusted(PATH, other, "1 (save)");
                HostStopAction::Save
            }
        }
    }
}

pub(crate) fn boot_device(word: &str) -> Option<BootDevice> {
    match word {
        "Optical" => Some(BootDevice::Optical),
        "HardDrive" => Some(BootDevice::HardDrive),
        "Network" => Some(BootDevice::Network),
        "Floppy" => Some(BootDevice::Floppy),
        _ => None,
    }
}

/// A name made of what is usable in `found`, else the GUID.
pub(crate) fn safe_name(found: &str, id: Uuid) -> VmName {
    let kept: String =
        found.chars().filter(|c| VmName::new(c.to_string()).is_ok() || *c == ' ').take(100).collect();
    match VmName::new(kept.trim()) {
        Ok(name) => name,
        // 36 hexadecimal digits and dashes break no rule, so the loop of one letter never shows.
        Err(_) => {
            VmName::new(format!("{:X}", id.hyphenated())).unwrap_or_else(|_| unreachable!("a GUID is a name"))
        }
    }
}

/// An address in Microsoft's range made of the card's GUID: always the same for the same card.
pub(crate) fn derived_mac(id: Uuid) -> MacAddress {
    let bytes = id.as_bytes();
    let fold = |a: usize, b: usize, c: usize| bytes[a] ^ bytes[b] ^ bytes[c];
    MacAddress([0x00, 0x15, 0x5D, fold(0, 5, 10), fold(1, 6, 11), fold(2, 7, 12)])
}

//! The instances of a `.exp` as a neutral description.

use super::exp_rasd;
use super::hardware::{Integration, IntegrationService, Settings};
use super::machine::{
    Actions, Checkpoint, DataRoots, Document, Machine, NotUnderstood, Recovery, Source, SourceKind, limit,
};
use super::read::Place;
use crate::cim::{CimDocument, CimValue, Instance, interval_s, unix_ms};
use backstay_model::{BootDevice, HostStartAction, HostStopAction, VirtualHardware};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Properties that say nothing about the machine: WMI's own, texts that are the same everywhere, units, pools.
const OF_NO_INTEREST: [&str; 25] = [
    "Caption",
    "Description",
    "AllocationUnits",
    "AutoActivate",
    "AutomaticAllocation",
    "AutomaticDeallocation",
    "ChangeableType",
    "ConfigurationName",
    "ConsumerVisibility",
    "DeviceID",
    "DeviceIDFormat",
    "InstanceID",
    "IsVirtualized",
    "MappingBehavior",
    "OtherResourceType",
    "OtherVirtualSystemType",
    "PoolID",
    "ProcessorsPerSocket",
    "ResourceType",
    "ResourceSubType",
    "SettingType",
    "SocketCount",
    "SystemName",
    "ThreadsEnabled",
    "VirtualSystemType",
];

/// An instance, and which of its properties were read.
pub(super) struct Record<'a> {
    pub(super) instance: Instance<'a>,
    properties: BTreeMap<String, CimValue>,
    seen: BTreeSet<String>,
    pub(super) notes: Vec<NotUnderstood>,
}

impl<'a> Record<'a> {
    fn new(instance: Instance<'a>) -> Self {
        let properties =
            instance.properties().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        Self { instance, properties, seen: BTreeSet::new(), notes: Vec::new() }
    }

    /// A text; none when it is null or empty.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let key = name.to_ascii_lowercase();
        let text = self.properties.get(&key).and_then(CimValue::first).map(str::to_owned);
        self.seen.insert(key);
        text.filter(|text| !text.is_empty())
    }

    pub(super) fn texts(&mut self, name: &str) -> Vec<String> {
        let key = name.to_ascii_lowercase();
        let texts = match self.properties.get(&key) {
            Some(CimValue::Many(texts)) => texts.clone(),
            Some(CimValue::One(text)) => vec![text.clone()],
            None => Vec::new(),
        };
        self.seen.insert(key);
        texts
    }

    pub(super) fn parsed<T>(
        &mut self,
        name: &str,
        what: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(name)?;
        let value = read(text.trim());
        if value.is_none() {
            self.note(name, &text, &format!("this is no {what}"));
        }
        value
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self, name: &str) -> Option<T> {
        self.parsed(name, "number in its range", |text| text.parse().ok())
    }

    pub(super) fn boolean(&mut self, name: &str) -> Option<bool> {
        self.parsed(name, "truth value", |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        })
    }

    pub(super) fn guid(&mut self, name: &str) -> Option<Uuid> {
        self.parsed(name, "GUID", |text| Uuid::try_parse(text).ok())
    }

    pub(super) fn note(&mut self, name: &str, value: &str, why: &str) {
        self.notes.push(NotUnderstood::new(format!("{}.{name}", self.instance.class()), value, why));
    }

    /// What was noted, and every property with a value that nobody read.
    fn finish(mut self) -> Vec<NotUnderstood> {
        let class = self.instance.class();
        for (name, value) in self.instance.properties() {
            let text = match &value {
                CimValue::One(text) => text.clone(),
                CimValue::Many(texts) => texts.join(", "),
            };
            let says_nothing = matches!(text.trim(), "" | "FALSE" | "0");
            let known = name.starts_with("__")
                || self.seen.contains(&name.to_ascii_lowercase())
                || OF_NO_INTEREST.iter().any(|n| n.eq_ignore_ascii_case(name));
            if !says_nothing && !known {
                let path = format!("{class}.{name}");
                self.notes.push(NotUnderstood::new(path, text, "nothing here corresponds to it"));
            }
        }
        self.notes
    }

    /// The instance identifier: its own, or for a copy of a definition that of its parent.
    pub(super) fn identifier(&mut self) -> Vec<String> {
        let own = self.text("InstanceID").map(|id| split_id(&id)).unwrap_or_default();
        if own.first().is_some_and(|first| !first.eq_ignore_ascii_case("Definition")) {
            return own;
        }
        self.parent_identifier()
    }

    /// The parts of the identifier in `Parent`.
    pub(super) fn parent_identifier(&mut self) -> Vec<String> {
        self.text("Parent")
            .map(|path| split_id(path_key(&path, "InstanceID").unwrap_or_default()))
            .unwrap_or_default()
    }
}

/// Parts of `Microsoft:<owner>\<device>\…`; back-slashes may be doubled.
pub(super) fn split_id(id: &str) -> Vec<String> {
    let id = id.trim();
    let id = id.strip_prefix("Microsoft:").unwrap_or(id);
    id.split('\\').filter(|part| !part.is_empty()).take(16).map(str::to_owned).collect()
}

/// The value of a key in an object path, `…:Class.KEY="value",…`.
pub(super) fn path_key<'p>(path: &'p str, key: &str) -> Option<&'p str> {
    let mut rest = path;
    loop {
        let at = rest.find(key)?;
        let before = rest[..at].chars().next_back();
        rest = &rest[at + key.len()..];
        if before.is_none_or(|c| matches!(c, '.' | ','))
            && let Some(value) = rest.strip_prefix("=\"").or_else(|| rest.strip_prefix("=\\\""))
        {
            let value = value.split('"').next()?;
            return Some(value.strip_suffix('\\').unwrap_or(value));
        }
    }
}

/// The machine in a document, or the checkpoints alone; none when there is neither.
pub(super) fn documents(document: &CimDocument, place: Place) -> Option<Vec<Document>> {
    let mut notes = Vec::new();
    let mut global = None;
    let (mut systems, mut parts) = (Vec::new(), BTreeMap::<Option<Uuid>, Vec<Record<'_>>>::new());
    let mut switches = BTreeMap::new();
    for instance in document.instances() {
        let mut record = Record::new(instance);
        match instance.class() {
            "Msvm_VirtualSystemGlobalSettingData" if global.is_none() => global = Some(record),
            "Msvm_VirtualSystemSettingData" => systems.push(record),
            "Msvm_VirtualSwitch" => {
                let name = record.text("ElementName");
                if let (Some(id), Some(name)) = (record.guid("Name"), name) {
                    switches.insert(id, name);
                }
            }
            class if exp_rasd::is_known(class) || integration_of(class).is_some() => {
                let owner = record.identifier().first().and_then(|id| Uuid::try_parse(id).ok());
                parts.entry(owner).or_default().push(record);
            }
            class => {
                let name = record.text("ElementName").unwrap_or_default();
                notes.push(NotUnderstood::new(class, name, "an instance of a class that is not read"));
            }
        }
    }
    if global.is_none() && systems.is_empty() {
        return None;
    }
    let mut reading = Reading { parts, switches, notes };
    let mut machine = Machine::empty(SourceKind::Exp);
    let has_global = global.is_some();
    if let Some(record) = global {
        reading.global(record, &mut machine);
    }
    let mut now = None;
    let mut checkpoints = Vec::new();
    for mut record in systems {
        let own = record.identifier().first().and_then(|id| Uuid::try_parse(id).ok());
        let system = record.guid("SystemName");
        let is_snapshot = match record.number::<u32>("SettingType") {
            Some(5) => true,
            Some(3) => false,
            _ => place.in_snapshots || (own.is_some() && system.is_some() && own != system),
        };
        if is_snapshot || now.is_some() {
            checkpoints.push(reading.checkpoint(record, own, system));
        } else {
            machine.id = machine.id.or(system).or(own);
            now = Some((record, own));
        }
    }
    if now.is_none() && !has_global && !checkpoints.is_empty() {
        let left = std::mem::take(&mut reading.notes);
        checkpoints[0].not_understood.extend(left);
        if let [only] = checkpoints.as_mut_slice() {
            only.id = only.id.or(place.guid);
        }
        return Some(checkpoints.into_iter().map(|c| Document::Checkpoint(Box::new(c))).collect());
    }
    reading.now(now, &mut machine);
    machine.id = machine.id.or(place.guid);
    for checkpoint in checkpoints {
        machine.adopt(checkpoint);
    }
    reading.finish(&mut machine);
    Some(vec![Document::Machine(Box::new(machine))])
}

struct Reading<'a> {
    parts: BTreeMap<Option<Uuid>, Vec<Record<'a>>>,
    switches: BTreeMap<Uuid, String>,
    notes: Vec<NotUnderstood>,
}

impl Reading<'_> {
    fn global(&mut self, mut record: Record<'_>, machine: &mut Machine) {
        machine.id = record.guid("SystemName").or_else(|| {
            let id = record.identifier();
            id.first().and_then(|id| Uuid::try_parse(id).ok())
        });
        machine.name = record.text("ElementName").unwrap_or_default();
        machine.created_unix_ms = record.parsed("CreationTime", "time", unix_ms);
        machine.source.version = record.text("Version");
        machine.scope_of_residence = record.text("ScopeOfResidence").unwrap_or_default();
        machine.roots = DataRoots {
            configuration: record.text("ExternalDataRoot").unwrap_or_default(),
            snapshots: record.text("SnapshotDataRoot").unwrap_or_default(),
        };
        machine.actions = actions(&mut record);
        self.notes.extend(record.finish());
    }

    /// The state of now. Parts that name no owner are its own.
    fn now(&mut self, now: Option<(Record<'_>, Option<Uuid>)>, machine: &mut Machine) {
        let mut owners = vec![None, machine.id];
        let mut settings = Settings::default();
        match now {
            Some((mut record, own)) => {
                owners.push(own);
                if machine.name.is_empty() {
                    machine.name = record.text("ElementName").unwrap_or_default();
                }
                record.text("ElementName");
                machine.notes = notes_of(&mut record);
                let created = record.parsed("CreationTime", "time", unix_ms);
                machine.created_unix_ms = machine.created_unix_ms.or(created);
                machine.now_parent = parent_of(&mut record);
                firmware(&mut record, &mut settings);
                self.notes.extend(record.finish());
            }
            None => {
                let why = "missing: its firmware settings are not known";
                self.notes.push(NotUnderstood::new("Msvm_VirtualSystemSettingData", "", why));
            }
        }
        owners.dedup();
        let mut records: Vec<Record<'_>> = Vec::new();
        for owner in owners {
            records.append(&mut self.parts.remove(&owner).unwrap_or_default());
        }
        machine.generation = VirtualHardware::Gen1;
        let mut notes = Vec::new();
        machine.settings = self.hardware(records, settings, &mut notes);
        machine.not_understood.append(&mut notes);
    }

    fn checkpoint(&mut self, mut record: Record<'_>, own: Option<Uuid>, system: Option<Uuid>) -> Checkpoint {
        let mut checkpoint = Checkpoint::empty(SourceKind::Exp);
        checkpoint.source = Source { kind: SourceKind::Exp, version: None, host: None };
        checkpoint.id = own;
        checkpoint.machine = system;
        checkpoint.name = record.text("ElementName").unwrap_or_default();
        checkpoint.notes = notes_of(&mut record);
        checkpoint.created_unix_ms = record.parsed("CreationTime", "time", unix_ms);
        checkpoint.parent = parent_of(&mut record).filter(|parent| Some(*parent) != own);
        let mut settings = Settings::default();
        firmware(&mut record, &mut settings);
        let mut notes = record.finish();
        let records = own.and_then(|own| self.parts.remove(&Some(own))).unwrap_or_default();
        checkpoint.settings = self.hardware(records, settings, &mut notes);
        limit(&mut notes);
        checkpoint.not_understood = notes;
        checkpoint
    }

    fn hardware(
        &self,
        records: Vec<Record<'_>>,
        mut settings: Settings,
        notes: &mut Vec<NotUnderstood>,
    ) -> Settings {
        let (services, mut devices): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| integration_of(record.instance.class()).is_some());
        for mut record in services {
            let Some(service) = integration_of(record.instance.class()) else { continue };
            let enabled = record.number::<u32>("EnabledState") != Some(3);
            record.text("ElementName");
            settings.integration.push(IntegrationService { service, enabled });
            notes.append(&mut record.finish());
        }
        settings.integration.sort_by_key(|service| service.service);
        exp_rasd::read(&mut devices, &mut settings, &self.switches);
        for record in devices {
            notes.append(&mut record.finish());
        }
        settings
    }

    /// What is left belongs to nobody.
    fn finish(mut self, machine: &mut Machine) {
        for (owner, records) in self.parts {
            for record in records {
                let owner = owner.map(|owner| owner.to_string()).unwrap_or_default();
                let why = "it belongs to a machine or checkpoint that is not in the file";
                self.notes.push(NotUnderstood::new(record.instance.class(), owner, why));
            }
        }
        machine.not_understood.append(&mut self.notes);
        limit(&mut machine.not_understood);
    }
}

fn actions(record: &mut Record<'_>) -> Actions {
    let start = match record.number::<u32>("AutomaticStartupAction") {
        Some(0) => HostStartAction::Nothing,
        Some(2) => HostStartAction::Start,
        _ => HostStartAction::StartIfRunning,
    };
    let stop = match record.number::<u32>("AutomaticShutdownAction") {
        Some(0) => HostStopAction::TurnOff,
        Some(2) => HostStopAction::Shutdown,
        _ => HostStopAction::Save,
    };
    let recovery = match record.number::<u32>("AutomaticRecoveryAction") {
        Some(0) => Recovery::None,
        Some(2) => Recovery::Revert,
        _ => Recovery::Restart,
    };
    let start_delay_s = record.parsed("AutomaticStartupActionDelay", "interval", interval_s).unwrap_or(0);
    Actions { start, start_delay_s, stop, recovery }
}

fn notes_of(record: &mut Record<'_>) -> String {
    record.texts("Notes").join("\n")
}

/// The GUID in `Parent`.
fn parent_of(record: &mut Record<'_>) -> Option<Uuid> {
    let id = record.parent_identifier();
    id.first().and_then(|id| Uuid::try_parse(id).ok())
}

fn firmware(record: &mut Record<'_>, settings: &mut Settings) {
    let firmware = &mut settings.firmware;
    firmware.bios_guid = record.guid("BIOSGUID");
    firmware.bios_serial = record.text("BIOSSerialNumber").unwrap_or_default();
    firmware.base_board_serial = record.text("BaseBoardSerialNumber").unwrap_or_default();
    firmware.chassis_serial = record.text("ChassisSerialNumber").unwrap_or_default();
    firmware.chassis_asset_tag = record.text("ChassisAssetTag").unwrap_or_default();
    firmware.num_lock = record.boolean("BIOSNumLock").unwrap_or(false);
    for word in record.texts("BootOrder").into_iter().take(16) {
        let device = match word.trim() {
            "0" => BootDevice::Floppy,
            "1" => BootDevice::Optical,
            "2" => BootDevice::HardDrive,
            "3" => BootDevice::Network,
            _ => {
                record.note("BootOrder", &word, "a boot device that is not known here");
                continue;
            }
        };
        if !firmware.boot_order.contains(&device) {
            firmware.boot_order.push(device);
        }
    }
}

fn integration_of(class: &str) -> Option<Integration> {
    match class {
        "Msvm_HeartbeatComponentSettingData" => Some(Integration::Heartbeat),
        "Msvm_KvpExchangeComponentSettingData" => Some(Integration::KeyValue),
        "Msvm_ShutdownComponentSettingData" => Some(Integration::Shutdown),
        "Msvm_TimeSyncComponentSettingData" => Some(Integration::TimeSync),
        "Msvm_VssComponentSettingData" => Some(Integration::Vss),
        "Msvm_GuestServiceInterfaceComponentSettingData" => Some(Integration::GuestServices),
        _ => None,
    }
}

/// The class of an integration service's settings.
pub(super) fn class_of(service: Integration) -> &'static str {
    match service {
        Integration::Heartbeat => "Msvm_HeartbeatComponentSettingData",
        Integration::KeyValue => "Msvm_KvpExchangeComponentSettingData",
        Integration::Shutdown => "Msvm_ShutdownComponentSettingData",
        Integration::TimeSync => "Msvm_TimeSyncComponentSettingData",
        Integration::Vss => "Msvm_VssComponentSettingData",
        Integration::GuestServices => "Msvm_GuestServiceInterfaceComponentSettingData",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_with_single_and_doubled_back_slashes() {
        let wanted = ["0DE8", "83F8", "0", "1", "D"];
        for path in [
            r#"\\HOST\root\virtualization:Msvm_ResourceAllocationSettingData.InstanceID="Microsoft:0DE8\83F8\0\1\D""#,
            r#"\HOST\root\virtualization:Msvm_ResourceAllocationSettingData.InstanceID="Microsoft:0DE8\\83F8\\0\\1\\D""#,
            r#"X.A="InstanceID",InstanceID="Microsoft:0DE8\83F8\0\1\D",B="c""#,
        ] {
            assert_eq!(split_id(path_key(path, "InstanceID").unwrap()), wanted, "{path}");
        }
        assert_eq!(path_key(r#"X.SystemName="a",Name="b""#, "Name"), Some("b"));
        assert_eq!(path_key("nothing", "Name"), None);
        assert_eq!(path_key("Name", "Name"), None);
        assert!(split_id("").is_empty());
    }
}

//! What `backstay-collect.ps1` writes (`docs/formats/collector.md`). Read leniently: PowerShell makes an object of a list
//! with one element, a text of a number, and null of nothing.

use super::hardware::{
    Bandwidth, Bus, ComPort, Drive, DriveKind, DriveQos, DynamicMemory, Firmware, Integration,
    IntegrationService, Memory, Nic, NicKind, OtherDevice, Processors, Settings, Vlan,
};
use super::machine::{
    Actions, Checkpoint, CheckpointKind, DataRoots, Document, Machine, NotUnderstood, Recovery, SavedState,
    Source, SourceKind, limit,
};
use super::read::ReadError;
use backstay_model::{BootDevice, HostStartAction, HostStopAction, MacAddress, VirtualHardware};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use uuid::Uuid;

/// What `format` says.
const FORMAT: &str = "backstay-collect";
/// The newest version that is read.
const VERSION: u64 = 1;
/// A host with hundreds of machines has some hundred KiB.
const MOST_BYTES: usize = 8 << 20;
/// Elements of any list inside a machine.
const MOST_ITEMS: usize = 1024;
/// Controller numbers and locations that are looked at.
const MOST_PLACE: u32 = 255;

/// All machines in the file.
pub(super) fn documents(bytes: &[u8]) -> Result<Vec<Document>, ReadError> {
    let bad = ReadError::Collector;
    if bytes.len() > MOST_BYTES {
        return Err(bad(format!("it has {} bytes, at most {MOST_BYTES} are read", bytes.len())));
    }
    let text = crate::read::decode(bytes).map_err(|error| bad(error.to_string()))?;
    let value: Value = serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .map_err(|error| bad(format!("it is no JSON: {error}")))?;
    let Value::Object(root) = &value else { return Err(bad("it is no JSON object".into())) };
    let mut root = Fields::new(root, String::new());
    if root.text("format").as_deref() != Some(FORMAT) {
        return Err(bad(format!("its 'format' is not '{FORMAT}'")));
    }
    match root.count::<u64>("version") {
        Some(1..=VERSION) => {}
        found => return Err(ReadError::CollectorVersion { found: found.unwrap_or(0), known: VERSION }),
    }
    let host = root.object("host").and_then(|mut host| host.text("name"));
    let machines = root.objects("machines", usize::MAX);
    Ok(machines
        .into_iter()
        .map(|fields| Document::Machine(Box::new(machine(fields, host.as_ref()))))
        .collect())
}

/// An object, where it is, and which of its members were read.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: String,
    seen: BTreeSet<&'static str>,
    notes: Vec<NotUnderstood>,
}

impl<'a> Fields<'a> {
    fn new(object: &'a Map<String, Value>, path: String) -> Self {
        Self { object, path, seen: BTreeSet::new(), notes: Vec::new() }
    }

    fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn note(&mut self, name: &str, value: &str, why: &str) {
        let path = self.at(name);
        self.notes.push(NotUnderstood::new(path, value, why));
    }

    fn get(&mut self, name: &'static str) -> Option<&'a Value> {
        self.seen.insert(name);
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// A text, or a number as text; none when it is null or empty.
    fn text(&mut self, name: &'static str) -> Option<String> {
        let text = match self.get(name)? {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(value) => value.to_string(),
            other => {
                let shown = other.to_string();
                self.note(name, &shown, "a text is expected");
                return None;
            }
        };
        (!text.is_empty()).then_some(text)
    }

    fn parsed<T>(
        &mut self,
        name: &'static str,
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

    fn count<T: std::str::FromStr>(&mut self, name: &'static str) -> Option<T> {
        self.parsed(name, "number in its range", |text| text.parse().ok())
    }

    fn boolean(&mut self, name: &'static str) -> Option<bool> {
        self.parsed(name, "truth value", |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        })
    }

    fn guid(&mut self, name: &'static str) -> Option<Uuid> {
        self.parsed(name, "GUID", |text| Uuid::try_parse(text).ok()).filter(|id| !id.is_nil())
    }

    fn time(&mut self, name: &'static str) -> Option<i64> {
        self.parsed(name, "time in UTC (2012-02-29T12:00:00Z)", unix_ms)
    }

    /// One of the words that are known.
    fn word<T>(&mut self, name: &'static str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        self.parsed(name, "word that is known here", read)
    }

    fn object(&mut self, name: &'static str) -> Option<Fields<'a>> {
        let path = self.at(name);
        match self.get(name)? {
            Value::Object(object) => Some(Fields::new(object, path)),
            other => {
                let shown = other.to_string();
                self.note(name, &shown, "an object is expected");
                None
            }
        }
    }

    /// The elements of a list; one that is no list counts as its only element.
    fn items(&mut self, name: &'static str, most: usize) -> Vec<&'a Value> {
        let Some(value) = self.get(name) else { return Vec::new() };
        let items = match value {
            Value::Array(items) => items.iter().collect(),
            one => vec![one],
        };
        if items.len() > most {
            self.note(name, &items.len().to_string(), &format!("only the first {most} are read"));
        }
        items.into_iter().filter(|item| !item.is_null()).take(most).collect()
    }

    fn objects(&mut self, name: &'static str, most: usize) -> Vec<Fields<'a>> {
        let mut found = Vec::new();
        for (index, item) in self.items(name, most).into_iter().enumerate() {
            match item {
                Value::Object(object) => {
                    found.push(Fields::new(object, format!("{}[{index}]", self.at(name))))
                }
                other => self.note(name, &other.to_string(), "an object is expected"),
            }
        }
        found
    }

    fn texts(&mut self, name: &'static str) -> Vec<String> {
        let items = self.items(name, MOST_ITEMS);
        items
            .into_iter()
            .filter_map(Value::as_str)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// What was noted, and every member that nobody read.
    fn finish(mut self) -> Vec<NotUnderstood> {
        const MOST: usize = 100;
        let unknown = self.object.iter().filter(|(name, value)| {
            let says_nothing = value.is_null() || value.as_str().is_some_and(str::is_empty);
            !says_nothing && !self.seen.contains(name.as_str())
        });
        let unknown: Vec<_> = unknown.take(MOST).collect();
        for (name, value) in unknown {
            let shown = match value {
                Value::String(text) => text.clone(),
                Value::Array(_) | Value::Object(_) => "a list or an object".to_owned(),
                other => other.to_string(),
            };
            let path = self.at(name);
            self.notes.push(NotUnderstood::new(path, shown, "nothing here corresponds to it"));
        }
        self.notes
    }
}

/// Milliseconds since the Unix epoch of `2012-02-29T12:00:00Z`, with or without a fraction.
fn unix_ms(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z')?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let shape = |c: char| if c.is_ascii_digit() { '0' } else { c };
    if seconds.chars().map(shape).collect::<String>() != "0000-00-00T00:00:00" {
        return None;
    }
    let digits: String = seconds.chars().filter(char::is_ascii_digit).collect();
    let fraction: String = fraction.chars().chain("000000".chars()).take(6).collect();
    crate::cim::unix_ms(&format!("{digits}.{fraction}+000"))
}

fn source(host: Option<&String>, version: Option<String>) -> Source {
    Source { kind: SourceKind::Collector, version, host: host.cloned() }
}

fn machine(mut fields: Fields<'_>, host: Option<&String>) -> Machine {
    let mut machine = Machine::empty(SourceKind::Collector);
    machine.source = source(host, fields.text("version"));
    machine.id = fields.guid("id");
    machine.name = fields.text("name").unwrap_or_default();
    machine.notes = fields.text("notes").unwrap_or_default();
    machine.created_unix_ms = fields.time("created");
    machine.generation = generation(&mut fields);
    machine.clustered = fields.boolean("clustered").unwrap_or(false);
    machine.scope_of_residence = fields.text("scopeOfResidence").unwrap_or_default();
    machine.roots = DataRoots {
        configuration: fields.text("configurationRoot").unwrap_or_default(),
        snapshots: fields.text("snapshotRoot").unwrap_or_default(),
    };
    let mut notes = Vec::new();
    machine.actions = actions(&mut fields, &mut notes);
    let state = fields.text("state");
    machine.saved_state = saved_state(&mut fields, state.as_deref() == Some("saved"));
    machine.now_parent = fields.guid("parent");
    machine.settings = settings(&mut fields, &mut notes);
    let checkpoints = fields.objects("checkpoints", MOST_ITEMS);
    notes.append(&mut fields.finish());
    for fields in checkpoints {
        let checkpoint = checkpoint(fields, &machine, host);
        machine.adopt(checkpoint);
    }
    machine.not_understood.append(&mut notes);
    limit(&mut machine.not_understood);
    machine
}

fn checkpoint(mut fields: Fields<'_>, machine: &Machine, host: Option<&String>) -> Checkpoint {
    let mut checkpoint = Checkpoint::empty(SourceKind::Collector);
    checkpoint.source = source(host, machine.source.version.clone());
    checkpoint.id = fields.guid("id");
    checkpoint.machine = machine.id;
    checkpoint.name = fields.text("name").unwrap_or_default();
    checkpoint.notes = fields.text("notes").unwrap_or_default();
    checkpoint.parent = fields.guid("parent");
    checkpoint.created_unix_ms = fields.time("created");
    let kind = fields.word("kind", |word| match word {
        "standard" => Some(CheckpointKind::Standard),
        "production" => Some(CheckpointKind::Production),
        "recovery" => Some(CheckpointKind::Recovery),
        "replica" => Some(CheckpointKind::Replica),
        _ => None,
    });
    checkpoint.kind = kind.unwrap_or_default();
    checkpoint.generation = machine.generation;
    checkpoint.saved_state = saved_state(&mut fields, false);
    let mut notes = Vec::new();
    checkpoint.settings = settings(&mut fields, &mut notes);
    notes.append(&mut fields.finish());
    limit(&mut notes);
    checkpoint.not_understood = notes;
    checkpoint
}

fn generation(fields: &mut Fields<'_>) -> VirtualHardware {
    let found = fields.word("generation", |word| match word {
        "1" => Some(VirtualHardware::Gen1),
        "2" => Some(VirtualHardware::Gen2),
        _ => None,
    });
    found.unwrap_or_default()
}

fn saved_state(fields: &mut Fields<'_>, saved: bool) -> Option<SavedState> {
    let files = fields.texts("savedStateFiles");
    (saved || !files.is_empty()).then_some(SavedState { files })
}

fn actions(fields: &mut Fields<'_>, notes: &mut Vec<NotUnderstood>) -> Actions {
    let Some(mut fields) = fields.object("actions") else { return Actions::default() };
    let start = fields.word("start", |word| match word {
        "nothing" => Some(HostStartAction::Nothing),
        "start-if-running" => Some(HostStartAction::StartIfRunning),
        "start" => Some(HostStartAction::Start),
        _ => None,
    });
    let stop = fields.word("stop", |word| match word {
        "turn-off" => Some(HostStopAction::TurnOff),
        "save" => Some(HostStopAction::Save),
        "shutdown" => Some(HostStopAction::Shutdown),
        _ => None,
    });
    let recovery = fields.word("recovery", |word| match word {
        "none" => Some(Recovery::None),
        "restart" => Some(Recovery::Restart),
        "revert" => Some(Recovery::Revert),
        _ => None,
    });
    let actions = Actions {
        start: start.unwrap_or_default(),
        start_delay_s: fields.count("startDelaySeconds").unwrap_or(0),
        stop: stop.unwrap_or_default(),
        recovery: recovery.unwrap_or_default(),
    };
    notes.append(&mut fields.finish());
    actions
}

fn settings(fields: &mut Fields<'_>, notes: &mut Vec<NotUnderstood>) -> Settings {
    let mut settings = Settings::default();
    let Some(mut fields) = fields.object("settings") else { return settings };
    settings.processors = processors(&mut fields, notes);
    settings.memory = memory(&mut fields, notes);
    firmware(&mut fields, &mut settings, notes);
    for mut controller in fields.objects("controllers", MOST_ITEMS) {
        let bus = controller.word("bus", bus_of);
        let number = controller.count("number").filter(|number: &u32| *number <= MOST_PLACE);
        let id = controller.guid("id");
        if let (Some(bus), Some(number)) = (bus, number) {
            settings.controller_mut(bus, number).instance = id;
        }
        notes.append(&mut controller.finish());
    }
    for drive in fields.objects("drives", MOST_ITEMS) {
        notes.append(&mut put_drive(drive, &mut settings));
    }
    for nic in fields.objects("nics", MOST_ITEMS) {
        notes.append(&mut put_nic(nic, &mut settings));
    }
    for mut port in fields.objects("comPorts", MOST_ITEMS) {
        if let (Some(number), Some(path)) = (port.count("number"), port.text("path")) {
            settings.com_ports.push(ComPort { number, path });
        }
        notes.append(&mut port.finish());
    }
    for mut service in fields.objects("integration", MOST_ITEMS) {
        let enabled = service.boolean("enabled").unwrap_or(true);
        if let Some(service) = service.word("service", service_of) {
            settings.integration.push(IntegrationService { service, enabled });
        }
        notes.append(&mut service.finish());
    }
    for mut device in fields.objects("otherDevices", MOST_ITEMS) {
        settings.other_devices.push(OtherDevice {
            name: device.text("name").unwrap_or_default(),
            class: device.text("class").unwrap_or_default(),
            host_resource: device.text("hostResource").unwrap_or_default(),
        });
        notes.append(&mut device.finish());
    }
    settings.time_skew_100ns = fields.count("timeSkew100ns");
    notes.append(&mut fields.finish());
    settings
}

fn processors(fields: &mut Fields<'_>, notes: &mut Vec<NotUnderstood>) -> Processors {
    let normal = Processors::default();
    let Some(mut fields) = fields.object("processors") else { return normal };
    let processors = Processors {
        count: fields.count("count").unwrap_or(normal.count),
        reserve: fields.count("reserve").unwrap_or(normal.reserve),
        limit: fields.count("limit").unwrap_or(normal.limit),
        weight: fields.count("weight").unwrap_or(normal.weight),
        for_migration: fields.boolean("forMigration").unwrap_or(false),
        for_old_systems: fields.boolean("forOldSystems").unwrap_or(false),
        nested: fields.boolean("nested").unwrap_or(false),
    };
    notes.append(&mut fields.finish());
    processors
}

fn memory(fields: &mut Fields<'_>, notes: &mut Vec<NotUnderstood>) -> Memory {
    let normal = Memory::default();
    let Some(mut fields) = fields.object("memory") else { return normal };
    let startup_mib = fields.count("startupMib").unwrap_or_else(|| {
        notes.push(NotUnderstood::new(fields.at("startupMib"), "", "missing: 1024 MiB are assumed"));
        normal.startup_mib
    });
    let (min, max, buffer) = (fields.count("minMib"), fields.count("maxMib"), fields.count("bufferPercent"));
    let dynamic = fields.boolean("dynamic").unwrap_or(false).then(|| DynamicMemory {
        min_mib: min.unwrap_or(startup_mib),
        max_mib: max.unwrap_or(startup_mib),
        buffer_percent: buffer.unwrap_or(20),
    });
    let weight = fields.count("weight").unwrap_or(normal.weight);
    notes.append(&mut fields.finish());
    Memory { startup_mib, dynamic, weight }
}

fn firmware(fields: &mut Fields<'_>, settings: &mut Settings, notes: &mut Vec<NotUnderstood>) {
    let Some(mut fields) = fields.object("firmware") else { return };
    let mut boot_order = Vec::new();
    for word in fields.texts("bootOrder").into_iter().take(16) {
        let device = match word.as_str() {
            "optical" => BootDevice::Optical,
            "hard-drive" => BootDevice::HardDrive,
            "network" => BootDevice::Network,
            "floppy" => BootDevice::Floppy,
            _ => {
                fields.note("bootOrder", &word, "a boot device that is not known here");
                continue;
            }
        };
        if !boot_order.contains(&device) {
            boot_order.push(device);
        }
    }
    settings.firmware = Firmware {
        bios_guid: fields.guid("biosGuid"),
        bios_serial: fields.text("biosSerial").unwrap_or_default(),
        base_board_serial: fields.text("baseBoardSerial").unwrap_or_default(),
        chassis_serial: fields.text("chassisSerial").unwrap_or_default(),
        chassis_asset_tag: fields.text("chassisAssetTag").unwrap_or_default(),
        boot_order,
        num_lock: fields.boolean("numLock").unwrap_or(false),
        secure_boot: fields.boolean("secureBoot"),
        secure_boot_template: fields.text("secureBootTemplate").unwrap_or_default(),
    };
    settings.tpm = fields.boolean("tpm").unwrap_or(false);
    notes.append(&mut fields.finish());
}

fn bus_of(word: &str) -> Option<Bus> {
    match word {
        "ide" => Some(Bus::Ide),
        "scsi" => Some(Bus::Scsi),
        "floppy" => Some(Bus::Floppy),
        _ => None,
    }
}

fn service_of(word: &str) -> Option<Integration> {
    match word {
        "heartbeat" => Some(Integration::Heartbeat),
        "key-value" => Some(Integration::KeyValue),
        "shutdown" => Some(Integration::Shutdown),
        "time-sync" => Some(Integration::TimeSync),
        "vss" => Some(Integration::Vss),
        "guest-services" => Some(Integration::GuestServices),
        _ => None,
    }
}

fn put_drive(mut fields: Fields<'_>, settings: &mut Settings) -> Vec<NotUnderstood> {
    let path = fields.text("path").unwrap_or_default();
    let kind = fields.word("kind", |word| match (word, path.is_empty()) {
        ("disk", _) => Some(DriveKind::of_disk(&path)),
        ("pass-through", _) => Some(DriveKind::PassThrough),
        ("optical", true) => Some(DriveKind::EmptyOptical),
        ("optical", false) => Some(DriveKind::Iso),
        ("host-optical", _) => Some(DriveKind::HostOptical),
        ("floppy", _) => Some(DriveKind::Floppy),
        _ => None,
    });
    let mut place = |name| fields.count::<u32>(name).filter(|number| *number <= MOST_PLACE);
    let (number, location) = (place("controller"), place("location"));
    let qos = DriveQos {
        max_iops: fields.count("maxIops").unwrap_or(0),
        min_iops: fields.count("minIops").unwrap_or(0),
    };
    let bus = fields.word("bus", bus_of);
    match (bus, number, location, kind) {
        // An empty drive of these kinds is nothing to a guest of ours.
        (_, _, _, Some(kind)) if path.is_empty() && kind != DriveKind::EmptyOptical => {}
        (Some(bus), Some(number), Some(location), Some(kind)) => {
            let drive = Drive { location, kind, path, qos };
            if let Err(second) = settings.controller_mut(bus, number).put(drive) {
                fields.note("location", &second.path, "a second drive at one location");
            }
        }
        _ => fields.note("path", &path, "a drive without a place or a kind"),
    }
    fields.finish()
}

fn put_nic(mut fields: Fields<'_>, settings: &mut Settings) -> Vec<NotUnderstood> {
    let mut notes = Vec::new();
    let kind = fields.word("kind", |word| match word {
        "synthetic" => Some(NicKind::Synthetic),
        "legacy" => Some(NicKind::Legacy),
        _ => None,
    });
    let mac = fields.parsed("mac", "MAC address", |text| text.parse::<MacAddress>().ok());
    let bandwidth = Bandwidth {
        max_bps: fields.count("maxBps").unwrap_or(0),
        min_bps: fields.count("minBps").unwrap_or(0),
    };
    let vlan = match fields.object("vlan") {
        Some(fields) => vlan(fields, &mut notes),
        None => Vlan::None,
    };
    settings.nics.push(Nic {
        id: fields.guid("id"),
        name: fields.text("name").unwrap_or_default(),
        kind: kind.unwrap_or_default(),
        mac: mac.filter(|mac| *mac != MacAddress([0; 6])),
        mac_is_static: fields.boolean("macIsStatic").unwrap_or(false),
        connected: fields.boolean("connected").unwrap_or(false),
        switch_name: fields.text("switch").unwrap_or_default(),
        switch_id: fields.guid("switchId"),
        vlan,
        mac_spoofing: fields.boolean("macSpoofing"),
        bandwidth: (bandwidth != Bandwidth::default()).then_some(bandwidth),
    });
    notes.append(&mut fields.finish());
    notes
}

fn vlan(mut fields: Fields<'_>, notes: &mut Vec<NotUnderstood>) -> Vlan {
    let id = fields.count("id").unwrap_or(0);
    let native = fields.count("native").unwrap_or(0);
    let allowed = fields.text("allowed").unwrap_or_default();
    let primary = fields.count("primary").unwrap_or(0);
    let secondary = fields.text("secondary").unwrap_or_default();
    let mode = fields.text("mode").unwrap_or_default();
    let vlan = match mode.as_str() {
        "" | "untagged" => Vlan::None,
        "access" => Vlan::Access(id),
        "trunk" => Vlan::Trunk { native, allowed },
        "isolated" | "community" | "promiscuous" => Vlan::Private { mode, primary, secondary },
        other => {
            fields.note("mode", other, "a VLAN mode that is not known here");
            Vlan::None
        }
    };
    notes.append(&mut fields.finish());
    vlan
}

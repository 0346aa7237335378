//! A machine of another host as one of this product, and everything that is different then.

use super::hardware::{Bus, Controller, Drive, DriveKind, Nic, NicKind, Settings, Vlan};
use super::machine::{Machine, Recovery};
use crate::spec::{PER_PERCENT, derived_mac, safe_name};
use crate::template::derive;
use backstay_model::{
    AccelPolicy, BootDevice, CpuControl, DriveMedia, DriveSpec, IoLimit, MacAddress, NicAttachment, NicId,
    NicModel, NicSpec, RecoveryAction, VirtualHardware, VmId, VmName, VmSpec,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use uuid::Uuid;

/// How much a difference matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Worth knowing; nothing has to be done.
    Note,
    /// Something works differently or is gone: somebody should decide.
    Attention,
    /// The machine cannot be started as it is.
    Stop,
}

/// One thing that is different here, for people: each text is a short phrase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// How much it matters.
    pub level: Level,
    /// The thing, for example `processor weight` or `network card 'LAN'`.
    pub what: String,
    /// As the source has it.
    pub was: String,
    /// As it becomes.
    pub becomes: String,
    /// Why.
    pub why: String,
    /// What to do about it; empty where nothing has to be done.
    pub cure: String,
}

/// What is known of the host that the machine comes to, and what its owner decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConvertOptions {
    /// The identity it gets; none keeps the source's.
    pub id: Option<VmId>,
    /// Processors of the host; none leaves the number alone.
    pub host_processors: Option<u32>,
    /// Memory of the host in MiB; none leaves it alone.
    pub host_memory_mib: Option<u64>,
    /// Switches here by the source's switch names or GUIDs (upper case without braces). A name that is not in it stays.
    pub switches: BTreeMap<String, String>,
    /// Switches that exist here; none: not known, nothing is said about missing ones.
    pub known_switches: Option<BTreeSet<String>>,
    /// QEMU's versioned machine type, to be pinned.
    pub machine_type: String,
}

/// A machine of this product, and what is different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// The machine. Paths of disks and images are the source's, as written: whoever imports it points them elsewhere.
    pub spec: VmSpec,
    /// What is different, the gravest first.
    pub differences: Vec<Difference>,
}

impl Machine {
    /// The machine as one of this product, in the state of `settings`: [`Machine::settings`] for now, or a checkpoint's.
    /// Never fails: what does not fit becomes a [`Difference`]. The result keeps all rules of [`VmSpec::validate`],
    /// except that one file may be named by two drives, which only the importer can tell.
    #[must_use]
    pub fn to_spec(&self, settings: &Settings, options: &ConvertOptions) -> Conversion {
        let mut list = List::default();
        let id = self.identity(options, &mut list);
        let name = self.display_name(id, &mut list);
        let spec = VmSpec {
            id,
            name,
            notes: keep_xml(&self.notes),
            hardware: self.generation,
            memory_mib: memory(settings, options, &mut list),
            cpu: processors(settings, options, &mut list),
            drives: drives(settings, &mut list),
            scsi_controllers: scsi_controllers(settings),
            nics: nics(settings, id.0, options, &mut list),
            boot_order: boot_order(settings),
            bios_guid: settings.firmware.bios_guid.unwrap_or(id.0),
            machine_type: options.machine_type.clone(),
            accel: AccelPolicy::Auto,
            recovery: self.recovery(&mut list),
            host_start: self.actions.start,
            host_stop: self.actions.stop,
            start_delay_s: self.start_delay(&mut list),
            start_order: 0,
        };
        self.about_the_machine(&mut list);
        about_the_firmware(settings, self.generation, &mut list);
        about_other_devices(settings, &mut list);
        let mut differences = list.found;
        differences.sort_by_key(|difference| std::cmp::Reverse(difference.level));
        Conversion { spec, differences }
    }

    fn identity(&self, options: &ConvertOptions, list: &mut List) -> VmId {
        let made = || derive(Uuid::nil(), &format!("machine {} {:?}", self.name, self.source), 0);
        match (options.id, self.id.filter(|id| !id.is_nil())) {
            (Some(id), Some(old)) if id.0 != old => {
                let why = "a new identity was asked for";
                list.note("GUID", VmId(old).to_string(), id.to_string(), why, "");
                id
            }
            (Some(id), _) => id,
            (None, Some(id)) => VmId(id),
            (None, None) => {
                let id = VmId(made());
                list.note("GUID", "none", id.to_string(), "the source names none", "");
                id
            }
        }
    }

    fn display_name(&self, id: VmId, list: &mut List) -> VmName {
        match VmName::new(self.name.as_str()) {
            Ok(name) => name,
            Err(error) => {
                let name = safe_name(&self.name, id.0);
                list.note("name", self.name.escape_debug(), &name, &error.to_string(), "rename it");
                name
            }
        }
    }

    fn recovery(&self, list: &mut List) -> RecoveryAction {
        match self.actions.recovery {
            Recovery::None => RecoveryAction::None,
            Recovery::Restart => RecoveryAction::Restart,
            Recovery::Revert => {
                let why = "applying a checkpoint by itself would throw data away";
                list.attention(
                    "recovery action",
                    "apply a checkpoint",
                    "restart",
                    why,
                    "choose another action",
                );
                RecoveryAction::Restart
            }
        }
    }

    fn start_delay(&self, list: &mut List) -> u32 {
        let most = VmSpec::MOST_START_DELAY_S;
        match u32::try_from(self.actions.start_delay_s).ok().filter(|delay| *delay <= most) {
            Some(delay) => delay,
            None => {
                let was = format!("{} s", self.actions.start_delay_s);
                list.note("start delay", was, format!("{most} s"), "a day is the longest", "");
                most
            }
        }
    }

    fn about_the_machine(&self, list: &mut List) {
        if !self.scope_of_residence.is_empty() {
            let why = "it names an authorization scope of the source's domain, which nothing here uses; Hyper-V on \
                       another domain refuses such an import with 'One or more arguments are invalid (0x80070057)'";
            list.attention("ScopeOfResidence", &self.scope_of_residence, "dropped", why, "");
        }
        if let Some(state) = &self.saved_state {
            let was = if state.files.is_empty() { "yes".into() } else { state.files.join(", ") };
            let why = "no other hypervisor can resume it: the disks are as after a power cut";
            let cure = "to keep what was in memory, start it on its host and shut it down there first";
            list.attention("saved state", was, "set aside, never deleted", why, cure);
        }
        if self.merge_pending {
            let why = "disks of deleted checkpoints wait to be merged";
            list.note(
                "disk merge",
                "pending",
                "the chain stays as it is",
                why,
                "merge the disks when you like",
            );
        }
        if self.clustered {
            let why = "it was a resource of a failover cluster";
            list.note("high availability", "yes", "no", why, "add it to a group of a cluster here");
        }
    }
}

/// The differences found so far.
#[derive(Default)]
struct List {
    found: Vec<Difference>,
}

impl List {
    fn add(&mut self, level: Level, texts: [String; 5]) {
        let [what, was, becomes, why, cure] = texts;
        self.found.push(Difference { level, what, was, becomes, why, cure });
    }

    fn note(&mut self, what: &str, was: impl ToString, becomes: impl ToString, why: &str, cure: &str) {
        self.add(Level::Note, [what.into(), was.to_string(), becomes.to_string(), why.into(), cure.into()]);
    }

    fn attention(&mut self, what: &str, was: impl ToString, becomes: impl ToString, why: &str, cure: &str) {
        self.add(
            Level::Attention,
            [what.into(), was.to_string(), becomes.to_string(), why.into(), cure.into()],
        );
    }
}

/// Text without the characters that a configuration cannot hold.
fn keep_xml(text: &str) -> String {
    text.chars().filter(|c| crate::tree::is_xml_char(*c)).collect()
}

fn memory(settings: &Settings, options: &ConvertOptions, list: &mut List) -> u64 {
    let memory = settings.memory;
    let size = memory.startup_mib.clamp(1, 12 << 20);
    if size != memory.startup_mib {
        let was = format!("{} MiB", memory.startup_mib);
        list.attention(
            "memory",
            was,
            format!("{size} MiB"),
            "a machine has 1 MiB to 12 TiB",
            "set another size",
        );
    }
    if let Some(dynamic) = memory.dynamic {
        let was =
            format!("dynamic, {} to {} MiB, {} MiB at the start", dynamic.min_mib, dynamic.max_mib, size);
        let cure = format!(
            "give it what it needs most of the time, at most {} MiB: with dynamic memory the start-up size is often small",
            dynamic.max_mib
        );
        list.attention("memory", was, format!("{size} MiB"), "dynamic memory is not offered", &cure);
    }
    if let Some(host) = options.host_memory_mib.filter(|host| *host < size) {
        let (was, why) = (format!("{size} MiB"), format!("the host has {host} MiB"));
        let texts = ["memory".into(), was.clone(), was, why, "give it less memory, or the host more".into()];
        list.add(Level::Stop, texts);
    }
    size
}

fn processors(settings: &Settings, options: &ConvertOptions, list: &mut List) -> CpuControl {
    let found = settings.processors;
    let most = options.host_processors.unwrap_or(240).clamp(1, 240);
    let count = found.count.clamp(1, most);
    if count != found.count {
        let why = match options.host_processors {
            Some(host) if found.count > host => format!("the host has {host}"),
            _ => "a machine has 1 to 240".to_owned(),
        };
        list.attention("processors", found.count, count, &why, "");
    }
    let per_percent = PER_PERCENT.unsigned_abs();
    let percent = |share: u64, low: u64| {
        let rounded = (share.saturating_add(per_percent / 2) / per_percent).clamp(low, 100);
        u32::try_from(rounded).unwrap_or(100)
    };
    let shown = |share: u64| format!("{} %", thousandths(share));
    let limit_percent = percent(found.limit, 1);
    if u64::from(limit_percent) * per_percent != found.limit {
        let why = "limits are whole percents from 1 to 100";
        list.note("processor limit", shown(found.limit), format!("{limit_percent} %"), why, "");
    }
    let reserve_percent = percent(found.reserve, 0).min(limit_percent);
    // Recorded machines have a reserve of 1, a thousandth of a percent: it says nothing.
    if u64::from(reserve_percent) * per_percent != found.reserve && found.reserve > 1 {
        let why = "reserves are whole percents, and not above the limit";
        list.note("processor reserve", shown(found.reserve), format!("{reserve_percent} %"), why, "");
    }
    let weight = found.weight.clamp(1, 10_000);
    if weight != found.weight {
        let why = "weights are from 1 to 10000; Windows Server 2008 also knew 0";
        list.note("processor weight", found.weight, weight, why, "");
    }
    if found.nested {
        let why = "it depends on the host";
        list.note("nested virtualization", "on", "as the host allows", why, "");
    }
    CpuControl { count, reserve_percent, limit_percent, weight }
}

/// Thousandths as a decimal number without zeros at its end.
fn thousandths(number: u64) -> String {
    let text = format!("{}.{:03}", number / 1000, number % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn drives(settings: &Settings, list: &mut List) -> Vec<DriveSpec> {
    let mut drives = Vec::new();
    for (controller, drive) in settings.drives() {
        let what = place_name(controller, drive);
        let Some(slot) = controller.slot(drive) else {
            if controller.bus == Bus::Floppy {
                list.attention(
                    &what,
                    &drive.path,
                    "left out",
                    "machines here have no floppy drive",
                    "use an ISO image",
                );
            } else {
                let why =
                    "there are IDE controllers 0 and 1 with two drives, and SCSI controllers 0 to 3 with 64";
                list.attention(&what, &drive.path, "left out", why, "attach it at another place");
            }
            continue;
        };
        let path = PathBuf::from(&drive.path);
        let media = match drive.kind {
            DriveKind::Vhd | DriveKind::Vhdx | DriveKind::OtherDisk => DriveMedia::Disk(path),
            DriveKind::VhdSet => {
                let why = "disks that several machines share are not offered";
                list.attention(&what, &drive.path, "left out", why, "convert it to a VHDX of its own");
                continue;
            }
            DriveKind::Iso => DriveMedia::Iso(path),
            DriveKind::EmptyOptical => DriveMedia::EmptyOptical,
            DriveKind::HostOptical => {
                let why = "the medium is in a drive of the source's host";
                list.note(&what, &drive.path, "an empty CD/DVD drive", why, "make an ISO image of it");
                DriveMedia::EmptyOptical
            }
            DriveKind::PassThrough if drive.path.starts_with("/dev/") => DriveMedia::Device(path),
            DriveKind::PassThrough => {
                let why = "it is a disk of the source's host, passed through: no file has its content";
                let cure =
                    "copy that disk into an image and attach it, or attach the disk itself to this host";
                list.attention(&what, &drive.path, "left out", why, cure);
                continue;
            }
            DriveKind::Floppy => continue,
        };
        let limit = io_limit(&what, drive, list);
        drives.push(DriveSpec { limit, ..DriveSpec::new(slot, media) });
    }
    drives.sort_by_key(|drive| drive.slot);
    drives
}

fn io_limit(what: &str, drive: &Drive, list: &mut List) -> IoLimit {
    let qos = drive.qos;
    if qos.min_iops > 0 {
        let what = format!("minimum IOPS of {what}");
        list.note(&what, qos.min_iops, "none", "there is no minimum here, and it only ever warned", "");
    }
    if qos.max_iops == 0 || !drive.kind.is_disk_image() {
        return IoLimit::default();
    }
    let most = qos.max_iops.max(IoLimit::LEAST_IOPS);
    let what = format!("maximum IOPS of {what}");
    let why = "the source counts every 8 KiB as one, here every request is one";
    list.note(&what, qos.max_iops, most, why, "");
    IoLimit { iops: Some(most), bytes_per_second: None }
}

fn place_name(controller: &Controller, drive: &Drive) -> String {
    match controller.bus {
        Bus::Ide => format!("IDE {}:{}", controller.number, drive.location),
        Bus::Scsi => format!("SCSI {}:{}", controller.number, drive.location),
        Bus::Floppy => "floppy".into(),
    }
}

fn scsi_controllers(settings: &Settings) -> BTreeSet<u8> {
    let scsi = settings.controllers.iter().filter(|c| c.bus == Bus::Scsi);
    scsi.filter_map(|c| u8::try_from(c.number).ok()).filter(|number| *number <= 3).collect()
}

fn nics(settings: &Settings, machine: Uuid, options: &ConvertOptions, list: &mut List) -> Vec<NicSpec> {
    const MOST: usize = 8;
    let mut nics: Vec<NicSpec> = Vec::new();
    for (number, nic) in (0u64..).zip(&settings.nics) {
        let shown = if nic.name.is_empty() {
            format!("network card {}", number + 1)
        } else {
            format!("network card '{}'", nic.name)
        };
        if nics.len() == MOST {
            list.attention(
                &shown,
                "there",
                "left out",
                "a machine has at most 8 network cards",
                "use VLANs in the guest",
            );
            continue;
        }
        let taken = |id: &Uuid| nics.iter().any(|other| other.id.0 == *id);
        let id = nic.id.filter(|id| !taken(id)).unwrap_or_else(|| derive(machine, "network card", number));
        let mac = address(nic, id, &shown, &nics, list);
        let attachment = attachment(nic, &shown, options, list);
        about_the_card(nic, &shown, list);
        nics.push(NicSpec { id: NicId(id), mac, model: NicModel::E1000, attachment });
    }
    nics
}

fn address(nic: &Nic, id: Uuid, shown: &str, others: &[NicSpec], list: &mut List) -> MacAddress {
    let taken = |mac: &MacAddress| others.iter().any(|other| other.mac == *mac);
    match nic.mac {
        Some(mac) if !taken(&mac) => mac,
        found => {
            let mut mac = derived_mac(id);
            let mut number = 0;
            while taken(&mac) {
                number += 1;
                mac = derived_mac(derive(id, "address", number));
            }
            let (was, why) = match found {
                Some(mac) => (mac.to_string(), "another card of the machine has the same address"),
                None => ("none yet".into(), "the source gives it one at the first start"),
            };
            list.note(&format!("address of {shown}"), was, mac, why, "");
            mac
        }
    }
}

fn attachment(nic: &Nic, shown: &str, options: &ConvertOptions, list: &mut List) -> NicAttachment {
    if !nic.connected {
        return NicAttachment::Disconnected;
    }
    let guid = nic.switch_id.map(|id| format!("{:X}", id.hyphenated()));
    let mapped = options.switches.get(&nic.switch_name).or_else(|| options.switches.get(guid.as_deref()?));
    let what = format!("switch of {shown}");
    let name = match mapped {
        Some(name) => {
            let was =
                if nic.switch_name.is_empty() { guid.unwrap_or_default() } else { nic.switch_name.clone() };
            if was != *name {
                list.note(&what, was, name, "it was asked for", "");
            }
            name.clone()
        }
        None if nic.switch_name.is_empty() => {
            let guid = guid.unwrap_or_else(|| "unknown".into());
            let cure = format!("name a switch of this host with --map-switch {guid}=NAME");
            list.attention(&what, &guid, "unplugged", "the source knows the switch by its GUID only", &cure);
            return NicAttachment::Disconnected;
        }
        None => nic.switch_name.clone(),
    };
    let name = keep_xml(&name);
    if options.known_switches.as_ref().is_some_and(|known| !known.contains(&name)) {
        let cure = format!(
            "make a switch '{name}' before it starts, or name another one with --map-switch '{name}=NAME'"
        );
        list.attention(&what, &name, &name, "this host has no switch of that name", &cure);
    }
    NicAttachment::Switch(name)
}

fn about_the_card(nic: &Nic, shown: &str, list: &mut List) {
    let model = "Intel 82545EM";
    match nic.kind {
        NicKind::Synthetic => {
            let why = "the guest needs no integration services for it; its address stays, settings made in the guest are \
                       bound to the old card";
            let cure =
                "set a fixed IP address again in the guest; change to virtio when its drivers are there";
            list.note(&format!("model of {shown}"), "synthetic", model, why, cure);
        }
        NicKind::Legacy => {
            let why = "drivers are in every guest system of the last twenty years";
            let cure = "set a fixed IP address again in the guest";
            list.note(&format!("model of {shown}"), "legacy (DEC 21140)", model, why, cure);
        }
    }
    let vlan = match &nic.vlan {
        Vlan::None => None,
        Vlan::Access(tag) => Some(format!("access, {tag}")),
        Vlan::Trunk { native, allowed } => Some(format!("trunk, {allowed}, native {native}")),
        Vlan::Private { mode, primary, secondary } => {
            Some(format!("private, {mode}, {primary} with {secondary}"))
        }
        Vlan::Unreadable(data) => Some(format!("not readable: {data}")),
    };
    if let Some(vlan) = vlan {
        let why = "VLANs belong to the switch port, which is made anew";
        list.attention(&format!("VLAN of {shown}"), vlan, "none", why, "set the VLAN again after the import");
    }
    if nic.mac_spoofing == Some(true) {
        let why = "it is guarded here unless it is allowed";
        list.attention(
            &format!("MAC spoofing of {shown}"),
            "allowed",
            "guarded",
            why,
            "allow it again after the import",
        );
    }
    if let Some(limit) = nic.bandwidth {
        let was = format!("{} to {} bit/s", limit.min_bps, limit.max_bps);
        let why = "limits belong to the switch port, which is made anew";
        list.note(&format!("bandwidth of {shown}"), was, "unlimited", why, "set it again after the import");
    }
}

/// As written; a source that does not say gets Hyper-V's own order.
fn boot_order(settings: &Settings) -> Vec<BootDevice> {
    let mut order = settings.firmware.boot_order.clone();
    if order.is_empty() {
        order = vec![BootDevice::Optical, BootDevice::HardDrive, BootDevice::Network, BootDevice::Floppy];
    }
    order
}

fn about_the_firmware(settings: &Settings, generation: VirtualHardware, list: &mut List) {
    let firmware = &settings.firmware;
    if firmware.bios_guid.is_none() {
        let why = "the source does not name it; systems that are licensed to it ask again";
        list.note("BIOS GUID", "unknown", "the machine's GUID", why, "");
    }
    if generation == VirtualHardware::Gen2 && firmware.secure_boot == Some(true) {
        let why = "keys and boot entries are in the source's own store, which cannot be read";
        let cure = "check that it starts, then turn secure boot on again";
        list.attention("secure boot", "on", "not taken over", why, cure);
    }
    if settings.tpm {
        let why = "its keys are sealed to the source's host";
        let cure = "have the recovery key of encrypted disks (BitLocker) at hand, or suspend the encryption on the source first";
        list.attention("TPM", "there", "empty", why, cure);
    }
    if settings.time_skew_100ns.is_some_and(|skew| skew != 0) {
        let minutes = settings.time_skew_100ns.unwrap_or(0) / 600_000_000;
        let why = "the guest keeps its clock in local time";
        list.note("clock", format!("{minutes} minutes from UTC"), "kept", why, "");
    }
}

fn about_other_devices(settings: &Settings, list: &mut List) {
    for port in &settings.com_ports {
        let what = format!("serial port COM{}", port.number);
        let why = "named pipes are of Windows";
        list.note(&what, &port.path, "not connected", why, "reach it with the machine's console");
    }
    for device in &settings.other_devices {
        let name = if device.name.is_empty() { &device.class } else { &device.name };
        let was = if device.host_resource.is_empty() { "there" } else { &device.host_resource };
        list.attention(&format!("device '{name}'"), was, "left out", "it has no counterpart here", "");
    }
}

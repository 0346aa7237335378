//! What a virtual machine is made of.

use crate::{CpuControl, CpuError, IoLimit, IoLimitError, NicId, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::{fmt, path::PathBuf, str::FromStr};
use uuid::Uuid;

/// Hyper-V's "generation" of virtual hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VirtualHardware {
    /// Generation 1: BIOS, IDE boot.
    #[default]
    Gen1,
    /// Generation 2: UEFI, SCSI boot.
    Gen2,
}

/// Which accelerator may run the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccelPolicy {
    /// KVM where the probe says it really runs code, else software emulation with a warning.
    #[default]
    Auto,
    /// KVM or refuse.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// What happens when QEMU ends by itself (`global_settings/unexpected_termination/action`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecoveryAction {
    /// Stay off.
    None,
    /// Start it again.
    #[default]
    Restart,
}

/// What happens to the machine when the host starts (`power/host_startup/action`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostStartAction {
    /// Stay off.
    Nothing,
    /// Start if it ran when the host went down.
    #[default]
    StartIfRunning,
    /// Always start.
    Start,
}

/// What happens to the machine when the host shuts down (`power/host_shutdown/action`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostStopAction {
    /// Pull the plug.
    TurnOff,
    /// Write memory and stop.
    #[default]
    Save,
    /// Ask the guest to shut down.
    Shutdown,
}

/// A boot source, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootDevice {
    /// The first CD/DVD drive.
    Optical,
    /// The first hard disk.
    HardDrive,
    /// Network.
    Network,
    /// Floppy.
    Floppy,
}

/// A place where a drive can be attached. Text form: `ide:0:1`, `scsi:2:63`, `virtio:4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum DriveSlot {
    /// IDE controller 0–1, unit 0–1.
    Ide {
        /// 0 or 1.
        controller: u8,
        /// 0 (master) or 1 (slave).
        unit: u8,
    },
    /// SCSI controller 0–3, LUN 0–63.
    Scsi {
        /// 0–3.
        controller: u8,
        /// 0–63.
        lun: u8,
    },
    /// virtio-blk function 0–15, for guests with virtio drivers.
    Virtio {
        /// 0–15.
        index: u8,
    },
}

/// A text that names no drive slot.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{text}' is no drive slot: use ide:C:U (C 0-1, U 0-1), scsi:C:L (C 0-3, L 0-63) or virtio:N (N 0-15)"
)]
pub struct ParseSlotError {
    text: String,
}

impl DriveSlot {
    /// A name usable as QEMU id, NBD export name and file name part: `ide0-1`, `scsi2-63`, `virtio4`.
    #[must_use]
    pub fn export_name(self) -> String {
        match self {
            Self::Ide { controller, unit } => format!("ide{controller}-{unit}"),
            Self::Scsi { controller, lun } => format!("scsi{controller}-{lun}"),
            Self::Virtio { index } => format!("virtio{index}"),
        }
    }
}

impl DriveSlot {
    /// The SCSI controller it is on; none on other buses.
    #[must_use]
    pub fn scsi_controller(self) -> Option<u8> {
        match self {
            Self::Scsi { controller, .. } => Some(controller),
            Self::Ide { .. } | Self::Virtio { .. } => None,
        }
    }
}

impl fmt::Display for DriveSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ide { controller, unit } => write!(f, "ide:{controller}:{unit}"),
            Self::Scsi { controller, lun } => write!(f, "scsi:{controller}:{lun}"),
            Self::Virtio { index } => write!(f, "virtio:{index}"),
        }
    }
}

impl From<DriveSlot> for String {
    fn from(slot: DriveSlot) -> Self {
        slot.to_string()
    }
}
impl TryFrom<String> for DriveSlot {
    type Error = ParseSlotError;
    fn try_from(text: String) -> Result<Self, ParseSlotError> {
        text.parse()
    }
}

impl FromStr for DriveSlot {
    type Err = ParseSlotError;
    fn from_str(text: &str) -> Result<Self, ParseSlotError> {
        let fail = || ParseSlotError { text: text.into() };
        let lower = text.to_ascii_lowercase();
        let mut parts = lower.split(':');
        let bus = parts.next().unwrap_or_default().to_owned();
        let numbers: Vec<u8> = parts.map(|p| p.parse().map_err(|_| fail())).collect::<Result<_, _>>()?;
        match (bus.as_str(), numbers.as_slice()) {
            ("ide", &[controller @ 0..=1, unit @ 0..=1]) => Ok(Self::Ide { controller, unit }),
            ("scsi", &[controller @ 0..=3, lun @ 0..=63]) => Ok(Self::Scsi { controller, lun }),
            ("virtio", &[index @ 0..=15]) => Ok(Self::Virtio { index }),
            _ => Err(fail()),
        }
    }
}

/// What is in a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "path")]
pub enum DriveMedia {
    /// A virtual hard disk file; the path is the top of its chain.
    Disk(PathBuf),
    /// A block device of the host, passed through as a hard disk. It has no checkpoints and no copies.
    Device(PathBuf),
    /// A CD/DVD image.
    Iso(PathBuf),
    /// A CD/DVD drive without a medium.
    EmptyOptical,
}

/// One drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveSpec {
    /// Where it is attached.
    pub slot: DriveSlot,
    /// What is in it.
    pub media: DriveMedia,
    /// How much the machine may ask of it; of a hard disk only.
    #[serde(default, skip_serializing_if = "IoLimit::is_unlimited")]
    pub limit: IoLimit,
}

impl DriveSpec {
    /// A drive without limits.
    #[must_use]
    pub fn new(slot: DriveSlot, media: DriveMedia) -> Self {
        Self { slot, media, limit: IoLimit::default() }
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress(pub [u8; 6]);

/// A text that is no Ethernet address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{text}' is no MAC address: write six pairs of hexadecimal digits, for example 00-15-5D-01-07-DC")]
pub struct ParseMacError {
    text: String,
}

impl fmt::Display for MacAddress {
    /// Dashed upper case, as Hyper-V writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02X}-{b:02X}-{c:02X}-{d:02X}-{e:02X}-{g:02X}")
    }
}
impl FromStr for MacAddress {
    type Err = ParseMacError;
    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let fail = || ParseMacError { text: text.into() };
        let digits: String = text.chars().filter(|c| !matches!(c, '-' | ':' | '.')).collect();
        if digits.len() != 12 || !digits.is_ascii() {
            return Err(fail());
        }
        let mut bytes = [0u8; 6];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[index * 2..index * 2 + 2], 16).map_err(|_| fail())?;
        }
        Ok(Self(bytes))
    }
}
impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}
impl TryFrom<String> for MacAddress {
    type Error = ParseMacError;
    fn try_from(text: String) -> Result<Self, ParseMacError> {
        text.parse()
    }
}

/// The network card the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NicModel {
    /// Intel 82545EM: a driver is in every guest system of the last 20 years.
    #[default]
    E1000,
    /// virtio-net.
    Virtio,
}

/// Where a network card is plugged in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "switch")]
pub enum NicAttachment {
    /// Cable unplugged.
    Disconnected,
    /// QEMU's user-mode network: out through the host, nothing comes in.
    #[default]
    User,
    /// A virtual switch by name.
    Switch(String),
}

/// One network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// Device instance GUID.
    pub id: NicId,
    /// Its address.
    pub mac: MacAddress,
    /// The card the guest sees.
    #[serde(default)]
    pub model: NicModel,
    /// Where it is plugged in.
    #[serde(default)]
    pub attachment: NicAttachment,
}

/// A virtual machine's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Its GUID.
    pub id: VmId,
    /// Display name.
    pub name: VmName,
    /// Free text.
    #[serde(default)]
    pub notes: String,
    /// Virtual hardware.
    #[serde(default)]
    pub hardware: VirtualHardware,
    /// Guest memory in MiB, 1–12 TiB.
    pub memory_mib: u64,
    /// Processors.
    #[serde(default)]
    pub cpu: CpuControl,
    /// Drives, at most one per slot.
    #[serde(default)]
    pub drives: Vec<DriveSpec>,
    /// SCSI controllers, 0–3, that are there also without a drive; one with a drive is always there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub scsi_controllers: BTreeSet<u8>,
    /// Network cards, at most 8.
    #[serde(default)]
    pub nics: Vec<NicSpec>,
    /// Boot order.
    #[serde(default)]
    pub boot_order: Vec<BootDevice>,
    /// The SMBIOS system UUID the guest sees.
    pub bios_guid: Uuid,
    /// Versioned QEMU machine type, pinned when the machine is made: saved states depend on it.
    pub machine_type: String,
    /// Accelerator.
    #[serde(default)]
    pub accel: AccelPolicy,
    /// When QEMU ends by itself.
    #[serde(default)]
    pub recovery: RecoveryAction,
    /// When the host starts.
    #[serde(default)]
    pub host_start: HostStartAction,
    /// When the host stops.
    #[serde(default)]
    pub host_stop: HostStopAction,
    /// Seconds that the host waits after its own start before it starts the machine, at most
    /// [`VmSpec::MOST_START_DELAY_S`].
    #[serde(default)]
    pub start_delay_s: u32,
    /// Machines with a smaller number are started before, and stopped after, those with a greater one.
    #[serde(default)]
    pub start_order: u32,
}

/// A configuration that breaks a rule.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// Processor settings.
    #[error("processor settings are out of range")]
    Cpu(#[source] CpuError),
    /// Memory out of range.
    #[error("{0} MiB of memory: a machine has 1 MiB to 12 TiB")]
    Memory(u64),
    /// Two drives in one slot.
    #[error("two drives are attached at {0}: each slot takes one")]
    SlotTaken(DriveSlot),
    /// One file in two drives.
    #[error("the disk {0} is attached twice: a file can be in one drive only")]
    DiskTwice(PathBuf),
    /// A disk's limit is out of range.
    #[error("the limit of the disk at {0} is out of range")]
    DiskLimit(DriveSlot, #[source] IoLimitError),
    /// A limit on something else than a hard disk.
    #[error("a limit is set at {0}, which has no hard disk: only hard disks have limits")]
    LimitWithoutDisk(DriveSlot),
    /// Hyper-V's limit of synthetic adapters.
    #[error("{0} network cards: at most 8")]
    TooManyNics(usize),
    /// Two cards, one address.
    #[error("two network cards have the address {0}")]
    MacTwice(MacAddress),
    /// More SCSI controllers than there are.
    #[error("SCSI controller {0}: a machine has the controllers 0 to 3")]
    ScsiController(u8),
    /// Start delay out of range.
    #[error("a start delay of {0} s: at most {max} s", max = VmSpec::MOST_START_DELAY_S)]
    StartDelay(u32),
}

impl VmSpec {
    /// Longest start delay, in seconds: a day.
    pub const MOST_START_DELAY_S: u32 = 86_400;

    /// Checks the rules that hold whatever the host looks like.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.cpu.validate().map_err(SpecError::Cpu)?;
        if self.start_delay_s > Self::MOST_START_DELAY_S {
            return Err(SpecError::StartDelay(self.start_delay_s));
        }
        if !(1..=12 << 20).contains(&self.memory_mib) {
            return Err(SpecError::Memory(self.memory_mib));
        }
        if let Some(controller) = self.scsi_controllers.iter().find(|c| **c > 3) {
            return Err(SpecError::ScsiController(*controller));
        }
        let (mut slots, mut files, mut macs) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for drive in &self.drives {
            if !slots.insert(drive.slot) {
                return Err(SpecError::SlotTaken(drive.slot));
            }
            if let DriveMedia::Disk(path) | DriveMedia::Device(path) = &drive.media
                && !files.insert(path.clone())
            {
                return Err(SpecError::DiskTwice(path.clone()));
            }
            if !matches!(drive.media, DriveMedia::Disk(_)) && !drive.limit.is_unlimited() {
                return Err(SpecError::LimitWithoutDisk(drive.slot));
            }
            drive.limit.validate().map_err(|error| SpecError::DiskLimit(drive.slot, error))?;
        }
        if self.nics.len() > 8 {
            return Err(SpecError::TooManyNics(self.nics.len()));
        }
        for nic in &self.nics {
            if !macs.insert(nic.mac) {
                return Err(SpecError::MacTwice(nic.mac));
            }
        }
        Ok(())
    }

    /// The SCSI controllers that the guest has.
    #[must_use]
    pub fn all_scsi_controllers(&self) -> BTreeSet<u8> {
        let with_drives = self.drives.iter().filter_map(|drive| drive.slot.scsi_controller());
        self.scsi_controllers.iter().copied().chain(with_drives).collect()
    }

    /// The drive at a place.
    #[must_use]
    pub fn drive(&self, slot: DriveSlot) -> Option<&DriveSpec> {
        self.drives.iter().find(|drive| drive.slot == slot)
    }

    /// Attaches a drive. Its SCSI controller stays when it goes: a guest that runs keeps it.
    pub fn attach(&mut self, drive: DriveSpec) {
        self.scsi_controllers.extend(drive.slot.scsi_controller());
        self.drives.push(drive);
        self.drives.sort_by_key(|drive| drive.slot);
    }

    /// Detaches the drive at a place, and returns it. The SCSI controller stays.
    pub fn detach(&mut self, slot: DriveSlot) -> Option<DriveSpec> {
        let at = self.drives.iter().position(|drive| drive.slot == slot)?;
        self.scsi_controllers.extend(slot.scsi_controller());
        Some(self.drives.remove(at))
    }

    /// The virtual hard disks with their files, in slot order. Devices of the host are not among them.
    #[must_use]
    pub fn disks(&self) -> Vec<(DriveSlot, &PathBuf)> {
        let mut disks: Vec<_> = self
            .drives
            .iter()
            .filter_map(|d| match &d.media {
                DriveMedia::Disk(path) => Some((d.slot, path)),
                DriveMedia::Device(_) | DriveMedia::Iso(_) | DriveMedia::EmptyOptical => None,
            })
            .collect();
        disks.sort_by_key(|(slot, _)| *slot);
        disks
    }

    /// The host's devices that are passed through, in slot order.
    #[must_use]
    pub fn devices(&self) -> Vec<(DriveSlot, &PathBuf)> {
        let mut devices: Vec<_> = self
            .drives
            .iter()
            .filter_map(|drive| match &drive.media {
                DriveMedia::Device(path) => Some((drive.slot, path)),
                DriveMedia::Disk(_) | DriveMedia::Iso(_) | DriveMedia::EmptyOptical => None,
            })
            .collect();
        devices.sort_by_key(|(slot, _)| *slot);
        devices
    }

    /// Whether it is of generation 1 and has no hard disk that its BIOS can start from: those are on IDE.
    #[must_use]
    pub fn lacks_ide_boot(&self) -> bool {
        let on_ide = |drive: &DriveSpec| matches!(drive.slot, DriveSlot::Ide { .. });
        let hard = |drive: &&DriveSpec| matches!(drive.media, DriveMedia::Disk(_) | DriveMedia::Device(_));
        let mut disks = self.drives.iter().filter(hard).peekable();
        self.hardware == VirtualHardware::Gen1 && disks.peek().is_some() && !disks.any(on_ide)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_read_back_as_printed_and_stop_at_hyper_v_limits() {
        for text in ["ide:0:1", "scsi:3:63", "virtio:15"] {
            assert_eq!(text.parse::<DriveSlot>().unwrap().to_string(), text);
        }
        for text in [
            "ide:2:0",
            "ide:0:2",
            "scsi:4:0",
            "scsi:0:64",
            "virtio:16",
            "sata:0",
            "ide",
            "ide:0",
            "ide:0:0:0",
        ] {
            assert!(text.parse::<DriveSlot>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_scsi_controller_stays_when_its_last_drive_goes() {
        let json = serde_json::json!({
            "id": uuid::Uuid::nil(), "name": "x", "memory_mib": 16, "bios_guid": uuid::Uuid::nil(), "machine_type": ""
        });
        let mut spec: VmSpec = serde_json::from_value(json).unwrap();
        assert!(spec.all_scsi_controllers().is_empty(), "an older configuration");
        let slot = DriveSlot::Scsi { controller: 2, lun: 5 };
        spec.drives.push(DriveSpec::new(slot, DriveMedia::Disk("/a".into())));
        assert_eq!(spec.all_scsi_controllers().into_iter().collect::<Vec<_>>(), [2]);
        assert!(spec.detach(slot).is_some() && spec.detach(slot).is_none());
        assert_eq!(spec.all_scsi_controllers().into_iter().collect::<Vec<_>>(), [2]);
        spec.attach(DriveSpec::new(DriveSlot::Ide { controller: 0, unit: 1 }, DriveMedia::EmptyOptical));
        assert_eq!(spec.scsi_controllers.len(), 1);
        assert_eq!(spec.validate(), Ok(()));
    }

    #[test]
    fn mac_addresses_read_all_common_forms() {
        let mac = MacAddress([0, 0x15, 0x5d, 1, 7, 0xdc]);
        for text in ["00-15-5D-01-07-DC", "00:15:5d:01:07:dc", "00155D0107DC"] {
            assert_eq!(text.parse(), Ok(mac));
        }
        assert!("00-15".parse::<MacAddress>().is_err());
    }
}

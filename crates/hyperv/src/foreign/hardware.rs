//! What a machine is made of, as another host describes it.

use backstay_model::{BootDevice, DriveSlot, MacAddress};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Memory, processors and devices of one state: now, or a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Processors.
    pub processors: Processors,
    /// Memory.
    pub memory: Memory,
    /// BIOS or UEFI.
    pub firmware: Firmware,
    /// Controllers with their drives: IDE 0 and 1, SCSI in the order of the source, floppy.
    pub controllers: Vec<Controller>,
    /// Network cards in the order of the source.
    pub nics: Vec<Nic>,
    /// Serial ports that are connected to something.
    pub com_ports: Vec<ComPort>,
    /// Integration services.
    pub integration: Vec<IntegrationService>,
    /// How far the guest's clock is from UTC, in units of 100 ns (`CmosUtcSkew`); negative is west. None where the source
    /// does not say.
    pub time_skew_100ns: Option<i64>,
    /// Whether it has a virtual TPM. Its content cannot be taken over: it is sealed to the source.
    pub tpm: bool,
    /// Devices without a counterpart: passed-through PCI devices, parts of graphics cards, fibre channel.
    pub other_devices: Vec<OtherDevice>,
}

impl Settings {
    /// All drives with their controllers.
    pub fn drives(&self) -> impl Iterator<Item = (&Controller, &Drive)> {
        self.controllers.iter().flat_map(|c| c.drives.iter().map(move |drive| (c, drive)))
    }

    /// The controller of that bus and number, made if it is not there; controllers stay sorted.
    pub(crate) fn controller_mut(&mut self, bus: Bus, number: u32) -> &mut Controller {
        let key = (bus, number);
        let at = match self.controllers.binary_search_by_key(&key, |c| (c.bus, c.number)) {
            Ok(at) => at,
            Err(at) => {
                let controller = Controller { bus, number, instance: None, drives: Vec::new() };
                self.controllers.insert(at, controller);
                at
            }
        };
        &mut self.controllers[at]
    }
}

/// Processors in Hyper-V's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processors {
    /// Virtual processors.
    pub count: u32,
    /// Part of them that is always available; 1000 is 1 percent.
    pub reserve: u64,
    /// Part of them that is never exceeded; 1000 is 1 percent.
    pub limit: u64,
    /// Relative weight, 0–10000; 100 is normal. 0 occurs in 2008.
    pub weight: u32,
    /// Newer processor features are hidden, so that it can move between different processors.
    pub for_migration: bool,
    /// Processor identification is cut, for systems like Windows NT 4.
    pub for_old_systems: bool,
    /// The guest runs a hypervisor itself.
    pub nested: bool,
}

impl Default for Processors {
    fn default() -> Self {
        Self {
            count: 1,
            reserve: 0,
            limit: 100_000,
            weight: 100,
            for_migration: false,
            for_old_systems: false,
            nested: false,
        }
    }
}

/// Memory in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What the guest has when it starts.
    pub startup_mib: u64,
    /// Dynamic memory, where it is on.
    pub dynamic: Option<DynamicMemory>,
    /// Relative weight, 0–10000; 5000 is normal.
    pub weight: u32,
}

impl Default for Memory {
    fn default() -> Self {
        Self { startup_mib: 1024, dynamic: None, weight: 5000 }
    }
}

/// Memory that the host takes and gives while the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DynamicMemory {
    /// Least.
    pub min_mib: u64,
    /// Most.
    pub max_mib: u64,
    /// Share that is kept free, in percent.
    pub buffer_percent: u32,
}

/// BIOS of generation 1, UEFI of generation 2.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firmware {
    /// The SMBIOS system UUID.
    pub bios_guid: Option<Uuid>,
    /// SMBIOS system serial number.
    pub bios_serial: String,
    /// SMBIOS base board serial number.
    pub base_board_serial: String,
    /// SMBIOS chassis serial number.
    pub chassis_serial: String,
    /// SMBIOS chassis asset tag.
    pub chassis_asset_tag: String,
    /// Kinds of device in the order in which they are tried; empty where the source does not say.
    pub boot_order: Vec<BootDevice>,
    /// Num lock is on at the start.
    pub num_lock: bool,
    /// Secure boot; none in generation 1.
    pub secure_boot: Option<bool>,
    /// The keys that secure boot trusts, in the source's words.
    pub secure_boot_template: String,
}

/// A bus that drives are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bus {
    /// Emulated IDE: controllers 0 and 1 with locations 0 and 1.
    Ide,
    /// Synthetic SCSI: up to four controllers with locations 0 to 63.
    Scsi,
    /// The floppy controller: one drive.
    Floppy,
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controller {
    /// Its bus.
    pub bus: Bus,
    /// Its number on the bus, from 0.
    pub number: u32,
    /// Device instance GUID, where the source has one.
    pub instance: Option<Uuid>,
    /// Drives in order of location.
    pub drives: Vec<Drive>,
}

impl Controller {
    /// The slot of one of its drives in a machine of this product; none where ours ends before.
    #[must_use]
    pub fn slot(&self, drive: &Drive) -> Option<DriveSlot> {
        let (number, location) = (u8::try_from(self.number).ok()?, u8::try_from(drive.location).ok()?);
        match (self.bus, number, location) {
            (Bus::Ide, controller @ 0..=1, unit @ 0..=1) => Some(DriveSlot::Ide { controller, unit }),
            (Bus::Scsi, controller @ 0..=3, lun @ 0..=63) => Some(DriveSlot::Scsi { controller, lun }),
            _ => None,
        }
    }

    /// Puts a drive into its place in the order; what is at that location already stays and is returned as `Err`.
    pub(crate) fn put(&mut self, drive: Drive) -> Result<(), Drive> {
        match self.drives.binary_search_by_key(&drive.location, |d| d.location) {
            Ok(_) => Err(drive),
            Err(at) => {
                self.drives.insert(at, drive);
                Ok(())
            }
        }
    }
}

/// A drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// Its location on the controller, from 0.
    pub location: u32,
    /// What is in it.
    pub kind: DriveKind,
    /// The medium's path as written: drive letter, UNC, or a Windows device. Empty in an empty drive.
    pub path: String,
    /// Limits of the source.
    pub qos: DriveQos,
}

/// What is in a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriveKind {
    /// A hard disk image whose name ends as VHD's do (`.vhd`, `.avhd`).
    Vhd,
    /// A hard disk image whose name ends as VHDX's do (`.vhdx`, `.avhdx`).
    Vhdx,
    /// A hard disk shared by several machines (`.vhds`).
    VhdSet,
    /// A hard disk image with another name.
    OtherDisk,
    /// A hard disk of the host.
    PassThrough,
    /// A CD/DVD image.
    Iso,
    /// The host's CD/DVD drive.
    HostOptical,
    /// A CD/DVD drive without a medium.
    EmptyOptical,
    /// A floppy image.
    Floppy,
}

impl DriveKind {
    /// The kind of a hard disk image by its name.
    #[must_use]
    pub fn of_disk(path: &str) -> Self {
        let name = super::path::file_name(path).to_ascii_lowercase();
        match name.rsplit_once('.').map(|(_, extension)| extension) {
            Some("vhd" | "avhd") => Self::Vhd,
            Some("vhdx" | "avhdx") => Self::Vhdx,
            Some("vhds" | "avhds") => Self::VhdSet,
            _ => Self::OtherDisk,
        }
    }

    /// Whether it is a hard disk image.
    #[must_use]
    pub fn is_disk_image(self) -> bool {
        matches!(self, Self::Vhd | Self::Vhdx | Self::VhdSet | Self::OtherDisk)
    }
}

/// Limits of a drive as the source has them: in normalized I/O of 8 KiB per second, 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveQos {
    /// Most.
    pub max_iops: u64,
    /// Least before the source warns.
    pub min_iops: u64,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Device instance GUID.
    pub id: Option<Uuid>,
    /// Display name.
    pub name: String,
    /// The card the guest sees.
    pub kind: NicKind,
    /// Its address; none when it has none yet.
    pub mac: Option<MacAddress>,
    /// Whether somebody chose the address; else the host did, from its pool.
    pub mac_is_static: bool,
    /// Whether it is plugged in.
    pub connected: bool,
    /// The switch's name; empty where the source only knows the GUID.
    pub switch_name: String,
    /// The switch's GUID.
    pub switch_id: Option<Uuid>,
    /// VLAN.
    pub vlan: Vlan,
    /// Whether the guest may use other addresses; none where the source does not say.
    pub mac_spoofing: Option<bool>,
    /// Bandwidth limits, where there are any.
    pub bandwidth: Option<Bandwidth>,
}

/// The card the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NicKind {
    /// Hyper-V's own: needs integration services.
    #[default]
    Synthetic,
    /// An emulated DEC 21140.
    Legacy,
}

/// The VLAN of a network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vlan {
    /// None, or the source does not say.
    #[default]
    None,
    /// Frames carry this tag on the wire and none in the guest.
    Access(u16),
    /// The guest sees tags.
    Trunk {
        /// The tag of frames without one.
        native: u16,
        /// The tags that pass, as written: `10,20-30`.
        allowed: String,
    },
    /// A private VLAN.
    Private {
        /// `isolated`, `community` or `promiscuous`.
        mode: String,
        /// Primary tag.
        primary: u16,
        /// Secondary tags, as written.
        secondary: String,
    },
    /// There is one, in a form that is not documented: base64 as written.
    Unreadable(String),
}

/// Bandwidth limits of a network card, in bits per second; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Most.
    pub max_bps: u64,
    /// Least.
    pub min_bps: u64,
}

/// A serial port that is connected to something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComPort {
    /// 1 for COM1.
    pub number: u32,
    /// What it is connected to, as written: a named pipe, `\\.\pipe\name`.
    pub path: String,
}

/// An integration service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntegrationService {
    /// Which.
    pub service: Integration,
    /// Whether it is offered to the guest.
    pub enabled: bool,
}

/// Hyper-V's integration services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Integration {
    /// Heartbeat.
    Heartbeat,
    /// Data exchange.
    KeyValue,
    /// Shutdown by the host.
    Shutdown,
    /// Time synchronization.
    TimeSync,
    /// Volume shadow copies for backup.
    Vss,
    /// File copy.
    GuestServices,
}

/// A device without a counterpart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherDevice {
    /// Display name.
    pub name: String,
    /// Class, in the source's terms.
    pub class: String,
    /// What of the host it is, where the source says it.
    pub host_resource: String,
}

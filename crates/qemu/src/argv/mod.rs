//! The one function that turns a machine into QEMU's command line.
//!
//! PCI addresses, device ids and node names depend only on where something is attached, never on what else is there:
//! a guest keeps its devices when others come and go, and a saved state loads into the same command line.

mod chardevs;
mod disks;
mod machine;
mod nics;
#[cfg(test)]
mod tests;

pub use disks::{Plug, device_id, format_node, plug, protocol_node, slot_of_name};
pub use nics::nic_device_id;

use crate::paths::RunPaths;
use backstay_model::{DriveSlot, SpecError, VirtualHardware, VmSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use uuid::Uuid;

/// What executes guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accel {
    /// `kvm` or `tcg`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The processor model the guest sees. A state loads only under the same one.
    #[must_use]
    pub fn cpu_model(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            // Everything the translator has, except 57-bit addresses, which some boot loaders mishandle.
            Self::Tcg => "max,la57=off",
        }
    }
}

/// What the machine does first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Begin {
    /// Boot. The processors stay stopped until `cont`.
    #[default]
    Boot,
    /// Wait for `migrate-incoming`.
    Incoming,
}

/// Whether QEMU gives up the system calls it does not need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Every deny.
    #[default]
    On,
    /// For a QEMU built without seccomp.
    Off,
}

/// How the disk server offers one drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveExport {
    /// NBD export name.
    pub export: String,
    /// Writes are refused.
    pub read_only: bool,
    /// Serial number the guest sees, at most 20 ASCII letters, digits and `-`; none: the slot's name.
    pub serial: Option<String>,
}

/// UEFI firmware files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// The code, read-only.
    pub code: PathBuf,
    /// This machine's variables, writable.
    pub vars: PathBuf,
}

/// What is known only when the machine is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchFacts {
    /// Decided by [`crate::accel::choose`].
    pub accel: Accel,
    /// Boot, or wait for a state.
    pub begin: Begin,
    /// System call filter.
    pub sandbox: Sandbox,
    /// Exports that differ from the default: named like the slot, read-only for CD/DVD images.
    pub exports: BTreeMap<DriveSlot, DriveExport>,
    /// Hard disks whose sectors are not of 512 bytes: how many the guest sees.
    pub sectors: BTreeMap<DriveSlot, u32>,
    /// UEFI, needed by generation 2.
    pub firmware: Option<Firmware>,
    /// The generation id the guest sees; none: a new one at each start, as Windows expects after an applied checkpoint.
    pub generation_id: Option<Uuid>,
}

impl LaunchFacts {
    /// Boot, sandboxed, with the default exports.
    #[must_use]
    pub fn new(accel: Accel) -> Self {
        Self {
            accel,
            begin: Begin::Boot,
            sandbox: Sandbox::On,
            exports: BTreeMap::new(),
            sectors: BTreeMap::new(),
            firmware: None,
            generation_id: None,
        }
    }
}

/// QEMU's command line and what must be done before the first `cont`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// Arguments without the executable.
    pub args: Vec<String>,
    /// Network cards whose link has to be set down ([`crate::qmp::Qmp::set_link`]) before the guest runs.
    pub links_down: Vec<String>,
    /// What the user should know about this machine on this host.
    pub warnings: Vec<String>,
}

/// A machine that cannot be started as it is configured.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgvError {
    /// The configuration breaks a rule that holds everywhere.
    #[error("the machine's configuration is invalid")]
    Spec(#[source] SpecError),
    /// The alias changes its meaning with QEMU.
    #[error(
        "machine type '{machine}' does not fit {hardware}: use a versioned type such as {example}, \
         because saved states depend on it"
    )]
    MachineType {
        /// As configured.
        machine: String,
        /// Generation 1 or 2.
        hardware: &'static str,
        /// One that fits.
        example: &'static str,
    },
    /// Generation 2 boots by UEFI.
    #[error(
        "generation 2 machines boot by UEFI and no firmware was found: install the package 'ovmf', \
         or make the machine generation 1"
    )]
    NoFirmware,
    /// Generation 2 has no IDE.
    #[error("a drive is attached at {0}, and generation 2 machines have no IDE: attach it to SCSI")]
    NoIde(DriveSlot),
    /// virtio-blk has no CD/DVD drives.
    #[error("a CD/DVD drive is attached at {0}: attach it to IDE or SCSI, virtio has hard disks only")]
    NoVirtioOptical(DriveSlot),
    /// ATA has no read-only disks.
    #[error("the disk at {0} is read-only, which IDE cannot express: attach it to SCSI or virtio")]
    ReadOnlyIde(DriveSlot),
    /// ATA as QEMU has it knows one size.
    #[error(
        "the disk at {slot} has sectors of {sector} bytes, and IDE disks have 512: attach it to SCSI or virtio"
    )]
    SectorsOnIde {
        /// The drive.
        slot: DriveSlot,
        /// Its sectors, in bytes.
        sector: u32,
    },
    /// A serial number that a guest could not show.
    #[error("serial number '{serial}' of the drive at {slot}: use 1 to 20 letters, digits and '-'")]
    Serial {
        /// The drive.
        slot: DriveSlot,
        /// As given.
        serial: String,
    },
}

/// Builds the command line. Pure: the same machine and facts give the same arguments.
///
/// # Errors
/// The first rule the configuration breaks.
pub fn command_line(spec: &VmSpec, paths: &RunPaths, facts: &LaunchFacts) -> Result<CommandLine, ArgvError> {
    spec.validate().map_err(ArgvError::Spec)?;
    let mut args = Args::default();
    machine::push(&mut args, spec, facts)?;
    chardevs::push(&mut args, paths);
    disks::push(&mut args, spec, paths, facts)?;
    let (links_down, warnings) = nics::push(&mut args, spec);
    Ok(CommandLine { args: args.0, links_down, warnings })
}

/// The executable that [`command_line`]'s arguments are for.
pub const EXECUTABLE: &str = "qemu-system-x86_64";

/// Arguments in order.
#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }
    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.to_owned());
        self.0.push(value.into());
    }
}

/// A value inside an option list: QEMU reads two commas as one.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// A path inside an option list. Run folders are checked to be UTF-8; others are shown as well as possible and fail in QEMU.
fn escape_path(path: &std::path::Path) -> String {
    escape(&path.to_string_lossy())
}

/// PCI bus of the machine's own devices.
fn root_bus(hardware: VirtualHardware) -> &'static str {
    match hardware {
        VirtualHardware::Gen1 => "pci.0",
        VirtualHardware::Gen2 => "pcie.0",
    }
}

/// PCI slots on the root bus. 0 is the host bridge, 1 the chip set of generation 1, 0x1f that of generation 2.
mod pci {
    pub const USB_GEN2: u8 = 0x01;
    pub const VGA: u8 = 0x02;
    /// 8 cards.
    pub const NIC: u8 = 0x03;
    /// 4 controllers.
    pub const SCSI: u8 = 0x0b;
    /// 16 disks.
    pub const VIRTIO_BLK: u8 = 0x0f;
}

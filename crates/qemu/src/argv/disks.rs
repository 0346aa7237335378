//! Drives: for each an NBD node, a `raw` node above it (the seam for exchanging the server and for resizing while the
//! guest runs) and the guest's device.

use super::{Args, ArgvError, DriveExport, LaunchFacts, pci, root_bus};
use crate::paths::RunPaths;
use backstay_model::{BootDevice, DriveMedia, DriveSlot, DriveSpec, VirtualHardware, VmSpec};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Seconds a request waits for a server that went away before the guest is stopped: covers a worker's restart.
const RECONNECT_DELAY_S: u32 = 8;
/// Seconds QEMU waits for the server when it starts.
const OPEN_TIMEOUT_S: u32 = 10;
/// Drives of one kind that the firmware looks at. It numbers disks in this order; each one more costs boot time.
const BOOT_CANDIDATES: usize = 16;

/// Id of the guest's device, as in `DEVICE_DELETED` and `query-block`.
#[must_use]
pub fn device_id(slot: DriveSlot) -> String {
    slot.export_name()
}

/// Name of the node that speaks NBD.
#[must_use]
pub fn protocol_node(slot: DriveSlot) -> String {
    format!("nbd-{}", slot.export_name())
}

/// Name of the `raw` node between NBD and the device.
#[must_use]
pub fn format_node(slot: DriveSlot) -> String {
    format!("drive-{}", slot.export_name())
}

/// The slot that a device id or node name of ours belongs to.
#[must_use]
pub fn slot_of_name(name: &str) -> Option<DriveSlot> {
    let name = name.strip_prefix("nbd-").or_else(|| name.strip_prefix("drive-")).unwrap_or(name);
    let digits = name.find(|c: char| c.is_ascii_digit())?;
    let (bus, place) = name.split_at(digits);
    let slot: DriveSlot = format!("{bus}:{}", place.replacen('-', ":", 1)).parse().ok()?;
    (slot.export_name() == name).then_some(slot)
}

pub(super) fn push(
    args: &mut Args,
    spec: &VmSpec,
    paths: &RunPaths,
    facts: &LaunchFacts,
) -> Result<(), ArgvError> {
    let bus = root_bus(spec.hardware);
    let mut drives: Vec<&DriveSpec> = spec.drives.iter().collect();
    drives.sort_by_key(|drive| drive.slot);
    for controller in spec.all_scsi_controllers() {
        let addr = pci::SCSI + controller;
        args.option("-device", format!("virtio-scsi-pci,id=scsi{controller},bus={bus},addr={addr:#x}"));
    }
    let boot = boot_indexes(spec, &drives);
    for drive in drives {
        let export = export_of(drive, facts);
        check(spec, drive, &export)?;
        let sector = facts.sectors.get(&drive.slot).copied().filter(|sector| *sector != 512);
        if let (Some(sector), DriveSlot::Ide { .. }) = (sector, drive.slot) {
            return Err(ArgvError::SectorsOnIde { slot: drive.slot, sector });
        }
        if drive.media != DriveMedia::EmptyOptical {
            for node in nodes(drive, paths, &export) {
                args.option("-blockdev", node.to_string());
            }
        }
        let mut text = device(spec, drive, &export, boot.get(&drive.slot).copied());
        if let Some(sector) = sector {
            text.push_str(&format!(",logical_block_size={sector},physical_block_size={sector}"));
        }
        args.option("-device", text);
    }
    Ok(())
}

fn export_of(drive: &DriveSpec, facts: &LaunchFacts) -> DriveExport {
    facts.exports.get(&drive.slot).cloned().unwrap_or_else(|| DriveExport {
        export: drive.slot.export_name(),
        read_only: matches!(drive.media, DriveMedia::Iso(_)),
        serial: None,
    })
}

fn is_optical(drive: &DriveSpec) -> bool {
    matches!(drive.media, DriveMedia::Iso(_) | DriveMedia::EmptyOptical)
}

fn check(spec: &VmSpec, drive: &DriveSpec, export: &DriveExport) -> Result<(), ArgvError> {
    let slot = drive.slot;
    if let Some(serial) = &export.serial
        && (!(1..=20).contains(&serial.len())
            || !serial.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'))
    {
        return Err(ArgvError::Serial { slot, serial: serial.clone() });
    }
    match slot {
        DriveSlot::Ide { .. } if spec.hardware == VirtualHardware::Gen2 => Err(ArgvError::NoIde(slot)),
        DriveSlot::Ide { .. } if export.read_only && !is_optical(drive) => Err(ArgvError::ReadOnlyIde(slot)),
        DriveSlot::Virtio { .. } if is_optical(drive) => Err(ArgvError::NoVirtioOptical(slot)),
        _ => Ok(()),
    }
}

/// The node that speaks NBD, and the one above it.
fn nodes(drive: &DriveSpec, paths: &RunPaths, export: &DriveExport) -> [Value; 2] {
    // The server acknowledges what has reached the kernel; only a guest's flush has to reach the medium.
    let cache = json!({ "direct": true, "no-flush": false });
    let read_only = export.read_only || is_optical(drive);
    [
        json!({
            "driver": "nbd",
            "node-name": protocol_node(drive.slot),
            "server": { "type": "unix", "path": paths.nbd() },
            "export": export.export,
            "reconnect-delay": RECONNECT_DELAY_S,
            "open-timeout": OPEN_TIMEOUT_S,
            "read-only": read_only,
            "discard": "unmap",
            "cache": cache,
        }),
        json!({
            "driver": "raw",
            "node-name": format_node(drive.slot),
            "file": protocol_node(drive.slot),
            "read-only": read_only,
            "discard": "unmap",
            "cache": cache,
        }),
    ]
}

/// What makes a disk known to a QEMU that runs: arguments of `blockdev-add`, in this order, and of `device_add`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plug {
    /// The nodes, the lower one first.
    pub nodes: [Value; 2],
    /// The guest's device: as the one of [`super::command_line`], without a place in the boot order.
    pub device: Value,
}

impl Plug {
    /// The guest sees sectors of so many bytes.
    pub fn set_sector_size(&mut self, sector: u32) {
        if sector != 512
            && let Some(device) = self.device.as_object_mut()
        {
            for name in ["logical_block_size", "physical_block_size"] {
                device.insert(name.into(), sector.into());
            }
        }
    }
}

/// How to attach a hard disk to a SCSI controller of a guest that runs; `None` for anything else.
#[must_use]
pub fn plug(drive: &DriveSpec, paths: &RunPaths) -> Option<Plug> {
    let (DriveSlot::Scsi { controller, lun }, DriveMedia::Disk(_)) = (drive.slot, &drive.media) else {
        return None;
    };
    let export = DriveExport { export: drive.slot.export_name(), read_only: false, serial: None };
    let device = json!({
        "driver": "scsi-hd",
        "bus": format!("scsi{controller}.0"),
        "channel": 0,
        "scsi-id": 0,
        "lun": lun,
        "id": device_id(drive.slot),
        "serial": drive.slot.export_name(),
        "drive": format_node(drive.slot),
        "werror": "stop",
        "rerror": "stop",
    });
    Some(Plug { nodes: nodes(drive, paths, &export), device })
}

fn device(spec: &VmSpec, drive: &DriveSpec, export: &DriveExport, boot_index: Option<usize>) -> String {
    let optical = is_optical(drive);
    let mut text = match drive.slot {
        DriveSlot::Ide { controller, unit } => {
            format!("{},bus=ide.{controller},unit={unit}", if optical { "ide-cd" } else { "ide-hd" })
        }
        DriveSlot::Scsi { controller, lun } => format!(
            "{},bus=scsi{controller}.0,channel=0,scsi-id=0,lun={lun}",
            if optical { "scsi-cd" } else { "scsi-hd" }
        ),
        DriveSlot::Virtio { index } => {
            format!("virtio-blk-pci,bus={},addr={:#x}", root_bus(spec.hardware), pci::VIRTIO_BLK + index)
        }
    };
    let serial = export.serial.clone().unwrap_or_else(|| drive.slot.export_name());
    text.push_str(&format!(",id={},serial={serial}", device_id(drive.slot)));
    if drive.media != DriveMedia::EmptyOptical {
        // A failing server stops the guest, which never sees an error; see `lifecycle` for how it goes on.
        text.push_str(&format!(",drive={},werror=stop,rerror=stop", format_node(drive.slot)));
    }
    if let Some(index) = boot_index {
        text.push_str(&format!(",bootindex={index}"));
    }
    text
}

/// All disks and CD/DVD drives get a boot index, because the firmware hides those without one from boot loaders.
/// Network cards have theirs in `nics`.
fn boot_indexes(spec: &VmSpec, drives: &[&DriveSpec]) -> BTreeMap<DriveSlot, usize> {
    let mut indexes = BTreeMap::new();
    for (rank, device) in boot_order(spec).into_iter().enumerate() {
        let optical = match device {
            BootDevice::Optical => true,
            BootDevice::HardDrive => false,
            BootDevice::Network | BootDevice::Floppy => continue,
        };
        let fitting = drives.iter().filter(|drive| is_optical(drive) == optical).take(BOOT_CANDIDATES);
        for (place, drive) in fitting.enumerate() {
            indexes.insert(drive.slot, boot_index(rank, place));
        }
    }
    indexes
}

/// The configured order without repetitions; without one, CD/DVD before hard disk.
pub(super) fn boot_order(spec: &VmSpec) -> Vec<BootDevice> {
    let mut order: Vec<BootDevice> = Vec::new();
    for device in &spec.boot_order {
        if !order.contains(device) {
            order.push(*device);
        }
    }
    if order.is_empty() {
        order = vec![BootDevice::Optical, BootDevice::HardDrive];
    }
    order
}

/// Ranks are apart far enough that kinds never overlap.
pub(super) fn boot_index(rank: usize, place: usize) -> usize {
    rank * 100 + place + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state that is saved with a disk that came while the guest ran is loaded into one that was there from the start.
    #[test]
    fn a_disk_is_plugged_in_as_the_command_line_has_it() {
        let slot = DriveSlot::Scsi { controller: 1, lun: 7 };
        let drive = DriveSpec::new(slot, DriveMedia::Disk("/a.vhdx".into()));
        let paths = RunPaths::new("/run/x").unwrap();
        let plug = plug(&drive, &paths).unwrap();
        let facts = LaunchFacts::new(super::super::Accel::Tcg);
        assert_eq!(plug.nodes, nodes(&drive, &paths, &export_of(&drive, &facts)));
        let json = serde_json::json!({
            "id": uuid::Uuid::nil(), "name": "x", "memory_mib": 16, "bios_guid": uuid::Uuid::nil(), "machine_type": ""
        });
        let spec: VmSpec = serde_json::from_value(json).unwrap();
        let cold = device(&spec, &drive, &export_of(&drive, &facts), None);
        let mut cold: Vec<String> = cold.split(',').map(str::to_owned).collect();
        cold[0].insert_str(0, "driver=");
        cold.sort();
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let hot =
            plug.device.as_object().unwrap().iter().map(|(key, value)| format!("{key}={}", text(value)));
        let mut hot: Vec<String> = hot.collect();
        hot.sort();
        assert_eq!(hot, cold);
        for other in ["ide:0:0", "virtio:1"] {
            let drive = DriveSpec::new(other.parse().unwrap(), DriveMedia::Disk("/a.vhdx".into()));
            assert!(super::plug(&drive, &paths).is_none());
        }
    }

    #[test]
    fn every_name_leads_back_to_its_slot() {
        for slot in [
            DriveSlot::Ide { controller: 1, unit: 0 },
            DriveSlot::Scsi { controller: 3, lun: 63 },
            DriveSlot::Virtio { index: 15 },
        ] {
            for name in [device_id(slot), protocol_node(slot), format_node(slot)] {
                assert_eq!(slot_of_name(&name), Some(slot), "{name}");
                assert!(name.len() <= 31, "QEMU's limit for node names");
            }
        }
        for other in ["", "firmware-code", "ide9-9", "virtio", "scsi0-064", "#block123"] {
            assert_eq!(slot_of_name(other), None, "{other}");
        }
    }
}

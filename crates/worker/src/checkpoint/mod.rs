//! Checkpoints of a running or paused machine: disks and memory at one instant.

pub mod descriptor;
mod error;
pub(crate) mod job;
mod memory_file;
pub(crate) mod plan;
pub(crate) mod qmp;
pub(crate) mod stream;
pub(crate) mod tops;

use backstay_model::{DriveMedia, NicModel, VmSpec};
use backstay_qemu::argv::Accel;
use descriptor::Hardware;

/// The virtual hardware that a configuration means under an accelerator, as a descriptor records it.
#[must_use]
pub fn hardware(spec: &VmSpec, accel: Accel) -> Hardware {
    let drives = spec.drives.iter().map(|drive| {
        let kind = match drive.media {
            DriveMedia::Disk(_) | DriveMedia::Device(_) => "disk",
            DriveMedia::Iso(_) | DriveMedia::EmptyOptical => "optical",
        };
        format!("{kind} {}", drive.slot)
    });
    let cards = spec.nics.iter().enumerate().map(|(index, nic)| {
        let model = match nic.model {
            NicModel::E1000 => "e1000",
            NicModel::Virtio => "virtio",
        };
        format!("nic {index} {model}")
    });
    // One with a drive is not told apart, as former versions did.
    let used = |controller: &u8| spec.drives.iter().any(|d| d.slot.scsi_controller() == Some(*controller));
    let empty = spec.scsi_controllers.iter().filter(|c| !used(c)).map(|c| format!("scsi controller {c}"));
    let mut devices: Vec<_> = drives.chain(cards).chain(empty).collect();
    devices.sort();
    Hardware {
        machine_type: spec.machine_type.clone(),
        cpu_model: accel.cpu_model().into(),
        cpus: spec.cpu.count,
        memory_mib: spec.memory_mib,
        devices,
    }
}

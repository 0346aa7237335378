//! Pass-through disks: block devices of the host that a machine has for itself. They have no checkpoints, no differencing
//! disks and no copies, because what is on them is not in files of ours.

use super::App;
use crate::failure::Failure;
use crate::inventory::blocking;
use backstay_api::{Blocker, ProblemCode};
use backstay_disk::device::{BlockDevice, DeviceError, look_at_device};
use backstay_model::{DriveMedia, DriveSlot, DriveSpec, VmId, VmSpec};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// What is never done with them, in words that follow the device's name.
const RULE: &str =
    "is a device of this host and no file, so it has no checkpoints, no differencing disks and no copies";

/// Whether a path means a device: it is one, or lies where they are.
pub(super) fn is_device(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Ok(meta) => meta.file_type().is_block_device() || meta.file_type().is_char_device(),
        // In memory, not a device.
        Err(_) => path.starts_with("/dev") && !path.starts_with("/dev/shm"),
    }
}

/// Why `what` ("no checkpoint of 'web' can be taken") with these drives; one entry for each device.
pub(super) fn refusals(spec: &VmSpec, cure: &str) -> Vec<Blocker> {
    let blocker = |(slot, path): (DriveSlot, &PathBuf)| Blocker {
        code: ProblemCode::Precondition,
        detail: format!("{slot}: {} {RULE}", path.display()),
        cure: Some(cure.to_owned()),
    };
    spec.devices().into_iter().map(blocker).collect()
}

/// Whether a device can be a disk of `vm`: it is there, nobody on this host has it, no other machine and no other drive. `own`
/// are the machine's drives. Returns it, and warnings.
pub(super) async fn check_device(
    app: &App,
    vm: VmId,
    drive: &DriveSpec,
    own: &[DriveSpec],
) -> Result<(BlockDevice, Vec<String>), Failure> {
    let DriveMedia::Device(path) = &drive.media else {
        return Err(Failure::invalid(format!("the drive at {} is no device", drive.slot)));
    };
    let mut others: Vec<(PathBuf, String)> = Vec::new();
    for machine in app.inventory.all() {
        let of_it =
            machine.spec.devices().into_iter().filter(|(slot, _)| machine.id != vm || *slot != drive.slot);
        others.extend(of_it.map(|(slot, path)| (path.clone(), format!("'{}' ({slot})", machine.name()))));
    }
    let is_other = |other: &&DriveSpec| other.slot != drive.slot;
    others.extend(own.iter().filter(is_other).filter_map(|other| match &other.media {
        DriveMedia::Device(path) => Some((path.clone(), format!("this machine ({})", other.slot))),
        _ => None,
    }));
    let (path, slot) = (path.clone(), drive.slot);
    let device = blocking(move || {
        let device = look_at_device(&path).map_err(problem)?;
        for (other, place) in others {
            // One that is gone writes to nothing.
            if let Ok(other) = look_at_device(&other)
                && device.overlaps(&other)
            {
                return Err(in_use(&path, &format!("it is a disk of {place}: detach it there")));
            }
        }
        if let Some(who) = device.claimed() {
            return Err(in_use(&path, &who));
        }
        Ok(device)
    })
    .await?;
    if device.read_only {
        return Err(Failure::precondition(format!(
            "{} is write-protected, and a disk is written to: `blockdev --setrw` ends that where the hardware allows",
            device.path.display()
        )));
    }
    if device.size == 0 {
        return Err(Failure::precondition(format!("{} has no medium", device.path.display())));
    }
    if device.logical_sector != 512 && matches!(slot, DriveSlot::Ide { .. }) {
        return Err(Failure::invalid(format!(
            "{} has sectors of {} bytes, and IDE disks have 512: attach it to SCSI (scsi:0:0={})",
            device.path.display(),
            device.logical_sector,
            device.path.display()
        )));
    }
    let warnings = unstable(&device).into_iter().collect();
    Ok((device, warnings))
}

/// Names like `/dev/sdb` go to the disk that is found first.
fn unstable(device: &BlockDevice) -> Option<String> {
    let stable = device.stable_name.as_ref()?;
    Some(format!(
        "{} may be another disk after the next start of the host: name it {}",
        device.path.display(),
        stable.display()
    ))
}

fn in_use(path: &Path, who: &str) -> Failure {
    let words = format!("{} cannot be a disk of a virtual machine: {who}", path.display());
    Failure::new(ProblemCode::InUse, words)
}

fn problem(error: DeviceError) -> Failure {
    let code = match &error {
        DeviceError::NotFound { .. } => ProblemCode::NotFound,
        DeviceError::NotADevice { .. } => ProblemCode::Invalid,
        _ => ProblemCode::Unavailable,
    };
    Failure::because(code, "a device cannot be a disk", error)
}

//! What the controllers of Hyper-V, and guests on them, can do with a disk.

use crate::failure::Failure;
use backstay_api::Compat;
use backstay_model::{DriveSlot, VmSpec};

/// Largest disk that every guest sees whole on IDE, in bytes: 127 GiB, the end of 28-bit addresses as Hyper-V counts it.
const IDE_MOST: u64 = 127 << 30;

/// What is to be said of a disk of `size` bytes in a place; with `compat` it is refused instead.
pub(super) fn check_size(
    slot: DriveSlot,
    size: u64,
    compat: Option<Compat>,
) -> Result<Option<String>, Failure> {
    if !matches!(slot, DriveSlot::Ide { .. }) || size <= IDE_MOST {
        return Ok(None);
    }
    let words = format!(
        "the disk at {slot} has {:.1} GiB, and guests that know only 28-bit IDE, as Windows before 2003 SP1, see 127 GiB of it \
         and destroy data beyond: attach it to SCSI",
        gib(size)
    );
    match compat {
        Some(Compat::Hyperv2008) => Err(Failure::invalid(format!(
            "{words}. Hyper-V 2008 takes no IDE disk above 127 GiB, and --compat 2008 was asked for"
        ))),
        None => Ok(Some(words)),
    }
}

fn gib(size: u64) -> f64 {
    size as f64 / f64::from(1 << 30)
}

/// What is to be said of where a machine's disks are.
pub(super) fn check_places(spec: &VmSpec) -> Option<String> {
    spec.lacks_ide_boot().then(|| {
        format!(
            "'{}' is of generation 1 and has no hard disk on IDE: it starts from SCSI here, but not on Hyper-V, where the BIOS \
             of generation 1 knows IDE only",
            spec.name
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_disk_on_ide_is_told_and_refused_only_where_that_is_asked_for() {
        let at = |slot: &str, size, compat| check_size(slot.parse().unwrap(), size, compat);
        let strict = Some(Compat::Hyperv2008);
        assert_eq!(at("ide:0:0", 127 << 30, strict).unwrap(), None);
        assert_eq!(at("scsi:0:0", 64 << 40, strict).unwrap(), None);
        let told = at("ide:1:1", (127 << 30) + 512, None).unwrap().unwrap();
        assert!(told.contains("ide:1:1") && told.contains("127 GiB"), "{told}");
        let refused = at("ide:0:0", 128 << 30, strict).unwrap_err().full_message();
        assert!(refused.contains("128.0 GiB") && refused.contains("--compat 2008"), "{refused}");
    }
}

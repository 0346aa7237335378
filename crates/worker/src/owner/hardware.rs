//! What of the machine's drives can be changed while it runs.

use super::{Answer, Owner, refuse};
use crate::control::{DiskLimit, Reply};
use crate::durable;
use backstay_model::{DriveMedia, VmSpec};

impl Owner {
    /// What a worker that takes over, and the next QEMU, have to know: changes the launch record, or says why it stays as
    /// it is.
    pub(super) fn change_spec(&mut self, change: impl FnOnce(&mut VmSpec)) -> Result<(), String> {
        let mut record = self.record.clone();
        change(&mut record.spec);
        if record.spec != self.record.spec {
            durable::replace_json(&self.run.launch(), &record).map_err(|error| {
                let path = self.run.launch();
                format!("{} cannot be written: {error}; make space there", path.display())
            })?;
            self.record = record;
        }
        Ok(())
    }

    /// Kept for the next worker, then done at once.
    pub(super) fn set_disk_limits(&mut self, limits: &[DiskLimit]) -> Answer {
        let drives = &self.record.spec.drives;
        for DiskLimit { slot, limit } in limits {
            let is_disk = |media: &DriveMedia| matches!(media, DriveMedia::Disk(_));
            if !drives.iter().any(|drive| drive.slot == *slot && is_disk(&drive.media)) {
                return refuse(format!("there is no disk at {slot}"));
            }
            if let Err(error) = limit.validate() {
                return refuse(error.to_string());
            }
        }
        let kept = self.change_spec(|spec| {
            for DiskLimit { slot, limit } in limits {
                spec.drives.iter_mut().filter(|d| d.slot == *slot).for_each(|d| d.limit = *limit);
            }
        });
        if let Err(why) = kept {
            return refuse(why);
        }
        limits.iter().for_each(|DiskLimit { slot, limit }| self.disks.set_limit(*slot, *limit));
        Ok(Reply::Done)
    }
}

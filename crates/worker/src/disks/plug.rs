//! Disks that come, go and move while the guest runs.

use super::{DRAIN, DiskSet, DisksError, open_drive};
use crate::checkpoint::tops::Tops;
use crate::control::LayerSwitch;
use crate::durable;
use backstay_disk::{RelocateControl, RelocateError};
use backstay_model::{DriveSlot, DriveSpec};
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

impl DiskSet {
    /// Forgets what is written down of a disk that was at a place before.
    ///
    /// # Errors
    /// As the file system.
    pub(crate) fn vacate(&self, slot: DriveSlot) -> io::Result<()> {
        Tops::forget(&self.tops, slot)
    }

    /// Opens one more disk and serves it. Blocks. Returns what was strange about its files.
    ///
    /// # Errors
    /// [`DisksError`]; it is not open then.
    pub(crate) fn attach(&self, drive: &DriveSpec) -> Result<Vec<String>, DisksError> {
        let Some(opened) = open_drive(drive, self.cache, &Tops::default(), &mut Vec::new())? else {
            return Ok(Vec::new());
        };
        let opened = Arc::new(opened);
        let served = match self.server().as_ref() {
            Some(server) => server.add_export(opened.export()).map_err(DisksError::Export),
            None => Err(DisksError::Failed("the machine has ended".into())),
        };
        if let Err(error) = served {
            opened.close();
            return Err(error);
        }
        let warnings = opened.warnings();
        self.drives.write().unwrap_or_else(PoisonError::into_inner).push(opened);
        self.set_limit(drive.slot, drive.limit);
        Ok(warnings)
    }

    /// Ends the service of a disk that no QEMU has any more, and closes it, making everything durable. Blocks. Returns what went
    /// wrong, in words; a disk that is not there is gone already.
    pub(crate) fn detach(&self, slot: DriveSlot) -> Option<String> {
        let drive = {
            let mut drives = self.drives.write().unwrap_or_else(PoisonError::into_inner);
            let at = drives.iter().position(|drive| drive.slot == slot)?;
            drives.remove(at)
        };
        if let Some(server) = self.server().as_ref() {
            // Its one client has gone; that it is not there any more is fine too.
            let _ = server.remove_export(&slot.export_name(), DRAIN);
        }
        drive.close()
    }

    /// Moves the top file of a disk. Blocks until it is moved, or stays. Only one of the two files is left then, so that nobody
    /// takes the old one for the disk, whatever becomes of the volume of the new one.
    ///
    /// # Errors
    /// [`MoveError`]: it stays.
    pub(crate) fn relocate(
        &self,
        slot: DriveSlot,
        to: &Path,
        control: &RelocateControl,
    ) -> Result<(), MoveError> {
        let drive = self.drive(slot).map_err(MoveError::Disks)?;
        let from = drive.top().clone();
        let step = [LayerSwitch { slot, from: from.clone(), to: to.into() }];
        // Found by a worker that takes over in this instant: the new file counts as soon as it has its name.
        let announce = || Tops::announce(&self.tops, &step);
        let moved = drive.disk.relocate(to, control, &announce);
        let now = if moved.is_ok() { to.to_path_buf() } else { from };
        *drive.top() = now.clone();
        if let Err(error) = Tops::conclude(&self.tops, [(slot, now)]) {
            tracing::error!(%slot, %error, "it is not written down in which file the disk continues");
        }
        moved.map_err(MoveError::Engine)?;
        let old = &step[0].from;
        if let Err(error) = durable::remove(old).and_then(|()| durable::sync_folder_of(old)) {
            tracing::warn!(%slot, %error, path = %old.display(), "the old file of a disk that was moved stays for now");
        }
        Ok(())
    }
}

/// Why a disk was not moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MoveError {
    #[error(transparent)]
    Disks(DisksError),
    #[error(transparent)]
    Engine(RelocateError),
}

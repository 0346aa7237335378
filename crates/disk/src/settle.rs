//! Writes of a process that died in files that became parents meanwhile.

use crate::{chain::Chain, create::settle, error::OpenError, fs::FileSystem, options::DiskOptions};
use std::{path::Path, sync::Arc};

/// Puts into the parents of a disk what a process that died left beside them. Its child may have been made, and its owner
/// have gone on with that, before it could do so itself; as parents they are not written to again, and what is beside them
/// ends with the power. To be called before the disk is opened for writing.
///
/// # Errors
/// A parent that cannot be written to. What hinders opening the chain is left to whoever opens it.
pub fn settle_parents(fs: &Arc<dyn FileSystem>, path: &Path, options: &DiskOptions) -> Result<(), OpenError> {
    let how = DiskOptions { read_only: true, gate: None, changed: None, ..options.clone() };
    let Ok(chain) = Chain::open(fs, path, &how) else { return Ok(()) };
    let left = chain.unsettled();
    drop(chain);
    left.iter().try_for_each(|(parent, format)| settle(fs, parent, *format, options))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, Disk, Identity, NewDisk, create_disk, fs::HostFs};

    /// A worker prepares the next top and dies; the next one goes on with that. Then the power goes.
    #[test]
    fn what_was_acknowledged_before_a_top_became_a_parent_survives_the_power() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let fs = HostFs::shared();
        let runtime = path("runtime");
        std::fs::create_dir(&runtime).unwrap();
        let options = DiskOptions { runtime_dir: Some(runtime.clone()), ..DiskOptions::default() };
        let base = NewDisk::Dynamic { size: 8 << 20, block_size: 2 << 20 };
        create_disk(&fs, &path("base.vhd"), &base, Identity::fresh()).unwrap();
        let first = NewDisk::Differencing { parent: path("base.vhd"), block_size: 2 << 20 };
        create_disk(&fs, &path("first.avhd"), &first, Identity::fresh()).unwrap();

        let disk = Disk::open(&path("first.avhd"), options.clone()).unwrap();
        disk.prepare_child(&path("second.avhd"), Identity::fresh()).unwrap();
        disk.write(4096, &[7; 512]).unwrap();
        disk.abandon();
        drop(disk);
        let copies = path("copies");
        std::fs::create_dir(&copies).unwrap();
        // Without the shadow files, which lie in memory.
        let after_power_loss = |round: &str| {
            let place = copies.join(round);
            std::fs::create_dir(&place).unwrap();
            for name in ["base.vhd", "first.avhd", "second.avhd"] {
                std::fs::copy(path(name), place.join(name)).unwrap();
            }
            let options = DiskOptions { runtime_dir: None, ..DiskOptions::read_only() };
            let disk = Disk::open(&place.join("second.avhd"), options).unwrap();
            let mut sector = [0; 512];
            disk.read(4096, &mut sector).unwrap();
            sector
        };
        assert_eq!(after_power_loss("before"), [0; 512], "this test would show a loss");
        let first =
            Disk::open(&path("first.avhd"), DiskOptions { read_only: true, ..options.clone() }).unwrap();
        assert_eq!((first.warnings().len(), first.lasting_warnings().len()), (1, 0));
        drop(first);
        settle_parents(&fs, &path("second.avhd"), &options).unwrap();
        assert_eq!(after_power_loss("after"), [7; 512]);
        let again = Disk::open(&path("second.avhd"), options.clone()).unwrap();
        assert!(again.warnings().is_empty(), "{:?}", again.warnings());
    }

    /// Shadows are named after inodes, which are used again.
    #[test]
    fn what_a_file_that_is_gone_left_behind_is_no_reason_to_write_to_a_parent() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (base, child, runtime) =
            (dir.path().join("base.vhd"), dir.path().join("child.vhd"), dir.path().join("r"));
        let fs = HostFs::shared();
        std::fs::create_dir(&runtime).unwrap();
        create_disk(&fs, &base, &NewDisk::Dynamic { size: 8 << 20, block_size: 2 << 20 }, Identity::fresh())
            .unwrap();
        let shadow = crate::shadow::ShadowFile::path(&runtime, fs.metadata(&base).unwrap().id);
        std::fs::write(&shadow, [0u8; 8192]).unwrap();
        // As the disk of a template is.
        std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o444)).unwrap();
        let options = DiskOptions { runtime_dir: Some(runtime), ..DiskOptions::default() };
        let what = NewDisk::Differencing { parent: base, block_size: 2 << 20 };
        let plan = crate::NewDiskPlan::new(&fs, &child, &what, Identity::fresh(), &options).unwrap();
        plan.execute(&fs).unwrap();
        assert!(child.exists());
    }
}

use super::*;
use crate::durable;
use backstay_hyperv::PendingCheckpoint;
use backstay_model::{CheckpointId, DriveMedia, DriveSlot, DriveSpec};
use uuid::Uuid;

const SLOT: DriveSlot = DriveSlot::Ide { controller: 0, unit: 0 };

/// A configuration whose paths are right for a machine in `home`.
fn config(home: Option<&Path>, disk: &Path) -> VmConfig {
    let spec = serde_json::json!({
        "id": Uuid::from_u128(7), "name": "web", "memory_mib": 32, "bios_guid": Uuid::from_u128(8),
        "boot_order": ["hard-drive"], "machine_type": "pc"
    });
    let mut spec: backstay_model::VmSpec = serde_json::from_value(spec).unwrap();
    spec.drives = vec![DriveSpec::new(SLOT, DriveMedia::Disk(disk.into()))];
    let mut config = VmConfig::new(&spec, 0).unwrap();
    if let Some(home) = home {
        set_home(&mut config, home);
    }
    config
}

/// An empty folder for machines, and a disk in it.
fn folder() -> (tempfile::TempDir, Layout, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::new(folder.path());
    std::fs::create_dir_all(layout.disks()).unwrap();
    let disk = layout.disks().join("data.vhd");
    std::fs::write(&disk, b"x").unwrap();
    (folder, layout, disk)
}

#[test]
fn a_disk_that_is_not_mounted_is_not_replaced_by_one_of_its_name() {
    let (_folder, layout, _) = folder();
    let away = Path::new("/nowhere/san/Virtual Hard Disks/data.vhd");
    let mut config = config(Some(layout.root()), away);
    for search in [Search::Moved(&[]), Search::Registered(&[])] {
        assert!(relocate(&mut config, &layout, search).is_empty());
        assert_eq!(config.drive_path(SLOT).as_deref(), Some(away));
    }
}

#[test]
fn what_moved_with_its_folder_is_found_there_but_never_the_file_of_another_machine() {
    let (_folder, layout, disk) = folder();
    let former = Path::new("/nowhere/vms");
    let old = former.join("Virtual Hard Disks/data.vhd");
    let mut moved = config(Some(former), &old);
    assert!(relocate(&mut moved, &layout, Search::Moved(std::slice::from_ref(&disk))).is_empty());
    assert_eq!(moved.drive_path(SLOT), Some(old));
    assert_eq!(relocate(&mut moved, &layout, Search::Moved(&[])).len(), 1);
    assert_eq!(moved.drive_path(SLOT), Some(disk));
    assert_eq!(home(&moved).as_deref(), Some(layout.root()), "right for the new place");
}

#[test]
fn disks_of_another_host_are_looked_for_by_name_where_somebody_points_at_the_folder() {
    let (_folder, layout, disk) = folder();
    let old = Path::new("/other/host/data.vhd");
    let mut foreign = config(None, old);
    assert!(relocate(&mut foreign, &layout, Search::Moved(&[])).is_empty());
    assert!(relocate(&mut foreign, &layout, Search::Registered(std::slice::from_ref(&disk))).is_empty());
    assert_eq!(relocate(&mut foreign, &layout, Search::Registered(&[])).len(), 1);
    assert_eq!(foreign.drive_path(SLOT), Some(disk));
}

#[test]
fn a_checkpoint_that_was_interrupted_moves_with_its_folder() {
    let (_folder, layout, disk) = folder();
    let former = Layout::new("/nowhere/vms");
    let mut moved = config(Some(former.root()), &former.disks().join("data.vhd"));
    let vm = moved.id().unwrap();
    let (made, unmade) = ("data_1.avhd", "data_2.avhd");
    durable::create_folder(&layout.layers(vm)).unwrap();
    std::fs::write(layout.layers(vm).join(made), b"x").unwrap();
    let step = |to: &str| LayerStep {
        slot: SLOT,
        from: former.disks().join("data.vhd"),
        to: former.layers(vm).join(to),
    };
    let pending = PendingCheckpoint {
        checkpoint: CheckpointId(Uuid::from_u128(9)),
        layers: vec![step(made), step(unmade)],
    };
    moved.set_pending(Some(&pending)).unwrap();
    moved.set_kept_layers(&[step(made)]).unwrap();
    relocate(&mut moved, &layout, Search::Moved(&[]));
    let layers = moved.pending().unwrap().layers;
    let here = |to: &str| LayerStep { slot: SLOT, from: disk.clone(), to: layout.layers(vm).join(to) };
    assert_eq!(layers, [here(made), here(unmade)]);
    assert_eq!(moved.kept_layers(), [here(made)]);
}

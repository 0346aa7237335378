use crate::app::checkpoint_run::make_children;
use crate::app::testing::{Fixture, call};
use crate::app::{create_checkpoint, delete_vm, revert};
use crate::durable;
use crate::inventory::Machine;
use backstay_api::{CheckpointApply, CheckpointCreate, Task, TaskState, VmDelete};
use backstay_disk::{Backend, Disk, DiskOptions};
use backstay_hyperv::{CheckpointMeta, LayerStep, PendingCheckpoint};
use backstay_model::CheckpointId;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// Leaves a machine as a checkpoint does whose daemon could not write the configuration any more (a full disk): its record
/// is pending and the new tops exist. Returns the new top.
async fn interrupted(fixture: &Fixture, machine: &Machine) -> PathBuf {
    let (slot, from) = machine.disks().remove(0);
    let to = machine.layout.new_layer(machine.id, &from, Uuid::new_v4());
    durable::create_folder(&machine.layout.layers(machine.id)).unwrap();
    let layers = vec![LayerStep { slot, from, to: to.clone() }];
    make_children(&layers).unwrap();
    let pending = PendingCheckpoint { checkpoint: CheckpointId(Uuid::new_v4()), layers };
    let mut config = (*machine.config).clone();
    config.set_pending(Some(&pending)).unwrap();
    fixture.app.inventory.save(machine, config).await.unwrap();
    to
}

async fn checkpoint(fixture: &Fixture, name: &str) -> Task {
    let body = CheckpointCreate { name: Some(name.into()), ..CheckpointCreate::default() };
    let accepted = create_checkpoint(&fixture.app, "web", body, &call()).await.unwrap();
    fixture.end(accepted).await
}

#[tokio::test]
async fn a_checkpoint_that_was_left_half_made_is_given_up_by_the_next_one() {
    let fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    let empty = interrupted(&fixture, &machine).await;

    let task = checkpoint(&fixture, "second").await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    assert!(task.warnings.iter().any(|w| w.contains("interrupted")), "{task:?}");
    let now = fixture.app.inventory.find("web").unwrap();
    assert!(now.config.pending().is_none());
    let names: Vec<_> = now.checkpoints.all().iter().map(|c| c.name.clone()).collect();
    assert_eq!(names, ["second"]);
    assert!(!empty.exists(), "the empty file of the first one is gone");
    assert_eq!(now.checkpoints.all()[0].disks[0].file, machine.disks()[0].1);
}

#[tokio::test]
async fn what_was_written_after_a_half_made_checkpoint_stays() {
    let fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    let written = interrupted(&fixture, &machine).await;
    let disk = Disk::open(&written, DiskOptions::default()).unwrap();
    disk.write(4096, &[7; 512]).unwrap();
    disk.close().unwrap();

    let task = checkpoint(&fixture, "second").await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    let now = fixture.app.inventory.find("web").unwrap();
    assert_eq!(now.checkpoints.all()[0].disks[0].file, written, "the checkpoint shows what was written");
    let top = Disk::open(&now.disks()[0].1, DiskOptions::read_only()).unwrap();
    let mut back = [0; 512];
    top.read(4096, &mut back).unwrap();
    assert_eq!(back, [7; 512]);
}

#[tokio::test]
async fn deleting_a_machine_takes_the_half_made_checkpoint_with_it() {
    let fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    let empty = interrupted(&fixture, &machine).await;
    let accepted = delete_vm(&fixture.app, "web", VmDelete::default(), &call()).await.unwrap();
    let task = fixture.end(accepted).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    assert!(!empty.exists() && machine.disks()[0].1.exists());
}

/// Writes `byte` to sector 8 of a disk.
fn write(file: &Path, byte: u8) {
    let disk = Disk::open(file, DiskOptions::default()).unwrap();
    disk.write(4096, &[byte; 512]).unwrap();
    disk.close().unwrap();
}

/// Sector 8 of the machine's disk.
fn read(machine: &Machine) -> u8 {
    let disk = Disk::open(&machine.disks()[0].1, DiskOptions::read_only()).unwrap();
    let mut back = [0; 512];
    disk.read(4096, &mut back).unwrap();
    disk.close().unwrap();
    back[0]
}

/// Waits until nothing works on the machine.
async fn settled(fixture: &Fixture, id: backstay_model::VmId) -> Machine {
    while let Some(task) = fixture.app.tasks.working_on(id) {
        let _ = fixture.app.tasks.wait(task, u64::MAX, Duration::from_secs(60)).await;
    }
    fixture.app.inventory.get(id).unwrap()
}

#[tokio::test]
async fn a_half_made_checkpoint_in_a_folder_that_was_moved_keeps_what_was_written() {
    let mut fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    write(&interrupted(&fixture, &machine).await, 7);
    fixture.restart_in("elsewhere").await;
    let now = settled(&fixture, machine.id).await;
    assert!(now.config.pending().is_none());
    assert!(now.disks()[0].1.starts_with(fixture.path("elsewhere")), "{:?}", now.disks());
    assert_eq!(read(&now), 7);
}

#[tokio::test]
async fn a_half_made_checkpoint_whose_new_files_cannot_be_looked_for_is_not_given_up() {
    let mut fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    let top = interrupted(&fixture, &machine).await;
    write(&top, 7);
    let (folder, away) = (machine.layout.snapshots(), fixture.path("away"));
    std::fs::rename(&folder, &away).unwrap();
    fixture.restart().await;
    let now = settled(&fixture, machine.id).await;
    assert!(now.config.pending().is_some(), "{:?}", now.disks());
    let failed = checkpoint(&fixture, "second").await;
    let words = failed.error.unwrap().detail;
    assert!(words.contains(top.parent().unwrap().to_str().unwrap()) && words.contains("mount"), "{words}");

    std::fs::rename(&away, &folder).unwrap();
    assert_eq!(checkpoint(&fixture, "second").await.state, TaskState::Succeeded);
    assert_eq!(read(&fixture.app.inventory.get(machine.id).unwrap()), 7);
}

#[tokio::test]
async fn revert_goes_to_a_checkpoint_that_is_finished_first() {
    let fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    assert_eq!(checkpoint(&fixture, "first").await.state, TaskState::Succeeded);
    let machine = fixture.app.inventory.get(machine.id).unwrap();
    write(&machine.disks()[0].1, 2);
    // The second one: its configuration is written, the machine's is not.
    let top = interrupted(&fixture, &machine).await;
    let pending = fixture.app.inventory.get(machine.id).unwrap().config.pending().unwrap();
    let mut then = (*machine.config).clone();
    let meta = CheckpointMeta {
        id: pending.checkpoint,
        name: "second".into(),
        notes: String::new(),
        parent: machine.config.now_parent(),
        created_unix_ms: 1,
        has_memory: false,
        method: None,
    };
    then.set_checkpoint_meta(Some(&meta)).unwrap();
    durable::replace(&machine.layout.checkpoint_config(meta.id), &then.to_bytes()).unwrap();
    write(&top, 3);

    let body: CheckpointApply = serde_json::from_value(serde_json::json!({})).unwrap();
    let task = fixture.end(revert(&fixture.app, "web", body, &call()).await.unwrap()).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    let now = fixture.app.inventory.get(machine.id).unwrap();
    assert_eq!(now.now_parent(), Some(meta.id));
    assert_eq!(read(&now), 2, "as it was at the second one");
}

use crate::app::checkpoint_run::make_children;
use crate::app::testing::{Fixture, call};
use crate::app::{create_checkpoint, delete_vm};
use crate::durable;
use crate::inventory::Machine;
use backstay_api::{CheckpointCreate, Task, TaskState, VmDelete};
use backstay_disk::{Backend, Disk, DiskOptions};
use backstay_hyperv::{LayerStep, PendingCheckpoint};
use backstay_model::CheckpointId;
use std::path::PathBuf;
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

use super::*;
use crate::app::testing::{Fixture, call, read};
use crate::app::{clone_vm, export_checkpoint};
use backstay_api::{CheckpointDelete, TaskState, VmClone};
use backstay_disk::{Disk, DiskOptions};
use std::collections::BTreeSet;

fn web(fixture: &Fixture) -> Machine {
    fixture.app.inventory.find("web").unwrap()
}

#[test]
fn what_passes_by_itself_is_tried_again_with_growing_pauses() {
    for code in [ProblemCode::InUse, ProblemCode::Unavailable, ProblemCode::NoSpace, ProblemCode::Timeout] {
        let hindrance = Hindrance::of(code).unwrap();
        let pauses: Vec<_> = (0..20).map(|attempts| hindrance.pause(attempts)).collect();
        assert!(
            pauses.windows(2).all(|two| two[0] <= two[1]) && pauses[0] < Duration::from_secs(1),
            "{pauses:?}"
        );
        let longest = if code == ProblemCode::InUse { 30..60 } else { 240..360 };
        assert!(longest.contains(&pauses[19].as_secs()), "{code:?}: {pauses:?}");
        assert_eq!((0..20).filter(|attempts| hindrance.is_news(*attempts)).count(), 1, "told once");
    }
    assert!(
        Hindrance::Trouble.is_news(0) && !Hindrance::InUse.is_news(0),
        "what is over in a moment is no news"
    );
    for code in [ProblemCode::Damaged, ProblemCode::Internal, ProblemCode::Invalid, ProblemCode::Cancelled] {
        assert_eq!(Hindrance::of(code), None, "{code:?}");
    }
}

/// Three branches, so that there is always something left to do.
#[tokio::test]
async fn the_limit_of_a_merge_stays_until_everything_is_merged() {
    let mut fixture = Fixture::new();
    fixture.machine("web").await;
    fixture.checkpoint("web", "root").await;
    for name in ["a", "b"] {
        fixture.write("web", 10, 1);
        fixture.checkpoint("web", name).await;
        let body = backstay_api::CheckpointApply { checkpoint_first: Some(false), ..Default::default() };
        let accepted =
            crate::app::apply_checkpoint(&fixture.app, "web", "root", body, &call()).await.unwrap();
        assert_eq!(fixture.end(accepted).await.state, TaskState::Succeeded);
    }
    let query = CheckpointDelete { rate: Some(5 << 20), ..CheckpointDelete::default() };
    let merge = fixture.delete("web", "root", query).await.unwrap();
    fixture.app.tasks.wait(merge, u64::MAX, Duration::from_secs(60)).await.unwrap();
    assert_eq!(web(&fixture).config.merge_rate(), Some(5 << 20));
    fixture.restart().await;
    assert_eq!(web(&fixture).config.merge_rate(), Some(5 << 20), "a new daemon knows it");
    // A deletion that says nothing of a limit lifts none.
    let merge = fixture.delete("web", "a", CheckpointDelete::default()).await.unwrap();
    fixture.app.tasks.wait(merge, u64::MAX, Duration::from_secs(60)).await.unwrap();
    assert_eq!(web(&fixture).config.merge_rate(), Some(5 << 20));
    let done = fixture.merged("web", "b").await;
    assert!(done.kept.is_empty(), "{done:?}");
    assert_eq!(web(&fixture).config.merge_rate(), None, "it was that of these merges");
}

/// The mark is only a courtesy to other programs, and nobody takes care that it goes.
#[tokio::test]
async fn a_mark_that_a_saved_machine_left_does_not_hinder() {
    let fixture = Fixture::new();
    let base = fixture.machine("web").await.disks()[0].1.clone();
    fixture.checkpoint("web", "one").await;
    fixture.write("web", 10, 2);
    backstay_disk::mark_saved_state(&base, true).unwrap();
    let done = fixture.merged("web", "one").await;
    assert_eq!(done.merged, 1, "{done:?}");
    assert_eq!(read(&base, 10), 2);
}

/// What was written to before goes with the next look where the guest runs, and stays where it does not.
#[tokio::test]
async fn the_former_now_stays_until_the_memory_of_a_checkpoint_is_loaded() {
    for (state, stays) in [(VmState::Running, false), (VmState::Off, true)] {
        let mut fixture = Fixture::new();
        fixture.machine("web").await;
        fixture.checkpoint("web", "one").await;
        fixture.write("web", 10, 2);
        let machine = web(&fixture);
        let (slot, top) = machine.disks().remove(0);
        let other = machine.layout.new_layer(machine.id, &top, uuid::Uuid::new_v4());
        crate::disks::create_child(&machine.checkpoints.find("one")[0].disks[0].file, &other).unwrap();
        // As it is when the daemon dies before QEMU has loaded the memory.
        let mut config = (*machine.config).clone();
        config.set_drive_path(slot, &other).unwrap();
        config.set_applying(&BTreeSet::from([top.clone()])).unwrap();
        fixture.app.inventory.save(&machine, config).await.unwrap();
        if state == VmState::Off {
            fixture.restart().await;
        } else {
            fixture.app.inventory.set_state(machine.id, VmState::Starting, None);
            assert!(
                !super::super::former::settle_former(&fixture.app, machine.id)
                    .await
                    .unwrap()
                    .config
                    .applying()
                    .is_empty()
            );
            fixture.app.inventory.set_state(machine.id, state, None);
            super::super::former::settle_former(&fixture.app, machine.id).await.unwrap();
            fixture.app.inventory.set_state(machine.id, VmState::Off, None);
            kick_quietly(&fixture.app, machine.id);
        }
        tokio::time::timeout(Duration::from_secs(30), async {
            while is_pending(&web(&fixture)) || fixture.app.mergers.task(machine.id).is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap();
        assert_eq!(top.exists(), stays, "{state}");
        let history = fixture.app.events.list(Some(machine.id), None, None, 20).await.unwrap();
        let told = history
            .iter()
            .any(|e| e.kind == "checkpoint.memory-not-loaded" && e.reason.contains(top.to_str().unwrap()));
        assert_eq!(told, stays, "{history:?}");
    }
}

/// The merge has the file open, and it gives way before anybody looks at it.
#[tokio::test]
async fn a_clone_and_an_export_are_let_in() {
    let fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    fixture.checkpoint("web", "one").await;
    for what in ["clone", "export"] {
        let holds = [Hold::Vm(machine.id), Hold::Files(machine.id)];
        let hold = fixture.app.tasks.background(TaskId(uuid::Uuid::new_v4()), OPERATION, &holds).await;
        let disk = Disk::open(&web(&fixture).disks()[0].1, DiskOptions::default()).unwrap();
        let below = Disk::open(&machine.disks()[0].1, DiskOptions::default());
        assert!(below.is_err(), "a parent in use");
        let giving_way = tokio::spawn(async move {
            hold.wanted().await;
            disk.close().unwrap();
            drop(hold);
        });
        let done = match what {
            "clone" => {
                let body = VmClone { name: "copy".into(), checkpoint: None, linked: false, folder: None };
                clone_vm(&fixture.app, "web", body, &call()).await
            }
            _ => {
                let folder = fixture.path("out");
                let body = backstay_api::CheckpointExport { folder, without_memory: false, skip_bad: false };
                export_checkpoint(&fixture.app, "web", "one", body, &call()).await
            }
        };
        let task =
            fixture.end(done.unwrap_or_else(|refused| panic!("{what}: {}", refused.full_message()))).await;
        assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
        giving_way.await.unwrap();
    }
}

/// Its parent is looked up in the configurations of those that are being deleted.
#[tokio::test]
async fn a_child_that_cannot_be_read_does_not_lose_its_place() {
    let mut fixture = Fixture::new();
    fixture.machine("web").await;
    for name in ["one", "two", "three"] {
        fixture.checkpoint("web", name).await;
    }
    let machine = web(&fixture);
    let [one, two, three] = ["one", "two", "three"].map(|name| machine.checkpoints.find(name)[0].id);
    let mut config = (*machine.config).clone();
    config.set_deleting(&BTreeSet::from([two]));
    let machine = fixture.app.inventory.save(&machine, config).await.unwrap();
    let file = machine.layout.checkpoint_config(three);
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, "<?xml version=\"1.0\"?><configuration>").unwrap();
    // Found so by a look now, and by a daemon that is started so.
    assert!(finish_deleting(&fixture.app, &machine).await.is_err());
    fixture.restart().await;
    assert!(finish_deleting(&fixture.app, &web(&fixture)).await.is_err());
    assert!(machine.layout.checkpoint_config(two).exists() && !web(&fixture).config.deleting().is_empty());
    std::fs::write(&file, whole).unwrap();
    fixture.restart().await;
    tokio::time::timeout(Duration::from_secs(30), async {
        while !web(&fixture).config.deleting().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(web(&fixture).checkpoints.get(three).unwrap().parent, Some(one));
    let meta = crate::inventory::read_config(&file).unwrap().checkpoint_meta().unwrap();
    assert_eq!(meta.parent, Some(one));
}

/// Such a disk may lie where nobody looks for it: it is seen as soon as the machine that got it is known, and not before.
#[tokio::test]
async fn nothing_is_merged_or_deleted_while_somebody_gets_a_disk() {
    let fixture = Fixture::new();
    fixture.machine("web").await;
    fixture.checkpoint("web", "one").await;
    fixture.write("web", 10, 2);
    let layer = web(&fixture).disks()[0].1.clone();
    let attaching = fixture.app.attaching.lock().await;
    let merge = fixture.delete("web", "one", CheckpointDelete::default()).await.unwrap();
    let ended = fixture.app.tasks.wait(merge, u64::MAX, Duration::from_millis(700)).await.unwrap();
    assert!(!ended.state.is_final() && layer.exists(), "{ended:?}");
    drop(attaching);
    let ended = fixture.app.tasks.wait(merge, u64::MAX, Duration::from_secs(60)).await.unwrap();
    assert!(ended.state == TaskState::Succeeded && !layer.exists(), "{ended:?}");
}

/// A machine gets no disk that is made on a file whose content changes under it.
#[tokio::test]
async fn a_disk_made_on_what_is_being_merged_waits() {
    let fixture = Fixture::new();
    fixture.machine("web").await;
    fixture.checkpoint("web", "one").await;
    let machine = web(&fixture);
    let (upper, lower) =
        (machine.disks()[0].1.clone(), machine.checkpoints.find("one")[0].disks[0].file.clone());
    let child = fixture.path("child.vhdx");
    crate::disks::create_child(&lower, &child).unwrap();
    let mut config = (*machine.config).clone();
    config.set_merging(Some(&Merging { upper, lower })).unwrap();
    fixture.app.inventory.save(&machine, config).await.unwrap();
    let create = || {
        let body = Fixture::request("other", Some(child.clone()));
        let dry_run = crate::app::Call { dry_run: true, ..call() };
        let app = Arc::clone(&fixture.app);
        async move { crate::app::create_vm(&app, body, &dry_run).await }
    };
    fixture.app.inventory.set_state(machine.id, VmState::Running, None);
    let refused = create().await.unwrap_err();
    assert_eq!(refused.code(), ProblemCode::InUse);
    assert!(refused.full_message().contains("is being merged"), "{}", refused.full_message());
    // Nobody merges: whoever goes on with it finds the child first.
    fixture.app.inventory.set_state(machine.id, VmState::Off, None);
    create().await.unwrap();
}

#[tokio::test]
async fn a_merge_that_is_against_a_rule_is_not_begun_again_by_what_others_do() {
    let fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    assert!(!fixture.app.mergers.is_refused(&machine));
    fixture.app.mergers.refused().insert(machine.id, machine.generation);
    assert!(fixture.app.mergers.is_refused(&machine));
    let saved = fixture.app.inventory.save(&machine, (*machine.config).clone()).await.unwrap();
    assert!(!fixture.app.mergers.is_refused(&saved), "something was changed");
}

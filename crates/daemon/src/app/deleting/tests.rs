use crate::app::testing::{Fixture, call};
use crate::app::{
    apply_checkpoint, create_checkpoint, delete_checkpoint, delete_vm, export_checkpoint, merge_checkpoints,
    set_template, update_checkpoint, update_vm,
};
use crate::inventory::{Machine, read_config};
use backstay_api::{
    CheckpointApply, CheckpointCreate, CheckpointDelete, CheckpointDeleted, CheckpointExport,
    CheckpointMerge, CheckpointUpdate, MergeResult, ProblemCode, Task, TaskState, VmDelete, VmTemplate,
};
use backstay_disk::{Backend, Disk, DiskOptions};
use backstay_model::CheckpointId;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn web(fixture: &Fixture) -> Machine {
    fixture.app.inventory.find("web").unwrap()
}

fn write(fixture: &Fixture, sector: u64, value: u8) {
    let disk = Disk::open(&web(fixture).disks()[0].1, DiskOptions::default()).unwrap();
    disk.write(sector * 512, &[value; 512]).unwrap();
    disk.close().unwrap();
}

fn read(file: &Path, sector: u64) -> u8 {
    let disk = Disk::open(file, DiskOptions::read_only()).unwrap();
    let mut bytes = [0; 512];
    disk.read(sector * 512, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn sector");
    bytes[0]
}

async fn create(fixture: &Fixture, name: &str) -> CheckpointId {
    let body = CheckpointCreate { name: Some(name.into()), ..CheckpointCreate::default() };
    let task = fixture.end(create_checkpoint(&fixture.app, "web", body, &call()).await.unwrap()).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    web(fixture).checkpoints.find(name)[0].id
}

async fn apply(fixture: &Fixture, name: &str) {
    let body = CheckpointApply { checkpoint_first: Some(false), ..CheckpointApply::default() };
    let accepted = apply_checkpoint(&fixture.app, "web", name, body, &call()).await.unwrap();
    let task = fixture.end(accepted).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
}

/// Deletes, waits for the merge, and returns what came of that.
async fn delete(fixture: &Fixture, name: &str, subtree: bool) -> MergeResult {
    let query = CheckpointDelete { subtree, ..CheckpointDelete::default() };
    let accepted = delete_checkpoint(&fixture.app, "web", name, query, &call()).await.unwrap();
    let task = fixture.end(accepted).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    let told: CheckpointDeleted = serde_json::from_value(task.result.unwrap()).unwrap();
    let Some(merge) = told.merge_task else { return MergeResult::default() };
    let merge = ended(fixture, merge).await;
    assert_eq!(merge.state, TaskState::Succeeded, "{merge:?}");
    serde_json::from_value(merge.result.unwrap()).unwrap()
}

async fn ended(fixture: &Fixture, task: backstay_model::TaskId) -> Task {
    fixture.app.tasks.wait(task, u64::MAX, Duration::from_secs(60)).await.unwrap()
}

/// No released file is left to be looked at.
async fn settled(fixture: &Fixture) {
    while let Some(task) = fixture.app.mergers.task(web(fixture).id) {
        ended(fixture, task).await;
    }
}

fn files(fixture: &Fixture) -> BTreeSet<PathBuf> {
    let machine = web(fixture);
    let in_folder = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let all = in_folder(machine.layout.layers(machine.id)).chain(in_folder(machine.layout.disks()));
    all.map(|entry| entry.path()).collect()
}

#[tokio::test]
async fn what_hung_below_a_deleted_checkpoint_goes_on_and_its_space_comes_back() {
    let mut fixture = Fixture::new();
    let base = fixture.machine("web").await.disks()[0].1.clone();
    for (name, value) in [("one", 1), ("two", 2), ("three", 3)] {
        write(&fixture, 10, value);
        write(&fixture, 10 + u64::from(value), value);
        create(&fixture, name).await;
    }
    write(&fixture, 10, 4);
    let two = web(&fixture).checkpoints.find("two")[0].clone();
    let one = web(&fixture).checkpoints.find("one")[0].id;
    assert_eq!(files(&fixture).len(), 4);

    let done = delete(&fixture, "two", false).await;
    assert_eq!((done.merged, done.deleted), (1, 1), "{done:?}");
    fixture.restart().await;
    let machine = web(&fixture);
    let three = machine.checkpoints.find("three")[0].clone();
    assert_eq!(three.parent, Some(one));
    let on_disk =
        read_config(&machine.layout.checkpoint_config(three.id)).unwrap().checkpoint_meta().unwrap();
    assert_eq!(on_disk.parent, Some(one), "the file says so too");
    assert!(!machine.layout.checkpoint_config(two.id).exists());
    assert_eq!(three.disks[0].file, two.disks[0].file, "its file took the place of the next one's");
    assert_eq!([10, 11, 12, 13].map(|s| read(&three.disks[0].file, s)), [3, 1, 2, 3]);
    assert_eq!([10, 11, 12, 13].map(|s| read(&machine.disks()[0].1, s)), [4, 1, 2, 3]);
    assert_eq!([10, 11, 12, 13].map(|s| read(&base, s)), [1, 1, 0, 0]);
    assert_eq!(files(&fixture).len(), 3);

    let done = delete(&fixture, "one", true).await;
    assert_eq!((done.merged, done.kept.len()), (2, 0), "{done:?}");
    let machine = web(&fixture);
    assert!(machine.checkpoints.all().is_empty() && machine.now_parent().is_none());
    assert_eq!(machine.disks()[0].1, base, "the machine writes to its first disk again");
    assert_eq!([10, 11, 12, 13].map(|s| read(&base, s)), [4, 1, 2, 3]);
    assert_eq!(files(&fixture), BTreeSet::from([base]));
    assert!(machine.config.released().is_empty() && machine.config.merging().is_none());
}

#[tokio::test]
async fn a_branch_point_is_merged_when_one_branch_is_left() {
    let fixture = Fixture::new();
    let base = fixture.machine("web").await.disks()[0].1.clone();
    write(&fixture, 10, 1);
    create(&fixture, "root").await;
    write(&fixture, 10, 2);
    create(&fixture, "left").await;
    apply(&fixture, "root").await;
    write(&fixture, 10, 3);
    settled(&fixture).await;

    let done = delete(&fixture, "root", false).await;
    assert_eq!(done.merged, 0);
    assert!(done.kept[0].reason.contains("2 files"), "{done:?}");
    let machine = web(&fixture);
    assert_eq!(read(&machine.checkpoints.find("left")[0].disks[0].file, 10), 2);
    let list = crate::app::views::checkpoints(&fixture.app, &machine);
    assert_eq!(list.merge_pending[0].file, base, "and the list tells");

    let done = delete(&fixture, "left", false).await;
    assert_eq!((done.merged, done.deleted), (1, 2), "{done:?}");
    assert_eq!(read(&base, 10), 3);
    assert_eq!(files(&fixture), BTreeSet::from([base]));
}

#[tokio::test]
async fn a_deletion_that_was_cut_off_is_done_to_its_end_by_the_next_daemon() {
    let mut fixture = Fixture::new();
    fixture.machine("web").await;
    let one = create(&fixture, "one").await;
    let two = create(&fixture, "two").await;
    create(&fixture, "three").await;
    // As it is right after the write that deletes.
    let machine = web(&fixture);
    let mut config = (*machine.config).clone();
    config.set_deleting(&BTreeSet::from([two]));
    config
        .set_released(&BTreeSet::from([machine.checkpoints.get(two).unwrap().disks[0].file.clone()]))
        .unwrap();
    let machine = fixture.app.inventory.save(&machine, config).await.unwrap();
    assert_eq!(machine.checkpoints.find("three")[0].parent, Some(one), "it is gone at once");
    assert!(machine.checkpoints.get(two).is_none());
    fixture.restart().await;
    tokio::time::timeout(Duration::from_secs(30), async {
        while !(web(&fixture).config.deleting().is_empty() && web(&fixture).config.released().is_empty()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let machine = web(&fixture);
    assert!(!machine.layout.checkpoint_config(two).exists());
    let three = machine.checkpoints.find("three")[0].id;
    let meta = read_config(&machine.layout.checkpoint_config(three)).unwrap().checkpoint_meta().unwrap();
    assert_eq!(meta.parent, Some(one));
    assert_eq!(files(&fixture).len(), 3);
}

#[tokio::test]
async fn a_file_that_another_machine_needs_stays_with_the_reason() {
    let fixture = Fixture::new();
    fixture.machine("web").await;
    write(&fixture, 10, 1);
    create(&fixture, "one").await;
    let file = web(&fixture).checkpoints.find("one")[0].disks[0].file.clone();
    let linked = fixture.path("linked.vhdx");
    crate::disks::create_child(&file, &linked).unwrap();
    fixture.machine_with("clone", Some(linked.clone())).await;
    write(&fixture, 10, 2);
    let done = delete(&fixture, "one", false).await;
    assert_eq!((done.merged, done.deleted), (0, 0));
    assert!(done.kept[0].reason.contains("'clone' uses it"), "{done:?}");
    assert_eq!((read(&linked, 10), read(&web(&fixture).disks()[0].1, 10)), (1, 2));
}

/// The disk was detached, so no configuration names the file that needs the released one.
#[tokio::test]
async fn kept_disks_of_a_deleted_machine_keep_what_they_are_made_on() {
    let fixture = Fixture::new();
    fixture.machine("web").await;
    create(&fixture, "one").await;
    write(&fixture, 10, 1);
    create(&fixture, "two").await;
    write(&fixture, 10, 2);
    let (slot, top) = web(&fixture).disks().remove(0);
    let body = serde_json::from_value(serde_json::json!({ "remove_drives": [slot] })).unwrap();
    let task = fixture.end(update_vm(&fixture.app, "web", body, &call()).await.unwrap()).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    let done = delete(&fixture, "two", false).await;
    assert!(done.kept[0].reason.contains("belongs to no checkpoint"), "{done:?}");
    let accepted = delete_vm(&fixture.app, "web", VmDelete::default(), &call()).await.unwrap();
    let task = fixture.end(accepted).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    assert_eq!(read(&top, 10), 2, "the detached disk is whole");
}

#[tokio::test]
async fn a_layer_that_a_user_brought_is_only_detached() {
    let fixture = Fixture::new();
    fixture.machine("web").await;
    create(&fixture, "one").await;
    let machine = web(&fixture);
    let slot = machine.disks()[0].0;
    let own = fixture.path("own.avhdx");
    crate::disks::create_child(&machine.checkpoints.find("one")[0].disks[0].file, &own).unwrap();
    let mut config = (*machine.config).clone();
    config.set_drive_path(slot, &own).unwrap();
    fixture.app.inventory.save(&machine, config).await.unwrap();
    write(&fixture, 10, 7);
    apply(&fixture, "one").await;
    assert!(!web(&fixture).config.released().contains(&own));
    settled(&fixture).await;
    assert_eq!(read(&own, 10), 7);
}

#[tokio::test]
async fn a_machine_whose_files_are_still_to_be_merged_is_no_template() {
    let fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    let mut config = (*machine.config).clone();
    config.set_released(&BTreeSet::from([machine.disks()[0].1.clone()])).unwrap();
    fixture.app.inventory.save(&machine, config).await.unwrap();
    let body = VmTemplate { template: true };
    let refused = set_template(&fixture.app, "web", body, &call()).await.unwrap_err();
    assert!(refused.full_message().contains("still to be merged"), "{}", refused.full_message());
}

/// A child that somebody made beside the file, and that no machine has.
#[tokio::test]
async fn a_child_made_by_hand_keeps_its_parent() {
    let fixture = Fixture::new();
    fixture.machine("web").await;
    write(&fixture, 10, 1);
    create(&fixture, "one").await;
    let base = web(&fixture).checkpoints.find("one")[0].disks[0].file.clone();
    let by_hand = base.with_file_name("by-hand.vhdx");
    crate::disks::create_child(&base, &by_hand).unwrap();
    write(&fixture, 10, 2);
    let done = delete(&fixture, "one", false).await;
    assert_eq!((done.merged, done.kept.len()), (0, 1), "{done:?}");
    assert_eq!(read(&by_hand, 10), 1);
}

/// Whoever wants the machine is let in at once, also if the first thing is a look at its files; the merge goes on afterwards.
#[tokio::test]
async fn a_merge_gives_way_to_whoever_looks_at_the_files() {
    let fixture = Fixture::new();
    let base = fixture.machine("web").await.disks()[0].1.clone();
    write(&fixture, 10, 1);
    create(&fixture, "one").await;
    for sector in 0..64 {
        write(&fixture, 256 * sector, 2);
    }
    let query = CheckpointDelete { rate: Some(1), ..CheckpointDelete::default() };
    let accepted = delete_checkpoint(&fixture.app, "web", "one", query, &call()).await.unwrap();
    fixture.end(accepted).await;
    let moving = || async {
        tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                let task = fixture.app.mergers.task(web(&fixture).id).expect("it cannot end");
                let message = fixture.app.tasks.get(task).await.unwrap().message;
                if message.contains("blocks") {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
    };
    moving().await;
    create(&fixture, "two").await;
    moving().await;
    apply(&fixture, "two").await;
    moving().await;
    let body = CheckpointMerge::default();
    merge_checkpoints(&fixture.app, "web", body, &call()).await.unwrap();
    settled(&fixture).await;
    let machine = web(&fixture);
    assert_eq!(machine.checkpoints.find("two")[0].disks[0].file, base, "it was merged after all");
    assert_eq!([0, 10, 256 * 63].map(|sector| read(&machine.disks()[0].1, sector)), [2, 1, 2]);
}

/// A linked clone whose configuration cannot be read may need the template's disk.
#[tokio::test]
async fn a_template_stays_one_while_it_is_not_known_who_needs_it() {
    let mut fixture = Fixture::new();
    let disk = fixture.machine("web").await.disks()[0].1.clone();
    let template = |template| VmTemplate { template };
    let accepted = set_template(&fixture.app, "web", template(true), &call()).await.unwrap();
    assert_eq!(fixture.end(accepted).await.state, TaskState::Succeeded);
    let linked = fixture.path("linked.vhdx");
    crate::disks::create_child(&disk, &linked).unwrap();
    let clone = fixture.machine_with("clone", Some(linked)).await;
    let refused = set_template(&fixture.app, "web", template(false), &call()).await.unwrap_err();
    assert!(refused.full_message().contains("'clone'"), "{}", refused.full_message());
    std::fs::write(&clone.config_file, "<configuration").unwrap();
    fixture.restart().await;
    let refused = set_template(&fixture.app, "web", template(false), &call()).await.unwrap_err();
    assert!(refused.full_message().contains("not known"), "{}", refused.full_message());
    assert!(web(&fixture).is_template());
}

#[tokio::test]
async fn names_and_notes_change_and_stay() {
    let mut fixture = Fixture::new();
    fixture.machine("web").await;
    create(&fixture, "one").await;
    let body = CheckpointUpdate { name: Some("first".into()), notes: Some("ticket 4711".into()) };
    let accepted = update_checkpoint(&fixture.app, "web", "one", body, &call()).await.unwrap();
    assert_eq!(fixture.end(accepted).await.state, TaskState::Succeeded);
    fixture.restart().await;
    let found = web(&fixture).checkpoints.find("first")[0].clone();
    assert_eq!(found.notes, "ticket 4711");
    for bad in [String::new(), "x".repeat(101)] {
        let body = CheckpointUpdate { name: Some(bad), notes: None };
        let refused = update_checkpoint(&fixture.app, "web", "first", body, &call()).await.unwrap_err();
        assert_eq!(refused.code(), ProblemCode::Invalid);
    }
    let missing = CheckpointUpdate { name: Some("x".into()), notes: None };
    let refused = update_checkpoint(&fixture.app, "web", "never", missing, &call()).await.unwrap_err();
    assert_eq!(refused.code(), ProblemCode::NotFound);
}

#[tokio::test]
async fn the_limit_is_refused_with_the_rule_and_the_cure() {
    let mut fixture = Fixture::new();
    fixture.machine("web").await;
    fixture.limit(2).await;
    create(&fixture, "one").await;
    create(&fixture, "two").await;
    let body = CheckpointCreate::default();
    let refused = create_checkpoint(&fixture.app, "web", body, &call()).await.unwrap_err();
    assert_eq!(refused.code(), ProblemCode::Precondition);
    let words = refused.full_message();
    assert!(words.contains("has 2 checkpoints") && words.contains("checkpoint delete"), "{words}");
    // Going back with a checkpoint first is one more, too.
    let body = CheckpointApply::default();
    assert!(apply_checkpoint(&fixture.app, "web", "one", body, &call()).await.is_err());
    apply(&fixture, "one").await;
    let list = crate::app::views::checkpoints(&fixture.app, &web(&fixture));
    assert!(list.warnings.iter().any(|w| w.contains("2 of at most 2")), "{list:?}");
    delete(&fixture, "two", false).await;
    create(&fixture, "three").await;
}

#[tokio::test]
async fn two_checkpoints_of_one_second_have_two_names() {
    let fixture = Fixture::new();
    fixture.machine("web").await;
    for _ in 0..3 {
        let body = CheckpointCreate::default();
        fixture.end(create_checkpoint(&fixture.app, "web", body, &call()).await.unwrap()).await;
    }
    let names: BTreeSet<String> = web(&fixture).checkpoints.all().iter().map(|c| c.name.clone()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.iter().all(|name| name.starts_with("web - (2")), "{names:?}");
}

#[tokio::test]
async fn applying_keeps_now_unless_it_is_told_not_to() {
    let fixture = Fixture::new();
    fixture.machine("web").await;
    write(&fixture, 10, 1);
    create(&fixture, "one").await;
    write(&fixture, 10, 2);
    let body = CheckpointApply::default();
    let task = fixture.end(apply_checkpoint(&fixture.app, "web", "one", body, &call()).await.unwrap()).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    let kept = task.result.unwrap()["checkpoint_first"]["name"].as_str().unwrap().to_owned();
    assert_eq!(read(&web(&fixture).disks()[0].1, 10), 1);
    apply(&fixture, &kept).await;
    assert_eq!(read(&web(&fixture).disks()[0].1, 10), 2, "nothing was lost");
    settled(&fixture).await;
    // Base, the child of "one" that Now was, and the new one of Now; those that were thrown away are gone.
    assert_eq!(files(&fixture).len(), 3);
}

#[tokio::test]
async fn there_is_nothing_to_merge_where_nothing_was_deleted() {
    let fixture = Fixture::new();
    fixture.machine("web").await;
    let body = CheckpointMerge::default();
    let refused = merge_checkpoints(&fixture.app, "web", body, &call()).await.unwrap_err();
    assert!(refused.full_message().contains("nothing to merge"), "{}", refused.full_message());
}

#[tokio::test]
async fn an_export_is_refused_where_it_would_mix_with_something() {
    let fixture = Fixture::new();
    fixture.machine("web").await;
    write(&fixture, 10, 1);
    create(&fixture, "one").await;
    write(&fixture, 10, 2);
    let export = |folder: PathBuf| {
        let body = CheckpointExport { folder, without_memory: false, skip_bad: false };
        export_checkpoint(&fixture.app, "web", "one", body, &CALL)
    };
    static CALL: std::sync::LazyLock<crate::app::Call> = std::sync::LazyLock::new(call);
    std::fs::create_dir(fixture.path("full")).unwrap();
    std::fs::write(fixture.path("full").join("x"), b"x").unwrap();
    assert_eq!(export(fixture.path("full")).await.unwrap_err().code(), ProblemCode::Exists);
    assert_eq!(export("relative".into()).await.unwrap_err().code(), ProblemCode::Invalid);

    let task = fixture.end(export(fixture.path("out")).await.unwrap()).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    let disk = fixture.path("out").join("Virtual Hard Disks/web.vhdx");
    assert_eq!(read(&disk, 10), 1);
    let raw = std::process::Command::new("7zz").args(["x", "-so", "-tvhdx"]).arg(&disk).output().unwrap();
    assert_eq!(raw.stdout[10 * 512], 1, "somebody else reads the same");
    let machine = web(&fixture);
    let config = fixture.path("out").join(format!("Virtual Machines/{}.xml", machine.id));
    let config = read_config(&config).unwrap();
    assert_eq!(config.id(), Some(machine.id));
    assert!(config.checkpoint_meta().is_none() && config.now_parent().is_none());
    assert_eq!(config.drive_path(machine.disks()[0].0), Some(disk));
}

/// A random history of a machine that is off, against a model of bytes. Prints its seed.
#[tokio::test]
async fn random_trees_keep_their_bytes() {
    for seed in 1..=4 {
        random_tree(seed, 24).await;
    }
}

async fn random_tree(seed: u64, steps: u32) {
    println!("seed {seed}");
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let fixture = Fixture::new();
    let base = fixture.machine("web").await.disks()[0].1.clone();
    let mut now: BTreeMap<u64, u8> = BTreeMap::new();
    let mut then: BTreeMap<String, BTreeMap<u64, u8>> = BTreeMap::new();
    for step in 0..steps {
        let pick = |n: usize| then.keys().nth(n % then.len().max(1)).cloned();
        match (random(6), pick(random(50))) {
            (0 | 1, _) | (_, None) => {
                let name = format!("c{step}");
                create(&fixture, &name).await;
                then.insert(name, now.clone());
            }
            (2, Some(name)) => {
                apply(&fixture, &name).await;
                now = then[&name].clone();
            }
            (3, Some(name)) => {
                delete(&fixture, &name, false).await;
                then.remove(&name);
            }
            (4, Some(name)) => {
                let machine = web(&fixture);
                let below = machine.checkpoints.subtree(machine.checkpoints.find(&name)[0].id);
                for id in below {
                    then.remove(&machine.checkpoints.get(id).unwrap().name);
                }
                delete(&fixture, &name, true).await;
            }
            (_, Some(_)) => {}
        }
        settled(&fixture).await;
        let (sector, value) =
            (u64::try_from(random(40)).unwrap() * 200, u8::try_from(random(250)).unwrap() + 1);
        write(&fixture, sector, value);
        now.insert(sector, value);

        let machine = web(&fixture);
        let names: BTreeSet<_> = machine.checkpoints.all().iter().map(|c| c.name.clone()).collect();
        assert_eq!(names, then.keys().cloned().collect(), "seed {seed} step {step}");
        for (name, bytes) in &then {
            let file = &machine.checkpoints.find(name)[0].disks[0].file;
            for (sector, value) in bytes {
                assert_eq!(read(file, *sector), *value, "seed {seed} step {step}: '{name}' at {sector}");
            }
        }
        for (sector, value) in &now {
            assert_eq!(
                read(&machine.disks()[0].1, *sector),
                *value,
                "seed {seed} step {step}: Now at {sector}"
            );
        }
    }
    for name in then.keys() {
        delete(&fixture, name, false).await;
    }
    settled(&fixture).await;
    assert_eq!(files(&fixture), BTreeSet::from([base]), "seed {seed}: all space came back");
}

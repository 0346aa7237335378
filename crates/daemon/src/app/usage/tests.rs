use crate::app::start::check_drives;
use crate::app::strangers::blockers;
use crate::app::testing::{Fixture, call};
use crate::app::{apply_checkpoint, create_checkpoint, create_vm, delete_vm, register};
use crate::disks;
use crate::inventory::Machine;
use backstay_api::{CheckpointApply, CheckpointCreate, ProblemCode, Task, TaskState, VmDelete, VmRegister};
use backstay_hyperv::{VmConfig, filetime_from_unix_ms};
use backstay_model::{DriveMedia, VmId, VmName};
use std::path::{Path, PathBuf};
use uuid::Uuid;

const CUT_OFF: &str = "<?xml version=\"1.0\"?><configuration>";

fn disk_of(machine: &Machine) -> PathBuf {
    machine.disks().remove(0).1
}

async fn checkpoint(fixture: &Fixture, vm: &str, name: &str) -> Task {
    let body = CheckpointCreate { name: Some(name.into()), ..CheckpointCreate::default() };
    let task = fixture.end(create_checkpoint(&fixture.app, vm, body, &call()).await.unwrap()).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    task
}

/// Another machine as `machine` is, with a disk of its own choosing, in a folder that nobody has registered.
fn copy_as(machine: &Machine, name: &str, disk: PathBuf, folder: &Path) -> PathBuf {
    let mut spec = (*machine.spec).clone();
    spec.id = VmId(Uuid::new_v4());
    spec.name = VmName::new(name).unwrap();
    spec.drives[0].media = DriveMedia::Disk(disk);
    std::fs::create_dir_all(folder.join("Virtual Machines")).unwrap();
    let file = folder.join(format!("Virtual Machines/{}.xml", spec.id));
    let config = VmConfig::new(&spec, filetime_from_unix_ms(0)).unwrap();
    std::fs::write(&file, config.to_bytes()).unwrap();
    file
}

#[tokio::test]
async fn what_an_unreadable_checkpoint_needs_is_not_deleted() {
    let mut fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    checkpoint(&fixture, "web", "a").await;
    checkpoint(&fixture, "web", "b").await;
    let now = fixture.app.inventory.find("web").unwrap();
    let b = now.checkpoints.find("b")[0].clone();
    let config = machine.layout.checkpoint_config(b.id);
    let whole = std::fs::read(&config).unwrap();
    std::fs::write(&config, CUT_OFF).unwrap();
    fixture.restart().await;

    let accepted = apply_checkpoint(
        &fixture.app,
        "web",
        "a",
        CheckpointApply { checkpoint_first: Some(false), ..CheckpointApply::default() },
        &call(),
    )
    .await;
    let task = fixture.end(accepted.unwrap()).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    let file = config.file_name().unwrap().to_str().unwrap();
    assert!(
        task.warnings.iter().any(|w| w.contains("no file of 'web' is merged or deleted") && w.contains(file)),
        "{task:?}"
    );
    assert!(b.disks[0].file.exists(), "the disk of the checkpoint that could not be read");

    std::fs::write(&config, whole).unwrap();
    fixture.restart().await;
    let accepted = apply_checkpoint(
        &fixture.app,
        "web",
        "b",
        CheckpointApply { checkpoint_first: Some(false), ..CheckpointApply::default() },
        &call(),
    )
    .await;
    assert_eq!(fixture.end(accepted.unwrap()).await.state, TaskState::Succeeded);
}

#[tokio::test]
async fn a_disk_that_an_unreadable_machine_may_need_is_not_deleted() {
    let mut fixture = Fixture::new();
    let child = fixture.path("child.vhd");
    let base = fixture.path("base.vhd");
    disks::create(&base, 8 << 20, backstay_api::DiskType::Dynamic).unwrap();
    disks::create_child(&base, &child).unwrap();
    let other = fixture.machine_with("other", Some(child.clone())).await;
    std::fs::rename(&other.config_file, fixture.path("aside")).unwrap();
    fixture.restart().await;
    fixture.machine_with("own", Some(base.clone())).await;
    std::fs::write(&other.config_file, CUT_OFF).unwrap();
    fixture.restart().await;

    let query = VmDelete { delete_disks: true, dry_run: false };
    let refused = delete_vm(&fixture.app, "own", query.clone(), &call()).await.unwrap_err();
    let words = refused.to_string();
    assert_eq!(refused.code(), ProblemCode::Precondition, "{words}");
    assert!(words.contains(other.config_file.to_str().unwrap()) && words.contains("keep the"), "{words}");
    assert!(base.exists());

    // Whoever moves the file away says that it does not count, and so with the disk that is made on it; no restart is needed.
    std::fs::remove_file(&other.config_file).unwrap();
    std::fs::remove_file(&child).unwrap();
    let task = fixture.end(delete_vm(&fixture.app, "own", query, &call()).await.unwrap()).await;
    assert_eq!((task.state, base.exists()), (TaskState::Succeeded, false), "{task:?}");
}

#[tokio::test]
async fn a_registered_folder_that_is_not_mounted_may_need_any_disk() {
    let mut fixture = Fixture::new();
    let own = fixture.machine("own").await;
    let template = fixture.machine("template").await;
    let folder = fixture.path("elsewhere");
    let config = copy_as(&template, "far", disk_of(&template), &folder);
    let accepted = delete_vm(&fixture.app, "template", VmDelete::default(), &call()).await.unwrap();
    fixture.end(accepted).await;
    let accepted = register(&fixture.app, VmRegister { path: config }, &call()).await;
    assert_eq!(fixture.end(accepted.unwrap()).await.state, TaskState::Succeeded);

    std::fs::rename(&folder, fixture.path("not-mounted")).unwrap();
    std::fs::create_dir(&folder).unwrap();
    fixture.restart().await;
    let query = VmDelete { delete_disks: true, dry_run: false };
    let refused = delete_vm(&fixture.app, "own", query.clone(), &call()).await.unwrap_err();
    assert!(refused.to_string().contains("mount its file system"), "{refused}");

    std::fs::remove_dir(&folder).unwrap();
    std::fs::rename(fixture.path("not-mounted"), &folder).unwrap();
    let accepted = register(&fixture.app, VmRegister { path: folder }, &call()).await;
    assert_eq!(fixture.end(accepted.unwrap()).await.state, TaskState::Succeeded);
    let task = fixture.end(delete_vm(&fixture.app, "own", query, &call()).await.unwrap()).await;
    assert_eq!((task.state, disk_of(&own).exists()), (TaskState::Succeeded, false), "{task:?}");
}

#[tokio::test]
async fn what_a_machine_writes_to_is_no_parent_of_anothers_disk() {
    let fixture = Fixture::new();
    let top = disk_of(&fixture.machine("template").await);
    let child = fixture.path("child.vhdx");
    disks::create_child(&top, &child).unwrap();
    let request = || Fixture::request("copy", Some(child.clone()));
    let refused = create_vm(&fixture.app, request(), &call()).await.unwrap_err();
    let words = refused.full_message();
    assert_eq!(refused.code(), ProblemCode::InUse, "{words}");
    assert!(words.contains("'template'") && words.contains("checkpoint"), "{words}");

    // After the cure the file is a parent for both.
    checkpoint(&fixture, "template", "c").await;
    let task = fixture.end(create_vm(&fixture.app, request(), &call()).await.unwrap()).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    for name in ["copy", "template"] {
        let machine = fixture.app.inventory.find(name).unwrap();
        let (_, blockers) = check_drives(&fixture.app, &machine).await.unwrap();
        assert!(blockers.is_empty(), "{name}: {blockers:?}");
    }
}

#[tokio::test]
async fn a_disk_that_nobody_has_keeps_its_parent_from_being_written_and_deleted() {
    let fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    let top = disk_of(&machine);
    assert_eq!(blockers(&fixture.app, &machine).await.unwrap(), []);
    // A copy of the disk has the same id, and a child of that copy is nobody's concern.
    let copies = top.parent().unwrap().join("copies");
    std::fs::create_dir(&copies).unwrap();
    let copy = copies.join(top.file_name().unwrap());
    std::fs::copy(&top, &copy).unwrap();
    disks::create_child(&copy, &top.with_file_name("of-the-copy.vhdx")).unwrap();
    assert_eq!(blockers(&fixture.app, &machine).await.unwrap(), []);
    let child = top.with_file_name("by-hand.vhdx");
    disks::create_child(&top, &child).unwrap();
    let found = blockers(&fixture.app, &machine).await.unwrap();
    let named =
        |path: &Path| found.iter().filter(|b| b.detail.starts_with(&path.display().to_string())).count();
    assert_eq!(named(&child), 1, "{found:?}");

    let query = VmDelete { delete_disks: true, dry_run: false };
    let task = fixture.end(delete_vm(&fixture.app, "web", query, &call()).await.unwrap()).await;
    assert_eq!((task.state, top.exists(), child.exists()), (TaskState::Succeeded, true, true), "{task:?}");
    assert!(format!("{task:?}").contains("by-hand.vhdx is made on it"), "{task:?}");
}

#[tokio::test]
async fn neither_machine_starts_when_one_writes_to_the_others_parent() {
    let fixture = Fixture::new();
    let top = disk_of(&fixture.machine("template").await);
    let copy = fixture.machine("copy").await;
    // Behind the daemon's back.
    std::fs::remove_file(disk_of(&copy)).unwrap();
    disks::create_child(&top, &disk_of(&copy)).unwrap();
    for (name, other) in [("copy", "'template'"), ("template", "'copy'")] {
        let machine = fixture.app.inventory.find(name).unwrap();
        let (_, blockers) = check_drives(&fixture.app, &machine).await.unwrap();
        assert!(blockers.len() == 1 && blockers[0].detail.contains(other), "{name}: {blockers:?}");
    }
}

#[tokio::test]
async fn of_two_machines_that_are_made_at_once_one_gets_the_disk() {
    let fixture = Fixture::new();
    let disk = fixture.path("one.vhd");
    disks::create(&disk, 8 << 20, backstay_api::DiskType::Dynamic).unwrap();
    let make = |name: &str| {
        let (app, request) = (&fixture.app, Fixture::request(name, Some(disk.clone())));
        async move { create_vm(app, request, &call()).await.unwrap() }
    };
    let (first, second) = tokio::join!(make("first"), make("second"));
    let tasks = [fixture.end(first).await, fixture.end(second).await];
    let failed: Vec<_> = tasks.iter().filter(|t| t.state == TaskState::Failed).collect();
    assert_eq!(failed.len(), 1, "{tasks:?}");
    let problem = failed[0].error.as_ref().unwrap();
    assert!(problem.code == ProblemCode::InUse && problem.to_string().contains("is used by"), "{problem}");
    assert_eq!(fixture.app.inventory.all().len(), 1);
}

#[tokio::test]
async fn a_machine_with_a_disk_of_another_one_is_not_registered() {
    let fixture = Fixture::new();
    let web = fixture.machine("web").await;
    let folder = fixture.path("folder");
    let twin = copy_as(&web, "twin", disk_of(&web), &folder);
    let refused = register(&fixture.app, VmRegister { path: folder.clone() }, &call()).await;
    let blockers = refused.unwrap_err().to_problem().blockers;
    assert_eq!(blockers.len(), 1, "{blockers:?}");
    assert!(blockers[0].detail.contains("'twin'") && blockers[0].detail.contains("'web'"), "{blockers:?}");
    std::fs::remove_file(twin).unwrap();

    // Two machines of the folder with one disk.
    let disk = fixture.path("own.vhd");
    disks::create(&disk, 8 << 20, backstay_api::DiskType::Dynamic).unwrap();
    copy_as(&web, "second", disk.clone(), &folder);
    let third = copy_as(&web, "third", disk, &folder);
    let refused = register(&fixture.app, VmRegister { path: folder.clone() }, &call()).await;
    let blockers = refused.unwrap_err().to_problem().blockers;
    assert!(blockers.len() == 1 && blockers[0].detail.contains("also the disk of"), "{blockers:?}");
    std::fs::remove_file(third).unwrap();
    let accepted = register(&fixture.app, VmRegister { path: folder }, &call()).await;
    assert_eq!(fixture.end(accepted.unwrap()).await.state, TaskState::Succeeded);
}

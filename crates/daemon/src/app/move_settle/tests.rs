use super::*;
use crate::app::testing::{Fixture, call, read};
use crate::app::{move_disk, start_vm};
use backstay_api::{DiskMove, DiskType, TaskState, VmStart};

#[test]
fn the_files_tell_what_became_of_a_move() {
    let seen = |folder, new, old| Seen { folder, new, old };
    assert_eq!(fate(seen(true, true, false), false), Some(Fate::Moved));
    assert_eq!(fate(seen(true, true, true), true), Some(Fate::Found));
    assert_eq!(fate(seen(true, true, true), false), Some(Fate::Stays), "somebody else's");
    assert_eq!(fate(seen(true, false, true), false), Some(Fate::Stays));
    assert_eq!(fate(seen(false, false, true), false), None, "its volume is away");
    assert_eq!(fate(seen(true, false, false), false), None, "both are away");
    assert_eq!(fate(seen(false, false, false), false), None);
}

/// A machine whose daemon died while its disk moved, and the two files.
async fn moving(fixture: &Fixture) -> (VmId, PathBuf, PathBuf) {
    let machine = fixture.machine("web").await;
    fixture.write("web", 10, 5);
    let (slot, from) = machine.disks().remove(0);
    let folder = fixture.path("there");
    std::fs::create_dir_all(&folder).unwrap();
    let to = folder.join(from.file_name().unwrap());
    let mut config = (*fixture.app.inventory.get(machine.id).unwrap().config).clone();
    config.set_moving(Some(&LayerStep { slot, from: from.clone(), to: to.clone() })).unwrap();
    let now = fixture.app.inventory.get(machine.id).unwrap();
    fixture.app.inventory.save(&now, config).await.unwrap();
    (machine.id, from, to)
}

fn disk_of(fixture: &Fixture, id: VmId) -> PathBuf {
    fixture.app.inventory.get(id).unwrap().disks().remove(0).1
}

#[tokio::test]
async fn after_a_power_cut_the_disk_is_where_its_last_bytes_are() {
    // Right before the switch.
    let mut fixture = Fixture::new();
    let (id, from, to) = moving(&fixture).await;
    let unfinished = to.with_file_name(".backstay-0123456789abcdef.part");
    std::fs::write(&unfinished, "half").unwrap();
    fixture.restart().await;
    assert_eq!(disk_of(&fixture, id), from);
    assert!(!unfinished.exists(), "nothing is left of it");

    // Between the new name and the end of the old file.
    let mut fixture = Fixture::new();
    let (id, from, to) = moving(&fixture).await;
    std::fs::copy(&from, &to).unwrap();
    fixture.restart().await;
    assert!(disk_of(&fixture, id) == to && from.exists());
    let history = fixture.app.events.list(Some(id), None, None, 20).await.unwrap();
    assert!(history.iter().any(|event| event.kind == "disk.moved" && event.reason.contains("is kept")));

    // After it.
    let mut fixture = Fixture::new();
    let (id, from, to) = moving(&fixture).await;
    std::fs::rename(&from, &to).unwrap();
    fixture.restart().await;
    assert_eq!(disk_of(&fixture, id), to);
    assert_eq!(read(&to, 10), 5);
}

/// Else the machine would start from a disk that lacks what was flushed after the switch.
#[tokio::test]
async fn nothing_starts_while_the_volume_of_a_moved_disk_is_away() {
    let mut fixture = Fixture::new();
    let (id, from, to) = moving(&fixture).await;
    std::fs::rename(&from, &to).unwrap();
    let (there, away) = (fixture.path("there"), fixture.path("away"));
    std::fs::rename(&there, &away).unwrap();
    fixture.restart().await;
    let moving = || fixture.app.inventory.get(id).unwrap().config.moving();
    assert!(moving().is_some(), "nobody can tell yet");
    let started = start_vm(&fixture.app, "web", VmStart::default(), &call()).await;
    let refused = match started {
        Ok(accepted) => fixture.end(accepted).await.error.unwrap().detail,
        Err(failure) => failure.full_message(),
    };
    assert!(refused.contains("neither") && refused.contains("mount"), "{refused}");
    assert!(moving().is_some());
    std::fs::rename(&away, &there).unwrap();
    let settled = settle_move(&fixture.app, id).await.unwrap();
    assert!(settled.config.moving().is_none());
    assert_eq!(disk_of(&fixture, id), to);
}

#[tokio::test]
async fn a_file_that_somebody_else_made_is_not_taken_for_the_disk() {
    let mut fixture = Fixture::new();
    let (id, from, to) = moving(&fixture).await;
    crate::disks::create(&to, 8 << 20, DiskType::Dynamic).unwrap();
    fixture.restart().await;
    assert_eq!(disk_of(&fixture, id), from);
    assert!(to.exists());
    assert_eq!(read(&from, 10), 5);
}

#[tokio::test]
async fn a_disk_that_others_are_made_on_is_not_moved_away_from_them() {
    let fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    let (slot, from) = machine.disks().remove(0);
    let child = from.with_file_name("child.vhdx");
    crate::disks::create_child(&from, &child).unwrap();
    let body = DiskMove { slot, folder: fixture.path("there") };
    let refused = move_disk(&fixture.app, "web", body.clone(), &call()).await.unwrap_err().full_message();
    assert!(refused.contains("child.vhdx"), "{refused}");
    std::fs::remove_file(&child).unwrap();
    let moved = fixture.end(move_disk(&fixture.app, "web", body, &call()).await.unwrap()).await;
    assert_eq!(moved.state, TaskState::Succeeded, "{moved:?}");
    assert!(!from.exists() && fixture.path("there").join(from.file_name().unwrap()).exists());
}

use crate::app::testing::{Fixture, read};
use crate::app::update_vm;
use crate::disks;
use std::path::Path;

/// A machine whose first disk and whose layers lie in different folders, with one checkpoint of it.
async fn fixture() -> (Fixture, std::path::PathBuf) {
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.path("far")).unwrap();
    let base = fixture.path("far").join("base.vhd");
    disks::create(&base, 8 << 20, backstay_api::DiskType::Dynamic).unwrap();
    fixture.machine_with("web", Some(base.clone())).await;
    fixture.write("web", 10, 1);
    fixture.checkpoint("web", "one").await;
    (fixture, base)
}

/// Makes the table of a differencing disk point into its own head: whoever opens the disk refuses it.
fn damage(disk: &Path) {
    let mut bytes = std::fs::read(disk).unwrap();
    // The header at 512 says where the table is; a block at sector 0 is one over the head of the file.
    let table = usize::try_from(u64::from_be_bytes(bytes[528..536].try_into().unwrap())).unwrap();
    bytes[table..table + 4].fill(0);
    std::fs::write(disk, bytes).unwrap();
    assert!(disks::probe(disk).is_err());
}

#[tokio::test]
async fn a_child_that_nobody_has_attached_keeps_its_parent_wherever_it_lies() {
    for place in ["beside the layers", "among the disks", "beside the file"] {
        let (fixture, base) = fixture().await;
        let machine = fixture.app.inventory.find("web").unwrap();
        let folder = match place {
            "beside the layers" => machine.layout.layers(machine.id),
            "among the disks" => machine.layout.disks(),
            _ => fixture.path("far"),
        };
        std::fs::create_dir_all(&folder).unwrap();
        let child = folder.join("by-hand.vhd");
        disks::create_child(&base, &child).unwrap();
        fixture.write("web", 10, 2);
        let done = fixture.merged("web", "one").await;
        assert_eq!((done.merged, done.kept.len()), (0, 1), "{place}: {done:?}");
        assert!(done.kept[0].reason.contains("by-hand.vhd"), "{place}: {done:?}");
        assert_eq!(read(&child, 10), 1, "{place}");
    }
}

/// It may be repaired, and then it needs what it was made on.
#[tokio::test]
async fn a_child_that_cannot_be_opened_keeps_its_parent() {
    let (fixture, base) = fixture().await;
    let child = fixture.path("far").join("child.vhd");
    disks::create_child(&base, &child).unwrap();
    let whole = std::fs::read(&child).unwrap();
    damage(&child);
    fixture.write("web", 10, 2);
    let done = fixture.merged("web", "one").await;
    assert_eq!((done.merged, done.kept.len()), (0, 1), "{done:?}");
    assert!(done.kept[0].reason.contains("child.vhd"), "{done:?}");
    std::fs::write(&child, whole).unwrap();
    assert_eq!(read(&child, 10), 1);
}

/// The layer of a disk that was detached: nothing but the file itself says what it is made on.
#[tokio::test]
async fn a_detached_layer_that_cannot_be_opened_keeps_its_parent() {
    let (fixture, base) = fixture().await;
    let (slot, top) = fixture.app.inventory.find("web").unwrap().disks().remove(0);
    let body = serde_json::from_value(serde_json::json!({ "remove_drives": [slot] })).unwrap();
    let task =
        fixture.end(update_vm(&fixture.app, "web", body, &crate::app::testing::call()).await.unwrap()).await;
    assert!(task.error.is_none(), "{task:?}");
    let whole = std::fs::read(&top).unwrap();
    damage(&top);
    // A released file without a child would be forgotten.
    let machine = fixture.app.inventory.find("web").unwrap();
    let done = fixture.merged("web", "one").await;
    assert_eq!(done.deleted, 0, "{done:?}");
    assert_eq!(fixture.app.inventory.get(machine.id).unwrap().config.released().len(), 1, "{done:?}");
    std::fs::write(&top, whole).unwrap();
    assert_eq!((read(&top, 10), read(&base, 10)), (1, 1));
}

#[tokio::test]
async fn a_file_of_which_nobody_can_tell_whose_child_it_is_stops_merges_until_it_is_gone() {
    let (fixture, base) = fixture().await;
    let child = fixture.path("far").join("child.vhd");
    disks::create_child(&base, &child).unwrap();
    let mut bytes = std::fs::read(&child).unwrap();
    bytes[512 + 0x28] ^= 1;
    std::fs::write(&child, bytes).unwrap();
    fixture.write("web", 10, 2);
    let merge = fixture.delete("web", "one", backstay_api::CheckpointDelete::default()).await.unwrap();
    fixture.told(merge, "child.vhd").await;
    assert_eq!(read(&base, 10), 1, "nothing was merged");
    std::fs::remove_file(&child).unwrap();
    // Whatever may have set files free makes it look again; the pause alone would take some time.
    crate::app::kick_merges(&fixture.app);
    let merge = fixture.app.tasks.wait(merge, u64::MAX, std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(merge.state, backstay_api::TaskState::Succeeded, "{merge:?}");
    assert_eq!(read(&base, 10), 2);
}

/// Two names of one file: the other machine's chain names it by the other one.
#[tokio::test]
async fn a_file_that_another_machine_knows_by_another_name_stays() {
    let (fixture, base) = fixture().await;
    std::fs::create_dir(fixture.path("linked")).unwrap();
    let link = fixture.path("linked").join("template.vhd");
    std::fs::hard_link(&base, &link).unwrap();
    let child = fixture.path("linked").join("child.vhd");
    disks::create_child(&link, &child).unwrap();
    fixture.machine_with("clone", Some(child.clone())).await;
    fixture.write("web", 10, 2);
    let done = fixture.merged("web", "one").await;
    assert_eq!((done.merged, done.deleted), (0, 0), "{done:?}");
    assert!(done.kept[0].reason.contains("'clone' uses it"), "{done:?}");
    assert_eq!(read(&child, 10), 1);

    // Nor does anybody get it as a disk to write to.
    let other = fixture.path("other.vhd");
    std::fs::hard_link(&child, &other).unwrap();
    let refused = crate::app::create_vm(
        &fixture.app,
        Fixture::request("twin", Some(other)),
        &crate::app::testing::call(),
    )
    .await;
    assert!(refused.unwrap_err().full_message().contains("'clone'"));
}

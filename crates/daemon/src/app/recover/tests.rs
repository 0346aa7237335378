use crate::app::rename_vm;
use crate::app::testing::{Fixture, call};
use crate::app::usage::chain_of;
use backstay_api::{ProblemCode, TaskState};
use backstay_model::VmState;
use backstay_worker::control::{EventFrame, WorkerEvent};

/// The file system with the disk is not mounted, and there is a file of the disk's name where new disks are made.
#[tokio::test]
async fn a_missing_disk_is_missing_and_never_another_file_of_its_name() {
    let mut fixture = Fixture::new();
    let other = fixture.machine("data").await;
    let (san, unmounted) = (fixture.path("san"), fixture.path("unmounted"));
    std::fs::create_dir(&san).unwrap();
    let disks = [san.join("data.vhdx"), san.join("stale.vhdx")];
    for (name, disk) in ["ra", "rb"].iter().zip(&disks) {
        std::fs::copy(&other.disks()[0].1, disk).unwrap();
        fixture.machine_with(name, Some(disk.clone())).await;
    }
    std::fs::copy(&other.disks()[0].1, other.layout.disks().join("stale.vhdx")).unwrap();
    std::fs::rename(&san, &unmounted).unwrap();

    fixture.restart().await;
    for (name, disk) in ["ra", "rb"].iter().zip(&disks) {
        let machine = fixture.app.inventory.find(name).unwrap();
        assert_eq!(machine.disks()[0].1, *disk);
        let missing = chain_of(&fixture.app, &machine.disks()[0].1).await.unwrap_err();
        assert_eq!(missing.code(), ProblemCode::NotFound);
        assert!(missing.full_message().contains(disk.to_str().unwrap()), "{}", missing.full_message());
        let body = serde_json::from_value(serde_json::json!({ "name": format!("{name}-2") })).unwrap();
        let task = fixture.end(rename_vm(&fixture.app, name, body, &call()).await.unwrap()).await;
        assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    }

    std::fs::rename(&unmounted, &san).unwrap();
    fixture.restart().await;
    for (name, disk) in ["ra-2", "rb-2"].iter().zip(&disks) {
        assert_eq!(fixture.app.inventory.find(name).unwrap().disks()[0].1, *disk);
    }
}

/// The worker put its record away, and no daemon heard it.
#[tokio::test]
async fn a_machine_that_failed_without_a_daemon_is_known_with_its_reason() {
    let mut fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    fixture.app.store.set_boot(machine.id, "the boot before".into()).await.unwrap();
    let folder = fixture.app.workers.run_folder(machine.id);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("ended.json"), b"{}").unwrap();
    let state = |from, to, reason: &str| WorkerEvent::State { from, to, reason: reason.into() };
    let died = WorkerEvent::QemuDied { reason: "killed".into(), log: Vec::new(), action: "nothing".into() };
    let events = [
        state(VmState::Starting, VmState::Running, "booted"),
        died,
        state(VmState::Running, VmState::Failed, "QEMU was killed"),
    ];
    let line = |(event, seq): (WorkerEvent, u64)| {
        serde_json::to_string(&EventFrame { seq, at_unix_ms: 1, event }).unwrap() + "\n"
    };
    let lines: String = events.into_iter().zip(1..).map(line).collect();
    std::fs::write(folder.join("events.jsonl"), lines).unwrap();

    // Twice: what is in the history already is not told again, but the state is still known.
    for _ in 0..2 {
        fixture.restart().await;
        let now = fixture.app.inventory.get(machine.id).unwrap();
        assert_eq!(now.state, VmState::Failed);
        assert_eq!(now.reason.as_deref(), Some("QEMU was killed"));
        let history = fixture.app.events.list(Some(machine.id), None, None, 20).await.unwrap();
        let of = |kind: &str| history.iter().filter(|event| event.kind == kind).count();
        assert_eq!((of("vm.state"), of("vm.qemu-died")), (2, 1), "{history:?}");
        let (_, boot) = fixture.app.store.runtime(machine.id).await.unwrap().unwrap();
        assert_eq!(boot, "", "it is not to be started with the host");
        assert_eq!(of("vm.start-failed"), 0, "{history:?}");
    }
}

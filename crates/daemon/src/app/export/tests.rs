use super::*;
use crate::app::testing::{Fixture, call, read};
use crate::inventory::read_config;
use backstay_api::TaskState;
use backstay_hyperv::CheckpointMeta;
use backstay_model::MemoryMethod;
use backstay_worker::file_facts;

/// Gives the checkpoint of a machine that is off a memory that only another host could load.
fn remember(machine: &Machine, checkpoint: &Checkpoint) {
    let layout = &machine.layout;
    let memory = layout.checkpoint_memory(checkpoint.id);
    std::fs::create_dir_all(layout.checkpoint_folder(checkpoint.id)).unwrap();
    std::fs::write(&memory, b"what QEMU wrote").unwrap();
    let facts = file_facts(&memory).unwrap().unwrap();
    let descriptor = serde_json::json!({
        "format": "backstay-saved-state", "version": 1, "vm": machine.id, "checkpoint": checkpoint.id, "created_unix_ms": 0,
        "qemu_version": "99.0.0", "accelerator": "kvm",
        "hardware": { "machine_type": "pc-i440fx-99.0", "cpu_model": "host", "cpus": 1, "memory_mib": 16, "devices": [] },
        "running": true, "method": MemoryMethod::Stopped, "capabilities": [], "stream": "mapped-ram",
        "stream_len": facts.len, "file_len": facts.len, "crc32c": facts.crc32c, "disks": [], "files": [],
    });
    let written = layout.checkpoint_descriptor(checkpoint.id);
    std::fs::write(&written, serde_json::to_vec(&descriptor).unwrap()).unwrap();
    read_descriptor(&written).unwrap();
    let file = layout.checkpoint_config(checkpoint.id);
    let mut config = read_config(&file).unwrap();
    let meta = config.checkpoint_meta().unwrap();
    let meta = CheckpointMeta { has_memory: true, method: Some(MemoryMethod::Stopped), ..meta };
    config.set_checkpoint_meta(Some(&meta)).unwrap();
    std::fs::write(&file, config.to_bytes()).unwrap();
}

#[tokio::test]
async fn a_memory_that_cannot_be_loaded_here_is_exported_if_it_is_whole() {
    let mut fixture = Fixture::new();
    fixture.machine("web").await;
    fixture.checkpoint("web", "one").await;
    let machine = fixture.app.inventory.find("web").unwrap();
    let checkpoint = machine.checkpoints.find("one")[0].clone();
    remember(&machine, &checkpoint);
    fixture.restart().await;
    let export = async |name: &str| {
        let body = CheckpointExport { folder: fixture.path(name), without_memory: false, skip_bad: false };
        export_checkpoint(&fixture.app, "web", "one", body, &call()).await
    };
    let task =
        fixture.end(export("out").await.unwrap_or_else(|refused| panic!("{}", refused.full_message()))).await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    let to = Layout::new(fixture.path("out"));
    assert_eq!(std::fs::read(to.vm_memory(machine.id)).unwrap(), b"what QEMU wrote");
    assert!(to.vm_descriptor(machine.id).exists());

    std::fs::write(machine.layout.checkpoint_memory(checkpoint.id), b"what QEMU wrotE").unwrap();
    let refused = export("damaged").await.unwrap_err().to_problem();
    assert_eq!(refused.code, ProblemCode::NotRestorable, "{refused}");
    assert!(refused.blockers[0].detail.contains("is damaged"), "{refused}");
}

/// As a daemon leaves it that is killed in the middle.
#[tokio::test]
async fn half_an_export_is_cleared_up_and_a_whole_one_stays() {
    let mut fixture = Fixture::new();
    let machine = fixture.machine("web").await;
    fixture.checkpoint("web", "one").await;
    let body =
        |name: &str| CheckpointExport { folder: fixture.path(name), without_memory: false, skip_bad: false };
    let now = fixture.app.inventory.find("web").unwrap();
    let target = now.checkpoints.find("one")[0].clone();
    let half = decide(&fixture.app, &now, &target, &body("half")).await.unwrap();
    let task = fixture
        .end(export_checkpoint(&fixture.app, "web", "one", body("whole"), &call()).await.unwrap())
        .await;
    assert_eq!(task.state, TaskState::Succeeded, "{task:?}");
    let whole = decide(&fixture.app, &now, &target, &body("x")).await.unwrap();
    let whole = Export { layout: Layout::new(fixture.path("whole")), disks: Vec::new(), ..whole };

    let name = half.disks[0].2.file_name().unwrap().to_owned();
    std::fs::create_dir_all(half.layout.disks()).unwrap();
    std::fs::create_dir_all(half.layout.machines()).unwrap();
    std::fs::write(&half.disks[0].2, b"a part").unwrap();
    std::fs::write(half.layout.disks().join(".backstay-0123456789abcdef.part"), b"a part").unwrap();
    for export in [half, whole] {
        let caller = crate::tasks::Caller::backstay();
        let mut spec = vm_task("checkpoint.export", &machine);
        spec.holds = Vec::new();
        let note = export.note(machine.id);
        let (noted, is_noted) = tokio::sync::oneshot::channel();
        let task = fixture.app.tasks.start(spec, &caller, async move |context: TaskContext| {
            context.note(&note).await;
            let _ = noted.send(());
            std::future::pending().await
        });
        task.await.unwrap();
        is_noted.await.unwrap();
    }
    fixture.restart().await;
    assert!(!fixture.path("half").exists(), "the folder is free for the next attempt");
    assert!(Layout::new(fixture.path("whole")).vm_config(machine.id).exists());
    assert_eq!(read(&Layout::new(fixture.path("whole")).disks().join(name), 10), 0);
}

//! Disks that come and go while the guest runs: what a worker finds that takes over in the middle, and limits.

#![expect(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use backstay_disk::{Disk, DiskOptions, NewDisk};
use backstay_model::{DriveMedia, DriveSlot, DriveSpec, IoLimit};
use backstay_qemu::argv::device_id;
use backstay_qemu::qmp::Qmp;
use backstay_worker::control::{DiskLimit, DiskStatus, LaunchRecord, Reply, Request, WorkerEvent};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::{PATIENCE, Running, Vm, create};

const SLOT: DriveSlot = DriveSlot::Scsi { controller: 0, lun: 3 };

/// A machine that runs and has a SCSI controller without a disk, and a disk for it.
async fn machine() -> (Vm, Running, DriveSpec) {
    let mut vm = Vm::new("virtio");
    vm.record.spec.scsi_controllers = [0].into();
    let path = vm.path("more.vhd");
    create(&path, &NewDisk::Dynamic { size: 8 << 20, block_size: 2 << 20 });
    let run = vm.launch().await;
    run.booted().await;
    (vm, run, DriveSpec::new(SLOT, DriveMedia::Disk(path)))
}

async fn disks(run: &Running) -> (Vec<DiskStatus>, Vec<DriveSlot>) {
    match run.call(Request::Disks).await {
        Reply::Disks { disks, removed } => (disks, removed),
        other => panic!("{other:?}"),
    }
}

async fn has(run: &Running) -> bool {
    disks(run).await.0.iter().any(|disk| disk.slot == SLOT)
}

fn path_of(drive: &DriveSpec) -> PathBuf {
    let DriveMedia::Disk(path) = &drive.media else { panic!("no disk") };
    path.clone()
}

fn edit(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(file, serde_json::to_vec(&value).unwrap()).unwrap();
}

/// Another worker takes over after one that died while the disk came or went.
async fn take_over(vm: &mut Vm, mut run: Running, comes: bool, record: impl FnOnce(&mut Value)) -> Running {
    vm.kill_worker();
    run.gone().await;
    edit(&vm.run_dir().join("instance.json"), |instance| {
        instance["plugging"] = json!({ "slot": SLOT, "comes": comes });
    });
    edit(&vm.run_dir().join("launch.json"), record);
    let mut run = vm.respawn().await;
    run.event(|frame| matches!(frame.event, WorkerEvent::Adopted { .. }).then_some(())).await;
    run
}

fn recorded(vm: &Vm) -> bool {
    let record = std::fs::read(vm.run_dir().join("launch.json")).unwrap();
    let record: LaunchRecord = serde_json::from_slice(&record).unwrap();
    record.spec.drive(SLOT).is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_comes_is_limited_survives_its_worker_and_goes() {
    let (mut vm, run, drive) = machine().await;
    let add = Request::AddDisk { drive: drive.clone() };
    run.call(add.clone()).await;
    assert!(has(&run).await);
    let refused = run.try_call(add.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("already"), "{refused}");
    let limit = IoLimit { iops: Some(200), bytes_per_second: None };
    run.call(Request::SetDiskLimits { limits: vec![DiskLimit { slot: SLOT, limit }] }).await;
    // It came whole, whatever the record says of its way.
    let run = take_over(&mut vm, run, true, |_| {}).await;
    let (found, _) = disks(&run).await;
    assert_eq!(found.iter().find(|disk| disk.slot == SLOT).unwrap().limit, limit);
    let run = take_over(&mut vm, run, false, |_| {}).await;
    assert!(has(&run).await && recorded(&vm), "the guest has it still");

    run.call(Request::RemoveDisk { slot: SLOT }).await;
    assert!(!has(&run).await && !recorded(&vm));
    assert_eq!(disks(&run).await.1, [SLOT]);
    Disk::open(&path_of(&drive), DiskOptions::default()).unwrap().close().unwrap();
    run.call(add).await;
    assert_eq!(disks(&run).await.1, []);
    let mut run = run;
    run.turn_off().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_the_guest_never_got_is_let_go() {
    let (mut vm, run, drive) = machine().await;
    let added = serde_json::to_value(&drive).unwrap();
    let run = take_over(&mut vm, run, true, |record| {
        record["spec"]["drives"].as_array_mut().unwrap().push(added);
    })
    .await;
    assert!(!has(&run).await && !recorded(&vm));
    assert_eq!(disks(&run).await.1, [], "it was never there");
    run.call(Request::AddDisk { drive }).await;
    assert!(has(&run).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_the_guest_let_go_of_is_let_go() {
    let (mut vm, mut run, drive) = machine().await;
    run.call(Request::AddDisk { drive: drive.clone() }).await;
    vm.kill_worker();
    run.gone().await;
    let qmp = Qmp::connect(&vm.run_dir().join("qmp2.sock"), PATIENCE).await.unwrap();
    let mut events = qmp.events();
    qmp.device_del(&device_id(SLOT)).await.unwrap();
    while events.recv().await.unwrap().data["device"] != device_id(SLOT) {}
    drop(qmp);
    edit(&vm.run_dir().join("instance.json"), |instance| {
        instance["plugging"] = json!({ "slot": SLOT, "comes": false });
    });
    let mut run = vm.respawn().await;
    run.event(|frame| matches!(frame.event, WorkerEvent::Adopted { .. }).then_some(())).await;
    assert!(!has(&run).await && !recorded(&vm));
    assert_eq!(disks(&run).await.1, [SLOT]);
    run.call(Request::AddDisk { drive }).await;
}

//! Disks that are away, looked at by others, or left in the middle of a step.

#![expect(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use backstay_disk::fs::HostFs;
use backstay_disk::{Backend, Disk, DiskOptions, Identity, NewDisk, NewDiskPlan};
use backstay_model::VmState;
use backstay_qemu::paths::RunPaths;
use backstay_qemu::process::adopt;
use backstay_qemu::testing::filled;
use backstay_worker::Tops;
use backstay_worker::control::{Request, WorkerEvent};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::{PATIENCE, Running, Vm, kill};

fn sector(path: &Path, options: DiskOptions, lba: u64) -> u8 {
    let disk = Disk::open(path, options).unwrap();
    let mut bytes = [0; 512];
    disk.read(lba * 512, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

async fn adopted(run: &mut Running) {
    run.event(|frame| matches!(frame.event, WorkerEvent::Adopted { .. }).then_some(())).await;
}

/// A machine with a checkpoint whose worker has died and whose second disk is away since. Returns where it was and is.
async fn without_its_disk(vm: &mut Vm) -> (Running, PathBuf, PathBuf) {
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    guest.write(1, 50, 0xAA).await.unwrap();
    let request = vm.request("one");
    run.checkpoint(&request).await;
    guest.write(1, 50, 0xBB).await.unwrap();
    let (top, aside) = (request.disks[1].to.clone(), vm.path("aside"));
    vm.kill_worker();
    run.gone().await;
    std::fs::rename(&top, &aside).unwrap();
    let mut run = vm.respawn().await;
    let reason = run.state(VmState::PausedCritical).await;
    assert!(reason.contains(top.to_str().unwrap()), "{reason}");
    (run, top, aside)
}

/// The checkpoint's file is there and could be opened in its place: the guest would read old data and write into it.
#[tokio::test(flavor = "multi_thread")]
async fn a_top_that_is_away_is_waited_for_and_nothing_takes_its_place() {
    let mut vm = Vm::new("virtio");
    let (mut run, top, aside) = without_its_disk(&mut vm).await;
    let status = run.status().await;
    assert_eq!(status.state, VmState::PausedCritical);
    assert!(status.reason.unwrap().contains(top.to_str().unwrap()));
    let refused = run.try_call(Request::Pause).await.unwrap_err().to_string();
    assert!(refused.contains("stands still") && refused.contains(top.to_str().unwrap()), "{refused}");

    std::fs::rename(&aside, &top).unwrap();
    adopted(&mut run).await;
    let mut guest = run.guest().await;
    assert_eq!(guest.read(1, 50).await.unwrap(), filled(0xBB));
    guest.write(1, 51, 0xCC).await.unwrap();
    assert_eq!(run.status().await.state, VmState::Running);
    run.turn_off().await;
    let checkpoint = vm.disk(1);
    assert_eq!(sector(&checkpoint, DiskOptions::read_only(), 50), 0xAA);
    assert_eq!(sector(&checkpoint, DiskOptions::read_only(), 51), 0);
    assert_eq!(sector(&top, DiskOptions::read_only(), 51), 0xCC);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_disk_is_away_can_be_turned_off() {
    let mut vm = Vm::new("ide");
    let (mut run, _, _) = without_its_disk(&mut vm).await;
    run.call(Request::TurnOff).await;
    assert_eq!(run.state(VmState::Off).await, "turned off");
    run.gone().await;
    assert!(adopt(&RunPaths::new(vm.run_dir()).unwrap()).unwrap().is_none(), "QEMU lives");
    assert!(!vm.run_dir().join("launch.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_ends_while_its_disk_is_away_is_told() {
    let mut vm = Vm::new("ide");
    let (mut run, top, _) = without_its_disk(&mut vm).await;
    kill(run.status().await.qemu_pid.unwrap());
    run.event(|frame| matches!(frame.event, WorkerEvent::QemuDied { .. }).then_some(())).await;
    let reason = run.state(VmState::Failed).await;
    assert!(reason.contains(top.to_str().unwrap()), "{reason}");
    run.gone().await;
}

/// The children exist, the old tops were not flushed yet: what is only beside them must get into them, because later
/// flushes reach the children only. (On virtio this guest's firmware has every write flushed.)
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_the_middle_of_a_step_leaves_no_write_behind() {
    let mut vm = Vm::new("ide");
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    let base = vm.request("base");
    run.checkpoint(&base).await;
    vm.stepped(&base);
    guest.write(1, 70, 0xF7).await.unwrap();
    vm.kill_worker();
    run.gone().await;

    let (fs, next) = (HostFs::shared(), vm.request("next"));
    Tops::announce(&vm.run_dir().join("tops.json"), &next.disks).unwrap();
    for step in &next.disks {
        let what = NewDisk::Differencing { parent: step.from.clone(), block_size: 2 << 20 };
        let plan =
            NewDiskPlan::new(&fs, &step.to, &what, Identity::fresh(), &DiskOptions::default()).unwrap();
        plan.execute(&fs).unwrap();
    }

    let mut run = vm.respawn().await;
    adopted(&mut run).await;
    let mut guest = run.guest().await;
    assert_eq!(guest.read(1, 70).await.unwrap(), filled(0xF7));
    guest.write(1, 71, 0xF8).await.unwrap();
    run.turn_off().await;
    // As after a boot: without the shadow folder.
    assert_eq!(sector(&next.disks[1].to, DiskOptions::read_only(), 70), 0xF7);
    assert_eq!(sector(&next.disks[1].to, DiskOptions::read_only(), 71), 0xF8);
}

/// `disk convert` and the like, before the machine is taken over.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_opens_a_disk_after_the_death_of_its_worker_finds_the_last_writes() {
    let mut vm = Vm::new("ide");
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    let base = vm.request("base");
    run.checkpoint(&base).await;
    guest.write(1, 70, 0xEE).await.unwrap();
    let qemu = run.status().await.qemu_pid.unwrap();
    vm.kill_worker();
    kill(qemu);
    run.gone().await;
    let options = DiskOptions { runtime_dir: DiskOptions::default_runtime_dir(), ..DiskOptions::read_only() };
    assert_eq!(sector(&base.disks[1].to, options, 70), 0xEE);

    // Its worker puts them into the file.
    vm.respawn_and_fail().await;
    assert_eq!(sector(&base.disks[1].to, DiskOptions::read_only(), 70), 0xEE);
}

/// Somebody looks at a disk at the moment of the start.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_at_a_disk_does_not_fail_a_start() {
    let mut vm = Vm::new("ide");
    let looking = Disk::open(&vm.disk(1), DiskOptions::read_only()).unwrap();
    let mut run = vm.launch().await;
    let (log, deadline) = (vm.run_dir().join("worker.log"), Instant::now() + PATIENCE);
    while !std::fs::read_to_string(&log).unwrap().contains("in use by") {
        assert!(Instant::now() < deadline, "the worker does not mind");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(looking);
    run.state(VmState::Running).await;
    run.turn_off().await;
}

//! A machine's life: verbs, deaths and take-overs.

#![expect(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use backstay_model::{DriveSlot, RecoveryAction, VmState};
use backstay_qemu::testing::filled;
use backstay_worker::client::WorkerClient;
use backstay_worker::control::{EventFrame, Reply, Request, WorkerEvent};
use backstay_worker::events::read_spool;
use std::time::Duration;
use support::{Vm, kill};

#[tokio::test(flavor = "multi_thread")]
async fn the_usual_verbs() {
    let mut vm = Vm::new("ide");
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    let status = run.status().await;
    assert_eq!((status.state, status.accelerator.as_str()), (VmState::Running, "tcg"));
    assert!(status.qemu_version.starts_with(|c: char| c.is_ascii_digit()), "{}", status.qemu_version);

    run.call(Request::Pause).await;
    assert_eq!(run.status().await.state, VmState::Paused);
    run.call(Request::Pause).await; // already so
    let refused = run.try_call(Request::Shutdown).await.unwrap_err().to_string();
    assert_eq!(refused, "'guest' is paused: shutdown is possible while it is running");
    run.call(Request::Resume).await;
    assert_eq!(guest.count().await.unwrap(), 1);

    let picture = vm.path("screen.png");
    run.call(Request::Screenshot { path: picture.clone() }).await;
    assert_eq!(&std::fs::read(&picture).unwrap()[..8], b"\x89PNG\r\n\x1a\n");

    guest.write(1, 9, 5).await.unwrap();
    let Reply::Disks { disks, .. } = run.call(Request::Disks).await else { panic!("no disks") };
    assert_eq!(disks.len(), 2);
    assert_eq!(disks[1].slot, DriveSlot::Ide { controller: 0, unit: 1 });
    assert_eq!(disks[1].written_bytes, 512);
    assert_eq!(disks[1].chain.len(), 1);

    run.call(Request::Reset).await;
    guest.ready().await.unwrap();
    assert_eq!(guest.count().await.unwrap(), 1, "memory is new after a reset");
    assert_eq!(guest.read(1, 9).await.unwrap(), filled(5));

    run.call(Request::Shutdown).await;
    assert_eq!(run.status().await.state, VmState::Stopping, "this guest does not listen");
    run.turn_off().await;
    let events = read_spool(&vm.run_dir().join("events.jsonl"), 0).unwrap();
    let last = &events.last().unwrap().event;
    assert!(matches!(last, WorkerEvent::State { to: VmState::Off, .. }), "{last:?}");
    let numbers: Vec<_> = events.iter().map(|e| e.seq).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
}

/// The guest powers off: the worker ends, and starting it again by mistake starts nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_powers_off_is_off() {
    let mut vm = Vm::new("virtio");
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    guest.write(1, 12, 0x77).await.unwrap();
    guest.power_off().await.unwrap();
    let reason = run.state(VmState::Off).await;
    assert_eq!(reason, "guest-shutdown");
    run.gone().await;
    assert!(!vm.run_dir().join("launch.json").exists());

    // Its disks are closed: they can be opened by others, and hold what was written.
    let disk = backstay_disk::Disk::open(&vm.disk(1), backstay_disk::DiskOptions::read_only()).unwrap();
    let mut sector = [0; 512];
    backstay_disk::Backend::read(&*disk, 12 * 512, &mut sector).unwrap();
    assert_eq!(sector, [0x77; 512]);

    backstay_worker::spawn::respawn(support::EXECUTABLE.as_ref(), &vm.run_dir()).unwrap();
    let socket = vm.run_dir().join("worker.sock");
    assert!(WorkerClient::connect_within(&socket, Duration::from_secs(2)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_worker_has_a_run_folder() {
    let mut vm = Vm::new("ide");
    let mut run = vm.launch().await;
    run.booted().await;
    let error = backstay_worker::spawn::respawn(support::EXECUTABLE.as_ref(), &vm.run_dir()).unwrap_err();
    assert!(error.to_string().contains("runs in"), "{error}");
    run.turn_off().await;
}

/// QEMU is killed: noticed, told, and started again by the recovery action.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_qemu_is_started_again() {
    let mut vm = Vm::new("ide");
    vm.record.spec.recovery = RecoveryAction::Restart;
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    guest.write(1, 3, 0x31).await.unwrap();
    guest.count().await.unwrap();
    let first = run.status().await.qemu_pid.unwrap();
    kill(first);
    let (reason, action) = run
        .event(|frame| match &frame.event {
            WorkerEvent::QemuDied { reason, action, .. } => Some((reason.clone(), action.clone())),
            _ => None,
        })
        .await;
    assert!(reason.contains("signal 9"), "{reason}");
    assert!(action.contains("start"), "{action}");
    run.state(VmState::Running).await;
    guest.ready().await.unwrap(); // on the same console connection
    assert_eq!(guest.count().await.unwrap(), 1, "it booted anew");
    assert_eq!(guest.read(1, 3).await.unwrap(), filled(0x31));
    assert_ne!(run.status().await.qemu_pid.unwrap(), first);
    run.turn_off().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_recovery_action_it_stays_failed() {
    let mut vm = Vm::new("ide");
    let mut run = vm.launch().await;
    run.booted().await;
    kill(run.status().await.qemu_pid.unwrap());
    let reason = run.state(VmState::Failed).await;
    assert!(reason.contains("signal 9"), "{reason}");
    run.gone().await;
}

/// A machine that cannot start says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_disk_is_named() {
    let mut vm = Vm::new("ide");
    let path = vm.disk(1);
    std::fs::remove_file(&path).unwrap();
    let reason = vm.launch_and_fail().await;
    assert!(reason.contains(path.to_str().unwrap()), "{reason}");
}

/// The worker dies while the guest writes. The guest sees a pause; every write it was told of is there.
async fn outage(bus: &str, length: Duration) {
    let mut vm = Vm::new(bus);
    // Differencing disks: their bitmaps are what a dead worker could lose.
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    let request = vm.request("base");
    run.checkpoint(&request).await;
    let mut written = Vec::new();
    for n in 0..40u8 {
        let lba = 1000 + u32::from(n) * 13;
        guest.write(1, lba, n + 1).await.unwrap();
        written.push((lba, n + 1));
    }
    // One more is on its way when the worker dies.
    let last = tokio::spawn(async move { guest.write(1, 9000, 0xEE).await });
    let qemu = run.status().await.qemu_pid.unwrap();
    vm.kill_worker();
    run.gone().await;
    let acknowledged = matches!(last.await, Ok(Ok(())));
    tokio::time::sleep(length).await;

    let mut run = vm.respawn().await;
    let adopted = run.event(|frame| match frame.event {
        WorkerEvent::Adopted { qemu_pid, .. } => Some(qemu_pid),
        _ => None,
    });
    assert_eq!(adopted.await, qemu);
    let mut guest = run.guest().await;
    assert_eq!(guest.count().await.unwrap(), 1, "the guest was never restarted");
    for (lba, byte) in written {
        assert_eq!(guest.read(1, lba).await.unwrap(), filled(byte), "sector {lba}");
    }
    if acknowledged {
        assert_eq!(guest.read(1, 9000).await.unwrap(), filled(0xEE));
    }
    guest.write(1, 9001, 0xDD).await.unwrap();
    assert_eq!(guest.read(1, 9001).await.unwrap(), filled(0xDD));
    let status = run.status().await;
    assert_eq!(status.state, VmState::Running, "{:?}", status.reason);
    run.turn_off().await;
    let events = read_spool(&vm.run_dir().join("events.jsonl"), 0).unwrap();
    let from_off = |frame: &&EventFrame| matches!(frame.event, WorkerEvent::State { from: VmState::Off, .. });
    assert_eq!(events.iter().filter(from_off).count(), 1, "it was off before its start only: {events:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_a_pause_on_ide() {
    outage("ide", Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_a_pause_on_scsi() {
    outage("scsi", Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_a_pause_on_virtio() {
    outage("virtio", Duration::ZERO).await;
}

/// Longer than QEMU waits for its disk server: the guest is stopped, and continued by the next worker.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_longer_than_qemu_waits_stops_the_guest_until_the_disks_are_back() {
    outage("virtio", Duration::from_secs(10)).await;
}

/// Both die: the next worker finds that out and applies the recovery action; a saved state is not loaded twice.
#[tokio::test(flavor = "multi_thread")]
async fn worker_and_qemu_killed_together() {
    let mut vm = Vm::new("ide");
    vm.record.spec.recovery = RecoveryAction::Restart;
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    guest.count().await.unwrap();
    let request = vm.request("one");
    run.checkpoint(&request).await;
    run.turn_off().await;
    vm.apply(&request);
    let mut run = vm.launch().await;
    run.state(VmState::Running).await;
    let mut guest = run.guest().await;
    assert_eq!(guest.count().await.unwrap(), 2);
    guest.write(0, 500, 0x5A).await.unwrap();
    let qemu = run.status().await.qemu_pid.unwrap();
    vm.kill_worker();
    kill(qemu);
    run.gone().await;

    let mut run = vm.respawn().await;
    run.event(|frame| matches!(frame.event, WorkerEvent::QemuDied { .. }).then_some(())).await;
    let mut guest = run.booted().await;
    assert_eq!(guest.count().await.unwrap(), 1, "it booted: its disks are newer than the saved memory");
    assert_eq!(guest.read(0, 500).await.unwrap(), filled(0x5A));
    run.turn_off().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_can_start_paused() {
    let mut vm = Vm::new("ide");
    vm.record.start_paused = true;
    let mut run = vm.launch().await;
    run.state(VmState::Paused).await;
    run.call(Request::Resume).await;
    run.booted().await;
    run.turn_off().await;
}

/// Whoever takes over must know whether the guest has run, or it would load old memory over newer disks.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_does_not_run_before_that_is_written_down() {
    let mut vm = Vm::new("ide");
    let in_the_way = vm.run_dir().join(".instance.json.tmp");
    std::fs::create_dir_all(&in_the_way).unwrap();
    let reason = vm.launch_and_fail().await;
    assert!(reason.contains("instance.json"), "{reason}");
    let said = std::fs::read(vm.run_dir().join("serial.log")).unwrap_or_default();
    assert!(said.is_empty(), "the guest ran: {}", String::from_utf8_lossy(&said));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_cannot_be_written_down_is_refused() {
    let mut vm = Vm::new("ide");
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    let in_the_way = vm.run_dir().join(".instance.json.tmp");
    std::fs::create_dir(&in_the_way).unwrap();
    let refused = run.try_call(Request::Pause).await.unwrap_err().to_string();
    assert!(refused.contains("instance.json"), "{refused}");
    assert_eq!(guest.count().await.unwrap(), 1);
    assert_eq!(run.status().await.state, VmState::Running);
    std::fs::remove_dir(&in_the_way).unwrap();
    run.call(Request::Pause).await;
    vm.kill_worker();
    run.gone().await;
    let mut run = vm.respawn().await;
    run.event(|frame| matches!(frame.event, WorkerEvent::Adopted { .. }).then_some(())).await;
    assert_eq!(run.status().await.state, VmState::Paused);
    run.turn_off().await;
}

//! Checkpoints of real guests: taken while they run or are paused, gone back to, and failing.

#![expect(clippy::unwrap_used, reason = "a panic is the report")]

mod support;

use backstay_model::{CheckpointId, MemoryMethod, VmState};
use backstay_qemu::testing::{Guest, filled};
use backstay_worker::control::{CheckpointOutcome, Reply, Request, RestoreFrom, SaveRequest, WorkerEvent};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use support::Vm;
use uuid::Uuid;

fn method(outcome: &CheckpointOutcome) -> MemoryMethod {
    match outcome {
        CheckpointOutcome::Complete { method, .. } => *method,
        other => panic!("{other:?}"),
    }
}

/// Disks, memory and the counter as they were, whatever happened since.
async fn goes_back(bus: &str, avoid_background: bool, expected: MemoryMethod) {
    let mut vm = Vm::new(bus);
    vm.record.avoid_background = avoid_background;
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    guest.write(0, 100, 0x11).await.unwrap();
    guest.write(1, 5, 0x22).await.unwrap();
    guest.dirty(4).await.unwrap();
    let sum = guest.sum(4).await.unwrap();
    assert_eq!(guest.count().await.unwrap(), 1);

    let request = vm.request("one");
    let outcome = run.checkpoint(&request).await;
    assert_eq!(method(&outcome), expected, "{outcome:?}");
    // It runs on, in new files.
    assert_eq!(guest.count().await.unwrap(), 2);
    guest.write(0, 100, 0x33).await.unwrap();
    guest.write(1, 5, 0x44).await.unwrap();
    guest.write(1, 6, 0x55).await.unwrap();
    assert_eq!(guest.read(0, 100).await.unwrap(), filled(0x33));
    assert_eq!(run.status().await.state, VmState::Running);
    run.turn_off().await;

    vm.apply(&request);
    let mut run = vm.launch().await;
    run.state(VmState::Running).await;
    let mut guest = run.guest().await;
    assert_eq!(guest.count().await.unwrap(), 2, "memory is of the checkpoint");
    assert_eq!(guest.sum(4).await.unwrap(), sum);
    assert_eq!(guest.read(0, 100).await.unwrap(), filled(0x11));
    assert_eq!(guest.read(1, 5).await.unwrap(), filled(0x22));
    assert_eq!(guest.read(1, 6).await.unwrap(), filled(0));
    guest.write(1, 6, 0x66).await.unwrap();
    assert_eq!(guest.read(1, 6).await.unwrap(), filled(0x66));
    run.turn_off().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_goes_back_on_ide() {
    goes_back("ide", false, MemoryMethod::Background).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_goes_back_on_scsi() {
    goes_back("scsi", false, MemoryMethod::Background).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_goes_back_on_virtio() {
    goes_back("virtio", false, MemoryMethod::Background).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_background_snapshots_it_goes_back_too() {
    goes_back("ide", true, MemoryMethod::LiveMappedRam).await;
}

/// The guest writes 1, 2, 3 … to one disk and then the same number to the other, and counts. At any instant the second
/// disk is equal to the first or one behind; two disks cut at two instants would differ by more.
#[tokio::test(flavor = "multi_thread")]
async fn disks_and_memory_are_of_one_instant() {
    let mut vm = Vm::new("virtio");
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    let (stop, round) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let writer = tokio::spawn({
        let (stop, round) = (Arc::clone(&stop), Arc::clone(&round));
        async move {
            while !stop.load(SeqCst) {
                let n = round.load(SeqCst) + 1;
                let byte = u8::try_from(n % 251).unwrap();
                guest.write(0, 200, byte).await.unwrap();
                guest.write(1, 300, byte).await.unwrap();
                assert_eq!(guest.count().await.unwrap(), n);
                round.store(n, SeqCst);
            }
        }
    });
    let mut requests = Vec::new();
    for name in ["a", "b", "c"] {
        while round.load(SeqCst) < 3 * (u32::try_from(requests.len()).unwrap() + 1) {
            tokio::task::yield_now().await;
        }
        let request = vm.request(name);
        run.checkpoint(&request).await;
        vm.stepped(&request);
        requests.push(request);
    }
    stop.store(true, SeqCst);
    writer.await.unwrap();
    run.turn_off().await;

    for request in &requests {
        vm.apply(request);
        let mut run = vm.launch().await;
        run.state(VmState::Running).await;
        let mut guest = run.guest().await;
        let count = guest.count().await.unwrap() - 1; // rounds that were complete
        let (first, second) = (guest.read(0, 200).await.unwrap(), guest.read(1, 300).await.unwrap());
        let complete = filled(u8::try_from(count % 251).unwrap());
        let next = filled(u8::try_from((count + 1) % 251).unwrap());
        assert!(first == complete || first == next, "round {count}: {first:?}");
        assert!(second == complete || second == next, "round {count}: {second:?}");
        assert!(!(second == next && first == complete), "round {count}: the second disk is ahead");
        run.turn_off().await;
    }
}

/// A paused machine stays paused, before and after, and may be taken more than once.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_machine_comes_back_paused() {
    let mut vm = Vm::new("ide");
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    guest.count().await.unwrap();
    run.call(Request::Pause).await;
    assert_eq!(run.status().await.state, VmState::Paused);
    let request = vm.request("one");
    run.checkpoint(&request).await;
    vm.stepped(&request);
    assert_eq!(run.status().await.state, VmState::Paused);
    let second = vm.request("two");
    run.checkpoint(&second).await;
    run.call(Request::Resume).await;
    assert_eq!(guest.count().await.unwrap(), 2);
    run.turn_off().await;

    vm.apply(&second);
    let mut run = vm.launch().await;
    run.state(VmState::Paused).await;
    run.call(Request::Resume).await;
    let mut guest = run.guest().await;
    assert_eq!(guest.count().await.unwrap(), 2);
    run.turn_off().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_machine_without_background_snapshots_is_saved_by_qemu_itself() {
    let mut vm = Vm::new("scsi");
    vm.record.avoid_background = true;
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    guest.count().await.unwrap();
    run.call(Request::Pause).await;
    let request = vm.request("one");
    let outcome = run.checkpoint(&request).await;
    assert_eq!(method(&outcome), MemoryMethod::Stopped);
    assert_eq!(run.status().await.state, VmState::Paused);
    let mut again = vm.request("two");
    for disk in &mut again.disks {
        disk.from = request.disks.iter().find(|d| d.slot == disk.slot).unwrap().to.clone();
    }
    let refused = run.try_call(Request::Checkpoint(again)).await.unwrap_err().to_string();
    assert!(refused.contains("resume"), "{refused}");
    run.call(Request::Resume).await;
    assert_eq!(guest.count().await.unwrap(), 2);
    guest.write(0, 50, 9).await.unwrap();
    run.turn_off().await;

    vm.apply(&request);
    let mut run = vm.launch().await;
    run.state(VmState::Paused).await;
    run.call(Request::Resume).await;
    assert_eq!(run.guest().await.count().await.unwrap(), 2);
    run.turn_off().await;
}

/// Memory that cannot be written costs the checkpoint, not the machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_without_a_place_for_memory_changes_nothing() {
    let mut vm = Vm::new("ide");
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    let before = vm.files();
    let mut request = vm.request("one");
    request.memory_file = vm.disk(0).join("one.bin"); // below a file
    let error = run.try_call(Request::Checkpoint(request.clone())).await.unwrap_err().to_string();
    assert!(error.contains("one.bin") || error.contains("disk0.vhd"), "{error}");
    works_on(&mut guest, 1).await;
    assert_eq!(vm.files(), before);
    // The next one works.
    run.checkpoint(&vm.request("two")).await;
    works_on(&mut guest, 2).await;
    run.turn_off().await;
}

async fn works_on(guest: &mut Guest, count: u32) {
    assert_eq!(guest.count().await.unwrap(), count);
    let byte = u8::try_from(count).unwrap();
    guest.write(0, 77, byte).await.unwrap();
    assert_eq!(guest.read(0, 77).await.unwrap(), filled(byte));
}

/// The file system fills while memory is being written and the guest runs already.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_system_ends_the_checkpoint_and_the_machine_runs_on() {
    let mut vm = Vm::new("ide");
    let small = vm.path("small");
    std::fs::create_dir(&small).unwrap();
    let Some(_mounted) = Tmpfs::mount(&small, "64k") else {
        println!("skipped: this user may not mount a tmpfs");
        return;
    };
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    let before = vm.files();
    let mut request = vm.request("one");
    request.memory_file = small.join("one.bin");
    request.descriptor_file = small.join("one.vsv");
    let _ = run.try_call(Request::Checkpoint(request.clone())).await;
    let outcome = run.finished(request.checkpoint).await;
    let CheckpointOutcome::Failed { message, kept_layers } = outcome else { panic!("{outcome:?}") };
    assert!(message.contains("one.bin") && message.to_lowercase().contains("space"), "{message}");
    assert!(kept_layers.is_empty(), "the guest wrote nothing meanwhile: {kept_layers:?}");
    assert_eq!(vm.files(), before);
    works_on(&mut guest, 1).await;
    run.checkpoint(&vm.request("two")).await;
    works_on(&mut guest, 2).await;
    run.turn_off().await;
}

struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(path: &std::path::Path, size: &str) -> Option<Self> {
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(path)
            .stderr(std::process::Stdio::null())
            .status();
        matches!(status, Ok(status) if status.success()).then(|| Self(path.into()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

/// What cannot be loaded is refused with the reason, before a QEMU is started for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_does_not_fit_is_refused() {
    let mut vm = Vm::new("ide");
    let mut run = vm.launch().await;
    run.booted().await;
    let request = vm.request("one");
    run.checkpoint(&request).await;
    run.turn_off().await;
    vm.apply(&request);
    vm.record.spec.memory_mib = 32;
    let mut run = vm.launch().await;
    let reason = run.state(VmState::Failed).await;
    assert!(reason.contains("16 MiB") && reason.contains("32 MiB"), "{reason}");
    run.gone().await;

    vm.record.spec.memory_mib = 16;
    let mut bytes = std::fs::read(&request.memory_file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&request.memory_file, bytes).unwrap();
    let mut run = vm.launch().await;
    let reason = run.state(VmState::Failed).await;
    assert!(reason.contains("damaged"), "{reason}");
    run.gone().await;
}

/// Save: memory goes to disk, the machine ends, and continues later.
#[tokio::test(flavor = "multi_thread")]
async fn a_saved_machine_continues() {
    let mut vm = Vm::new("virtio");
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    guest.count().await.unwrap();
    guest.write(1, 40, 7).await.unwrap();
    let save = SaveRequest {
        id: CheckpointId(Uuid::new_v4()),
        memory_file: vm.path("saved/vm.bin"),
        descriptor_file: vm.path("saved/vm.vsv"),
    };
    let reply = run.call(Request::Save(save.clone())).await;
    assert!(matches!(reply, Reply::Checkpoint(CheckpointOutcome::Complete { .. })), "{reply:?}");
    run.state(VmState::Saved).await;
    run.gone().await;

    vm.record.restore = Some(RestoreFrom {
        memory_file: save.memory_file,
        descriptor_file: save.descriptor_file,
        once: true,
    });
    let mut run = vm.launch().await;
    run.state(VmState::Running).await;
    let mut guest = run.guest().await;
    assert_eq!(guest.count().await.unwrap(), 2);
    assert_eq!(guest.read(1, 40).await.unwrap(), filled(7));
    run.turn_off().await;
}

/// A worker that dies in the middle leaves a machine that runs and an answer for whoever asks.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_while_memory_is_written_leaves_no_half_checkpoint() {
    let mut vm = Vm::new("ide");
    let mut run = vm.launch().await;
    let mut guest = run.booted().await;
    assert_eq!(guest.count().await.unwrap(), 1);
    let request = vm.request("one");
    run.call(Request::Checkpoint(request.clone())).await;
    vm.kill_worker();
    run.gone().await;

    let mut run = vm.respawn().await;
    let mut adopted = false;
    let outcome = run
        .event(|frame| match &frame.event {
            WorkerEvent::Adopted { .. } => {
                adopted = true;
                None
            }
            WorkerEvent::CheckpointFinished { outcome, .. } => Some(outcome.clone()),
            _ => None,
        })
        .await;
    let mut guest = run.guest().await;
    assert_eq!(guest.count().await.unwrap(), 2);
    guest.write(0, 60, 3).await.unwrap();
    assert_eq!(guest.read(0, 60).await.unwrap(), filled(3));
    match outcome {
        CheckpointOutcome::Complete { .. } => assert!(request.descriptor_file.exists()),
        CheckpointOutcome::Failed { kept_layers, .. } => {
            assert!(adopted);
            assert_eq!(kept_layers, vm.slots);
            assert!(!request.descriptor_file.exists() && !request.memory_file.exists());
        }
        other => panic!("{other:?}"),
    }
    let Reply::Disks { disks, .. } = run.call(Request::Disks).await else { panic!("no disks") };
    assert_eq!(disks[0].chain.len(), 2);
    run.turn_off().await;
}

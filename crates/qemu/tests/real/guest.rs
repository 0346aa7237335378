//! Real guests in a real QEMU: what the guest sees through each bus, and what we see when it stops.

use crate::common::{Machine, PATIENCE, disk, event, spec};
use backstay_qemu::process::{ExitReason, LastExit, adopt, last_exit};
use backstay_qemu::qmp::RunState;
use backstay_qemu::testing::{FIRST_FREE_LBA, filled};
use std::time::Duration;

/// Boots from the first slot, sees both disks in slot order, and reads back what it wrote.
async fn boots_and_writes(first: &str, second: &str) {
    let mut machine_spec = spec(first);
    machine_spec.drives = vec![disk(second), disk(first)];
    let machine = Machine::start(&machine_spec).await;
    let mut guest = machine.guest().await;
    machine.qmp.cont().await.unwrap();
    assert_eq!(guest.ready().await.unwrap(), 2, "disks that the firmware found");
    guest.write(0, FIRST_FREE_LBA, 0x5a).await.unwrap();
    guest.write(1, 2047, 0xc3).await.unwrap();
    assert_eq!(guest.read(0, FIRST_FREE_LBA).await.unwrap(), filled(0x5a));
    assert_eq!(guest.read(1, 2047).await.unwrap(), filled(0xc3));
    assert_eq!(guest.read(1, FIRST_FREE_LBA).await.unwrap(), filled(0));
    // The files show which disk the guest calls first: the one in the lower slot.
    let file = |slot: &str| {
        let name = slot.parse::<backstay_model::DriveSlot>().unwrap().export_name();
        std::fs::read(machine.dir.path().join(format!("{name}.img"))).unwrap()
    };
    assert_eq!(file(first)[FIRST_FREE_LBA as usize * 512..][..512], [0x5a; 512]);
    assert_eq!(file(second)[2047 * 512..][..512], [0xc3; 512]);
}

#[tokio::test]
async fn boots_from_ide() {
    boots_and_writes("ide:0:0", "ide:1:1").await;
}

#[tokio::test]
async fn boots_from_scsi() {
    boots_and_writes("scsi:0:0", "scsi:3:63").await;
}

#[tokio::test]
async fn boots_from_virtio() {
    boots_and_writes("virtio:0", "virtio:15").await;
}

#[tokio::test]
async fn pause_keeps_memory_and_reset_does_not() {
    let mut machine_spec = spec("pause");
    machine_spec.drives = vec![disk("ide:0:0")];
    let machine = Machine::start(&machine_spec).await;
    let mut events = machine.qmp.events();
    let mut guest = machine.guest().await;
    assert_eq!(machine.qmp.query_status().await.unwrap().status, RunState::Prelaunch);
    machine.qmp.cont().await.unwrap();
    guest.ready().await.unwrap();
    assert_eq!(guest.count().await.unwrap(), 1);
    guest.dirty(4).await.unwrap();
    let sum = guest.sum(4).await.unwrap();

    machine.qmp.stop().await.unwrap();
    event(&mut events, "STOP").await;
    assert_eq!(machine.qmp.query_status().await.unwrap().status, RunState::Paused);
    machine.qmp.cont().await.unwrap();
    event(&mut events, "RESUME").await;
    assert_eq!(guest.count().await.unwrap(), 2);
    assert_eq!(guest.sum(4).await.unwrap(), sum);

    machine.qmp.system_reset().await.unwrap();
    event(&mut events, "RESET").await;
    guest.ready().await.unwrap();
    assert_eq!(guest.count().await.unwrap(), 1);
}

#[tokio::test]
async fn a_guest_that_powers_off_says_so_and_leaves_no_pid_file() {
    let mut machine_spec = spec("power off");
    machine_spec.drives = vec![disk("virtio:0")];
    let machine = Machine::start(&machine_spec).await;
    let mut events = machine.qmp.events();
    let mut guest = machine.guest().await;
    machine.qmp.cont().await.unwrap();
    guest.ready().await.unwrap();
    machine.qmp.system_powerdown().await.unwrap();
    event(&mut events, "POWERDOWN").await;
    guest.power_off().await.unwrap();
    let shutdown = event(&mut events, "SHUTDOWN").await;
    assert_eq!(shutdown.data["reason"], "guest-shutdown");
    assert_eq!(shutdown.data["guest"], true);
    assert_eq!(machine.process.wait().await, ExitReason::Status(0));
    machine.qmp.closed().await;
    assert_eq!(last_exit(&machine.paths), LastExit::InOrder);
    assert!(adopt(&machine.paths).unwrap().is_none());
}

#[tokio::test]
async fn a_killed_qemu_is_noticed_within_a_second_with_its_signal() {
    let machine = Machine::start(&spec("killed")).await;
    let adopted = adopt(&machine.paths).unwrap().expect("QEMU runs");
    assert_eq!(adopted.record(), machine.process.record());
    adopted.kill().unwrap();
    let second = Duration::from_secs(1);
    let own = tokio::time::timeout(second, machine.process.wait()).await.expect("noticed within a second");
    assert_eq!(own, ExitReason::Signal(9));
    // Whoever did not start it learns that it ended, not how.
    assert_eq!(tokio::time::timeout(second, adopted.wait()).await.unwrap(), ExitReason::Unknown);
    tokio::time::timeout(second, machine.qmp.closed()).await.expect("the control connection ends too");
    assert_eq!(last_exit(&machine.paths), LastExit::Crashed);
    assert!(adopt(&machine.paths).unwrap().is_none());
}

#[tokio::test]
async fn a_lost_disk_server_stops_the_guest_which_never_sees_an_error() {
    let mut machine_spec = spec("stall");
    machine_spec.drives = vec![disk("ide:0:0")];
    let mut machine = Machine::start(&machine_spec).await;
    let mut events = machine.qmp.events();
    let mut guest = machine.guest().await.with_patience(2 * PATIENCE);
    machine.qmp.cont().await.unwrap();
    guest.ready().await.unwrap();
    machine.server.0.kill().unwrap();
    machine.server.0.wait().unwrap();
    // QEMU waits for the server as long as a worker's restart may take, then it stops the guest.
    let writing = tokio::spawn(async move {
        guest.write(0, FIRST_FREE_LBA, 0x77).await.unwrap();
        guest.read(0, FIRST_FREE_LBA).await.unwrap()
    });
    let stopped = event(&mut events, "BLOCK_IO_ERROR").await;
    assert_eq!(stopped.data["action"], "stop");
    assert_eq!(
        backstay_qemu::argv::slot_of_name(stopped.data["node-name"].as_str().unwrap()),
        Some("ide:0:0".parse().unwrap())
    );
    event(&mut events, "STOP").await;
    assert_eq!(machine.qmp.query_status().await.unwrap().status, RunState::IoError);
    std::fs::remove_file(machine.paths.nbd()).unwrap();
    machine.server = crate::common::serve(&machine.paths.nbd(), &machine.exports);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !writing.is_finished() {
        assert!(tokio::time::Instant::now() < deadline, "the guest does not run again");
        machine.qmp.cont().await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(writing.await.unwrap(), filled(0x77));
}

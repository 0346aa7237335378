//! The control protocol against a real QEMU: saving and loading memory, pictures, and a disk server that hangs.

use crate::common::{Machine, PATIENCE, disk, event, spec};
use backstay_qemu::argv::{Accel, Begin, LaunchFacts, command_line, protocol_node};
use backstay_qemu::process::{QemuProcess, Spawn};
use backstay_qemu::qmp::{MigrateParameters, MigrationStatus, Qmp, RunState};
use backstay_qemu::testing::Guest;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

async fn completed(qmp: &Qmp) {
    loop {
        let info = qmp.query_migrate().await.unwrap();
        match info.status {
            MigrationStatus::Completed => return,
            status if status.is_final() => panic!("{info:?}"),
            _ => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// Ends the machine and starts its successor in the same folder, waiting for a state.
async fn successor(machine: &mut Machine, spec: &backstay_model::VmSpec) {
    machine.process.kill().unwrap();
    machine.process.wait().await;
    let mut facts = LaunchFacts::new(Accel::Tcg);
    facts.begin = Begin::Incoming;
    let args = command_line(spec, &machine.paths, &facts).unwrap().args;
    let spawn = Spawn {
        qemu: "qemu-system-x86_64".into(),
        args,
        uid_gid: None,
        groups: Vec::new(),
        launcher: Vec::new(),
    };
    machine.process = QemuProcess::spawn(&machine.paths, &spawn).unwrap();
    machine.qmp = Qmp::connect(&machine.paths.qmp(), PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_background_snapshot_through_a_socket_brings_the_guest_back_as_it_was() {
    let mut machine_spec = spec("background");
    machine_spec.drives = vec![disk("scsi:0:0")];
    let mut machine = Machine::start(&machine_spec).await;
    if let Err(reason) = machine.qmp.probe_background_snapshot().await.unwrap() {
        println!("skipped: {reason}");
        return;
    }
    let mut guest = machine.guest().await;
    machine.qmp.cont().await.unwrap();
    guest.ready().await.unwrap();
    guest.dirty(3).await.unwrap();
    let sum = guest.sum(3).await.unwrap();
    assert_eq!(guest.count().await.unwrap(), 1);

    let listener = UnixListener::bind(machine.paths.stream()).unwrap();
    let received = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut state = Vec::new();
        stream.read_to_end(&mut state).await.unwrap();
        state
    });
    let qmp = &machine.qmp;
    qmp.migrate_set_parameters(MigrateParameters { max_bandwidth: Some(0), ..Default::default() })
        .await
        .unwrap();
    qmp.migrate_set_capabilities(&[
        ("background-snapshot", true),
        ("mapped-ram", false),
        ("multifd", false),
        ("events", true),
    ])
    .await
    .unwrap();
    qmp.stop().await.unwrap();
    qmp.migrate(&format!("unix:{}", machine.paths.stream().display())).await.unwrap();
    while !qmp.query_migrate().await.unwrap().first_page_saved() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    qmp.cont().await.unwrap();
    // What happens after the instant is not in the state.
    assert_eq!(guest.count().await.unwrap(), 2);
    guest.dirty(3).await.unwrap();
    assert_ne!(guest.sum(3).await.unwrap(), sum);
    completed(qmp).await;
    let state = received.await.unwrap();
    std::fs::remove_file(machine.paths.stream()).unwrap();

    successor(&mut machine, &machine_spec).await;
    let mut guest = machine.guest().await;
    let stream = machine.paths.stream();
    machine.qmp.migrate_incoming(&format!("unix:{}", stream.display())).await.unwrap();
    let mut socket = UnixStream::connect(&stream).await.unwrap();
    socket.write_all(&state).await.unwrap();
    socket.shutdown().await.unwrap();
    assert_ne!(machine.qmp.wait_loaded().await.unwrap(), RunState::Running, "it waits for us");
    machine.qmp.cont().await.unwrap();
    assert_eq!(guest.sum(3).await.unwrap(), sum);
    assert_eq!(guest.count().await.unwrap(), 2);
}

#[tokio::test]
async fn a_stopped_save_to_a_file_loads_again() {
    let mut machine_spec = spec("save");
    machine_spec.drives = vec![disk("ide:0:0")];
    let mut machine = Machine::start(&machine_spec).await;
    let mut guest = machine.guest().await;
    machine.qmp.cont().await.unwrap();
    guest.ready().await.unwrap();
    assert_eq!(guest.count().await.unwrap(), 1);
    let save = [("background-snapshot", false), ("mapped-ram", true), ("multifd", true)];
    let parameters =
        MigrateParameters { max_bandwidth: Some(0), multifd_channels: Some(2), ..Default::default() };
    machine.qmp.migrate_set_capabilities(&save).await.unwrap();
    machine.qmp.migrate_set_parameters(parameters).await.unwrap();
    machine.qmp.stop().await.unwrap();
    let uri = format!("file:{}", machine.dir.path().join("state").display());
    machine.qmp.migrate(&uri).await.unwrap();
    completed(&machine.qmp).await;
    assert_eq!(machine.qmp.query_status().await.unwrap().status, RunState::Postmigrate);

    successor(&mut machine, &machine_spec).await;
    let mut guest = machine.guest().await;
    machine.qmp.migrate_set_capabilities(&save).await.unwrap();
    machine.qmp.migrate_set_parameters(parameters).await.unwrap();
    machine.qmp.migrate_incoming(&uri).await.unwrap();
    assert_eq!(machine.qmp.wait_loaded().await.unwrap(), RunState::Paused);
    machine.qmp.cont().await.unwrap();
    assert_eq!(guest.count().await.unwrap(), 2);
}

#[tokio::test]
async fn a_state_that_is_none_ends_qemu_with_words() {
    let mut machine = Machine::start(&spec("damaged")).await;
    successor(&mut machine, &spec("damaged")).await;
    let file = machine.dir.path().join("state");
    std::fs::write(&file, b"this is no state").unwrap();
    // QEMU may answer the command before it fails.
    let _ = machine.qmp.migrate_incoming(&format!("file:{}", file.display())).await;
    let reason = tokio::time::timeout(PATIENCE, machine.process.wait()).await.unwrap();
    assert!(!reason.is_success());
    let log = backstay_qemu::process::log_tail(&machine.paths.qemu_log(), 5).unwrap().join("\n");
    assert!(log.contains("Not a migration stream") || log.contains("load of migration failed"), "{log}");
}

#[tokio::test]
async fn yank_frees_a_stop_that_waits_for_a_lost_disk_server() {
    let mut machine_spec = spec("yank");
    machine_spec.drives = vec![disk("virtio:0")];
    let mut machine = Machine::start(&machine_spec).await;
    let mut events = machine.qmp.events();
    let mut guest = machine.guest().await;
    machine.qmp.cont().await.unwrap();
    guest.ready().await.unwrap();
    machine.server.0.kill().unwrap();
    machine.server.0.wait().unwrap();
    let reading = tokio::spawn(async move { guest.read(0, 100).await });
    // The guest's request is in flight and QEMU waits for the server: `stop` would too, for eight seconds.
    let qmp = machine.qmp.clone();
    let stopping = tokio::spawn(async move { qmp.stop().await });
    let nodes = [protocol_node("virtio:0".parse().unwrap())];
    while !stopping.is_finished() {
        machine.qmp.yank(&nodes).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stopping.await.unwrap().unwrap();
    event(&mut events, "STOP").await;
    assert!(!machine.qmp.query_status().await.unwrap().running);
    reading.abort();
}

#[tokio::test]
async fn the_screen_is_a_png() {
    let mut machine_spec = spec("screen");
    machine_spec.drives = vec![disk("ide:0:0")];
    let machine = Machine::start(&machine_spec).await;
    let path = machine.dir.path().join("a \"screen\".png");
    machine.qmp.screendump(&path).await.unwrap();
    assert_eq!(&std::fs::read(&path).unwrap()[..8], b"\x89PNG\r\n\x1a\n");
    let message =
        machine.qmp.screendump(std::path::Path::new("/no/such/folder/x.png")).await.unwrap_err().to_string();
    assert!(message.contains("/no/such/folder/x.png"), "{message}");
}

#[tokio::test]
async fn the_serial_log_has_what_nobody_listened_to_and_can_be_cut_short() {
    let mut machine_spec = spec("serial log");
    machine_spec.drives = vec![disk("ide:0:0")];
    let machine = Machine::start(&machine_spec).await;
    machine.qmp.cont().await.unwrap();
    let log = machine.paths.serial_log();
    until(&log, |text| text.contains("MG READY disks=01\n")).await;
    std::fs::File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
    let mut guest = Guest::connect(&machine.paths.serial()).await.unwrap();
    guest.ping().await.unwrap();
    // No hole where the former text was.
    until(&log, |text| text == "pong\n").await;
}

async fn until(log: &std::path::Path, done: impl Fn(&str) -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(log).unwrap();
        if done(&text) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{text:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

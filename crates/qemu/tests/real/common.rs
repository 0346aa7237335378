//! A running QEMU for tests: disks from a `qemu-storage-daemon`, everything in a temporary run folder.

use backstay_model::*;
use backstay_qemu::argv::{Accel, LaunchFacts, command_line};
use backstay_qemu::paths::RunPaths;
use backstay_qemu::process::{QemuProcess, Spawn};
use backstay_qemu::qmp::{Qmp, QmpEvent};
use backstay_qemu::testing;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use uuid::Uuid;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A machine of 16 MiB without anything attached.
pub fn spec(name: &str) -> VmSpec {
    VmSpec {
        id: VmId(Uuid::from_u128(0x1111)),
        name: VmName::new(name).unwrap(),
        notes: String::new(),
        hardware: VirtualHardware::Gen1,
        memory_mib: 16,
        cpu: CpuControl::default(),
        drives: Vec::new(),
        scsi_controllers: Default::default(),
        nics: Vec::new(),
        boot_order: Vec::new(),
        bios_guid: Uuid::from_u128(0xb105),
        machine_type: "pc-i440fx-10.0".to_owned(),
        accel: AccelPolicy::Tcg,
        recovery: RecoveryAction::Restart,
        host_start: HostStartAction::Nothing,
        host_stop: HostStopAction::TurnOff,
        start_delay_s: 0,
        start_order: 0,
    }
}

pub fn disk(slot: &str) -> DriveSpec {
    DriveSpec::new(slot.parse().unwrap(), DriveMedia::Disk(format!("/vm/{slot}.vhd").into()))
}

/// A child process that ends with the test.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves raw files under export names on one socket.
pub fn serve(socket: &Path, exports: &[(String, PathBuf, bool)]) -> Killed {
    let mut command = Command::new("qemu-storage-daemon");
    command.arg("--nbd-server").arg(format!("addr.type=unix,addr.path={}", socket.display()));
    for (name, file, writable) in exports {
        let node = format!("f-{name}");
        let read_only = if *writable { "off" } else { "on" };
        command
            .arg("--blockdev")
            .arg(format!("driver=file,node-name={node},filename={},read-only={read_only}", file.display()));
        let writable = if *writable { "on" } else { "off" };
        command
            .arg("--export")
            .arg(format!("nbd,id=e-{name},node-name={node},name={name},writable={writable}"));
    }
    let child = command.stdin(Stdio::null()).spawn().expect("qemu-storage-daemon is installed");
    Killed(child)
}

/// A machine whose disks are microguest images (the first one boots) and which has been started, not yet run.
pub struct Machine {
    pub paths: RunPaths,
    pub process: QemuProcess,
    pub qmp: Qmp,
    pub server: Killed,
    pub exports: Vec<(String, PathBuf, bool)>,
    pub dir: tempfile::TempDir,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        // Not left behind as a zombie where process 1 does not look after orphans.
        while self.process.is_own_child() && self.process.try_wait().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Machine {
    pub async fn start(spec: &VmSpec) -> Self {
        Self::start_with(spec, &LaunchFacts::new(Accel::Tcg)).await
    }

    pub async fn start_with(spec: &VmSpec, facts: &LaunchFacts) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(dir.path()).unwrap();
        let mut exports = Vec::new();
        for drive in &spec.drives {
            let name = drive.slot.export_name();
            let file = dir.path().join(format!("{name}.img"));
            testing::microguest_image(&file).unwrap();
            match drive.media {
                DriveMedia::Disk(_) | DriveMedia::Device(_) => exports.push((name, file, true)),
                DriveMedia::Iso(_) => exports.push((name, file, false)),
                DriveMedia::EmptyOptical => {}
            }
        }
        let server = serve(&paths.nbd(), &exports);
        let args = command_line(spec, &paths, facts).unwrap().args;
        let spawn = Spawn {
            qemu: "qemu-system-x86_64".into(),
            args,
            uid_gid: None,
            groups: Vec::new(),
            launcher: Vec::new(),
        };
        let process = QemuProcess::spawn(&paths, &spawn).unwrap();
        let socket = paths.qmp();
        let qmp = tokio::select! {
            qmp = Qmp::connect(&socket, PATIENCE) => qmp.unwrap(),
            reason = process.wait() => panic!("{reason}: {}", std::fs::read_to_string(paths.qemu_log()).unwrap()),
        };
        Self { paths, process, qmp, server, exports, dir }
    }

    pub async fn guest(&self) -> testing::Guest {
        testing::Guest::connect(&self.paths.serial()).await.unwrap()
    }
}

/// The next event of this name.
pub async fn event(events: &mut tokio::sync::broadcast::Receiver<QmpEvent>, name: &str) -> QmpEvent {
    tokio::time::timeout(PATIENCE, async {
        loop {
            let event = events.recv().await.expect("QEMU's control connection is open");
            if event.name == name {
                return event;
            }
        }
    })
    .await
    .unwrap_or_else(|_| panic!("no {name} event"))
}

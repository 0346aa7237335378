//! Command lines as committed files, one argument per line. `BACKSTAY_BLESS=1` writes them anew. Each one is also
//! started: QEMU itself says whether it understands it.

use crate::common::{Killed, PATIENCE, disk, spec};
use backstay_model::*;
use backstay_qemu::argv::{
    Accel, Begin, CommandLine, DriveExport, Firmware, LaunchFacts, command_line, device_id,
};
use backstay_qemu::paths::RunPaths;
use backstay_qemu::process::{QemuProcess, Spawn};
use backstay_qemu::qmp::{BlockDevice, Qmp, RunState};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use uuid::Uuid;

/// The run folder in the files.
const RUN: &str = "/run/backstay/vm";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn media(slot: &str, media: DriveMedia) -> DriveSpec {
    DriveSpec::new(slot.parse().unwrap(), media)
}

fn nic(n: u8, model: NicModel, attachment: NicAttachment) -> NicSpec {
    NicSpec {
        id: NicId(Uuid::from_u128(n.into())),
        mac: MacAddress([0, 0x15, 0x5d, 0, 0, n]),
        model,
        attachment,
    }
}

/// Every machine of this table has a file and is started.
fn cases() -> Vec<(&'static str, VmSpec, LaunchFacts)> {
    let tcg = || LaunchFacts::new(Accel::Tcg);
    let mut small = spec("small");
    small.drives = vec![disk("ide:0:0"), media("ide:1:0", DriveMedia::EmptyOptical)];
    small.nics = vec![nic(1, NicModel::E1000, NicAttachment::User)];

    let mut odd = spec("Пошта, №1 = \"odd\" 'name' \\ %s ; $(x)");
    odd.cpu.count = 2;
    odd.drives = vec![
        disk("scsi:0:0"),
        disk("scsi:0:63"),
        disk("scsi:3:7"),
        media("scsi:3:8", DriveMedia::Iso("/iso/x.iso".into())),
        media("scsi:3:9", DriveMedia::EmptyOptical),
    ];
    odd.nics = vec![
        nic(1, NicModel::Virtio, NicAttachment::User),
        nic(2, NicModel::E1000, NicAttachment::Disconnected),
        nic(3, NicModel::Virtio, NicAttachment::Switch("External, 1".into())),
    ];
    odd.boot_order =
        vec![BootDevice::Network, BootDevice::HardDrive, BootDevice::Optical, BootDevice::HardDrive];

    let mut all = spec("every bus");
    all.drives = vec![
        disk("ide:0:0"),
        disk("ide:0:1"),
        disk("ide:1:0"),
        media("ide:1:1", DriveMedia::Iso("/iso/x.iso".into())),
        disk("scsi:1:5"),
        disk("virtio:0"),
        disk("virtio:15"),
    ];
    let mut restored = tcg();
    restored.begin = Begin::Incoming;
    restored.generation_id = Some(Uuid::from_u128(0x4747));
    let export = DriveExport { export: "a \"b\", c".into(), read_only: true, serial: Some("DISK-1".into()) };
    restored.exports.insert("virtio:15".parse().unwrap(), export);

    let full = {
        let mut full = spec("eight cards");
        full.nics = (0..8).map(|n| nic(n, NicModel::E1000, NicAttachment::User)).collect();
        full.drives = (0..4).map(|c| disk(&format!("scsi:{c}:0"))).collect();
        full.drives.extend((0..16).map(|n| disk(&format!("virtio:{n}"))));
        full
    };
    let mut device = spec("a device of the host");
    device.drives = vec![
        media("ide:0:0", DriveMedia::Device("/dev/disk/by-id/wwn-0x5000".into())),
        media("scsi:0:0", DriveMedia::Device("/dev/disk/by-id/wwn-0x5001".into())),
        disk("scsi:0:1"),
    ];
    let mut large_sectors = tcg();
    large_sectors.sectors.insert("scsi:0:0".parse().unwrap(), 4096);

    vec![
        ("pass-through", device, large_sectors),
        ("small", small, tcg()),
        ("odd-name-scsi-nics", odd, tcg()),
        ("every-bus-incoming", all, restored),
        ("all-pci-slots", full, tcg()),
    ]
}

fn line(spec: &VmSpec, facts: &LaunchFacts) -> CommandLine {
    command_line(spec, &RunPaths::new(RUN).unwrap(), facts).unwrap()
}

fn compare(name: &str, args: &[String]) {
    let path = folder().join(format!("{name}.args"));
    let text: String = args.iter().map(|arg| format!("{arg}\n")).collect();
    if std::env::var_os("BACKSTAY_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, expected, "{name}: set BACKSTAY_BLESS=1 if the new command line is meant");
}

#[test]
fn command_lines_are_as_committed() {
    for (name, spec, facts) in cases() {
        compare(name, &line(&spec, &facts).args);
    }
}

fn uefi_machine() -> VmSpec {
    let mut gen2 = spec("generation 2");
    gen2.hardware = VirtualHardware::Gen2;
    gen2.machine_type = "pc-q35-10.0".into();
    gen2.drives = vec![disk("scsi:0:0"), media("scsi:0:1", DriveMedia::EmptyOptical), disk("virtio:3")];
    gen2.nics =
        vec![nic(1, NicModel::Virtio, NicAttachment::User), nic(2, NicModel::E1000, NicAttachment::User)];
    gen2
}

fn with_firmware(accel: Accel, code: PathBuf, vars: PathBuf) -> LaunchFacts {
    LaunchFacts { firmware: Some(Firmware { code, vars }), ..LaunchFacts::new(accel) }
}

#[test]
fn the_command_line_for_uefi_and_kvm_is_as_committed() {
    let facts = with_firmware(Accel::Kvm, "/usr/share/OVMF/OVMF_CODE_4M.fd".into(), "/vm/vars.fd".into());
    compare("uefi-kvm", &line(&uefi_machine(), &facts).args);
}

#[test]
fn the_disks_of_a_machine_do_not_move_its_other_devices() {
    let (_, spec, facts) = cases().swap_remove(4);
    let mut fewer = spec.clone();
    fewer.drives.remove(0);
    fewer.drives.remove(7);
    let (all, less) = (line(&spec, &facts).args, line(&fewer, &facts).args);
    let without_boot_index = |arg: &String| arg.split(",bootindex=").next().unwrap().to_owned();
    let all: Vec<_> = all.iter().map(without_boot_index).collect();
    for arg in less.iter().map(without_boot_index) {
        assert!(all.contains(&arg), "{arg}");
    }
}

#[test]
fn cards_without_a_network_are_cut_and_reported() {
    let (_, spec, facts) = cases().swap_remove(2);
    let line = line(&spec, &facts);
    assert_eq!(line.links_down, ["nic1", "nic2"]);
    assert_eq!(line.warnings.len(), 1);
    assert!(line.warnings[0].contains("'External, 1'"), "{}", line.warnings[0]);
}

#[tokio::test]
async fn qemu_accepts_every_command_line() {
    for (name, spec, facts) in cases() {
        accepted(name, &spec, &facts).await;
    }
}

/// The firmware need not work for that: its processors never execute.
#[tokio::test]
async fn qemu_accepts_the_command_line_for_uefi() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, vec![0xff; 256 << 10]).unwrap();
        path
    };
    accepted("uefi", &uefi_machine(), &with_firmware(Accel::Tcg, file("code"), file("vars"))).await;
}

/// Hyper-V's largest machine: four IDE disks and 64 on each of four SCSI controllers.
fn largest() -> VmSpec {
    let mut spec = spec("260 disks");
    spec.drives = ["ide:0:0", "ide:0:1", "ide:1:0", "ide:1:1"].into_iter().map(disk).collect();
    spec.drives.extend((0..4).flat_map(|c| (0..64).map(move |lun| disk(&format!("scsi:{c}:{lun}")))));
    spec
}

#[test]
fn the_command_line_for_260_disks_is_as_committed() {
    compare("260-disks", &line(&largest(), &LaunchFacts::new(Accel::Tcg)).args);
}

#[tokio::test]
async fn qemu_accepts_260_disks() {
    accepted("260 disks", &largest(), &LaunchFacts::new(Accel::Tcg)).await;
}

async fn accepted(name: &str, spec: &VmSpec, facts: &LaunchFacts) {
    let dir = tempfile::Builder::new().prefix("a, b").tempdir().unwrap();
    let paths = RunPaths::new(dir.path()).unwrap();
    let mut server = Command::new("nbdkit");
    server.args(["-f", "-t", "1", "-U"]).arg(paths.nbd()).args(["memory", "1M"]).stdin(Stdio::null());
    let _server = Killed(server.spawn().expect("nbdkit is installed"));
    let line = command_line(spec, &paths, facts).unwrap();
    let spawn = Spawn {
        qemu: "qemu-system-x86_64".into(),
        args: line.args,
        uid_gid: None,
        groups: Vec::new(),
        launcher: Vec::new(),
    };
    let process = QemuProcess::spawn(&paths, &spawn).unwrap();
    let socket = paths.qmp();
    let log = || std::fs::read_to_string(paths.qemu_log()).unwrap();
    let qmp = tokio::select! {
        qmp = Qmp::connect(&socket, PATIENCE) => qmp.unwrap(),
        reason = process.wait() => panic!("{name}: {reason}: {}", log()),
    };
    let status = qmp.query_status().await.unwrap();
    let expected = if facts.begin == Begin::Incoming { RunState::Inmigrate } else { RunState::Prelaunch };
    assert_eq!(status.status, expected, "{name}");
    for card in &line.links_down {
        qmp.set_link(card, false).await.unwrap();
    }
    let drives = qmp.query_block().await.unwrap();
    for drive in &spec.drives {
        let id = device_id(drive.slot);
        // `query-block` names virtio disks by the path of their back half.
        let is_it = |block: &&BlockDevice| block.qdev == id || block.qdev.split('/').any(|part| part == id);
        let found = drives.iter().find(is_it);
        let has_medium = drive.media != DriveMedia::EmptyOptical;
        assert_eq!(found.map(|block| block.inserted.is_some()), Some(has_medium), "{name}: {id}: {drives:?}");
    }
    assert_eq!(qmp.query_cpus_fast().await.unwrap().len(), spec.cpu.count as usize, "{name}");
    assert!(paths.vnc().exists() && paths.serial().exists(), "{name}");
    // The second control socket answers while the first is in use.
    let debug = Qmp::connect(&paths.qmp_debug(), PATIENCE).await.unwrap();
    assert!(debug.greeting().oob);
    qmp.quit().await.unwrap();
    assert!(process.wait().await.is_success(), "{name}: {}", log());
    let log = log();
    let unexpected: Vec<_> = log.lines().filter(|line| !line.contains("has no peer")).collect();
    assert!(unexpected.is_empty(), "{name}: {unexpected:?}");
}

//! Machines and files that several tests need.

use backstay_hyperv::foreign::{
    Bandwidth, Bus, Checkpoint, CheckpointKind, ComPort, Controller, Document, Drive, DriveKind, DriveQos,
    DynamicMemory, Integration, IntegrationService, Machine, Nic, NicKind, Recovery, Settings, SourceKind,
    Vlan,
};
use backstay_model::{BootDevice, HostStartAction, HostStopAction};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A file of the fixtures, or none with a printed line.
#[expect(clippy::disallowed_methods, reason = "the fixture is a file")]
pub fn fixture(name: &str) -> Option<Vec<u8>> {
    let file = fixtures().join("hyperv").join(name);
    let bytes = std::fs::read(&file).ok();
    if bytes.is_none() {
        println!("skipped: {} is absent (set BACKSTAY_FIXTURES)", file.display());
    }
    bytes
}

pub fn fixtures() -> PathBuf {
    std::env::var_os("BACKSTAY_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"), PathBuf::from)
}

pub fn only_machine(documents: Vec<Document>) -> Machine {
    match <[Document; 1]>::try_from(documents) {
        Ok([Document::Machine(machine)]) => *machine,
        other => panic!("one machine expected: {other:?}"),
    }
}

pub fn machine_of(document: Document) -> Machine {
    only_machine(vec![document])
}

pub fn checkpoint_of(document: Document) -> Checkpoint {
    match document {
        Document::Checkpoint(checkpoint) => *checkpoint,
        Document::Machine(machine) => panic!("a checkpoint expected: {machine:?}"),
    }
}

pub fn guid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

pub fn drive(location: u32, kind: DriveKind, path: &str) -> Drive {
    Drive { location, kind, path: path.into(), qos: DriveQos::default() }
}

/// A machine of generation 1 with one of everything that all forms can say, and two checkpoints.
pub fn rich() -> Machine {
    let mut machine = Machine::empty(SourceKind::Xml);
    machine.id = Some(guid(0x1000));
    machine.name = "Пошта & \"web\"".into();
    machine.notes = "first line\nsecond <line>".into();
    machine.created_unix_ms = Some(1_400_000_000_000);
    machine.actions.start = HostStartAction::Start;
    machine.actions.start_delay_s = 90;
    machine.actions.stop = HostStopAction::Shutdown;
    machine.actions.recovery = Recovery::None;
    machine.roots.configuration = r"D:\VMs\web".into();
    machine.roots.snapshots = r"D:\VMs\web".into();
    machine.settings = settings("now.avhd");
    machine.now_parent = Some(guid(0x3000));
    let mut first = Checkpoint::empty(SourceKind::Xml);
    first.id = Some(guid(0x2000));
    first.machine = machine.id;
    first.name = "before the update".into();
    first.created_unix_ms = Some(1_400_000_100_000);
    first.settings = settings("web.vhd");
    let mut second = Checkpoint { parent: first.id, ..first.clone() };
    second.id = Some(guid(0x3000));
    second.name = "after it".into();
    second.notes = "it works".into();
    second.created_unix_ms = Some(1_400_000_200_000);
    second.settings = settings("web_3000.avhd");
    second.kind = CheckpointKind::Unknown;
    machine.checkpoints = vec![first, second];
    machine
}

fn settings(disk: &str) -> Settings {
    let mut settings = Settings::default();
    settings.processors.count = 2;
    settings.processors.reserve = 10_000;
    settings.processors.limit = 75_000;
    settings.processors.weight = 200;
    settings.processors.for_migration = true;
    settings.memory.startup_mib = 2048;
    settings.memory.dynamic = Some(DynamicMemory { min_mib: 512, max_mib: 8192, buffer_percent: 25 });
    settings.memory.weight = 6000;
    settings.firmware.bios_guid = Some(guid(0xB105));
    settings.firmware.bios_serial = "1981-9952-3234".into();
    settings.firmware.base_board_serial = "board 7".into();
    settings.firmware.chassis_serial = "chassis 7".into();
    settings.firmware.chassis_asset_tag = "asset 7".into();
    settings.firmware.boot_order =
        vec![BootDevice::HardDrive, BootDevice::Network, BootDevice::Optical, BootDevice::Floppy];
    settings.firmware.num_lock = true;
    let disk = format!(r"D:\VMs\web\Virtual Hard Disks\{disk}");
    let data = r"\\nas\vms\data.vhd";
    settings.controllers = vec![
        controller(Bus::Ide, 0, vec![drive(0, DriveKind::Vhd, &disk)]),
        controller(
            Bus::Ide,
            1,
            vec![drive(0, DriveKind::Iso, r"D:\iso\tools.iso"), drive(1, DriveKind::EmptyOptical, "")],
        ),
        controller(
            Bus::Scsi,
            0,
            vec![drive(5, DriveKind::Vhd, data), drive(9, DriveKind::PassThrough, "disk 2")],
        ),
        controller(Bus::Scsi, 1, vec![]),
        controller(Bus::Floppy, 0, vec![drive(0, DriveKind::Floppy, r"D:\boot.vfd")]),
    ];
    settings.nics = vec![nic(1, NicKind::Synthetic), nic(2, NicKind::Legacy)];
    settings.com_ports = vec![ComPort { number: 1, path: r"\\.\pipe\web".into() }];
    settings.time_skew_100ns = Some(-288_005_458_208);
    settings.integration = vec![
        IntegrationService { service: Integration::Heartbeat, enabled: true },
        IntegrationService { service: Integration::KeyValue, enabled: true },
        IntegrationService { service: Integration::Shutdown, enabled: true },
        IntegrationService { service: Integration::TimeSync, enabled: false },
        IntegrationService { service: Integration::Vss, enabled: true },
        IntegrationService { service: Integration::GuestServices, enabled: false },
    ];
    settings
}

fn controller(bus: Bus, number: u32, drives: Vec<Drive>) -> Controller {
    let instance = (bus == Bus::Scsi).then(|| guid(0x5C51_0000 + u128::from(number)));
    Controller { bus, number, instance, drives }
}

pub fn nic(number: u8, kind: NicKind) -> Nic {
    Nic {
        id: Some(guid(0xC4D0_0000 + u128::from(number))),
        name: if kind == NicKind::Legacy { "Legacy Network Adapter".into() } else { "LAN".into() },
        kind,
        mac: format!("00-15-5D-01-07-{number:02X}").parse().ok(),
        mac_is_static: number == 1,
        connected: number == 1,
        switch_name: if number == 1 { "External".into() } else { String::new() },
        switch_id: (number == 1).then(|| guid(0x5817)),
        vlan: Vlan::None,
        mac_spoofing: None,
        bandwidth: None::<Bandwidth>,
    }
}

//! Rules that refuse a machine. The command lines themselves are golden files, see `tests/real/golden.rs`.

use super::*;
use backstay_model::{
    AccelPolicy, CpuControl, DriveMedia, DriveSpec, HostStartAction, HostStopAction, RecoveryAction, VmId,
    VmName,
};

fn spec(hardware: VirtualHardware, machine_type: &str) -> VmSpec {
    VmSpec {
        id: VmId(Uuid::nil()),
        name: VmName::new("x").unwrap(),
        notes: String::new(),
        hardware,
        memory_mib: 16,
        cpu: CpuControl::default(),
        drives: Vec::new(),
        scsi_controllers: Default::default(),
        nics: Vec::new(),
        boot_order: Vec::new(),
        bios_guid: Uuid::nil(),
        machine_type: machine_type.to_owned(),
        accel: AccelPolicy::Auto,
        recovery: RecoveryAction::None,
        host_start: HostStartAction::Nothing,
        host_stop: HostStopAction::Save,
        start_delay_s: 0,
        start_order: 0,
    }
}

fn refusal(spec: &VmSpec, facts: &LaunchFacts) -> ArgvError {
    command_line(spec, &RunPaths::new("/run/x").unwrap(), facts).unwrap_err()
}

fn with_drive(mut spec: VmSpec, slot: &str, media: DriveMedia) -> VmSpec {
    spec.drives.push(DriveSpec::new(slot.parse().unwrap(), media));
    spec
}

fn uefi() -> LaunchFacts {
    let firmware = Firmware { code: "/fw/code".into(), vars: "/vm/vars".into() };
    LaunchFacts { firmware: Some(firmware), ..LaunchFacts::new(Accel::Tcg) }
}

#[test]
fn aliases_and_types_of_the_other_generation_are_refused() {
    let facts = uefi();
    for machine in
        ["pc", "q35", "pc-q35-10.0", "pc-i440fx-", "pc-i440fx-10.0,accel=kvm", "pc-i440fx-10..0", ""]
    {
        let error = refusal(&spec(VirtualHardware::Gen1, machine), &facts);
        assert!(error.to_string().contains("pc-i440fx-10.0"), "{machine}: {error}");
    }
    let error = refusal(&spec(VirtualHardware::Gen2, "pc-i440fx-10.0"), &facts);
    assert!(error.to_string().contains("pc-q35-10.0"), "{error}");
}

#[test]
fn generation_2_wants_firmware_and_has_no_ide() {
    let gen2 = spec(VirtualHardware::Gen2, "pc-q35-10.0");
    assert_eq!(refusal(&gen2, &LaunchFacts::new(Accel::Tcg)), ArgvError::NoFirmware);
    let with_ide = with_drive(gen2, "ide:0:0", DriveMedia::EmptyOptical);
    assert!(matches!(refusal(&with_ide, &uefi()), ArgvError::NoIde(_)));
}

#[test]
fn drives_that_a_bus_cannot_have_are_refused() {
    let gen1 = || spec(VirtualHardware::Gen1, "pc-i440fx-10.0");
    let facts = LaunchFacts::new(Accel::Tcg);
    let optical = with_drive(gen1(), "virtio:0", DriveMedia::Iso("/x.iso".into()));
    assert!(matches!(refusal(&optical, &facts), ArgvError::NoVirtioOptical(_)));

    let disk = with_drive(gen1(), "ide:0:0", DriveMedia::Disk("/x.vhd".into()));
    let sectors = BTreeMap::from([("ide:0:0".parse().unwrap(), 4096)]);
    let large = LaunchFacts { sectors, ..LaunchFacts::new(Accel::Tcg) };
    assert!(matches!(refusal(&disk, &large), ArgvError::SectorsOnIde { sector: 4096, .. }));
    let export = |read_only, serial: Option<&str>| {
        let export = DriveExport { export: "x".into(), read_only, serial: serial.map(Into::into) };
        let exports = BTreeMap::from([("ide:0:0".parse().unwrap(), export)]);
        LaunchFacts { exports, ..LaunchFacts::new(Accel::Tcg) }
    };
    assert!(matches!(refusal(&disk, &export(true, None)), ArgvError::ReadOnlyIde(_)));
    for serial in ["", "123456789012345678901", "a,drive=b", "ä"] {
        assert!(matches!(refusal(&disk, &export(false, Some(serial))), ArgvError::Serial { .. }), "{serial}");
    }
}

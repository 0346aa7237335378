//! A machine of another host as one of ours.

use super::common::*;
use backstay_hyperv::foreign::{
    Bus, Conversion, ConvertOptions, Difference, DriveKind, Level, Machine, NicKind, OtherDevice, SavedState,
    SourceKind, Vlan,
};
use backstay_model::{
    DriveMedia, DriveSpec, MacAddress, NicAttachment, NicModel, RecoveryAction, VirtualHardware, VmId,
};

fn convert(machine: &Machine, options: &ConvertOptions) -> Conversion {
    let conversion = machine.to_spec(&machine.settings, options);
    assert_eq!(conversion.spec.validate(), Ok(()), "{:?}", conversion.spec);
    for difference in &conversion.differences {
        assert!(!difference.why.is_empty() && !difference.what.is_empty(), "{difference:?}");
    }
    conversion
}

fn about<'a>(conversion: &'a Conversion, what: &str) -> &'a Difference {
    let found = conversion.differences.iter().find(|d| d.what == what);
    found.unwrap_or_else(|| panic!("nothing about '{what}' in {:#?}", conversion.differences))
}

fn slots(drives: &[DriveSpec]) -> Vec<String> {
    drives.iter().map(|drive| drive.slot.to_string()).collect()
}

#[test]
fn a_machine_keeps_what_it_can_keep() {
    let options = ConvertOptions { machine_type: "pc-i440fx-10.0".into(), ..ConvertOptions::default() };
    let conversion = convert(&rich(), &options);
    let spec = &conversion.spec;
    assert_eq!((spec.id, spec.machine_type.as_str()), (VmId(guid(0x1000)), "pc-i440fx-10.0"));
    assert_eq!((spec.name.as_str(), spec.notes.as_str()), ("Пошта & \"web\"", "first line\nsecond <line>"));
    assert_eq!(
        (spec.cpu.count, spec.cpu.limit_percent, spec.cpu.reserve_percent, spec.cpu.weight),
        (2, 75, 10, 200)
    );
    assert_eq!(spec.bios_guid, guid(0xB105));
    assert_eq!((spec.recovery, spec.start_delay_s), (RecoveryAction::None, 90));
    assert_eq!(slots(&spec.drives), ["ide:0:0", "ide:1:0", "ide:1:1", "scsi:0:5"]);
    let first = DriveMedia::Disk(r"D:\VMs\web\Virtual Hard Disks\now.avhd".into());
    assert_eq!(spec.drives[0].media, first, "as written");
    assert_eq!(spec.scsi_controllers.iter().copied().collect::<Vec<_>>(), [0, 1], "also an empty one");
    assert_eq!(spec.nics[0].mac.to_string(), "00-15-5D-01-07-01");
    assert!(spec.nics.iter().all(|nic| nic.model == NicModel::E1000));
    assert_eq!(spec.nics[0].attachment, NicAttachment::Switch("External".into()));
    assert_eq!(spec.nics[1].attachment, NicAttachment::Disconnected);
    let memory = about(&conversion, "memory");
    assert_eq!((memory.level, memory.becomes.as_str()), (Level::Attention, "2048 MiB"));
    assert!(memory.was.contains("512 to 8192") && memory.cure.contains("8192"));
    assert_eq!(about(&conversion, "SCSI 0:9").becomes, "left out");
    assert!(about(&conversion, "SCSI 0:9").cure.contains("copy that disk"));
    assert_eq!(about(&conversion, "floppy").was, r"D:\boot.vfd");
    about(&conversion, "serial port COM1");
    let levels: Vec<_> = conversion.differences.iter().map(|d| d.level).collect();
    assert!(levels.is_sorted_by(|a, b| a >= b), "the gravest first");
    let checkpoint = &rich().checkpoints[0];
    let of_checkpoint = rich().to_spec(&checkpoint.settings, &options);
    assert_eq!(of_checkpoint.spec.id, spec.id);
    assert_ne!(of_checkpoint.spec.drives[0], spec.drives[0]);
}

/// A machine with everything that does not fit.
fn trapped() -> Machine {
    let mut machine = rich();
    machine.id = None;
    machine.name = " odd\u{7}name ".into();
    machine.notes = "a\u{0}b".into();
    machine.generation = VirtualHardware::Gen2;
    machine.clustered = true;
    machine.merge_pending = true;
    machine.scope_of_residence = "{scope}".into();
    machine.saved_state = Some(SavedState { files: vec![r"D:\x.bin".into()] });
    machine.actions.start_delay_s = u64::MAX;
    let settings = &mut machine.settings;
    settings.processors.count = 64;
    settings.processors.weight = 0;
    settings.processors.limit = 33_333;
    settings.processors.reserve = 90_000;
    settings.memory.startup_mib = 1 << 20;
    settings.firmware.secure_boot = Some(true);
    settings.firmware.bios_guid = None;
    settings.tpm = true;
    settings.other_devices =
        vec![OtherDevice { name: "GPU".into(), class: String::new(), host_resource: "PCI".into() }];
    settings.nics[0].mac = None;
    settings.nics[0].vlan = Vlan::Access(7);
    settings.nics[0].mac_spoofing = Some(true);
    settings.nics[1].connected = true;
    settings.nics[1].switch_id = Some(guid(0xABC));
    let far = settings.controllers.iter_mut().find(|c| c.bus == Bus::Ide).unwrap();
    far.drives.push(drive(3, DriveKind::Vhd, "far.vhd"));
    far.drives.push(drive(4, DriveKind::VhdSet, "set.vhds"));
    machine
}

#[test]
fn every_trap_of_the_move_is_told() {
    let machine = trapped();
    let known = Some(["LAN".to_owned()].into());
    let options = ConvertOptions {
        host_processors: Some(8),
        host_memory_mib: Some(4096),
        known_switches: known,
        ..ConvertOptions::default()
    };
    let conversion = convert(&machine, &options);
    let spec = &conversion.spec;
    assert_eq!(
        (spec.cpu.count, spec.cpu.weight, spec.cpu.limit_percent, spec.cpu.reserve_percent),
        (8, 1, 33, 33)
    );
    assert_eq!(spec.start_delay_s, 86_400);
    assert_eq!(spec.notes, "ab");
    assert_eq!(conversion.differences[0].level, Level::Stop, "memory the host does not have");
    assert!(conversion.differences[0].why.contains("4096 MiB"));
    for (what, was, becomes) in [
        ("processors", "64", "8"),
        ("processor weight", "0", "1"),
        ("processor limit", "33.333 %", "33 %"),
        ("processor reserve", "90 %", "33 %"),
        ("GUID", "none", &spec.id.to_string()),
        ("ScopeOfResidence", "{scope}", "dropped"),
        ("saved state", r"D:\x.bin", "set aside, never deleted"),
        ("secure boot", "on", "not taken over"),
        ("TPM", "there", "empty"),
        ("high availability", "yes", "no"),
        ("disk merge", "pending", "the chain stays as it is"),
        ("device 'GPU'", "PCI", "left out"),
        ("VLAN of network card 'LAN'", "access, 7", "none"),
        ("MAC spoofing of network card 'LAN'", "allowed", "guarded"),
        ("switch of network card 'LAN'", "External", "External"),
        (
            "switch of network card 'Legacy Network Adapter'",
            "00000000-0000-0000-0000-000000000ABC",
            "unplugged",
        ),
        ("BIOS GUID", "unknown", "the machine's GUID"),
        ("IDE 0:3", "far.vhd", "left out"),
    ] {
        let found = about(&conversion, what);
        assert_eq!((found.was.as_str(), found.becomes.as_str()), (was, becomes), "{what}");
    }
    assert!(about(&conversion, "switch of network card 'LAN'").cure.contains("--map-switch 'External=NAME'"));
    assert_eq!(about(&conversion, "name").becomes, spec.name.as_str());
    assert_eq!(
        machine.to_spec(&machine.settings, &options),
        conversion,
        "the same machine gives the same answer"
    );
}

#[test]
fn switches_are_mapped_by_name_and_by_guid() {
    let mut machine = rich();
    machine.settings.nics[1].connected = true;
    machine.settings.nics[1].switch_id = Some(guid(0xABC));
    let guid_text = "00000000-0000-0000-0000-000000000ABC".to_owned();
    let switches = [("External".to_owned(), "br0".to_owned()), (guid_text, "br1".to_owned())].into();
    let known = Some(["br0".to_owned(), "br1".to_owned()].into());
    let conversion =
        convert(&machine, &ConvertOptions { switches, known_switches: known, ..ConvertOptions::default() });
    let to: Vec<_> = conversion.spec.nics.iter().map(|nic| nic.attachment.clone()).collect();
    assert_eq!(to, [NicAttachment::Switch("br0".into()), NicAttachment::Switch("br1".into())]);
    let told = about(&conversion, "switch of network card 'LAN'");
    assert_eq!((told.was.as_str(), told.becomes.as_str(), told.level), ("External", "br0", Level::Note));
}

#[test]
fn twins_get_places_of_their_own() {
    let mut machine = Machine::empty(SourceKind::Collector);
    machine.name = "twins".into();
    machine.settings.nics = (0..10).map(|_| nic(1, NicKind::Synthetic)).collect();
    let conversion = convert(&machine, &ConvertOptions::default());
    let nics = &conversion.spec.nics;
    assert_eq!(nics.len(), 8);
    let mut ids: Vec<_> = nics.iter().map(|nic| nic.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 8);
    assert!(
        nics.iter().skip(1).all(|nic| nic.mac.0[..3] == [0x00, 0x15, 0x5D] && nic.mac != MacAddress([0; 6]))
    );
    let left = conversion.differences.iter().filter(|d| d.becomes == "left out").count();
    assert_eq!(left, 2);
}

#[test]
fn a_new_identity_is_told() {
    let options = ConvertOptions { id: Some(VmId(guid(77))), ..ConvertOptions::default() };
    let conversion = convert(&rich(), &options);
    assert_eq!(conversion.spec.id, VmId(guid(77)));
    assert_eq!(about(&conversion, "GUID").why, "a new identity was asked for");
}

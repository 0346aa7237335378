//! What is exported is what comes back.

use super::common::*;
use backstay_hyperv::VmConfig;
use backstay_hyperv::foreign::{
    Bus, Checkpoint, Document, DriveKind, ExportError, ExportFile, Integration, Level, Machine, Nic, NicKind,
    Place, SourceKind, Target, Vlan, export_files, from_config, read,
};
use backstay_model::{
    DriveMedia, DriveSlot, DriveSpec, NicAttachment, NicId, NicSpec, VirtualHardware, VmId, VmSpec,
};
use proptest::prelude::*;

/// Reads an export as an importer does: machines, then the checkpoints that lie beside them.
fn import(files: &[ExportFile]) -> Machine {
    let documents: Vec<Document> =
        files.iter().flat_map(|file| read(&file.bytes, Place::of(&file.path)).unwrap()).collect();
    let (machines, checkpoints): (Vec<_>, Vec<_>) =
        documents.into_iter().partition(|document| matches!(document, Document::Machine(_)));
    let mut machine = only_machine(machines);
    for checkpoint in checkpoints.into_iter().map(checkpoint_of) {
        assert!(machine.owns(&checkpoint), "{checkpoint:?}");
        machine.adopt(checkpoint);
    }
    machine.settle_tree();
    machine
}

/// Without what depends on the form it was read from.
fn comparable(mut machine: Machine) -> Machine {
    machine.source = Machine::empty(SourceKind::Xml).source;
    machine.not_understood.clear();
    for checkpoint in &mut machine.checkpoints {
        checkpoint.source = Checkpoint::empty(SourceKind::Xml).source;
        checkpoint.not_understood.clear();
    }
    machine
}

/// What that version cannot say: a switch's name, the service that came later, and the clock.
fn as_2008(machine: &mut Machine) {
    let checkpoints = machine.checkpoints.iter_mut().map(|c| &mut c.settings);
    for settings in checkpoints.chain([&mut machine.settings]) {
        settings.nics.iter_mut().for_each(|nic| nic.switch_name.clear());
        settings.time_skew_100ns = None;
        settings.integration.retain(|s| s.service != Integration::GuestServices);
    }
}

#[test]
fn xml_exports_come_back_whole() {
    for target in [Target::Hyperv2012R2, Target::Backstay] {
        let (files, differences) = export_files(&rich(), target).unwrap();
        assert_eq!(differences, []);
        let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "Virtual Machines/00000000-0000-0000-0000-000000001000.xml",
                "Snapshots/00000000-0000-0000-0000-000000002000.xml",
                "Snapshots/00000000-0000-0000-0000-000000003000.xml",
            ]
        );
        assert!(files.iter().all(|file| file.bytes.starts_with(&[0xFF, 0xFE])));
        assert_eq!(comparable(import(&files)), comparable(rich()));
    }
}

#[test]
fn exp_exports_come_back_whole_but_for_what_2008_never_knew() {
    let (files, differences) = export_files(&rich(), Target::Hyperv2008).unwrap();
    assert_eq!(differences, []);
    assert!(files.iter().all(|file| file.path.ends_with(".exp")));
    let mut wanted = comparable(rich());
    as_2008(&mut wanted);
    let found = import(&files);
    assert_eq!(found.not_understood, []);
    assert_eq!(comparable(found), wanted);
}

#[test]
fn what_a_target_cannot_have_is_refused_or_told() {
    let mut machine = rich();
    machine.checkpoints[1].settings.controllers[0].drives[0] = drive(0, DriveKind::Vhdx, r"D:\a.avhdx");
    let refused = export_files(&machine, Target::Hyperv2008);
    assert_eq!(refused, Err(ExportError::NotVhd(r"D:\a.avhdx".into())));
    assert!(export_files(&machine, Target::Hyperv2012R2).is_ok());
    let mut machine = rich();
    machine.generation = VirtualHardware::Gen2;
    assert_eq!(export_files(&machine, Target::Hyperv2008), Err(ExportError::Generation2));
    let mut machine = rich();
    machine.settings.processors.count = 65;
    machine.settings.memory.startup_mib = 2 << 20;
    machine.settings.nics[0].vlan = Vlan::Access(3);
    machine.settings.tpm = true;
    let (_, differences) = export_files(&machine, Target::Hyperv2012R2).unwrap();
    let told: Vec<_> = differences.iter().map(|d| (d.what.as_str(), d.level)).collect();
    let (stop, attention) = (Level::Stop, Level::Attention);
    assert_eq!(
        told,
        [
            ("processors", stop),
            ("memory", stop),
            ("VLAN of network card 'LAN'", attention),
            ("TPM", attention)
        ]
    );
    assert_eq!(export_files(&machine, Target::Backstay).unwrap().1, []);
    machine.checkpoints[0].id = machine.id;
    assert_eq!(export_files(&machine, Target::Backstay), Err(ExportError::GuidTwice(guid(0x1000))));
    machine.id = None;
    assert!(matches!(export_files(&machine, Target::Backstay), Err(ExportError::NoGuid(_))));
    let mut machine = rich();
    machine.notes = "\u{1}".into();
    assert!(matches!(export_files(&machine, Target::Backstay), Err(ExportError::Apply(_))));
}

fn spec() -> VmSpec {
    let json = serde_json::json!({
        "id": guid(5), "name": "ours", "memory_mib": 512, "bios_guid": guid(6), "machine_type": "pc"
    });
    let mut spec: VmSpec = serde_json::from_value(json).unwrap();
    let virtio = |index| DriveSlot::Virtio { index };
    spec.attach(DriveSpec::new(virtio(0), DriveMedia::Disk("/vm/a.vhd".into())));
    spec.attach(DriveSpec::new(virtio(1), DriveMedia::Disk("/vm/b.vhd".into())));
    spec.attach(DriveSpec::new("ide:0:1".parse().unwrap(), DriveMedia::EmptyOptical));
    let mac = "00-15-5D-01-07-01".parse().unwrap();
    spec.nics.push(NicSpec {
        id: NicId(guid(7)),
        mac,
        model: Default::default(),
        attachment: NicAttachment::User,
    });
    spec
}

#[test]
fn our_own_machine_comes_to_places_that_others_have() {
    let config = VmConfig::new(&spec(), 0).unwrap();
    let own = only_machine(read(&config.to_bytes(), Place::default()).unwrap());
    assert_eq!(own.source.kind, SourceKind::Own, "it is told that there is more to it");
    let mut copy = config.clone();
    let meta = backstay_hyperv::CheckpointMeta {
        id: backstay_model::CheckpointId(guid(8)),
        name: "c".into(),
        notes: String::new(),
        parent: None,
        created_unix_ms: 5,
        has_memory: true,
        method: None,
    };
    copy.set_checkpoint_meta(Some(&meta)).unwrap();
    let (machine, differences) = from_config(&config, &[copy]);
    let drives: Vec<_> =
        machine.settings.drives().map(|(c, d)| (c.bus, c.number, d.location, d.path.as_str())).collect();
    assert_eq!(drives, [(Bus::Ide, 0, 0, "/vm/a.vhd"), (Bus::Ide, 0, 1, ""), (Bus::Ide, 1, 0, "/vm/b.vhd")]);
    assert!(!machine.settings.nics[0].connected);
    let told: Vec<_> = differences.iter().map(|d| (d.what.as_str(), d.becomes.as_str())).collect();
    assert_eq!(
        told,
        [
            ("drive virtio:0", "IDE 0:0"),
            ("drive virtio:1", "IDE 1:0"),
            ("network card 00-15-5D-01-07-01", "unplugged")
        ]
    );
    let [checkpoint] = machine.checkpoints.as_slice() else { panic!("{:?}", machine.checkpoints) };
    assert_eq!((checkpoint.id, checkpoint.created_unix_ms), (Some(guid(8)), Some(5)));
    assert_eq!(checkpoint.settings.controllers, machine.settings.controllers);
    let (files, _) = export_files(&machine, Target::Hyperv2008).unwrap();
    assert_eq!(import(&files).settings.drives().count(), 3);
}

#[test]
fn a_neutral_machine_becomes_our_configuration() {
    let machine = rich();
    let conversion = machine.to_spec(&machine.settings, &Default::default());
    let mut config = machine.to_config(VmId(guid(1))).unwrap();
    config.apply_spec(&conversion.spec).unwrap();
    assert_eq!(config.spec().0, conversion.spec);
    let serial = config.get("_ac6b8dc1-3257-4a70-b1b2-a9c9215659ad_/bios_serial_number").unwrap();
    assert_eq!(serial.text(), "1981-9952-3234", "what only the source knows stays");
}

fn text() -> impl Strategy<Value = String> {
    "[ -~\u{e9}\u{6587}]{0,20}"
}

fn nics() -> impl Strategy<Value = Vec<Nic>> {
    let one =
        (any::<u32>(), any::<bool>(), text(), any::<[u8; 5]>(), any::<bool>(), prop::option::of(1..9u128));
    proptest::collection::vec(one, 0..5).prop_map(|found| {
        found
            .into_iter()
            .enumerate()
            .map(|(number, (id, legacy, name, mac, connected, switch))| Nic {
                id: Some(guid(u128::from(id) << 32 | number as u128 | 1 << 90)),
                // The kind is told by the name where the form has no word for it.
                name: if legacy {
                    format!("Legacy {}", name.trim())
                } else {
                    format!("card {}", name.trim())
                },
                kind: if legacy { NicKind::Legacy } else { NicKind::Synthetic },
                mac: Some(backstay_model::MacAddress([2, mac[0], mac[1], mac[2], mac[3], mac[4]])),
                mac_is_static: mac[0] % 2 == 0,
                connected: connected && switch.is_some(),
                switch_name: String::new(),
                switch_id: switch.filter(|_| connected).map(guid),
                vlan: Vlan::None,
                mac_spoofing: None,
                bandwidth: None,
            })
            .collect()
    })
}

fn machines() -> impl Strategy<Value = Machine> {
    let disk = (0..64u32, text(), any::<bool>());
    let disks = proptest::collection::vec(disk, 0..6);
    (text(), text(), nics(), disks, any::<u32>(), 1..1_000_000u64).prop_map(
        |(name, notes, nics, disks, number, memory)| {
            let mut machine = rich();
            machine.name = format!("x{name}x");
            machine.notes = format!("x{notes}x");
            machine.settings.nics = nics;
            machine.settings.memory.startup_mib = memory;
            machine.settings.processors.weight = number;
            let scsi = machine
                .settings
                .controllers
                .iter_mut()
                .find(|c| c.bus == Bus::Scsi && c.number == 1)
                .unwrap();
            for (location, path, optical) in disks {
                let kind = if optical { DriveKind::Iso } else { DriveKind::Vhd };
                let path = format!(r"D:\{path}x.{}", if optical { "iso" } else { "vhd" });
                if scsi.drives.iter().all(|d| d.location != location) {
                    scsi.drives.push(drive(location, kind, &path));
                }
            }
            scsi.drives.sort_by_key(|d| d.location);
            machine
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn any_machine_survives_every_form(machine in machines()) {
        for target in [Target::Hyperv2008, Target::Hyperv2012R2, Target::Backstay] {
            let (files, _) = export_files(&machine, target).unwrap();
            let mut wanted = comparable(machine.clone());
            if target == Target::Hyperv2008 {
                as_2008(&mut wanted);
            }
            let found = comparable(import(&files));
            // The order of cards is that of the form where synthetic and emulated ones are kept apart.
            prop_assert_eq!(found, wanted);
        }
    }
}

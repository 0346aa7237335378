//! The collector's JSON.

use super::common::*;
use backstay_hyperv::foreign::{
    Bus, CheckpointKind, Document, DriveKind, Integration, NicKind, Place, ReadError, Recovery, Vlan, read,
};
use backstay_model::{BootDevice, HostStartAction, HostStopAction, VirtualHardware};

pub const ONE: &str = r#"{
  "format": "backstay-collect", "version": 1, "collected": "2026-11-24T01:00:00Z",
  "host": { "name": "HV1", "os": "Windows", "namespace": "root\\virtualization\\v2" },
  "machines": {
    "id": "0AA394FA-7C4A-4070-BA32-773D43B28A68", "name": "web", "notes": "n", "created": "2014-11-07T06:30:00Z",
    "version": "9.0", "generation": "2", "state": "saved", "clustered": true, "scopeOfResidence": null,
    "configurationRoot": "D:\\VMs\\web", "parent": "9932FF54-E40F-4AD5-9F36-5E8FBCED8825",
    "actions": { "start": "nothing", "startDelaySeconds": "30", "stop": "shutdown", "recovery": "revert" },
    "surprise": [1, 2],
    "settings": {
      "processors": { "count": 4, "reserve": 0, "limit": 100000, "weight": 100, "nested": true },
      "memory": { "startupMib": 2048, "dynamic": true, "minMib": 512, "maxMib": 8192, "bufferPercent": 20, "weight": 5000 },
      "firmware": { "biosGuid": "{7FFEE066-9755-4950-9A16-4C94AC67AD00}", "bootOrder": ["hard-drive", "tape", "network"],
        "secureBoot": true, "tpm": true },
      "controllers": { "bus": "scsi", "number": 0, "id": "D7A36E9B-9256-4F0D-BE2C-3A13887F7B03" },
      "drives": [
        { "bus": "scsi", "controller": 0, "location": 1, "kind": "optical", "path": null },
        { "bus": "scsi", "controller": 0, "location": 0, "kind": "disk", "path": "D:\\web.AVHDX", "maxIops": 500 },
        { "bus": "scsi", "controller": 0, "location": 0, "kind": "disk", "path": "D:\\twin.vhdx" },
        { "bus": "floppy", "controller": 0, "location": 0, "kind": "floppy", "path": null },
        { "bus": null, "controller": null, "location": 0, "kind": "disk", "path": "D:\\lost.vhdx" }
      ],
      "nics": { "id": "55225880-49C0-4438-9CE2-5A01402FD8CB", "name": "LAN", "kind": "synthetic", "mac": "00155D0107DC",
        "macIsStatic": false, "connected": true, "switch": "Внешний", "switchId": "438B7B13-6180-4155-B7BF-08709CCF234D",
        "vlan": { "mode": "trunk", "native": 1, "allowed": "10,20" }, "macSpoofing": true, "maxBps": 1000000, "minBps": null },
      "comPorts": [], "integration": [ { "service": "vss", "enabled": false } ]
    },
    "checkpoints": { "id": "9932FF54-E40F-4AD5-9F36-5E8FBCED8825", "name": "c", "parent": null,
      "created": "2014-11-08T06:30:00.25Z", "kind": "recovery", "settings": { "memory": { "startupMib": 1 } } }
  }
}"#;

#[test]
fn a_collected_machine_is_whole_and_powershells_habits_do_no_harm() {
    let bom: Vec<u8> = [0xEF, 0xBB, 0xBF].into_iter().chain(ONE.bytes()).collect();
    let utf16: Vec<u8> =
        [0xFF, 0xFE].into_iter().chain(ONE.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    let machine = only_machine(read(ONE.as_bytes(), Place::default()).unwrap());
    for bytes in [bom, utf16] {
        assert_eq!(only_machine(read(&bytes, Place::default()).unwrap()), machine);
    }
    assert_eq!(
        (machine.source.host.as_deref(), machine.source.version.as_deref()),
        (Some("HV1"), Some("9.0"))
    );
    assert_eq!(
        (machine.name.as_str(), machine.generation, machine.clustered),
        ("web", VirtualHardware::Gen2, true)
    );
    assert_eq!(machine.created_unix_ms, Some(1_415_341_800_000));
    assert_eq!((machine.actions.start, machine.actions.start_delay_s), (HostStartAction::Nothing, 30));
    assert_eq!(
        (machine.actions.stop, machine.actions.recovery),
        (HostStopAction::Shutdown, Recovery::Revert)
    );
    assert!(machine.saved_state.is_some(), "it is saved, whatever its files are called");
    let settings = &machine.settings;
    assert!(settings.processors.nested && settings.tpm);
    assert_eq!(settings.memory.dynamic.unwrap().max_mib, 8192);
    assert_eq!(settings.firmware.boot_order, [BootDevice::HardDrive, BootDevice::Network]);
    let drives: Vec<_> =
        settings.drives().map(|(c, d)| (c.bus, d.location, d.kind, d.qos.max_iops)).collect();
    assert_eq!(drives, [(Bus::Scsi, 0, DriveKind::Vhdx, 500), (Bus::Scsi, 1, DriveKind::EmptyOptical, 0)]);
    let [nic] = settings.nics.as_slice() else { panic!("{:?}", settings.nics) };
    assert_eq!((nic.kind, nic.mac.unwrap().to_string().as_str()), (NicKind::Synthetic, "00-15-5D-01-07-DC"));
    assert_eq!(nic.vlan, Vlan::Trunk { native: 1, allowed: "10,20".into() });
    assert_eq!((nic.mac_spoofing, nic.bandwidth.unwrap().max_bps), (Some(true), 1_000_000));
    assert_eq!((settings.integration[0].service, settings.integration[0].enabled), (Integration::Vss, false));
    let [checkpoint] = machine.checkpoints.as_slice() else { panic!("{:?}", machine.checkpoints) };
    assert_eq!((checkpoint.id, checkpoint.kind), (machine.now_parent, CheckpointKind::Recovery));
    assert_eq!(checkpoint.created_unix_ms, Some(1_415_428_200_250));
    assert_eq!(checkpoint.settings.memory.startup_mib, 1);
    let noted: Vec<_> = machine.not_understood.iter().map(|n| n.path.as_str()).collect();
    let wanted =
        ["settings.firmware.bootOrder", "settings.drives[2].location", "settings.drives[4].path", "surprise"];
    let wanted: Vec<String> = wanted.iter().map(|w| format!("machines[0].{w}")).collect();
    assert_eq!(noted, wanted);
}

#[test]
fn what_is_not_the_collectors_is_refused_with_the_reason() {
    let fails = |text: &str| read(text.as_bytes(), Place::default()).unwrap_err().to_string();
    assert!(fails("{").contains("no JSON"));
    assert!(fails("[]").contains("no JSON object"));
    assert!(fails(r#"{"format": "other"}"#).contains("backstay-collect"));
    let newer = read(br#"{"format": "backstay-collect", "version": 2}"#, Place::default());
    assert_eq!(newer, Err(ReadError::CollectorVersion { found: 2, known: 1 }));
    assert!(fails(&"[".repeat(5000)).contains("recursion"), "depth is limited");
    let large = vec![b'{'; (8 << 20) + 1];
    assert!(read(&large, Place::default()).unwrap_err().to_string().contains("at most"));
    let none: Vec<Document> =
        read(br#"{"format": "backstay-collect", "version": 1}"#, Place::default()).unwrap();
    assert!(none.is_empty());
}

/// The collector itself says every member that the reader knows, and nothing else.
#[test]
fn script_reader_and_document_name_the_same_members() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let script = std::fs::read_to_string(root.join("packaging/collect/backstay-collect.ps1")).unwrap();
    let document = std::fs::read_to_string(root.join("docs/formats/collector.md")).unwrap();
    let reader = std::fs::read_to_string(root.join("crates/hyperv/src/foreign/collector.rs")).unwrap();
    let calls = [
        "text(", "texts(", "count(", "guid(", "boolean(", "word(", "object(", "objects(", "time(", "parsed(",
        "place(",
    ];
    let called = |word: &str| calls.iter().any(|call| reader.contains(&format!("{call}\"{word}\"")));
    let known: std::collections::BTreeSet<&str> =
        reader.split('"').skip(1).step_by(2).filter(|word| called(word)).collect();
    assert!(known.len() > 60, "{known:?}");
    for member in known {
        assert!(document.contains(member), "docs/formats/collector.md does not name '{member}'");
        let said = format!("{member} = ");
        let quoted = format!("'{member}' = ");
        if member != "timeSkew100ns" {
            assert!(
                script.contains(&said) || script.contains(&quoted),
                "the collector never writes '{member}'"
            );
        }
    }
}

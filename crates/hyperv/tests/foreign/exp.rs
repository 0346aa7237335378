//! `.exp`: instances as Hyper-V hosts wrote them.

use super::common::*;
use backstay_hyperv::foreign::{
    Bus, ConvertOptions, Document, DriveKind, Level, Machine, NicKind, Place, ReadError, Recovery,
    SourceKind, read, read_exp,
};
use backstay_hyperv::{CimDocument, ParseError};
use backstay_model::{BootDevice, HostStartAction, HostStopAction};
use proptest::collection::vec;
use proptest::prelude::*;
use std::process::Command;

const VM: &str = "2F1DD3A9-FD64-4174-BAD2-97B61A4BC0F5";
const SNAPSHOT: &str = "9932FF54-E40F-4AD5-9F36-5E8FBCED8825";

/// The instances that were recorded from hosts, by the beginning of their files' names.
#[expect(clippy::disallowed_methods, reason = "the fixture is an archive")]
fn recorded() -> Option<Vec<(String, String)>> {
    let archive = fixtures().join("hyperv/wmi-v1-instances.tar.xz");
    if !archive.exists() {
        println!("skipped: {} is absent (set BACKSTAY_FIXTURES)", archive.display());
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let done = Command::new("tar").arg("-C").arg(folder.path()).arg("-xJf").arg(&archive).status();
    if !done.is_ok_and(|status| status.success()) {
        println!("skipped: tar cannot unpack {}", archive.display());
        return None;
    }
    let mut found: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let text = String::from_utf8(std::fs::read(entry.path()).unwrap()).unwrap();
            (entry.file_name().into_string().unwrap(), text)
        })
        .collect();
    found.sort();
    Some(found)
}

fn envelope(instances: &[String]) -> Vec<u8> {
    let objects: String = instances.iter().map(|i| format!("<VALUE.OBJECT>{i}</VALUE.OBJECT>")).collect();
    let text = format!("<DECLARATIONS><DECLGROUP>{objects}</DECLGROUP></DECLARATIONS>");
    [0xFF, 0xFE].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect()
}

fn property(name: &str, value: &str) -> String {
    format!(r#"<PROPERTY NAME="{name}" CLASSORIGIN="x" TYPE="string"><VALUE>{value}</VALUE></PROPERTY>"#)
}

fn array(name: &str, values: &[&str]) -> String {
    let values: String = values.iter().map(|v| format!("<VALUE>{v}</VALUE>")).collect();
    format!(
        r#"<PROPERTY.ARRAY NAME="{name}" TYPE="uint16"><VALUE.ARRAY>{values}</VALUE.ARRAY></PROPERTY.ARRAY>"#
    )
}

fn instance(class: &str, properties: &[String]) -> String {
    format!(r#"<INSTANCE CLASSNAME="{class}">{}</INSTANCE>"#, properties.concat())
}

fn global(scope: &str) -> String {
    instance(
        "Msvm_VirtualSystemGlobalSettingData",
        &[
            property("SystemName", VM),
            property("ElementName", "old &amp; good"),
            property("AutomaticStartupAction", "2"),
            property("AutomaticStartupActionDelay", "00000000000130.000000:000"),
            property("AutomaticShutdownAction", "0"),
            property("AutomaticRecoveryAction", "2"),
            property("ExternalDataRoot", r"D:\VMs\old"),
            property("SnapshotDataRoot", r"D:\VMs\old"),
            property("ScopeOfResidence", scope),
        ],
    )
}

fn system(own: &str, kind: &str, name: &str, parent: &str) -> String {
    let parent = format!(
        r#"\\HOST\root\virtualization:Msvm_VirtualSystemSettingData.InstanceID=&quot;Microsoft:{parent}&quot;"#
    );
    instance(
        "Msvm_VirtualSystemSettingData",
        &[
            property("InstanceID", &format!("Microsoft:{own}")),
            property("SystemName", VM),
            property("ElementName", name),
            property("SettingType", kind),
            property("CreationTime", "20090301120000.000000+060"),
            property("BIOSGUID", "{7FFEE066-9755-4950-9A16-4C94AC67AD00}"),
            property("BIOSSerialNumber", "1981-9952"),
            array("BootOrder", &["2", "1", "3", "9"]),
            property("Notes", "a note"),
            property("Parent", &parent),
        ],
    )
}

fn with_machine(instances: &[String], scope: &str) -> Machine {
    let mut all = vec![global(scope), system(VM, "3", "old", SNAPSHOT), system(SNAPSHOT, "5", "clean", "")];
    all.extend_from_slice(instances);
    only_machine(read(&envelope(&all), Place::default()).unwrap())
}

#[test]
fn recorded_instances_become_a_machine() {
    let Some(recorded) = recorded() else { return };
    // What was recorded comes from several machines; each kind of allocation of one of them becomes the machine's.
    let of = |wanted: &[&str]| -> Vec<String> {
        let fits = |text: &String| wanted.iter().all(|w| text.contains(w));
        recorded.iter().map(|(_, text)| text.clone()).filter(fits).collect()
    };
    let mut parts = of(&["Msvm_ResourceAllocationSettingData", VM]);
    assert_eq!(parts.len(), 3, "a disk image, its drive, and a physical disk");
    for class in ["Msvm_ProcessorSettingData", "Msvm_MemorySettingData"] {
        let one = of(&[&format!("CLASSNAME=\"{class}\"")]).remove(0);
        let owner = one.split("Microsoft:").nth(1).unwrap()[..36].to_owned();
        parts.push(one.replace(&owner, VM));
    }
    parts.push(of(&["Msvm_SyntheticEthernetPortSettingData", "7407CBBF"]).remove(0));
    let machine = with_machine(&parts, "");
    let settings = &machine.settings;
    assert_eq!(
        (settings.processors.count, settings.processors.limit, settings.processors.reserve),
        (1, 100_000, 1)
    );
    assert_eq!((settings.memory.startup_mib, settings.memory.dynamic), (512, None));
    let drives: Vec<_> = settings.drives().map(|(c, d)| (c.bus, c.number, d.location, d.kind)).collect();
    assert_eq!(drives, [(Bus::Ide, 0, 0, DriveKind::Vhd), (Bus::Scsi, 0, 0, DriveKind::PassThrough)]);
    let (_, disk) = settings.drives().next().unwrap();
    assert!(
        disk.path.starts_with(r"C:\Hyper-V\test\instances\openstack_unit_test_vm_088bb855"),
        "{}",
        disk.path
    );
    let [nic] = settings.nics.as_slice() else { panic!("{:?}", settings.nics) };
    assert_eq!((nic.kind, nic.connected, nic.mac_is_static), (NicKind::Synthetic, true, true));
    assert_eq!(nic.mac.unwrap().to_string(), "DE-AD-BE-EF-00-00");
    assert_eq!(nic.switch_id.unwrap().to_string(), "7407cbbf-c8e9-45cb-94f4-fc2031529484");
    let noted: Vec<_> = machine.not_understood.iter().map(|n| n.path.as_str()).collect();
    assert_eq!(noted, ["Msvm_VirtualSystemSettingData.BootOrder"], "{:?}", machine.not_understood);
}

#[test]
fn every_recorded_instance_survives_reading_and_writing() {
    let Some(recorded) = recorded() else { return };
    let texts: Vec<String> = recorded.iter().map(|(_, text)| text.clone()).collect();
    let document = CimDocument::parse(&envelope(&texts)).unwrap();
    let again = CimDocument::parse(&document.to_bytes()).unwrap();
    assert_eq!(again, document);
    assert_eq!(document.instances().len(), texts.len());
    // An independent look: every property of every file is there with its text.
    for ((name, text), instance) in recorded.iter().zip(again.instances()) {
        let count = text.matches("<VALUE>").count();
        let kept: usize = instance
            .properties()
            .map(|(_, value)| match value {
                backstay_hyperv::CimValue::One(_) => 1,
                backstay_hyperv::CimValue::Many(values) => values.len(),
            })
            .sum();
        assert_eq!(kept, count, "{name}");
        if let Some(id) = instance.get("instanceid") {
            assert!(text.contains(id.first().unwrap()), "{name}");
        }
    }
}

#[test]
fn the_2008_trap_is_read_told_and_never_written() {
    let scope = "{2F1DD3A9-0000-4174-BAD2-97B61A4BC0F5}";
    for scope in ["", scope] {
        let machine = with_machine(&[], scope);
        assert_eq!(machine.scope_of_residence, scope);
        let conversion = machine.to_spec(&machine.settings, &ConvertOptions::default());
        let told: Vec<_> = conversion.differences.iter().filter(|d| d.what == "ScopeOfResidence").collect();
        match scope {
            "" => assert!(told.is_empty()),
            scope => {
                assert_eq!((told[0].was.as_str(), told[0].becomes.as_str()), (scope, "dropped"));
                assert!(told[0].why.contains("0x80070057") && told[0].level == Level::Attention);
            }
        }
        let (files, _) =
            backstay_hyperv::foreign::export_files(&machine, backstay_hyperv::foreign::Target::Hyperv2008)
                .unwrap();
        let again = only_machine(read(&files[0].bytes, Place::of(&files[0].path)).unwrap());
        assert_eq!(again.scope_of_residence, "");
    }
    let bytes = envelope(&[global(scope), system(VM, "3", "old", "")]);
    let mut document = CimDocument::parse(&bytes).unwrap();
    assert_eq!(document.clear("msvm_virtualsystemglobalsettingdata", "scopeofresidence"), 1);
    let cured = only_machine(read(&document.to_bytes(), Place::default()).unwrap());
    assert_eq!((cured.scope_of_residence.as_str(), cured.name.as_str()), ("", "old & good"));
}

#[test]
fn settings_of_a_machine_and_its_snapshot_are_kept_apart() {
    let disk = |owner: &str, path: &str| {
        let parent = format!(
            r#"\\H\root\virtualization:X.InstanceID=&quot;Microsoft:{owner}\\83F8638B-8DCA-4152-9EDA-2CA8B33039B4\\1\\1\\D&quot;"#
        );
        instance(
            "Msvm_ResourceAllocationSettingData",
            &[
                property(
                    "InstanceID",
                    &format!(r"Microsoft:{owner}\83F8638B-8DCA-4152-9EDA-2CA8B33039B4\1\1\L"),
                ),
                property("ResourceSubType", "Microsoft Virtual Hard Disk"),
                property("ResourceType", "21"),
                property("Parent", &parent),
                array("Connection", &[path]),
            ],
        )
    };
    let stranger = "AAAAAAAA-FD64-4174-BAD2-97B61A4BC0F5";
    let machine = with_machine(
        &[
            disk(VM, r"D:\now.avhd"),
            disk(&SNAPSHOT.to_lowercase(), r"D:\base.vhd"),
            disk(stranger, r"D:\other.vhd"),
        ],
        "",
    );
    assert_eq!(machine.source.kind, SourceKind::Exp);
    assert_eq!((machine.name.as_str(), machine.notes.as_str()), ("old & good", "a note"));
    assert_eq!((machine.actions.start, machine.actions.start_delay_s), (HostStartAction::Start, 90));
    assert_eq!((machine.actions.stop, machine.actions.recovery), (HostStopAction::TurnOff, Recovery::Revert));
    assert_eq!(machine.now_parent.unwrap().to_string(), SNAPSHOT.to_lowercase());
    let firmware = &machine.settings.firmware;
    assert_eq!(firmware.boot_order, [BootDevice::HardDrive, BootDevice::Optical, BootDevice::Network]);
    let only = |settings: &backstay_hyperv::foreign::Settings| {
        let drives: Vec<_> = settings.drives().map(|(c, d)| (c.number, d.location, d.path.clone())).collect();
        drives
    };
    assert_eq!(only(&machine.settings), [(1, 1, r"D:\now.avhd".to_owned())]);
    let [checkpoint] = machine.checkpoints.as_slice() else { panic!("{:?}", machine.checkpoints) };
    assert_eq!((checkpoint.name.as_str(), checkpoint.parent), ("clean", None));
    assert_eq!(checkpoint.created_unix_ms, Some(1_235_905_200_000), "2009-03-01 11:00 UTC");
    assert_eq!(only(&checkpoint.settings), [(1, 1, r"D:\base.vhd".to_owned())]);
    assert!(
        machine.not_understood.iter().any(|n| n.value.eq_ignore_ascii_case(stranger)),
        "{:?}",
        machine.not_understood
    );
}

#[test]
fn a_snapshots_own_file_is_a_checkpoint() {
    let bytes = envelope(&[system(SNAPSHOT, "5", "clean", "")]);
    let found = read_exp(&bytes, Place::of("Snapshots/x.exp")).unwrap();
    let [Document::Checkpoint(checkpoint)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(checkpoint.machine.unwrap().to_string(), VM.to_lowercase());
    assert_eq!(checkpoint.id.unwrap().to_string(), SNAPSHOT.to_lowercase());
}

#[test]
fn what_is_no_export_is_refused_with_the_reason() {
    assert_eq!(read(b"<CIM><X/></CIM>", Place::default()), Err(ReadError::ExpWithoutMachine));
    let bomb = b"<!DOCTYPE a [<!ENTITY b \"c\">]><DECLARATIONS>&b;</DECLARATIONS>";
    assert!(matches!(read_exp(bomb, Place::default()), Err(ReadError::Exp(ParseError::Entity(_)))));
    assert!(matches!(CimDocument::parse(b"<configuration/>"), Err(ParseError::NoCim(_))));
}

/// Names of elements and attributes, known ones among them.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("INSTANCE".to_owned()),
        Just("PROPERTY".to_owned()),
        Just("VALUE".to_owned()),
        Just("QUALIFIER".to_owned()),
        "[A-Z][A-Za-z._]{0,8}",
    ]
}

fn escaped() -> impl Strategy<Value = String> {
    r#"[a-z\\é文 ]{0,10}(&amp;|&lt;|&quot;|&#10;)?[A-Z]{0,4}"#
}

fn element() -> impl Strategy<Value = String> {
    let attribute = prop_oneof![
        escaped().prop_map(|value| format!(r#" NAME="{value}""#)),
        escaped().prop_map(|value| format!(r#" CLASSNAME="{value}""#)),
        escaped().prop_map(|value| format!(r#" xml:lang="{value}""#)),
        Just(String::new()),
    ];
    let leaf = (name(), attribute.clone(), escaped())
        .prop_map(|(name, attribute, text)| format!("<{name}{attribute}>{text}</{name}>"));
    leaf.prop_recursive(4, 40, 5, move |inner| {
        (name(), attribute.clone(), vec(inner, 0..5))
            .prop_map(|(name, attribute, inner)| format!("<{name}{attribute}>{}</{name}>", inner.concat()))
    })
}

proptest! {
    #[test]
    fn instances_that_nobody_knows_survive(elements in vec(element(), 0..6), comment in "[a-z ]{0,9}") {
        let text = format!("<DECLARATIONS><!--{comment}--><DECLGROUP>{}</DECLGROUP></DECLARATIONS>", elements.concat());
        let document = CimDocument::parse(text.as_bytes()).unwrap();
        let bytes = document.to_bytes();
        let again = CimDocument::parse(&bytes).unwrap();
        prop_assert_eq!(&again, &document);
        prop_assert_eq!(again.to_bytes(), bytes.clone());
        // An independent look: apart from blanks between elements the text is the same.
        let units: Vec<u16> = bytes[2..].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
        let written = String::from_utf16(&units).unwrap();
        let plain = |text: &str| {
            let text = text.replace("\r\n", "\n").replace("&#10;", "\n").replace("&#xA;", "\n").replace("&quot;", "\"");
            text.split_whitespace().collect::<String>()
        };
        prop_assert!(plain(&written).ends_with(&plain(&text)), "{written}");
    }
}

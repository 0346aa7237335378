//! Configurations as users have them: Hyper-V's own file, a small one of ours in UTF-16, and damaged ones.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use backstay_hyperv::{ApplyError, Element, ParseError, Value, VmConfig, Warning, unix_ms_from_filetime};
use backstay_model::{
    BootDevice, DriveMedia, DriveSlot, DriveSpec, HostStartAction, HostStopAction, MacAddress, NicAttachment,
    RecoveryAction, VirtualHardware, VmName,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use uuid::Uuid;

const SAMPLE: &[u8] = include_bytes!("data/sample-utf16.xml");

#[expect(clippy::disallowed_methods, reason = "the fixture is a file")]
fn fixture() -> Option<Vec<u8>> {
    let folder = std::env::var_os("BACKSTAY_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures"),
        PathBuf::from,
    );
    let file = folder.join("hyperv/vm-2012r2.XML");
    let bytes = std::fs::read(&file).ok();
    if bytes.is_none() {
        println!("skipped: {} is absent (set BACKSTAY_FIXTURES)", file.display());
    }
    bytes
}

/// Path of every leaf with its text and attributes; an independent walk over the text, not our parser.
fn leaves(text: &str) -> BTreeMap<String, Vec<String>> {
    let (mut stack, mut found) = (Vec::<String>::new(), BTreeMap::<String, Vec<String>>::new());
    for piece in text.replace("\r\n", "\n").split('<').skip(1) {
        let (tag, after) = piece.split_once('>').unwrap();
        if tag.starts_with('?') || tag.starts_with('!') {
            continue;
        }
        if tag.starts_with('/') {
            stack.pop();
            continue;
        }
        let name = tag.split(' ').next().unwrap();
        stack.push(name.into());
        if !after.trim().is_empty() || tag.contains("type=") {
            found.entry(stack.join("/")).or_default().push(format!("{tag}|{}", after.trim()));
        }
    }
    found
}

fn as_text(utf16: &[u8]) -> String {
    assert_eq!(utf16[..2], [0xFF, 0xFE], "Hyper-V's files start with a byte-order mark");
    let units: Vec<u16> = utf16[2..].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
    String::from_utf16(&units).unwrap()
}

#[test]
fn hyper_v_2012_r2_file_is_understood() {
    let Some(bytes) = fixture() else { return };
    let config = VmConfig::parse(&bytes).unwrap();
    let (spec, warnings) = config.spec();
    assert_eq!(warnings, [Warning::NoMachineType]);
    assert_eq!(spec.id.to_string(), "0AA394FA-7C4A-4070-BA32-773D43B28A68");
    assert_eq!(spec.name.as_str(), "2012R2");
    assert_eq!(
        (spec.memory_mib, spec.cpu.count, spec.cpu.weight, spec.cpu.limit_percent),
        (1024, 1, 100, 100)
    );
    assert_eq!(spec.hardware, VirtualHardware::Gen1);
    let disk = r"C:\dev\vagrant\Win2k12R2\.vagrant\machines\default\hyperv\disk.vhd";
    assert_eq!(
        spec.drives,
        [
            DriveSpec::new("ide:0:0".parse().unwrap(), DriveMedia::Disk(disk.into())),
            DriveSpec::new("ide:1:0".parse().unwrap(), DriveMedia::EmptyOptical),
        ]
    );
    assert_eq!(spec.nics.len(), 1);
    assert_eq!(spec.nics[0].mac, MacAddress([0, 0x15, 0x5D, 1, 7, 0xDC]));
    assert_eq!(spec.nics[0].attachment, NicAttachment::Switch("Virtual External Switch".into()));
    assert_eq!(spec.boot_order.len(), 4);
    assert_eq!(spec.host_stop, HostStopAction::Save);
    assert_eq!(config.version(), Some(1280));
    // 2014-11-09, the day the file's power-on times fall on.
    assert_eq!(unix_ms_from_filetime(config.created().unwrap()) / 86_400_000, 16_383);
}

#[test]
fn hyper_v_2012_r2_file_survives_rewriting_without_loss() {
    let Some(bytes) = fixture() else { return };
    let config = VmConfig::parse(&bytes).unwrap();
    let written = config.to_bytes();
    assert_eq!(leaves(&as_text(&written)), leaves(std::str::from_utf8(&bytes).unwrap()));
    assert_eq!(VmConfig::parse(&written).unwrap(), config);
    // Applying what it says already changes nothing.
    let mut same = config.clone();
    same.apply_spec(&config.spec().0).unwrap();
    assert_eq!(same.to_bytes(), written);
}

#[test]
fn a_utf16_file_comes_out_byte_for_byte() {
    let config = VmConfig::parse(SAMPLE).unwrap();
    assert_eq!(as_text(&config.to_bytes()), as_text(SAMPLE));
}

#[test]
fn all_encodings_read_the_same() {
    let config = VmConfig::parse(SAMPLE).unwrap();
    let text = as_text(SAMPLE);
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let bom_big = [&[0xFE, 0xFF], big.as_slice()].concat();
    let bom_utf8 = [&[0xEF, 0xBB, 0xBF], text.as_bytes()].concat();
    for bytes in [&SAMPLE[2..], &big, &bom_big, &bom_utf8, text.as_bytes()] {
        assert_eq!(VmConfig::parse(bytes).unwrap(), config);
    }
}

#[test]
fn what_has_no_counterpart_is_reported_and_kept() {
    let mut config = VmConfig::parse(SAMPLE).unwrap();
    let (mut spec, warnings) = config.spec();
    let said: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    for word in ["75400", "weight", "PHYSICAL", "Fibre Channel", "2048 MiB"] {
        assert!(said.iter().any(|w| w.contains(word)), "{word} in {said:#?}");
    }
    assert_eq!((spec.cpu.limit_percent, spec.cpu.weight), (75, 1));
    assert_eq!(spec.name.as_str(), "Пошта & <файлы>");
    assert_eq!(spec.notes, "first line\nsecond line");
    assert_eq!(spec.boot_order, [BootDevice::HardDrive, BootDevice::Optical]);
    assert_eq!(spec.recovery, RecoveryAction::None);
    assert_eq!(spec.host_start, HostStartAction::Start);
    assert_eq!(config.drive_path("scsi:0:63".parse().unwrap()), Some(r"D:\last.vhd".into()));

    spec.name = VmName::new("renamed").unwrap();
    spec.memory_mib = 4096;
    config.apply_spec(&spec).unwrap();
    let before = as_text(SAMPLE);
    let after = as_text(&config.to_bytes());
    let changed: Vec<&str> = after.lines().filter(|line| !before.contains(line)).map(str::trim).collect();
    assert_eq!(
        changed,
        [r#"<name type="string">renamed</name>"#, r#"<size type="integer">4096</size>"#],
        "only what was asked for changes"
    );
    assert_eq!(before.lines().count(), after.lines().count());
}

#[test]
fn a_drive_gets_another_file_and_keeps_the_rest() {
    let mut config = VmConfig::parse(SAMPLE).unwrap();
    let slot: DriveSlot = "scsi:0:0".parse().unwrap();
    config.set_drive_path(slot, Path::new("/vm/data_1.avhdx")).unwrap();
    assert_eq!(config.drive_path(slot), Some("/vm/data_1.avhdx".into()));
    let drive = config.root().children().next().unwrap().at("controller0/drive0").unwrap();
    assert_eq!(drive.child("weight").unwrap().value(), Some(Value::Integer(100)));
    for empty in ["ide:0:1", "scsi:1:0", "virtio:0"] {
        let slot = empty.parse().unwrap();
        assert_eq!(config.set_drive_path(slot, Path::new("/x")), Err(ApplyError::NoDrive(slot)));
    }
}

#[test]
fn a_clone_keeps_settings_and_nothing_of_the_life_of_its_source() {
    let Some(bytes) = fixture() else { return };
    let mut source = VmConfig::parse(&bytes).unwrap();
    let machine_type = Value::String("pc-i440fx-10.0".into());
    for path in ["backstay/machine_type", "backstay/home", "backstay/from_the_future", "backstay/now/parent"]
    {
        source.set(path, &machine_type).unwrap();
    }
    source.set_template(true);
    assert!(source.is_template());
    let serial = |config: &VmConfig| {
        let node =
            config.get("_ac6b8dc1-3257-4a70-b1b2-a9c9215659ad_/bios_serial_number").and_then(Element::value);
        node.map(|value| value.text()).unwrap_or_default()
    };
    let clone = source.for_clone(Uuid::from_u128(u128::MAX), 7);
    assert!(!clone.is_template() && clone.created() == Some(7));
    let ours: Vec<_> = clone.get("backstay").unwrap().children().map(Element::name).collect();
    assert_eq!(ours, ["machine_type"]);
    assert_eq!(clone.spec().0, source.spec().0, "identity and files are for the caller to change");
    if !serial(&source).is_empty() {
        assert_ne!(serial(&source), serial(&clone));
        let groups: Vec<_> = serial(&clone).split('-').map(str::len).collect();
        assert_eq!(groups, [4, 4, 4, 4, 4, 4, 2], "{}", serial(&clone));
    }
}

#[test]
fn hostile_files_are_refused_by_name() {
    let parse = |text: &str| VmConfig::parse(text.as_bytes()).unwrap_err();
    let deep = "<configuration>".to_owned() + &"<a>".repeat(100_000);
    assert_eq!(parse(&deep), ParseError::TooDeep(64));
    let many = format!("<configuration>{}</configuration>", "<a/>".repeat(200_001));
    assert_eq!(parse(&many), ParseError::TooMany(200_000));
    let laughs = "<!DOCTYPE c [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;\">]><configuration>&b;</configuration>";
    assert!(matches!(parse(laughs), ParseError::Entity(_)));
    assert_eq!(parse("<configuration>&b;</configuration>"), ParseError::Entity("b".into()));
    assert_eq!(parse("<html></html>"), ParseError::OtherRoot("html".into()));
    assert_eq!(parse(""), ParseError::Empty);
    for bad in [
        "<configuration>",
        "<configuration></settings>",
        "<configuration/><configuration/>",
        "<configuration/>text",
        "<configuration a='1' a='2'/>",
        "<configuration>&#1;</configuration>",
        "<configuration>\u{1}</configuration>",
        "<configuration><a=/></configuration>",
    ] {
        assert!(matches!(parse(bad), ParseError::Malformed { .. }), "{bad:?} gave {:?}", parse(bad));
    }
    let odd = [0xFF, 0xFE, b'<', 0, b'a'];
    assert!(matches!(VmConfig::parse(&odd), Err(ParseError::Encoding { encoding: "UTF-16", .. })));
    let lone = [0xFF, 0xFE, 0x00, 0xD8, b'<', 0];
    assert_eq!(VmConfig::parse(&lone), Err(ParseError::Encoding { encoding: "UTF-16", offset: 2 }));
    assert!(matches!(VmConfig::parse(b"<c>\xFF</c>"), Err(ParseError::Encoding { encoding: "UTF-8", .. })));
}

#[test]
fn an_almost_empty_configuration_still_reads_and_can_be_filled() {
    let mut config = VmConfig::parse(b"<configuration/>").unwrap();
    let (spec, warnings) = config.spec();
    assert_eq!(config.id(), None);
    assert!(
        warnings.iter().any(|w| matches!(w, Warning::Missing { path, .. } if path == "properties/global_id"))
    );
    let (full, _) = VmConfig::parse(SAMPLE).unwrap().spec();
    config.apply_spec(&full).unwrap();
    assert_eq!(config.spec().0, full);
    assert_ne!(spec, full);
}

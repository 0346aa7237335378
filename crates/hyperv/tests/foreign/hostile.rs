//! Bytes that somebody made to do harm: refused, or handled in bounded time and memory.

use super::common::*;
use backstay_hyperv::ParseError;
use backstay_hyperv::foreign::{Place, ReadError, Target, export_files, read};
use backstay_model::SpecError;

fn xml_error(text: &str) -> ParseError {
    match read(text.as_bytes(), Place::default()) {
        Err(ReadError::Xml(error) | ReadError::Exp(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_million_nodes_are_refused() {
    for (start, end) in [("<configuration>", "</configuration>"), ("<DECLARATIONS>", "</DECLARATIONS>")] {
        let text = format!("{start}{}{end}", "<a/>".repeat(1_000_000));
        assert_eq!(xml_error(&text), ParseError::TooMany(200_000));
        let text = format!("{start}{}{}{end}", "<a>".repeat(65), "</a>".repeat(65));
        assert_eq!(xml_error(&text), ParseError::TooDeep(64));
    }
}

#[test]
fn entities_are_never_expanded() {
    let outside = r#"<?xml version="1.0"?><!DOCTYPE configuration [<!ENTITY x SYSTEM "file:///etc/passwd">]><configuration>&x;</configuration>"#;
    assert_eq!(read(outside.as_bytes(), Place::default()), Err(ReadError::Unknown), "not even looked into");
    assert!(matches!(backstay_hyperv::VmConfig::parse(outside.as_bytes()), Err(ParseError::Entity(_))));
    assert!(matches!(xml_error("<configuration>&laughs;</configuration>"), ParseError::Entity(_)));
    assert!(matches!(xml_error("<DECLARATIONS>&laughs;</DECLARATIONS>"), ParseError::Entity(_)));
}

/// As many sections, drives and cards as fit under the limits: it takes no time that is worth measuring.
#[test]
fn many_devices_take_no_square_of_time() {
    let mut manifest = String::new();
    let mut sections = String::new();
    for number in 0..9_000 {
        let instance = format!("{number:08x}-0000-0000-0000-000000000000");
        let class = if number % 2 == 0 {
            "d422512d-2bf2-4752-809d-7b82b5fcb1b4"
        } else {
            "2fc216b0-d2e2-4967-9b6d-b8a5c9ca2778"
        };
        manifest +=
            &format!("<vdev{number}><device>{class}</device><instance>{instance}</instance></vdev{number}>");
        sections += &format!(
            "<_{instance}_><controller0><drive{number}><pathname>a</pathname><type>VHD</type></drive{number}></controller0></_{instance}_>"
        );
    }
    let drives: String =
        (0..9_000).map(|n| format!("<drive{n}><pathname>a</pathname><type>VHD</type></drive{n}>")).collect();
    let text = format!(
        "<configuration>{sections}<_83f8638b-8dca-4152-9eda-2ca8b33039b4_><controller0>{drives}</controller0></_83f8638b-8dca-4152-9eda-2ca8b33039b4_><manifest>{manifest}</manifest></configuration>"
    );
    let machine = only_machine(read(text.as_bytes(), Place::default()).unwrap());
    assert!(machine.settings.nics.len() <= 256 && machine.settings.drives().count() <= 64 * 257);
    assert!(machine.not_understood.len() <= 301);
    let spec = machine.to_spec(&machine.settings, &Default::default()).spec;
    assert!(
        matches!(spec.validate(), Err(SpecError::DiskTwice(_))),
        "one file in many drives is for the importer to tell"
    );
}

#[test]
fn rings_of_snapshots_and_thousands_of_them() {
    let snapshot = |own: u32, parent: u32| {
        let id = |n: u32| format!("{n:08X}-FD64-4174-BAD2-97B61A4BC0F5");
        format!(
            r#"<INSTANCE CLASSNAME="Msvm_VirtualSystemSettingData"><PROPERTY NAME="InstanceID"><VALUE>Microsoft:{}</VALUE></PROPERTY><PROPERTY NAME="SettingType"><VALUE>5</VALUE></PROPERTY><PROPERTY NAME="Parent"><VALUE>X.InstanceID="Microsoft:{}"</VALUE></PROPERTY></INSTANCE>"#,
            id(own),
            id(parent)
        )
    };
    let global = r#"<INSTANCE CLASSNAME="Msvm_VirtualSystemGlobalSettingData"><PROPERTY NAME="SystemName"><VALUE>2F1DD3A9-FD64-4174-BAD2-97B61A4BC0F5</VALUE></PROPERTY></INSTANCE>"#;
    let text = |count: u32| {
        let all: String = (0..count).map(|n| snapshot(n + 1, (n + 1) % count + 1)).collect();
        format!("<DECLGROUP>{global}{all}</DECLGROUP>")
    };
    let mut machine = only_machine(read(text(4).as_bytes(), Place::default()).unwrap());
    machine.settle_tree();
    assert_eq!(machine.checkpoints.iter().filter(|c| c.parent.is_none()).count(), 1, "the ring is cut once");
    assert!(export_files(&machine, Target::Hyperv2008).is_ok());
    let mut machine = only_machine(read(text(9_000).as_bytes(), Place::default()).unwrap());
    assert_eq!(machine.checkpoints.len(), 1024);
    machine.settle_tree();
}

#[test]
fn a_collectors_file_with_a_hundred_thousand_surprises() {
    let members: String = (0..100).map(|n| format!(r#""m{n}": {n}, "#)).collect();
    let drives = format!(r#"{{{members}"path": "x"}},"#).repeat(1000);
    let text = format!(
        r#"{{"format": "backstay-collect", "version": 1, "machines": [{{"settings": {{"drives": [{drives} 7]}}}}]}}"#
    );
    let machine = only_machine(read(text.as_bytes(), Place::default()).unwrap());
    assert_eq!(machine.not_understood.len(), 301);
    assert!(machine.not_understood[300].why.contains("further"));
}

//! `.vmcx`: our writer, our reader, and a reader of others.

use super::common::*;
use super::xml::leaves;
use backstay_hyperv::foreign::{Place, ReadError, SourceKind, read, read_vmcx};
use backstay_hyperv::vmcx::{Content, Entry, Store, VmcxError};
use backstay_hyperv::{Value, VmConfig};
use proptest::collection::vec;
use proptest::prelude::*;
use std::process::Command;

fn entry(name: &str, content: Content) -> Entry {
    Entry { name: name.as_bytes().to_vec(), content, flags: 0 }
}

fn node(name: &str, entries: Vec<Entry>) -> Entry {
    entry(name, Content::Node { tracking: 0, entries })
}

fn rich_config() -> VmConfig {
    let machine = rich();
    let mut config = machine.to_config(backstay_model::VmId(guid(1))).unwrap();
    // Beyond what is kept inside of a table.
    config.set("settings/large_text", &Value::String("ж".repeat(5000))).unwrap();
    config.set("settings/large_bytes", &Value::Bytes(vec![7; 2048])).unwrap();
    config.set("settings/small_bytes", &Value::Bytes(vec![7; 2047])).unwrap();
    config.set("settings/real", &Value::Double(1.5)).unwrap();
    config
}

#[test]
fn a_configuration_says_the_same_in_both_forms() {
    let config = rich_config();
    let bytes = Store::of_configuration(config.root()).to_bytes().unwrap();
    let (store, doubts) = Store::parse(&bytes).unwrap();
    assert_eq!(doubts, Vec::<String>::new());
    assert_eq!(store.to_bytes().unwrap(), bytes, "written again it is the same file");
    let mut found = machine_of(read_vmcx(&bytes, Place::default()).unwrap());
    assert_eq!(found.source.kind, SourceKind::Vmcx);
    found.source.kind = SourceKind::Xml;
    let xml = read(&config.to_bytes(), Place::default()).unwrap();
    assert_eq!(found, only_machine(xml));
}

/// `dissect.hypervisor` reads what we write: every value, with its type.
#[test]
#[expect(clippy::disallowed_methods, reason = "another program reads the file")]
fn another_reader_reads_our_file() {
    const SCRIPT: &str = r#"
import json, sys
from dissect.hypervisor.descriptor.hyperv import HyperVFile
found = {}
def walk(path, value):
    if isinstance(value, dict):
        for name, below in value.items():
            walk(path + "/" + name, below)
    elif isinstance(value, (bytes, bytearray)):
        found[path] = "hex " + bytes(value).hex()
    else:
        found[path] = type(value).__name__ + " " + str(value)
with open(sys.argv[1], "rb") as file:
    walk("", HyperVFile(file).as_dict())
print(json.dumps(found))
"#;
    let python = std::env::var("BACKSTAY_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", "import dissect.hypervisor.descriptor.hyperv"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        println!("skipped: {python} has no dissect.hypervisor (BACKSTAY_PYTHON names another)");
        return;
    }
    let config = rich_config();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("machine.vmcx");
    std::fs::write(&file, Store::of_configuration(config.root()).to_bytes().unwrap()).unwrap();
    let output = Command::new(&python).args(["-c", SCRIPT]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: std::collections::BTreeMap<String, String> = serde_json::from_slice(&output.stdout).unwrap();
    let mut checked = 0;
    for (path, text) in leaves(&config) {
        let leaf = config.get(path.trim_start_matches('/')).unwrap();
        let wanted = match leaf.value().unwrap() {
            Value::Integer(number) => format!("int {number}"),
            Value::Bool(true) => "bool True".into(),
            Value::Bool(false) => "bool False".into(),
            Value::Double(number) => format!("float {number}"),
            Value::Bytes(bytes) => {
                format!("hex {}", bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())
            }
            Value::String(_) => format!("str {text}"),
        };
        assert_eq!(found.get(&format!("/configuration{path}")), Some(&wanted), "{path}");
        checked += 1;
    }
    assert!(checked > 100 && found.len() >= checked, "{checked} of {}", found.len());
}

#[test]
fn damage_is_refused_told_or_without_effect() {
    let bytes = Store::of_configuration(rich_config().root()).to_bytes().unwrap();
    let at = |offset: usize, part: &[u8]| {
        let mut copy = bytes.clone();
        copy[offset..offset + part.len()].copy_from_slice(part);
        Store::parse(&copy)
    };
    // The newer header is lost: the older copy says the same.
    assert_eq!(at(0, &[0; 46]).unwrap().1, Vec::<String>::new());
    let both = |part: &[u8]| {
        let mut copy = bytes.clone();
        copy[..part.len()].copy_from_slice(part);
        copy[0x1000..0x1000 + part.len()].copy_from_slice(part);
        Store::parse(&copy)
    };
    assert_eq!(both(&[0; 46]), Err(VmcxError::NoHeader));
    let header: Vec<u8> = bytes[..46].to_vec();
    let with = |offset: usize, part: &[u8]| {
        let mut copy = header.clone();
        copy[offset..offset + part.len()].copy_from_slice(part);
        both(&copy)
    };
    assert_eq!(with(10, &[0, 2, 0, 0]), Err(VmcxError::Version(0x0200)));
    assert_eq!(with(10, &[0, 5, 0, 0]), Err(VmcxError::Version(0x0500)));
    assert!(matches!(with(26, &[0xFF; 8]), Err(VmcxError::Damaged { .. })), "a log beyond the end");
    assert!(with(14, &[9]).unwrap().1[0].contains("checksum"), "a checksum that does not fit is told");
    let log = usize::try_from(u64::from_le_bytes(bytes[26..34].try_into().unwrap())).unwrap();
    assert_eq!(at(log + 8, &[3]), Err(VmcxError::Dirty(3)));
    assert!(at(log + 8, &[3]).unwrap_err().to_string().contains("cleanly stop"), "with the cure");
    assert!(
        matches!(at(0x2004, &[0xFF, 0xFF, 0, 0]), Err(VmcxError::Damaged { .. })),
        "more objects than fit"
    );
    assert!(matches!(at(0x2004, &[0xFF; 4]), Err(VmcxError::TooMany(_))));
    // The first object becomes an object table at its own place.
    let mut ring = vec![1, 0, 0, 0, 0];
    ring.extend_from_slice(&0x2000u64.to_le_bytes());
    assert!(at(0x2008, &ring).unwrap_err().to_string().contains("back to itself"));
    let keys = usize::try_from(u64::from_le_bytes(bytes[0x200D..0x2015].try_into().unwrap())).unwrap();
    assert!(
        matches!(at(keys + 10 + 2, &[0xFF; 4]), Err(VmcxError::Damaged { .. })),
        "an entry longer than its table"
    );
    assert!(
        matches!(at(keys + 10 + 2, &[5, 0, 0, 0]), Err(VmcxError::Damaged { .. })),
        "and one shorter than itself"
    );
    // The root hangs below itself: nothing is left of it, and that is told.
    let mut parent = 1u16.to_le_bytes().to_vec();
    parent.extend_from_slice(&10u32.to_le_bytes());
    let (store, doubts) = at(keys + 10 + 6, &parent).unwrap();
    assert!(store.entries.is_empty() && doubts.iter().any(|d| d.contains("hang below none")), "{doubts:?}");
    for end in [0, 1, 45, 46, 0x1000, 0x2000, 0x2007, keys + 15, bytes.len() - 4096] {
        assert!(Store::parse(&bytes[..end]).is_err(), "cut off at {end}");
    }
}

/// As Hyper-V's own checker wants it: entries reach the end of their table exactly.
#[test]
fn tables_are_filled_to_their_ends() {
    let bytes = Store::of_configuration(rich_config().root()).to_bytes().unwrap();
    let (number, word) = (|at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()), 18);
    let mut tables = 0;
    for object in (0x2008..).step_by(word).take(number(0x2004) as usize).filter(|at| bytes[*at] == 2) {
        let start = number(object + 5) as usize;
        let mut at = start + 10;
        while at < start + 4096 {
            assert!(at + 21 < start + 4096, "an entry that the checker does not see, at {at:#x}");
            at += number(at + 2) as usize;
        }
        assert_eq!(at, start + 4096);
        tables += 1;
    }
    assert!(tables > 3, "{tables}");
}

#[test]
fn what_lies_on_top_of_each_other_is_refused() {
    let values = (0..60).map(|n| entry(&format!("v{n}"), Content::Bytes(vec![n; 3000]))).collect();
    let bytes = Store { data_version: 0, entries: vec![node("n", values)] }.to_bytes().unwrap();
    // Every value becomes the whole file.
    let mut same = bytes.clone();
    for at in 0x3000..bytes.len() - 12 {
        let value = u64::from_le_bytes(bytes[at + 4..at + 12].try_into().unwrap());
        if bytes[at..at + 4] == 3000u32.to_le_bytes() && value % 0x1000 == 0 && value > 0 {
            same[at..at + 4].copy_from_slice(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
            same[at + 4..at + 12].fill(0);
        }
    }
    assert!(Store::parse(&same).unwrap_err().to_string().contains("values lie on top"));
    // Every key table reaches to the end of the file.
    let mut long = Store::of_configuration(rich_config().root()).to_bytes().unwrap();
    for object in (0x2008..0x2008 + 18 * 8).step_by(18).filter(|at| long[*at] == 2).collect::<Vec<_>>() {
        let start = u32::from_le_bytes(long[object + 5..object + 9].try_into().unwrap());
        let size = u32::try_from(long.len()).unwrap() - start;
        long[object + 13..object + 17].copy_from_slice(&size.to_le_bytes());
    }
    assert!(Store::parse(&long).unwrap_err().to_string().contains("key tables lie on top"));
}

#[test]
fn limits_are_named() {
    let too_large = vec![0; (16 << 20) + 1];
    assert!(matches!(Store::parse(&too_large), Err(VmcxError::TooLarge { .. })));
    let mut deep = node("leaf", vec![]);
    for _ in 0..63 {
        deep = node("n", vec![deep]);
    }
    let store = |entries| Store { data_version: 0, entries };
    assert!(store(vec![deep.clone()]).to_bytes().and_then(|b| Store::parse(&b)).is_ok());
    let too_deep = store(vec![node("n", vec![node("n", vec![deep])])]);
    assert!(matches!(too_deep.to_bytes(), Err(VmcxError::TooDeep(_))));
    let unwritable = store(vec![node(&"n".repeat(255), vec![])]);
    assert!(unwritable.to_bytes().unwrap_err().to_string().contains("254"));
    let many = store(vec![node("n", (0..200_001).map(|_| entry("a", Content::Int(1))).collect())]);
    assert!(matches!(many.to_bytes(), Err(VmcxError::TooMany(_))));
    let other = store(vec![node("savedstate", vec![])]).to_bytes().unwrap();
    assert_eq!(read(&other, Place::default()), Err(ReadError::VmcxWithoutConfiguration));
}

fn leaf() -> impl Strategy<Value = Content> {
    prop_oneof![
        any::<i64>().prop_map(Content::Int),
        any::<u64>().prop_map(Content::UInt),
        any::<u64>().prop_map(Content::Double),
        any::<u32>().prop_map(Content::Bool),
        vec(any::<u16>(), 0..40).prop_map(Content::String),
        vec(any::<u8>(), 0..60).prop_map(Content::Bytes),
        // Around the size from which values are outside, and tables are filled to their ends.
        (1990..2060usize, any::<u8>()).prop_map(|(size, byte)| Content::Bytes(vec![byte; size])),
        (1020..1030usize, any::<u16>()).prop_map(|(size, unit)| Content::String(vec![unit; size])),
        (10..20u8, vec(any::<u8>(), 0..30)).prop_map(|(kind, data)| Content::Unknown { kind, data }),
    ]
}

fn tree() -> impl Strategy<Value = Vec<Entry>> {
    let name = vec(1..=255u8, 0..40);
    let flags = prop_oneof![Just(0u8), Just(2), Just(4)];
    let leaf =
        (name.clone(), leaf(), flags).prop_map(|(name, content, flags)| Entry { name, content, flags });
    let any = leaf.prop_recursive(4, 120, 12, move |inner| {
        (name.clone(), any::<u64>(), vec(inner, 0..12)).prop_map(|(name, tracking, entries)| Entry {
            name,
            content: Content::Node { tracking, entries },
            flags: 0,
        })
    });
    vec(any, 0..8)
}

proptest! {
    #[test]
    fn every_value_survives(entries in tree(), data_version in any::<u32>()) {
        let store = Store { data_version, entries };
        let (read, doubts) = Store::parse(&store.to_bytes().unwrap()).unwrap();
        prop_assert_eq!(doubts, Vec::<String>::new());
        prop_assert_eq!(read, store);
    }

    #[test]
    fn damaged_bytes_never_panic(edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = Store::of_configuration(rich_config().root()).to_bytes().unwrap();
        for (at, byte) in &edits {
            // Mostly where it hurts: headers, tables and the first entries.
            let end = if byte % 3 == 0 { bytes.len() } else { 0x3400 };
            let at = at.index(end);
            bytes[at] = *byte;
        }
        if let Ok((store, _)) = Store::parse(&bytes)
            && let Ok(again) = store.to_bytes()
        {
            prop_assert!(Store::parse(&again).is_ok());
        }
    }
}

//! The fuzzer's corpora on the stable compiler, and seeded damage to them.

#![expect(clippy::disallowed_methods, reason = "the corpora are files")]

use super::common::*;
use backstay_hyperv::foreign::{Target, export_files};
use backstay_hyperv::fuzz;
use backstay_hyperv::vmcx::Store;
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// A target's name and body.
type Body = (&'static str, fn(&[u8]));

const TARGETS: [Body; 5] = [
    ("hyperv_xml", fuzz::xml),
    ("hyperv_exp", fuzz::exp),
    ("hyperv_vmcx", fuzz::vmcx),
    ("hyperv_store", fuzz::store),
    ("hyperv_collector", fuzz::collector),
];

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<_> =
        fs::read_dir(folder(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "the corpus of {target} is incomplete");
    files.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn the_corpora_are_survived() {
    for (target, body) in TARGETS {
        for data in corpus(target) {
            body(&data);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn damage_is_survived(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        for (_, body) in TARGETS {
            body(&edits.iter().flat_map(|(at, byte)| [*byte, at.index(256).to_le_bytes()[0]]).collect::<Vec<_>>());
        }
        for (target, body) in TARGETS {
            for mut data in corpus(target) {
                for (at, byte) in &edits {
                    let at = at.index(data.len());
                    data[at] = if byte % 2 == 0 { *byte } else { b"<>/=\"'& !?-[]{}0aZ"[usize::from(byte % 18)] };
                }
                body(&data);
            }
        }
    }
}

/// Writes the corpora anew: `cargo test -p backstay-hyperv -- --ignored the_seeds`.
#[test]
#[ignore = "writes into the source tree"]
fn the_seeds_are_made_from_machines_of_ours() {
    let put = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(folder(target)).unwrap();
        fs::write(folder(target).join(name), bytes).unwrap();
    };
    let as_utf8 = |bytes: &[u8]| {
        let units: Vec<u16> = bytes[2..].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
        String::from_utf16(&units).unwrap().into_bytes()
    };
    let (xml, _) = export_files(&rich(), Target::Backstay).unwrap();
    put("hyperv_xml", "machine", &xml[0].bytes);
    put("hyperv_xml", "checkpoint", &as_utf8(&xml[1].bytes));
    put("hyperv_xml", "sample", include_bytes!("../data/sample-utf16.xml"));
    let (exp, _) = export_files(&rich(), Target::Hyperv2008).unwrap();
    put("hyperv_exp", "machine", &as_utf8(&exp[0].bytes));
    put("hyperv_exp", "snapshot", &exp[1].bytes);
    let config = rich().to_config(backstay_model::VmId(guid(1))).unwrap();
    put("hyperv_vmcx", "machine", &Store::of_configuration(config.root()).to_bytes().unwrap());
    let small = backstay_hyperv::VmConfig::parse(b"<configuration><a type=\"integer\">1</a></configuration>")
        .unwrap();
    put("hyperv_vmcx", "small", &Store::of_configuration(small.root()).to_bytes().unwrap());
    put(
        "hyperv_xml",
        "small",
        b"<configuration><properties><name type=\"string\">a</name></properties></configuration>",
    );
    let small = "<INSTANCE CLASSNAME=\"Msvm_VirtualSystemSettingData\"><PROPERTY NAME=\"SettingType\"><VALUE>5</VALUE></PROPERTY></INSTANCE>";
    put("hyperv_exp", "small", small.as_bytes());
    put("hyperv_store", "tree", &[0, 1, 2, 3, 0, 9, 5, 40, 7, 200, 1, 5, 7, 121, 1, 1, 6, 1]);
    put("hyperv_collector", "one", super::collector::ONE.as_bytes());
}

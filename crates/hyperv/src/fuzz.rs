//! Bodies of the fuzz targets: whatever a file holds, nothing panics, nothing grows without bound, and what was read is
//! written and read again as the same. `fuzz/` runs them; a test replays their corpora.

use crate::foreign::{ConvertOptions, Document, Machine, Place, Target, export_files, from_config, read};
use crate::vmcx::{Content, Entry, Store};
use crate::{CimDocument, VmConfig};

/// A `.xml`.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn xml(data: &[u8]) {
    if let Ok(config) = VmConfig::parse(data) {
        let again = VmConfig::parse(&config.to_bytes()).map_err(|error| error.to_string());
        assert_eq!(again.as_ref(), Ok(&config), "a configuration is read as it was written");
        let (machine, _) = from_config(&config, std::slice::from_ref(&config));
        assert!(machine.checkpoints.len() <= 1, "one configuration is one checkpoint");
    }
    documents(data);
}

/// A `.exp`.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn exp(data: &[u8]) {
    if let Ok(document) = CimDocument::parse(data) {
        let again = CimDocument::parse(&document.to_bytes()).map_err(|error| error.to_string());
        assert_eq!(again.as_ref(), Ok(&document), "an export is read as it was written");
        let mut cured = document.clone();
        cured.clear("Msvm_VirtualSystemGlobalSettingData", "ScopeOfResidence");
        assert_eq!(cured.instances().len(), document.instances().len(), "no instance is lost");
    }
    documents(data);
}

/// A `.vmcx`.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn vmcx(data: &[u8]) {
    if let Ok((store, _)) = Store::parse(data)
        && let Ok(bytes) = store.to_bytes()
        && bytes.len() <= 16 << 20
    {
        let (again, doubts) = Store::parse(&bytes).unwrap_or_else(|error| panic!("our own file: {error}"));
        assert_eq!(doubts, Vec::<String>::new(), "our own file leaves no doubt");
        assert_eq!(again, store, "values are read as they were written");
    }
    documents(data);
}

/// The collector's JSON.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn collector(data: &[u8]) {
    documents(data);
}

/// A store of values that hang on each other as `data` says: what a fuzzer of whole files reaches only by luck.
///
/// # Panics
/// When a rule is broken, which is what a fuzzer looks for.
pub fn store(data: &[u8]) {
    let mut open: Vec<Vec<Entry>> = vec![Vec::new()];
    let mut bytes = data.iter().copied();
    while let (Some(kind), Some(size)) = (bytes.next(), bytes.next()) {
        let name = vec![b'a' + kind % 26; usize::from(size % 200)];
        let value: Vec<u8> = std::iter::repeat_n(kind, usize::from(size) * 17).collect();
        let content = match kind % 8 {
            0 if open.len() < 60 => {
                open.push(Vec::new());
                continue;
            }
            1 if open.len() > 1 => {
                let entries = open.pop().unwrap_or_default();
                Content::Node { tracking: size.into(), entries }
            }
            2 => Content::Int(-i64::from(size)),
            3 => Content::UInt(size.into()),
            4 => Content::Double(size.into()),
            5 => Content::String(value.iter().map(|byte| u16::from(*byte)).collect()),
            6 => Content::Bool(size.into()),
            _ => Content::Bytes(value),
        };
        if let Some(entries) = open.last_mut() {
            entries.push(Entry { name, content, flags: 0 });
        }
    }
    let store = Store { data_version: 7, entries: open.into_iter().next().unwrap_or_default() };
    if let Ok(bytes) = store.to_bytes() {
        let (again, doubts) = Store::parse(&bytes).unwrap_or_else(|error| panic!("our own file: {error}"));
        assert_eq!((again, doubts), (store, Vec::new()), "values are read as they were written");
    }
}

/// What every reader has to keep.
fn documents(data: &[u8]) {
    for place in [Place::default(), Place { guid: None, in_snapshots: true }] {
        let found = read(data, place);
        assert_eq!(found, read(data, place), "the same bytes give the same answer");
        for document in found.unwrap_or_default() {
            let Document::Machine(mut machine) = document else { continue };
            machine.settle_tree();
            machine_rules(&machine);
        }
    }
}

fn machine_rules(machine: &Machine) {
    assert!(machine.not_understood.len() <= 2000, "the list of what was not understood is bounded");
    let conversion = machine.to_spec(&machine.settings, &ConvertOptions::default());
    let mut spec = conversion.spec;
    // One file in two drives is the importer's to tell.
    spec.drives.clear();
    assert_eq!(spec.validate(), Ok(()), "a converted machine keeps all rules");
    for target in [Target::Hyperv2008, Target::Hyperv2012R2, Target::Backstay] {
        if let Ok((files, _)) = export_files(machine, target) {
            for file in files {
                let place = Place::of(&file.path);
                let found = read(&file.bytes, place);
                assert!(found.is_ok(), "{} of our own is read: {found:?}", file.path);
            }
        }
    }
}

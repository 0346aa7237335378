//! Every type of event that the daemon can write has an entry that `backstay explain` shows.

#![expect(clippy::unwrap_used, reason = "a panic in a test is the report")]

use backstay_api::explain::{CodeGroup, explain};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(fs::read_to_string(path).unwrap());
        }
    }
}

/// Words in quotes of the form `noun.verb` behind one of the ways an event's type is given.
fn kinds(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for way in ["kind: ", "Told::new(", "happening(", "happened("] {
        for part in text.split(way).skip(1) {
            // `kind: if x { "a.b" } else { "a.c" }` names two.
            let line = part.lines().next().unwrap_or_default();
            let words = line.split('"').skip(1).step_by(2);
            let looks_like = |word: &&str| {
                word.contains('.') && word.chars().all(|c| c.is_ascii_lowercase() || c == '.' || c == '-')
            };
            found.extend(words.filter(looks_like).map(str::to_owned));
        }
    }
    found
}

#[test]
fn every_event_is_explained() {
    let mut texts = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut texts);
    let written: BTreeSet<String> = texts.iter().flat_map(|text| kinds(text)).collect();
    assert!(written.len() > 15 && written.contains("vm.state"), "the types are found: {written:?}");
    let missing: Vec<_> = written
        .iter()
        .filter(|kind| !explain(kind).iter().any(|found| found.group == CodeGroup::Event))
        .collect();
    assert!(missing.is_empty(), "add an entry to crates/api/src/explain/events.rs for {missing:?}");
}

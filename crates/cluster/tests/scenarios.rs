//! Scenarios: commands in, transcript out, one file per rule in `tests/scenarios`.
//!
//! A file begins with `# ` and the rule, then come commands (see `lab`), a line `---`, and the transcript. `UPDATE_SCENARIOS=1`
//! writes the transcripts anew: read the difference before you keep it.

mod lab;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let entries = std::fs::read_dir(&folder).expect("a folder of scenarios");
    let mut files: Vec<_> = entries
        .map(|e| e.expect("a file").path())
        .filter(|p| p.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    files
}

#[expect(clippy::disallowed_methods, reason = "the crate reads no files, its scenarios are some")]
fn read(path: &Path) -> String {
    String::from_utf8(std::fs::read(path).expect("a file")).expect("text")
}

#[expect(clippy::disallowed_methods, reason = "the crate writes no files, its scenarios are some")]
fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file that can be written");
}

#[test]
fn every_scenario_has_its_transcript() {
    let update = std::env::var_os("UPDATE_SCENARIOS").is_some();
    let mut wrong = Vec::new();
    for path in files() {
        let text = read(&path);
        let (commands, expected) = text.split_once("---\n").unwrap_or((&text, ""));
        let actual = lab::transcript(commands);
        if actual == expected {
            continue;
        }
        if update {
            write(&path, &format!("{}\n---\n{actual}", commands.trim_end()));
        } else {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            wrong.push(format!("{name}\n{}", difference(expected, &actual)));
        }
    }
    assert!(wrong.is_empty(), "{} scenarios differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// The first lines that differ.
fn difference(expected: &str, actual: &str) -> String {
    let (mut expected, mut actual) = (expected.lines(), actual.lines());
    loop {
        match (expected.next(), actual.next()) {
            (None, None) => return "  only line ends differ".into(),
            (a, b) if a == b => {}
            (a, b) => {
                return format!("  expected: {}\n  actual:   {}", a.unwrap_or("(end)"), b.unwrap_or("(end)"));
            }
        }
    }
}

#[test]
fn each_names_a_rule_of_its_own_and_breaks_none() {
    let mut rules: BTreeMap<String, String> = BTreeMap::new();
    let all = files();
    assert!(all.len() > 150, "{} scenarios", all.len());
    for path in all {
        let text = read(&path);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("# "), "{name}: the first line names the rule");
        assert!(!text.contains("CHECK:"), "{name}: a plan broke a rule");
        if let Some(other) = rules.insert(first.to_owned(), name.clone()) {
            panic!("{name} and {other} name the same rule");
        }
    }
}

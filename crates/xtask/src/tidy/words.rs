//! Words that must not be in the tree: unfinished work, silenced lints, and anything that only makes sense on one machine.

use super::Source;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// Text, where it is looked for, and why not. Written in pieces so that this file does not find itself.
const IN_CODE: &[(&str, &str, &str)] = &[
    (".se", "ek(", "files are read and written at positions: a shared cursor corrupts"),
    ("todo", "!(", "unfinished work does not land"),
    ("unimplemented", "!(", "unfinished work does not land"),
    ("#[al", "low(", "use #[expect(lint, reason = \"...\")]: it goes stale loudly"),
    ("#![al", "low(", "use #![expect(lint, reason = \"...\")]: it goes stale loudly"),
    ("#[ig", "nore]", "say when it runs: #[ignore = \"...\"]"),
];

const ANYWHERE: &[(&str, &str, &str)] = &[
    ("../sha", "red", "the tree stands alone: only tests may name the default of BACKSTAY_FIXTURES"),
    ("/work", "/", "a path of one machine"),
    ("/ho", "me/", "a path of one machine"),
    ("<<<<", "<<< ", "an unresolved merge"),
    ("deb.deb", "ian.org", "a host of one machine: copy the machine's own source"),
];

pub fn check(root: &Path, sources: &[Source]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for source in sources {
        for (number, line) in (1..).zip(source.text.lines()) {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for (a, b, why) in IN_CODE {
                if line.contains(&format!("{a}{b}")) {
                    findings.push(format!("{}:{number}: `{a}{b}`: {why}", source.path));
                }
            }
        }
    }
    for path in tracked(root)? {
        let Ok(text) = std::fs::read_to_string(root.join(&path)) else { continue };
        for (number, line) in (1..).zip(text.lines()) {
            for (a, b, why) in ANYWHERE.iter().filter(|(a, ..)| !(*a == "../sha" && path.contains("/tests")))
            {
                if line.contains(&format!("{a}{b}")) {
                    findings.push(format!("{path}:{number}: `{a}{b}`: {why}"));
                }
            }
        }
    }
    Ok(findings)
}

/// Text files under version control. Where git is missing there is nothing to keep out of a commit.
fn tracked(root: &Path) -> Result<Vec<String>> {
    let Ok(output) = Command::new("git").arg("-C").arg(root).args(["ls-files", "-z"]).output() else {
        return Ok(Vec::new());
    };
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(names.split('\0').filter(|n| !n.is_empty() && !n.ends_with(".lock")).map(str::to_owned).collect())
}

//! Each crate is a dependency firewall: which workspace crate may be reached from which, and ARCHITECTURE.md says the same.

use super::dependencies;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Crate and the workspace crates it may depend on. A new arrow is a decision: change it here and in ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("vhd", &[]),
    ("hyperv", &["model"]),
    ("cluster", &["model"]),
    ("disk", &["vhd"]),
    ("qemu", &["model"]),
    ("worker", &["qemu", "disk", "model"]),
    ("api", &["model"]),
    ("daemon", &["model", "vhd", "disk", "hyperv", "qemu", "worker", "api"]),
    ("cli", &["api", "daemon", "worker", "disk", "vhd", "model"]),
    ("xtask", &[]),
    ("e2e", &[]),
    ("bench", &["disk", "e2e"]),
];

pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let document = fs::read_to_string(root.join("ARCHITECTURE.md")).context("cannot read ARCHITECTURE.md")?;
    for (name, allowed) in ARROWS {
        let folder =
            if matches!(*name, "e2e" | "bench") { (*name).to_owned() } else { format!("crates/{name}") };
        match documented(&document, name) {
            None => findings.push(format!("ARCHITECTURE.md: the code map has no line for `{name}`: add it")),
            Some(said) if said != allowed.iter().map(|a| (*a).to_owned()).collect() => findings.push(format!(
                "ARCHITECTURE.md: `{name}` is said to depend on {said:?}, crates/xtask/src/tidy/arrows.rs allows {allowed:?}"
            )),
            Some(_) => {}
        }
        let Ok(manifest) = fs::read_to_string(root.join(&folder).join("Cargo.toml")) else { continue };
        for dependency in dependencies(&manifest, &["dependencies", "build-dependencies"]) {
            if let Some(ours) = dependency.strip_prefix("backstay-")
                && !allowed.contains(&ours)
            {
                findings.push(format!(
                    "{folder}/Cargo.toml: {name} must not depend on {ours} (allowed: {allowed:?}): move the code, or decide on a new arrow"
                ));
            }
        }
    }
    for folder in fs::read_dir(root.join("crates"))? {
        let folder = folder?.file_name().to_string_lossy().into_owned();
        if !ARROWS.iter().any(|(name, _)| *name == folder) {
            findings.push(format!(
                "crates/{folder}: not in the table of crates/xtask/src/tidy/arrows.rs: add it there"
            ));
        }
    }
    Ok(findings)
}

/// What the code map's line for `name` says it depends on.
fn documented(document: &str, name: &str) -> Option<BTreeSet<String>> {
    let start = format!("| `{name}` |");
    let line = document.lines().find(|l| l.starts_with(&start))?;
    let last = line.trim_end().trim_end_matches('|').rsplit('|').next()?;
    Some(
        last.split(',')
            .map(|w| w.trim().trim_matches('`').to_owned())
            .filter(|w| !w.is_empty() && w != "–")
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_map_is_read() {
        let document = "| crate | what it is | depends on |\n|---|---|---|\n| `vhd` | format | – |\n| `worker` | a \\| b | qemu, disk |\n";
        assert_eq!(documented(document, "vhd"), Some(BTreeSet::new()));
        assert_eq!(documented(document, "worker"), Some(["qemu", "disk"].map(str::to_owned).into()));
        assert_eq!(documented(document, "disk"), None);
    }
}

//! Invariants that no compiler checks. Each check returns one line per finding: place, rule, cure.

mod arrows;
mod purity;
mod reach;
mod size;
mod words;

use crate::root;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// One Rust file of the workspace.
struct Source {
    /// Below the repository's root.
    path: String,
    text: String,
    /// Lies in `tests/`, `benches/` or is named `tests.rs`: everything in it is test code.
    is_test: bool,
}

impl Source {
    /// The lines that are not test code, with their numbers from 1. A file's own tests come last, after `#[cfg(test)] mod`.
    fn product_lines(&self) -> Vec<(usize, &str)> {
        if self.is_test {
            return Vec::new();
        }
        let lines: Vec<_> = self.text.lines().enumerate().map(|(i, l)| (i + 1, l)).collect();
        let end = lines.windows(2).position(|pair| {
            pair[0].1.starts_with("#[cfg(test)]") && pair[1].1.starts_with("mod ") && pair[1].1.ends_with('{')
        });
        lines[..end.unwrap_or(lines.len())].to_vec()
    }
}

pub fn run() -> Result<ExitCode> {
    let root = root();
    let sources = sources(&root)?;
    let mut findings = arrows::check(&root)?;
    findings.extend(purity::check(&root, &sources)?);
    findings.extend(size::check(&sources));
    findings.extend(words::check(&root, &sources)?);
    findings.extend(reach::check(&sources, &declared(&root)?));
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        println!("tidy: {} files, nothing to say", sources.len());
        return Ok(ExitCode::SUCCESS);
    }
    println!("tidy: {} findings", findings.len());
    Ok(ExitCode::FAILURE)
}

fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut files = Vec::new();
    for top in ["crates", "e2e", "bench", "fuzz"] {
        collect(&root.join(top), &mut files)?;
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let path = file.strip_prefix(root)?.to_string_lossy().into_owned();
        let is_test = path.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "benches"))
            || path.starts_with("e2e/");
        sources.push(Source { path, text, is_test });
    }
    Ok(sources)
}

/// All `.rs` files below `folder`; build output is not ours.
fn collect(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "target") {
                collect(&path, into)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

/// Rust files that a crate's manifest names: programs and tests in unusual places.
fn declared(root: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root.join("crates"))? {
        let folder = entry?.path();
        let Ok(manifest) = fs::read_to_string(folder.join("Cargo.toml")) else { continue };
        for line in manifest.lines() {
            if let Some(path) = line.strip_prefix("path = \"").and_then(|l| l.strip_suffix('"')) {
                let path = folder.join(path);
                found.insert(path.strip_prefix(root)?.to_string_lossy().into_owned());
            }
        }
    }
    Ok(found)
}

/// The names in the dependency tables of a manifest whose header is one of `tables`.
fn dependencies(manifest: &str, tables: &[&str]) -> Vec<String> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            inside = tables.contains(&header);
        } else if inside && let Some((key, _)) = line.split_once('=') {
            names.push(key.split('.').next().unwrap_or(key).trim().to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_in_every_spelling() {
        let manifest = "[dependencies]\nserde.workspace = true\nuuid = { workspace = true }\n\n[dev-dependencies]\ntempfile = \"3\"\n";
        assert_eq!(dependencies(manifest, &["dependencies"]), ["serde", "uuid"]);
        assert_eq!(dependencies(manifest, &["dev-dependencies"]), ["tempfile"]);
    }

    #[test]
    fn tests_at_the_end_of_a_file_are_not_product() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n}\n".to_owned();
        let source = Source { path: "x.rs".into(), text, is_test: false };
        assert_eq!(source.product_lines(), [(1, "fn a() {}")]);
    }
}

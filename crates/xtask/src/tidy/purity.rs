//! Pure crates decide and never act: no runtime, files, sockets, clock or randomness, so that every decision can be tested
//! from values alone. Their `clippy.toml` catches calls; this catches the rest.

use super::{Source, dependencies};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

const PURE: &[&str] = &["model", "vhd", "hyperv", "cluster"];

const FOREIGN_CRATES: &[&str] = &[
    "tokio",
    "rand",
    "getrandom",
    "fastrand",
    "rustix",
    "libc",
    "nix",
    "tempfile",
    "reqwest",
    "hyper",
    "mio",
    "chrono",
    "jiff",
    "time",
    "socket2",
    "async-std",
    "smol",
];

const FOREIGN_PATHS: &[&str] = &[
    "std::net",
    "std::fs",
    "std::os::unix::net",
    "std::process",
    "std::thread",
    "std::env",
    "SystemTime::now",
    "Instant::now",
    "Uuid::new_v4",
    "Uuid::now_v7",
    "std::io::stdin",
    "std::io::stdout",
];

pub fn check(root: &Path, sources: &[Source]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for name in PURE {
        let place = format!("crates/{name}");
        let manifest = fs::read_to_string(root.join(&place).join("Cargo.toml"))
            .with_context(|| format!("cannot read {place}/Cargo.toml"))?;
        for dependency in dependencies(&manifest, &["dependencies"]) {
            if FOREIGN_CRATES.contains(&dependency.as_str()) {
                findings
                    .push(format!("{place}/Cargo.toml: {name} is pure and must not depend on {dependency}"));
            }
        }
        if manifest.lines().any(|l| l.contains("uuid") && (l.contains("\"v4\"") || l.contains("\"v7\""))) {
            findings.push(format!(
                "{place}/Cargo.toml: {name} is pure: identifiers are arguments, no uuid v4 or v7"
            ));
        }
        let folder = format!("{place}/src/");
        for source in sources.iter().filter(|s| s.path.starts_with(&folder)) {
            for (number, line) in source.product_lines() {
                let code = line.split("//").next().unwrap_or(line);
                if let Some(found) = FOREIGN_PATHS.iter().find(|p| code.contains(**p)) {
                    findings.push(format!(
                        "{}:{number}: {name} is pure, {found} is not: take it as an argument",
                        source.path
                    ));
                }
            }
        }
    }
    Ok(findings)
}

//! A Rust file that no `mod` names is dead text that the compiler never sees.

use super::Source;
use std::collections::BTreeSet;

/// `declared`: files that a manifest names with `path = "..."`.
pub fn check(sources: &[Source], declared: &BTreeSet<String>) -> Vec<String> {
    let known: BTreeSet<&str> = sources.iter().map(|s| s.path.as_str()).collect();
    let mut reached = BTreeSet::new();
    let mut queue: Vec<&Source> =
        sources.iter().filter(|s| is_entry(&s.path) || declared.contains(&s.path)).collect();
    while let Some(source) = queue.pop() {
        if !reached.insert(source.path.as_str()) {
            continue;
        }
        for candidate in children(source) {
            if let Some(path) = known.get(candidate.as_str())
                && let Some(child) = sources.iter().find(|s| s.path == *path)
            {
                queue.push(child);
            }
        }
    }
    let lost = known.difference(&reached);
    lost.map(|path| {
        format!("{path}: no `mod` names this file, so it is never compiled: add one or delete it")
    })
    .collect()
}

/// Files that cargo compiles by itself.
fn is_entry(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    let [.., folder, file] = parts.as_slice() else { return false };
    matches!(*file, "lib.rs" | "main.rs" | "build.rs")
        || matches!(*folder, "tests" | "benches" | "examples" | "bin" | "fuzz_targets")
}

/// Where the modules that `source` declares may lie, `#[path]` included.
fn children(source: &Source) -> Vec<String> {
    let (folder, file) = source.path.rsplit_once('/').unwrap_or(("", &source.path));
    let stem = file.trim_end_matches(".rs");
    let root = matches!(file, "mod.rs" | "lib.rs" | "main.rs") || is_entry(&source.path);
    let base = if root { folder.to_owned() } else { format!("{folder}/{stem}") };
    let mut found = Vec::new();
    for line in source.text.lines().map(str::trim) {
        if let Some(path) = line.strip_prefix("#[path = \"").and_then(|l| l.strip_suffix("\"]")) {
            found.push(normal(&format!("{folder}/{path}")));
        }
        let Some(rest) = line.strip_suffix(';') else { continue };
        let mut words = rest.split_whitespace().skip_while(|w| w.starts_with("pub"));
        if words.next() == Some("mod")
            && let Some(name) = words.next()
        {
            found.push(format!("{base}/{name}.rs"));
            found.push(format!("{base}/{name}/mod.rs"));
        }
    }
    found
}

/// Resolves `..` in a path.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_mod_is_found() {
        let file = |path: &str, text: &str| Source { path: path.into(), text: text.into(), is_test: false };
        let sources = [
            file("crates/a/src/lib.rs", "mod b;\npub(crate) mod c;"),
            file("crates/a/src/b.rs", "mod d;"),
            file("crates/a/src/b/d.rs", ""),
            file("crates/a/src/c/mod.rs", ""),
            file("crates/a/src/lost.rs", ""),
        ];
        let findings = check(&sources, &BTreeSet::new());
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].starts_with("crates/a/src/lost.rs"));
    }
}

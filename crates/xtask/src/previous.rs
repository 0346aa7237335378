//! The previous release's executable, from which machines have to survive the upgrade: the newest tag that this commit
//! descends from, else the commit that `e2e/previous-release` names. Built once, then kept.

use crate::cmd::{command, output, text};
use crate::{root, target};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Our own packages: what remains of a target folder without them is common to both releases.
const OURS: &str = "backstay";

/// Bytes from which on a file is linked instead of copied.
const LARGE: u64 = 256 << 10;

pub fn run() -> Result<()> {
    let Some(commit) = commit()? else {
        println!("previous: skipped, this clone does not have the previous release (a shallow clone?)");
        return Ok(());
    };
    let home = target()?.join("previous");
    let (executable, mark) = (home.join("backstay"), home.join("commit"));
    if executable.is_file() && fs::read_to_string(&mark).is_ok_and(|built| built == commit) {
        println!("previous: {commit} is built");
        return Ok(());
    }
    let begun = Instant::now();
    let source = home.join("source");
    let _ = fs::remove_dir_all(&source);
    fs::create_dir_all(&source).with_context(|| format!("cannot make {}", source.display()))?;
    unpack(&commit, &source)?;
    let build = home.join("target");
    share_dependencies(&target()?, &build)?;
    println!("previous: building {commit}");
    let mut cargo = command(&source, "cargo", &["build", "--quiet", "--locked", "-p", "backstay-cli"]);
    output(cargo.env("CARGO_TARGET_DIR", &build).env_remove("RUSTFLAGS"))?;
    let built = build.join("debug").join("backstay");
    fs::copy(&built, &executable).with_context(|| format!("cannot copy {}", built.display()))?;
    fs::write(&mark, &commit)?;
    // Sources and objects are of no more use, and large.
    let _ = fs::remove_dir_all(&source);
    let _ = fs::remove_dir_all(&build);
    println!("previous: built in {} s", begun.elapsed().as_secs());
    Ok(())
}

/// The full name of the commit; none if this clone does not have it.
fn commit() -> Result<Option<String>> {
    let git = |args: &[&str]| text(&mut command(&root(), "git", args));
    // The release before this commit; this commit's own tag is not the previous one.
    if let Ok(tag) = git(&["describe", "--tags", "--abbrev=0", "HEAD^"]) {
        return Ok(git(&["rev-parse", &format!("{}^{{commit}}", tag.trim())]).ok().map(trimmed));
    }
    let file = root().join("e2e").join("previous-release");
    let pinned = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let pinned = pinned.lines().find(|line| !line.starts_with('#') && !line.trim().is_empty());
    let pinned = pinned.with_context(|| format!("{} names no commit", file.display()))?;
    Ok(git(&["rev-parse", "--verify", "--quiet", &format!("{}^{{commit}}", pinned.trim())]).ok().map(trimmed))
}

fn trimmed(text: String) -> String {
    text.trim().to_owned()
}

fn unpack(commit: &str, into: &Path) -> Result<()> {
    let archive = into.with_extension("tar");
    let (from, to) = (archive.to_string_lossy().into_owned(), into.to_string_lossy().into_owned());
    output(&mut command(&root(), "git", &["archive", "--format=tar", "-o", &from, commit]))?;
    output(&mut command(&root(), "tar", &["-x", "-f", &from, "-C", &to]))?;
    let _ = fs::remove_file(&archive);
    Ok(())
}

/// Compiled dependencies of this build, as hard links: what both releases use is not compiled again.
fn share_dependencies(from: &Path, to: &Path) -> Result<()> {
    for part in ["deps", ".fingerprint", "build"] {
        let (from, to) = (from.join("debug").join(part), to.join("debug").join(part));
        link(&from, &to).with_context(|| format!("cannot share {}", from.display()))?;
    }
    Ok(())
}

fn link(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours =
            name.starts_with(OURS) || name.starts_with(&format!("lib{OURS}")) || name.starts_with("xtask");
        if ours {
            continue;
        }
        let (source, place): (PathBuf, PathBuf) = (entry.path(), to.join(&name));
        if entry.file_type()?.is_dir() {
            link(&source, &place)?;
        } else if !place.exists() {
            // Small files are cargo's notes, some of which it writes to in place: those must not be shared.
            let large = entry.metadata()?.len() >= LARGE;
            if !large || fs::hard_link(&source, &place).is_err() {
                fs::copy(&source, &place)?;
                let times = fs::FileTimes::new().set_modified(entry.metadata()?.modified()?);
                fs::File::options().write(true).open(&place)?.set_times(times)?;
            }
        }
    }
    Ok(())
}

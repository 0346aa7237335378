//! Disk images made by other systems. They live outside the repository; tests that read them skip when they are absent.

use crate::{cmd, root, target};
use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;

/// Where the images are, if anywhere: `BACKSTAY_FIXTURES`, or the folder beside the clone.
pub fn folder() -> Option<PathBuf> {
    let folder = match std::env::var_os("BACKSTAY_FIXTURES") {
        Some(folder) => PathBuf::from(folder),
        None => root().parent()?.join("shared").join("fixtures"),
    };
    folder.is_dir().then_some(folder)
}

/// Unpacks the archives into `target/fixtures`, once per archive content.
pub fn run() -> Result<()> {
    let Some(from) = folder() else {
        println!(
            "fixtures: none here (set BACKSTAY_FIXTURES to their folder); tests that need them are skipped"
        );
        return Ok(());
    };
    let archive = from.join("disks").join("images.tar.xz");
    if !archive.is_file() {
        println!("fixtures: {} has no disks/images.tar.xz", from.display());
        return Ok(());
    }
    let to = target()?.join("fixtures").join("disks");
    let stamp = to.join(".archive-size");
    let size = fs::metadata(&archive)?.len().to_string();
    if fs::read_to_string(&stamp).is_ok_and(|have| have == size) {
        return Ok(());
    }
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    let archive = archive.to_str().context("the fixtures' path is not UTF-8")?;
    cmd::output(&mut cmd::command(&to, "tar", &["-xJf", archive]))?;
    fs::write(&stamp, size)?;
    println!("fixtures: unpacked into {}", to.display());
    Ok(())
}

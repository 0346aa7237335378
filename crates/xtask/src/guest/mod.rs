//! The guests that tests and `make run` boot, built from packages without root, mounts or loop devices.
//!
//! `target/guest/microguest.img` and `target/guest/linux.img` are links into folders named by a hash of everything that
//! goes in, so a second run takes milliseconds and a changed recipe never meets an old image.

mod linux;
mod micro;
mod packages;

use crate::target;
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Builds what is missing. `Ok(false)`: the Linux guest's packages are neither cached nor reachable.
pub fn run() -> Result<bool> {
    micro()?;
    let place = place()?;
    match packages::find(&place)? {
        Some(found) => {
            linux::build(&place, &found).context("building the Linux guest")?;
            Ok(true)
        }
        None => {
            println!(
                "guest: no Linux guest: {} cannot be downloaded and nothing is cached in {}; tests that boot it are skipped",
                packages::KERNEL,
                place.display()
            );
            // A link to an image of an older recipe would test something else than what is written here.
            let _ = fs::remove_file(place.join("linux.img"));
            Ok(false)
        }
    }
}

/// Builds the microguest if it is missing.
pub fn micro() -> Result<()> {
    micro::build(&place()?).context("building the microguest")
}

fn place() -> Result<PathBuf> {
    let place = target()?.join("guest");
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    Ok(place)
}

/// A short name for everything that goes into an image.
fn key(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Makes `place/NAME-KEY` by `make` unless it is there, and points the link `place/link` at `file` in it.
fn cached(
    place: &Path,
    name: &str,
    key: &str,
    file: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let folder = format!("{name}-{key}");
    let done = place.join(&folder);
    if !done.join(file).is_file() {
        let work = place.join(format!("{folder}.{}.tmp", std::process::id()));
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work)?;
        make(&work)?;
        let _ = fs::remove_dir_all(&done);
        fs::rename(&work, &done).with_context(|| format!("cannot rename {}", work.display()))?;
        println!("guest: built {}", done.join(file).display());
    }
    relink(&place.join(format!("{name}.img")), &PathBuf::from(folder).join(file))
}

/// Replaces a symbolic link in one step, so that a test that starts now sees the old or the new image.
fn relink(link: &Path, to: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|have| have == to) {
        return Ok(());
    }
    let temporary = link.with_extension(format!("{}.tmp", std::process::id()));
    let _ = fs::remove_file(&temporary);
    symlink(to, &temporary)?;
    fs::rename(&temporary, link).with_context(|| format!("cannot replace {}", link.display()))
}

/// The Linux guest's raw disk.
pub fn linux_image() -> Result<PathBuf> {
    let image = target()?.join("guest").join("linux.img");
    ensure!(image.is_file(), "{} is missing: `make guest` builds it", image.display());
    Ok(image)
}

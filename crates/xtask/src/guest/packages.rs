//! The Debian packages that the Linux guest is made of: downloaded and unpacked, never installed.

use crate::cmd::{command, output, text};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Depends on the newest kernel for virtual machines.
pub const KERNEL: &str = "linux-image-cloud-amd64";
const USERLAND: &str = "busybox-static";

/// Package files on this disk.
pub struct Packages {
    pub kernel: PathBuf,
    pub userland: PathBuf,
}

/// What apt offers.
#[derive(Debug, PartialEq, Eq)]
struct Offer {
    package: String,
    version: String,
}

/// Finds the current packages, downloading what is not cached; falls back to cached ones when there is no network.
pub fn find(place: &Path) -> Result<Option<Packages>> {
    let cache = place.join("packages");
    fs::create_dir_all(&cache)?;
    let offers = offered(&cache);
    let find = |prefix: &str| fetch(&cache, offers.iter().find(|o| o.package.starts_with(prefix)), prefix);
    let (kernel, userland) = (find("linux-image-")?, find(USERLAND)?);
    Ok(kernel.zip(userland).map(|(kernel, userland)| Packages { kernel, userland }))
}

/// The package and version that apt would install now for each name; the meta package's kernel has its own version.
fn offered(cache: &Path) -> Vec<Offer> {
    let ask = || {
        let args = ["show", "--no-all-versions", KERNEL, USERLAND];
        text(&mut command(cache, "apt-cache", &args)).map(|said| parse_offers(&said)).unwrap_or_default()
    };
    let offers = ask();
    if !offers.is_empty() {
        return offers;
    }
    // A fresh container has no package lists yet. Without root or network this fails, and the cache has to do.
    println!("guest: refreshing the package lists");
    let _ = output(&mut command(cache, "apt-get", &["-qq", "update"]));
    ask()
}

fn parse_offers(said: &str) -> Vec<Offer> {
    let field = |stanza: &str, name: &str| {
        stanza.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    let mut offers = Vec::new();
    for stanza in said.split("\n\n") {
        let (Some(package), Some(version)) = (field(stanza, "Package"), field(stanza, "Version")) else {
            continue;
        };
        let package = match package.as_str() {
            // "linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)"
            KERNEL => field(stanza, "Depends").and_then(|d| d.split([' ', ',']).next().map(str::to_owned)),
            _ => Some(package),
        };
        offers.extend(package.map(|package| Offer { package, version }));
    }
    offers
}

/// The cached file of exactly the offered version, or a fresh download, or any cached version.
fn fetch(cache: &Path, offer: Option<&Offer>, prefix: &str) -> Result<Option<PathBuf>> {
    if let Some(Offer { package, version }) = offer {
        // apt writes the epoch's colon as %3a
        let start = format!("{package}_{}_", version.replace(':', "%3a"));
        if let Some(file) = newest(cache, &start)? {
            return Ok(Some(file));
        }
        println!("guest: downloading {package} {version} (unpacked for the guest, not installed)");
        if output(&mut command(cache, "apt-get", &["-qq", "download", &format!("{package}={version}")]))
            .is_ok()
        {
            return newest(cache, &start);
        }
    }
    newest(cache, prefix)
}

fn newest(cache: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(cache).with_context(|| format!("cannot list {}", cache.display()))? {
        let path = entry?.path();
        let fits = path
            .file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.starts_with(prefix) && n.ends_with(".deb"));
        if fits {
            found.push((fs::metadata(&path)?.modified()?, path));
        }
    }
    Ok(found.into_iter().max().map(|(_, path)| path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_stands_for_its_kernel() {
        let said = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n\nPackage: busybox-static\nVersion: 1:1.35.0-4\n";
        let offer = |package: &str, version: &str| Offer { package: package.into(), version: version.into() };
        assert_eq!(
            parse_offers(said),
            [offer("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"), offer("busybox-static", "1:1.35.0-4")]
        );
    }
}

//! `make run`: this machine becomes a host with one guest. Everything it makes lies in `.backstay/` of the clone, except
//! for the guests' user, the permission on /dev/userfaultfd, and sockets that vanish with the next boot.

mod daemon;
mod guest;
mod machine;

use crate::{guest as images, root, target};
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The demo's name.
const DEMO: &str = "demo";
/// The user that QEMU runs as.
const VM_USER: &str = "backstay-vm";
/// Where the command line looks for the daemon unless told otherwise.
const SOCKET: &str = "/run/backstay/backstay.sock";

/// Paths of this host.
struct Host {
    /// The `backstay` executable of this build.
    backstay: PathBuf,
    /// `.backstay` in the clone.
    home: PathBuf,
    /// Sockets and bitmaps of acknowledged writes; in memory, so that they vanish with the power.
    run: PathBuf,
}

impl Host {
    fn here() -> Result<Self> {
        let backstay = target()?.join("debug").join("backstay");
        if !backstay.is_file() {
            bail!("{} is missing: use `make run`, which builds it first", backstay.display());
        }
        let run = if machine::is_in_memory("/run") { "/run/backstay" } else { "/dev/shm/backstay" };
        Ok(Self { backstay, home: root().join(".backstay"), run: run.into() })
    }

    fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    fn disk(&self) -> PathBuf {
        self.state().join("Virtual Hard Disks").join("demo.vhd")
    }

    /// Writes the settings the daemon is started with.
    fn settings(&self) -> Result<PathBuf> {
        let file = self.home.join("backstay.toml");
        let text = format!(
            "# Written by `make run`.\nstate_dir = {:?}\nrun_dir = {:?}\nsocket = {SOCKET:?}\n",
            self.state(),
            self.run,
        );
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }
}

pub fn run() -> Result<()> {
    machine::require_root("run")?;
    let host = Host::here()?;
    for folder in [&host.home, &host.state(), &host.run, &PathBuf::from("/run/backstay")] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    // As the package has it: guests' disks and memory are nobody else's business.
    fs::set_permissions(host.state(), fs::Permissions::from_mode(0o700))?;
    machine::create_user()?;
    machine::open_userfaultfd()?;
    let settings = host.settings()?;
    daemon::ensure(&host, &settings)?;
    if !host.disk().is_file() {
        convert(&host)?;
    }
    let console = guest::ensure(&host)?;
    guest::wait_for_prompt(&console)?;
    print_ways_in(&host);
    Ok(())
}

/// The demo's disk, made by our own converter: raw image in, dynamic VHD out.
fn convert(host: &Host) -> Result<()> {
    let image = images::linux_image()?;
    let disk = host.disk();
    if let Some(folder) = disk.parent() {
        fs::create_dir_all(folder)?;
    }
    println!("run: converting the Linux guest's raw image into {}", disk.display());
    let (from, to) = (utf8(&image)?, utf8(&disk)?);
    guest::backstay(host, &["disk", "convert", from, to, "--type", "dynamic", "--format", "vhd"])?;
    Ok(())
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8: clone into another folder", path.display()))
}

fn print_ways_in(host: &Host) {
    let here = std::env::current_dir().unwrap_or_default();
    let backstay = host.backstay.strip_prefix(&here).unwrap_or(&host.backstay).display();
    let ways = [
        (format!("{backstay} vm list"), "what runs here"),
        (format!("{backstay} vm console {DEMO}"), "its serial console; leave with Ctrl-]"),
        (format!("{backstay} checkpoint create {DEMO} first"), "disk and memory, while it runs"),
        (format!("{backstay} checkpoint revert {DEMO} --yes"), "both as they were"),
        ("make stop".to_owned(), "ends the guest and the daemon"),
    ];
    let width = ways.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    let ways: String = ways.iter().map(|(command, what)| format!("  {command:width$}   {what}\n")).collect();
    println!(
        "
The guest '{DEMO}' is up: Linux, booted from {disk}.

{ways}
The daemon's log is {log}, its settings are {home}/backstay.toml.",
        disk = host.disk().display(),
        log = daemon::log(host).display(),
        home = host.home.display(),
    );
}

pub fn stop() -> Result<()> {
    machine::require_root("stop")?;
    let host = Host::here()?;
    if daemon::answers(&host) {
        guest::turn_off(&host);
    }
    daemon::end(&host)
}

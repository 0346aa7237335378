//! What the operating system has to offer: a user for QEMU, and the device behind short pauses.

use super::VM_USER;
use crate::cmd::{command, output, text};
use anyhow::{Context, Result, bail};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const USERFAULTFD: &str = "/dev/userfaultfd";

pub fn require_root(target: &str) -> Result<()> {
    let uid = text(&mut command(Path::new("/"), "id", &["-u"]))?;
    if uid.trim() != "0" {
        bail!("root is needed to give QEMU a user of its own: use `make {target}`, which asks sudo");
    }
    Ok(())
}

/// Whether what lies below `path` vanishes with the power.
pub fn is_in_memory(path: &str) -> bool {
    text(&mut command(Path::new("/"), "stat", &["-f", "-c", "%T", path]))
        .is_ok_and(|kind| kind.trim() == "tmpfs")
}

/// QEMU handles whatever a guest throws at it, so it runs as a user that owns nothing.
pub fn create_user() -> Result<()> {
    let here = Path::new("/");
    if output(&mut command(here, "getent", &["passwd", VM_USER])).is_ok() {
        return Ok(());
    }
    println!("run: creating the system user and group {VM_USER}: its group may open /dev/userfaultfd");
    let args = [
        "--system",
        "--user-group",
        "--no-create-home",
        "--home-dir",
        "/nonexistent",
        "--shell",
        "/usr/sbin/nologin",
    ];
    output(command(here, "useradd", &args).arg(VM_USER)).context("creating the guests' user")?;
    Ok(())
}

/// A running guest's memory is written out by write-protecting it page by page. The kernel lets an unprivileged process
/// do that only through this device.
pub fn open_userfaultfd() -> Result<()> {
    let Ok(metadata) = std::fs::metadata(USERFAULTFD) else {
        println!(
            "run: there is no {USERFAULTFD} here: checkpoints of a running guest will pause it for longer"
        );
        return Ok(());
    };
    let here = Path::new("/");
    let entry =
        text(&mut command(here, "getent", &["group", VM_USER])).context("the guests' group is missing")?;
    let group: u32 = entry
        .split(':')
        .nth(2)
        .and_then(|g| g.trim().parse().ok())
        .context("getent prints no group number")?;
    if metadata.gid() == group && metadata.mode() & 0o777 == 0o660 {
        return Ok(());
    }
    println!(
        "run: giving {USERFAULTFD} to the group {VM_USER} until the next boot: with it, a checkpoint pauses a guest for"
    );
    println!(
        "run: milliseconds whatever its memory size; QEMU can handle page faults of its own memory, and of nothing else"
    );
    output(&mut command(here, "chgrp", &[VM_USER, USERFAULTFD]))?;
    output(&mut command(here, "chmod", &["0660", USERFAULTFD]))?;
    Ok(())
}

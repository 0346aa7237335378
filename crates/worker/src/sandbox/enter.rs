//! Making the view. Runs in a process of its own, in a mount name space of its own, as root, just before QEMU.

use super::View;
use rustix::fs::{CWD, Mode, mkdirat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The view cannot be made, or the command in it not be started.
#[derive(Debug, thiserror::Error)]
#[error("QEMU's sandbox: {action} {path} failed")]
pub struct EnterError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> EnterError {
    let path = path.to_path_buf();
    move |source| EnterError { action, path, source: source.into() }
}

/// How a part of the view may be used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Device,
    RunFolder,
}

/// A part of the host, taken out of its tree before that is covered.
struct Part {
    path: PathBuf,
    what: What,
    how: Use,
}

enum What {
    Link(PathBuf),
    Tree { tree: OwnedFd, folder: bool },
}

/// Makes the view around this process and becomes `command`. Returns only when that fails.
///
/// # Errors
/// [`EnterError`].
pub fn enter(view: &View, command: &[OsString]) -> EnterError {
    match make(view) {
        Ok(()) => become_command(command),
        Err(error) => error,
    }
}

fn become_command(command: &[OsString]) -> EnterError {
    let Some((program, args)) = command.split_first() else {
        return failed("starting", Path::new("nothing"))(Errno::INVAL);
    };
    failed("starting", Path::new(program))(Command::new(program).args(args).exec())
}

fn make(view: &View) -> Result<(), EnterError> {
    let root = &view.run_dir;
    let slash = Path::new("/");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(slash, private).map_err(failed("separating", slash))?;
    let mut parts = Vec::new();
    let reads = view.read_only.iter().map(|path| (path, Use::Read));
    let devices = view.devices.iter().map(|path| (path, Use::Device));
    for (path, how) in reads.chain(devices).chain([(root, Use::RunFolder)]) {
        parts.extend(take(path, how)?);
    }
    // The new root covers the run folder, in this name space only.
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount(c"backstay", root, c"tmpfs", flags, c"size=1m,mode=0755").map_err(failed("covering", root))?;
    std::env::set_current_dir(root).map_err(failed("entering", root))?;
    for part in &parts {
        put(part)?;
    }
    leave_old_root().map_err(failed("changing the root to", root))?;
    mount_remount(slash, MountFlags::RDONLY | flags, c"").map_err(failed("protecting", slash))
}

/// Takes a part of the host; none if there is nothing.
fn take(path: &Path, how: Use) -> Result<Option<Part>, EnterError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound && how != Use::RunFolder => return Ok(None),
        Err(error) => return Err(failed("finding", path)(error)),
    };
    // A folder's link stays one, its target is there as well. A file's link is followed: its target may be anywhere.
    let is_link = found.file_type().is_symlink();
    if is_link && path.is_dir() && how == Use::Read {
        let target = fs::read_link(path).map_err(failed("reading", path))?;
        return Ok(Some(Part { path: path.into(), what: What::Link(target), how }));
    }
    if is_link && !path.exists() {
        return Ok(None);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, path, flags).map_err(failed("taking", path))?;
    Ok(Some(Part { path: path.into(), what: What::Tree { tree, folder: path.is_dir() }, how }))
}

/// Puts a part at its place below the current folder.
fn put(part: &Part) -> Result<(), EnterError> {
    let path = &part.path;
    let place = path.strip_prefix("/").unwrap_or(path);
    if let Some(above) = place.parent() {
        make_folders(above).map_err(failed("making", above))?;
    }
    let (tree, folder) = match &part.what {
        What::Link(target) => {
            return std::os::unix::fs::symlink(target, place).map_err(failed("linking", path));
        }
        What::Tree { tree, folder } => (tree, *folder),
    };
    if folder {
        make_folders(place).map_err(failed("making", path))?;
    } else if !place.exists() {
        fs::File::create(place).map_err(failed("making", path))?;
    }
    move_mount(tree, c"", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(failed("mounting", path))?;
    let flags = match part.how {
        Use::Read => MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
        Use::Device => MountFlags::NOSUID | MountFlags::NOEXEC,
        Use::RunFolder => MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
    };
    mount_remount(place, MountFlags::BIND | flags, c"").map_err(failed("protecting", path))
}

/// Folders that everybody may pass through, whatever the mask of new files is.
fn make_folders(place: &Path) -> io::Result<()> {
    let mut so_far = PathBuf::new();
    for part in place.components() {
        so_far.push(part);
        match mkdirat(CWD, &so_far, Mode::from_raw_mode(0o755)) {
            Ok(()) => fs::set_permissions(&so_far, std::os::unix::fs::PermissionsExt::from_mode(0o755))?,
            Err(Errno::EXIST) => {}
            // Inside of a part that is there already.
            Err(Errno::ROFS) if so_far.exists() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The current folder becomes the root, the old one is gone.
fn leave_old_root() -> io::Result<()> {
    match rustix::process::pivot_root(c".", c".") {
        Ok(()) => unmount(c".", UnmountFlags::DETACH)?,
        // The root of this process is no mount, as after a chroot. QEMU has no right to leave this one either.
        Err(Errno::INVAL) => rustix::process::chroot(c".")?,
        Err(error) => return Err(error.into()),
    }
    std::env::set_current_dir("/")
}

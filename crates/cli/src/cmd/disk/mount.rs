//! `disk mount`

use super::files::{FormatArgs, options};
use super::in_use::{refuse_frozen, refuse_parent};
use crate::context::Context;
use crate::exit::Fail;
use crate::mount::mount;
use anyhow::Context as _;
use backstay_disk::{Disk, DiskOptions};
use clap::{Args, ValueHint};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Show a disk, read through its whole chain, in a folder: the file `disk` is all of it, `p1`, `p2` … are its partitions. \
                  Ends with `umount`, Ctrl-C or a signal to end; the disk is closed cleanly then. The files belong to you alone. Needs \
                  /dev/fuse and, unless you are root, fusermount3 (package fuse3).",
    after_long_help = "Examples:\n  backstay disk mount web.avhdx /mnt/web --read-only &\n  ls -l /mnt/web\n  \
                       mount -o loop,ro /mnt/web/p1 /mnt/files\n  umount /mnt/files /mnt/web"
)]
pub struct MountArgs {
    /// The disk
    #[arg(value_hint = ValueHint::FilePath)]
    path: PathBuf,
    /// The folder; must be there, and be empty
    #[arg(value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// Refuse writes; others may read the disk at the same time
    #[arg(short, long)]
    read_only: bool,
    #[command(flatten)]
    format: FormatArgs,
}

/// Runs it.
pub fn run(context: &Context, args: &MountArgs) -> anyhow::Result<()> {
    if !args.read_only {
        let cure = "mount it with --read-only, or a differencing disk of it";
        refuse_frozen(context, &args.path, cure)?;
        refuse_parent(&args.path, cure)?;
    }
    check_folder(&args.dir)?;
    context.block_on(async {
        // Before the folder shows anything: whoever sees it may send a signal at once.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let how = DiskOptions { format: args.format.read_only().format, ..options(args.read_only) };
        let disk = Disk::open(&args.path, how)?;
        for warning in disk.warnings() {
            context.warn(warning.to_string());
        }
        let mounted = mount(&disk, &args.path, &args.dir).map_err(|error| refused(&args.dir, error))?;
        let mut mounted = mounted;
        let mut unmounter = mounted.unmount_callable();
        let mut running = tokio::task::spawn_blocking(move || mounted.run());
        context.note(format!(
            "{} is shown in {}. `umount {}` or Ctrl-C ends it.",
            args.path.display(),
            args.dir.display(),
            args.dir.display()
        ));
        let ended = loop {
            tokio::select! {
                ended = &mut running => break ended,
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hang_up.recv() => {}
            }
            if let Err(error) = unmounter.unmount() {
                context.warn(format!(
                    "{} cannot be unmounted: {error}; end what uses it, or use `umount --lazy`",
                    args.dir.display()
                ));
            }
        };
        disk.close().context("the disk was not closed cleanly")?;
        ended.context("a thread failed")?.with_context(|| format!("{} was lost", args.dir.display()))
    })
}

fn check_folder(dir: &Path) -> anyhow::Result<()> {
    let looked = std::fs::read_dir(dir).with_context(|| format!("cannot look into {}", dir.display()));
    match looked?.next() {
        None => Ok(()),
        Some(_) => Err(Fail::conflict(format!(
            "{} is not empty: its files would be hidden. Give an empty folder",
            dir.display()
        ))),
    }
}

fn refused(dir: &Path, error: std::io::Error) -> anyhow::Error {
    let cure = match error.kind() {
        ErrorKind::NotFound => "; is there a /dev/fuse (`modprobe fuse`), and fusermount3 (package fuse3)?",
        ErrorKind::PermissionDenied => "; run it as root, or install fusermount3 (package fuse3)",
        _ => "",
    };
    anyhow::Error::new(error).context(format!("cannot mount on {}{cure}", dir.display()))
}

//! `disk serve`

use super::files::{FormatArgs, options};
use super::in_use::{refuse_frozen, refuse_parent};
use crate::context::Context;
use crate::exit::Fail;
use anyhow::Context as _;
use backstay_disk::nbd::{ExportSpec, Server};
use backstay_disk::{CacheMode, Disk, DiskOptions};
use clap::{Args, ValueEnum, ValueHint};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long clients may take for their replies at the end.
const GRACE: Duration = Duration::from_secs(10);

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Serve a disk by NBD on a unix socket until Ctrl-C or a signal to end; the disk is closed cleanly then. The \
                  socket belongs to you alone. Any number of clients can connect.",
    after_long_help = "Examples:\n  backstay disk serve web.vhd --socket /tmp/web.sock\n  \
                       nbdinfo 'nbd+unix:///?socket=/tmp/web.sock'\n  \
                       qemu-img convert -p 'nbd+unix:///?socket=/tmp/web.sock' -O qcow2 web.qcow2"
)]
pub struct ServeArgs {
    /// The disk
    #[arg(value_hint = ValueHint::FilePath)]
    path: PathBuf,
    /// The socket to make
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    socket: PathBuf,
    /// Refuse writes; others may read the disk at the same time
    #[arg(short, long)]
    read_only: bool,
    /// What the host's page cache is used for: `writeback`, or `none` for data to go past it
    #[arg(long, value_enum, default_value_t = Cache::Writeback, hide_default_value = true)]
    cache: Cache,
    /// Name of the export; the default export unless given
    #[arg(long, default_value = "", hide_default_value = true)]
    name: String,
    #[command(flatten)]
    format: FormatArgs,
}

/// The page cache.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Cache {
    /// Reads and writes go through it
    Writeback,
    /// Data go past it where the file allows it
    None,
}

/// Runs it.
pub fn run(context: &Context, args: &ServeArgs) -> anyhow::Result<()> {
    if !args.read_only {
        let cure = "serve it with --read-only, or a differencing disk of it";
        refuse_frozen(context, &args.path, cure)?;
        refuse_parent(&args.path, cure)?;
    }
    context.block_on(async {
        // Before the socket exists: whoever sees it may send a signal at once.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let cache = match args.cache {
            Cache::Writeback => CacheMode::Writeback,
            Cache::None => CacheMode::None,
        };
        let how = DiskOptions { format: args.format.read_only().format, cache, ..options(args.read_only) };
        let disk = Disk::open(&args.path, how)?;
        for warning in disk.warnings() {
            context.warn(warning.to_string());
        }
        let server = Server::bind(&args.socket, 0o600)?;
        let (backend, read_only) = (Arc::clone(&disk) as Arc<dyn backstay_disk::Backend>, args.read_only);
        let description = args.path.display().to_string();
        server.add_export(ExportSpec { name: args.name.clone(), description, backend, read_only })?;
        context.note(format!(
            "Serving {} at nbd+unix:///{}?socket={}. Ctrl-C ends it.",
            args.path.display(),
            args.name,
            args.socket.display()
        ));
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hang_up.recv() => {}
        }
        let ended = server.shutdown(GRACE);
        disk.close().context("the disk was not closed cleanly")?;
        if ended.stuck > 0 {
            return Err(Fail::error(format!("{} clients had requests that did not end", ended.stuck)));
        }
        Ok(())
    })
}

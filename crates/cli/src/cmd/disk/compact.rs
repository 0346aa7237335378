//! `disk compact`

use super::files::options;
use super::in_use;
use super::interrupt::cancellable;
use crate::context::{Context, absolute};
use crate::exit::Fail;
use crate::output;
use crate::progress::Progress;
use crate::tasks::{self, ChangeArgs};
use backstay_api::{DiskCompact, DiskCompacted, Task};
use backstay_disk::fs::HostFs;
use backstay_disk::{CompactError, Dropping, MergeControl, compact_offline, plan_compact};
use backstay_model::ByteSize;
use clap::{Args, ValueHint};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Make the file of a dynamic or differencing disk as small as its content allows: blocks that hold only zeros are \
                  dropped, the last blocks move to the front, and the file is cut. In a differencing disk a block goes only where \
                  the parent has zeros too, or, in a VHDX, where zeros can be told without a block. A disk that a \
                  running machine writes to is compacted by that machine's worker while the guest goes on. What a file system has deleted is not zero: trim it in the machine first (`fstrim`, or \
                  `Optimize-Volume -ReTrim`), or have it read here with --free-space. Ctrl-C, kill and power loss leave a \
                  disk that reads as before; doing it again goes on from there.\n\n\
                  --free-space also drops blocks that are free in an ext2/3/4, NTFS or FAT file system on the disk or in its \
                  MBR or GPT partitions. One that was not shut down cleanly, is damaged or not known is left as it is, and \
                  said so. A disk that others are made on stays as it is.",
    after_long_help = "Examples:\n  backstay disk compact web.vhdx --dry-run\n  backstay disk compact web.vhdx\n  \
                       backstay disk compact web.vhdx --free-space --dry-run\n  \
                       backstay disk compact web.avhdx --rate 50M"
)]
pub struct CompactArgs {
    /// The disk
    #[arg(value_hint = ValueHint::FilePath)]
    path: PathBuf,
    /// Also drop what is free in the ext, NTFS and FAT file systems on the disk
    #[arg(long)]
    free_space: bool,
    /// Move at most this many bytes per second
    #[arg(long, value_name = "SIZE")]
    rate: Option<ByteSize>,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Where a running machine writes to the disk: do not wait, print the task's id
    #[arg(long, conflicts_with = "dry_run")]
    no_wait: bool,
}

/// Runs it.
pub fn run(context: &Context, args: &CompactArgs) -> anyhow::Result<()> {
    let host = HostFs::shared();
    let dropping = if args.free_space { Dropping::FreeSpace } else { Dropping::Zeros };
    if args.free_space {
        let cure = "leave --free-space out, or compact the disk that was made on it";
        in_use::refuse_frozen(context, &args.path, cure)?;
    }
    if args.dry_run {
        return match plan_compact(&host, &args.path, &options(true), dropping).map_err(refused) {
            Ok(plan) => output::print(&plan.to_string()),
            Err(error) => by_machine(context, args, error),
        };
    }
    let control = MergeControl::new();
    control.set_rate(args.rate.map(|ByteSize(bytes)| bytes));
    let compacted = cancellable(|cancel| {
        let bar = Progress::percent(context);
        std::thread::scope(|scope| {
            let work =
                scope.spawn(|| compact_offline(&host, &args.path, &options(false), dropping, &control));
            while !work.is_finished() {
                if cancel.load(Ordering::Relaxed) {
                    control.cancel();
                }
                let now = control.progress();
                let percent = (now.blocks_done * 100).checked_div(now.blocks_total).unwrap_or(0);
                bar.set(percent, &format!("compacting, {} moved", output::size(now.bytes_moved)));
                std::thread::sleep(Duration::from_millis(50));
            }
            work.join()
        })
    });
    let Ok(compacted) = compacted else { anyhow::bail!("compacting {} failed", args.path.display()) };
    let done = match compacted.map_err(refused) {
        Ok(done) => done,
        Err(error) => return by_machine(context, args, error),
    };
    for volume in &done.volumes {
        context.note(volume.to_string());
    }
    context.note(told(&DiskCompacted {
        path: done.path,
        dropped_blocks: done.dropped_blocks,
        moved_blocks: done.moved_blocks,
        bytes_moved: done.bytes_moved,
        old_len: done.old_len,
        new_len: done.new_len,
        freed: done.freed,
    }));
    Ok(())
}

/// Has the machine that writes to the disk do it, if that is why it cannot be done here.
fn by_machine(context: &Context, args: &CompactArgs, refused: anyhow::Error) -> anyhow::Result<()> {
    in_use::from_daemon(context, refused, async {
        if args.free_space {
            return Err(Fail::conflict(format!(
                "a running machine writes to {}, so what is free in its file systems only that machine knows: run `fstrim -av` or \
                 `Optimize-Volume -ReTrim` in it, and leave --free-space out",
                args.path.display()
            )));
        }
        let client = context.client()?;
        let body = DiskCompact { path: absolute(&args.path)?, rate: args.rate.map(|ByteSize(bytes)| bytes) };
        let change = ChangeArgs { dry_run: args.dry_run, no_wait: args.no_wait, timeout: None };
        let outcome = client.compact_disk(&body, &change.options()).await?;
        let done = |task: &Task| {
            let result = task.result.clone().and_then(|result| serde_json::from_value(result).ok());
            result.as_ref().map_or_else(|| format!("{} is compacted", body.path.display()), told)
        };
        tasks::finish(context, &client, outcome, &change, done).await.map(drop)
    })
}

fn told(done: &DiskCompacted) -> String {
    format!(
        "{} has {} now, it had {}: {} blocks dropped, {} moved, {} given back",
        done.path.display(),
        output::size(done.new_len),
        output::size(done.old_len),
        done.dropped_blocks,
        done.moved_blocks,
        output::size(done.freed)
    )
}

/// What the state of the file does not allow exits with 5; an interruption with 130.
fn refused(error: CompactError) -> anyhow::Error {
    match error {
        CompactError::Cancelled { .. } => Fail::interrupted(error.to_string()),
        CompactError::Fixed { .. }
        | CompactError::HasChildren { .. }
        | CompactError::Raw { .. }
        | CompactError::XenMap { .. }
        | CompactError::SavedState { .. } => Fail::conflict(error.to_string()),
        other => other.into(),
    }
}

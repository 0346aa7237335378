//! `disk resize`

use super::files::options;
use super::in_use;
use super::interrupt::cancellable;
use crate::context::{Context, absolute};
use crate::exit::Fail;
use crate::output;
use crate::progress::Progress;
use crate::tasks::{self, ChangeArgs};
use backstay_api::{DiskResize, Task};
use backstay_disk::fs::{FileSystem, HostFs};
use backstay_disk::{NewSize, ResizeControl, ResizeError, ResizePlan, plan_resize, resize_offline};
use backstay_model::ByteSize;
use clap::{Args, ValueHint};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Make a disk larger or smaller, in its file. A disk that a running machine writes to becomes larger only, and its guest is told. What is new reads as zeros; the \
                  partitions and file systems inside stay as they are and are made larger by the system in the machine. A disk \
                  becomes smaller only over space that is not in use: down to the end of its last partition, or, without a \
                  partition table, to the end of its file system and its last byte that is not zero; the copy of a GUID \
                  partition table is moved along. A differencing disk never becomes smaller than its parent, and a disk with \
                  children stays as it is. Ctrl-C ends it while it looks for data or reserves space. A crash leaves the old \
                  size or the new one, and the same command does the rest.",
    after_long_help = "Examples:\n  backstay disk resize web.vhdx 80G\n  backstay disk resize web.vhdx 20G --dry-run\n  \
                       backstay disk resize web.vhdx --minimum"
)]
pub struct ResizeArgs {
    /// The disk
    #[arg(value_hint = ValueHint::FilePath)]
    path: PathBuf,
    /// The new size, as 80G
    #[arg(required_unless_present = "minimum", conflicts_with = "minimum")]
    size: Option<ByteSize>,
    /// As small as what is in use allows
    #[arg(long)]
    minimum: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs it.
pub fn run(context: &Context, args: &ResizeArgs) -> anyhow::Result<()> {
    let size = match args.size {
        Some(ByteSize(bytes)) => NewSize::Bytes(bytes),
        None => NewSize::Minimum,
    };
    let host = HostFs::shared();
    in_use::refuse_frozen(
        context,
        &args.path,
        "delete the checkpoint first, or resize the disk that was made on it",
    )?;
    if args.dry_run {
        let plan = plan_resize(&host, &args.path, size, &options(true)).map_err(refused);
        return match plan {
            Ok(plan) => output::print(&plan.to_string()),
            Err(error) => by_machine(context, args, error),
        };
    }
    let plan = match resize(context, args, &host, size).map_err(refused) {
        Ok(plan) => plan,
        Err(error) => return by_machine(context, args, error),
    };
    context.note(told(&plan));
    if plan.new > plan.old {
        context.note("the system in the machine makes its partitions larger; one that uses a GUID partition table says that its copy is not at the end and moves it");
    }
    Ok(())
}

/// Resizes a file that nobody uses; Ctrl-C ends it as long as nothing was changed.
fn resize(
    context: &Context,
    args: &ResizeArgs,
    host: &Arc<dyn FileSystem>,
    size: NewSize,
) -> Result<ResizePlan, ResizeError> {
    let control = ResizeControl::new();
    cancellable(|cancel| {
        let bar = Progress::bytes(context, 0, "resizing");
        std::thread::scope(|scope| {
            let work = scope.spawn(|| resize_offline(host, &args.path, size, &options(false), &control));
            while !work.is_finished() {
                if cancel.load(Ordering::Relaxed) {
                    control.cancel();
                }
                let (done, total) = control.progress();
                bar.set_total(total);
                bar.set(done, "");
                std::thread::sleep(Duration::from_millis(50));
            }
            work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// Has the machine that writes to the disk make it larger, if that is why it cannot be done here.
fn by_machine(context: &Context, args: &ResizeArgs, refused: anyhow::Error) -> anyhow::Result<()> {
    let Some(ByteSize(size)) = args.size else { return Err(refused) };
    in_use::from_daemon(context, refused, async {
        let client = context.client()?;
        let body = DiskResize { path: absolute(&args.path)?, size };
        let change = ChangeArgs { dry_run: args.dry_run, no_wait: false, timeout: None };
        let outcome = client.resize_disk(&body, &change.options()).await?;
        let path = args.path.display();
        let done = |task: &Task| {
            format!("{path} has {} now, and '{}' goes on", output::size(size), task.object.name)
        };
        tasks::finish(context, &client, outcome, &change, done).await.map(drop)
    })
}

fn told(plan: &ResizePlan) -> String {
    let path = plan.path.display();
    if plan.old == plan.new {
        return format!("{path} has {} already", output::size(plan.new));
    }
    format!("{path} has {} now, it had {}", output::size(plan.new), output::size(plan.old))
}

/// What the state of the files does not allow exits with 5.
fn refused(error: ResizeError) -> anyhow::Error {
    match error {
        ResizeError::Cancelled { .. } => Fail::interrupted(error.to_string()),
        ResizeError::WouldLose { .. }
        | ResizeError::HasChildren { .. }
        | ResizeError::ParentLarger { .. }
        | ResizeError::SavedState { .. }
        | ResizeError::PartitionTable { .. } => Fail::conflict(error.to_string()),
        ResizeError::Unsuitable { path, source } => {
            Fail::usage(format!("{} cannot have that size: {source}", path.display()))
        }
        other => other.into(),
    }
}

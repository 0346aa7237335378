//! `disk merge`

use super::files::options;
use super::in_use;
use super::interrupt::cancellable;
use crate::context::Context;
use crate::exit::Fail;
use crate::output;
use crate::progress::Progress;
use anyhow::Context as _;
use backstay_disk::fs::{FileSystem, HostFs};
use backstay_disk::{Disk, MergeControl, MergeError, MergePlan, children_of, merge_offline, plan_merge};
use backstay_model::ByteSize;
use clap::{Args, ValueHint};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Move what a differencing disk holds into its parent, and remove it. For files that no virtual machine uses; \
                  the layers of a machine are merged by deleting its checkpoints. The parent must have no other child. Other \
                  children of the merged disk in its folder and in that of its parent become children of the parent; elsewhere use \
                  `backstay disk reparent`. Ctrl-C, kill and power loss leave a chain that reads as before; the next merge goes on \
                  from there.",
    after_long_help = "Examples:\n  backstay disk merge web.avhd --dry-run\n  backstay disk merge web.avhd\n  \
                       backstay disk merge third.avhd --into base.vhd --rate 50M\n  \
                       backstay disk merge base.vhdx --subtree --dry-run"
)]
pub struct MergeArgs {
    /// The differencing disk, or with --subtree its parent; nobody may have it open
    #[arg(value_hint = ValueHint::FilePath)]
    path: PathBuf,
    /// Go on down to this disk of its chain; to the direct parent unless given
    #[arg(long, value_name = "PARENT", value_hint = ValueHint::FilePath)]
    into: Option<PathBuf>,
    /// The named disk is a parent: merge into it everything that was made of it, a row of differencing disks in its folder
    #[arg(long, conflicts_with = "into")]
    subtree: bool,
    /// Move at most this many bytes per second
    #[arg(long, value_name = "SIZE")]
    rate: Option<ByteSize>,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs it.
pub fn run(context: &Context, args: &MergeArgs) -> anyhow::Result<()> {
    let host = HostFs::shared();
    let mut uppers = uppers(&host, args)?;
    if args.dry_run {
        return uppers.iter().try_for_each(|upper| {
            let plan = checked(context, &host, upper)?;
            output::print(&plan.to_string())
        });
    }
    // Nothing is begun that could not be ended.
    uppers.iter().try_for_each(|upper| checked(context, &host, upper).map(drop))?;
    // Each into the next: the first one's data comes along.
    let into = if args.subtree { args.path.clone() } else { args.into.clone().unwrap_or_default() };
    let first = uppers.first().cloned().unwrap_or_default();
    let count = uppers.len();
    for (index, upper) in uppers.drain(..).enumerate() {
        let plan = checked(context, &host, &upper)?;
        merge(context, args, &host, &plan)?;
        if index + 1 == count && count > 1 {
            context.note(format!("{} is merged into {}", first.display(), into.display()));
        }
    }
    Ok(())
}

/// The disks that are merged, each the parent of the one before.
fn uppers(host: &Arc<dyn FileSystem>, args: &MergeArgs) -> anyhow::Result<Vec<PathBuf>> {
    if args.subtree {
        return row_above(host, &args.path);
    }
    let Some(into) = &args.into else { return Ok(vec![args.path.clone()]) };
    let id = host.metadata(into).with_context(|| format!("cannot look at {}", into.display()))?.id;
    let disk = Disk::open(&args.path, options(true))?;
    let paths: Vec<PathBuf> = disk.chain().into_iter().map(|layer| layer.path).collect();
    let at = paths.iter().position(|path| host.metadata(path).is_ok_and(|meta| meta.id == id));
    match at {
        Some(at) if at > 0 => Ok(paths.into_iter().take(at).collect()),
        _ => Err(Fail::conflict(format!(
            "{} is not a parent of {}: `backstay disk info {} --chain` shows its parents",
            into.display(),
            args.path.display(),
            args.path.display()
        ))),
    }
}

/// What was made of a disk, the last one first. Where it branches nothing can be merged without destroying a branch.
fn row_above(host: &Arc<dyn FileSystem>, base: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let base = host.canonicalize(base).with_context(|| format!("cannot look at {}", base.display()))?;
    let mut row = vec![base.clone()];
    while let Some(last) = row.last() {
        let folders: BTreeSet<&Path> = row.iter().filter_map(|path| path.parent()).collect();
        let children = children_of(host, last, &folders.into_iter().collect::<Vec<_>>())?;
        match children.as_slice() {
            [] => break,
            [child] if row.contains(child) => {
                return Err(Fail::conflict(format!("{} is made of itself", child.display())));
            }
            [child] => row.push(child.clone()),
            several => {
                let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
                return Err(Fail::conflict(format!(
                    "what was made of {} branches at {}: {}. Merging one of them would destroy what the others read: convert \
                     those into files of their own with `backstay disk convert` first, or merge below the branch with --into",
                    base.display(),
                    last.display(),
                    names.join(", ")
                )));
            }
        }
    }
    if row.len() == 1 {
        return Err(Fail::conflict(format!(
            "no differencing disk of {} is in its folder: name the disk that is to be merged",
            base.display()
        )));
    }
    row.remove(0);
    row.reverse();
    Ok(row)
}

/// The plan, unless somebody else needs one of the files as it is.
fn checked(context: &Context, host: &Arc<dyn FileSystem>, upper: &Path) -> anyhow::Result<MergePlan> {
    let plan = plan_merge(host, upper, &options(true))?;
    for path in [&plan.upper, &plan.lower] {
        if let Some(holder) = in_use::ask(context, path).and_then(|file| file.used_by.into_iter().next()) {
            return Err(Fail::conflict(format!(
                "{} belongs to virtual machine '{}' ({}): its layers are merged by deleting its checkpoints",
                path.display(),
                holder.name,
                holder.place
            )));
        }
    }
    if !plan.siblings.is_empty() {
        let names: Vec<String> = plan.siblings.iter().map(|path| path.display().to_string()).collect();
        return Err(Fail::conflict(format!(
            "{} is the parent of {} too, and a merge would destroy what that reads: convert the disk into one file with \
             `backstay disk convert` instead",
            plan.lower.display(),
            names.join(", ")
        )));
    }
    Ok(plan)
}

fn merge(
    context: &Context,
    args: &MergeArgs,
    host: &Arc<dyn FileSystem>,
    plan: &MergePlan,
) -> anyhow::Result<()> {
    let control = MergeControl::new();
    control.set_rate(args.rate.map(|ByteSize(bytes)| bytes));
    let merged = cancellable(|cancel| {
        let bar = Progress::bytes(context, plan.bytes, "merging");
        std::thread::scope(|scope| {
            let merging =
                scope.spawn(|| merge_offline(host, &plan.upper, &plan.children, &options(false), &control));
            while !merging.is_finished() {
                if cancel.load(Ordering::Relaxed) {
                    control.cancel();
                }
                bar.set(control.progress().bytes_moved, "");
                std::thread::sleep(Duration::from_millis(50));
            }
            merging.join()
        })
    });
    let Ok(merged) = merged else { anyhow::bail!("the merge of {} failed", plan.upper.display()) };
    let merged = match merged {
        Err(error @ MergeError::Cancelled { .. }) => return Err(Fail::interrupted(error.to_string())),
        other => other?,
    };
    fs::remove_file(&merged.upper).with_context(|| format!("cannot remove {}", merged.upper.display()))?;
    for child in &merged.reparented {
        context.note(format!("{} is a child of {} now", child.display(), merged.lower.display()));
    }
    context.note(format!(
        "{} is merged into {} and removed: {} moved",
        merged.upper.display(),
        merged.lower.display(),
        output::size(merged.bytes_moved)
    ));
    Ok(())
}

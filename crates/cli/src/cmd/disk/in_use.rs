//! Files that a running machine holds: the daemon knows the machine's name.

use crate::context::{Context, absolute};
use crate::exit::Fail;
use backstay_api::{DiskFile, DiskHolder};
use backstay_disk::fs::HostFs;
use backstay_disk::{OpenError, children_beside};
use backstay_model::VmState;
use std::path::{Path, PathBuf};

/// The file that somebody else has locked, if that is why it failed.
pub fn locked_file(error: &anyhow::Error) -> Option<PathBuf> {
    error.chain().find_map(|cause| {
        let boxed = cause.downcast_ref::<Box<OpenError>>().map(AsRef::as_ref);
        match cause.downcast_ref::<OpenError>().or(boxed) {
            Some(OpenError::InUse { path, .. } | OpenError::Claimed { path, .. }) => Some(path.clone()),
            _ => None,
        }
    })
}

/// What the daemon says about a file; none when there is no daemon or no machine uses the file.
pub fn ask(context: &Context, path: &Path) -> Option<DiskFile> {
    let path = absolute(path).ok()?;
    let file = context.block_on(async { Ok(context.client()?.disk_file(&path).await?) }).ok()?;
    (!file.used_by.is_empty()).then_some(file)
}

/// Refuses to write to a file whose content a machine needs as it is, where a daemon knows of one.
pub fn refuse_frozen(context: &Context, path: &Path, cure: &str) -> anyhow::Result<()> {
    let Some(file) = ask(context, path) else { return Ok(()) };
    let frozen = file.used_by.iter().find(|holder| holder.frozen);
    match frozen {
        None => file.used_by.iter().try_for_each(|holder| refuse_saved(context, path, holder)),
        Some(holder) => Err(Fail::conflict(format!(
            "virtual machine '{}' ({}) needs {} as it is, so nothing may write to it: {cure}",
            holder.name,
            holder.place,
            path.display()
        ))),
    }
}

/// Refuses to write to a file that differencing disks were made on, as far as they can be found without a daemon: what they read
/// would change, and a VHDX would lose them.
pub fn refuse_parent(path: &Path, cure: &str) -> anyhow::Result<()> {
    let children = children_beside(&HostFs::shared(), path);
    if children.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = children.iter().map(|path| path.display().to_string()).collect();
    Err(Fail::conflict(format!(
        "{} is the parent of {}, so nothing may write to it: {cure}",
        path.display(),
        names.join(", ")
    )))
}

/// Refuses to write to a disk of a saved machine: its memory fits only what the disk is.
fn refuse_saved(context: &Context, path: &Path, holder: &DiskHolder) -> anyhow::Result<()> {
    let state = context.block_on(async { Ok(context.client()?.vm(holder.vm).await?.state) });
    match state {
        Ok(VmState::Saved) => Err(Fail::conflict(format!(
            "virtual machine '{}' is saved, and its memory fits {} ({}) only as it is: start it and shut it down, or \
             throw its memory away with `backstay vm discard-saved-state`",
            holder.name,
            path.display(),
            holder.place
        ))),
        _ => Ok(()),
    }
}

/// The daemon's answer about a file that a machine has locked; the refusal where nobody can answer.
pub fn from_daemon<T>(
    context: &Context,
    refused: anyhow::Error,
    answer: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let Some(path) = locked_file(&refused) else { return Err(refused) };
    let by_machine = ask(context, &path).is_some_and(|file| file.used_by.iter().any(|holder| holder.open));
    if by_machine { context.block_on(answer) } else { Err(refused) }
}

/// Names the machine where a file was refused because it is locked.
pub fn explain(context: &Context, error: anyhow::Error, cure: &str) -> anyhow::Error {
    let Some(path) = locked_file(&error) else { return error };
    let Some(file) = ask(context, &path) else { return error };
    let open: Vec<&DiskHolder> = file.used_by.iter().filter(|holder| holder.open).collect();
    let holders = if open.is_empty() { file.used_by.iter().collect() } else { open };
    let names: Vec<String> = holders
        .iter()
        .map(|holder| format!("virtual machine '{}' ({})", holder.name, holder.place))
        .collect();
    Fail::conflict(format!("{} is in use by {}: {cure}", path.display(), names.join(", ")))
}

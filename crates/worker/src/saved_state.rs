//! A saved machine's files: `<GUID>.vsv` and `<GUID>.bin` beside its configuration. While the first one exists the machine
//! is saved; it gets another name right before the guest executes again, so that no memory is ever used over disks that
//! went on without it.

use crate::checkpoint::descriptor::{Descriptor, DescriptorError, FileStamp, Reason, read_descriptor};
use crate::control::{LaunchRecord, RestoreFrom};
use crate::durable;
use crate::report::chain_of;
use backstay_disk::mark_saved_state;
use backstay_model::{CheckpointId, DriveSlot};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The descriptor's name once the guest is about to execute, or has.
#[must_use]
pub fn spent_name(descriptor: &Path) -> PathBuf {
    descriptor.with_extension("spent")
}

/// From here on the state counts as used. Durable when it returns.
///
/// # Errors
/// As the file system; the state is as it was then, or spent.
pub fn spend(descriptor: &Path) -> io::Result<()> {
    let spent = spent_name(descriptor);
    match std::fs::rename(descriptor, &spent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && spent.exists() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => durable::sync_folder_of(descriptor),
    }
}

/// Takes [`spend`] back: the guest has not executed after all.
///
/// # Errors
/// As the file system.
pub fn unspend(descriptor: &Path) -> io::Result<()> {
    match std::fs::rename(spent_name(descriptor), descriptor) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => durable::sync_folder_of(descriptor),
    }
}

/// Removes a state, the descriptor first: a crash leaves a memory file that nobody takes for one.
///
/// # Errors
/// As the file system.
pub fn remove(descriptor: &Path, memory: &Path) -> io::Result<()> {
    durable::remove(descriptor)?;
    durable::remove(&spent_name(descriptor))?;
    if let Some(folder) = descriptor.parent().filter(|folder| folder.is_dir()) {
        durable::sync_folder_of(descriptor)?;
        for left in [memory, &durable::temporary(memory), &durable::temporary(descriptor)] {
            durable::remove(left)?;
        }
        // Fails if something else is in it, which is right.
        let _ = std::fs::remove_dir(folder);
    }
    Ok(())
}

/// Whether a machine without processes is saved. What an interrupted save or a spent state left is removed.
///
/// # Errors
/// As the file system.
pub fn settle(descriptor: &Path, memory: &Path) -> io::Result<bool> {
    if descriptor.try_exists()? {
        // Of a state that was loaded, whose guest then was saved again.
        durable::remove(&spent_name(descriptor))?;
        return Ok(true);
    }
    if descriptor.parent().is_some_and(Path::is_dir) {
        remove(descriptor, memory)?;
    }
    Ok(false)
}

/// Stamps of files, which are made durable first: what is stamped survives a loss of power.
///
/// # Errors
/// As the file system.
pub fn stamps(files: &[PathBuf]) -> io::Result<Vec<FileStamp>> {
    let mut stamps: Vec<FileStamp> = Vec::new();
    for path in files {
        if stamps.iter().any(|known| known.path == *path) {
            continue;
        }
        let file = File::open(path)?;
        file.sync_all()?;
        stamps.push(stamp_of(path, &file.metadata()?));
    }
    Ok(stamps)
}

fn stamp_of(path: &Path, metadata: &std::fs::Metadata) -> FileStamp {
    FileStamp {
        path: path.into(),
        len: metadata.len(),
        modified_unix_ns: metadata
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(metadata.mtime_nsec()),
        identity: (metadata.dev(), metadata.ino()),
    }
}

/// Adds stamps to a descriptor.
///
/// # Errors
/// In words.
pub fn add_stamps(descriptor: &Path, files: Vec<FileStamp>) -> Result<(), String> {
    let former = read_descriptor(descriptor).map_err(|error| chain_of(&error))?;
    let stamped = Descriptor { files, ..former };
    durable::replace_json(descriptor, &stamped)
        .map_err(|error| format!("{} cannot be written: {error}", descriptor.display()))
}

/// Files of the disks that were written to or replaced since the state was saved. A file that is not at its place any more,
/// because its folder was moved, is not held against the state.
#[must_use]
pub fn changed_files(descriptor: &Descriptor) -> Vec<Reason> {
    let changed = |then: &FileStamp| {
        let what = match std::fs::metadata(&then.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => format!("cannot be looked at ({error})"),
            Ok(metadata) => {
                let now = stamp_of(&then.path, &metadata);
                // The device's number is another one after some boots; the inode's is not.
                let same = now.identity.1 == then.identity.1;
                match (now.len == then.len, now.modified_unix_ns == then.modified_unix_ns) {
                    (true, true) => return None,
                    _ if !same => "was replaced by another file since the machine was saved".to_owned(),
                    (false, _) => format!("has {} bytes now instead of {}", now.len, then.len),
                    (true, false) => "was written to since the machine was saved".to_owned(),
                }
            }
        };
        Some(Reason::Disk { path: then.path.clone(), what })
    };
    descriptor.files.iter().filter_map(changed).collect()
}

/// Gives a checkpoint the memory of a saved machine: one file with two names where that is possible, else a copy; the
/// descriptor last.
///
/// # Errors
/// In words; nothing of it is left then.
pub fn copy_to_checkpoint(
    from: &RestoreFrom,
    to: &RestoreFrom,
    checkpoint: CheckpointId,
) -> Result<Descriptor, String> {
    let former = read_descriptor(&from.descriptor_file).map_err(|error| chain_of(&error))?;
    let descriptor = Descriptor { checkpoint, files: Vec::new(), ..former };
    let copied = copy_file(&from.memory_file, &to.memory_file)
        .and_then(|()| durable::replace_json(&to.descriptor_file, &descriptor));
    copied.map_err(|error| {
        let _ = durable::remove(&to.memory_file);
        format!("{} cannot be made: {error}", to.memory_file.display())
    })?;
    Ok(descriptor)
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    durable::remove(to)?;
    if std::fs::hard_link(from, to).is_err() {
        let temporary = durable::temporary(to);
        let copied = std::fs::copy(from, &temporary)
            .and_then(|_| File::open(&temporary)?.sync_all())
            .and_then(|()| std::fs::rename(&temporary, to));
        if copied.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        copied?;
    }
    durable::sync_folder_of(to)
}

/// Marks the footers of disks for other programs, or takes the marks away. Only a courtesy: what fails is logged.
pub fn mark(tops: &[(DriveSlot, PathBuf)], saved: bool) {
    for (slot, top) in tops {
        if let Err(error) = mark_saved_state(top, saved) {
            tracing::warn!(%slot, error = chain_of(&error), "the disk's mark of a saved machine stays as it was");
        }
    }
}

/// Before the disks of a saved machine are opened: they are about to be written to.
pub(crate) async fn unmark(record: &LaunchRecord) {
    if !record.restore.as_ref().is_some_and(|from| from.once) {
        return;
    }
    let tops: Vec<_> = record.spec.disks().into_iter().map(|(slot, path)| (slot, path.clone())).collect();
    let _ = tokio::task::spawn_blocking(move || mark(&tops, false)).await;
}

/// Reads the descriptor of a saved machine.
///
/// # Errors
/// [`DescriptorError`].
pub fn read(from: &RestoreFrom) -> Result<Descriptor, DescriptorError> {
    read_descriptor(&from.descriptor_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_there_until_it_is_spent_and_a_rest_of_a_save_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("vm");
        std::fs::create_dir(&folder).unwrap();
        let (vsv, bin) = (folder.join("1.vsv"), folder.join("1.bin"));
        std::fs::write(&bin, "memory").unwrap();
        std::fs::write(&vsv, "{}").unwrap();
        assert!(settle(&vsv, &bin).unwrap());
        spend(&vsv).unwrap();
        spend(&vsv).unwrap();
        unspend(&vsv).unwrap();
        assert!(settle(&vsv, &bin).unwrap() && bin.exists());
        spend(&vsv).unwrap();
        assert!(!settle(&vsv, &bin).unwrap(), "its guest may have run");
        assert!(!folder.exists(), "nothing is left");

        std::fs::create_dir(&folder).unwrap();
        std::fs::write(&bin, "half").unwrap();
        std::fs::write(durable::temporary(&bin), "half").unwrap();
        assert!(!settle(&vsv, &bin).unwrap());
        assert!(!folder.exists());
        assert!(!settle(&vsv, &bin).unwrap(), "no folder is no state");
    }

    #[test]
    fn a_write_and_a_replacement_change_the_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "one").unwrap();
        std::fs::write(&b, "one").unwrap();
        let before = stamps(&[a.clone(), b.clone(), a.clone()]).unwrap();
        assert_eq!(before.len(), 2);
        let now = || stamps(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(now(), before);
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        File::options().write(true).open(&a).unwrap().set_modified(later).unwrap();
        assert_ne!(now()[0], before[0]);
        let copy = dir.path().join("c");
        std::fs::copy(&b, &copy).unwrap();
        std::fs::rename(&copy, &b).unwrap();
        assert_ne!(now()[1].identity, before[1].identity);
    }
}

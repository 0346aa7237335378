//! Whether a memory state can be loaded here: asked before anything is torn down for it.

use super::App;
use super::usage::same_file;
use crate::disks;
use crate::failure::{Failure, chain};
use crate::inventory::{Machine, blocking};
use backstay_api::{Blocker, ProblemCode};
use backstay_model::VmSpec;
use backstay_qemu::version::check_machine;
use backstay_worker::control::RestoreFrom;
use backstay_worker::{
    Descriptor, FileFacts, HostFacts, check_memory_file, check_restorable, file_facts, hardware,
    read_descriptor, saved_state,
};
use std::path::PathBuf;

/// How closely the memory file is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Whether it is there and has its length.
    Quick,
    /// Every byte.
    Whole,
}

/// Checks a state against the machine that would be started from it. All that is wrong is told at once.
///
/// # Errors
/// What stands against it, each with `cure`.
pub(super) async fn restorable(
    app: &App,
    spec: &VmSpec,
    from: &RestoreFrom,
    look: Look,
    cure: &str,
) -> Result<Descriptor, Vec<Blocker>> {
    let blocker = |detail: String| not_restorable(&detail, cure);
    let one = |failure: Failure| vec![blocker(failure.full_message())];
    let choice = app.host.accelerator(spec.accel).await.map_err(one)?;
    let version = app.host.qemu_version().await.map_err(one)?;
    let qemu_version = version.to_string();
    let mut reasons = Vec::new();
    if !spec.machine_type.is_empty()
        && let Err(error) = check_machine(version, &spec.machine_type)
    {
        reasons.push(error.to_string());
    }
    let hardware = hardware(spec, choice.accel);
    let (descriptor_file, memory_file): (PathBuf, PathBuf) =
        (from.descriptor_file.clone(), from.memory_file.clone());
    let checked = blocking(move || {
        let descriptor = match read_descriptor(&descriptor_file) {
            Ok(descriptor) => descriptor,
            Err(error) => return Ok(Err(vec![chain(&error)])),
        };
        let unreadable = |e| Failure::file("reading", &memory_file, e);
        let memory_file = match look {
            Look::Whole => file_facts(&memory_file).map_err(unreadable)?,
            Look::Quick => match std::fs::metadata(&memory_file) {
                Ok(found) => Some(FileFacts { len: found.len(), crc32c: descriptor.crc32c }),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(unreadable(error)),
            },
        };
        let facts =
            HostFacts { qemu_version, accelerator: choice.accel.as_str().into(), hardware, memory_file };
        let against = check_restorable(&descriptor, &facts).err().unwrap_or_default();
        let changed = saved_state::changed_files(&descriptor);
        let words: Vec<String> = against.iter().chain(&changed).map(ToString::to_string).collect();
        Ok(if words.is_empty() { Ok(descriptor) } else { Err(words) })
    })
    .await
    .map_err(one)?;
    match checked {
        Ok(descriptor) if reasons.is_empty() => Ok(descriptor),
        Ok(_) => Err(reasons.into_iter().map(blocker).collect()),
        Err(more) => {
            let more: Vec<String> = more;
            Err(reasons.into_iter().chain(more).map(blocker).collect())
        }
    }
}

fn not_restorable(detail: &str, cure: &str) -> Blocker {
    Blocker {
        code: ProblemCode::NotRestorable,
        detail: format!("its memory cannot be loaded: {detail}"),
        cure: Some(cure.into()),
    }
}

/// Checks only that a state is whole, wherever it is loaded.
///
/// # Errors
/// What stands against it, each with `cure`.
pub(super) async fn whole(from: &RestoreFrom, cure: &str) -> Result<(), Vec<Blocker>> {
    let (descriptor_file, memory_file) = (from.descriptor_file.clone(), from.memory_file.clone());
    let checked = blocking(move || {
        let descriptor = match read_descriptor(&descriptor_file) {
            Ok(descriptor) => descriptor,
            Err(error) => return Ok(Some(chain(&error))),
        };
        let found = file_facts(&memory_file).map_err(|e| Failure::file("reading", &memory_file, e))?;
        Ok(check_memory_file(&descriptor, found.as_ref()).map(|reason| reason.to_string()))
    });
    match checked.await {
        Ok(None) => Ok(()),
        Ok(Some(reason)) => Err(vec![not_restorable(&reason, cure)]),
        Err(failure) => Err(vec![not_restorable(&failure.full_message(), cure)]),
    }
}

/// How to go on with a saved machine whose memory is of no use.
pub(super) const DISCARD: &str = "throw the memory away with `backstay vm discard-saved-state`; the machine then boots as after a power cut";

/// A saved machine's memory.
pub(super) fn own_state(machine: &Machine) -> RestoreFrom {
    RestoreFrom {
        memory_file: machine.layout.vm_memory(machine.id),
        descriptor_file: machine.layout.vm_descriptor(machine.id),
        once: true,
    }
}

/// Checks a saved machine's state: here, and for the disks as they are.
///
/// # Errors
/// `not-restorable` with everything that stands against it.
pub(super) async fn saved_restorable(
    app: &App,
    machine: &Machine,
    look: Look,
) -> Result<RestoreFrom, Failure> {
    let from = own_state(machine);
    let blockers = match restorable(app, &machine.spec, &from, look, DISCARD).await {
        Ok(descriptor) => other_disks(machine, descriptor).await?,
        Err(blockers) => blockers,
    };
    if blockers.is_empty() {
        return Ok(from);
    }
    let words = format!("'{}' cannot continue from its saved memory; nothing was changed", machine.name());
    Err(Failure::new(ProblemCode::NotRestorable, words).with_blockers(blockers))
}

/// Disks that are not those of the state. Empty differencing disks above them, of checkpoints that were taken since, hold
/// the same content.
async fn other_disks(machine: &Machine, descriptor: Descriptor) -> Result<Vec<Blocker>, Failure> {
    let tops = machine.disks();
    blocking(move || {
        let mut blockers = Vec::new();
        for disk in descriptor.disks {
            let Some((slot, top)) = tops.iter().find(|(slot, _)| *slot == disk.slot) else { continue };
            let is_it = |file: &PathBuf| {
                same_file(file) == same_file(&disk.file)
                    || (!disk.file.exists() && file.file_name() == disk.file.file_name())
            };
            if is_it(top) {
                continue;
            }
            if let Err(why) = disks::reads_as(top, is_it) {
                let detail = format!(
                    "its memory cannot be loaded: the disk at {slot} was {} and is now {}{why}",
                    disk.file.display(),
                    top.display()
                );
                blockers.push(Blocker {
                    code: ProblemCode::NotRestorable,
                    detail,
                    cure: Some(DISCARD.into()),
                });
            }
        }
        Ok(blockers)
    })
    .await
}

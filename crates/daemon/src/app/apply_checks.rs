//! Everything that has to hold before a machine is torn down for a checkpoint.

use super::App;
use super::restorable::{Look, restorable, whole};
use super::usage::chain_of;
use crate::disks;
use crate::failure::Failure;
use crate::inventory::{Machine, Search, blocking, read_config, relocate};
use backstay_api::{Blocker, ProblemCode};
use backstay_hyperv::VmConfig;
use backstay_model::{Checkpoint, DriveMedia, VmSpec};
use backstay_worker::control::RestoreFrom;

/// A checkpoint that can be applied.
#[derive(Debug)]
pub(super) struct Checked {
    /// Its configuration, with paths that exist here.
    pub(super) config: VmConfig,
    /// What it says.
    pub(super) spec: VmSpec,
    /// Its memory, if it is to be loaded.
    pub(super) restore: Option<RestoreFrom>,
    /// What the user should know.
    pub(super) warnings: Vec<String>,
}

/// What is asked of a checkpoint's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// Nothing: it stays where it is.
    Without,
    /// That it is whole: another host loads it.
    Whole,
    /// That it can be loaded here.
    Loadable,
}

/// Checks a checkpoint's configuration, disks and memory. All that is wrong is told at once.
pub(super) async fn check(
    app: &App,
    machine: &Machine,
    checkpoint: &Checkpoint,
    wanted: Memory,
) -> Result<Checked, Failure> {
    let config = configuration(app, machine, checkpoint).await?;
    let (spec, _) = config.spec();
    let mut warnings = Vec::new();
    let mut blockers = Vec::new();
    for drive in &spec.drives {
        let problem = match &drive.media {
            DriveMedia::EmptyOptical => None,
            DriveMedia::Iso(path) => {
                std::fs::File::open(path).err().map(|e| Failure::file("reading", path, e))
            }
            DriveMedia::Device(path) => Some(Failure::precondition(format!(
                "{} is a device of this host, which cannot go back to a checkpoint",
                path.display()
            ))),
            DriveMedia::Disk(path) if disks::is_raw_name(path) => Some(Failure::precondition(format!(
                "{} is a raw disk, which cannot go back to a checkpoint",
                path.display()
            ))),
            DriveMedia::Disk(path) => match chain_of(app, path).await {
                Ok(found) => {
                    warnings.extend(found.warnings);
                    None
                }
                Err(failure) => Some(failure),
            },
        };
        if let Some(failure) = problem {
            let detail = format!("{}: {}", drive.slot, failure.full_message());
            blockers.push(Blocker { code: failure.code(), detail, cure: None });
        }
    }
    let mut restore = None;
    if checkpoint.has_memory && wanted != Memory::Without {
        match memory(app, machine, checkpoint, &spec, wanted).await {
            Ok(from) => restore = Some(from),
            Err(reasons) => blockers.extend(reasons),
        }
    }
    match blockers.first() {
        None => Ok(Checked { config, spec, restore, warnings }),
        Some(first) => {
            let code = first.code;
            let message = format!(
                "'{}' cannot go to the checkpoint '{}'; nothing was changed",
                machine.name(),
                checkpoint.name
            );
            Err(Failure::new(code, message).with_blockers(blockers))
        }
    }
}

async fn configuration(app: &App, machine: &Machine, checkpoint: &Checkpoint) -> Result<VmConfig, Failure> {
    let file = machine.layout.checkpoint_config(checkpoint.id);
    let (layout, others) = (machine.layout.clone(), app.inventory.places_of_others(machine.id));
    let disks = checkpoint.disks.clone();
    blocking(move || {
        let damaged = |reason: String| {
            Failure::new(
                ProblemCode::Damaged,
                format!("the checkpoint's configuration {} cannot be used: {reason}", file.display()),
            )
        };
        let mut config = read_config(&file).map_err(damaged)?;
        relocate(&mut config, &layout, Search::Registered(&others));
        // The tree holds the paths that exist here.
        for disk in disks {
            config.set_drive_path(disk.slot, &disk.file).map_err(|e| damaged(e.to_string()))?;
        }
        Ok(config)
    })
    .await
}

/// Whether the memory can be loaded into a machine of `spec` here.
async fn memory(
    app: &App,
    machine: &Machine,
    checkpoint: &Checkpoint,
    spec: &VmSpec,
    wanted: Memory,
) -> Result<RestoreFrom, Vec<Blocker>> {
    const CURE: &str = "bring back disks and configuration only, with --without-memory";
    let from = RestoreFrom {
        memory_file: machine.layout.checkpoint_memory(checkpoint.id),
        descriptor_file: machine.layout.checkpoint_descriptor(checkpoint.id),
        once: false,
    };
    let checked = match wanted {
        Memory::Loadable => restorable(app, spec, &from, Look::Whole, CURE).await.map(drop),
        Memory::Whole | Memory::Without => whole(&from, CURE).await,
    };
    checked.map(|()| from)
}

//! Reading machines from folders. Blocking: called from threads that may wait.

use super::machine::{Machine, generation_of};
use super::places::{Search, relocate};
use crate::failure::chain;
use crate::layout::Layout;
use crate::stamp::Stamp;
use backstay_hyperv::VmConfig;
use backstay_model::{Checkpoint, CheckpointTree, VmId, VmState};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Configurations are some tens of KiB; the parser refuses more than this.
const MAX_CONFIG_LEN: u64 = 16 << 20;

/// What was found in a folder.
#[derive(Debug, Default)]
pub struct Found {
    /// Machines that can be read.
    pub machines: Vec<Machine>,
    /// Configurations that cannot: path and reason.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// Reads one configuration file.
///
/// # Errors
/// In words, without the path.
pub fn read_config(file: &Path) -> Result<VmConfig, String> {
    let length = std::fs::metadata(file).map_err(|e| e.to_string())?.len();
    if length > MAX_CONFIG_LEN {
        return Err(format!("it has {length} bytes: a configuration has some ten thousand"));
    }
    let bytes = std::fs::read(file).map_err(|e| e.to_string())?;
    VmConfig::parse(&bytes).map_err(|error| chain(&error))
}

/// Every machine below `Virtual Machines` of a folder. A folder without it has none.
///
/// # Errors
/// The folder cannot be listed.
pub fn scan(layout: &Layout) -> io::Result<Found> {
    let mut found = Found::default();
    for file in xml_files(&layout.machines())? {
        match read_machine(layout, &file) {
            Ok(machine) => found.machines.push(machine),
            Err(reason) => found.unreadable.push((file, reason)),
        }
    }
    Ok(found)
}

/// The `.xml` files of a folder in name order; a missing folder has none.
fn xml_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        let is_xml = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("xml"));
        if is_xml && !hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one machine with its checkpoints, its files where the configurations name them; it is off or saved, as the
/// folder tells.
///
/// # Errors
/// In words, without the path.
pub fn read_machine(layout: &Layout, file: &Path) -> Result<Machine, String> {
    let config = read_config(file)?;
    let id = config.id().ok_or("it names no machine GUID (properties/global_id)")?;
    let checkpoints = read_checkpoints(layout, id, &config, Search::Nowhere);
    Ok(assemble(layout, file, config, checkpoints, Vec::new()))
}

/// The machine with the files that moved along with its folder; as it was if none did.
pub fn find_moved(machine: Machine, search: Search<'_>) -> Machine {
    let mut config = (*machine.config).clone();
    let told = relocate(&mut config, &machine.layout, search);
    let there = machine.disk_places().iter().all(|(file, _)| file.exists());
    if config == *machine.config && there {
        return machine;
    }
    let checkpoints = read_checkpoints(&machine.layout, machine.id, &config, search);
    assemble(&machine.layout, &machine.config_file, config, checkpoints, told)
}

/// Puts a machine together.
pub fn assemble(
    layout: &Layout,
    file: &Path,
    config: VmConfig,
    (tree, problems): (CheckpointTree, Vec<String>),
    mut warnings: Vec<String>,
) -> Machine {
    warnings.extend(problems.iter().cloned());
    let (spec, told) = config.spec();
    warnings.extend(told.iter().map(|w| chain(w)));
    let released = config.released();
    if let Some(file) = released.first() {
        let more =
            if released.len() > 1 { format!(" and {} more", released.len() - 1) } else { String::new() };
        warnings.push(format!(
            "files of deleted checkpoints are still to be merged or deleted ({}{more}): that goes on by itself when the \
             daemon starts, or with `backstay checkpoint merge`",
            file.display()
        ));
    }
    let saved = layout.vm_descriptor(spec.id).exists();
    let state = if saved { VmState::Saved } else { VmState::Off };
    Machine {
        id: spec.id,
        layout: layout.clone(),
        config_file: file.into(),
        generation: generation_of(&config),
        config: Arc::new(config),
        spec: Arc::new(spec),
        warnings: Arc::new(warnings),
        problems: Arc::new(problems),
        checkpoints: Arc::new(tree),
        state,
        reason: None,
        run: None,
    }
}

/// Whose checkpoint each file is: the checkpoints of all machines of a folder lie together, and reading them all for each
/// machine takes long where there are hundreds.
static OWNERS: Mutex<BTreeMap<PathBuf, (Stamp, Option<VmId>)>> = Mutex::new(BTreeMap::new());

/// More owners than that are forgotten and found out again.
const MOST_OWNERS: usize = 100_000;

/// Reads a checkpoint's configuration if it is one of `vm`.
fn read_if_of(vm: VmId, file: &Path) -> Result<Option<VmConfig>, String> {
    let (begun, stamp) = (SystemTime::now(), Stamp::of(file).map_err(|e| e.to_string())?);
    let owners = || OWNERS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = owners().get(file).copied().filter(|(then, _)| *then == stamp);
    if known.is_some_and(|(_, owner)| owner != Some(vm)) {
        return Ok(None);
    }
    let config = read_config(file)?;
    let owner = config.id();
    let mut table = owners();
    if table.len() >= MOST_OWNERS {
        table.clear();
    }
    if stamp.is_older_than(begun) {
        table.insert(file.into(), (stamp, owner));
    }
    Ok((owner == Some(vm)).then_some(config))
}

/// The checkpoints of `vm` in a folder, and what is wrong with some.
pub fn read_checkpoints(
    layout: &Layout,
    vm: VmId,
    config: &VmConfig,
    search: Search<'_>,
) -> (CheckpointTree, Vec<String>) {
    let mut problems = Vec::new();
    let files = xml_files(&layout.snapshots()).unwrap_or_else(|error| {
        problems.push(format!("{} cannot be listed: {error}", layout.snapshots().display()));
        Vec::new()
    });
    let pending = config.pending().map(|p| p.checkpoint);
    let deleting = config.deleting();
    let mut checkpoints: Vec<Checkpoint> = Vec::new();
    for file in files {
        match read_if_of(vm, &file) {
            Ok(Some(mut config)) => {
                // Never written back: it is looked for each time.
                relocate(&mut config, layout, search.of_checkpoint());
                // A checkpoint that is still pending is not one yet.
                checkpoints.extend(config.checkpoint().filter(|c| Some(c.id) != pending));
            }
            Ok(None) => {}
            // Whose it is cannot be told; it is shown with the folder, once, by the scan of unreadable files.
            Err(reason) => problems.push(format!(
                "{} cannot be read ({reason}), so which disks it needs is not known: repair it or move it away, and register \
                 the folder again",
                file.display()
            )),
        }
    }
    match CheckpointTree::new(checkpoints, config.now_parent()) {
        Ok(tree) => (tree.without(&deleting).0, problems),
        Err(error) => {
            problems.push(format!("the checkpoints do not form a tree: {error}"));
            (CheckpointTree::default(), problems)
        }
    }
}

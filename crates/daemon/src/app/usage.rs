//! Which file is used by what: no file is attached, deleted or replaced that another machine or checkpoint needs.

use super::App;
use super::devices::is_device;
use crate::chains::Chains;
use crate::disks::{self, Chain};
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use backstay_api::{DiskFile, DiskHolder, DiskLayer, DiskLimit, DiskStats, ProblemCode, VmDisk};
use backstay_model::VmId;
use backstay_worker::control::{DiskStatus, Reply, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const ANSWER: Duration = Duration::from_secs(10);

/// A path in the form in which two names of one file are equal.
#[must_use]
pub(super) fn same_file(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.into())
}

/// What two names of one file have in common, be they links or places where a file system is mounted; its name where there is no
/// file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FileKey {
    /// A device of the host, by its number.
    Device(u64),
    Inode(u64, u64),
    Name(PathBuf),
}

impl FileKey {
    pub(super) fn of(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(file) if file.file_type().is_block_device() => Self::Device(file.rdev()),
            Ok(file) => Self::Inode(file.dev(), file.ino()),
            Err(_) => Self::Name(same_file(path)),
        }
    }
}

/// A file, and who uses it.
#[derive(Debug)]
struct Used {
    /// One of its names.
    path: PathBuf,
    holders: Vec<DiskHolder>,
}

/// Which machines use which files, as tops or below them.
#[derive(Debug, Default)]
pub(super) struct Usage {
    files: BTreeMap<FileKey, Used>,
    /// Every chain that was looked at, the top first, under real paths.
    pub(super) chains: Vec<Vec<PathBuf>>,
    /// Chains that could not be opened: what they are made of is not known.
    pub(super) unknown: Vec<String>,
    /// Some of that may be known in a moment: a file is in use, or a worker does not answer just now.
    pub(super) unknown_for_now: bool,
}

impl Usage {
    /// The machine, other than `except`, whose Now has the file as a top: it is written to when that machine is on.
    pub(super) fn writer(&self, path: &Path, except: Option<VmId>) -> Option<&DiskHolder> {
        self.of(path).iter().find(|holder| !holder.frozen && Some(holder.vm) != except)
    }

    /// Why `vm` must not have a chain of files, the top first: another machine needs the top, or writes to what is below
    /// it. Tops of `except` may be below it.
    pub(super) fn conflict(&self, vm: VmId, files: &[PathBuf], except: Option<VmId>) -> Option<Failure> {
        let (top, parents) = files.split_first()?;
        if let Some(holder) = self.of(top).iter().find(|holder| holder.vm != vm) {
            // Its own disk, which others only read.
            let own = self.of(top).iter().any(|holder| holder.vm == vm);
            let read = self.of(top).iter().all(|holder| holder.vm == vm || holder.frozen);
            return Some(match self.dependents(vm, [top]) {
                Some(children) if own && read => parent_of(top, &children),
                _ => used_by(top, holder),
            });
        }
        let below = parents.iter().find_map(|file| self.writer(file, except).map(|holder| (file, holder)));
        let (file, holder) = below?;
        let words = format!(
            "{}, a parent of {}, is the disk that '{name}' writes to ({}), and what is written to a parent destroys its \
             children: take a checkpoint of '{name}' first, after which it writes elsewhere, or copy the parent with \
             `backstay disk convert` and make a differencing disk of the copy",
            file.display(),
            top.display(),
            holder.place,
            name = holder.name
        );
        Some(Failure::new(ProblemCode::InUse, words))
    }

    /// Names of the machines other than `vm` that need one of `files`, for a message; none if there is none.
    pub(super) fn dependents<'a>(
        &self,
        vm: VmId,
        files: impl IntoIterator<Item = &'a PathBuf>,
    ) -> Option<String> {
        let holders = files.into_iter().flat_map(|file| self.of(file)).filter(|holder| holder.vm != vm);
        let names: BTreeSet<String> = holders.map(|holder| format!("'{}'", holder.name)).collect();
        (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join(", "))
    }

    /// Who uses a file.
    pub(super) fn of(&self, path: &Path) -> &[DiskHolder] {
        self.files.get(&FileKey::of(path)).map_or(&[], |used| used.holders.as_slice())
    }

    /// The first use of a file by another machine than `vm`.
    pub(super) fn by_others(&self, vm: VmId) -> impl Iterator<Item = (&PathBuf, &DiskHolder)> {
        self.files.values().filter_map(move |used| {
            used.holders.iter().find(|holder| holder.vm != vm).map(|holder| (&used.path, holder))
        })
    }

    /// The first file that one of `some` has in a chain and another machine needs too, if `is_asked` of it: with who has it.
    pub(super) fn shared(
        &self,
        some: &BTreeSet<VmId>,
        is_asked: impl Fn(&Path) -> bool,
    ) -> Option<(&PathBuf, &DiskHolder, &DiskHolder)> {
        self.files.values().filter(|used| is_asked(&used.path)).find_map(|used| {
            let one = used.holders.iter().find(|holder| some.contains(&holder.vm))?;
            let other = used.holders.iter().find(|holder| !some.contains(&holder.vm))?;
            Some((&used.path, one, other))
        })
    }

    /// Whether anybody uses a file.
    pub(super) fn needs(&self, path: &Path) -> bool {
        !self.of(path).is_empty()
    }

    fn add(&mut self, files: &[PathBuf], holder: &DiskHolder) {
        self.chains.push(files.iter().map(|file| same_file(file)).collect());
        for (depth, file) in files.iter().enumerate() {
            let place =
                if depth == 0 { holder.place.clone() } else { format!("{}, below its top", holder.place) };
            let frozen = holder.frozen || depth > 0;
            let new = || Used { path: same_file(file), holders: Vec::new() };
            let used = self.files.entry(FileKey::of(file)).or_insert_with(new);
            used.holders.push(DiskHolder { place, frozen, ..holder.clone() });
        }
    }
}

/// The refusal of a file that somebody uses.
pub(super) fn used_by(path: &Path, holder: &DiskHolder) -> Failure {
    let words = format!(
        "{} is used by '{}' ({}): detach it there, or make a differencing disk of it",
        path.display(),
        holder.name,
        holder.place
    );
    Failure::new(ProblemCode::InUse, words)
}

/// The refusal to write to a file that others were made from.
pub(super) fn parent_of(path: &Path, children: &str) -> Failure {
    let words = format!(
        "{} is a parent of disks of {children}, and what is written to a parent destroys its children: take a checkpoint \
         first, after which this machine writes elsewhere, or delete those machines",
        path.display()
    );
    Failure::new(ProblemCode::InUse, words)
}

/// Which part of a machine's files counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Now and all checkpoints.
    All,
    /// Checkpoints only.
    Checkpoints,
    /// Nothing: the machine is about to go.
    Nothing,
}

/// A top file that somebody refers to.
struct Top {
    path: PathBuf,
    holder: DiskHolder,
    /// What the machine's worker has open; none: nobody may be writing.
    live: Option<Arc<Vec<DiskStatus>>>,
}

impl Top {
    /// The files of its chain.
    fn files(&self, chains: &Chains) -> Result<Vec<PathBuf>, Failure> {
        if is_device(&self.path) {
            return Ok(vec![self.path.clone()]);
        }
        let Some(live) = &self.live else { return chains.files(&self.path) };
        let wanted = FileKey::of(&self.path);
        for disk in live.iter() {
            if let Some(at) = disk.chain.iter().position(|file| FileKey::of(file) == wanted) {
                // A checkpoint that is being taken has put a layer above the one that the configuration names.
                let from = if self.holder.frozen { at } else { 0 };
                return Ok(disk.chain.get(from..).unwrap_or_default().to_vec());
            }
        }
        if self.holder.frozen {
            return chains.files(&self.path);
        }
        // A look would lock the file, and the worker that is about to open it would be refused.
        chains.remembered(&self.path).ok_or_else(|| {
            Failure::new(ProblemCode::InUse, "the machine is on and does not tell: ask again in a moment")
        })
    }
}

/// Looks through all machines. `part` says what of `special` counts.
pub(super) async fn usage(app: &App, special: Option<(VmId, Part)>) -> Result<Usage, Failure> {
    let machines = app.inventory.all();
    let live = futures_util::future::join_all(machines.iter().map(|machine| async {
        match machine.state.is_active() {
            true => Some(Arc::new(worker_disks(app, machine.id).await)),
            false => None,
        }
    }))
    .await;
    let mut tops = Vec::new();
    let mut unknown = unreadable(app).await?;
    for (machine, live) in machines.into_iter().zip(live) {
        let part = match special {
            Some((id, part)) if id == machine.id => part,
            _ => Part::All,
        };
        if part == Part::Nothing {
            continue;
        }
        // Machines of one folder have the same ones.
        unknown.extend(machine.problems.iter().cloned());
        let now = machine.disks().into_iter().chain(machine.devices());
        let now = now.map(|(slot, path)| (path, slot.to_string(), true));
        let then = machine.disk_places().into_iter().skip(machine.disks().len()).map(|(f, p)| (f, p, false));
        for (path, place, is_now) in now.chain(then) {
            if is_now && part == Part::Checkpoints {
                continue;
            }
            let holder = DiskHolder {
                vm: machine.id,
                name: machine.name().to_string(),
                place,
                open: machine.state.is_active(),
                // A template is not written to, whatever hangs below it.
                frozen: !is_now || machine.is_template(),
            };
            tops.push(Top { path, holder, live: live.clone() });
        }
    }
    let chains = Arc::clone(&app.chains);
    blocking(move || {
        let mut usage = look_through(&chains, tops);
        usage.unknown.extend(unknown);
        Ok(usage)
    })
    .await
}

/// Configurations that are there and cannot be read: nobody knows which files they name.
async fn unreadable(app: &App) -> Result<BTreeSet<String>, Failure> {
    let files = app.inventory.unreadable_files();
    let (there, gone): (Vec<_>, Vec<_>) =
        blocking(move || Ok(files.into_iter().partition(|(path, _)| !was_moved_away(path)))).await?;
    for (path, _) in gone {
        app.inventory.set_unreadable(path, None);
    }
    Ok(there.into_iter().map(|(path, reason)| format!("{} ({reason})", path.display())).collect())
}

/// Whether a configuration is not in its folder any more, which is there: somebody cleared up.
fn was_moved_away(file: &Path) -> bool {
    let is_config = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("xml"));
    is_config && file.parent().is_some_and(Path::is_dir) && matches!(file.try_exists(), Ok(false))
}

fn look_through(chains: &Chains, tops: Vec<Top>) -> Usage {
    let mut usage = Usage::default();
    chains.keep(&tops.iter().map(|top| top.path.clone()).collect());
    for top in tops {
        match top.files(chains) {
            Ok(files) => usage.add(&files, &top.holder),
            Err(error) => {
                usage.unknown_for_now |= error.code() == ProblemCode::InUse;
                usage.unknown.push(format!(
                    "{} of '{}': {}",
                    top.path.display(),
                    top.holder.name,
                    error.full_message()
                ));
                usage.add(&[top.path], &top.holder);
            }
        }
    }
    usage
}

pub(crate) async fn worker_disks(app: &App, vm: VmId) -> Vec<DiskStatus> {
    match app.workers.call(vm, Request::Disks, ANSWER).await {
        Ok(Reply::Disks { disks, .. }) => disks,
        _ => Vec::new(),
    }
}

/// The chain below one file, also when a worker has it open.
///
/// # Errors
/// `not-found`, `in-use`, `damaged`.
pub async fn chain_of(app: &App, path: &Path) -> Result<Chain, Failure> {
    let wanted = path.to_path_buf();
    let probed = blocking({
        let wanted = wanted.clone();
        move || Ok(disks::probe(&wanted))
    })
    .await?;
    match probed {
        Err(failure) if failure.code() == ProblemCode::InUse => {
            for machine in app.inventory.all().into_iter().filter(|m| m.state.is_active()) {
                let disks = worker_disks(app, machine.id).await;
                let held = disks
                    .into_iter()
                    .find(|d| d.chain.iter().any(|f| FileKey::of(f) == FileKey::of(&wanted)));
                if let Some(disk) = held {
                    return Ok(chain_from_worker(disk, &wanted));
                }
            }
            Err(failure)
        }
        other => other,
    }
}

fn chain_from_worker(disk: DiskStatus, path: &Path) -> Chain {
    let path = FileKey::of(path);
    let files: Vec<PathBuf> = disk.chain.into_iter().skip_while(|f| FileKey::of(f) != path).collect();
    let last = files.len().saturating_sub(1);
    let layer = |(index, file): (usize, &PathBuf)| DiskLayer {
        path: file.clone(),
        kind: if index < last { "differencing".into() } else { "base".into() },
        virtual_size: disk.size,
        file_size: std::fs::metadata(file).map_or(0, |m| m.len()),
    };
    Chain {
        size: disk.size,
        layers: files.iter().enumerate().map(layer).collect(),
        top_blocks: 0,
        warnings: Vec::new(),
    }
}

/// A machine's disks with their chains.
///
/// # Errors
/// `not-found`.
pub async fn vm_disks(app: &App, vm: &str) -> Result<Vec<VmDisk>, Failure> {
    let machine: Machine = app.inventory.find(vm)?;
    let live = if machine.state.is_active() { worker_disks(app, machine.id).await } else { Vec::new() };
    let mut found = Vec::new();
    for (slot, path) in machine.disks().into_iter().chain(machine.devices()) {
        let drive = machine.spec.drives.iter().find(|drive| drive.slot == slot);
        let limit = drive.and_then(|drive| DiskLimit::shown(drive.limit));
        let disk = match live.iter().find(|d| d.slot == slot) {
            Some(disk) => VmDisk {
                slot,
                path: disk.chain.first().cloned().unwrap_or(path),
                size: Some(disk.size),
                chain: disk.chain.clone(),
                stats: Some(DiskStats {
                    reads: disk.reads,
                    writes: disk.writes,
                    read_bytes: disk.read_bytes,
                    written_bytes: disk.written_bytes,
                }),
                error: None,
                limit,
            },
            None => match chain_of(app, &path).await {
                Ok(chain) => VmDisk {
                    slot,
                    path,
                    size: Some(chain.size),
                    chain: chain.files(),
                    stats: None,
                    error: None,
                    limit,
                },
                Err(error) => {
                    let error = Some(error.full_message());
                    let chain = vec![path.clone()];
                    VmDisk { slot, path, size: None, chain, stats: None, error, limit }
                }
            },
        };
        found.push(disk);
    }
    Ok(found)
}

/// Who uses a file, and its chain.
///
/// # Errors
/// `invalid` for a relative path, `not-found`.
pub async fn disk_file(app: &App, path: &Path) -> Result<DiskFile, Failure> {
    if !path.is_absolute() {
        return Err(Failure::invalid(format!("{} is not an absolute path", path.display())));
    }
    if !path.exists() {
        return Err(Failure::not_found(format!("{} does not exist", path.display())));
    }
    let usage = usage(app, None).await?;
    let used_by = usage.of(path).to_vec();
    Ok(match chain_of(app, path).await {
        Ok(chain) => {
            DiskFile { path: path.into(), used_by, size: Some(chain.size), chain: chain.layers, error: None }
        }
        Err(error) => DiskFile {
            path: path.into(),
            used_by,
            size: None,
            chain: Vec::new(),
            error: Some(error.full_message()),
        },
    })
}

#[cfg(test)]
mod tests;

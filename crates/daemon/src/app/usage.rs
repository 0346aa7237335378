//! Which file is used by what: no file is attached, deleted or replaced that another machine or checkpoint needs.

use super::App;
use crate::chains::Chains;
use crate::disks::{self, Chain};
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use backstay_api::{DiskFile, DiskHolder, DiskLayer, DiskStats, ProblemCode, VmDisk};
use backstay_model::VmId;
use backstay_worker::control::{DiskStatus, Reply, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const ANSWER: Duration = Duration::from_secs(10);

/// A path in the form in which two names of one file are equal.
#[must_use]
pub(super) fn same_file(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.into())
}

/// Which machines use which files, as tops or below them.
#[derive(Debug, Default)]
pub(super) struct Usage {
    files: BTreeMap<PathBuf, Vec<DiskHolder>>,
    /// Chains that could not be opened: what they are made of is not known.
    pub(super) unknown: Vec<String>,
}

impl Usage {
    /// Who uses a file.
    pub(super) fn of(&self, path: &Path) -> &[DiskHolder] {
        self.files.get(&same_file(path)).map_or(&[], Vec::as_slice)
    }

    /// Every file that is used.
    pub(super) fn files(&self) -> BTreeSet<PathBuf> {
        self.files.keys().cloned().collect()
    }

    fn add(&mut self, files: &[PathBuf], holder: &DiskHolder) {
        for (depth, file) in files.iter().enumerate() {
            let place =
                if depth == 0 { holder.place.clone() } else { format!("{}, below its top", holder.place) };
            self.files.entry(same_file(file)).or_default().push(DiskHolder { place, ..holder.clone() });
        }
    }
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
    /// Its chain, where a worker told it.
    live: Option<Vec<PathBuf>>,
}

/// Looks through all machines. `part` says what of `special` counts.
pub(super) async fn usage(app: &App, special: Option<(VmId, Part)>) -> Result<Usage, Failure> {
    let mut tops = Vec::new();
    for machine in app.inventory.all() {
        let part = match special {
            Some((id, part)) if id == machine.id => part,
            _ => Part::All,
        };
        if part == Part::Nothing {
            continue;
        }
        let live = if machine.state.is_active() { worker_disks(app, machine.id).await } else { Vec::new() };
        let now = machine.disks().into_iter().map(|(slot, path)| (path, slot.to_string(), true));
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
            };
            let live = live.iter().find(|d| d.chain.first() == Some(&path)).map(|d| d.chain.clone());
            tops.push(Top { path, holder, live });
        }
    }
    let chains = Arc::clone(&app.chains);
    blocking(move || Ok(look_through(&chains, tops))).await
}

fn look_through(chains: &Chains, tops: Vec<Top>) -> Usage {
    let mut usage = Usage::default();
    chains.keep(&tops.iter().map(|top| top.path.clone()).collect());
    for Top { path, holder, live } in tops {
        match live.map_or_else(|| chains.files(&path), Ok) {
            Ok(files) => usage.add(&files, &holder),
            Err(error) => {
                usage.unknown.push(format!(
                    "{} of '{}': {}",
                    path.display(),
                    holder.name,
                    error.full_message()
                ));
                usage.add(&[path], &holder);
            }
        }
    }
    usage
}

pub(super) async fn worker_disks(app: &App, vm: VmId) -> Vec<DiskStatus> {
    match app.workers.call(vm, Request::Disks, ANSWER).await {
        Ok(Reply::Disks { disks }) => disks,
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
                let held =
                    disks.into_iter().find(|d| d.chain.iter().any(|f| same_file(f) == same_file(&wanted)));
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
    let path = same_file(path);
    let files: Vec<PathBuf> = disk.chain.into_iter().skip_while(|f| same_file(f) != path).collect();
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
    for (slot, path) in machine.disks() {
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
            },
            None => match chain_of(app, &path).await {
                Ok(chain) => VmDisk {
                    slot,
                    path,
                    size: Some(chain.size),
                    chain: chain.files(),
                    stats: None,
                    error: None,
                },
                Err(error) => {
                    let error = Some(error.full_message());
                    VmDisk { slot, path: path.clone(), size: None, chain: vec![path], stats: None, error }
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

//! Looking into disk files: by the worker that holds one, else by the disk engine.

use super::App;
use super::usage::{same_file, worker_disks};
use crate::disks::{look_options, open_failure};
use crate::failure::Failure;
use crate::inventory::blocking;
use backstay_api::{DiskCheck, DiskFinding, DiskMap, DiskMapQuery, DiskRange, ProblemCode};
use backstay_disk::Disk;
use backstay_model::{DriveSlot, VmId};
use backstay_worker::control::{self, MapKind, Reply, Request};
use backstay_worker::inspect;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Ranges of one answer unless the caller says otherwise.
const RANGES: u32 = 10_000;
/// Most ranges of one answer.
const MOST_RANGES: u32 = 100_000;
/// How long a worker may take to look through a large disk.
const LOOK: Duration = Duration::from_mins(5);

/// The machine that writes to a file now, and where the file is attached.
pub(super) async fn writer_of(app: &App, path: &Path) -> Option<(VmId, DriveSlot)> {
    let wanted = same_file(path);
    for machine in app.inventory.all().into_iter().filter(|m| m.state.is_active()) {
        let disks = worker_disks(app, machine.id).await;
        let held = disks.into_iter().find(|d| d.chain.first().is_some_and(|top| same_file(top) == wanted));
        if let Some(disk) = held {
            return Some((machine.id, disk.slot));
        }
    }
    None
}

pub(super) fn checked(path: &Path) -> Result<(), Failure> {
    if !path.is_absolute() {
        return Err(Failure::invalid(format!("{} is not an absolute path", path.display())));
    }
    Ok(())
}

fn unexpected(reply: &Reply) -> Failure {
    Failure::new(ProblemCode::Internal, format!("the worker answered a question about a disk with {reply:?}"))
}

/// Where the ranges of a disk are.
///
/// # Errors
/// `invalid` for a relative path, `not-found`, `in-use`, `damaged`.
pub async fn disk_map(app: &App, query: DiskMapQuery) -> Result<DiskMap, Failure> {
    checked(&query.path)?;
    let wanted = query.limit.unwrap_or(RANGES).clamp(1, MOST_RANGES);
    let (limit, offset, top_only) = (usize::try_from(wanted).unwrap_or(1), query.offset, query.layer);
    let map = match writer_of(app, &query.path).await {
        Some((vm, slot)) => {
            match app.workers.call(vm, Request::DiskMap { slot, top_only, offset, limit }, LOOK).await? {
                Reply::DiskMap(map) => map,
                other => return Err(unexpected(&other)),
            }
        }
        None => {
            blocking(move || {
                let disk = Disk::open(&query.path, look_options()).map_err(open_failure)?;
                inspect::map(&disk, top_only, offset, limit)
                    .map_err(|error| Failure::file("mapping", &query.path, error))
            })
            .await?
        }
    };
    let end = map.ranges.last().map(|last| last.offset + last.length);
    Ok(DiskMap {
        size: map.size,
        next: end.filter(|end| *end < map.size),
        ranges: map.ranges.iter().map(|range| range_of(range, &map.chain)).collect(),
    })
}

fn range_of(range: &control::MapRange, chain: &[PathBuf]) -> DiskRange {
    let kind = match range.kind {
        MapKind::Data => "data",
        MapKind::Hole => "hole",
        MapKind::Zero => "zero",
        MapKind::Parent => "parent",
    };
    DiskRange {
        offset: range.offset,
        length: range.length,
        kind: kind.into(),
        depth: range.depth,
        file: range.depth.and_then(|depth| chain.get(depth).cloned()),
        file_offset: range.file_offset,
    }
}

/// Looks for damage in a disk.
///
/// # Errors
/// `invalid` for a relative path, `not-found`, `in-use`.
pub async fn disk_check(app: &App, path: &Path) -> Result<DiskCheck, Failure> {
    checked(path)?;
    let path = path.to_path_buf();
    let found = match writer_of(app, &path).await {
        Some((vm, slot)) => match app.workers.call(vm, Request::DiskCheck { slot }, LOOK).await? {
            Reply::DiskCheck(found) => found,
            other => return Err(unexpected(&other)),
        },
        None => {
            let file = path.clone();
            blocking(move || inspect::check_closed(&file, &look_options()).map_err(open_failure)).await?
        }
    };
    let finding = |finding: control::DiskFinding| DiskFinding {
        severity: finding.severity,
        rule: finding.rule,
        repairable: finding.repairable,
        text: finding.text,
    };
    Ok(DiskCheck {
        path,
        usable: found.usable,
        blocks: found.blocks,
        unused_bytes: found.unused_bytes,
        findings: found.findings.into_iter().map(finding).collect(),
    })
}

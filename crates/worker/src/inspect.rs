//! Looking into disks: the same answers for one that a worker serves and for one that nobody holds.

use crate::control::{DiskCheck, DiskFinding, DiskMap, MapKind, MapRange};
use crate::report::chain_of;
use backstay_disk::{ChainWarning, Disk, DiskOptions, OpenError, Report, check_file, fs::HostFs};
use std::io;
use std::path::Path;

/// Which file of the chain holds what: at most `limit` ranges from `offset` on.
///
/// # Errors
/// If a file cannot be read.
pub fn map(disk: &Disk, top_only: bool, offset: u64, limit: usize) -> io::Result<DiskMap> {
    let chain = disk.chain();
    let differs =
        |depth: usize| chain.get(depth).and_then(|l| l.image.as_ref()).is_some_and(|i| i.has_parent());
    let nowhere = if top_only && differs(0) { MapKind::Parent } else { MapKind::Zero };
    let ranges = disk.map(offset, limit, top_only)?;
    let range = |range: &backstay_disk::DiskRange| MapRange {
        offset: range.offset,
        length: range.len,
        kind: match range.place {
            None => nowhere,
            Some(place) if place.hole => MapKind::Hole,
            Some(_) => MapKind::Data,
        },
        depth: range.place.map(|place| place.layer),
        file_offset: range.place.map(|place| place.offset),
    };
    Ok(DiskMap {
        size: chain.first().map_or(0, |top| top.size),
        ranges: ranges.iter().map(range).collect(),
        chain: chain.into_iter().map(|layer| layer.path).collect(),
    })
}

/// Checks the top file of a disk that is open, and its chain.
///
/// # Errors
/// If its last changes cannot be flushed.
pub fn check(disk: &Disk) -> io::Result<DiskCheck> {
    let mut found = disk.check()?.map_or_else(nothing, |report| tell(&report));
    add_warnings(&mut found, disk.lasting_warnings());
    Ok(found)
}

/// Checks a file that nobody writes to, and its chain.
///
/// # Errors
/// If it cannot be opened or locked. Damage is in the result.
pub fn check_closed(path: &Path, options: &DiskOptions) -> Result<DiskCheck, OpenError> {
    let mut found = match check_file(&HostFs::shared(), path, options) {
        Ok(report) => tell(&report),
        Err(OpenError::NotVhd { .. }) => nothing(),
        Err(error) => return Err(error),
    };
    if found.usable {
        match Disk::open(path, DiskOptions { read_only: true, ..options.clone() }) {
            Ok(disk) => add_warnings(&mut found, disk.warnings()),
            Err(error @ OpenError::InUse { .. }) => return Err(error),
            Err(error) => found.findings.insert(0, of_chain("error", chain_of(&error))),
        }
    }
    Ok(found)
}

/// A raw file has no structure that could be damaged.
fn nothing() -> DiskCheck {
    DiskCheck { usable: true, blocks: 0, unused_bytes: 0, findings: Vec::new() }
}

fn of_chain(severity: &str, text: String) -> DiskFinding {
    // One line of a table: what was tried for a parent comes in several.
    let text = text.lines().map(str::trim).collect::<Vec<_>>().join("; ");
    DiskFinding { severity: severity.into(), rule: "chain".into(), repairable: false, text }
}

/// What the engine found strange when it opened the chain, unless the check says the same.
fn add_warnings(found: &mut DiskCheck, warnings: Vec<ChainWarning>) {
    for warning in warnings {
        let text = warning.to_string();
        if !found.findings.iter().any(|own| text.ends_with(own.text.as_str())) {
            let notes = found.findings.iter().position(|own| own.severity == "note");
            let at = notes.unwrap_or(found.findings.len());
            found.findings.insert(at, of_chain("warning", text));
        }
    }
}

fn tell(report: &Report) -> DiskCheck {
    let mut findings: Vec<_> = report.findings.iter().collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    DiskCheck {
        usable: report.is_usable(),
        blocks: report.blocks,
        unused_bytes: report.unused_bytes,
        findings: findings
            .into_iter()
            .map(|finding| DiskFinding {
                severity: finding.severity.to_string(),
                rule: finding.rule.into(),
                repairable: finding.repairable,
                text: finding.text.clone(),
            })
            .collect(),
    }
}

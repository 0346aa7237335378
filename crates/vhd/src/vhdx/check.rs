//! What is wrong with a file: one finding per broken rule. Reads metadata, never payload, and changes nothing.

use std::{error::Error, sync::Arc};

use super::{
    bat::State,
    errors::OpenError,
    info::{ImageInfo, Warning},
    open::{self, Damage, OpenOptions, Parsed},
    places::Owner,
    region,
};
use crate::{
    Storage,
    check::{Finding, Severity},
};

/// The result of a check.
pub type Report = crate::check::Report<ImageInfo>;

/// Checks a file, its log replayed in memory.
#[must_use]
pub fn check(storage: &Arc<dyn Storage>) -> Report {
    let mut damage = Damage::Collect(Vec::new());
    let mut report = Report { info: None, findings: Vec::new(), blocks: 0, unused_bytes: 0 };
    match open::parse(storage, &OpenOptions::default(), &mut damage) {
        Err(error) => report.findings.push(from_error(&error)),
        Ok(parsed) => {
            if let Damage::Collect(list) = damage {
                report.findings.extend(list.iter().map(from_error));
            }
            report.findings.extend(parsed.info.warnings.iter().map(from_warning));
            report.blocks = parsed.info.blocks_at_open;
            space_findings(&parsed, &mut report);
            if report.is_usable() {
                bitmap_findings(&parsed, &mut report);
            }
            report.info = Some(parsed.info);
        }
    }
    report.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    report
}

fn finding(severity: Severity, rule: &'static str, text: impl Into<String>) -> Finding {
    Finding { severity, rule, text: text.into(), repairable: false }
}

fn from_error(error: &OpenError) -> Finding {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    finding(Severity::Error, error.rule(), text)
}

fn from_warning(warning: &Warning) -> Finding {
    let (severity, rule, repairable) = match warning {
        Warning::HeaderBad { .. } => (Severity::Warning, "header-copy", true),
        Warning::RegionTableBad { error, .. } => {
            (Severity::Warning, "region-table-copy", error != region::DIFFERS)
        }
        Warning::LogReplayed { .. } => (Severity::Note, "clean-close", true),
        Warning::WritesAdopted { .. } => (Severity::Note, "clean-close", false),
        Warning::ZeroBlocksWithOffset { .. } => (Severity::Warning, "zero-blocks", true),
        Warning::NoParentPath => (Severity::Warning, "parent-path", false),
    };
    Finding { repairable, ..finding(severity, rule, warning.to_string()) }
}

fn space_findings(parsed: &Parsed, report: &mut Report) {
    report.unused_bytes = parsed.places.gaps().iter().map(|(start, end)| end - start).sum();
    if report.unused_bytes > 0 {
        let text =
            format!("{} bytes between blocks belong to nothing; new blocks use them", report.unused_bytes);
        report.findings.push(finding(Severity::Note, "no-lost-space", text));
    }
    let tail = parsed.view.len().saturating_sub(parsed.places.free);
    if tail > 0 {
        let text =
            format!("{tail} bytes are reserved behind the last block: the disk is in use or was not closed");
        report.findings.push(finding(Severity::Note, "clean-close", text));
    }
    let anchors =
        parsed.places.used.iter().filter(|extent| matches!(extent.owner, Owner::Anchor(..))).count();
    if anchors > 0 {
        let text = format!("{anchors} blocks were trimmed and keep their space");
        report.findings.push(finding(Severity::Note, "trimmed-blocks", text));
    }
}

/// Looks at every sector bitmap block: it has to be readable.
fn bitmap_findings(parsed: &Parsed, report: &mut Report) {
    let mut bytes = vec![0; 1 << 20];
    for extent in &parsed.places.used {
        if let Owner::Bitmap(chunk) = extent.owner
            && let Err(error) = parsed.view.read(&mut bytes, extent.from())
        {
            let text = format!("the sector bitmap {chunk} at {} cannot be read: {error}", extent.from());
            report.findings.push(finding(Severity::Error, "readable", text));
        }
    }
    let partial = parsed.table.iter().filter(|(_, entry)| entry.state == State::Partial).count();
    debug_assert!(partial == 0 || parsed.geometry.differencing, "only children have blocks in parts");
}

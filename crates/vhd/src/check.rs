//! What is wrong with a file: one finding per broken rule. Reads metadata, never payload, and changes nothing.

use std::{error::Error, fmt};

use crate::{
    ImageInfo, OpenError, Storage, Warning,
    format::{
        SECTOR,
        bat::{ABSENT, Blocks},
        footer::{DiskType, FEATURE_RESERVED, FOOTER_LEN},
    },
    info::ParentLink,
    open::{self, Damage, OpenOptions, Parsed, Sparse},
};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Nothing to do.
    Note,
    /// The disk works, but should be repaired.
    Warning,
    /// The disk is refused, or reads wrong data.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Short name of the rule, stable: for scripts.
    pub rule: &'static str,
    /// What is wrong, for people.
    pub text: String,
    /// Whether [`crate::repair::plan`] cures it.
    pub repairable: bool,
}

/// The result of a check of a file, of whichever format `I` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report<I = ImageInfo> {
    /// What the file says about itself; `None` if it is too damaged to tell.
    pub info: Option<I>,
    /// What is wrong, worst first.
    pub findings: Vec<Finding>,
    /// Blocks in the file.
    pub blocks: u32,
    /// Bytes between structures that belong to nothing, without alignment.
    pub unused_bytes: u64,
}

impl<I> Report<I> {
    /// The same with what the file says in another form.
    #[must_use]
    pub fn map_info<J>(self, form: impl FnOnce(I) -> J) -> Report<J> {
        let Self { info, findings, blocks, unused_bytes } = self;
        Report { info: info.map(form), findings, blocks, unused_bytes }
    }

    /// The worst severity; `None` if there is no finding.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Whether the disk can be used as it is: no finding is an error.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.worst() != Some(Severity::Error)
    }
}

/// One line per finding, and one about all.
impl<I> fmt::Display for Report<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let cure = if finding.repairable { " [can be repaired]" } else { "" };
            writeln!(f, "{}: {}: {}{cure}", finding.severity, finding.rule, finding.text)?;
        }
        match self.worst() {
            None => writeln!(f, "no errors were found"),
            Some(Severity::Note) => writeln!(f, "no errors were found, {} notes", self.findings.len()),
            Some(_) => writeln!(f, "{} findings", self.findings.len()),
        }
    }
}

/// Checks a file.
#[must_use]
pub fn check(storage: &dyn Storage, options: &OpenOptions) -> Report {
    let mut damage = Damage::Collect(Vec::new());
    let mut report = Report { info: None, findings: Vec::new(), blocks: 0, unused_bytes: 0 };
    match open::parse(storage, options, &mut damage) {
        Err(error) => report.findings.push(from_error(&error)),
        Ok(parsed) => {
            if let Damage::Collect(list) = damage {
                report.findings.extend(list.iter().map(from_error));
            }
            report.findings.extend(parsed.info.warnings.iter().map(from_warning));
            footer_findings(&parsed, &mut report.findings);
            if let Some(parent) = &parsed.info.parent {
                parent_findings(parent, &mut report.findings);
            }
            if let Some(sparse) = &parsed.sparse {
                sparse_findings(storage, &parsed, sparse, &mut report);
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
    let rule = match error {
        OpenError::Io { .. } | OpenError::Shadow(_) => "readable",
        OpenError::NotVhd | OpenError::IsVhdx => "is-vhd",
        OpenError::Poisoned => "no-interrupted-operation",
        OpenError::Footer(_) => "footer",
        OpenError::UnsupportedType(_) => "disk-type",
        OpenError::SplitDisk => "one-file",
        OpenError::Truncated { .. } => "complete",
        OpenError::Header { .. } => "header",
        OpenError::Size(_) => "size",
        OpenError::BlockSize(_) => "block-size",
        OpenError::TooManyBlocks { .. } | OpenError::TableTooSmall { .. } => "table-size",
        OpenError::Overlap { .. } => "no-overlap",
    };
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    finding(Severity::Error, rule, text)
}

fn from_warning(warning: &Warning) -> Finding {
    let (severity, rule, repairable) = match warning {
        Warning::TrailingFooterBad { .. } | Warning::TrailingFooterForeign { .. } => {
            (Severity::Warning, "footer-at-end", true)
        }
        Warning::FooterCopyBad | Warning::FooterCopyDiffers => (Severity::Warning, "footer-copy", true),
        Warning::BlocksBeyondEnd { .. } => (Severity::Warning, "blocks-inside-file", true),
        Warning::SizeRounded { .. } => (Severity::Warning, "size-in-sectors", false),
        Warning::BadLocator { .. } => (Severity::Warning, "parent-locator", false),
        Warning::WritesAdopted { .. } => (Severity::Note, "clean-close", false),
    };
    Finding { severity, rule, text: warning.to_string(), repairable }
}

fn footer_findings(parsed: &Parsed, findings: &mut Vec<Finding>) {
    let footer = &parsed.found.footer;
    if parsed.found.place == crate::locate::Place::ShortEnd {
        findings.push(finding(
            Severity::Note,
            "footer-length",
            "the footer has 511 bytes, as before Virtual PC 2004",
        ));
    }
    if footer.features.get() & FEATURE_RESERVED == 0 {
        let text = "the reserved bit of the footer's features is not set";
        findings.push(finding(Severity::Note, "footer-features", text));
    }
    if footer.saved_state > 1 {
        let text = format!("the saved-state flag is {}, neither 0 nor 1", footer.saved_state);
        findings.push(finding(Severity::Note, "saved-state", text));
    }
    if parsed.info.saved_state {
        let text =
            "a virtual machine was saved while it used the disk; it must not be compacted, resized or merged";
        findings.push(finding(Severity::Note, "saved-state", text));
    }
    if parsed.info.unique_id.is_nil() {
        let text = "the unique id is all zeros, so children cannot tell this disk from others like it";
        findings.push(finding(Severity::Warning, "unique-id", text));
    }
    if parsed.info.disk_type == DiskType::Fixed && parsed.found.data_end != footer.current_size.get() {
        let text =
            format!("the file holds {} bytes, the disk has {}", parsed.found.data_end, parsed.info.size);
        findings.push(finding(Severity::Note, "fixed-length", text));
    }
}

fn parent_findings(parent: &ParentLink, findings: &mut Vec<Finding>) {
    if parent.unique_id.is_nil() {
        findings.push(finding(Severity::Warning, "parent-id", "the parent's unique id is all zeros"));
    }
    let named =
        !parent.unicode_name.is_empty() || parent.locators.iter().any(|locator| locator.path.is_some());
    if !named {
        let text = "the disk stores no path to its parent, so the parent cannot be found";
        findings.push(finding(Severity::Warning, "parent-path", text));
    }
}

fn sparse_findings(storage: &dyn Storage, parsed: &Parsed, sparse: &Sparse, report: &mut Report) {
    let blocks = &sparse.blocks;
    report.blocks = parsed.info.blocks_at_open;
    let entries = sparse.header.max_table_entries.get();
    if entries != blocks.count {
        let text = format!(
            "the table has {entries} entries, the disk {} blocks; Azure wants them equal",
            blocks.count
        );
        report.findings.push(finding(Severity::Note, "table-size", text));
    }
    if !parsed.info.aligned_4k {
        let text =
            "block data is not aligned to 4096 bytes; a converted copy is faster on disks with 4 KiB sectors";
        report.findings.push(finding(Severity::Note, "alignment", text));
    }
    report.unused_bytes = unused_between(sparse);
    if report.unused_bytes > 0 {
        let text = format!(
            "{} bytes between blocks belong to nothing; a conversion frees them",
            report.unused_bytes
        );
        report.findings.push(finding(Severity::Note, "no-lost-space", text));
    }
    let tail = parsed.found.data_end.saturating_sub(sparse.free);
    if parsed.found.at_end() && tail > 0 {
        let text =
            format!("{tail} bytes are reserved behind the last block: the disk is in use or was not closed");
        report.findings.push(Finding { repairable: true, ..finding(Severity::Note, "clean-close", text) });
    }
    bitmap_findings(storage, parsed, sparse, report);
}

/// Bytes between blocks beyond what alignment explains.
fn unused_between(sparse: &Sparse) -> u64 {
    let mut starts: Vec<u32> = sparse.table.iter().copied().filter(|entry| *entry != ABSENT).collect();
    starts.sort_unstable();
    let metadata_end = sparse.regions.iter().map(|region| region.reserved_end).max().unwrap_or(0);
    let mut at = metadata_end;
    let mut unused = 0;
    for start in starts {
        let start = u64::from(start) * SECTOR;
        let gap = start.saturating_sub(at);
        if gap >= 2 * crate::format::bat::DATA_ALIGN {
            unused += gap;
        }
        at = at.max(start + sparse.blocks.stored_len());
    }
    unused
}

/// Looks at every bitmap: it has to be readable, and in a dynamic disk clear bits are worth a note.
fn bitmap_findings(storage: &dyn Storage, parsed: &Parsed, sparse: &Sparse, report: &mut Report) {
    let blocks = &sparse.blocks;
    let mut bitmap = vec![0; blocks.bitmap_len_usize()];
    let mut partial = 0u32;
    for (index, entry) in (0u32..).zip(&sparse.table) {
        if *entry == ABSENT {
            continue;
        }
        if let Err(error) = storage.read_at(&mut bitmap, u64::from(*entry) * SECTOR) {
            let text = format!("the bitmap of block {index} cannot be read: {error}");
            report.findings.push(finding(Severity::Error, "readable", text));
            return;
        }
        partial += u32::from(!all_set(&bitmap, blocks, index));
    }
    if partial > 0 && parsed.info.disk_type == DiskType::Dynamic {
        let text = format!(
            "{partial} blocks have sectors that were never written, by their bitmaps; they read as stored"
        );
        report.findings.push(finding(Severity::Note, "full-bitmaps", text));
    }
}

fn all_set(bitmap: &[u8], blocks: &Blocks, index: u32) -> bool {
    let sectors = usize::try_from(blocks.used_len(index) / SECTOR).unwrap_or(usize::MAX);
    let whole = bitmap.get(..sectors / 8).unwrap_or(bitmap).iter().all(|byte| *byte == 0xff);
    let rest = sectors % 8;
    let last = bitmap.get(sectors / 8).copied().unwrap_or(0xff);
    whole && (rest == 0 || last.leading_ones() as usize >= rest)
}

/// Length of a file that ends where its last block ends.
pub(crate) fn tidy_len(sparse: &Sparse) -> u64 {
    sparse.free.saturating_add(FOOTER_LEN as u64)
}

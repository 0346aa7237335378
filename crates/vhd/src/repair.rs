//! Plans that cure what can be cured without guessing. Damage that would cost data either way is left alone and named.

use std::fmt;

use zerocopy::IntoBytes;

use crate::{
    OpenError, Storage, Warning,
    check::{self, Finding, Severity},
    format::{
        bat::ABSENT,
        footer::{DiskType, FOOTER_LEN},
    },
    locate::Place,
    open::{self, Damage, OpenOptions, Parsed, Sparse},
    plan::{self, Content, PlanError, Step},
};

/// What would be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairPlan {
    /// The steps; none if there is nothing to do.
    pub steps: Vec<Step>,
    /// What stays wrong afterwards (errors and warnings only).
    pub left: Vec<Finding>,
}

impl fmt::Display for RepairPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.steps.is_empty() {
            writeln!(f, "nothing can be repaired")?;
        } else {
            writeln!(f, "repair the file:")?;
        }
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step}"))?;
        for finding in &self.left {
            writeln!(f, "not repaired: {}: {}", finding.rule, finding.text)?;
        }
        Ok(())
    }
}

impl RepairPlan {
    /// Carries the plan out. The file must not be in use.
    ///
    /// # Errors
    /// At the first step that fails; the file can be checked and repaired again.
    pub fn execute(&self, storage: &dyn Storage) -> Result<(), PlanError> {
        plan::execute(&self.steps, storage)
    }
}

/// Plans a repair of what [`check::check`] finds.
///
/// # Errors
/// If the file is too damaged to tell what it holds.
pub fn plan(storage: &dyn Storage, options: &OpenOptions) -> Result<RepairPlan, OpenError> {
    let mut damage = Damage::Collect(Vec::new());
    let parsed = open::parse(storage, options, &mut damage)?;
    let report = check::check(storage, options);
    let mut steps = Vec::new();
    let damaged = matches!(&damage, Damage::Collect(list) if !list.is_empty());
    // Cutting the end of a file whose blocks are cut off or overlap could destroy what a person can still save.
    if !damaged {
        file_steps(&parsed, &mut steps);
    }
    let cured = |finding: &Finding| finding.repairable && !damaged;
    let left = report.findings.into_iter().filter(|f| f.severity > Severity::Note && !cured(f)).collect();
    Ok(RepairPlan { steps, left })
}

fn file_steps(parsed: &Parsed, steps: &mut Vec<Step>) {
    let Some(sparse) = &parsed.sparse else {
        if parsed.found.place == Place::Inside {
            steps.push(Step::SetLen(parsed.found.data_end + FOOTER_LEN as u64));
            steps.push(Step::Flush);
        }
        return;
    };
    for index in &sparse.beyond {
        steps.push(Step::Write {
            what: format!("\"absent\" for block {index}"),
            offset: sparse.header.table_offset.get() + u64::from(*index) * 4,
            content: Content::Bytes(ABSENT.to_be_bytes().to_vec()),
        });
    }
    let warned = |wanted: fn(&Warning) -> bool| parsed.info.warnings.iter().any(wanted);
    if warned(|w| matches!(w, Warning::FooterCopyBad | Warning::FooterCopyDiffers)) {
        steps.push(footer_at(parsed, 0, "the copy of the footer"));
    }
    if tail_needs_work(parsed, sparse) {
        // First the copy at the start has to be sure to be right: for a moment it is the only footer.
        steps.push(Step::Flush);
        steps.push(Step::SetLen(sparse.free));
        steps.push(Step::SetLen(check::tidy_len(sparse)));
        steps.push(footer_at(parsed, sparse.free, "the footer"));
    }
    if !steps.is_empty() {
        steps.push(Step::Flush);
    }
}

fn tail_needs_work(parsed: &Parsed, sparse: &Sparse) -> bool {
    debug_assert_ne!(parsed.info.disk_type, DiskType::Fixed, "fixed disks have no table");
    let short = parsed.found.place == Place::ShortEnd;
    !short && (!parsed.found.at_end() || parsed.info.file_len > check::tidy_len(sparse))
}

fn footer_at(parsed: &Parsed, offset: u64, what: &str) -> Step {
    let content = Content::Bytes(parsed.found.footer.as_bytes().to_vec());
    Step::Write { what: what.to_owned(), offset, content }
}

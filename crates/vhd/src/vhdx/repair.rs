//! Plans that cure what can be cured without guessing: what the format keeps twice, and what its log says. A block that is not
//! in the file is in nobody's copy, and is only named.

use std::{fmt, sync::Arc};

use uuid::Uuid;

use super::{
    bat::{self, Slot, State},
    check,
    errors::{OpenError, io_at},
    header::{CurrentHeader, Header},
    layout::{HEADERS_AT, PAGE, REGION_TABLE_LEN, REGION_TABLES_AT, to_usize},
    log::replay,
    open::{self, Damage, OpenOptions, Parsed},
    region,
};
use crate::{
    Storage,
    check::{Finding, Severity},
    plan::{self, Content, PlanError, Step},
};

/// Longest run of the table that is written in one step, in bytes.
const RUN: usize = 64 << 10;

/// What would be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairPlan {
    /// The log has to be replayed into the file first, by opening it for writing; a new plan tells what is left then.
    pub replay: bool,
    /// The steps; none if there is nothing to do, or the log comes first.
    pub steps: Vec<Step>,
    /// What stays wrong afterwards (errors and warnings only).
    pub left: Vec<Finding>,
}

impl RepairPlan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.replay && self.steps.is_empty()
    }

    /// Carries the steps out. The file must not be in use, and its log must be empty. After a crash between two of them the
    /// disk reads as before, and another plan does the rest.
    ///
    /// # Errors
    /// At the first step that fails.
    pub fn execute(&self, storage: &dyn Storage) -> Result<(), PlanError> {
        plan::execute(&self.steps, storage)
    }
}

impl fmt::Display for RepairPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            writeln!(f, "nothing to repair")?;
        }
        if self.replay {
            writeln!(f, "write the changes in the log into their places, and empty the log")?;
        }
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))?;
        for finding in &self.left {
            writeln!(f, "not repaired: {}: {}", finding.rule, finding.text)?;
        }
        Ok(())
    }
}

/// Plans a repair. `file_write` is a new id for the file as it will be.
///
/// # Errors
/// If the file is too damaged to tell what it holds.
pub fn plan(storage: &Arc<dyn Storage>, file_write: Uuid) -> Result<RepairPlan, OpenError> {
    let mut damage = Damage::Collect(Vec::new());
    let parsed = open::parse(storage, &OpenOptions::default(), &mut damage)?;
    let left = |findings: Vec<Finding>| {
        findings.into_iter().filter(|f| f.severity > Severity::Note && !f.repairable).collect()
    };
    let findings = check::check(storage).findings;
    let damaged = matches!(&damage, Damage::Collect(list) if !list.is_empty());
    if replay::is_pending(&parsed.header.header) {
        // What the log would write into a file whose blocks overlap or are cut off is nobody's guess.
        return Ok(RepairPlan { replay: !damaged, steps: Vec::new(), left: left(findings) });
    }
    let mut steps = Vec::new();
    region_steps(&parsed, &mut steps)?;
    if !damaged {
        zero_steps(&parsed, &mut steps)?;
    }
    if !steps.is_empty() || parsed.header.other.is_some() {
        let mut first = header_steps(&parsed.header, file_write);
        first.append(&mut steps);
        steps = first;
    }
    Ok(RepairPlan { replay: false, steps, left: left(findings) })
}

fn write(what: &str, offset: u64, bytes: Vec<u8>) -> Step {
    Step::Write { what: what.to_owned(), offset, content: Content::Bytes(bytes) }
}

/// Both headers anew, the damaged or older one first: at any moment one of them is whole.
fn header_steps(current: &CurrentHeader, file_write: Uuid) -> Vec<Step> {
    let mut header = Header { file_write_guid: file_write.to_bytes_le(), ..current.header.clone() };
    let mut steps = Vec::new();
    for slot in [1 - current.slot, current.slot] {
        header.sequence.set(header.sequence.get().wrapping_add(1));
        let at = HEADERS_AT.get(slot).copied().unwrap_or(0);
        steps.push(write("a header", at, header.sealed().to_vec()));
        steps.push(Step::Flush);
    }
    steps
}

/// The good region table over the damaged one. Of two good ones that differ nobody knows which is right.
fn region_steps(parsed: &Parsed, steps: &mut Vec<Step>) -> Result<(), OpenError> {
    let mut tables = Vec::new();
    for at in REGION_TABLES_AT {
        let mut bytes = vec![0; REGION_TABLE_LEN];
        parsed.view.read(&mut bytes, at).map_err(io_at("read a region table", at))?;
        tables.push((at, region::parse(&bytes).is_ok(), bytes));
    }
    let good = tables.iter().find(|(_, good, _)| *good).map(|(_, _, bytes)| bytes.clone());
    for (at, _, _) in tables.iter().filter(|(_, good, _)| !good) {
        steps.push(write("a region table", *at, good.clone().unwrap_or_default()));
        steps.push(Step::Flush);
    }
    Ok(())
}

/// Entries in state "zero" without their offset. Each is valid before and after, so they need no log.
fn zero_steps(parsed: &Parsed, steps: &mut Vec<Step>) -> Result<(), OpenError> {
    let at = parsed.bat.offset;
    let end = at + parsed.geometry.entries() * 8;
    let mut bytes = vec![0; RUN];
    let (before, mut from) = (steps.len(), at);
    while from < end {
        from = parsed.view.next_data(from, end) / PAGE * PAGE;
        from = from.max(at);
        let part = bytes.get_mut(..RUN.min(to_usize(end - from))).unwrap_or_default();
        if part.is_empty() {
            break;
        }
        parsed.view.read(part, from).map_err(io_at("read the block allocation table", from))?;
        let mut changed = false;
        for (index, word) in ((from - at) / 8..).zip(part.as_chunks_mut::<8>().0) {
            let (state, mib) = bat::split(u64::from_le_bytes(*word));
            let of_block = matches!(parsed.geometry.slot(index), Some(Slot::Block(_)));
            if of_block && state == Some(State::Zero) && mib != 0 {
                *word = (u64::from_le_bytes(*word) & 7).to_le_bytes();
                changed = true;
            }
        }
        if changed {
            steps.push(write("entries of the block allocation table", from, part.to_vec()));
        }
        from += part.len() as u64;
    }
    if steps.len() > before {
        steps.push(Step::Flush);
    }
    Ok(())
}

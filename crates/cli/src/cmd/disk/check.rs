//! `disk check`

use super::files::{FormatArgs, OneFile};
use crate::context::Context;
use crate::exit::Fail;
use crate::output::{self, Column, Format};
use backstay_disk::{Disk, DiskFormat, OpenError};
use backstay_vhd::check::{Finding, Report, Severity, check};
use backstay_vhd::{Storage, repair};
use clap::{Args, ValueHint};
use serde::Serialize;
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Look for damage in a disk's file and, for a differencing disk, whether its chain is whole. Exit code 0: \
                  nothing, or notes only; 5: errors, the disk is refused or reads wrong data; 7: warnings, the disk \
                  works but should be repaired.",
    after_long_help = "Examples:\n  backstay disk check web.vhd\n  backstay disk check web.vhd --repair --dry-run\n  \
                       backstay disk check web.vhd --repair"
)]
pub struct CheckArgs {
    /// The file
    #[arg(value_hint = ValueHint::FilePath)]
    path: PathBuf,
    /// Repair what can be repaired without losing anything
    #[arg(long)]
    repair: bool,
    /// With --repair: print what would be written, and do nothing
    #[arg(long, requires = "repair")]
    dry_run: bool,
    #[command(flatten)]
    format: FormatArgs,
}

/// The result, for programs.
#[derive(Debug, Serialize)]
struct Result {
    path: PathBuf,
    usable: bool,
    blocks: u32,
    unused_bytes: u64,
    findings: Vec<Row>,
}

/// One finding.
#[derive(Debug, Serialize)]
struct Row {
    severity: String,
    rule: String,
    repairable: bool,
    text: String,
}

impl From<&Finding> for Row {
    fn from(finding: &Finding) -> Self {
        Self {
            severity: finding.severity.to_string(),
            rule: finding.rule.into(),
            repairable: finding.repairable,
            text: finding.text.clone(),
        }
    }
}

const COLUMNS: [Column<Row>; 4] = [
    Column::new("SEVERITY", |row| row.severity.clone()),
    Column::new("RULE", |row| row.rule.clone()),
    Column::new("REPAIR", |row| output::yes_no(row.repairable).into()),
    Column::new("FINDING", |row| row.text.clone()),
];

/// Runs it.
pub fn run(context: &Context, args: &CheckArgs) -> anyhow::Result<()> {
    if args.format.of(&args.path)? == DiskFormat::Raw {
        OneFile::open(&args.path, false)?;
        context.note("a raw disk has no structure that could be damaged");
        return Ok(());
    }
    let file = OneFile::open(&args.path, args.repair && !args.dry_run)?;
    let storage: &dyn Storage = file.file.as_ref();
    let options = file.vhd_options();
    if args.repair {
        let planned = repair::plan(storage, &options);
        let plan = planned.map_err(|source| OpenError::Format { path: args.path.clone(), source })?;
        if args.dry_run {
            return output::print(&plan.to_string());
        }
        plan.execute(storage)?;
        if !plan.steps.is_empty() {
            context.note(format!("{} was repaired", args.path.display()));
        }
    }
    let mut report = check(storage, &options);
    let differs = report.info.as_ref().is_some_and(|info| info.parent.is_some());
    drop(file);
    if differs && report.is_usable() {
        check_chain(args, &mut report)?;
    }
    tell(context, args, &report)
}

/// Whether the parents are there and the right ones.
fn check_chain(args: &CheckArgs, report: &mut Report) -> anyhow::Result<()> {
    let finding = |severity, text: String| Finding { severity, rule: "chain", text, repairable: false };
    match Disk::open(&args.path, args.format.read_only()) {
        Ok(disk) => {
            let own = report.findings.iter().map(|f| f.text.clone()).collect::<Vec<_>>();
            let warnings = disk.warnings().into_iter().map(|warning| warning.to_string());
            let new = warnings.filter(|text| !own.iter().any(|own| text.ends_with(own.as_str())));
            report.findings.extend(new.map(|text| finding(Severity::Warning, text)));
        }
        Err(error @ OpenError::InUse { .. }) => return Err(error.into()),
        Err(error) => {
            report.findings.push(finding(Severity::Error, format!("{:#}", anyhow::Error::new(error))))
        }
    }
    report.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(())
}

fn tell(context: &Context, args: &CheckArgs, report: &Report) -> anyhow::Result<()> {
    let rows: Vec<Row> = report.findings.iter().map(Row::from).collect();
    match context.format {
        Format::Json | Format::Yaml => {
            let result = Result {
                path: args.path.clone(),
                usable: report.is_usable(),
                blocks: report.blocks,
                unused_bytes: report.unused_bytes,
                findings: rows,
            };
            output::one(context.format, &result, &[], |_| String::new())?;
        }
        Format::Table | Format::Wide if rows.is_empty() => context.note("no errors were found"),
        format => output::list(format, &rows, &COLUMNS, |row| row.rule.clone())?,
    }
    let count = |severity| report.findings.iter().filter(|f| f.severity == severity).count();
    let path = args.path.display();
    match report.worst() {
        None | Some(Severity::Note) => Ok(()),
        Some(Severity::Warning) => {
            Err(Fail::degraded(format!("{path} has {} warnings", count(Severity::Warning))))
        }
        Some(Severity::Error) => Err(Fail::conflict(format!("{path} has {} errors", count(Severity::Error)))),
    }
}

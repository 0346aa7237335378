//! `disk check`

use super::files::{FormatArgs, OneFile, options};
use super::in_use;
use crate::context::{Context, absolute};
use crate::exit::Fail;
use crate::output::{self, Column, Format};
use backstay_api::{DiskCheck, DiskFinding};
use backstay_disk::fs::HostFs;
use backstay_disk::{Disk, DiskFormat, DiskOptions, ImageInfo, OpenError, Report, check_file};
use backstay_vhd::check::{Finding, Severity};
use backstay_vhd::{Storage, repair};
use clap::{Args, ValueHint};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, Args)]
#[command(
    long_about = "Look for damage in a disk's file and, for a differencing disk, whether its chain is whole. Exit code 0: \
                  nothing, or notes only; 5: errors, the disk is refused or reads wrong data; 7: warnings, the disk \
                  works but should be repaired. A file that a running machine writes to is checked by \
                  the daemon; repairing it needs the machine off.",
    after_long_help = "Examples:\n  backstay disk check web.vhdx\n  backstay disk check web.vhdx --repair --dry-run\n  \
                       backstay disk check web.vhdx --repair"
)]
pub struct CheckArgs {
    /// The file
    #[arg(value_hint = ValueHint::FilePath)]
    path: PathBuf,
    /// Repair what can be repaired without losing anything: what the format keeps twice, and what a VHDX has in its log
    #[arg(long)]
    repair: bool,
    /// With --repair: print what would be written, and do nothing
    #[arg(long, requires = "repair")]
    dry_run: bool,
    #[command(flatten)]
    format: FormatArgs,
}

fn row(finding: &Finding) -> DiskFinding {
    DiskFinding {
        severity: finding.severity.to_string(),
        rule: finding.rule.into(),
        repairable: finding.repairable,
        text: finding.text.clone(),
    }
}

const COLUMNS: [Column<DiskFinding>; 4] = [
    Column::new("SEVERITY", |row| row.severity.clone()),
    Column::new("RULE", |row| row.rule.clone()),
    Column::new("REPAIR", |row| output::yes_no(row.repairable).into()),
    Column::new("FINDING", |row| row.text.clone()),
];

/// Runs it.
pub fn run(context: &Context, args: &CheckArgs) -> anyhow::Result<()> {
    let found = match here(context, args) {
        Err(error) if !args.repair && in_use::locked_file(&error).is_some() => {
            in_use::from_daemon(context, error, async {
                Ok(Some(context.client()?.disk_check(&absolute(&args.path)?).await?))
            })
        }
        found => found,
    }?;
    found.map_or(Ok(()), |found| tell(context, args, &found))
}

/// Checks a file that nobody writes to. None: there is nothing to tell about it.
fn here(context: &Context, args: &CheckArgs) -> anyhow::Result<Option<DiskCheck>> {
    let format = args.format.of(&args.path)?;
    if format == DiskFormat::Raw {
        OneFile::open(&args.path, false)?;
        context.note("a raw disk has no structure that could be damaged");
        return Ok(None);
    }
    if args.repair && !args.dry_run {
        let cure = "repair a copy and put that in its place while the machine is off";
        in_use::refuse_frozen(context, &args.path, cure)?;
    }
    if args.repair && mend(context, args, format)? {
        return Ok(None);
    }
    let looking = DiskOptions { format: Some(format), ..args.format.read_only() };
    let mut report = check_file(&HostFs::shared(), &args.path, &looking)?;
    if report.info.as_ref().is_some_and(ImageInfo::has_parent) && report.is_usable() {
        check_chain(args, &mut report)?;
    }
    Ok(Some(DiskCheck {
        path: args.path.clone(),
        usable: report.is_usable(),
        blocks: report.blocks,
        unused_bytes: report.unused_bytes,
        findings: report.findings.iter().map(row).collect(),
    }))
}

/// Repairs, or says what would be done: then true.
fn mend(context: &Context, args: &CheckArgs, format: DiskFormat) -> anyhow::Result<bool> {
    let file = OneFile::open(&args.path, !args.dry_run)?;
    let mended = match format {
        DiskFormat::Vhdx => {
            let plan = file.vhdx_repair()?;
            if args.dry_run {
                output::print(&plan.to_string())?;
                return Ok(true);
            }
            let (replay, mended) = (plan.replay, !plan.is_empty());
            if replay {
                drop(file);
                // Opening it for writing does that, and closing leaves no log.
                Disk::open(&args.path, DiskOptions { format: Some(format), ..options(false) })?.close()?;
                let file = OneFile::open(&args.path, true)?;
                file.vhdx_repair()?.execute(file.file.as_ref())?;
            } else {
                plan.execute(file.file.as_ref())?;
            }
            mended
        }
        _ => {
            let storage: &dyn Storage = file.file.as_ref();
            let planned = repair::plan(storage, &file.vhd_options());
            let plan = planned.map_err(|source| OpenError::Format { path: args.path.clone(), source })?;
            if args.dry_run {
                output::print(&plan.to_string())?;
                return Ok(true);
            }
            plan.execute(storage)?;
            !plan.steps.is_empty()
        }
    };
    if mended {
        context.note(format!("{} was repaired", args.path.display()));
    }
    Ok(false)
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
            // One line of a table: what was tried for the parent comes in several.
            let text = format!("{:#}", anyhow::Error::new(error));
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            report.findings.push(finding(Severity::Error, lines.join("; ")))
        }
    }
    report.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Ok(())
}

fn tell(context: &Context, args: &CheckArgs, found: &DiskCheck) -> anyhow::Result<()> {
    match context.format {
        Format::Json | Format::Yaml => output::one(context.format, found, &[], |_| String::new())?,
        Format::Table | Format::Wide if found.findings.is_empty() => context.note("no errors were found"),
        format => output::list(format, &found.findings, &COLUMNS, |finding| finding.rule.clone())?,
    }
    let count = |severity: Severity| {
        let word = severity.to_string();
        found.findings.iter().filter(|finding| finding.severity == word).count()
    };
    let path = args.path.display();
    match (count(Severity::Error), count(Severity::Warning)) {
        (0, 0) => Ok(()),
        (0, 1) => Err(Fail::degraded(format!("{path} has 1 warning"))),
        (0, warnings) => Err(Fail::degraded(format!("{path} has {warnings} warnings"))),
        (1, _) => Err(Fail::conflict(format!("{path} has 1 error"))),
        (errors, _) => Err(Fail::conflict(format!("{path} has {errors} errors"))),
    }
}

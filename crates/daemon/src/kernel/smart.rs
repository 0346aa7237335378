//! What disks say of themselves, by smartctl of smartmontools where it is installed.

mod report;

use super::tell;
use crate::app::App;
use report::{Report, devices};
use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Command;

const SMARTCTL: &str = "smartctl";
/// Between two looks: what is told there changes slowly, and asking costs the disk a little.
const EVERY: Duration = Duration::from_hours(1);
/// How long a disk may take to answer.
const PATIENCE: Duration = Duration::from_mins(1);

/// Asks the disks about themselves each hour in a task of its own.
pub fn watch(app: &Arc<App>) {
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let mut known: BTreeMap<String, Vec<String>> = BTreeMap::new();
        loop {
            match look().await {
                Ok(reports) => {
                    let sick = reports.iter().filter(|(_, report)| !report.problems.is_empty()).count();
                    let words = match (reports.len(), sick) {
                        (0, _) => "smartctl finds no disk that tells of itself".to_owned(),
                        (all, 0) => format!("{all} disks, all well"),
                        (all, sick) => format!("{sick} of {all} disks warn of themselves: see the events"),
                    };
                    app.host.set_disk_health(words);
                    for (device, report) in reports {
                        compare(&app, &device, &report, &mut known).await;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    app.host.set_disk_health("not watched: install smartmontools".into());
                }
                Err(error) => app.host.set_disk_health(format!("not watched: smartctl failed ({error})")),
            }
            tokio::time::sleep(EVERY).await;
        }
    });
}

/// Tells what has changed since the last look.
async fn compare(app: &App, device: &str, report: &Report, known: &mut BTreeMap<String, Vec<String>>) {
    let before = known.insert(device.to_owned(), report.problems.clone()).unwrap_or_default();
    if before == report.problems {
        return;
    }
    let name = device.trim_start_matches("/dev/");
    let model = &report.model;
    if report.problems.is_empty() {
        tell(app, "host.disk-ok", name, &format!("{model} warns of itself no more"), None).await;
    } else {
        let what = format!("{model}: {}", report.problems.join(", "));
        tell(app, "host.disk-warning", name, &what, Some(report.problems.join(", "))).await;
    }
}

async fn look() -> io::Result<Vec<(String, Report)>> {
    let mut reports = Vec::new();
    for device in devices(&run(&["--scan"]).await?) {
        // A disk that sleeps is left alone.
        let text = run(&["--info", "--health", "--attributes", "--nocheck=standby", &device]).await?;
        reports.extend(Report::parse(&text).map(|report| (device, report)));
    }
    Ok(reports)
}

/// Its exit status says what the report says as well.
async fn run(args: &[&str]) -> io::Result<Vec<u8>> {
    let mut command = Command::new(SMARTCTL);
    command.arg("--json").args(args).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(output) => Ok(output?.stdout),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

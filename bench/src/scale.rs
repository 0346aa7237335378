//! Many machines on one host: what they cost beside QEMU, and how long it takes to see them all.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use backstay_e2e::{Host, HostOptions, Micro, microguest_image};
use serde_json::Value;

use crate::{
    Bench,
    load::as_f64,
    machine::{cpu, memory_of},
    report::{Goal, Report, Row},
};

/// Machines of the first part, all of them on.
const GUESTS: usize = 100;
/// Machines of the second part, none of them on.
const REGISTERED: usize = 1000;
/// Disks of the third part's machine.
const DISKS: u8 = 8;
/// How long nothing happens while processor time is counted.
const IDLE: Duration = Duration::from_secs(20);

pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    if !bench.wants("scale") {
        return Ok(());
    }
    report.section(
        "Many machines",
        "The real product. 100 microguests of 16 MiB, linked clones of one template, all on: resident memory (VmRSS) of each worker, \
         which is what a machine costs beside its QEMU, and of the daemon, after every guest has written to its disk and was paused; processor time of the \
         daemon, and of all workers together, over 20 s in which nothing is asked of them, in percent of one processor. 1,000 \
         machines that are off, each with a disk of its own: wall time of the whole command `backstay vm list`; the same right after the start of \
         a daemon, which reads all configurations first. Pause of a checkpoint of a guest with 8 disks, by QEMU's clock.",
    );
    guests(bench, report).context("100 guests")?;
    registered(bench, report).context("1,000 machines")?;
    disks(bench, report).context("8 disks")
}

fn host(bench: &Bench) -> Host {
    Host::with(&HostOptions { state: Some(bench.path("state")), ..HostOptions::default() })
}

fn end(bench: &Bench, host: Host) -> Result<()> {
    drop(host);
    Ok(fs::remove_dir_all(bench.path("state"))?)
}

/// A template and linked clones of it.
fn clones(host: &Host, count: usize) -> Vec<String> {
    let disk = host.vhd_from(&microguest_image(), "golden.vhd");
    let drive = format!("scsi:0:0={}", disk.display());
    host.ok(&["vm", "create", "golden", "--memory", "16M", "--no-network", "--disk", &drive]);
    host.ok(&["vm", "template", "golden"]);
    let names: Vec<String> = (0..count).map(|n| format!("vm-{n:04}")).collect();
    for name in &names {
        host.ok(&["vm", "clone", "golden", name, "--linked"]);
    }
    names
}

fn guests(bench: &Bench, report: &mut Report) -> Result<()> {
    let host = host(bench);
    for name in clones(&host, GUESTS) {
        host.ok(&["vm", "start", &name]);
        let (mut guest, _) = Micro::booting(&host.console(&name));
        guest.write(0x80, 0x100, 0x11)?;
        // A hundred emulated processors would take the two real ones from the rest.
        host.ok(&["vm", "pause", &name]);
    }
    let daemon = host.json(&["host", "show"])["daemon_pid"].as_u64().context("no daemon")?;
    let list = host.json(&["vm", "list"]);
    let runs: Vec<&Value> =
        list.as_array().into_iter().flatten().map(|vm| &vm["run"]).filter(|run| run.is_object()).collect();
    let pids = |key: &str| runs.iter().filter_map(|run| run[key].as_u64()).collect::<Vec<_>>();
    let workers = pids("worker_pid");
    let mut rows = [
        (
            Row::new("scale, 100 guests: a worker's memory", "MiB", Some(Goal::Limit(12.0))),
            "VmRSS:",
            workers.clone(),
        ),
        (Row::new("scale, 100 guests: of that, its own", "MiB", None), "RssAnon:", workers.clone()),
        (Row::new("scale, 100 guests: a QEMU's memory", "MiB", None), "VmRSS:", pids("qemu_pid")),
        (
            Row::new("scale, 100 guests: the daemon's memory", "MiB", Some(Goal::Limit(60.0))),
            "VmRSS:",
            vec![daemon],
        ),
    ];
    for (row, key, pids) in &mut rows {
        for pid in pids {
            row.ours.push(memory_of(*pid, key)?);
        }
        report.row(row);
    }
    let mut of_daemon = Row::new("scale, 100 guests: the daemon at rest", "%", Some(Goal::Limit(1.0)));
    let mut of_workers = Row::new("scale, 100 guests: all workers at rest", "%", None);
    let all = || workers.iter().map(|pid| cpu(*pid)).sum::<Result<f64>>();
    for _ in 0..bench.rounds {
        let (daemon_before, workers_before, start) = (cpu(daemon)?, all()?, Instant::now());
        sleep(IDLE);
        let percent = 100.0 / start.elapsed().as_secs_f64();
        of_daemon.ours.push((cpu(daemon)? - daemon_before) * percent);
        of_workers.ours.push((all()? - workers_before) * percent);
    }
    report.row(&of_daemon);
    report.row(&of_workers);
    end(bench, host)
}

fn registered(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut host = host(bench);
    clones(&host, REGISTERED);
    let mut list = Row::new("scale, 1,000 machines: vm list", "ms", Some(Goal::Limit(100.0)));
    let mut start =
        Row::new("scale, 1,000 machines: start of the daemon until the list is there", "ms", None);
    for round in 0..=bench.rounds {
        host.kill_daemon();
        let began = Instant::now();
        host.start_daemon();
        all_listed(&host)?;
        let started = began.elapsed();
        // The first round warms caches.
        if round > 0 {
            start.ours.push(started.as_secs_f64() * 1000.0);
        }
    }
    for _ in 0..10 * bench.rounds {
        let began = Instant::now();
        all_listed(&host)?;
        list.ours.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    report.row(&list);
    report.row(&start);
    end(bench, host)
}

fn all_listed(host: &Host) -> Result<()> {
    let said = host.ok(&["vm", "list"]);
    anyhow::ensure!(said.lines().count() > REGISTERED, "not all of them are listed");
    Ok(())
}

fn disks(bench: &Bench, report: &mut Report) -> Result<()> {
    let host = host(bench);
    let boot = host.vhd_from(&microguest_image(), "boot.vhd");
    let mut drives = vec![format!("scsi:0:0={}", boot.display())];
    for lun in 1..DISKS {
        let path = host.folder().join(format!("data-{lun}.vhd"));
        host.ok(&["disk", "create", path.to_str().context("UTF-8")?, "--size", "1G"]);
        drives.push(format!("scsi:0:{lun}={}", path.display()));
    }
    let mut args = vec!["vm", "create", "m", "--memory", "64M", "--no-network"];
    args.extend(drives.iter().flat_map(|drive| ["--disk", drive.as_str()]));
    host.ok(&args);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, seen) = Micro::booting(&host.console("m"));
    let mut pause = Row::new("scale, 8 disks: pause of a checkpoint", "ms", Some(Goal::Limit(30.0)));
    for round in 0..=3 * bench.rounds {
        for drive in 0x80..0x80 + seen {
            guest.write(drive, 0x100, u8::try_from(round % 250)?)?;
        }
        let task = host.json(&["checkpoint", "create", "m", &format!("c{round}")]);
        if round > 0 {
            pause.ours.push(as_f64(task["result"]["pause_us"].as_u64().context("no pause")?) / 1000.0);
        }
    }
    report.row(&pause);
    end(bench, host)
}

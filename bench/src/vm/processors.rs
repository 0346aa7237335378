//! What the host's scheduler gives to guests that burn: limits and weights.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use backstay_e2e::{Host, Micro, cpu_ticks, pin_to_first_cpu, vcpu_threads};

use crate::{
    Bench,
    report::{Goal, Report, Row},
};

/// How long one measurement takes.
const WINDOW: Duration = Duration::from_secs(6);

const CAUSE: &str =
    "whatever else wants this processor takes from it outside the machines' group; see the load";

struct Burner {
    qemu: u64,
    thread: u64,
    _guest: Micro,
}

impl Burner {
    fn start(host: &Host, vm: &str) -> Result<Self> {
        host.create_micro(vm, "ide:0:0", &[]);
        host.ok(&["vm", "start", vm]);
        let (mut guest, _) = Micro::booting(&host.console(vm));
        guest.burn(2000);
        let qemu = host.pid(vm, "qemu_pid");
        let threads = vcpu_threads(qemu);
        ensure!(threads.len() == 1, "{vm} has {} processors", threads.len());
        // One processor for all, or they would hardly meet.
        pin_to_first_cpu(threads[0]);
        Ok(Self { qemu, thread: threads[0], _guest: guest })
    }
}

/// Percent of the processor that each gets.
fn percents(burners: &[Burner]) -> Vec<f64> {
    let ticks = |b: &Burner| cpu_ticks(b.qemu, b.thread);
    let (before, since) = (burners.iter().map(ticks).collect::<Vec<_>>(), Instant::now());
    thread::sleep(WINDOW);
    let seconds = since.elapsed().as_secs_f64();
    let used = burners.iter().zip(before).map(|(b, was)| u32::try_from(ticks(b) - was).unwrap_or(u32::MAX));
    used.map(|hundredths| f64::from(hundredths) / seconds).collect()
}

pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    if !bench.wants("limit") && !bench.wants("weights") {
        return Ok(());
    }
    report.section(
        "Processors",
        "Three machines with one virtual processor each, all of which compute without a pause, on one processor of the host. \
         Values are processor time of the virtual processors' threads in windows of 6 s, from `/proc`.",
    );
    let host = Host::start();
    let burners = ["a", "b", "c"].iter().map(|vm| Burner::start(&host, vm)).collect::<Result<Vec<_>>>()?;
    limit(bench, report, &host, &burners);
    weights(bench, report, &host, &burners);
    Ok(())
}

fn limit(bench: &Bench, report: &mut Report, host: &Host, burners: &[Burner]) {
    let mut gets = Row::new("limit 20 %: processor time", "%", None);
    let mut distance = Row::new("limit 20 %: distance from 20 %", "points", Some(Goal::Limit(2.0)));
    distance.cause = CAUSE;
    host.ok(&["vm", "set", "a", "--cpu-limit", "20"]);
    for _ in 0..bench.rounds {
        let percent = percents(burners)[0];
        gets.ours.push(percent);
        distance.ours.push((percent - 20.0).abs());
    }
    host.ok(&["vm", "set", "a", "--cpu-limit", "100"]);
    report.row(&gets);
    report.row(&distance);
}

fn weights(bench: &Bench, report: &mut Report, host: &Host, burners: &[Burner]) {
    let mut rows = ["400", "200", "100"].map(|w| Row::new(format!("weights 4:2:1: weight {w}"), "%", None));
    let mut distance =
        Row::new("weights 4:2:1: largest distance from the proportion", "%", Some(Goal::Limit(10.0)));
    distance.cause = CAUSE;
    for (vm, weight) in [("a", "400"), ("b", "200"), ("c", "100")] {
        host.ok(&["vm", "set", vm, "--cpu-weight", weight]);
    }
    for _ in 0..bench.rounds {
        let got = percents(burners);
        let all: f64 = got.iter().sum();
        let mut worst: f64 = 0.0;
        for ((row, got), part) in rows.iter_mut().zip(got).zip([4.0, 2.0, 1.0]) {
            row.ours.push(got);
            worst = worst.max((got / (all * part / 7.0) - 1.0).abs() * 100.0);
        }
        distance.ours.push(worst);
    }
    for row in rows.iter().chain([&distance]) {
        report.row(row);
    }
}

//! Running guests. Checkpoints: how long the guest stands still, and how soon it is back. Processors: limits and weights.

mod guest;
mod peer;
mod processors;

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use backstay_e2e::{Host, HostOptions, microguest_image};
use serde_json::Value;

use crate::{
    Bench,
    load::as_f64,
    report::{Goal, Report, Row},
    vm::{
        guest::Guest,
        peer::{Format, Peer},
    },
};

/// Answers the guest gives after the checkpoint, so that one that was not reverted is told from one that was.
const AHEAD: u32 = 64;

const PAUSE_CAUSE: &str = "QEMU's trace shows nearly all of it between its migration states `setup` and `active`, before write \
                           tracking begins, while the guest stands still; it grows with memory and with the host's load";
const MAPPED_CAUSE: &str = "our file is a stream, and QEMU alone takes as long for a stream (row above); background snapshots \
                            into a `mapped-ram` file were tried and did not close the distance, why is not known";

pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    processors::run(bench, report)?;
    if !bench.wants("checkpoint") && !bench.wants("revert") {
        return Ok(());
    }
    report.section(
        "Checkpoint and revert",
        "The real product (daemon, worker, command line) and the microguest, all of whose memory but 16 MiB holds pseudo-random words. \
         Pause: from the instant QEMU stops the processors until it lets them go on, by QEMU's clock. Silence: the longest time between \
         two answers of the guest on its serial port while the checkpoint is taken and written, by the client's clock; the guest \
         looks at its port every 4 ms. \
         Revert: from the start of `backstay checkpoint revert` of the running machine (its end and the check of the saved \
         state included) until the guest answers on its serial port. The peer is QEMU with the same \
         command line, its disk in a raw file, from the start of the process with `-incoming file:` until the guest answers: once from \
         an ordinary migration stream, once from a `mapped-ram` file with `multifd` (two channels). Our file holds a \
         compressed stream (zstd). All files are in the page \
         cache; free memory is compacted before each restore on either side.",
    );
    for memory in bench.sizes.memories {
        machine(bench, report, *memory).with_context(|| format!("a guest with {memory} MiB"))?;
    }
    Ok(())
}

struct Rows {
    pause: Row,
    silence: Row,
    total: Row,
    stream: Row,
    mapped: Row,
}

impl Rows {
    fn new(memory: u64) -> Self {
        let back = |peer: &str| format!("revert, {memory} MiB, against QEMU's restore from {peer}");
        // What is promised is promised for the large guest.
        let goal = (memory >= 1024).then_some(Goal::AtMost(1.5));
        let mut rows = Self {
            pause: Row::new(format!("checkpoint, {memory} MiB: pause"), "ms", Some(Goal::Limit(20.0))),
            silence: Row::new(format!("checkpoint, {memory} MiB: silence"), "ms", None),
            total: Row::new(format!("checkpoint, {memory} MiB: until durable"), "ms", None),
            stream: Row::new(back("a stream"), "ms", goal),
            mapped: Row::new(back("mapped-ram"), "ms", goal),
        };
        rows.pause.cause = PAUSE_CAUSE;
        rows.mapped.cause = MAPPED_CAUSE;
        rows
    }

    fn report(&self, report: &mut Report) {
        for row in [&self.pause, &self.silence, &self.total, &self.stream, &self.mapped] {
            report.row(row);
        }
    }
}

fn machine(bench: &Bench, report: &mut Report, memory: u64) -> Result<()> {
    let host = Host::with(&HostOptions { state: Some(bench.path("state")), ..HostOptions::default() });
    let disk = host.vhd_from(&microguest_image(), "m.vhd");
    let drive = format!("ide:0:0={}", disk.display());
    let megabytes = format!("{memory}M");
    host.ok(&["vm", "create", "m", "--memory", &megabytes, "--no-network", "--disk", &drive]);
    host.ok(&["vm", "start", "m"]);
    let mut guest = Guest::booting(&host.console("m"))?;
    let sum = guest.fill(memory)?;
    let peer = peer(bench, &host, memory)?;
    let mut rows = Rows::new(memory);
    for round in 0..=bench.rounds {
        let (result, silence) = checkpoint(&host, &format!("c{round}"))?;
        host.ok(&["vm", "pause", "m"]);
        settle();
        let stream = peer.restore(Format::Stream)?;
        settle();
        let mapped = peer.restore(Format::MappedRam)?;
        host.ok(&["vm", "resume", "m"]);
        settle();
        let revert = revert(&host, sum)?;
        // The first round warms caches on both sides.
        if round > 0 {
            let told = |field: &str| as_f64(result[field].as_u64().unwrap_or(u64::MAX)) / 1000.0;
            rows.pause.ours.push(told("pause_us"));
            rows.silence.ours.push(silence);
            rows.total.ours.push(told("total_us"));
            rows.stream.add(revert, stream);
            rows.mapped.add(revert, mapped);
        } else {
            eprintln!("  method: {} ({})", result["method"], result["method_reason"]);
        }
    }
    rows.report(report);
    host.ok(&["vm", "turn-off", "m"]);
    drop(host);
    for folder in ["state", "peer"] {
        std::fs::remove_dir_all(bench.path(folder))?;
    }
    Ok(())
}

fn peer(bench: &Bench, host: &Host, memory: u64) -> Result<Peer> {
    let vm = host.vm("m");
    let socket = host.console("m");
    let run = socket.parent().context("the console's folder")?;
    let qemu = vm["run"]["qemu_pid"].as_u64().context("no QEMU")?;
    let folder = bench.path("peer");
    std::fs::create_dir(&folder)?;
    Peer::new(&folder, run, qemu, memory)
}

/// Takes a checkpoint while somebody asks the guest all the time. The task's result, and the longest silence in ms.
fn checkpoint(host: &Host, name: &str) -> Result<(Value, f64)> {
    let mut guest = Guest::attach(&host.console("m"))?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| guest.longest_silence(&done));
        let task = host.json(&["checkpoint", "create", "m", name]);
        done.store(true, Relaxed);
        let silence = asking.join().map_err(|_| anyhow::anyhow!("the asking thread died"))??;
        Ok((task["result"].clone(), silence))
    })
}

/// Puts free memory together, which a guest's memory is made of: files that were just written leave it in pieces, and whoever
/// comes next would pay for that. Not permitted to everybody; then the spread is larger.
fn settle() {
    rustix::fs::sync();
    let _ = std::fs::write("/proc/sys/vm/compact_memory", "1");
}

/// Milliseconds from the start of the command until the guest answers.
fn revert(host: &Host, sum: u32) -> Result<f64> {
    let socket = host.console("m");
    let mut guest = Guest::attach(&socket)?;
    let mut counter = 0;
    for _ in 0..AHEAD {
        counter = guest.count()?;
    }
    drop(guest);
    let before = counter - AHEAD;
    let start = Instant::now();
    let mut command = host.command(&["checkpoint", "revert", "m", "--yes"]).spawn()?;
    let elapsed = guest::first_answer(start, &socket, |counter| counter <= before + AHEAD / 2)?;
    ensure!(command.wait()?.success(), "the revert failed");
    let mut guest = Guest::attach(&socket)?;
    ensure!(guest.sum()? == sum, "the guest came back with other memory");
    Ok(elapsed)
}

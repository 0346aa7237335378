//! Disks over NBD: our server with our engine against `qemu-nbd` with QEMU's drivers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use backstay_disk::{CacheMode, DEFAULT_BLOCK_SIZE, Identity, NewDisk, create_disk, fs::HostFs};

use crate::{
    Bench,
    load::{Client, Job, Op, Order, Random, Until, as_f64},
    report::{Goal, Report, Row},
    server::{Running, Who},
};

const MIB: u64 = 1 << 20;
const CHUNK: u64 = 64 << 10;

/// How big everything is.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Disks under random and sequential load, in bytes.
    disk: u64,
    /// One run.
    run: Duration,
    /// Blocks that are allocated.
    blocks: u64,
    /// The image that is converted, in bytes.
    pub convert: u64,
    /// Changes in the layer that is merged, in bytes.
    pub merge: u64,
    /// Guests whose checkpoints are measured, by memory in MiB.
    pub memories: &'static [u64],
}

impl Sizes {
    pub const fn quick() -> Self {
        Self {
            disk: 256 * MIB,
            run: Duration::from_millis(500),
            blocks: 256,
            convert: 1024 * MIB,
            merge: 256 * MIB,
            memories: &[256],
        }
    }

    pub const fn full() -> Self {
        Self {
            disk: 1024 * MIB,
            run: Duration::from_millis(1500),
            blocks: 1024,
            convert: 4096 * MIB,
            merge: 1024 * MIB,
            memories: &[256, 1024],
        }
    }
}

/// The two sides of a comparison: what is served and by whom.
#[derive(Debug)]
struct Pair {
    name: &'static str,
    ours: PathBuf,
    peer: PathBuf,
    /// Who serves the peer's file.
    by: Who,
    goals: Goals,
    cache: CacheMode,
    /// Copies of these take the place of the served files before each run that writes, so that both sides always start
    /// from the same state of allocation.
    pristine: bool,
}

/// What the 4 KiB rows are to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goals {
    None,
    /// Our own raw file: within 10 %.
    Raw,
    /// QEMU's driver: not slower, for less processor time; writes to a dynamic VHD five times as fast.
    Qemu {
        vpc: bool,
    },
}

impl Goals {
    fn rate(self, writes: bool) -> Option<Goal> {
        match self {
            Self::None => None,
            Self::Raw => Some(Goal::AtLeast(0.9)),
            Self::Qemu { vpc } => Some(Goal::AtLeast(if vpc && writes { 5.0 } else { 1.0 })),
        }
    }

    fn cpu(self) -> Option<Goal> {
        matches!(self, Self::Qemu { .. }).then_some(Goal::AtMost(1.0))
    }
}

struct Load {
    name: &'static str,
    unit: &'static str,
    job: fn(u64, Until) -> Job,
}

const LOADS: [Load; 4] = [
    Load {
        name: "4 KiB random read, depth 32",
        unit: "IOPS",
        job: |seed, until| random(Op::Read, seed, until),
    },
    Load {
        name: "4 KiB random write, depth 32",
        unit: "IOPS",
        job: |seed, until| random(Op::Write, seed, until),
    },
    Load {
        name: "1 MiB sequential read, depth 4",
        unit: "MiB/s",
        job: |_, until| sequential(Op::Read, until),
    },
    Load {
        name: "1 MiB sequential write, depth 4",
        unit: "MiB/s",
        job: |_, until| sequential(Op::Write, until),
    },
];

const fn random(op: Op, seed: u64, until: Until) -> Job {
    Job { op, block: 4096, depth: 32, order: Order::Random(seed), until }
}

const fn sequential(op: Op, until: Until) -> Job {
    Job { op, block: 1 << 20, depth: 4, order: Order::Steps(MIB), until }
}

pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    report.section(
        "Disks over NBD",
        "Our server and engine against `qemu-nbd --cache=writeback --aio=threads --discard=unmap`, each a process, on fully \
         written disks with equal content. The client is the same: one connection, one thread; a run of writes ends with a flush, \
         which counts. A chain has three layers; the upper two hold 30 % of the 64 KiB pieces each. Writes to it start from \
         the same state in every run. Where the peer is \"our raw\", it is our own server with a raw file, which shows what a format \
         costs. \"Past the cache\" is `--cache=none --aio=io_uring` of qemu-nbd, and our `cache = \"none\"`. Processor time is that of the server's process, per operation.",
    );
    for (name, build) in PAIRS {
        let wanted: Vec<&Load> = LOADS.iter().filter(|load| bench.wants(&title(name, load))).collect();
        if !wanted.is_empty() {
            let pair = build(bench).with_context(|| format!("cannot prepare the disks for \"{name}\""))?;
            for load in wanted {
                for row in compare(bench, &pair, load)? {
                    report.row(&row);
                }
            }
            for file in fs::read_dir(bench.scratch.path())? {
                fs::remove_file(file?.path())?;
            }
        }
    }
    qemu_client(bench, report)?;
    allocation(bench, report)
}

type Build = fn(&Bench) -> Result<Pair>;
const PAIRS: [(&str, Build); 14] = [
    ("raw vs raw", |bench| plain(bench, "raw vs raw", "raw", |size| NewDisk::Raw { size })),
    ("fixed VHD vs vpc fixed", |bench| {
        plain(bench, "fixed VHD vs vpc fixed", "vpc", |size| NewDisk::Fixed { size })
    }),
    ("dynamic VHD vs vpc dynamic", |bench| plain(bench, "dynamic VHD vs vpc dynamic", "vpc", dynamic)),
    ("dynamic VHDX vs vhdx dynamic", |bench| plain(bench, "dynamic VHDX vs vhdx dynamic", "vhdx", dynamic)),
    ("VHD chain of 3 vs qcow2 chain of 3", |bench| chain(bench, "VHD chain of 3 vs qcow2 chain of 3", "vhd")),
    ("VHDX chain of 3 vs qcow2 chain of 3", |bench| {
        chain(bench, "VHDX chain of 3 vs qcow2 chain of 3", "vhdx")
    }),
    ("dynamic VHD vs our raw", |bench| against_raw(bench, "dynamic VHD vs our raw", "vhd")),
    ("dynamic VHDX vs our raw", |bench| against_raw(bench, "dynamic VHDX vs our raw", "vhdx")),
    ("VHD chain of 3 vs our raw", |bench| {
        let pair = chain(bench, "VHD chain of 3 vs our raw", "vhd")?;
        let peer = raw(bench)?;
        fs::copy(&peer, pristine(&peer))?;
        Ok(Pair { peer, by: Who::Ours, goals: Goals::Raw, ..pair })
    }),
    ("VHDX chain of 3 vs our raw", |bench| {
        let pair = chain(bench, "VHDX chain of 3 vs our raw", "vhdx")?;
        let peer = raw(bench)?;
        fs::copy(&peer, pristine(&peer))?;
        Ok(Pair { peer, by: Who::Ours, goals: Goals::Raw, ..pair })
    }),
    ("past the cache, raw vs raw", |bench| {
        past_cache(plain(bench, "past the cache, raw vs raw", "raw", |size| NewDisk::Raw { size }))
    }),
    ("past the cache, dynamic VHD vs vpc dynamic", |bench| {
        past_cache(plain(bench, "past the cache, dynamic VHD vs vpc dynamic", "vpc", dynamic))
    }),
    ("past the cache, dynamic VHDX vs vhdx dynamic", |bench| {
        past_cache(plain(bench, "past the cache, dynamic VHDX vs vhdx dynamic", "vhdx", dynamic))
    }),
    ("past the cache, dynamic VHDX vs our raw", |bench| {
        past_cache(against_raw(bench, "past the cache, dynamic VHDX vs our raw", "vhdx"))
    }),
];

fn past_cache(pair: Result<Pair>) -> Result<Pair> {
    Ok(Pair { cache: CacheMode::None, ..pair? })
}

const fn dynamic(size: u64) -> NewDisk {
    NewDisk::Dynamic { size, block_size: DEFAULT_BLOCK_SIZE }
}

fn title(pair: &str, load: &Load) -> String {
    format!("{pair}: {}", load.name)
}

fn create(path: &Path, what: &NewDisk) -> Result<()> {
    Ok(create_disk(&HostFs::shared(), path, what, Identity::fresh())?)
}

/// A fully written disk made by us, and a copy of the file for the peer.
fn plain(bench: &Bench, name: &'static str, format: &'static str, what: fn(u64) -> NewDisk) -> Result<Pair> {
    let suffix = if format == "vpc" { "vhd" } else { format };
    let (ours, peer) = (bench.path(&format!("ours.{suffix}")), bench.path(&format!("peer.{suffix}")));
    create(&ours, &what(bench.sizes.disk))?;
    fill(bench, Who::Ours, &ours, 1, 100)?;
    fs::copy(&ours, &peer)?;
    rustix::fs::sync();
    let goals = if name.contains("dynamic") { Goals::Qemu { vpc: format == "vpc" } } else { Goals::None };
    Ok(Pair { name, ours, peer, by: Who::Qemu(format), goals, cache: CacheMode::Writeback, pristine: false })
}

/// A fully written raw file.
fn raw(bench: &Bench) -> Result<PathBuf> {
    let path = bench.path("peer.raw");
    create(&path, &NewDisk::Raw { size: bench.sizes.disk })?;
    fill(bench, Who::Ours, &path, 1, 100)?;
    Ok(path)
}

fn against_raw(bench: &Bench, name: &'static str, suffix: &str) -> Result<Pair> {
    let ours = bench.path(&format!("ours.{suffix}"));
    create(&ours, &dynamic(bench.sizes.disk))?;
    fill(bench, Who::Ours, &ours, 1, 100)?;
    let peer = raw(bench)?;
    rustix::fs::sync();
    Ok(Pair {
        name,
        ours,
        peer,
        by: Who::Ours,
        goals: Goals::Raw,
        cache: CacheMode::Writeback,
        pristine: false,
    })
}

fn chain(bench: &Bench, name: &'static str, suffix: &str) -> Result<Pair> {
    let size = bench.sizes.disk;
    let file = |side: &str, layer: u64| {
        bench.path(&format!("{side}{layer}.{}", if side == "ours" { suffix } else { "qcow2" }))
    };
    for layer in 0..3 {
        let (ours, peer) = (file("ours", layer), file("peer", layer));
        let below = layer.checked_sub(1);
        match below {
            None => create(&ours, &dynamic(size))?,
            Some(below) => {
                let parent = file("ours", below);
                create(&ours, &NewDisk::Differencing { parent, block_size: DEFAULT_BLOCK_SIZE })?;
            }
        }
        let mut image = Command::new("qemu-img");
        image.args(["create", "-q", "-f", "qcow2"]);
        if let Some(below) = below {
            image.args(["-F", "qcow2", "-b"]).arg(file("peer", below));
        }
        let status = image.arg(&peer).arg(size.to_string()).status()?;
        ensure!(status.success(), "qemu-img create failed");
        let percent = if layer == 0 { 100 } else { 30 };
        fill(bench, Who::Ours, &ours, layer + 1, percent)?;
        fill(bench, Who::Qemu("qcow2"), &peer, layer + 1, percent)?;
    }
    for side in ["ours", "peer"] {
        fs::copy(file(side, 2), pristine(&file(side, 2)))?;
    }
    rustix::fs::sync();
    let (by, goals) = (Who::Qemu("qcow2"), Goals::Qemu { vpc: false });
    Ok(Pair {
        name,
        ours: file("ours", 2),
        peer: file("peer", 2),
        by,
        goals,
        cache: CacheMode::Writeback,
        pristine: true,
    })
}

fn pristine(path: &Path) -> PathBuf {
    path.with_extension("pristine")
}

/// Writes that share of all 64 KiB pieces; equal seeds choose equal pieces and content.
fn fill(bench: &Bench, who: Who, file: &Path, seed: u64, percent: u64) -> Result<()> {
    let server = Running::start(who, file, bench.path("fill.sock"))?;
    let mut client = Client::connect(&server.socket)?;
    let mut random = Random::new(seed);
    let data = random.bytes(1 << 20);
    if percent == 100 {
        let until = Until::Count(client.size() / MIB);
        client.run(sequential(Op::Write, until))?;
    } else {
        for offset in (0..client.size()).step_by(64 << 10) {
            if random.next() % 100 < percent {
                let at = usize::try_from(offset / CHUNK % 16 * CHUNK)?;
                client.write(offset, &data[at..at + (64 << 10)])?;
            }
        }
        client.flush()?;
    }
    drop(client);
    server.stop()
}

/// How fast both are, and what it costs them.
fn compare(bench: &Bench, pair: &Pair, load: &Load) -> Result<[Row; 2]> {
    let writes = (load.job)(1, Until::Count(1)).op == Op::Write;
    let goals = if load.name.starts_with("4 KiB") { pair.goals } else { Goals::None };
    let title = title(pair.name, load);
    let mut cost = Row::new(format!("{title}, processor time each"), "µs", goals.cpu());
    let mut row = Row::new(title, load.unit, goals.rate(writes));
    let mut servers = None;
    for round in 0..=bench.rounds {
        if pair.pristine && writes {
            servers = None;
            for path in [&pair.ours, &pair.peer] {
                fs::copy(pristine(path), path)?;
            }
            rustix::fs::sync();
        }
        let (ours, peer) = match servers.take() {
            Some(servers) => servers,
            None => (
                Running::start_with(Who::Ours, &pair.ours, bench.path("ours.sock"), pair.cache)?,
                Running::start_with(pair.by, &pair.peer, bench.path("peer.sock"), pair.cache)?,
            ),
        };
        let job = (load.job)(round as u64 + 1, Until::Time(bench.sizes.run));
        let us = measured(&ours, job)?;
        let them = measured(&peer, job)?;
        // The first pair warms caches on both sides.
        if round > 0 {
            row.add(us.0, them.0);
            cost.add(us.1, them.1);
        }
        if pair.pristine && writes {
            ours.stop()?;
            peer.stop()?;
        } else {
            servers = Some((ours, peer));
        }
    }
    if let Some((ours, peer)) = servers {
        ours.stop()?;
        peer.stop()?;
    }
    Ok([row, cost])
}

/// Operations per second, and microseconds of processor time for each.
fn measured(server: &Running, job: Job) -> Result<(f64, f64)> {
    let before = server.cpu()?;
    let ran = Client::connect(&server.socket)?.run(job)?;
    Ok((ran.rate, (server.cpu()? - before) / ran.count * 1e6))
}

/// The same servers as QEMU's own NBD client sees them, which is what a guest's disk goes through.
fn qemu_client(bench: &Bench, report: &mut Report) -> Result<()> {
    let rows = [
        ("raw", "raw", false),
        ("raw", "raw", true),
        ("dynamic VHD", "vpc", false),
        ("dynamic VHD", "vpc", true),
    ];
    let name = |(ours, peer, write): (&str, &str, bool)| {
        format!("{ours} vs {peer}: qemu-img bench, 4 KiB {}, depth 32", if write { "write" } else { "read" })
    };
    if !rows.iter().any(|row| bench.wants(&name(*row))) {
        return Ok(());
    }
    report.section(
        "The same through QEMU's NBD client",
        "`qemu-img bench -f raw -c N -d 32 -s 4096 -S 69632` on either server.",
    );
    for (ours, format, write) in rows {
        let what: fn(u64) -> NewDisk = if format == "raw" { |size| NewDisk::Raw { size } } else { dynamic };
        let pair = plain(bench, "qemu-img", format, what)?;
        let us = Running::start_with(Who::Ours, &pair.ours, bench.path("ours.sock"), pair.cache)?;
        let them = Running::start(Who::Qemu(format), &pair.peer, bench.path("peer.sock"))?;
        let mut row = Row::new(name((ours, format, write)), "IOPS", None);
        for round in 0..=bench.rounds {
            let rates = (qemu_img_bench(bench, &us.uri, write)?, qemu_img_bench(bench, &them.uri, write)?);
            if round > 0 {
                row.add(rates.0, rates.1);
            }
        }
        us.stop()?;
        them.stop()?;
        fs::remove_file(&pair.ours)?;
        fs::remove_file(&pair.peer)?;
        report.row(&row);
    }
    Ok(())
}

fn qemu_img_bench(bench: &Bench, uri: &str, write: bool) -> Result<f64> {
    // About the time of one run at 20 000 a second.
    let count = u64::try_from(bench.sizes.run.as_millis())? * 20;
    let mut command = Command::new("qemu-img");
    command.args([
        "bench",
        "-f",
        "raw",
        "-d",
        "32",
        "-s",
        "4096",
        "-S",
        "69632",
        "-t",
        "writeback",
        "-c",
        &count.to_string(),
    ]);
    if write {
        command.arg("-w");
    }
    let output = command.arg(uri).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let seconds = text.split("completed in ").nth(1).and_then(|rest| rest.split(' ').next());
    let seconds: f64 =
        seconds.and_then(|s| s.parse().ok()).with_context(|| format!("qemu-img bench said {text}"))?;
    Ok(as_f64(count) / seconds)
}

/// A 4 KiB write into each 2 MiB block of an empty disk.
fn allocation(bench: &Bench, report: &mut Report) -> Result<()> {
    if !bench.wants("allocation") {
        return Ok(());
    }
    report.section(
        "Allocation",
        "One 4 KiB write into each 2 MiB block of an empty dynamic disk, 16 in flight, one flush at the end. Both sides get a new \
         disk for each run. (qcow2 allocates clusters of 64 KiB and is shown for comparison.)",
    );
    let size = bench.sizes.blocks * 2 * MIB;
    for (suffix, format, options, goal) in [
        ("vhd", "vpc", "subformat=dynamic,force_size=on", Some(Goal::AtLeast(20.0))),
        ("vhdx", "vhdx", "subformat=dynamic,block_size=2M", Some(Goal::AtLeast(10.0))),
        ("vhd", "qcow2", "cluster_size=64k", None),
    ] {
        let name = suffix.to_uppercase();
        let mut row = Row::new(format!("allocation, dynamic {name} vs {format}"), "blocks/s", goal);
        for _ in 0..bench.rounds {
            let (ours, peer) = (bench.path(&format!("new.{suffix}")), bench.path("new.peer"));
            create(&ours, &NewDisk::Dynamic { size, block_size: 2 << 20 })?;
            let mut image = Command::new("qemu-img");
            image.args(["create", "-q", "-f", format, "-o", options]).arg(&peer).arg(size.to_string());
            ensure!(image.status()?.success(), "qemu-img create failed");
            let us = allocate(bench, Who::Ours, &ours)?;
            let them = allocate(bench, Who::Qemu(format), &peer)?;
            row.add(us, them);
            fs::remove_file(&ours)?;
            fs::remove_file(&peer)?;
            rustix::fs::sync();
        }
        report.row(&row);
    }
    Ok(())
}

fn allocate(bench: &Bench, who: Who, file: &Path) -> Result<f64> {
    let server = Running::start(who, file, bench.path("new.sock"))?;
    let mut client = Client::connect(&server.socket)?;
    let until = Until::Count(bench.sizes.blocks);
    let job = Job { op: Op::Write, block: 4096, depth: 16, order: Order::Steps(2 * MIB), until };
    let rate = client.run(job)?.rate;
    drop(client);
    server.stop()?;
    Ok(rate)
}

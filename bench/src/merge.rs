//! A layer merged into its parent while a client writes: how long it takes, and what the client notices.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use backstay_disk::{
    Backend, DEFAULT_BLOCK_SIZE, Disk, DiskOptions, Identity, MergeControl, NewDisk, create_disk,
    fs::HostFs,
    nbd::{ExportSpec, Server},
};

use crate::{
    Bench,
    load::{Client, Random, as_f64},
    report::{Goal, Report, Row},
    server::tmpfs,
};

/// One scattered change.
const PIECE: u64 = 16 << 10;
/// The client writes this often.
const EVERY: Duration = Duration::from_millis(2);
/// And flushes after this many writes.
const FLUSH_AFTER: usize = 100;
/// How long it is measured without a merge.
const IDLE: Duration = Duration::from_secs(6);

/// The role of the server: serves until told to merge the top into its parent, tells when that is done, serves on.
pub fn serve(file: &Path, socket: &Path) -> Result<()> {
    let shadow = tempfile::tempdir_in(tmpfs())?;
    let options = DiskOptions { runtime_dir: Some(shadow.path().to_owned()), ..DiskOptions::default() };
    let disk = Disk::open(file, options)?;
    let server = Server::bind(socket, 0o600)?;
    let backend: Arc<dyn Backend> = Arc::<Disk>::clone(&disk);
    let (name, description) = ("disk".into(), String::new());
    server.add_export(ExportSpec { name, description, backend, read_only: false })?;
    println!("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    if line.trim() == "merge" {
        let begun = Instant::now();
        let merged = disk.merge_layer(file, &[], &MergeControl::new())?;
        println!("{} {}", begun.elapsed().as_micros(), merged.bytes_moved);
        std::io::stdin().read_line(&mut line)?;
    }
    let end = server.shutdown(Duration::from_secs(10));
    disk.close()?;
    if end.stuck > 0 { bail!("{} connections did not end", end.stuck) } else { Ok(()) }
}

pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let name = format!("live merge of {} MiB of scattered changes", bench.sizes.merge >> 20);
    if !bench.wants(&name) {
        return Ok(());
    }
    report.section(
        "Merging a layer while it is written to",
        "The top of a chain, with changes of 16 KiB at random places all over a disk of four times the size, is merged into a \
         dynamic parent that holds a quarter of the disk; afterwards all of it is durable. Meanwhile a client writes 4 KiB at random \
         places every 2 ms and flushes every 100 writes. The peer is `cp` of a file of as many bytes, which is not durable then, and \
         `cp` followed by `sync` of the copy. The client's times are compared with those of the same client before the merge.",
    );
    let mut copied = Row::new(format!("{name} vs cp"), "s", Some(Goal::AtMost(2.0)));
    copied.cause = "`cp` leaves its copy in memory, and the merge is durable: against a `cp` that is too it takes twice as long (row above); copying 16 KiB pieces one by one keeps one processor busy";
    let mut synced = Row::new(format!("{name} vs cp and sync"), "s", None);
    let mut p99 = Row::new("99th percentile of the client's writes vs idle", "µs", Some(Goal::AtMost(2.0)));
    p99.cause = "slow writes are slow inside the kernel (`strace -T`: `pwrite` to a file whose pages it is writing back, none waits for a lock of ours); client, server, merge and writeback share two processors";
    let mut p50 = Row::new("median of the client's writes vs idle", "µs", None);
    let mut worst = Row::new("slowest of the client's writes vs idle", "µs", None);
    let mut flush = Row::new("median of the client's flushes vs idle", "µs", None);
    for round in 0..bench.rounds {
        let (plain, and_sync) = copy(bench)?;
        let merged = merge(bench, round as u64 + 1)?;
        copied.add(merged.seconds, plain);
        synced.add(merged.seconds, and_sync);
        let (busy, idle) = (&merged.busy, &merged.idle);
        p99.add(at(&busy.writes, 0.99), at(&idle.writes, 0.99));
        p50.add(at(&busy.writes, 0.5), at(&idle.writes, 0.5));
        worst.add(at(&busy.writes, 1.0), at(&idle.writes, 1.0));
        flush.add(at(&busy.flushes, 0.5), at(&idle.flushes, 0.5));
    }
    [copied, synced, p99, p50, worst, flush].iter().for_each(|row| report.row(row));
    Ok(())
}

/// Seconds of `cp`, and of that and `sync`.
pub fn copy(bench: &Bench) -> Result<(f64, f64)> {
    let (source, target) = (bench.path("cp-source"), bench.path("cp-target"));
    if !source.exists() {
        let mut file = std::fs::File::create(&source)?;
        let mut random = Random::new(5);
        for _ in 0..bench.sizes.merge >> 20 {
            file.write_all(&random.bytes(1 << 20))?;
        }
        file.sync_all()?;
    }
    let begun = Instant::now();
    ensure!(
        Command::new("cp").args(["--reflink=never"]).args([&source, &target]).status()?.success(),
        "cp failed"
    );
    let plain = begun.elapsed().as_secs_f64();
    ensure!(Command::new("sync").arg(&target).status()?.success(), "sync failed");
    let and_sync = begun.elapsed().as_secs_f64();
    std::fs::remove_file(target)?;
    Ok((plain, and_sync))
}

/// Microseconds, sorted.
#[derive(Debug, Default)]
struct Times {
    writes: Vec<f64>,
    flushes: Vec<f64>,
}

struct Measured {
    seconds: f64,
    idle: Times,
    busy: Times,
}

fn at(sorted: &[f64], part: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of a short list")]
    let index = (as_f64(sorted.len() as u64) * part) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

fn merge(bench: &Bench, seed: u64) -> Result<Measured> {
    let (base, top) = (bench.path("merge-base.vhd"), bench.path("merge-top.avhd"));
    prepare(bench, &base, &top, seed)?;
    let socket = bench.path("merge.sock");
    let mut server = Command::new(std::env::current_exe()?)
        .arg("merge-server")
        .args([&top, &socket])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let measured = measure(&mut server, &socket, seed);
    if measured.is_err() {
        let _ = server.kill();
    }
    drop(server.stdin.take());
    ensure!(server.wait()?.success(), "the server of the merge failed");
    std::fs::remove_file(base)?;
    std::fs::remove_file(top)?;
    let _ = std::fs::remove_file(socket);
    measured
}

fn measure(server: &mut Child, socket: &Path, seed: u64) -> Result<Measured> {
    let mut said = BufReader::new(server.stdout.take().context("no output")?);
    let mut line = String::new();
    said.read_line(&mut line)?;
    ensure!(line.trim() == "ready", "the server of the merge did not start");
    let mut client = Client::connect(socket)?;
    let begun = Instant::now();
    let idle = load(&mut client, seed, &|| begun.elapsed() >= IDLE)?;
    let (ended, has_ended) = mpsc::channel();
    let told = thread::spawn(move || {
        let mut line = String::new();
        let read = said.read_line(&mut line);
        // The other end is there until this thread has ended.
        let _ = ended.send(());
        read.map(|_| line)
    });
    writeln!(server.stdin.as_mut().context("no input")?, "merge")?;
    let busy = load(&mut client, seed + 100, &|| has_ended.try_recv().is_ok())?;
    let Ok(line) = told.join() else { bail!("a thread of the benchmark failed") };
    let line = line?;
    let micros: u64 = line.split(' ').next().unwrap_or_default().trim().parse().context("no merge")?;
    Ok(Measured { seconds: as_f64(micros) / 1e6, idle, busy })
}

/// Writes in steady time until `done`.
fn load(client: &mut Client, seed: u64, done: &dyn Fn() -> bool) -> Result<Times> {
    let mut random = Random::new(seed);
    let data = random.bytes(4096);
    let blocks = client.size() / 4096;
    let mut times = Times::default();
    let mut next = Instant::now();
    while !done() {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        next = Instant::now().max(next) + EVERY;
        let begun = Instant::now();
        client.write(random.next() % blocks * 4096, &data)?;
        times.writes.push(micros(begun));
        if times.writes.len().is_multiple_of(FLUSH_AFTER) {
            let begun = Instant::now();
            client.flush()?;
            times.flushes.push(micros(begun));
            next = Instant::now();
        }
    }
    times.writes.sort_by(f64::total_cmp);
    times.flushes.sort_by(f64::total_cmp);
    Ok(times)
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

/// A base that holds the first quarter, and a child with changes all over.
pub fn prepare(bench: &Bench, base: &Path, top: &Path, seed: u64) -> Result<()> {
    let changes = bench.sizes.merge;
    let size = changes * 4;
    let fs = HostFs::shared();
    create_disk(&fs, base, &NewDisk::Dynamic { size, block_size: DEFAULT_BLOCK_SIZE }, Identity::fresh())?;
    let mut random = Random::new(seed);
    let disk = Disk::open(base, DiskOptions::default())?;
    for offset in (0..changes).step_by(1 << 20) {
        disk.write(offset, &random.bytes(1 << 20))?;
    }
    disk.close()?;
    let what = NewDisk::Differencing { parent: base.to_owned(), block_size: DEFAULT_BLOCK_SIZE };
    create_disk(&fs, top, &what, Identity::fresh())?;
    let shadow = tempfile::tempdir_in(tmpfs())?;
    let options = DiskOptions { runtime_dir: Some(shadow.path().to_owned()), ..DiskOptions::default() };
    let disk = Disk::open(top, options)?;
    // Every place once, in random order: one in four of them.
    let mut places: Vec<u64> = (0..size / PIECE).collect();
    for index in 0..usize::try_from(changes / PIECE)? {
        let other = index + usize::try_from(random.next() % (places.len() - index) as u64)?;
        places.swap(index, other);
        disk.write(places[index] * PIECE, &random.bytes(usize::try_from(PIECE)?))?;
    }
    disk.close()?;
    Command::new("sync").arg("-f").arg(top).status()?;
    Ok(())
}

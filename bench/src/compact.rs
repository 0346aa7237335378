//! Compaction against reading what is in use once.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use backstay_disk::{
    Backend, DEFAULT_BLOCK_SIZE, Disk, DiskOptions, Dropping, Identity, MergeControl, NewDisk, ZeroMode,
    compact_offline, create_disk, fs::HostFs,
};
use rustix::fs::{Advice, SeekFrom, fadvise, seek};

use crate::{
    Bench,
    load::Random,
    report::{Goal, Report, Row},
    server::tmpfs,
};

const MIB: u64 = 1 << 20;
/// What is in use lies in pieces of this size, in bytes.
const PIECE: u64 = 2 * MIB;
/// One in so many pieces is in use.
const SPARSE: u64 = 20;

/// The role of a compacting process.
pub fn compact(file: &Path) -> Result<()> {
    let shadow = tempfile::tempdir_in(tmpfs())?;
    let options = DiskOptions { runtime_dir: Some(shadow.path().to_owned()), ..DiskOptions::default() };
    compact_offline(&HostFs::shared(), file, &options, Dropping::Zeros, &MergeControl::new())?;
    Ok(())
}

pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let used = bench.sizes.merge;
    let name = |suffix: &str| {
        format!("compact a {suffix} of {} MiB with {} MiB used", used * SPARSE / MIB, used / MIB)
    };
    if !bench.wants("compact") {
        return Ok(());
    }
    report.section(
        "Compaction",
        "`backstay disk compact` of a dynamic disk that had all its blocks once; one in twenty, evenly spread, still holds data. \
         The blocks are moved together and the file is cut; durable at the end. The peer reads what is in use once, in \
         pieces of 1 MiB. Neither finds it in the page cache.",
    );
    for suffix in ["vhd", "vhdx"] {
        let mut row = Row::new(name(suffix), "s", Some(Goal::AtMost(1.2)));
        row.cause = "this file system cannot share space between files, so what is moved is written too, and made durable: \
                     where it can (row on Btrfs) nothing is copied";
        for round in 0..bench.rounds {
            let path = bench.path(&format!("compact.{suffix}"));
            prepare(&path, used, round as u64 + 1)?;
            let read = timed_read(&path)?;
            let ours = timed(Command::new(std::env::current_exe()?).arg("compact").arg(&path), &path)?;
            row.add(ours, read);
            ensure!(fs::metadata(&path)?.len() < used * 2 + 64 * MIB, "it was not compacted");
            fs::remove_file(&path)?;
        }
        report.row(&row);
    }
    Ok(())
}

/// The same as [`run`] on another file system.
pub fn on_shared(bench: &Bench, folder: &Path, report: &mut Report) -> Result<()> {
    let used = bench.sizes.merge;
    let name = format!("Btrfs: compact a VHDX of {} MiB with {} MiB used", used * SPARSE / MIB, used / MIB);
    let mut row = Row::new(name, "s", Some(Goal::AtMost(1.2)));
    for round in 0..bench.rounds {
        let path = folder.join("compact.vhdx");
        prepare(&path, used, round as u64 + 1)?;
        let read = timed_read(&path)?;
        row.add(timed(Command::new(std::env::current_exe()?).arg("compact").arg(&path), &path)?, read);
        fs::remove_file(&path)?;
    }
    report.row(&row);
    Ok(())
}

/// A disk that had every block, and has data in every twentieth piece.
fn prepare(path: &Path, used: u64, seed: u64) -> Result<()> {
    let size = used * SPARSE;
    let block_size = if path.extension().is_some_and(|e| e == "vhdx") { 2 << 20 } else { DEFAULT_BLOCK_SIZE };
    let what = NewDisk::Dynamic { size, block_size };
    create_disk(&HostFs::shared(), path, &what, Identity::fresh())?;
    let disk = Disk::open(path, DiskOptions::default())?;
    let mut random = Random::new(seed);
    let data = random.bytes(usize::try_from(PIECE)?);
    for at in (0..size).step_by(usize::try_from(PIECE)?) {
        if at / PIECE % SPARSE == SPARSE / 2 {
            disk.write(at, &data)?;
        } else {
            disk.write(at, &data[..4096])?;
        }
    }
    for at in (0..size).step_by(usize::try_from(PIECE)?).filter(|at| at / PIECE % SPARSE != SPARSE / 2) {
        disk.write_zeroes(at, PIECE, ZeroMode { may_unmap: true, fast_only: false })?;
    }
    disk.close()?;
    Ok(())
}

/// Takes a file out of the page cache.
fn forget(path: &Path) -> Result<File> {
    let file = File::open(path)?;
    rustix::fs::sync();
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(file)
}

/// Seconds for reading everything that is no hole.
fn timed_read(path: &Path) -> Result<f64> {
    let file = forget(path)?;
    let mut buf = vec![0; 1 << 20];
    let begun = Instant::now();
    let mut at = 0;
    while let Ok(data) = seek(&file, SeekFrom::Data(at)) {
        let end = seek(&file, SeekFrom::Hole(data))?;
        at = data;
        while at < end {
            let len = usize::try_from(end - at)?.min(buf.len());
            file.read_exact_at(&mut buf[..len], at)?;
            at += len as u64;
        }
    }
    Ok(begun.elapsed().as_secs_f64())
}

fn timed(command: &mut Command, path: &Path) -> Result<f64> {
    drop(forget(path)?);
    let begun = Instant::now();
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(seconds)
}

//! What is done to disks that nobody uses, and what an open one costs.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use backstay_disk::{
    DEFAULT_BLOCK_SIZE, DiskOptions, Identity, MergeControl, NewDisk, create_disk, fs::HostFs, merge_offline,
};

use crate::{
    Bench,
    load::as_f64,
    merge,
    report::{Goal, Report, Row},
    server::{Running, Who, tmpfs},
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The role of a merging process.
pub fn merge(upper: &Path) -> Result<()> {
    let shadow = tempfile::tempdir_in(tmpfs())?;
    let options = DiskOptions { runtime_dir: Some(shadow.path().to_owned()), ..DiskOptions::default() };
    merge_offline(&HostFs::shared(), upper, &[], &options, &MergeControl::new())?;
    Ok(())
}

pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    if bench.wants("offline merge") {
        merging(bench, report)?;
    }
    if bench.wants("large disks") {
        large(bench, report)?;
    }
    Ok(())
}

fn merging(bench: &Bench, report: &mut Report) -> Result<()> {
    let name = format!("offline merge of {} MiB of scattered changes", bench.sizes.merge / MIB);
    report.section(
        "Merging a disk that nobody uses",
        "As above, without a client: what `backstay disk merge` does, durable at its end. The removal of the merged file, a quarter of a \
         million extents of 4 KiB, is the file system's work and a row of its own. The peer is `cp` of a file of as many \
         bytes, which is not durable then, and `cp` followed by `sync` of the copy.",
    );
    let mut copied = Row::new(format!("{name} vs cp"), "s", Some(Goal::AtMost(1.5)));
    copied.cause = "`cp` leaves its copy in memory, and the merge is durable (row below)";
    let mut synced = Row::new(format!("{name} vs cp and sync"), "s", None);
    let mut removed = Row::new("offline merge: removal of the merged file".to_owned(), "s", None);
    let (base, top) = (bench.path("merge-base.vhd"), bench.path("merge-top.avhd"));
    for round in 0..bench.rounds {
        let (plain, and_sync) = merge::copy(bench)?;
        merge::prepare(bench, &base, &top, round as u64 + 1)?;
        let begun = Instant::now();
        let status = Command::new(std::env::current_exe()?).arg("merge").arg(&top).status()?;
        let seconds = begun.elapsed().as_secs_f64();
        ensure!(status.success(), "the merge failed");
        copied.add(seconds, plain);
        synced.add(seconds, and_sync);
        let begun = Instant::now();
        fs::remove_file(&top)?;
        removed.ours.push(begun.elapsed().as_secs_f64());
        fs::remove_file(&base)?;
    }
    report.row(&copied);
    report.row(&synced);
    report.row(&removed);
    Ok(())
}

/// The largest disks there are.
fn large(bench: &Bench, report: &mut Report) -> Result<()> {
    report.section(
        "Large disks",
        "Time to create an empty dynamic disk of the largest size, durable at the end, and what it takes on the volume. Resident memory of a \
         server process that has a disk of 2 TiB open: after a write into each of 1,000 blocks all over it.",
    );
    let largest = [("vhd", 2040 * GIB, "2040 GiB VHD"), ("vhdx", 64 << 40, "64 TiB VHDX")];
    for (suffix, size, name) in largest {
        let mut time = Row::new(format!("large disks: create a {name}"), "ms", Some(Goal::Limit(50.0)));
        let mut space = Row::new(format!("large disks: {name} takes"), "MiB", Some(Goal::Limit(10.0)));
        for _ in 0..bench.rounds {
            let path = bench.path(&format!("large.{suffix}"));
            let begun = Instant::now();
            create(&path, size)?;
            time.ours.push(begun.elapsed().as_secs_f64() * 1e3);
            space.ours.push(as_f64(fs::metadata(&path)?.blocks() * 512) / as_f64(MIB));
            fs::remove_file(&path)?;
        }
        report.row(&time);
        report.row(&space);
    }
    for (suffix, size, name) in [("vhd", 2040 * GIB, "2040 GiB VHD"), ("vhdx", 2048 * GIB, "2 TiB VHDX")] {
        let mut memory =
            Row::new(format!("large disks: memory of an open {name}"), "MiB", Some(Goal::Limit(24.0)));
        for _ in 0..bench.rounds {
            let path = bench.path(&format!("open.{suffix}"));
            create(&path, size)?;
            let server = Running::start(Who::Ours, &path, bench.path("open.sock"))?;
            let mut client = crate::load::Client::connect(&server.socket)?;
            let step = client.size() / 1000 / 4096 * 4096;
            for write in 0..1000 {
                client.write(write * step, &[1; 4096])?;
            }
            client.flush()?;
            std::thread::sleep(Duration::from_millis(100));
            memory.ours.push(server.memory()?);
            drop(client);
            server.stop()?;
            fs::remove_file(&path)?;
        }
        report.row(&memory);
    }
    Ok(())
}

fn create(path: &Path, size: u64) -> Result<()> {
    let what = NewDisk::Dynamic { size, block_size: DEFAULT_BLOCK_SIZE };
    Ok(create_disk(&HostFs::shared(), path, &what, Identity::fresh())?)
}

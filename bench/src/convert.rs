//! Conversion of a half-full raw image to a dynamic VHD, against `qemu-img convert`.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    sync::atomic::AtomicBool,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use backstay_disk::{ConvertRequest, ConvertTo, DEFAULT_BLOCK_SIZE, convert as run_convert, fs::HostFs};

use crate::{
    Bench,
    load::{Random, as_f64},
    report::{Goal, Report, Row},
};

const MIB: u64 = 1 << 20;

/// The role of a converting process.
pub fn convert(source: &Path, target: &Path) -> Result<()> {
    let to = ConvertTo::Dynamic { block_size: DEFAULT_BLOCK_SIZE };
    let request = ConvertRequest::new(source.to_owned(), target.to_owned(), to);
    run_convert(&HostFs::shared(), &request, &|_| {}, &AtomicBool::new(false))?;
    Ok(())
}

pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    if !bench.wants("convert") {
        return Ok(());
    }
    report.section(
        "Conversion",
        "`backstay disk convert` against `qemu-img convert -t writeback -O vpc` from a raw image, half of it data in runs of \
         1–16 MiB and the rest holes, to a dynamic VHD; both flush at the end. The value is MiB of the image per second.",
    );
    let source = bench.path("half.raw");
    half_full(&source, bench.sizes.convert)?;
    let name = format!("raw → dynamic, {} MiB half full", bench.sizes.convert / MIB);
    let mut row = Row::new(name, "MiB/s", Some(Goal::AtLeast(2.0)));
    let (ours, theirs) = (bench.path("ours.vhd"), bench.path("theirs.vhd"));
    for round in 0..bench.rounds {
        let us = timed(Command::new(std::env::current_exe()?).arg("convert").args([&source, &ours]))?;
        let arguments =
            ["convert", "-t", "writeback", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on"];
        let them = timed(Command::new("qemu-img").args(arguments).args([&source, &theirs]))?;
        if round == 0 {
            let same = Command::new("qemu-img")
                .args(["compare", "-f", "raw", "-F", "vpc"])
                .args([&source, &ours])
                .output()?;
            ensure!(
                same.status.success(),
                "the converted disk differs: {}",
                String::from_utf8_lossy(&same.stdout)
            );
        }
        fs::remove_file(&ours)?;
        fs::remove_file(&theirs)?;
        let speed = |seconds: f64| as_f64(bench.sizes.convert / MIB) / seconds;
        row.add(speed(us), speed(them));
    }
    report.row(&row);
    fs::remove_file(&source)?;
    Ok(())
}

fn timed(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    // What one side leaves to write back must not slow the other.
    rustix::fs::sync();
    Ok(seconds)
}

fn half_full(path: &Path, size: u64) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(size)?;
    let (mut random, mut at) = (Random::new(7), 0);
    while at < size {
        let run = ((random.next() % 16 + 1) * MIB).min(size - at);
        for offset in (at..at + run).step_by(1 << 20) {
            file.write_all_at(&random.bytes(1 << 20), offset)?;
        }
        at += 2 * run;
    }
    file.sync_all()?;
    Ok(())
}

//! Conversion of half-full images, against `qemu-img convert`.

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
    machine::cpu_of_children,
    report::{Goal, Report, Row},
};

const MIB: u64 = 1 << 20;

/// The role of a converting process: as `backstay disk convert` does it.
pub fn convert(source: &Path, target: &Path) -> Result<()> {
    let to = ConvertTo::Dynamic { block_size: DEFAULT_BLOCK_SIZE };
    let request = ConvertRequest::new(source.to_owned(), target.to_owned(), to);
    run_convert(&HostFs::shared(), &request, &|_| {}, &AtomicBool::new(false))?;
    Ok(())
}

/// From what to what, as we and as `qemu-img` call it.
pub struct Way {
    pub name: &'static str,
    pub source: &'static str,
    source_format: &'static str,
    pub target: &'static str,
    target_format: &'static str,
    options: &'static str,
}

impl Way {
    /// What QEMU does for the same.
    pub fn peer(&self, source: &Path, target: &Path) -> Command {
        let mut image = Command::new("qemu-img");
        image.args(["convert", "-t", "writeback", "-f", self.source_format, "-O", self.target_format]);
        image.args(["-o", self.options]).args([source, target]);
        image
    }
}

pub const WAYS: [Way; 3] = [
    Way {
        name: "raw → dynamic VHD",
        source: "half.raw",
        source_format: "raw",
        target: "vhd",
        target_format: "vpc",
        options: "subformat=dynamic,force_size=on",
    },
    Way {
        name: "raw → VHDX",
        source: "half.raw",
        source_format: "raw",
        target: "vhdx",
        target_format: "vhdx",
        options: "subformat=dynamic",
    },
    Way {
        name: "VHD → VHDX",
        source: "half.vhd",
        source_format: "vpc",
        target: "vhdx",
        target_format: "vhdx",
        options: "subformat=dynamic",
    },
];

pub fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    if !bench.wants("convert") {
        return Ok(());
    }
    report.section(
        "Conversion",
        "`backstay disk convert` against `qemu-img convert -t writeback` of an image, half of it data in runs of \
         1–16 MiB and the rest holes; both flush at the end. The value is MiB of the image per second, and processor time of the whole \
         command.",
    );
    half_full(&bench.path("half.raw"), bench.sizes.convert)?;
    convert(&bench.path("half.raw"), &bench.path("half.vhd"))?;
    rustix::fs::sync();
    for way in &WAYS {
        for row in one_way(bench, way)? {
            report.row(&row);
        }
    }
    fs::remove_file(bench.path("half.raw"))?;
    fs::remove_file(bench.path("half.vhd"))?;
    Ok(())
}

fn one_way(bench: &Bench, way: &Way) -> Result<[Row; 2]> {
    let name = format!("convert {}, {} MiB half full", way.name, bench.sizes.convert / MIB);
    let mut cost = Row::new(format!("{name}: processor time"), "s", Some(Goal::AtMost(1.0)));
    let mut row = Row::new(name, "MiB/s", Some(Goal::AtLeast(2.0)));
    let source = bench.path(way.source);
    let (ours, theirs) =
        (bench.path(&format!("ours.{}", way.target)), bench.path(&format!("theirs.{}", way.target)));
    for round in 0..bench.rounds {
        let us = timed(Command::new(std::env::current_exe()?).arg("convert").args([&source, &ours]))?;
        let them = timed(&mut way.peer(&source, &theirs))?;
        if round == 0 {
            same(way, &source, &ours)?;
        }
        fs::remove_file(&ours)?;
        fs::remove_file(&theirs)?;
        let speed = |seconds: f64| as_f64(bench.sizes.convert / MIB) / seconds;
        row.add(speed(us.0), speed(them.0));
        cost.add(us.1, them.1);
    }
    Ok([row, cost])
}

fn same(way: &Way, source: &Path, ours: &Path) -> Result<()> {
    let mut image = Command::new("qemu-img");
    image.args(["compare", "-f", way.source_format, "-F", way.target_format]).args([source, ours]);
    let said = image.output()?;
    ensure!(said.status.success(), "the converted disk differs: {}", String::from_utf8_lossy(&said.stdout));
    Ok(())
}

/// Seconds, and seconds of processor time.
pub fn timed(command: &mut Command) -> Result<(f64, f64)> {
    let (start, before) = (Instant::now(), cpu_of_children()?);
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_of_children()? - before);
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    // What one side leaves to write back must not slow the other.
    rustix::fs::sync();
    Ok((seconds, cpu))
}

pub fn half_full(path: &Path, size: u64) -> Result<()> {
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

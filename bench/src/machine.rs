//! Where the numbers come from.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::load::as_f64;

/// Ticks of processor times in a second.
const TICKS: f64 = 100.0;

/// Processor time that a process has used, in seconds.
pub fn cpu(pid: u64) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let tail = stat.rsplit_once(')').context("no name")?.1;
    let ticks = tail.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS)
}

/// Processor time of ended children, in seconds.
pub fn cpu_of_children() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let tail = stat.rsplit_once(')').context("no name")?.1;
    let ticks = tail.split_whitespace().skip(13).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS)
}

/// A size of `/proc/PID/status` in MiB, by its key: `VmRSS:`.
pub fn memory_of(pid: u64, key: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
    let kib: u64 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(as_f64(kib) / 1024.0)
}

/// First line of a command's output.
pub fn first_line(command: &str, args: &[&str]) -> String {
    let output = Command::new(command).args(args).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_once(':')).map_or_else(|| "unknown".into(), |(_, v)| v.trim().to_owned())
}

/// Processes that ran or waited on average over the last minute.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// A few lines on machine and versions.
pub fn describe(scratch: &Path) -> Vec<String> {
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kvm = if Path::new("/dev/kvm").exists() { "/dev/kvm present" } else { "no /dev/kvm" };
    let scratch = scratch.to_string_lossy();
    let fs_type = first_line("findmnt", &["-n", "-o", "FSTYPE", "-T", &scratch]);
    vec![
        format!("{cpus} × {}, {} memory, {kvm}", field("/proc/cpuinfo", "model name"), memory()),
        format!("Linux {}; scratch files on {fs_type}, in the page cache on both sides", kernel.trim()),
        format!("{}; {}", first_line("qemu-nbd", &["--version"]), first_line("rustc", &["--version"])),
        format!("commit {}", first_line("git", &["describe", "--always", "--dirty"])),
    ]
}

fn memory() -> String {
    let total = field("/proc/meminfo", "MemTotal");
    let kib: u64 = total.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
    format!("{} GiB", kib.div_ceil(1 << 20))
}

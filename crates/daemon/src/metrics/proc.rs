//! What the kernel tells of processes and of the host. Blocking, but only for microseconds.

use std::fs;

/// Ticks of processor times in a second: part of the kernel's interface on this architecture.
const TICKS: f64 = 100.0;

/// What a process used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor time of all its threads, in seconds.
    pub cpu_seconds: f64,
    /// Processor time of the threads that are virtual processors, in seconds.
    pub vcpu_seconds: f64,
    /// Memory it has in RAM, in bytes.
    pub resident: u64,
}

/// Looks at a process; none when it has ended.
pub fn usage(pid: u32) -> Option<Usage> {
    let (_, cpu_seconds) = times(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    let mut vcpu_seconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // QEMU names them `CPU 0/KVM`, `CPU 0/TCG` because of `-name debug-threads=on`.
        if let Some((name, seconds)) = times(&stat)
            && name.starts_with("CPU ")
        {
            vcpu_seconds += seconds;
        }
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(Usage { cpu_seconds, vcpu_seconds, resident: kib(&status, "VmRSS:").unwrap_or(0) })
}

/// Name and processor time of a `stat` line. The name is in parentheses and may contain some itself.
fn times(stat: &str) -> Option<(&str, f64)> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = tail.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((name, (ticks()? + ticks()?) / TICKS))
}

/// A line such as `VmRSS:   1234 kB`, in bytes.
fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Memory of the host in bytes: all, and what could be given to a new process.
pub fn memory() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some((kib(&text, "MemTotal:")?, kib(&text, "MemAvailable:")?))
}

/// When this process began, in seconds since the Unix epoch.
pub fn started() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let ticks: f64 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let host = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = host.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + ticks / TICKS)
}

/// Descriptors that this process has open.
pub fn open_files() -> Option<usize> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 3 0 1000 1 2 3";
        assert_eq!(times(stat), Some(("a) b) c", 2.0)));
        assert_eq!(times("7 (x) S 1"), None);
    }

    #[test]
    fn this_process_is_seen_as_it_is() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.resident > 100_000 && usage.vcpu_seconds == 0.0, "{usage:?}");
        assert!(super::usage(u32::MAX).is_none());
        let (all, available) = memory().unwrap();
        assert!(all > available && available > 0);
        let age = jiff::Timestamp::now().as_second() as f64 - started().unwrap();
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}

//! Processes by number.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;

/// `kill -9`. A process that has just ended by itself is as good.
///
/// # Panics
/// On a number that is no process.
pub fn kill(pid: u64) {
    let raw = i32::try_from(pid).expect("a process number");
    let pid = Pid::from_raw(raw).expect("a process number above 0");
    let _ = kill_process(pid, Signal::KILL);
}

/// Whether the process exists and is no zombie.
#[must_use]
pub fn is_alive(pid: u64) -> bool {
    state(pid).is_some_and(|(state, _)| state != 'Z')
}

/// The process that started it, or the one that took it over.
#[must_use]
pub fn parent_of(pid: u64) -> Option<u64> {
    state(pid).map(|(_, parent)| parent)
}

fn state(pid: u64) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name in parentheses may hold anything
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Threads of the virtual processors of a QEMU.
#[must_use]
pub fn vcpu_threads(qemu: u64) -> Vec<u64> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{qemu}/task")).into_iter().flatten().flatten() {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with("CPU ") {
            found.extend(entry.file_name().to_str().and_then(|tid| tid.parse::<u64>().ok()));
        }
    }
    found.sort_unstable();
    found
}

/// Processor time that a thread of `process` has used, in hundredths of a second.
///
/// # Panics
/// When there is no such thread.
#[must_use]
pub fn cpu_ticks(process: u64, thread: u64) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/task/{thread}/stat")).expect("a living thread");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    // utime and stime are fields 14 and 15; the first here is 3
    [11, 12].iter().map(|at| fields[*at].parse::<u64>().expect("a number")).sum()
}

/// Lets a thread run on the first processor only that this process may use.
///
/// # Panics
/// When the kernel refuses.
pub fn pin_to_first_cpu(thread: u64) {
    let own = rustix::thread::sched_getaffinity(None).expect("the own processors");
    let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| own.is_set(*cpu)).expect("a processor");
    let mut only = rustix::thread::CpuSet::new();
    only.set(first);
    let raw = i32::try_from(thread).expect("a thread number");
    rustix::thread::sched_setaffinity(Pid::from_raw(raw), &only).expect("an affinity");
}

/// Processes whose command line or environment names `path`.
pub(crate) fn using(path: &Path) -> Vec<u64> {
    let Some(needle) = path.to_str() else { return Vec::new() };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()) else {
            continue;
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(needle) && pid != u64::from(std::process::id()) {
            found.push(pid);
        }
    }
    found
}

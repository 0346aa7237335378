//! The QEMU process of a run folder, recorded so that the next worker finds it.

use crate::durable;
use crate::run_dir::RunDir;
use serde::{Deserialize, Serialize};
use std::io;

/// `qemu.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// QEMU's process; none while it is being started.
    pub process: Option<ProcessId>,
    /// Milliseconds since the Unix epoch when it was started.
    pub started_unix_ms: i64,
    /// `10.0.2`.
    pub qemu_version: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Why that one.
    pub accelerator_reason: String,
    /// The guest has executed: the memory state that the launch record names is behind it and must not be loaded again,
    /// because its disks have moved on.
    pub ran: bool,
    /// Starts by the recovery action, milliseconds since the Unix epoch, newest last.
    #[serde(default)]
    pub recoveries: Vec<i64>,
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// Clock ticks between the start of the host and of the process (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
}

impl ProcessId {
    /// Identifies a process that lives now; `None` when it does not, or is a zombie.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start_time) = parse_stat(&stat)?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, start_time })
    }

    /// Whether this very process lives.
    #[must_use]
    pub fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// State letter and start time. The command name (second field) may hold anything, even `) R 1`: count from its end.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Reads the record.
///
/// # Errors
/// As the file system; `InvalidData` for a damaged record.
pub fn read(run: &RunDir) -> io::Result<Option<Instance>> {
    durable::read_json(&run.instance())
}

/// Writes the record.
///
/// # Errors
/// As the file system.
pub fn write(run: &RunDir, instance: &Instance) -> io::Result<()> {
    durable::replace_json(&run.instance(), instance)
}

/// The recorded QEMU's process number if it lives.
///
/// # Errors
/// As [`read`].
pub fn living(run: &RunDir) -> io::Result<Option<u32>> {
    Ok(read(run)?.and_then(|i| i.process).filter(|p| p.lives()).map(|p| p.pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_a_process_with_a_hostile_name() {
        let stat = "4711 (a) R 1 (x)) S 1 4711 4711 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 20";
        assert_eq!(parse_stat(stat), Some(('S', 987_654)));
    }

    #[test]
    fn a_process_number_used_again_is_another_process() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.lives());
        assert!(!ProcessId { start_time: me.start_time + 1, ..me }.lives());
    }
}

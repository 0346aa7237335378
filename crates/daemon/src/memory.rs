//! Memory of this host, as far as it can be given to machines.

use crate::failure::chain;
use std::path::{Path, PathBuf};

/// What there is, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In all.
    pub total: u64,
    /// What could be used now without swapping.
    pub available: u64,
    /// What makes either smaller than the host's own.
    pub limited_by: Option<String>,
}

/// Looks at the host and at the control groups this process is in: whatever is the least counts. Blocking.
#[must_use]
pub fn look() -> Memory {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_else(|error| {
        tracing::warn!(error = chain(&error), "/proc/meminfo cannot be read");
        String::new()
    });
    let mut memory = Memory {
        total: kib(&text, "MemTotal:").unwrap_or(0),
        available: kib(&text, "MemAvailable:").unwrap_or(0),
        limited_by: None,
    };
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for group in groups(&mounts, &own) {
        let Some((limit, room)) = group.room() else { continue };
        if limit < memory.total || room < memory.available {
            memory.limited_by = Some(group.folder.display().to_string());
        }
        memory.total = memory.total.min(limit);
        memory.available = memory.available.min(room);
    }
    memory
}

/// A line of `/proc/meminfo` or `/proc/PID/status`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Memory that a process has made its own, in bytes: in memory or swapped out, without what it shares with files.
#[must_use]
pub fn used_by(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    ["RssAnon:", "RssShmem:", "VmSwap:"].iter().filter_map(|name| kib(&text, name)).sum()
}

/// A control group that limits memory.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    folder: PathBuf,
    v2: bool,
}

impl Group {
    /// Its limit, and what is left of it; file pages that nobody has used lately give way.
    fn room(&self) -> Option<(u64, u64)> {
        let (limit, usage, inactive) = if self.v2 {
            ("memory.max", "memory.current", "inactive_file ")
        } else {
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        };
        let read = |name: &str| std::fs::read_to_string(self.folder.join(name)).ok();
        let limit: u64 = read(limit)?.trim().parse().ok()?; // "max" is no number
        let usage: u64 = read(usage)?.trim().parse().ok()?;
        let stat = read("memory.stat").unwrap_or_default();
        let gives_way =
            stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse().ok()).unwrap_or(0);
        Some((limit, limit.saturating_sub(usage.saturating_sub(gives_way))))
    }
}

/// The memory control groups that a process is in, with all above them.
fn groups(mounts: &str, own: &str) -> Vec<Group> {
    let mount = |kind: &str, option: &str| {
        mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, found, options) = (fields.next()?, fields.next()?, fields.next()?);
            (found == kind && (option.is_empty() || options.split(',').any(|o| o == option))).then_some(path)
        })
    };
    let mut found = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let v2 = controllers.is_empty();
        let root = match v2 {
            true => mount("cgroup2", ""),
            false if controllers.split(',').any(|c| c == "memory") => mount("cgroup", "memory"),
            false => None,
        };
        let Some(root) = root.map(Path::new) else { continue };
        let folder = root.join(path.trim_start_matches('/'));
        let all = folder.ancestors().take_while(|at| at.starts_with(root));
        found.extend(all.map(|at| Group { folder: at.into(), v2 }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_what_the_kernel_says() {
        let before = used_by(std::process::id());
        let block = vec![7_u8; 64 << 20];
        let grown = used_by(std::process::id()) - before;
        assert!(grown >= 60 << 20, "{grown} for {}", block.len());
        assert_eq!(used_by(u32::MAX), 0);
    }

    #[test]
    fn the_groups_above_count_too() {
        let mounts =
            "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\ncgroup2 /cg2 cgroup2 rw 0 0\n";
        let own = "4:memory:/a/b\n3:cpuset:/x\n0::/c\n";
        let folders: Vec<_> = groups(mounts, own).into_iter().map(|g| (g.folder, g.v2)).collect();
        let v1 = |path: &str| (Path::new("/sys/fs/cgroup/memory").join(path), false);
        let v2 = |path: &str| (Path::new("/cg2").join(path), true);
        assert_eq!(folders, [v1("a/b"), v1("a"), v1(""), v2("c"), v2("")]);
    }

    #[test]
    fn a_group_has_the_room_that_is_left_below_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let group = Group { folder: folder.path().into(), v2: true };
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(group.room(), None, "no limit can be read");
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        write("memory.stat", "anon 400\ninactive_file 200\nactive_file 100\n");
        assert_eq!(group.room(), None);
        write("memory.max", "1000\n");
        assert_eq!(group.room(), Some((1000, 500)));
    }

    #[test]
    fn this_host_has_memory() {
        let memory = look();
        assert!(memory.total > 0 && memory.available > 0 && memory.available <= memory.total, "{memory:?}");
    }
}

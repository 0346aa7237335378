//! Which devices a file lies on, by what `/sys` tells: its partition, the disk of that, and whatever is below a mapped
//! device or an array.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel describes its devices.
pub(super) struct Devices {
    /// `/sys`.
    sys: PathBuf,
    /// `/proc/self/mountinfo`, for file systems whose device number is not that of a device.
    mounts: PathBuf,
}

impl Default for Devices {
    fn default() -> Self {
        Self { sys: "/sys".into(), mounts: "/proc/self/mountinfo".into() }
    }
}

impl Devices {
    /// Names of all devices that a file on device number `dev` lies on; `file` is its path.
    pub(super) fn below(&self, dev: u64, file: &Path) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let numbers = format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev));
        match fs::canonicalize(self.sys.join("dev/block").join(&numbers)) {
            Ok(node) => self.collect(&node, &mut names),
            // btrfs, and others that have numbers of their own.
            Err(_) => {
                if let Some(node) = self.source_of(file).and_then(|name| self.node(&name)) {
                    self.collect(&node, &mut names);
                }
            }
        }
        names
    }

    fn node(&self, name: &str) -> Option<PathBuf> {
        fs::canonicalize(self.sys.join("class/block").join(name)).ok()
    }

    fn collect(&self, node: &Path, names: &mut BTreeSet<String>) {
        let Some(name) = node.file_name().and_then(|name| name.to_str()) else { return };
        if !names.insert(name.to_owned()) {
            return;
        }
        if node.join("partition").exists()
            && let Some(disk) = node.parent()
        {
            self.collect(disk, names);
        }
        // An NVMe namespace belongs to a controller, which is what the kernel names for its troubles.
        if let Some(controller) = name.strip_prefix("nvme").and_then(|rest| rest.split_once('n')) {
            names.insert(format!("nvme{}", controller.0));
        }
        for slave in fs::read_dir(node.join("slaves")).into_iter().flatten().flatten() {
            if let Some(slave) = slave.file_name().to_str().and_then(|name| self.node(name)) {
                self.collect(&slave, names);
            }
        }
    }

    /// The device that is mounted where a file lies.
    fn source_of(&self, file: &Path) -> Option<String> {
        let text = fs::read_to_string(&self.mounts).ok()?;
        let mut best: Option<(usize, String)> = None;
        for line in text.lines() {
            let mut fields = line.split(' ');
            let point = fields.nth(4)?.replace("\\040", " ");
            let Some(source) = line.split(" - ").nth(1).and_then(|rest| rest.split(' ').nth(1)) else {
                continue;
            };
            let Some(name) = source.strip_prefix("/dev/") else { continue };
            if file.starts_with(&point) && best.as_ref().is_none_or(|(len, _)| point.len() >= *len) {
                best = Some((point.len(), name.to_owned()));
            }
        }
        best.map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A little of `/sys`: an LVM volume on a partition of an NVMe disk, and a whole disk.
    fn fake() -> (tempfile::TempDir, Devices) {
        let folder = tempfile::tempdir().unwrap();
        let sys = folder.path();
        let nodes = ["devices/nvme0n1", "devices/nvme0n1/nvme0n1p3", "devices/dm-2", "devices/sdb"];
        for node in nodes {
            fs::create_dir_all(sys.join(node)).unwrap();
        }
        fs::write(sys.join("devices/nvme0n1/nvme0n1p3/partition"), "3").unwrap();
        fs::create_dir_all(sys.join("class/block")).unwrap();
        fs::create_dir_all(sys.join("dev/block")).unwrap();
        fs::create_dir_all(sys.join("devices/dm-2/slaves")).unwrap();
        for (numbers, node) in [("259:3", nodes[1]), ("254:2", nodes[2]), ("8:16", nodes[3])] {
            symlink(sys.join(node), sys.join("dev/block").join(numbers)).unwrap();
            let name = Path::new(node).file_name().unwrap();
            symlink(sys.join(node), sys.join("class/block").join(name)).unwrap();
        }
        symlink(sys.join(nodes[1]), sys.join("devices/dm-2/slaves/nvme0n1p3")).unwrap();
        let mounts = sys.join("mountinfo");
        fs::write(
            &mounts,
            "22 1 0:20 / / rw - btrfs /dev/sdb rw\n23 22 0:21 / /srv/v\\040m rw - tmpfs tmpfs rw\n",
        )
        .unwrap();
        let devices = Devices { sys: sys.into(), mounts };
        (folder, devices)
    }

    #[test]
    fn everything_below_a_file_is_named() {
        let (_folder, devices) = fake();
        let below = |major, minor| devices.below(rustix::fs::makedev(major, minor), Path::new("/x/disk.vhd"));
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(below(254, 2), names(&["dm-2", "nvme0", "nvme0n1", "nvme0n1p3"]));
        assert_eq!(below(8, 16), names(&["sdb"]));
        assert_eq!(below(0, 20), names(&["sdb"]), "by its mount");
        let tmpfs = devices.below(rustix::fs::makedev(0, 99), Path::new("/nowhere"));
        assert!(tmpfs.contains("sdb"), "the root's mount holds it: {tmpfs:?}");
    }
}

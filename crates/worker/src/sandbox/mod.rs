//! QEMU's view of the host: a root of its own with its programs and libraries (read-only), the devices it needs and the
//! machine's run folder. No disk, no home, no other machine, no `/proc`, no `/sys`. Disks and memory files reach it as
//! connections and open files, so there is nothing else that it would have to see.
//!
//! QEMU is started by a chain of programs that keep its process number:
//! `setsid` → `unshare` → `backstay sandbox-exec` (makes the view) → `setpriv` (becomes the user) → QEMU.

mod enter;

pub use enter::{EnterError, enter};

use crate::run_dir::RunDir;
use backstay_model::VmSpec;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The hidden command that makes the view.
pub const COMMAND: &str = "sandbox-exec";

/// util-linux, in every installation: gives QEMU name spaces of its own, keeping pid and parent.
const UNSHARE: &str = "unshare";

/// Programs, libraries and what they look up. What does not exist is left out; symbolic links stay links.
const PROGRAMS: [&str; 9] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/qemu",
    "/etc/localtime",
];
/// What user-mode networking looks up.
const NETWORK: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];
/// Devices.
const DEVICES: [&str; 6] =
    ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/kvm", "/dev/userfaultfd"];

/// How a machine's QEMU is shut in; part of the launch record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxOptions {
    /// Files and folders that it may read in addition, for a QEMU that is not below `/usr`.
    #[serde(default)]
    pub read_only: Vec<PathBuf>,
}

/// What QEMU sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The machine's run folder, writable, at its place.
    pub run_dir: PathBuf,
    /// What can be read.
    pub read_only: Vec<PathBuf>,
    /// Device nodes.
    pub devices: Vec<PathBuf>,
    /// The host's network: user-mode networking opens connections there.
    pub network: bool,
}

impl View {
    /// The view of the machine's QEMU.
    #[must_use]
    pub(crate) fn plan(spec: &VmSpec, run: &RunDir, qemu: &Path, options: &SandboxOptions) -> Self {
        let network = !spec.nics.is_empty();
        let mut read_only: Vec<PathBuf> = PROGRAMS.iter().map(PathBuf::from).collect();
        if network {
            read_only.extend(NETWORK.iter().map(PathBuf::from));
        }
        read_only.extend(home_of(qemu));
        for more in &options.read_only {
            if !read_only.contains(more) {
                read_only.push(more.clone());
            }
        }
        Self {
            run_dir: run.dir().into(),
            read_only,
            devices: DEVICES.iter().map(PathBuf::from).collect(),
            network,
        }
    }

    /// What to put before the command that is to run in this view. `program` is this executable.
    #[must_use]
    pub fn launcher(&self, program: &str) -> Vec<String> {
        let mut launcher: Vec<String> =
            [UNSHARE, "--mount", "--ipc", "--uts"].into_iter().map(str::to_owned).collect();
        if !self.network {
            launcher.push("--net".into());
        }
        launcher.extend(["--", program, COMMAND, "--view"].into_iter().map(str::to_owned));
        launcher.push(serde_json::to_string(self).unwrap_or_default());
        launcher.push("--".into());
        launcher
    }
}

/// What belongs to a QEMU that is installed outside of `/usr`: the folder above its `bin`, or the file alone.
fn home_of(qemu: &Path) -> Option<PathBuf> {
    if !qemu.is_absolute() || qemu.starts_with("/usr") || qemu.starts_with("/bin") {
        return None;
    }
    let folder = qemu.parent()?;
    let above = folder.parent().filter(|above| above.parent().is_some());
    match above {
        Some(above) if folder.file_name().is_some_and(|name| name == "bin") => Some(above.into()),
        _ => Some(qemu.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_of_ones_own_brings_its_folder_and_a_lone_one_only_itself() {
        let home = |path: &str| home_of(Path::new(path));
        assert_eq!(home("qemu-system-x86_64"), None);
        assert_eq!(home("/usr/bin/qemu-system-x86_64"), None);
        assert_eq!(home("/opt/qemu/bin/qemu-system-x86_64"), Some("/opt/qemu".into()));
        assert_eq!(home("/srv/me/qemu-system-x86_64"), Some("/srv/me/qemu-system-x86_64".into()));
        assert_eq!(home("/bin2/bin/qemu"), Some("/bin2".into()));
        assert_eq!(
            home("/opt/qemu-system-x86_64"),
            Some("/opt/qemu-system-x86_64".into()),
            "not all of /opt"
        );
    }

    #[test]
    fn the_network_goes_with_the_last_card() {
        let view = |network| View {
            run_dir: "/run/x".into(),
            read_only: vec!["/usr".into()],
            devices: Vec::new(),
            network,
        };
        let launcher = view(false).launcher("/proc/7/exe");
        assert_eq!(launcher[..5], ["unshare", "--mount", "--ipc", "--uts", "--net"]);
        assert!(!view(true).launcher("/proc/7/exe").contains(&"--net".to_owned()));
        let (text, end) = (&launcher[launcher.len() - 2], launcher.last().unwrap());
        assert_eq!((serde_json::from_str::<View>(text).unwrap(), end.as_str()), (view(false), "--"));
    }
}

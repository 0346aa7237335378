//! Which way works on this host.

use super::{ControlPolicy, Folders, ProcessorSettings, v1, v2};
use crate::report::chain_of;
use std::path::{Path, PathBuf};

/// The hierarchy that has the `cpu` controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// Version 1, mounted here.
    V1(PathBuf),
    /// Version 2, mounted here.
    V2(PathBuf),
}

/// A way that works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Units of systemd.
    Systemd {
        /// Where their groups are.
        tree: Tree,
    },
    /// Folders of cgroup v2.
    Cgroup2 {
        /// Where it is mounted.
        root: PathBuf,
    },
    /// Folders of cgroup v1.
    Cgroup1 {
        /// Where its `cpu` hierarchy is mounted.
        root: PathBuf,
    },
}

impl Way {
    /// For people.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Systemd { tree: Tree::V1(_) } => "systemd, cgroup v1".into(),
            Self::Systemd { tree: Tree::V2(_) } => "systemd, cgroup v2".into(),
            Self::Cgroup2 { root } => format!("cgroup v2, {}", root.display()),
            Self::Cgroup1 { root } => format!("cgroup v1, {}", root.display()),
        }
    }
}

/// No way works; the reasons of all that were tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoControl(pub String);

/// What the probe looks at.
#[derive(Clone, Debug)]
pub struct HostTree {
    /// `/proc/self/mounts`.
    pub mounts: String,
    /// systemd has started this host.
    pub systemd: bool,
}

impl HostTree {
    /// This host's.
    #[must_use]
    pub fn here() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        Self { mounts, systemd: Path::new("/run/systemd/system").is_dir() }
    }

    fn mounted(&self, kind: &str, accepted: impl Fn(&Path, &str) -> bool) -> Option<PathBuf> {
        self.mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, found, options) = (Path::new(fields.next()?), fields.next()?, fields.next()?);
            (found == kind && accepted(path, options)).then(|| path.into())
        })
    }

    fn v1(&self) -> Option<PathBuf> {
        self.mounted("cgroup", |_, options| options.split(',').any(|option| option == "cpu"))
    }

    fn v2(&self, folders: &dyn Folders) -> Option<PathBuf> {
        self.mounted("cgroup2", |path, _| {
            let controllers = folders.read(&path.join("cgroup.controllers")).unwrap_or_default();
            controllers.split_whitespace().any(|controller| controller == "cpu")
        })
    }
}

/// Finds the way that `settings` ask for. The group of all machines is made where it is a folder: only that tells whether
/// we may. Blocks for a moment.
///
/// # Errors
/// [`NoControl`]: limits, weights and reserves do not act.
pub fn probe(settings: &ProcessorSettings, host: &HostTree, folders: &dyn Folders) -> Result<Way, NoControl> {
    let wanted = |policy| settings.policy == policy || settings.policy == ControlPolicy::Auto;
    if settings.policy == ControlPolicy::None {
        return Err(NoControl("the settings say so (control = \"none\")".into()));
    }
    let (v1, v2) = (host.v1(), host.v2(folders));
    if wanted(ControlPolicy::Systemd) && host.systemd {
        let tree = v2.clone().map(Tree::V2).or_else(|| v1.clone().map(Tree::V1));
        // Beside systemd nobody else may make groups in its tree: there is no next way.
        return match tree {
            Some(tree) => Ok(Way::Systemd { tree }),
            None => Err(NoControl("no control group hierarchy has the cpu controller".into())),
        };
    }
    let mut reasons = Vec::new();
    if settings.policy == ControlPolicy::Systemd {
        reasons.push("systemd does not run here".to_owned());
    }
    if wanted(ControlPolicy::Cgroup2) {
        match v2 {
            None => reasons.push("no cgroup v2 with the cpu controller is mounted".to_owned()),
            Some(root) => match v2::prepare(folders, &root, &root.join(&settings.group)) {
                Ok(()) => return Ok(Way::Cgroup2 { root }),
                Err(error) => reasons.push(chain_of(&error)),
            },
        }
    }
    if wanted(ControlPolicy::Cgroup1) {
        match v1 {
            None => reasons.push("no cgroup v1 with the cpu controller is mounted".to_owned()),
            Some(root) => match v1::prepare(folders, &root.join(&settings.group)) {
                Ok(()) => return Ok(Way::Cgroup1 { root }),
                Err(error) => reasons.push(chain_of(&error)),
            },
        }
    }
    Err(NoControl(reasons.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::super::kernel::Kernel;
    use super::*;

    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0\n\
        cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu,cpuacct 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
    const UNIFIED: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";

    fn host(mounts: &str, systemd: bool) -> HostTree {
        HostTree { mounts: mounts.into(), systemd }
    }

    fn settings(policy: ControlPolicy) -> ProcessorSettings {
        ProcessorSettings { policy, ..ProcessorSettings::default() }
    }

    #[test]
    fn the_hierarchy_with_the_cpu_controller_is_taken() {
        let kernel = Kernel::new("/sys/fs/cgroup", &["cpu"]);
        let root = PathBuf::from("/sys/fs/cgroup");
        let auto = settings(ControlPolicy::Auto);
        assert_eq!(probe(&auto, &host(UNIFIED, false), &kernel), Ok(Way::Cgroup2 { root: root.clone() }));
        assert_eq!(
            probe(&auto, &host(UNIFIED, true), &kernel),
            Ok(Way::Systemd { tree: Tree::V2(root.clone()) })
        );
        let v1 = Tree::V1("/sys/fs/cgroup/cpu".into());
        let none = Kernel::new("/sys/fs/cgroup/unified", &["hugetlb"]);
        assert_eq!(probe(&auto, &host(HYBRID, true), &none), Ok(Way::Systemd { tree: v1 }));
    }

    #[test]
    fn a_refusal_tells_every_way_that_was_tried() {
        let none = Kernel::new("/sys/fs/cgroup/unified", &["hugetlb"]);
        let NoControl(words) =
            probe(&settings(ControlPolicy::Auto), &host(HYBRID, false), &none).unwrap_err();
        assert!(
            words.contains("no cgroup v2 with the cpu") && words.contains("/sys/fs/cgroup/cpu/backstay-vms"),
            "{words}"
        );
        let NoControl(words) =
            probe(&settings(ControlPolicy::Systemd), &host(UNIFIED, false), &none).unwrap_err();
        assert_eq!(words, "systemd does not run here");
        let NoControl(words) =
            probe(&settings(ControlPolicy::None), &host(UNIFIED, true), &none).unwrap_err();
        assert!(words.contains("control = \"none\""), "{words}");
    }
}

//! Folders of cgroup v2.
//!
//! The kernel's rules that shape this: a group gets a controller's files when its parent has the controller in
//! `cgroup.subtree_control`; a group with processes may hand `cpu` on only to threaded children; all threads of a process
//! are in one threaded domain. So QEMU's process is in the machine's group, which becomes the root of a threaded domain,
//! and the virtual processors' threads in its threaded child.

use super::folder::{FoldersExt, move_into};
use super::{ALL_WEIGHT, ControlError, Driver, Folders, Threads, VCPU};
use backstay_model::CpuShare;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Without a limit the period means nothing; this is the kernel's own.
const NO_LIMIT: &str = "max 100000";

/// A machine's folder below that of all machines.
#[derive(Debug)]
pub(super) struct Files {
    folders: Arc<dyn Folders>,
    root: PathBuf,
    all: PathBuf,
    machine: PathBuf,
}

/// Makes the group of all machines, with the controller for its children.
pub(super) fn prepare(
    folders: &(impl Folders + ?Sized),
    root: &Path,
    all: &Path,
) -> Result<(), ControlError> {
    hand_on(folders, root)?;
    if folders.group(all)? {
        folders.set(&all.join("cpu.weight"), &ALL_WEIGHT.to_string())?;
    }
    hand_on(folders, all)
}

/// Gives `cpu` to the children of `group`.
fn hand_on(folders: &(impl Folders + ?Sized), group: &Path) -> Result<(), ControlError> {
    let file = group.join("cgroup.subtree_control");
    if folders.text(&file)?.split_whitespace().any(|controller| controller == "cpu") {
        return Ok(());
    }
    folders.set(&file, "+cpu")
}

impl Files {
    pub(super) fn new(folders: Arc<dyn Folders>, root: &Path, all: &str, machine: &str) -> Self {
        let all = root.join(all);
        Self { folders, root: root.into(), machine: all.join(machine), all }
    }
}

impl Driver for Files {
    fn apply(&self, threads: &Threads, share: &CpuShare) -> Result<(), ControlError> {
        let folders = self.folders.as_ref();
        prepare(folders, &self.root, &self.all)?;
        folders.group(&self.machine)?;
        folders.set(&self.machine.join("cpu.weight"), &share.weight.to_string())?;
        move_into(folders, &self.machine.join("cgroup.procs"), [threads.qemu])?;
        confine(folders, &self.machine, threads, share)
    }

    fn remove(&self) -> Result<(), ControlError> {
        self.folders.drop_group(&self.machine.join(VCPU))?;
        self.folders.drop_group(&self.machine).map(drop)
    }

    fn place(&self) -> String {
        format!("cgroup v2, {}", self.machine.display())
    }
}

/// The limit, in a machine's group that QEMU is in.
pub(super) fn confine(
    folders: &(impl Folders + ?Sized),
    machine: &Path,
    threads: &Threads,
    share: &CpuShare,
) -> Result<(), ControlError> {
    let vcpu = machine.join(VCPU);
    folders.group(&vcpu)?;
    let kind = vcpu.join("cgroup.type");
    if folders.text(&kind)?.trim() != "threaded" {
        folders.set(&kind, "threaded")?;
    }
    hand_on(folders, machine)?;
    let limit = share.quota.map_or(NO_LIMIT.into(), |q| format!("{} {}", q.quota_us, q.period_us));
    // The limit first: it holds when the threads come.
    folders.set(&vcpu.join("cpu.max"), &limit)?;
    move_into(folders, &vcpu.join("cgroup.threads"), threads.vcpus.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::super::HostFolders;
    use super::super::kernel::Kernel;
    use super::*;
    use backstay_model::{CpuControl, Quota};

    fn share(weight: u32, quota: Option<Quota>) -> CpuShare {
        CpuShare { weight, quota }
    }

    fn files(kernel: &Arc<Kernel>, vm: &str) -> Files {
        Files::new(Arc::clone(kernel) as Arc<dyn Folders>, Path::new("/cg"), "backstay-vms", vm)
    }

    #[test]
    fn a_machine_gets_its_place_under_the_rules_of_the_kernel() {
        let kernel = Arc::new(Kernel::new("/cg", &["cpu", "memory"]));
        kernel.start(100, &[100, 101, 102, 103]);
        let threads = Threads { qemu: 100, vcpus: [102, 103].into() };
        let control = CpuControl { count: 2, limit_percent: 25, ..CpuControl::default() };
        let a = files(&kernel, "a");
        a.apply(&threads, &share(400, control.quota())).unwrap();
        let read = |path: &str| kernel.read(Path::new(path)).unwrap();
        assert_eq!(read("/cg/backstay-vms/cpu.weight"), "1000");
        assert_eq!(read("/cg/backstay-vms/a/cpu.weight"), "400");
        assert_eq!(read("/cg/backstay-vms/a/cgroup.type"), "domain threaded");
        assert_eq!(read("/cg/backstay-vms/a/vcpu/cpu.max"), "10000 20000");
        assert_eq!(read("/cg/backstay-vms/a/vcpu/cgroup.threads"), "102\n103\n");
        assert_eq!(
            read("/cg/backstay-vms/a/cgroup.threads"),
            "100\n101\n",
            "QEMU's own threads are not limited"
        );

        // Again, with other settings and while it runs; a second machine beside it.
        a.apply(&threads, &share(1, None)).unwrap();
        assert_eq!(read("/cg/backstay-vms/a/vcpu/cpu.max"), "max 100000");
        assert_eq!(read("/cg/backstay-vms/a/cpu.weight"), "1");
        kernel.start(200, &[200, 201]);
        let b = files(&kernel, "b");
        b.apply(&Threads { qemu: 200, vcpus: [201].into() }, &share(100, None)).unwrap();

        // Another QEMU takes the place of one that died.
        kernel.end(100);
        kernel.start(300, &[300, 301]);
        a.apply(&Threads { qemu: 300, vcpus: [301].into() }, &share(100, None)).unwrap();
        assert_eq!(read("/cg/backstay-vms/a/vcpu/cgroup.threads"), "301\n");

        let busy = a.remove().unwrap_err();
        assert!(busy.to_string().contains("/cg/backstay-vms/a/vcpu"), "{busy}");
        kernel.end(300);
        a.remove().unwrap();
        a.remove().unwrap();
        assert!(kernel.read(Path::new("/cg/backstay-vms/a/cgroup.type")).is_err());
    }

    #[test]
    fn a_thread_that_ended_meanwhile_is_no_error() {
        let kernel = Arc::new(Kernel::new("/cg", &["cpu"]));
        kernel.start(100, &[100, 101]);
        let threads = Threads { qemu: 100, vcpus: [101, 999].into() };
        files(&kernel, "a").apply(&threads, &share(100, None)).unwrap();
    }

    #[test]
    fn without_the_controller_the_kernel_is_quoted() {
        let kernel = Arc::new(Kernel::new("/cg", &["memory"]));
        kernel.start(100, &[100]);
        let threads = Threads { qemu: 100, vcpus: [100].into() };
        let error = files(&kernel, "a").apply(&threads, &share(100, None)).unwrap_err();
        assert!(error.to_string().contains("writing '+cpu' to /cg/cgroup.subtree_control"), "{error}");
    }

    /// The kernel's own tree, also where it has no `cpu` controller: then those files are kept in memory.
    #[derive(Debug)]
    struct Real {
        has_cpu: bool,
        absent: std::sync::Mutex<std::collections::BTreeMap<PathBuf, String>>,
    }

    impl Real {
        fn is_absent(&self, path: &Path) -> bool {
            let name = path.file_name().unwrap().to_str().unwrap();
            !self.has_cpu && (name.starts_with("cpu.") || name == "cgroup.subtree_control")
        }
    }

    impl Folders for Real {
        fn read(&self, path: &Path) -> std::io::Result<String> {
            if self.is_absent(path) {
                return Ok(self.absent.lock().unwrap().get(path).cloned().unwrap_or_default());
            }
            HostFolders.read(path)
        }
        fn write(&self, path: &Path, text: &str) -> std::io::Result<()> {
            if self.is_absent(path) {
                self.absent.lock().unwrap().insert(path.into(), text.trim_start_matches('+').into());
                return Ok(());
            }
            HostFolders.write(path, text)
        }
        fn make(&self, path: &Path) -> std::io::Result<bool> {
            HostFolders.make(path)
        }
        fn remove(&self, path: &Path) -> std::io::Result<bool> {
            HostFolders.remove(path)
        }
    }

    /// Ends the process and the groups with the test.
    struct Guard(std::process::Child, PathBuf);

    impl Drop for Guard {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
            for folder in ["a/vcpu", "a", ""] {
                let _ = std::fs::remove_dir(self.1.join(folder));
            }
        }
    }

    fn tids(pid: u32) -> Vec<u32> {
        let entries = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    #[test]
    fn the_kernel_itself_takes_the_groups_and_the_threads() {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        });
        let Some(root) = root else { return println!("skipped: no cgroup v2 is mounted here") };
        let name = format!("backstay-test-{}", std::process::id());
        if std::fs::create_dir(root.join(&name)).is_err() {
            return println!("skipped: control groups can be made by root only");
        }
        // Any process with several threads.
        let args = ["-machine", "none", "-display", "none", "-S", "-nodefaults"];
        let child = std::process::Command::new("qemu-system-x86_64").args(args).spawn().unwrap();
        let pid = child.id();
        let mut guard = Guard(child, root.join(&name));
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while tids(pid).len() < 2 {
            assert!(std::time::Instant::now() < limit, "QEMU has one thread only");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let threads = tids(pid);
        let chosen = threads.iter().copied().find(|tid| *tid != pid).unwrap();
        let controllers = HostFolders.read(&root.join("cgroup.controllers")).unwrap();
        let real =
            Real { has_cpu: controllers.split_whitespace().any(|c| c == "cpu"), absent: Default::default() };
        println!(
            "the cpu controller is {}",
            if real.has_cpu { "real" } else { "not there: its files are kept in memory" }
        );
        let driver = Files::new(Arc::new(real), &root, &name, "a");
        let who = Threads { qemu: pid, vcpus: [chosen].into() };
        for weight in [100, 300] {
            driver.apply(&who, &share(weight, None)).unwrap();
        }
        let place = |tid: u32| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/cgroup")).unwrap();
            text.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
        };
        assert_eq!(place(chosen), format!("/{name}/a/vcpu"));
        assert_eq!(place(pid), format!("/{name}/a"));
        let busy = driver.remove().unwrap_err();
        assert!(
            matches!(&busy, ControlError::File { source, .. } if source.raw_os_error() == Some(16)),
            "{busy:?}"
        );
        guard.0.kill().unwrap();
        guard.0.wait().unwrap();
        driver.remove().unwrap();
        assert!(!root.join(&name).join("a").exists());
    }
}

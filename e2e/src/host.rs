//! One daemon with folders of its own, and everything that runs below it.

use crate::images::backstay;
use crate::{images, is_alive, kill, process, wait_for};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Said {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// How a host differs from the usual.
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    /// The user QEMU runs as; none: as the test.
    pub qemu_user: Option<String>,
    /// The state folder, where it must lie on a certain file system.
    pub state: Option<PathBuf>,
    /// More sections of the settings file.
    pub settings: String,
    /// The size of a file system of its own for the records of acknowledged writes (`size` of tmpfs); needs root.
    pub shadow: Option<String>,
    /// Another executable than the one under test.
    pub backstay: Option<PathBuf>,
}

/// A host. Dropping it ends every process that was started below it.
#[derive(Debug)]
pub struct Host {
    folder: TempDir,
    state: PathBuf,
    /// Sockets have short names, and acknowledged writes are remembered here: short, and in memory.
    run: TempDir,
    daemon: Option<Child>,
    backstay: PathBuf,
    shadow: Option<String>,
}

impl Default for Host {
    fn default() -> Self {
        Self::start()
    }
}

impl Host {
    /// Starts a daemon and waits until it listens.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start() -> Self {
        Self::with(&HostOptions::default())
    }

    /// As [`Host::start`], with differences.
    ///
    /// # Panics
    /// When the daemon does not start.
    #[must_use]
    pub fn with(options: &HostOptions) -> Self {
        let folder = tempfile::Builder::new().prefix("bs-e2e-").tempdir().expect("a folder");
        let run = tempfile::Builder::new().prefix("bs-").tempdir_in("/dev/shm").expect("a folder in memory");
        let state = options.state.clone().unwrap_or_else(|| folder.path().join("state"));
        let user =
            options.qemu_user.as_ref().map(|user| format!("[qemu]\nuser = {user:?}\n")).unwrap_or_default();
        let settings =
            format!("state_dir = {state:?}\nrun_dir = {:?}\n{user}{}", run.path(), options.settings);
        fs::write(folder.path().join("backstay.toml"), settings).expect("settings");
        if options.qemu_user.is_some() {
            // QEMU has to reach its sockets as somebody else
            open_to_all(run.path());
        }
        let backstay = options.backstay.clone().unwrap_or_else(backstay);
        let mut host = Self { folder, state, run, daemon: None, backstay, shadow: options.shadow.clone() };
        host.start_daemon();
        host
    }

    /// A folder for the test's own files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The daemon's state folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.path().join("backstay.sock")
    }

    /// Starts the daemon (again) and waits until it listens.
    ///
    /// # Panics
    /// When it ends at once, or never listens.
    pub fn start_daemon(&mut self) {
        let log = OpenOptions::new().create(true).append(true).open(self.log()).expect("the log");
        let child = self
            .daemon_command()
            .arg("daemon")
            .arg("--config")
            .arg(self.folder.path().join("backstay.toml"))
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("the daemon");
        let daemon = self.daemon.insert(child);
        let socket = self.run.path().join("backstay.sock");
        let log = self.folder.path().join("daemon.log");
        wait_for("the daemon to listen", || {
            if let Ok(Some(status)) = daemon.try_wait() {
                panic!("the daemon ended ({status}):\n{}", fs::read_to_string(&log).unwrap_or_default());
            }
            UnixStream::connect(&socket).ok()
        });
    }

    fn daemon_command(&self) -> Command {
        let Some(size) = &self.shadow else { return Command::new(&self.backstay) };
        let mount = "mkdir -p /run/backstay/shadow && mount -t tmpfs -o size=$0 tmpfs /run/backstay/shadow && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", mount, size]).arg(&self.backstay);
        command
    }

    /// The records of acknowledged writes as the daemon and its workers see them.
    ///
    /// # Panics
    /// When no daemon runs.
    #[must_use]
    pub fn shadow(&self) -> PathBuf {
        let daemon = self.daemon.as_ref().expect("a running daemon").id();
        PathBuf::from(format!("/proc/{daemon}/root/run/backstay/shadow"))
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("daemon.log")
    }

    /// `kill -9` of the daemon.
    ///
    /// # Panics
    /// When none runs.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().expect("a running daemon");
        daemon.kill().expect("killing the daemon");
        daemon.wait().expect("the daemon's end");
    }

    /// Ends the daemon as a package does, and installs the executable under test for the next one.
    ///
    /// # Panics
    /// When none runs, or it does not end.
    pub fn upgrade(&mut self) {
        let mut daemon = self.daemon.take().expect("a running daemon");
        let pid = i32::try_from(daemon.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a number");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .expect("telling the daemon to stop");
        daemon.wait().expect("the daemon's end");
        self.backstay = backstay();
        self.start_daemon();
    }

    /// The power goes: every process ends at once, and what is in memory is gone. What the file systems have is kept.
    ///
    /// # Panics
    /// When no daemon runs.
    pub fn power_cut(&mut self) {
        self.kill_daemon();
        let left = process::using(self.run.path());
        left.iter().for_each(|pid| kill(*pid));
        wait_for("every process to end", || left.iter().all(|pid| !is_alive(*pid)).then_some(()));
        for entry in fs::read_dir(self.run.path()).into_iter().flatten().flatten() {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }

    /// A power cut, and the daemon's start after it.
    ///
    /// # Panics
    /// As [`Host::power_cut`] and [`Host::start_daemon`].
    pub fn reboot(&mut self) {
        self.power_cut();
        self.start_daemon();
    }

    /// Gives up this host but keeps its files, for another host to find.
    #[must_use]
    pub fn into_files(mut self) -> TempDir {
        let empty = tempfile::tempdir().expect("a folder");
        std::mem::replace(&mut self.folder, empty)
    }

    /// A command, ready to be started.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.backstay);
        command
            .args(args)
            .env("BACKSTAY_SOCKET", self.run.path().join("backstay.sock"))
            .env_remove("BACKSTAY_RUN_DIR")
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Said {
        let Output { status, stdout, stderr } = self.command(args).output().expect("the command line");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
    }

    /// Runs a command that has to succeed; returns its output.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let said = self.run(args);
        assert_eq!(said.code, 0, "backstay {} failed: {}", args.join(" "), said.err);
        said.out
    }

    /// Runs a command that has to succeed with `-o json`.
    ///
    /// # Panics
    /// When it fails or prints no JSON.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let out = self.ok(&[&["-o", "json"], args].concat());
        serde_json::from_str(&out)
            .unwrap_or_else(|error| panic!("backstay {}: {error} in {out}", args.join(" ")))
    }

    /// Runs a command that has to fail with `code`; returns its message.
    ///
    /// # Panics
    /// When it succeeds, or fails otherwise.
    #[track_caller]
    pub fn refused(&self, code: i32, args: &[&str]) -> String {
        let said = self.run(args);
        let shown = args.join(" ");
        assert_eq!(
            said.code, code,
            "backstay {shown}: unexpected exit code; out: {} err: {}",
            said.out, said.err
        );
        assert!(!said.err.contains("panicked"), "backstay {shown} panicked: {}", said.err);
        said.err
    }

    /// `vm show`.
    ///
    /// # Panics
    /// When there is no such machine.
    #[track_caller]
    pub fn vm(&self, name: &str) -> Value {
        self.json(&["vm", "show", name])
    }

    /// What the machine does: `running`, `off` …
    ///
    /// # Panics
    /// When there is no such machine.
    #[track_caller]
    pub fn state_of(&self, name: &str) -> String {
        self.vm(name)["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the machine is in `state`.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn wait_state(&self, name: &str, state: &str) {
        wait_for(&format!("{name} to be {state}"), || (self.state_of(name) == state).then_some(()));
    }

    /// A number of `vm show`'s `run` part: `worker_pid` or `qemu_pid`.
    ///
    /// # Panics
    /// When the machine does not run.
    #[track_caller]
    pub fn pid(&self, name: &str, field: &str) -> u64 {
        let vm = self.vm(name);
        vm["run"][field].as_u64().unwrap_or_else(|| panic!("{name} has no {field}: {vm}"))
    }

    /// The socket of the machine's serial console.
    ///
    /// # Panics
    /// When the machine does not run.
    #[track_caller]
    pub fn console(&self, name: &str) -> PathBuf {
        let vm = self.vm(name);
        vm["run"]["console_socket"]
            .as_str()
            .map(PathBuf::from)
            .unwrap_or_else(|| panic!("{name} has no console: {vm}"))
    }

    /// A dynamic VHD made from a raw image by our converter.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn vhd_from(&self, image: &Path, name: &str) -> PathBuf {
        let to = self.folder.path().join(name);
        let (from, into) = (image.to_str().expect("UTF-8"), to.to_str().expect("UTF-8"));
        self.ok(&["disk", "convert", from, into, "--type", "dynamic", "--format", "vhd"]);
        to
    }

    /// A machine that boots the microguest from a VHD at `slot`; more arguments of `vm create` follow.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn create_micro(&self, name: &str, slot: &str, more: &[&str]) -> PathBuf {
        let disk = self.vhd_from(&images::microguest_image(), &format!("{name}.vhd"));
        let drive = format!("{slot}={}", disk.display());
        let args = ["vm", "create", name, "--memory", "16M", "--no-network", "--disk", &drive];
        self.ok(&[&args, more].concat());
        disk
    }

    /// Waits until no task is at work.
    pub fn wait_idle(&self) {
        wait_for("all tasks to end", || {
            let tasks = self.json(&["task", "list"]);
            let items = tasks.as_array().or_else(|| tasks["items"].as_array())?;
            let busy = |task: &Value| matches!(task["state"].as_str(), Some("running" | "cancelling"));
            (!items.iter().any(busy)).then_some(())
        });
    }

    /// Names of the machine's checkpoints, oldest first.
    ///
    /// # Panics
    /// When there is no such machine.
    #[track_caller]
    pub fn checkpoints(&self, name: &str) -> Vec<String> {
        let list = self.json(&["checkpoint", "list", name]);
        let items = list["items"].as_array().expect("items");
        items.iter().map(|c| c["name"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Logs of the daemon and of every worker and QEMU: what one wants to see when a test has failed.
    fn print_logs(&self) {
        let mut logs = vec![self.log()];
        for machine in fs::read_dir(self.run.path().join("vms")).into_iter().flatten().flatten() {
            for file in fs::read_dir(machine.path()).into_iter().flatten().flatten() {
                let path = file.path();
                if path.extension().is_some_and(|e| e == "log" || e == "jsonl") {
                    logs.push(path);
                }
            }
        }
        for log in logs {
            let text = File::open(&log).and_then(std::io::read_to_string).unwrap_or_default();
            let tail: Vec<_> = text.lines().rev().take(40).collect();
            println!("--- {}", log.display());
            tail.iter().rev().for_each(|line| println!("{line}"));
        }
    }
}

fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("permissions");
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        // The daemon first: it would start dead workers again.
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let left = process::using(self.run.path());
        left.iter().for_each(|pid| kill(*pid));
        // Folders cannot be removed from under a process that still writes.
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while left.iter().any(|pid| is_alive(*pid)) && std::time::Instant::now() < limit {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        remove_control_groups(self.run.path());
    }
}

/// Workers that were killed could not remove the control groups of their machines.
fn remove_control_groups(run: &Path) {
    for machine in fs::read_dir(run.join("vms")).into_iter().flatten().flatten() {
        for tree in ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup"] {
            let group = Path::new(tree).join("backstay-vms").join(machine.file_name());
            let _ = fs::remove_dir(group.join("vcpu"));
            let _ = fs::remove_dir(group);
        }
    }
}

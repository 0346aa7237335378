//! The Debian package: installed, started, upgraded while a guest runs, and purged, on this machine's system seen through an
//! overlay, so that nothing of the machine itself changes.

use backstay_e2e::{microguest_image, program};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// A view of this system whose changes are in memory, with processes of its own.
struct System {
    unshare: Child,
    first: u32,
    place: tempfile::TempDir,
}

/// `$1`: an empty folder. It becomes a file system in memory with the view in `m`.
const SETUP: &str = "set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs \"$1\"
mkdir \"$1/u\" \"$1/w\" \"$1/m\"
mount -t overlay overlay -o \"lowerdir=/,upperdir=$1/u,workdir=$1/w\" \"$1/m\"
mount -t proc proc \"$1/m/proc\"
mount --rbind /dev \"$1/m/dev\"
mount --rbind /sys \"$1/m/sys\"
mount -t tmpfs -o mode=755 tmpfs \"$1/m/run\"
echo ready
exec sleep infinity";

impl System {
    /// `None` (and a printed line) where that is not allowed.
    fn new() -> Option<Self> {
        let place = tempfile::Builder::new().prefix("bs-p").tempdir_in("/dev/shm").unwrap();
        let mut unshare = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", SETUP, "sh"])
            .arg(place.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let out = std::io::BufReader::new(unshare.stdout.take().unwrap());
        let _ = std::io::BufRead::read_line(&mut { out }, &mut said);
        if said != "ready\n" {
            let output = unshare.wait_with_output().unwrap();
            println!("skipped: no file system view of its own: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let first = fs::read_to_string(children).unwrap().trim().parse().unwrap();
        Some(Self { unshare, first, place })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.first.to_string(), "--mount", "--pid", "chroot"])
            .arg(self.place.path().join("m"))
            .args(args)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .current_dir("/")
            .stdin(Stdio::null());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("BACKSTAY_")) {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Standard output and error of a command that has to succeed.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> (String, String) {
        let Output { status, stdout, stderr } = self.run(args);
        let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        assert!(status.success(), "{args:?}: {status}\n{out}\n{err}");
        (out, err)
    }

    /// A file of the view, from here.
    fn path(&self, inside: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.first));
        root.join(self.place.path().strip_prefix("/").unwrap()).join("m").join(inside.trim_start_matches('/'))
    }

    fn vm(&self) -> serde_json::Value {
        serde_json::from_str(&self.ok(&["backstay", "vm", "show", "m", "-o", "json"]).0).unwrap()
    }

    /// Runs `backstay` with these words.
    #[track_caller]
    fn backstay(&self, words: &str) {
        self.ok(&["backstay"].into_iter().chain(words.split(' ')).collect::<Vec<_>>());
    }

    /// Makes and starts the machine `m` that boots the microguest.
    fn make_machine(&self) {
        self.ok(&["mkdir", "-p", "/srv/vms"]);
        self.ok(&["backstay", "disk", "convert", microguest_image().to_str().unwrap(), "/srv/vms/m.vhd"]);
        self.backstay("vm create m --memory 16M --no-network --disk ide:0:0=/srv/vms/m.vhd");
        self.backstay("vm start m");
        self.ok(&["backstay", "vm", "console", "m", "--expect", "MG READY", "--timeout", "60s"]);
    }

    /// The guest counts in its memory, and is there.
    #[track_caller]
    fn count(&self, there: &str) {
        self.backstay(&format!("vm console m --send c --expect c{there} --timeout 60s"));
    }

    /// The daemon as its unit starts it; ready when it has told so, and with two signs of life.
    fn daemon(&self) -> Child {
        let notify = self.path("/run/notify");
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let unit = fs::read_to_string(self.path("/usr/lib/systemd/system/backstay.service")).unwrap();
        let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let args: Vec<&str> = start.split(' ').collect();
        let log = fs::File::create(self.path("/var/log/backstay-test.log")).unwrap();
        let child = self
            .command(&args)
            .env("NOTIFY_SOCKET", "/run/notify")
            .env("WATCHDOG_USEC", "900000")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let (mut ready, mut alive, mut buffer) = (false, 0, [0; 512]);
        while !ready || alive < 2 {
            let length = socket.recv(&mut buffer).unwrap_or_else(|error| {
                panic!("{error}: {}", fs::read_to_string(self.path("/var/log/backstay-test.log")).unwrap())
            });
            let told = String::from_utf8_lossy(&buffer[..length]).into_owned();
            ready |= told.lines().any(|line| line == "READY=1");
            alive += usize::from(told.lines().any(|line| line == "WATCHDOG=1"));
        }
        child
    }

    /// Ends the daemon as systemd does: only its main process is told.
    fn stop(&self, mut daemon: Child) {
        let info = self.ok(&["backstay", "host", "show", "-o", "json"]).0;
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        self.ok(&["kill", "-TERM", &info["daemon_pid"].to_string()]);
        assert!(daemon.wait().unwrap().success());
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.path("/var/log/backstay-test.log");
            println!("--- daemon\n{}", fs::read_to_string(log).unwrap_or_default());
        }
        // The first process of the view takes all others with it.
        backstay_e2e::kill(u64::from(self.first));
        let _ = self.unshare.wait();
    }
}

/// The package of the executable under test; none where cargo-deb is not installed.
fn package() -> Option<PathBuf> {
    if !Command::new("cargo").args(["deb", "--version"]).output().is_ok_and(|o| o.status.success()) {
        println!("skipped: cargo-deb is not installed (`make deb` installs it)");
        return None;
    }
    let made = Command::new(program("xtask")).args(["package", "dev"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(PathBuf::from(String::from_utf8(made.stdout).unwrap().trim()))
}

fn deb(args: &[&str], package: &Path) -> String {
    let said = Command::new("dpkg-deb").args(args).arg(package).output().unwrap();
    assert!(said.status.success());
    String::from_utf8(said.stdout).unwrap()
}

fn check_content(package: &Path) {
    let list = deb(&["--contents"], package);
    for file in [
        "./usr/bin/backstay",
        "./etc/backstay/backstay.toml",
        "./usr/lib/systemd/system/backstay.service",
        "./usr/lib/systemd/system/backstay-guests.service",
        "./lib/systemd/system/backstay.slice",
        "./usr/lib/sysusers.d/backstay.conf",
        "./usr/lib/tmpfiles.d/backstay.conf",
        "./usr/lib/udev/rules.d/60-backstay.rules",
        "./usr/share/bash-completion/completions/backstay",
        "./usr/share/zsh/vendor-completions/_backstay",
        "./usr/share/fish/vendor_completions.d/backstay.fish",
        "./usr/share/man/man1/backstay.1.gz",
        "./usr/share/man/man1/backstay-vm-clone.1.gz",
        "./usr/share/man/man1/backstay-checkpoint-create.1.gz",
        "./usr/share/man/man5/backstay.toml.5.gz",
        "./usr/share/doc/backstay/copyright",
        "./usr/share/doc/backstay/changelog.Debian.gz",
    ] {
        assert!(list.lines().any(|line| line.ends_with(&format!(" {file}"))), "{file} is missing:\n{list}");
    }
    for line in list.lines() {
        assert!(line.contains(" 0/0 ") || line.contains(" root/root "), "everything is root's: {line}");
    }
    let scripts =
        Command::new("dpkg-deb").arg("--info").arg(package).args(["postinst", "prerm"]).output().unwrap();
    let scripts = String::from_utf8(scripts.stdout).unwrap();
    assert!(scripts.contains("backstay.service"), "{scripts}");
    assert!(
        !scripts.contains("backstay.slice"),
        "an upgrade that restarts the slice ends every machine: {scripts}"
    );
    let depends = deb(&["--field"], package);
    assert!(depends.contains("qemu-system-x86 (>= 1:9.0)"), "{depends}");
}

#[test]
fn the_package_is_installed_started_upgraded_and_purged() {
    let Some(package) = package() else { return };
    check_content(&package);
    let Some(system) = System::new() else { return };
    let package = package.to_str().unwrap();
    let install = ["dpkg", "--force-unsafe-io", "-i", package];
    system.ok(&install);
    system.ok(&["systemd-analyze", "verify", "--man=no", "/usr/lib/systemd/system/backstay.service"]);
    let user = system.ok(&["getent", "passwd", "backstay-vm"]).0;
    system.ok(&["bash", "-n", "/usr/share/bash-completion/completions/backstay"]);

    let daemon = system.daemon();
    system.make_machine();
    system.count("00000001");
    let before = system.vm();
    let qemu = before["run"]["qemu_pid"].to_string();
    let status = system.ok(&["cat", &format!("/proc/{qemu}/status")]).0;
    let shared = user.split(':').nth(2).unwrap();
    let runs_as = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    let ids: std::collections::BTreeSet<&str> = runs_as.split_whitespace().collect();
    assert!(ids.len() == 1 && !ids.contains("0") && !ids.contains(shared), "a user of its own: {runs_as}");

    // An upgrade: files are replaced, then the daemon is started again.
    system.ok(&install);
    system.stop(daemon);
    let daemon = system.daemon();
    let after = system.vm();
    assert_eq!(after["state"], "running");
    for process in ["qemu_pid", "worker_pid"] {
        assert_eq!(before["run"][process], after["run"][process], "{process}");
    }
    system.count("00000002");

    system.stop(daemon);
    let (_, said) = system.ok(&["dpkg", "--force-unsafe-io", "--purge", "backstay"]);
    assert!(said.contains("1 virtual machine(s) are on"), "{said}");
    assert!(said.contains("/var/lib/backstay are kept"), "{said}");
    for gone in
        ["/usr/bin/backstay", "/etc/backstay", "/var/lib/backstay/backstay.db", "/usr/share/doc/backstay"]
    {
        assert!(!system.path(gone).exists(), "{gone} is gone");
    }
    assert!(system.path("/srv/vms/m.vhd").is_file());
    let machine = before["config_file"].as_str().unwrap().to_owned();
    assert!(system.path(&machine).is_file(), "the machine is the administrator's");
    system.ok(&["kill", "-0", &qemu]);
    // Installed again, it is managed again.
    system.ok(&install);
    let daemon = system.daemon();
    assert_eq!(system.vm()["state"], "running");
    system.count("00000003");
    system.stop(daemon);
}

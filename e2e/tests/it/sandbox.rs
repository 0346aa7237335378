//! QEMU is shut in: a user of its own for each machine, a view of the host of its own, and nothing of a machine is open
//! to another user.

use backstay_e2e::{Host, Micro};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether this test can become somebody else and the daemon can shut QEMU in; `host show` says why not.
fn possible(host: &Host) -> bool {
    let root = fs::read_to_string("/proc/self/status").is_ok_and(|status| status.contains("\nUid:\t0\t0\t0"));
    let shown = host.json(&["host", "show"]);
    if root && shown["sandbox"] == true {
        return true;
    }
    println!("skipped: {}", shown["sandbox_reason"]);
    false
}

fn status_field(pid: u64, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim_start_matches(':').split_whitespace().next().unwrap_or_default().to_owned()
}

fn name_space(pid: &str, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

/// Everything below a folder.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            walk(&path, found);
        }
        found.push(path);
    }
}

/// Those of `paths` that the user may read or write, by the kernel's own word.
fn open_to(uid: &str, paths: &[PathBuf]) -> Vec<String> {
    let script = r#"for f; do { [ -r "$f" ] || [ -w "$f" ]; } && echo "$f"; done; exit 0"#;
    let output = Command::new("setpriv")
        .arg(format!("--reuid={uid}"))
        .arg(format!("--regid={uid}"))
        .args(["--clear-groups", "sh", "-c", script, "sh"])
        .args(paths)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn a_qemu_sees_its_own_machine_only_and_nobody_sees_a_machine() {
    let host = Host::start();
    if !possible(&host) {
        return;
    }
    for name in ["a", "b"] {
        host.create_micro(name, "scsi:0:0", &[]);
        host.ok(&["vm", "start", name]);
        let (mut guest, _) = Micro::booting(&host.console(name));
        guest.count();
        host.ok(&["checkpoint", "create", name, "c"]);
    }
    let (a, b) = (host.pid("a", "qemu_pid"), host.pid("b", "qemu_pid"));
    let run_of = |name: &str| host.console(name).parent().unwrap().to_path_buf();

    // Users of their own, with no way to become anybody else.
    let uids = [status_field(a, "Uid"), status_field(b, "Uid")];
    assert!(uids[0] != uids[1] && !uids.contains(&"0".to_owned()), "{uids:?}");
    for pid in [a, b] {
        for (field, value) in [
            ("CapEff", "0000000000000000"),
            ("CapBnd", "0000000000000000"),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
        ] {
            assert_eq!(status_field(pid, field), value, "{field}");
        }
        for kind in ["mnt", "ipc", "uts", "net"] {
            assert_ne!(name_space(&pid.to_string(), kind), name_space("self", kind), "{kind}");
        }
    }

    // What QEMU sees, looked at from outside: through its own root.
    let root = PathBuf::from(format!("/proc/{a}/root"));
    let seen: BTreeSet<String> =
        fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap());
    for hidden in ["home", "root", "proc", "sys", "var", "boot", "srv"] {
        assert!(!seen.contains(hidden), "{hidden} is seen: {seen:?}");
    }
    assert!(inside(&run_of("a")).join("qmp.sock").exists(), "its own sockets");
    assert!(!inside(&run_of("b")).exists() && !inside(host.state()).exists(), "neither neighbours nor disks");
    assert!(!inside(Path::new("/etc/shadow")).exists() && !inside(Path::new("/etc/passwd")).exists());
    let mounts = fs::read_to_string(format!("/proc/{a}/mounts")).unwrap();
    let writable: Vec<&str> = mounts.lines().filter(|line| line.contains(" rw,")).collect();
    let allowed = |line: &&str| line.contains(" /dev/") || line.contains(run_of("a").to_str().unwrap());
    assert!(writable.iter().all(allowed), "writable for QEMU: {writable:?}");

    // Another machine's user, and anybody else, can read, write or connect to nothing of a machine.
    for folder in [host.folder(), run_of("a").ancestors().nth(2).unwrap()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut paths = Vec::new();
    walk(host.state(), &mut paths);
    walk(run_of("a").ancestors().nth(1).unwrap(), &mut paths);
    let of_b = run_of("b");
    let without_b: Vec<PathBuf> = paths.iter().filter(|path| !path.starts_with(&of_b)).cloned().collect();
    assert!(
        paths.iter().any(|p| p.ends_with("nbd.sock"))
            && paths.iter().any(|p| p.extension().is_some_and(|e| e == "bin"))
    );
    assert_eq!(open_to("65534", &paths), Vec::<String>::new(), "open to nobody");
    assert_eq!(open_to(&uids[1], &without_b), Vec::<String>::new(), "open to another machine's QEMU");
    let api = run_of("a").ancestors().nth(2).unwrap().join("backstay.sock");
    assert_eq!(open_to("65534", &[api]), Vec::<String>::new());
}

/// A network card needs the host's network; everything else is as without.
#[test]
fn a_machine_with_a_network_card_keeps_the_hosts_network() {
    let host = Host::start();
    if !possible(&host) {
        return;
    }
    let disk = host.vhd_from(&backstay_e2e::microguest_image(), "n.vhd");
    host.ok(&["vm", "create", "n", "--memory", "16M", "--disk", &format!("scsi:0:0={}", disk.display())]);
    host.ok(&["vm", "start", "n"]);
    let (mut guest, _) = Micro::booting(&host.console("n"));
    guest.count();
    let qemu = host.pid("n", "qemu_pid").to_string();
    assert_eq!(name_space(&qemu, "net"), name_space("self", "net"));
    assert_ne!(name_space(&qemu, "mnt"), name_space("self", "mnt"));
    assert!(PathBuf::from(format!("/proc/{qemu}/root/etc/hosts")).exists(), "names can be looked up");
}

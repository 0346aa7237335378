//! Clones, linked clones and templates, as their guests see them.

use crate::{FIRST, SECOND};
use backstay_e2e::{Host, HostOptions, Micro, wait_for};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A machine that was on, wrote `byte` to sector 0x100, and is off.
fn used(host: &Host, name: &str, byte: u8) -> PathBuf {
    let disk = host.create_micro(name, "ide:0:0", &[]);
    write(host, name, byte);
    disk
}

fn write(host: &Host, name: &str, byte: u8) {
    let mut guest = boot(host, name);
    guest.write(FIRST, 0x100, byte).unwrap();
    host.ok(&["vm", "turn-off", name]);
}

fn boot(host: &Host, name: &str) -> Micro {
    host.ok(&["vm", "start", name]);
    Micro::booting(&host.console(name)).0
}

fn disk_of(host: &Host, name: &str) -> PathBuf {
    host.json(&["vm", "disks", name])[0]["path"].as_str().map(PathBuf::from).unwrap()
}

/// What the VHD says it is called itself.
fn unique_id(host: &Host, disk: &Path) -> Value {
    let info = host.json(&["disk", "info", disk.to_str().unwrap()]);
    let id = info["vhd"]["unique_id"].clone();
    assert!(id.is_string(), "{info}");
    id
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files_below(&entry.path()))
        } else {
            found.push(entry.path())
        }
    }
    found.sort();
    found
}

#[test]
fn a_full_clone_is_a_machine_of_its_own() {
    let host = Host::start();
    let disk = host.vhd_from(&backstay_e2e::microguest_image(), "web.vhd");
    let drive = format!("ide:0:0={}", disk.display());
    host.ok(&["vm", "create", "web", "--memory", "16M", "--cpu-weight", "300", "--disk", &drive]);
    write(&host, "web", 0x11);
    let elsewhere = host.folder().join("elsewhere");
    let plan = host.json(&["vm", "clone", "web", "copy", "--to", elsewhere.to_str().unwrap(), "--dry-run"]);
    assert_eq!(plan["steps"].as_array().map(Vec::len), Some(2), "{plan}");
    assert!(!elsewhere.exists(), "a plan makes nothing");
    host.ok(&["vm", "clone", "web", "copy", "--to", elsewhere.to_str().unwrap()]);

    let (web, copy) = (host.vm("web"), host.vm("copy"));
    assert_eq!(copy["cpu_weight"], 300);
    for field in ["id", "bios_guid", "config_file", "folder"] {
        assert_ne!(web[field], copy[field], "{field}");
    }
    for field in ["id", "mac"] {
        assert_ne!(web["nics"][0][field], copy["nics"][0][field], "{field}");
    }
    let made = disk_of(&host, "copy");
    assert!(made.starts_with(&elsewhere), "{}", made.display());
    assert_ne!(unique_id(&host, &disk), unique_id(&host, &made));
    let message = host.refused(5, &["vm", "clone", "web", "copy"]);
    assert!(message.contains("'copy' already"), "{message}");

    // Both at once, each on its own disk.
    let (mut one, mut two) = (boot(&host, "web"), boot(&host, "copy"));
    two.expect(FIRST, 0x100, 0x11);
    two.write(FIRST, 0x100, 0x22).unwrap();
    one.write(FIRST, 0x101, 0x33).unwrap();
    one.expect(FIRST, 0x100, 0x11);
    assert!(!two.read(FIRST, 0x101).uniform || two.read(FIRST, 0x101).first != 0x33);
    let message = host.refused(5, &["vm", "clone", "web", "third"]);
    assert!(message.contains("--checkpoint"), "{message}");
}

/// Nobody would keep a parent as it is for a child that is forgotten.
#[test]
fn a_linked_clone_is_not_forgotten_while_its_parent_is_known() {
    let host = Host::start();
    used(&host, "web", 0x11);
    host.ok(&["checkpoint", "create", "web", "c"]);
    let (thin, full) = (host.folder().join("thin"), host.folder().join("full"));
    let clone =
        ["vm", "clone", "web", "thin", "--checkpoint", "c", "--linked", "--to", thin.to_str().unwrap()];
    host.ok(&clone);
    host.ok(&["vm", "clone", "web", "full", "--checkpoint", "c", "--to", full.to_str().unwrap()]);
    let message = host.refused(5, &["vm", "unregister", "thin"]);
    assert!(
        message.contains("'thin'") && message.contains("'web'") && message.contains("full clone"),
        "{message}"
    );
    // So the file below it stays when its checkpoint goes.
    host.ok(&["checkpoint", "delete", "web", "c", "--yes"]);
    boot(&host, "thin").expect(FIRST, 0x100, 0x11);
    host.ok(&["vm", "unregister", "full"]);
}

#[test]
fn a_running_machine_is_cloned_from_its_checkpoint() {
    let host = Host::start();
    used(&host, "web", 0x11);
    let mut guest = boot(&host, "web");
    host.ok(&["checkpoint", "create", "web", "c"]);
    guest.write(FIRST, 0x100, 0x12).unwrap();
    host.ok(&["vm", "clone", "web", "full", "--checkpoint", "c"]);
    host.ok(&["vm", "clone", "web", "thin", "--checkpoint", "c", "--linked"]);
    guest.write(FIRST, 0x100, 0x13).unwrap();
    for name in ["full", "thin"] {
        let mut clone = boot(&host, name);
        clone.expect(FIRST, 0x100, 0x11);
        clone.write(FIRST, 0x100, 0x44).unwrap();
        assert_eq!(host.vm(name)["checkpoints"], 0);
    }
    guest.expect(FIRST, 0x100, 0x13);
    assert_eq!(host.json(&["vm", "disks", "full"])[0]["chain"].as_array().map(Vec::len), Some(1));

    host.ok(&["vm", "turn-off", "web"]);
    let message = host.refused(5, &["vm", "delete", "web", "--delete-disks", "--yes"]);
    assert!(message.contains("'thin'") && !message.contains("'full'"), "{message}");
    host.ok(&["checkpoint", "apply", "web", "c", "--without-memory", "--yes"]);
    let mut guest = boot(&host, "web");
    guest.expect(FIRST, 0x100, 0x11);
}

#[test]
fn a_template_is_cloned_and_never_started_or_changed() {
    let host = Host::start();
    let disk = used(&host, "golden", 0x11);
    let message = host.refused(5, &["vm", "clone", "golden", "early", "--linked"]);
    assert!(message.contains("backstay vm template golden"), "{message}");
    host.ok(&["vm", "template", "golden"]);
    assert_eq!(host.vm("golden")["template"], true);
    let before = fs::read(&disk).unwrap();
    assert_eq!(fs::metadata(&disk).unwrap().permissions().mode() & 0o222, 0, "nobody may write to it");

    for verb in [
        &["vm", "start", "golden"][..],
        &["vm", "set", "golden", "--cpus", "2"],
        &["checkpoint", "create", "golden", "c"],
    ] {
        let message = host.refused(5, verb);
        assert!(message.contains("template") && message.contains("vm clone golden"), "{message}");
    }
    let copy = host.folder().join("child.avhd");
    let file = disk.to_str().unwrap();
    let socket = host.folder().join("s");
    let serve = ["disk", "serve", file, "--socket", socket.to_str().unwrap()];
    let message = host.refused(5, &serve);
    assert!(message.contains("'golden'"), "{message}");
    // Also where no daemon answers, and as root, whom the kernel would let.
    let message = host.refused(4, &[&["--connect", "/nonexistent"][..], &serve].concat());
    assert!(message.contains("read-only") && message.contains("template"), "{message}");

    for name in ["one", "two"] {
        host.ok(&["vm", "clone", "golden", name, "--linked"]);
    }
    let (mut one, mut two) = (boot(&host, "one"), boot(&host, "two"));
    one.write(FIRST, 0x100, 0x21).unwrap();
    two.expect(FIRST, 0x100, 0x11);
    two.write(FIRST, 0x100, 0x22).unwrap();
    one.expect(FIRST, 0x100, 0x21);
    assert_ne!(host.vm("one")["bios_guid"], host.vm("two")["bios_guid"]);

    for refused in [&["vm", "template", "golden", "--off"][..], &["vm", "delete", "golden", "--yes"]] {
        let message = host.refused(5, refused);
        assert!(message.contains("'one'") && message.contains("'two'"), "{message}");
    }
    // Known from the folders, not from what this daemon remembers.
    let mut host = host;
    host.kill_daemon();
    host.start_daemon();
    host.wait_state("one", "running");
    host.refused(5, &["vm", "template", "golden", "--off"]);
    for name in ["one", "two"] {
        host.ok(&["vm", "turn-off", name]);
        host.ok(&["vm", "delete", name, "--delete-disks", "--yes"]);
    }
    assert!(!copy.exists() && fs::read(&disk).unwrap() == before, "the template is as it was");
    host.ok(&["vm", "template", "golden", "--off"]);
    let mut guest = boot(&host, "golden");
    guest.expect(FIRST, 0x100, 0x11);
    guest.write(FIRST, 0x100, 0x12).unwrap();
}

/// Without a template: somebody made a differencing disk of a machine's disk by hand.
#[test]
fn a_machine_whose_disk_became_a_parent_does_not_start() {
    let host = Host::start();
    let disk = used(&host, "base", 0x11);
    for name in ["kid-1", "kid-2"] {
        let child = host.folder().join(format!("{name}.vhd"));
        let child = child.to_str().unwrap();
        host.ok(&["disk", "create", child, "--parent", disk.to_str().unwrap()]);
        let drive = format!("ide:0:0={child}");
        let said = host.run(&["vm", "create", name, "--memory", "16M", "--no-network", "--disk", &drive]);
        // The machine that writes to the parent has to step aside first.
        assert!(said.code == 5 && said.err.contains("'base'"), "{said:?}");
    }
    host.ok(&["vm", "delete", "base", "--yes"]);
    for name in ["kid-1", "kid-2"] {
        let drive = format!("ide:0:0={}", host.folder().join(format!("{name}.vhd")).display());
        host.ok(&["vm", "create", name, "--memory", "16M", "--no-network", "--disk", &drive]);
    }
    let drive = format!("ide:0:0={}", disk.display());
    let message =
        host.refused(5, &["vm", "create", "again", "--memory", "16M", "--no-network", "--disk", &drive]);
    assert!(message.contains("kid-1"), "{message}");
    // A folder that is registered brings it back all the same; then it does not start.
    let mut guest = boot(&host, "kid-1");
    guest.expect(FIRST, 0x100, 0x11);
}

#[test]
fn a_clone_that_fails_or_is_cancelled_leaves_nothing() {
    let Some(small) = crate::full_disk::Small::mount("8m") else { return };
    let host = Host::start();
    used(&host, "web", 0x11);
    let (raw, data) = (host.folder().join("data.img"), host.folder().join("data.vhd"));
    let noise: Vec<u8> = (0..48u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(&raw, noise).unwrap();
    host.ok(&["disk", "convert", raw.to_str().unwrap(), data.to_str().unwrap(), "--type", "dynamic"]);
    host.ok(&["vm", "set", "web", "--disk", &format!("ide:0:1={}", data.display())]);

    // The first disk fits, the second one does not.
    let folder = small.path().join("vms");
    let message = host.refused(1, &["vm", "clone", "web", "copy", "--to", folder.to_str().unwrap()]);
    assert!(message.contains("free"), "{message}");
    assert_eq!(fs::read_dir(small.path()).unwrap().count(), 0, "{:?}", files_below(small.path()));
    host.refused(3, &["vm", "show", "copy"]);

    let before = files_below(host.state());
    let task = host.json(&["vm", "clone", "web", "copy", "--no-wait"]);
    let task = task["id"].as_str().unwrap();
    let said = host.run(&["task", "cancel", task]);
    let state = wait_for("the task to end", || {
        let state = host.json(&["task", "show", task])["state"].as_str().map(str::to_owned);
        state.filter(|state| !matches!(state.as_str(), "running" | "cancelling"))
    });
    assert_eq!((said.code, state.as_str()), (0, "cancelled"), "{}", said.err);
    let after = files_below(host.state());
    assert_eq!(without_database(&before), without_database(&after));
    host.ok(&["vm", "clone", "web", "copy"]);
    let mut guest = boot(&host, "copy");
    guest.expect(FIRST, 0x100, 0x11);
    assert_eq!(guest.read(SECOND, 0).first, 0);
}

fn without_database(files: &[PathBuf]) -> Vec<&PathBuf> {
    let is_database =
        |path: &Path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("backstay.db"));
    files.iter().filter(|path| !is_database(path)).collect()
}

/// The daemon dies while it copies: the next one removes what is there, and says what became of the task.
#[test]
fn a_daemon_that_dies_while_it_clones_leaves_nothing() {
    let mut host = Host::with(&HostOptions::default());
    used(&host, "web", 0x11);
    let (raw, data) = (host.folder().join("data.img"), host.folder().join("data.vhd"));
    let noise: Vec<u8> = (0..64u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(&raw, noise).unwrap();
    host.ok(&["disk", "convert", raw.to_str().unwrap(), data.to_str().unwrap(), "--type", "dynamic"]);
    host.ok(&["vm", "set", "web", "--disk", &format!("ide:0:1={}", data.display())]);
    let task = host.json(&["vm", "clone", "web", "copy", "--no-wait"]);
    let task = task["id"].as_str().unwrap().to_owned();
    let disks = host.state().join("Virtual Hard Disks");
    wait_for("the first disk to be there", || disks.join("copy.vhd").is_file().then_some(()));
    host.kill_daemon();
    host.start_daemon();
    let state = host.json(&["task", "show", &task])["state"].as_str().map(str::to_owned);
    assert_eq!(state.as_deref(), Some("failed"));
    host.refused(3, &["vm", "show", "copy"]);
    host.ok(&["vm", "clone", "web", "copy"]);
    let names: Vec<_> = files_below(&disks).iter().map(|f| f.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["copy-1.vhd", "copy.vhd"], "nothing of the first attempt is there any more");
}

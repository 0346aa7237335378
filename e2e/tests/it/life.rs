//! A machine's life by the command line.

use crate::FIRST;
use backstay_e2e::{Host, Micro, is_alive, wait_for};

#[test]
fn a_machine_is_made_used_and_deleted() {
    let host = Host::start();
    let disk = host.create_micro("web", "ide:0:0", &["--notes", "first"]);
    assert_eq!(host.state_of("web"), "off");
    host.ok(&["vm", "start", "web"]);
    let (mut guest, _) = Micro::booting(&host.console("web"));
    let (worker, qemu) = (host.pid("web", "worker_pid"), host.pid("web", "qemu_pid"));

    host.ok(&["vm", "pause", "web"]);
    assert_eq!(host.state_of("web"), "paused");
    host.ok(&["vm", "resume", "web"]);
    assert_eq!(guest.count(), 1);

    host.ok(&["vm", "rename", "web", "shop"]);
    assert_eq!(host.state_of("shop"), "running");

    // The reset button: the counter was in memory.
    host.ok(&["vm", "reset", "shop"]);
    guest.wait_ready();
    assert_eq!(guest.count(), 1);

    let message = host.refused(5, &["vm", "delete", "shop", "--yes"]);
    assert!(message.contains("shop") && message.contains("running"), "{message}");
    host.ok(&["vm", "turn-off", "shop"]);
    assert_eq!(host.state_of("shop"), "off");
    wait_for("worker and QEMU to end", || (!is_alive(worker) && !is_alive(qemu)).then_some(()));

    host.ok(&["vm", "delete", "shop", "--yes"]);
    host.refused(3, &["vm", "show", "shop"]);
    assert!(disk.is_file(), "deleting a machine keeps its disks");
}

#[test]
fn a_guest_that_powers_off_is_off_and_is_not_restarted() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &["--recovery", "restart"]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x10, 0x77).unwrap();
    let _ = guest.power_off();
    host.wait_state("m", "off");
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.expect(FIRST, 0x10, 0x77);
}

#[test]
fn a_dry_run_changes_nothing() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    let plan = host.json(&["vm", "start", "m", "--dry-run"]);
    assert!(plan["steps"].as_array().is_some_and(|steps| !steps.is_empty()), "{plan}");
    assert_eq!(host.state_of("m"), "off");
    host.json(&["checkpoint", "create", "m", "c", "--dry-run"]);
    assert!(host.checkpoints("m").is_empty());
    host.json(&["vm", "delete", "m", "--dry-run"]);
    assert_eq!(host.state_of("m"), "off");
}

#[test]
fn a_registered_folder_brings_its_machine_back() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x20, 0x42).unwrap();
    host.ok(&["checkpoint", "create", "m", "kept"]);
    guest.write(FIRST, 0x20, 0x43).unwrap();
    host.ok(&["vm", "turn-off", "m"]);
    let id = host.vm("m")["id"].clone();
    let folder = host.vm("m")["folder"].as_str().unwrap().to_owned();

    // A daemon that has never seen the machine, given only the folder.
    let other = Host::start();
    let _files = host.into_files();
    other.ok(&["vm", "register", &folder]);
    assert_eq!(other.vm("m")["id"], id);
    assert_eq!(other.checkpoints("m"), ["kept"]);
    other.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&other.console("m"));
    guest.expect(FIRST, 0x20, 0x43);
    other.ok(&["checkpoint", "revert", "m", "--yes"]);
    let mut guest = Micro::attach(&other.console("m")).unwrap();
    guest.expect(FIRST, 0x20, 0x42);
}

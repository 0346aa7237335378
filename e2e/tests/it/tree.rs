//! The tree of checkpoints: branches come and go while the guest runs, and every byte stays where it belongs.

use crate::{FIRST, SECOND};
use backstay_e2e::{Host, Micro, kill, microguest_image, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn attach(host: &Host) -> Micro {
    Micro::attach(&host.console("m")).unwrap()
}

fn booted(host: &Host) -> Micro {
    host.ok(&["vm", "start", "m"]);
    Micro::booting(&host.console("m")).0
}

fn create(host: &Host, name: &str) {
    host.ok(&["checkpoint", "create", "m", name]);
}

fn apply(host: &Host, name: &str) {
    host.ok(&["checkpoint", "apply", "m", name, "--no-checkpoint-first", "--yes"]);
}

fn delete(host: &Host, name: &str) {
    host.ok(&["checkpoint", "delete", "m", name, "--yes"]);
}

/// Differencing disks of the machine's checkpoints.
pub fn layers(host: &Host) -> BTreeSet<PathBuf> {
    let id = host.vm("m")["id"].as_str().unwrap().to_uppercase();
    let folder = host.state().join("Snapshots").join(id);
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn tops(host: &Host) -> Vec<PathBuf> {
    let disks = host.json(&["vm", "disks", "m"]);
    let items = disks.as_array().or_else(|| disks["items"].as_array()).unwrap();
    items.iter().map(|disk| PathBuf::from(disk["path"].as_str().unwrap())).collect()
}

fn merge_pending(host: &Host) -> usize {
    host.json(&["checkpoint", "list", "m"])["merge_pending"].as_array().unwrap().len()
}

/// `a` ─ `b` ─ `c` ─ Now with two disks; then the middle, the root and the rest go while the guest runs.
#[test]
fn checkpoints_go_while_the_guest_runs_and_their_space_comes_back() {
    let host = Host::start();
    let first = host.create_micro("m", "scsi:0:0", &["--new-disk", "scsi:0:1=64M"]);
    let mut guest = booted(&host);
    for (name, byte) in [("a", 0x0A), ("b", 0x0B), ("c", 0x0C)] {
        for drive in [FIRST, SECOND] {
            guest.write(drive, 0x100, byte).unwrap();
            guest.write(drive, 0x100 + u32::from(byte), byte).unwrap();
        }
        create(&host, name);
    }
    guest.write(FIRST, 0x100, 0x0F).unwrap();
    assert_eq!(layers(&host).len(), 6);
    let shown = host.ok(&["checkpoint", "delete", "m", "b", "--dry-run"]);
    assert!(shown.contains("merge") && shown.contains("into"), "{shown}");
    assert_eq!(layers(&host).len(), 6, "a dry run does nothing");
    let all = |guest: &mut Micro, top: u8, there: [u8; 3]| {
        guest.expect(FIRST, 0x100, top);
        for (lba, byte) in [0x10A, 0x10B, 0x10C].into_iter().zip(there) {
            guest.expect(FIRST, lba, byte);
            guest.expect(SECOND, lba, byte);
        }
    };

    delete(&host, "b");
    assert_eq!((layers(&host).len(), merge_pending(&host)), (4, 0));
    all(&mut guest, 0x0F, [0x0A, 0x0B, 0x0C]);
    guest.write(SECOND, 0x200, 0x22).unwrap();

    // The others can still be gone to: one with what was in the deleted one, one without.
    apply(&host, "c");
    all(&mut attach(&host), 0x0C, [0x0A, 0x0B, 0x0C]);
    attach(&host).expect(SECOND, 0x200, 0);
    apply(&host, "a");
    all(&mut attach(&host), 0x0A, [0x0A, 0, 0]);
    apply(&host, "c");
    let mut guest = attach(&host);
    guest.write(FIRST, 0x100, 0xEE).unwrap();

    host.ok(&["checkpoint", "delete", "m", "a", "--subtree", "--yes"]);
    assert_eq!(host.checkpoints("m"), Vec::<String>::new());
    assert_eq!(layers(&host), BTreeSet::new());
    assert_eq!(tops(&host)[0], first, "the machine writes to its first disk again");
    all(&mut guest, 0xEE, [0x0A, 0x0B, 0x0C]);
    host.ok(&["vm", "turn-off", "m"]);
    all(&mut booted(&host), 0xEE, [0x0A, 0x0B, 0x0C]);
    host.ok(&["disk", "check", first.to_str().unwrap()]);
}

/// A merge that takes long: everything else on the machine goes on, and whatever dies, it goes on too.
#[test]
fn a_merge_gives_way_and_survives_worker_daemon_and_power_button() {
    let mut host = Host::start();
    host.create_micro("m", "scsi:0:0", &[]);
    let mut guest = booted(&host);
    create(&host, "one");
    for lba in 0..150 {
        guest.write(FIRST, 0x100 + 8 * lba, 0x11).unwrap();
    }
    let slow = ["checkpoint", "delete", "m", "one", "--rate", "1K", "--yes", "--no-wait"];
    host.ok(&slow);
    let merging = |host: &Host| {
        wait_for("the merge to go on", || {
            let task = host.json(&["checkpoint", "list", "m"])["merge_task"].as_str()?.to_owned();
            let task = host.json(&["task", "show", &task]);
            (task["state"] == "running" && task["message"].as_str()?.contains("blocks")).then_some(())
        });
    };
    merging(&host);
    assert_eq!(host.checkpoints("m"), Vec::<String>::new(), "the checkpoint is gone at once");
    let warned = host.run(&["checkpoint", "list", "m"]);
    assert!(warned.err.contains("merge pending: 1 file"), "{warned:?}");

    // Another checkpoint, a pause and writes meanwhile.
    guest.write(FIRST, 0x100, 0x22).unwrap();
    create(&host, "two");
    guest.write(FIRST, 0x108, 0x33).unwrap();
    host.ok(&["vm", "pause", "m"]);
    host.ok(&["vm", "resume", "m"]);

    let worker = host.pid("m", "worker_pid");
    kill(worker);
    wait_for("a new worker", || {
        let vm = host.vm("m");
        (vm["run"]["worker_pid"].as_u64()? != worker && vm["state"] == "running").then_some(())
    });
    merging(&host);
    attach(&host).expect(FIRST, 0x108, 0x33);
    host.kill_daemon();
    host.start_daemon();
    assert_eq!(merge_pending(&host), 1, "it is written down what is to be merged");
    wait_for("the merge to be taken up", || {
        let list = host.json(&["checkpoint", "list", "m"]);
        (list["merge_task"].is_string() || list["merge_pending"].as_array()?.is_empty()).then_some(())
    });
    host.ok(&["vm", "turn-off", "m"]);
    let mut guest = booted(&host);
    wait_for("the merge to end", || (merge_pending(&host) == 0).then_some(()));
    guest.expect(FIRST, 0x100, 0x22);
    guest.expect(FIRST, 0x108, 0x33);
    for lba in 2..150 {
        guest.expect(FIRST, 0x100 + 8 * lba, 0x11);
    }
    assert_eq!(layers(&host).len(), 1);
    apply(&host, "two");
    let mut guest = attach(&host);
    guest.expect(FIRST, 0x100, 0x22);
    guest.expect(FIRST, 0x108, 0x11);
}

#[test]
fn a_merge_that_is_cancelled_waits_until_it_is_wanted_again() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    let mut guest = booted(&host);
    create(&host, "one");
    for lba in 0..60 {
        guest.write(FIRST, 0x100 + 8 * lba, 0x11).unwrap();
    }
    host.ok(&["checkpoint", "delete", "m", "one", "--rate", "1K", "--yes", "--no-wait"]);
    let task = wait_for("the merge", || {
        host.json(&["checkpoint", "list", "m"])["merge_task"].as_str().map(str::to_owned)
    });
    host.ok(&["task", "cancel", &task]);
    wait_for("its end", || (host.json(&["task", "show", &task])["state"] == "cancelled").then_some(()));
    assert_eq!(merge_pending(&host), 1);
    guest.expect(FIRST, 0x108, 0x11);
    // A checkpoint does not begin it again; the command does, and the speed can be changed on the way.
    create(&host, "two");
    assert_eq!(merge_pending(&host), 1);
    host.ok(&["checkpoint", "merge", "m", "--rate", "1K", "--no-wait"]);
    host.ok(&["checkpoint", "merge", "m"]);
    assert_eq!((merge_pending(&host), layers(&host).len()), (0, 1));
    guest.expect(FIRST, 0x108, 0x11);
    let refused = host.refused(5, &["checkpoint", "merge", "m"]);
    assert!(refused.contains("nothing to merge"), "{refused}");
}

/// The second disk is on another file system: one instant for both, and its layers lie with the others.
#[test]
fn disks_on_two_file_systems_switch_at_one_instant() {
    let other = tempfile::Builder::new().prefix("bs-other-").tempdir_in("/dev/shm").unwrap();
    let host = Host::start();
    let data = other.path().join("data.vhd");
    host.ok(&["disk", "create", data.to_str().unwrap(), "--size", "64M"]);
    let slot = format!("scsi:0:1={}", data.display());
    let boot = host.create_micro("m", "scsi:0:0", &["--disk", &slot]);
    let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&fs::metadata(path).unwrap());
    if device(&data) == device(&boot) {
        println!("skipped: the disks' folders are on one file system here");
        return;
    }
    let mut guest = booted(&host);
    let both = |guest: &mut Micro, byte: u8| {
        guest.write(FIRST, 0x100, byte).unwrap();
        guest.write(SECOND, 0x100, byte).unwrap();
    };
    both(&mut guest, 1);
    create(&host, "one");
    both(&mut guest, 2);
    create(&host, "two");
    both(&mut guest, 3);
    assert_eq!(layers(&host).len(), 4, "all of them are where Hyper-V has them");
    apply(&host, "one");
    let mut guest = attach(&host);
    guest.expect(FIRST, 0x100, 1);
    guest.expect(SECOND, 0x100, 1);
    both(&mut guest, 4);
    delete(&host, "two");
    delete(&host, "one");
    assert_eq!(layers(&host), BTreeSet::new());
    assert_eq!(tops(&host), [boot, data.clone()], "merged across file systems");
    guest.expect(FIRST, 0x100, 4);
    guest.expect(SECOND, 0x100, 4);
    host.ok(&["vm", "turn-off", "m"]);
    host.ok(&["disk", "check", data.to_str().unwrap()]);
}

#[test]
fn hardware_comes_back_as_it_was_and_off_stays_off() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    create(&host, "small");
    host.ok(&["vm", "set", "m", "--memory", "32M", "--cpus", "2"]);
    let mut guest = booted(&host);
    guest.write(FIRST, 0x100, 7).unwrap();
    create(&host, "large");
    apply(&host, "small");
    let vm = host.vm("m");
    assert_eq!((&vm["state"], &vm["memory_mib"], &vm["cpus"]), (&"off".into(), &16.into(), &1.into()));
    apply(&host, "large");
    let vm = host.vm("m");
    assert_eq!((&vm["state"], &vm["memory_mib"], &vm["cpus"]), (&"running".into(), &32.into(), &2.into()));
    attach(&host).expect(FIRST, 0x100, 7);
}

/// One checkpoint as a machine of its own, on another host, with and without its memory.
#[test]
fn an_exported_checkpoint_is_a_machine_elsewhere() {
    let host = Host::start();
    host.create_micro("m", "scsi:0:0", &["--new-disk", "scsi:0:1=64M"]);
    let mut guest = booted(&host);
    guest.write(FIRST, 0x100, 1).unwrap();
    create(&host, "root");
    guest.write(FIRST, 0x108, 2).unwrap();
    guest.write(SECOND, 0x108, 3).unwrap();
    assert_eq!(guest.count(), 1);
    create(&host, "leaf");
    guest.write(FIRST, 0x100, 9).unwrap();
    let (whole, bare) = (host.folder().join("whole"), host.folder().join("bare"));
    host.ok(&["checkpoint", "export", "m", "leaf", whole.to_str().unwrap()]);
    host.ok(&["checkpoint", "export", "m", "leaf", bare.to_str().unwrap(), "--no-memory"]);
    let refused = host.refused(5, &["checkpoint", "export", "m", "leaf", whole.to_str().unwrap()]);
    assert!(refused.contains("not empty"), "{refused}");
    guest.expect(FIRST, 0x100, 9);
    for folder in [&whole, &bare] {
        let elsewhere = Host::start();
        elsewhere.ok(&["vm", "register", folder.to_str().unwrap()]);
        assert_eq!(elsewhere.vm("m")["id"], host.vm("m")["id"], "it is the same machine");
        elsewhere.ok(&["vm", "start", "m"]);
        let mut guest = if folder == &whole {
            let mut guest = attach(&elsewhere);
            assert_eq!(guest.count(), 2, "its memory goes on");
            guest
        } else {
            Micro::booting(&elsewhere.console("m")).0
        };
        for (drive, lba, byte) in [(FIRST, 0x100, 1), (FIRST, 0x108, 2), (SECOND, 0x108, 3)] {
            guest.expect(drive, lba, byte);
        }
        let disks = elsewhere.json(&["vm", "disks", "m"]);
        let items = disks.as_array().or_else(|| disks["items"].as_array()).unwrap();
        assert!(items.iter().all(|disk| disk["chain"].as_array().unwrap().len() == 1), "{disks}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_the_rule() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    create(&host, "one");
    let refused = host.refused(2, &["checkpoint", "delete", "m", "one"]);
    assert!(refused.contains("--yes"), "nothing is deleted unasked: {refused}");
    let refused = host.refused(3, &["checkpoint", "delete", "m", "never", "--yes"]);
    assert!(refused.contains("'never'"), "{refused}");
    let refused = host.refused(2, &["checkpoint", "rename", "m", "one", ""]);
    assert!(refused.contains("name"), "{refused}");
    create(&host, "one");
    let refused = host.refused(5, &["checkpoint", "delete", "m", "one", "--yes"]);
    assert!(refused.contains("'one' names several checkpoints"), "{refused}");
    // Without a terminal and without a word an apply keeps Now; a revert wants to be told.
    let ids: Vec<Value> = host.json(&["checkpoint", "list", "m"])["items"].as_array().unwrap().clone();
    host.ok(&["checkpoint", "rename", "m", ids[0]["id"].as_str().unwrap(), "zero"]);
    host.ok(&["checkpoint", "set", "m", "zero", "--notes", "ticket 4711"]);
    host.ok(&["checkpoint", "apply", "m", "zero"]);
    assert_eq!(host.checkpoints("m").len(), 3);
    let shown = host.json(&["checkpoint", "show", "m", "zero"]);
    assert_eq!(shown["notes"], "ticket 4711");
    host.refused(2, &["checkpoint", "revert", "m"]);
    let said = host.run(&["checkpoint", "delete", "m", "zero", "--yes"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains("checkpoint 'zero' is deleted"), "{said:?}");
}

/// The image is there before the daemon that needs it.
#[test]
fn the_limit_is_a_setting() {
    let image = microguest_image();
    assert!(image.exists());
    let mut host = Host::start();
    host.kill_daemon();
    let settings = host.folder().join("backstay.toml");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, format!("{text}\n[checkpoints]\nlimit = 1\n")).unwrap();
    host.start_daemon();
    host.create_micro("m", "ide:0:0", &[]);
    create(&host, "one");
    let refused = host.refused(5, &["checkpoint", "create", "m", "two"]);
    assert!(refused.contains("may have 1") && refused.contains("backstay.toml"), "{refused}");
}

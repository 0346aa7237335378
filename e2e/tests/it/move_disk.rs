//! Disks that move to another folder: under a guest that writes and verifies all through, cancelled, and with somebody killed.

use crate::{FIRST, SECOND};
use backstay_e2e::{Host, Load, Micro, Told, ask_load, kill, stop_load, wait_for};
use std::path::{Path, PathBuf};
use std::{fs, thread, time::Duration};

const LOAD: Load =
    Load { drive: SECOND, first: 0, slots: 1 << 12, sectors: 3, flush_after: 16, seed: 0x1357_9bdf };

fn machine(host: &Host) -> (Micro, PathBuf) {
    let disk = host.create_micro("m", "ide:0:0", &["--new-disk", "ide:0:1=16M"]);
    host.ok(&["vm", "start", "m"]);
    let (guest, _) = Micro::booting(&host.console("m"));
    (guest, disk)
}

fn path_of(host: &Host, slot: &str) -> PathBuf {
    let disks = host.json(&["vm", "disks", "m"]);
    let items = disks.as_array().or_else(|| disks["items"].as_array()).cloned().unwrap();
    items.iter().find(|disk| disk["slot"] == slot).unwrap()["path"].as_str().unwrap().into()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

#[test]
fn a_guest_writes_and_verifies_while_its_disk_moves_to_and_fro() {
    let host = Host::start();
    let (mut guest, _) = machine(&host);
    let first = path_of(&host, "ide:0:1");
    let folders = [host.folder().join("there"), first.parent().unwrap().to_path_buf()];
    guest.begin_load(&LOAD).unwrap();
    drop(guest);
    let console = host.console("m");
    let mut told = ask_load(&console, &Told::default());
    for round in 0..4 {
        let folder = &folders[round % 2];
        let before = path_of(&host, "ide:0:1");
        host.ok(&["vm", "move-disk", "m", "ide:0:1", folder.to_str().unwrap()]);
        let after = path_of(&host, "ide:0:1");
        assert_eq!(after.parent(), Some(folder.as_path()));
        assert!(!before.exists() && after.exists(), "{} {}", before.display(), after.display());
        told = wait_for("more writes", || {
            let now = ask_load(&console, &told);
            (now.writes > told.writes + 50).then_some(now)
        });
        assert_eq!(told.wrong, 0);
    }
    assert_eq!(names(&folders[0]), Vec::<String>::new());
    // Everything the guest wrote is there, read by the guest; and the file is sound.
    let (mut guest, told) = stop_load(&console, &told);
    let found = guest.verify_load(told.writes);
    assert!(found.slots > 0 && found.wrong == 0, "{found:?}");
    host.ok(&["vm", "turn-off", "m"]);
    let checked = host.run(&["disk", "check", first.to_str().unwrap()]);
    assert_eq!(checked.code, 0, "{}{}", checked.out, checked.err);

    // Off, and refused.
    host.ok(&["vm", "move-disk", "m", "ide:0:1", folders[0].to_str().unwrap()]);
    assert!(folders[0].join(first.file_name().unwrap()).exists() && !first.exists());
    let refusal = host.refused(5, &["vm", "move-disk", "m", "ide:0:1", folders[0].to_str().unwrap()]);
    assert!(refusal.contains("is there already"), "{refusal}");
    host.ok(&["checkpoint", "create", "m", "one"]);
    let refusal = host.refused(5, &["vm", "move-disk", "m", "ide:0:1", folders[1].to_str().unwrap()]);
    assert!(refusal.contains("has checkpoints"), "{refusal}");
    host.refused(3, &["vm", "move-disk", "m", "ide:1:1", folders[1].to_str().unwrap()]);
}

/// Whoever is killed, and whenever: one file is the disk, and it has everything. Where only a worker dies, the move goes on.
fn killed_in_the_middle(goes_on: bool, mut hit: impl FnMut(&mut Host)) {
    let mut host = Host::start();
    let (mut guest, disk) = machine(&host);
    let folders = [host.folder().join("there"), disk.parent().unwrap().to_path_buf()];
    for round in 0..6_u8 {
        guest.write(FIRST, 0x100 + u32::from(round), round + 1).unwrap();
        let there = path_of(&host, "ide:0:0").parent() == Some(folders[0].as_path());
        let folder = folders[usize::from(there)].clone();
        let args = ["vm", "move-disk", "m", "ide:0:0", folder.to_str().unwrap()];
        let mut moving = host.command(&args).spawn().unwrap();
        thread::sleep(Duration::from_millis(20 * u64::from(round)));
        hit(&mut host);
        let ended = moving.wait().unwrap();
        if goes_on {
            assert!(ended.success(), "round {round}");
            assert_eq!(path_of(&host, "ide:0:0").parent(), Some(folder.as_path()), "round {round}");
        }
        host.wait_state("m", "running");
        host.wait_idle();
        guest = Micro::attach(&host.console("m")).unwrap();
        (0..=round).for_each(|n| guest.expect(FIRST, 0x100 + u32::from(n), n + 1));
        // What is next settles what was left.
        host.ok(&["vm", "set", "m", "--notes", &format!("round {round}")]);
        let now = path_of(&host, "ide:0:0");
        assert_eq!(host.vm("m")["drives"][0]["path"].as_str(), now.to_str());
        let both = folders.iter().filter(|folder| folder.join("m.vhd").exists()).count();
        assert_eq!(both, 1, "round {round}: one file");
        let unfinished = |name: &String| name.starts_with(".backstay-");
        let left = folders.iter().flat_map(|folder| names(folder)).filter(unfinished).count();
        assert_eq!(left, 0, "round {round}: nothing is left of a copy");
    }
    host.ok(&["vm", "turn-off", "m"]);
    let file = path_of(&host, "ide:0:0");
    assert_eq!(host.run(&["disk", "check", file.to_str().unwrap()]).code, 0);
}

#[test]
fn a_worker_killed_while_a_disk_moves_leaves_one_disk() {
    killed_in_the_middle(true, |host| {
        let worker = host.pid("m", "worker_pid");
        kill(worker);
        wait_for("a new worker", || {
            let vm = host.vm("m");
            let new = vm["run"]["worker_pid"].as_u64().filter(|pid| *pid != worker)?;
            (vm["state"] == "running").then_some(new)
        });
    });
}

#[test]
fn a_daemon_killed_while_a_disk_moves_leaves_one_disk() {
    killed_in_the_middle(false, |host| {
        host.kill_daemon();
        host.start_daemon();
    });
}

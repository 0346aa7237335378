//! Saving a machine: memory goes to disk, the machine is off, and its guest goes on later in the middle of what it did.

use crate::FIRST;
use backstay_e2e::{Host, Micro, is_alive, kill, wait_for};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Memory and descriptor of the machine's saved state.
fn state_files(host: &Host, name: &str) -> (PathBuf, PathBuf) {
    let vm = host.vm(name);
    let id = vm["id"].as_str().unwrap().to_uppercase();
    let folder = Path::new(vm["folder"].as_str().unwrap()).join("Virtual Machines").join(&id);
    (folder.join(format!("{id}.bin")), folder.join(format!("{id}.vsv")))
}

/// The flag "saved state" in the footer of a VHD (byte 84), as any other program reads it.
fn flag(disk: &Path) -> u8 {
    let bytes = fs::read(disk).unwrap();
    bytes[bytes.len() - 512 + 84]
}

#[test]
fn a_saved_machine_goes_on_where_it_was() {
    let mut host = Host::start();
    let disk = host.create_micro("m", "ide:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    assert_eq!(guest.count(), 1);
    guest.write(FIRST, 0x100, 0x41).unwrap();
    let (worker, qemu) = (host.pid("m", "worker_pid"), host.pid("m", "qemu_pid"));
    host.ok(&["vm", "save", "m"]);
    assert_eq!(host.state_of("m"), "saved");
    wait_for("worker and QEMU to end", || (!is_alive(worker) && !is_alive(qemu)).then_some(()));
    let (memory, descriptor) = state_files(&host, "m");
    assert!(memory.is_file() && descriptor.is_file());
    assert_eq!(flag(&disk), 1);

    host.kill_daemon();
    host.start_daemon();
    assert_eq!(host.state_of("m"), "saved", "the folder says so");
    let message = host.refused(5, &["vm", "set", "m", "--memory", "32M"]);
    assert!(message.contains("'m' is saved") && message.contains("discard-saved-state"), "{message}");
    host.refused(5, &["vm", "set", "m", "--remove-drive", "ide:0:0"]);
    host.ok(&["vm", "set", "m", "--notes", "kept", "--cpu-weight", "200", "--host-start", "nothing"]);
    host.ok(&["vm", "rename", "m", "n"]);
    host.ok(&["vm", "rename", "n", "m"]);
    let message = host.refused(5, &["vm", "turn-off", "m"]);
    assert!(message.contains("saved") && message.contains("discard-saved-state"), "{message}");

    let serve = ["disk", "serve", disk.to_str().unwrap(), "--socket", "s"];
    let message = host.refused(5, &serve);
    assert!(message.contains("'m' is saved"), "{message}");

    host.ok(&["vm", "start", "m"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 2, "its memory");
    guest.expect(FIRST, 0x100, 0x41);
    wait_for("the spent memory to go", || (!memory.exists() && !descriptor.exists()).then_some(()));
    host.ok(&["vm", "turn-off", "m"]);
    assert_eq!((host.state_of("m").as_str(), flag(&disk)), ("off", 0));
    host.ok(&["disk", "check", disk.to_str().unwrap()]);
}

#[test]
fn a_paused_machine_comes_back_paused() {
    let host = Host::start();
    host.create_micro("m", "virtio:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    assert_eq!(guest.count(), 1);
    host.ok(&["vm", "pause", "m"]);
    host.ok(&["vm", "save", "m"]);
    host.ok(&["vm", "start", "m"]);
    assert_eq!(host.state_of("m"), "paused");
    // Its guest has not run, so nothing is lost by pulling the plug, and there is nothing to save again.
    let message = host.refused(5, &["vm", "save", "m"]);
    assert!(message.contains("still on disk"), "{message}");
    host.ok(&["vm", "turn-off", "m"]);
    assert_eq!(host.state_of("m"), "saved");
    host.ok(&["vm", "start", "m"]);
    let worker = host.pid("m", "worker_pid");
    kill(worker);
    wait_for("a new worker", || {
        let vm = host.vm("m");
        (vm["state"] == "paused" && vm["run"]["worker_pid"].as_u64().is_some_and(|pid| pid != worker))
            .then_some(())
    });
    host.ok(&["vm", "resume", "m"]);
    assert_eq!(Micro::attach(&host.console("m")).unwrap().count(), 2);
}

/// Every reason is told before anything is touched, and the state can be used when the reason is gone.
#[test]
fn a_state_that_does_not_fit_is_refused_with_the_reason() {
    let host = Host::start();
    let disk = host.create_micro("m", "scsi:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    assert_eq!(guest.count(), 1);
    host.ok(&["vm", "save", "m"]);
    let (memory, descriptor) = state_files(&host, "m");
    let good = fs::read_to_string(&descriptor).unwrap();
    let accelerator = if good.contains("\"tcg\"") { ("\"tcg\"", "\"kvm\"") } else { ("\"kvm\"", "\"tcg\"") };
    let json: serde_json::Value = serde_json::from_str(&good).unwrap();
    let model = json["hardware"]["cpu_model"].as_str().unwrap().to_owned();
    let machine = json["hardware"]["machine_type"].as_str().unwrap().to_owned();
    let version = json["qemu_version"].as_str().unwrap().to_owned();
    for (from, to, words) in [
        (format!("\"{version}\""), "\"99.0.0\"".to_owned(), "upgrade QEMU"),
        (format!("\"{model}\""), "\"other\"".to_owned(), "processor model"),
        (format!("\"{machine}\""), "\"pc-i440fx-2.0\"".to_owned(), "machine type"),
        (accelerator.0.to_owned(), accelerator.1.to_owned(), "accelerator"),
        ("\"memory_mib\": 16".to_owned(), "\"memory_mib\": 17".to_owned(), "17 MiB"),
        ("\"version\": 1".to_owned(), "\"version\": 9".to_owned(), "version 9"),
        ("backstay-saved-state".to_owned(), "something".to_owned(), "does not describe"),
    ] {
        assert!(good.contains(&from), "{from} in {good}");
        fs::write(&descriptor, good.replacen(&from, &to, 1)).unwrap();
        let message = host.refused(5, &["vm", "start", "m"]);
        assert!(message.contains(words) && message.contains("discard-saved-state"), "{words}: {message}");
        assert_eq!(host.state_of("m"), "saved");
    }
    fs::write(&descriptor, &good).unwrap();

    let whole = fs::read(&memory).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    for (bytes, words) in [(&damaged[..], "damaged"), (&whole[..whole.len() - 1], "cut short")] {
        fs::write(&memory, bytes).unwrap();
        let message = host.refused(5, &["vm", "start", "m"]);
        assert!(message.contains(words), "{words}: {message}");
    }
    fs::rename(&memory, memory.with_extension("aside")).unwrap();
    assert!(host.refused(5, &["vm", "start", "m"]).contains("missing"));
    fs::write(&memory, &whole).unwrap();
    host.ok(&["vm", "start", "m"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 2, "all reasons are gone");

    // Somebody else writes to the disk: its memory must never meet it again.
    host.ok(&["vm", "save", "m"]);
    let write = Command::new("qemu-io")
        .args(["-f", "vpc", "-c", "write -P 0x77 0x40000 512"])
        .arg(&disk)
        .output()
        .unwrap();
    assert!(write.status.success(), "{}", String::from_utf8_lossy(&write.stderr));
    let message = host.refused(5, &["vm", "start", "m"]);
    assert!(message.contains("was written to") && message.contains(disk.to_str().unwrap()), "{message}");

    let message = host.refused(2, &["vm", "discard-saved-state", "m"]);
    assert!(message.contains("--yes"), "{message}");
    host.ok(&["vm", "discard-saved-state", "m", "--yes"]);
    assert_eq!((host.state_of("m").as_str(), flag(&disk)), ("off", 0));
    let (memory, descriptor) = state_files(&host, "m");
    assert!(!memory.exists() && !descriptor.exists());
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    assert_eq!(guest.count(), 1, "it booted");
    guest.expect(FIRST, 0x200, 0x77);
    let history = host.ok(&["event", "list", "--vm", "m"]);
    assert!(history.contains("vm.saved-state-discarded"), "{history}");
}

/// The guest counts in memory and writes each count to its disk. A memory that is older than the disk would show a count
/// that the disk is ahead of.
struct Pair<'a> {
    host: &'a Host,
    booted: bool,
}

impl Pair<'_> {
    /// One more step; `console` is that of a guest that runs.
    fn step(&mut self) {
        let mut guest = Micro::attach(&self.host.console("m")).unwrap();
        let disk = guest.read(FIRST, 0x300).first;
        let count = guest.count();
        self.booted = count == 1;
        assert!(
            self.booted || count == u32::from(disk) + 1,
            "memory counts {count}, and the disk has {disk}"
        );
        guest.write(FIRST, 0x300, u8::try_from(count).unwrap()).unwrap();
    }

    /// Waits until the machine rests, and starts it if it is not on.
    fn settle(&mut self) -> String {
        wait_for("the machine to come to rest", || {
            let state = self.host.state_of("m");
            let idle = self.host.vm("m")["task"].is_null();
            (idle && matches!(state.as_str(), "running" | "saved" | "off" | "failed")).then_some(())
        });
        let state = self.host.state_of("m");
        let (memory, descriptor) = state_files(self.host, "m");
        if state == "saved" {
            assert!(memory.is_file() && descriptor.is_file());
        } else {
            wait_for("no memory to be left", || (!memory.exists() && !descriptor.exists()).then_some(()));
        }
        if state != "running" {
            self.host.ok(&["vm", "start", "m"]);
        }
        state
    }
}

/// A process dies after `ms` milliseconds of `verb`. Whatever came of it, memory and disk belong together.
fn killed_at(host: &Host, pair: &mut Pair<'_>, verb: &str, victim: &str, ms: u64) {
    if verb == "start" {
        host.ok(&["vm", "save", "m"]);
    }
    let before = host.vm("m")["run"][victim].as_u64();
    host.ok(&["vm", verb, "m", "--no-wait"]);
    std::thread::sleep(Duration::from_millis(ms));
    // The process of a machine that is just starting is known a moment later.
    let pid = before.or_else(|| host.vm("m")["run"][victim].as_u64());
    if let Some(pid) = pid {
        kill(pid);
    }
    let state = pair.settle();
    pair.step();
    println!("{verb}, {victim} killed after {ms} ms: {state}, booted: {}", pair.booted);
    // A worker's death costs no memory.
    assert!(victim == "qemu_pid" || !pair.booted, "its memory was lost");
}

#[test]
fn whoever_dies_while_a_machine_is_saved_memory_and_disk_belong_together() {
    let host = Host::start();
    host.create_micro("m", "virtio:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (guest, _) = Micro::booting(&host.console("m"));
    drop(guest);
    let mut pair = Pair { host: &host, booted: true };
    pair.step();
    for ms in [0, 20, 45, 90] {
        killed_at(&host, &mut pair, "save", "worker_pid", ms);
    }
    for ms in [0, 30, 70] {
        killed_at(&host, &mut pair, "save", "qemu_pid", ms);
    }
}

#[test]
fn whoever_dies_while_a_saved_machine_starts_memory_and_disk_belong_together() {
    let host = Host::start();
    host.create_micro("m", "virtio:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (guest, _) = Micro::booting(&host.console("m"));
    drop(guest);
    let mut pair = Pair { host: &host, booted: true };
    pair.step();
    for ms in [0, 60, 150, 300] {
        killed_at(&host, &mut pair, "start", "worker_pid", ms);
    }
    for ms in [100, 300] {
        killed_at(&host, &mut pair, "start", "qemu_pid", ms);
    }
}

/// A worker of the previous release that died after the save and before QEMU left the state of a guest that then went on.
#[test]
fn a_saved_state_whose_guest_goes_on_is_thrown_away() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    assert_eq!(Micro::booting(&host.console("m")).0.count(), 1);
    host.ok(&["vm", "save", "m"]);
    let (memory, descriptor) = state_files(&host, "m");
    let state = [&memory, &descriptor].map(|file| fs::read(file).unwrap());
    host.ok(&["vm", "discard-saved-state", "m", "--yes"]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.write(FIRST, 0x100, 0x47).unwrap();
    fs::create_dir_all(memory.parent().unwrap()).unwrap();
    for (file, bytes) in [&memory, &descriptor].into_iter().zip(state) {
        fs::write(file, bytes).unwrap();
    }
    let (worker, qemu) = (host.pid("m", "worker_pid"), host.pid("m", "qemu_pid"));
    kill(worker);
    wait_for("the state to go", || (!memory.exists() && !descriptor.exists()).then_some(()));
    host.wait_state("m", "running");
    assert_eq!(host.pid("m", "qemu_pid"), qemu);
    let history = host.ok(&["event", "list", "--vm", "m", "--type", "vm.saved-state-discarded"]);
    assert!(history.contains("the guest went on"), "{history}");
    host.ok(&["vm", "turn-off", "m"]);
    assert_eq!(host.state_of("m"), "off", "nothing older than its disks is loaded");
}

#[test]
fn a_save_that_is_cancelled_leaves_a_machine_that_runs_or_is_saved() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    assert_eq!(guest.ask("d0c").unwrap(), "d", "12 MiB of memory that is not empty");
    assert_eq!(guest.count(), 1);
    let task = host.ok(&["vm", "save", "m", "--no-wait"]);
    let _ = host.run(&["task", "cancel", task.trim()]);
    host.wait_idle();
    let state = host.state_of("m");
    if state == "running" {
        let (memory, descriptor) = state_files(&host, "m");
        assert!(!memory.exists() && !descriptor.exists(), "nothing is left behind");
    } else {
        assert_eq!(state, "saved");
        host.ok(&["vm", "start", "m"]);
    }
    assert_eq!(Micro::attach(&host.console("m")).unwrap().count(), 2);
}

#[test]
fn a_saved_machine_can_be_checkpointed_and_goes_on_from_both() {
    let host = Host::start();
    host.create_micro("m", "ide:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    assert_eq!(guest.count(), 1);
    guest.write(FIRST, 0x100, 0x51).unwrap();
    host.ok(&["vm", "save", "m"]);
    host.ok(&["checkpoint", "create", "m", "saved"]);
    assert_eq!(host.state_of("m"), "saved");
    host.ok(&["vm", "start", "m"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 2);
    guest.write(FIRST, 0x100, 0x52).unwrap();
    host.ok(&["vm", "save", "m"]);
    // The saved memory of Now goes, the checkpoint's is loaded.
    host.ok(&["checkpoint", "apply", "m", "saved", "--yes"]);
    let mut guest = Micro::attach(&host.console("m")).unwrap();
    assert_eq!(guest.count(), 2);
    guest.expect(FIRST, 0x100, 0x51);
    host.ok(&["vm", "save", "m"]);
    host.ok(&["vm", "delete", "m", "--delete-disks", "--yes"]);
    let left: Vec<_> = walk(host.state())
        .into_iter()
        .filter(|f| f.extension().is_some_and(|e| e == "bin" || e == "vsv"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(walk(&path)),
            false => found.push(path),
        }
    }
    found
}

//! Disks of a guest that writes, flushes and reads back all through: compacted, made larger, moved, one after another, with whoever
//! does it killed. What the guest finds, and another program afterwards, is what the guest wrote.

use crate::SECOND;
use crate::live_merge::{Server, noise, same_for_qemu_img};
use crate::tree_random::Random;
use backstay_e2e::{Host, Load, Micro, Told, ask_load, kill, stop_load, wait_for};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;
const SIZE_MIB: u64 = 64;
/// Zeroed before the machine starts, in MiB: the last blocks of the file, which the guest writes to, move there.
const ZEROED: [u64; 4] = [8, 16, 24, 32];
const ZEROED_MIB: u64 = 4;
/// 16 MiB at the end of the disk.
const LOAD: Load =
    Load { drive: SECOND, first: 48 << 11, slots: 1 << 12, sectors: 3, flush_after: 16, seed: 0x2468_ace1 };

struct Story {
    host: Host,
    /// What the disk has to hold, but for what the guest wrote.
    raw: PathBuf,
    told: Told,
}

impl Story {
    /// A machine whose guest is at work on its second disk, which has holes.
    fn new(format: &str) -> Self {
        let host = Host::start();
        let mut random = Random::new(7);
        let raw = host.folder().join("model.raw");
        let model = File::options().read(true).write(true).create_new(true).open(&raw).unwrap();
        model.set_len(SIZE_MIB * MIB).unwrap();
        for at in 0..SIZE_MIB {
            model.write_all_at(&noise(&mut random, MIB), at * MIB).unwrap();
        }
        let disk = host.folder().join(format!("data.{format}"));
        let block = ["--type", "dynamic", "--block-size", "2M"];
        host.ok(&[&["disk", "convert", raw.to_str().unwrap(), disk.to_str().unwrap()], &block[..]].concat());
        let socket = host.socket().with_file_name("d");
        let server = Server::of(&host, &disk, &socket);
        let mut zeroes = Command::new("qemu-io");
        for at in ZEROED {
            zeroes.args(["-c", &format!("write -z -u {at}M {ZEROED_MIB}M")]);
            model.write_all_at(&vec![0; usize::try_from(ZEROED_MIB * MIB).unwrap()], at * MIB).unwrap();
        }
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        assert!(zeroes.args(["-f", "raw", &uri]).status().unwrap().success(), "qemu-io");
        server.end();
        host.create_micro("m", "ide:0:0", &["--disk", &format!("ide:0:1={}", disk.display())]);
        let mut story = Self { host, raw, told: Told::default() };
        story.start();
        story
    }

    fn start(&mut self) {
        self.host.ok(&["vm", "start", "m"]);
        let (mut guest, _) = Micro::booting(&self.host.console("m"));
        guest.begin_load(&LOAD).unwrap();
        self.told = Told::default();
        drop(guest);
        self.writes(20);
    }

    fn disk(&self) -> (PathBuf, u64) {
        let disks = self.host.json(&["vm", "disks", "m"]);
        let disk = disks.as_array().unwrap().iter().find(|disk| disk["slot"] == "ide:0:1").unwrap();
        (disk["path"].as_str().unwrap().into(), disk["size"].as_u64().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.disk().0
    }

    /// The guest goes on, and has read nothing that it had not written.
    fn writes(&mut self, more: u32) {
        let console = wait_for("the machine to run", || {
            self.host.vm("m")["run"]["console_socket"].as_str().map(PathBuf::from)
        });
        let before = self.told.writes;
        while self.told.writes < before + more {
            self.told = ask_load(&console, &self.told);
            assert_eq!(self.told.wrong, 0, "{:?}", self.told);
        }
    }

    /// Begins a compaction; its task, once it moves blocks.
    fn compact(&self, rate: &str) -> String {
        let path = self.path();
        let task = self.host.json(&["disk", "compact", path.to_str().unwrap(), "--rate", rate, "--no-wait"]);
        let task = task["id"].as_str().unwrap().to_owned();
        self.at_work(&task);
        task
    }

    fn at_work(&self, task: &str) {
        wait_for("the compaction to go on", || {
            let task = self.host.json(&["task", "show", task]);
            assert_eq!(task["state"], "running", "{task}");
            let message = task["message"].as_str()?;
            (message.contains("compacting") && !message.contains(" 0 MiB")).then_some(())
        });
    }

    fn ended(&self, task: &str) -> serde_json::Value {
        wait_for("the end of a task", || {
            let task = self.host.json(&["task", "show", task]);
            (task["state"] != "running" && task["state"] != "cancelling").then_some(task)
        })
    }

    fn kill_worker(&mut self) {
        let worker = self.host.pid("m", "worker_pid");
        kill(worker);
        wait_for("a new worker", || {
            let vm = self.host.vm("m");
            (vm["run"]["worker_pid"].as_u64()? != worker && vm["state"] == "running").then_some(())
        });
    }

    /// The guest reads it all, and when it is off another program does.
    fn end(&mut self) {
        let (mut guest, told) = stop_load(&self.host.console("m"), &self.told);
        assert_eq!(told.wrong, 0);
        let found = guest.verify_load(told.writes);
        assert!(found.slots > 0 && found.wrong == 0, "{found:?}");
        let (path, size) = self.disk();
        self.host.ok(&["vm", "turn-off", "m"]);
        let model = File::options().read(true).write(true).open(&self.raw).unwrap();
        model.set_len(size).unwrap();
        LOAD.repeat(told.writes, &model).unwrap();
        same_for_qemu_img(&self.raw, &path);
        self.host.ok(&["disk", "check", path.to_str().unwrap()]);
    }
}

fn taken(path: &Path) -> (u64, u64) {
    let meta = fs::metadata(path).unwrap();
    (meta.len() / MIB, meta.blocks() * 512 / MIB)
}

fn compacted(format: &str) {
    let mut story = Story::new(format);
    let path = story.path();
    let before = taken(&path);
    let plan = story.host.ok(&["disk", "compact", path.to_str().unwrap(), "--dry-run"]);
    assert!(plan.contains("ide:0:1"), "{plan}");
    let said = story.host.run(&["disk", "compact", path.to_str().unwrap(), "--rate", "8M"]);
    assert!(said.code == 0 && said.err.contains("moved"), "{}{}", said.out, said.err);
    let after = taken(&path);
    let least = ZEROED.len() as u64 * ZEROED_MIB - 2;
    assert!(after.0 + least <= before.0, "the file is shorter: {before:?} {after:?}");
    story.writes(50);
    story.end();
}

#[test]
fn a_guest_writes_and_verifies_while_its_vhd_is_compacted() {
    compacted("vhd");
}

#[test]
fn a_guest_writes_and_verifies_while_its_vhdx_is_compacted() {
    compacted("vhdx");
}

#[test]
fn a_compaction_makes_way_is_cancelled_and_goes_on_after_dead_workers_and_daemons() {
    let mut story = Story::new("vhdx");
    let path = story.path();
    let before = taken(&path).0;
    // Whoever wants the machine gets it, and the compaction goes on by itself; so it does with the next worker.
    let task = story.compact("1M");
    story.host.ok(&["vm", "set", "m", "--notes", "in between"]);
    story.at_work(&task);
    story.kill_worker();
    story.at_work(&task);
    story.writes(20);
    story.host.ok(&["task", "cancel", &task]);
    assert_eq!(story.ended(&task)["state"], "cancelled");

    let task = story.compact("1M");
    story.host.kill_daemon();
    story.host.start_daemon();
    story.writes(20);
    let ended = story.ended(&task);
    assert_eq!((&ended["state"], &ended["error"]["code"]), (&"failed".into(), &"interrupted".into()));

    // A checkpoint does not wait for it; of the file that it froze nothing is compacted any more.
    let task = story.compact("1M");
    story.host.ok(&["checkpoint", "create", "m", "one"]);
    let ended = story.ended(&task);
    assert_eq!(ended["error"]["code"], "precondition", "{ended}");
    story.writes(20);
    story.host.ok(&["checkpoint", "delete", "m", "one", "--yes"]);
    assert_eq!(story.path(), path);

    let said = story.host.run(&["disk", "compact", path.to_str().unwrap()]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(taken(&path).0 + 12 <= before, "{before} {:?}", taken(&path));
    story.end();
    // Nobody uses it any more: the same command does it here.
    story.host.ok(&["disk", "compact", path.to_str().unwrap()]);
    let fixed = story.host.folder().join("fixed.vhd");
    story.host.ok(&["disk", "create", fixed.to_str().unwrap(), "--size", "4M", "--type", "fixed"]);
    story.host.ok(&["vm", "set", "m", "--disk", &format!("scsi:0:0={}", fixed.display())]);
    story.start();
    let refusal = story.host.refused(5, &["disk", "compact", fixed.to_str().unwrap()]);
    assert!(refusal.contains("fixed disk"), "{refusal}");
}

/// What one disk goes through in a year.
fn through_everything(format: &str) {
    let mut story = Story::new(format);
    let first = story.path();
    let folders = [story.host.folder().join("there"), first.parent().unwrap().to_path_buf()];
    for round in 0..4_u64 {
        let size = SIZE_MIB + 8 * (round + 1);
        let path = story.path();
        let said = story.host.run(&["disk", "resize", path.to_str().unwrap(), &format!("{size}M")]);
        assert_eq!(said.code, 0, "{}", said.err);
        assert_eq!(story.disk().1, size * MIB);
        story.writes(20);
        story.host.ok(&["disk", "compact", path.to_str().unwrap()]);
        story.writes(20);
        if round == 1 {
            story.kill_worker();
        }
        let folder = &folders[usize::try_from(round).unwrap() % 2];
        story.host.ok(&["vm", "move-disk", "m", "ide:0:1", folder.to_str().unwrap()]);
        assert_eq!(story.path().parent(), Some(folder.as_path()));
        story.writes(20);
    }
    assert!(first.exists() && fs::read_dir(&folders[0]).unwrap().next().is_none(), "one file");
    story.end();
}

#[test]
fn a_guest_verifies_its_vhd_through_growth_compaction_and_moves() {
    through_everything("vhd");
}

#[test]
fn a_guest_verifies_its_vhdx_through_growth_compaction_and_moves() {
    through_everything("vhdx");
}

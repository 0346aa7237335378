//! The layer of a deleted checkpoint is merged while the guest writes, flushes and reads back what it wrote, and the worker, which
//! merges, is killed again and again. The guest finds every byte, and so does another program in what is left: one file. Of both
//! formats.

use crate::tree::layers;
use crate::tree_random::Random;
use crate::{FIRST, SECOND};
use backstay_e2e::{Host, HostOptions, Load, Micro, Ticks, Told, ask_load, hash, kill, stop_load, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// One scattered change.
const PIECE: u64 = 16 << 10;
/// A processor without hardware acceleration reads a MiB in a tenth of a second.
const HASHED: u32 = 2048;

/// How much of it.
#[derive(Clone, Copy, Debug)]
struct Size {
    /// Of the disk and its layers.
    format: &'static str,
    /// The disk; a power of two.
    disk_mib: u64,
    /// What the layers hold together when the merges begin.
    change_mib: u64,
    /// Workers that are killed.
    kills: u64,
    /// Longest time that a worker merges before it is killed.
    window_ms: u64,
    /// While workers are killed.
    mib_per_second: u64,
    /// Ranges of 1 MiB that the guest reads in the end, besides all that it wrote.
    ranges: u64,
    /// Daemons are killed, merges cancelled and speeds changed, too.
    chaos: bool,
    /// Data of the guest go past the host's page cache.
    past_cache: bool,
}

struct Story {
    host: Host,
    random: Random,
    size: Size,
    base: PathBuf,
    /// What the disk has to hold, but for what the guest wrote.
    model: File,
    load: Load,
    told: Told,
    /// Ticks of the guest's clock in a second.
    rate: f64,
    /// Slowest writes and flushes: before the merge, during it, and while a worker died.
    idle: Slowest,
    merging: Slowest,
    dying: Slowest,
    /// Longest time from the death of a worker to the next write that was acknowledged.
    away: Duration,
    kills: u64,
    begun: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slowest {
    write: Ticks,
    flush: Ticks,
    read: Ticks,
}

impl Slowest {
    fn of(told: &Told) -> Self {
        Self { write: told.slowest_write, flush: told.slowest_flush, read: told.slowest_read }
    }

    fn add(&mut self, other: Self) {
        self.write = self.write.max(other.write);
        self.flush = self.flush.max(other.flush);
        self.read = self.read.max(other.read);
    }

    fn words(self, rate: f64) -> String {
        let [write, flush, read] = [self.write, self.flush, self.read].map(|ticks| ticks.millis(rate));
        format!("write {write:.1} ms, flush {flush:.1} ms, read {read:.1} ms")
    }
}

pub fn noise(random: &mut Random, len: u64) -> Vec<u8> {
    let mut state = random.below(u64::MAX) | 1;
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap());
    while bytes.len() < usize::try_from(len).unwrap() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Another program reads in the VHD or VHDX what the raw disk holds.
pub fn same_for_qemu_img(raw: &Path, disk: &Path) {
    let how = match disk.extension().is_some_and(|extension| extension == "vhdx") {
        true => "driver=vhdx",
        false => "driver=vpc,force_size_calc=current_size",
    };
    let compared = Command::new("qemu-img")
        .args(["compare", "--image-opts"])
        .arg(format!("driver=raw,file.filename={}", raw.display()))
        .arg(format!("{how},file.filename={}", disk.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&compared.stdout);
    assert!(compared.status.success(), "{said} {}", String::from_utf8_lossy(&compared.stderr));
}

/// Our server of a disk that no machine uses.
pub struct Server(Child);

impl Server {
    pub fn of(host: &Host, disk: &Path, socket: &Path) -> Self {
        let (disk, at) = (disk.to_str().unwrap(), socket.to_str().unwrap());
        let child = host.command(&["disk", "serve", disk, "--socket", at]).stdout(Stdio::null()).spawn();
        wait_for("the server", || std::os::unix::net::UnixStream::connect(socket).ok());
        Self(child.unwrap())
    }

    pub fn end(mut self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success(), "the server of a disk");
    }
}

impl Story {
    /// A machine that is off, whose second disk has two checkpoints with changes scattered all over it above each.
    fn new(seed: u64, size: Size) -> Self {
        println!("seed {seed}, {size:?}");
        let mut random = Random::new(seed);
        let settings = if size.past_cache { "[disks]\ncache = \"none\"\n" } else { "" };
        let host = Host::with(&HostOptions { settings: settings.into(), ..HostOptions::default() });
        let raw = host.folder().join("model.raw");
        let model = File::options().read(true).write(true).create_new(true).open(&raw).unwrap();
        model.set_len(size.disk_mib * MIB).unwrap();
        for at in 0..size.disk_mib / 4 {
            model.write_all_at(&noise(&mut random, MIB), at * MIB).unwrap();
        }
        let base = host.folder().join(format!("data.{}", size.format));
        host.ok(&["disk", "convert", raw.to_str().unwrap(), base.to_str().unwrap(), "--type", "dynamic"]);
        host.create_micro("m", "ide:0:0", &["--disk", &format!("ide:0:1={}", base.display())]);
        let slots = u32::try_from(size.disk_mib * MIB / 4096).unwrap();
        let seed = 1 | u32::try_from(random.below(1 << 31)).unwrap();
        let load = Load { drive: SECOND, first: 0, slots, sectors: 3, flush_after: 16, seed };
        let none = Slowest::default();
        let mut story = Self {
            host,
            random,
            size,
            base,
            model,
            load,
            told: Told::default(),
            rate: 1.0,
            idle: none,
            merging: none,
            dying: none,
            away: Duration::ZERO,
            kills: 0,
            begun: Instant::now(),
        };
        for name in ["one", "two"] {
            story.host.ok(&["checkpoint", "create", "m", name]);
            story.scatter(size.change_mib / 2);
        }
        story
    }

    fn top(&self) -> PathBuf {
        let disks = self.host.json(&["vm", "disks", "m"]);
        let disk = disks.as_array().unwrap().iter().find(|disk| disk["slot"] == "ide:0:1").unwrap();
        PathBuf::from(disk["path"].as_str().unwrap())
    }

    /// Changes of 16 KiB, at random places, by another program.
    fn scatter(&mut self, mib: u64) {
        let changes = self.host.folder().join("changes.raw");
        let file = File::create(&changes).unwrap();
        file.set_len(self.size.disk_mib * MIB).unwrap();
        for _ in 0..mib * MIB / PIECE {
            let at = self.random.below(self.size.disk_mib * MIB / PIECE) * PIECE;
            let bytes = noise(&mut self.random, PIECE);
            file.write_all_at(&bytes, at).unwrap();
            self.model.write_all_at(&bytes, at).unwrap();
        }
        drop(file);
        let socket = self.host.socket().with_file_name("d");
        let server = Server::of(&self.host, &self.top(), &socket);
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let copied = Command::new("nbdcopy")
            .args(["--destination-is-zero", "--flush"])
            .arg(&changes)
            .arg(uri)
            .status()
            .unwrap();
        assert!(copied.success(), "nbdcopy");
        server.end();
        std::fs::remove_file(changes).unwrap();
    }

    fn console(&self) -> PathBuf {
        wait_for("the machine to run", || {
            self.host.vm("m")["run"]["console_socket"].as_str().map(PathBuf::from)
        })
    }

    fn ask(&mut self) -> Told {
        self.told = ask_load(&self.console(), &self.told);
        assert_eq!(self.told.wrong, 0, "the guest read something else than it had written: {:?}", self.told);
        self.told
    }

    fn start(&mut self) {
        self.host.ok(&["vm", "start", "m"]);
        let (mut guest, _) = Micro::booting(&self.console());
        guest.begin_load(&self.load).unwrap();
        drop(guest);
        self.ask();
        let (begun, first) = (Instant::now(), self.told.clock);
        sleep(Duration::from_secs(1));
        let told = self.ask();
        self.rate = told.clock.since(first).rate(begun.elapsed());
        self.idle.add(Slowest::of(&told));
    }

    fn list(&self) -> Value {
        self.host.json(&["checkpoint", "list", "m"])
    }

    fn is_pending(&self) -> bool {
        !self.list()["merge_pending"].as_array().unwrap().is_empty()
    }

    /// The task, once it moves blocks; none if there is nothing to merge any more.
    fn at_work(&self) -> Option<String> {
        wait_for("the merge to go on", || {
            let list = self.list();
            if list["merge_pending"].as_array()?.is_empty() {
                return Some(None);
            }
            let id = list["merge_task"].as_str()?;
            let task = self.host.json(&["task", "show", id]);
            let works = task["state"] == "running" && task["message"].as_str()?.contains("blocks");
            works.then(|| Some(id.to_owned()))
        })
    }

    /// Deletes a checkpoint and kills workers until `kills` died while its layer was merged.
    fn delete(&mut self, name: &str, kills: u64) {
        self.begin(name, &format!("{}M", self.size.mib_per_second));
        let wanted = self.kills + kills;
        let mut round = 0;
        while self.kills < wanted {
            match self.at_work() {
                Some(task) => self.kill_amid(&task),
                // It came to its end in spite of all.
                None => {
                    round += 1;
                    let name = format!("{name}-{round}");
                    self.host.ok(&["checkpoint", "create", "m", &name]);
                    sleep(Duration::from_millis(700));
                    self.begin(&name, "1M");
                }
            }
        }
        // By itself, with the next worker; in the long form the rest goes at full speed.
        if self.at_work().is_some() && self.size.chaos {
            let said = self.host.run(&["checkpoint", "merge", "m"]);
            assert!(said.code == 0 || said.err.contains("nothing to merge"), "{said:?}");
        }
        wait_for("the merge to end", || (!self.is_pending()).then_some(()));
        let told = self.ask();
        self.merging.add(Slowest::of(&told));
        println!("{} s: the layer of '{name}' is merged", self.begun.elapsed().as_secs());
    }

    /// Deletes a checkpoint; what is merged is merged in the background.
    fn begin(&self, name: &str, rate: &str) {
        let delete = ["checkpoint", "delete", "m", name, "--rate", rate, "--yes", "--no-wait"];
        let task = self.host.json(&delete);
        self.ended(task["id"].as_str().unwrap());
    }

    fn ended(&self, task: &str) {
        wait_for("the end of a task", || {
            let state = self.host.json(&["task", "show", task])["state"].clone();
            (state != "running" && state != "cancelling").then_some(())
        });
    }

    fn kill_amid(&mut self, task: &str) {
        let worker = self.host.pid("m", "worker_pid");
        // Slowly, it is copying that is cut short; quickly, what comes after it.
        let rate = self.size.mib_per_second * (1 + self.random.below(3));
        self.merge_at(rate);
        let after = self.random.below(self.size.window_ms);
        sleep(Duration::from_millis(after));
        let told = self.ask();
        self.merging.add(Slowest::of(&told));
        if !self.is_pending() {
            return;
        }
        let message = self.host.json(&["task", "show", task])["message"].clone();
        if self.size.chaos {
            self.hinder(task);
        }
        let begun = Instant::now();
        kill(worker);
        wait_for("a new worker", || {
            let vm = self.host.vm("m");
            (vm["run"]["worker_pid"].as_u64()? != worker && vm["state"] == "running").then_some(())
        });
        // One more may have been on its way.
        let before = self.told;
        let mut slowest = Slowest::default();
        while self.told.writes <= before.writes + 1 {
            let told = self.ask();
            slowest.add(Slowest::of(&told));
        }
        self.away = self.away.max(begun.elapsed());
        self.dying.add(slowest);
        self.kills += 1;
        println!(
            "{} s: kill {} after {after} ms, {message}, {} writes; before it {}; across it {}",
            self.begun.elapsed().as_secs(),
            self.kills,
            before.writes,
            Slowest::of(&before).words(self.rate),
            slowest.words(self.rate)
        );
    }

    /// What else may happen to a merge.
    fn hinder(&mut self, task: &str) {
        match self.random.below(6) {
            0 => {
                self.host.kill_daemon();
                self.host.start_daemon();
            }
            1 => {
                let _may_have_ended = self.host.run(&["task", "cancel", task]);
                self.ended(task);
                self.merge_at(self.size.mib_per_second);
            }
            _ => {}
        }
    }

    fn merge_at(&self, mib_per_second: u64) {
        let rate = format!("{mib_per_second}M");
        let said = self.host.run(&["checkpoint", "merge", "m", "--rate", &rate, "--no-wait"]);
        assert!(said.code == 0 || said.err.contains("nothing to merge"), "{said:?}");
    }

    /// The guest reads it all, and when it is off another program does.
    fn end(mut self) {
        let (mut guest, told) = stop_load(&self.console(), &self.told);
        assert_eq!(told.wrong, 0);
        let found = guest.verify_load(told.writes);
        assert_eq!(found.wrong, 0, "the guest finds something else than it wrote: {found:?}");
        assert!(found.slots > 0 && found.slots <= told.writes, "{found:?} after {} writes", told.writes);
        self.load.repeat(told.writes, &self.model).unwrap();
        for _ in 0..self.size.ranges {
            let lba = u32::try_from(self.random.below(self.size.disk_mib)).unwrap() * HASHED;
            let (seen, right) = (guest.hash(SECOND, lba, HASHED), hash(&self.model, lba, HASHED).unwrap());
            assert_eq!(seen, right, "what the guest reads from sector {lba:#x} on");
        }
        self.print(&told, found.slots);

        self.host.ok(&["vm", "turn-off", "m"]);
        assert_eq!(layers(&self.host), BTreeSet::new(), "all layers are gone");
        assert_eq!(self.top(), self.base);
        let raw = self.host.folder().join("model.raw");
        same_for_qemu_img(&raw, &self.base);
        self.host.ok(&["disk", "check", self.base.to_str().unwrap()]);
    }

    fn print(&self, told: &Told, slots: u32) {
        let seconds = self.begun.elapsed().as_secs();
        println!("{seconds} s: {} workers were killed; {} writes in {slots} slots", self.kills, told.writes);
        let slowest =
            [("before", self.idle), ("while it was merged", self.merging), ("as workers died", self.dying)];
        for (when, slowest) in slowest {
            println!("slowest for the guest {when}: {}", slowest.words(self.rate));
        }
        println!(
            "longest from a kill to the next answer of a guest that writes: {} ms",
            self.away.as_millis()
        );
    }
}

fn run(seed: u64, size: Size) {
    let mut story = Story::new(seed, size);
    story.start();
    // A middle layer first, then the one that is written to.
    story.delete("one", size.kills / 2);
    story.delete("two", size.kills - size.kills / 2);
    assert_eq!(story.kills, size.kills);
    story.end();
}

/// As far as a story of seconds goes.
const SHORT: Size = Size {
    format: "vhd",
    disk_mib: 64,
    change_mib: 64,
    kills: 5,
    window_ms: 1000,
    mib_per_second: 16,
    ranges: 4,
    chaos: false,
    past_cache: false,
};

const LONG: Size = Size {
    format: "vhd",
    disk_mib: 4096,
    change_mib: 1024,
    kills: 50,
    window_ms: 4000,
    mib_per_second: 12,
    ranges: 256,
    chaos: true,
    past_cache: false,
};

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

#[test]
fn a_guest_that_writes_through_merges_and_dying_workers_finds_every_byte() {
    run(1, SHORT);
}

#[test]
fn a_guest_on_vhdx_that_writes_through_merges_and_dying_workers_finds_every_byte() {
    run(2, Size { format: "vhdx", ..SHORT });
}

#[test]
fn the_same_is_so_past_the_page_cache() {
    run(2, Size { change_mib: 32, kills: 3, past_cache: true, ..SHORT });
}

#[test]
#[ignore = "1 GiB and 50 dead workers take many minutes, in `make soak`"]
fn soak_live_merge_of_a_gibibyte_with_fifty_dead_workers() {
    run(now(), LONG);
}

#[test]
#[ignore = "1 GiB and 50 dead workers take many minutes, in `make soak`"]
fn soak_live_merge_of_a_gibibyte_of_vhdx_with_fifty_dead_workers() {
    run(now(), Size { format: "vhdx", ..LONG });
}

/// The worker comes to the end of a merge that nobody watches: the next daemon finds that out and writes it down.
#[test]
fn a_merge_that_ends_without_a_daemon_is_concluded_by_the_next_one() {
    let mut host = Host::start();
    let base = host.create_micro("m", "scsi:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    host.ok(&["checkpoint", "create", "m", "one"]);
    for at in 0..60 {
        guest.write(FIRST, 0x100 + 24 * at, 0x11).unwrap();
    }
    let events = host.console("m").with_file_name("events.jsonl");
    let ended = || std::fs::read_to_string(&events).is_ok_and(|events| events.contains("merge-finished"));
    // Some seconds for 30 KiB.
    host.ok(&["checkpoint", "delete", "m", "one", "--rate", "8K", "--yes", "--no-wait"]);
    wait_for("the merge", || {
        let task = host.json(&["checkpoint", "list", "m"])["merge_task"].as_str()?.to_owned();
        host.json(&["task", "show", &task])["message"].as_str()?.contains("blocks").then_some(())
    });
    host.kill_daemon();
    assert!(!ended(), "nobody was to watch its end");
    guest.write(FIRST, 0x100, 0x22).unwrap();
    wait_for("the end of the merge", || ended().then_some(()));
    guest.write(FIRST, 0x118, 0x33).unwrap();
    host.start_daemon();
    wait_for("the daemon to find out", || {
        let list = host.json(&["checkpoint", "list", "m"]);
        list["merge_pending"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    assert_eq!(layers(&host), BTreeSet::new());
    assert_eq!(host.json(&["vm", "disks", "m"])[0]["path"], base.to_str().unwrap());
    // The machine is one like any other.
    host.ok(&["checkpoint", "create", "m", "two"]);
    host.ok(&["vm", "turn-off", "m"]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    guest.expect(FIRST, 0x100, 0x22);
    guest.expect(FIRST, 0x118, 0x33);
    for at in 2..60 {
        guest.expect(FIRST, 0x100 + 24 * at, 0x11);
    }
}

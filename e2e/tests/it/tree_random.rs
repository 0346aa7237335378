//! Random histories of a tree of checkpoints against a model of bytes and configuration; in the long form daemon, worker and
//! command line are killed in the middle of it.

use crate::tree::layers;
use crate::{FIRST, SECOND};
use backstay_e2e::{Host, Micro, kill, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Numbers that follow from a seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % limit.max(1)
    }

    fn one_of<T: Clone>(&mut self, items: &[T]) -> Option<T> {
        let index = usize::try_from(self.below(items.len() as u64)).unwrap();
        items.get(index).cloned()
    }
}

/// What a machine is: sectors of both disks, and memory in MiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    sectors: BTreeMap<(u8, u32), u8>,
    memory_mib: u64,
}

/// A checkpoint of the model.
#[derive(Clone, Debug)]
struct Then {
    state: State,
    was_on: bool,
}

struct History {
    host: Host,
    random: Random,
    guest: Option<Micro>,
    now: State,
    then: BTreeMap<String, Then>,
    /// A write without an acknowledgement: may or may not have happened.
    unsure: Option<((u8, u32), u8)>,
    step: u32,
    next: u8,
    chaos: bool,
}

#[derive(Clone, Debug)]
enum Act {
    Create(String),
    Apply(String),
    Delete(String),
    DeleteSubtree(String),
    Rename(String, String),
    Power,
    Memory(u64),
    Restart,
}

impl History {
    fn new(seed: u64, chaos: bool) -> Self {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let host = Host::start();
        let bus = random.one_of(&["scsi:0:0", "virtio:0", "ide:0:0"]).unwrap();
        let second = bus.replace(":0:0", ":0:1").replace("virtio:0", "virtio:1");
        host.create_micro("m", bus, &["--new-disk", &format!("{second}=64M")]);
        let now = State { memory_mib: 16, ..State::default() };
        let mut history = Self {
            host,
            random,
            guest: None,
            now,
            then: BTreeMap::new(),
            unsure: None,
            step: 0,
            next: 0,
            chaos,
        };
        history.power_on();
        history
    }

    fn power_on(&mut self) {
        self.host.ok(&["vm", "start", "m"]);
        self.guest = Some(Micro::booting(&self.host.console("m")).0);
    }

    fn attach(&mut self) {
        // A worker that has just been killed is followed by another one.
        self.guest = Some(wait_for("the guest's console", || Micro::attach(&self.host.console("m")).ok()));
    }

    fn write_some(&mut self) -> io::Result<()> {
        let count = 1 + self.random.below(8);
        for _ in 0..count {
            let drive = if self.random.below(2) == 0 { FIRST } else { SECOND };
            let lba = 0x40 + u32::try_from(self.random.below(48)).unwrap() * 37;
            self.next = self.next % 250 + 1;
            let Some(guest) = &mut self.guest else { return Ok(()) };
            self.unsure = Some(((drive, lba), self.next));
            guest.write(drive, lba, self.next)?;
            self.unsure = None;
            self.now.sectors.insert((drive, lba), self.next);
        }
        Ok(())
    }

    fn choose(&mut self) -> Act {
        let names: Vec<String> = self.then.keys().cloned().collect();
        let name = self.random.one_of(&names);
        match (self.random.below(14), name) {
            (0..=3, _) | (_, None) if self.then.len() < 14 => Act::Create(format!("c{}", self.step)),
            (4..=5, Some(name)) => Act::Apply(name),
            (6..=8, Some(name)) => Act::Delete(name),
            (9, Some(name)) => Act::DeleteSubtree(name),
            (10, Some(name)) => Act::Rename(name, format!("r{}", self.step)),
            (11, _) => Act::Memory([16, 24, 32][usize::try_from(self.random.below(3)).unwrap()]),
            (12, _) => Act::Restart,
            (_, Some(name)) if self.then.len() >= 14 => Act::DeleteSubtree(name),
            _ => Act::Power,
        }
    }

    fn args(act: &Act) -> Vec<String> {
        let words: Vec<&str> = match act {
            Act::Create(name) => vec!["checkpoint", "create", "m", name],
            Act::Apply(name) => vec!["checkpoint", "apply", "m", name, "--no-checkpoint-first", "--yes"],
            Act::Delete(name) => vec!["checkpoint", "delete", "m", name, "--yes"],
            Act::DeleteSubtree(name) => vec!["checkpoint", "delete", "m", name, "--subtree", "--yes"],
            Act::Rename(name, to) => vec!["checkpoint", "rename", "m", name, to],
            Act::Power | Act::Memory(_) | Act::Restart => vec![],
        };
        words.into_iter().map(str::to_owned).collect()
    }

    fn one_step(&mut self) {
        self.step += 1;
        let _ = self.write_some();
        let act = self.choose();
        match &act {
            Act::Power if self.guest.is_some() => {
                self.host.ok(&["vm", "turn-off", "m"]);
                self.guest = None;
            }
            Act::Power => self.power_on(),
            Act::Memory(mib) if self.guest.is_none() => {
                self.host.ok(&["vm", "set", "m", "--memory", &format!("{mib}M")]);
                self.now.memory_mib = *mib;
            }
            Act::Memory(_) => {}
            Act::Restart => {
                self.host.kill_daemon();
                self.host.start_daemon();
            }
            _ if self.chaos && self.random.below(3) > 0 => self.kill_amid(&act),
            _ => {
                let args = Self::args(&act);
                self.host.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
                self.done(&act);
            }
        }
        self.check(&format!("step {} {act:?}", self.step));
    }

    /// What the model says after `act` was carried out.
    fn done(&mut self, act: &Act) {
        match act {
            Act::Create(name) => {
                let then = Then { state: self.now.clone(), was_on: self.guest.is_some() };
                self.then.insert(name.clone(), then);
            }
            Act::Apply(name) => {
                let then = self.then[name].clone();
                self.now = then.state;
                self.guest = None;
                if then.was_on {
                    self.attach();
                }
            }
            Act::Rename(name, to) => {
                let then = self.then.remove(name).unwrap();
                self.then.insert(to.clone(), then);
            }
            // Which ones went is what the list tells; that it is a subtree is checked elsewhere.
            Act::Delete(name) => drop(self.then.remove(name)),
            Act::DeleteSubtree(name) => {
                let left: BTreeSet<String> = self.host.checkpoints("m").into_iter().collect();
                assert!(!left.contains(name), "{name} was deleted");
                self.then.retain(|name, _| left.contains(name));
            }
            Act::Power | Act::Memory(_) | Act::Restart => {}
        }
    }

    /// Carries `act` out while processes are killed, and finds out what came of it.
    fn kill_amid(&mut self, act: &Act) {
        let args = Self::args(act);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let worker = self.guest.is_some().then(|| self.host.pid("m", "worker_pid"));
        let tasks = self.tasks();
        let mut child = self
            .host
            .command(&args)
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now()
            + Duration::from_millis([2, 30, 120, 400][usize::try_from(self.random.below(4)).unwrap()]);
        let before = self.now.clone();
        let writes = !matches!(act, Act::Apply(_));
        while Instant::now() < until {
            if !writes || self.write_some().is_err() {
                sleep(Duration::from_millis(2));
            }
        }
        let victims = self.random.below(7) + 1;
        println!("step {}: {act:?}; killed are {victims:#b} of command line, worker, daemon", self.step);
        if victims & 1 != 0 {
            self.host.kill_daemon();
        }
        if let (Some(worker), true) = (worker, victims & 2 != 0) {
            kill(worker);
        }
        if victims & 4 != 0 {
            // A request that a living daemon has not answered yet may become a task when nobody looks any more.
            let told = |child: &mut Child| victims & 1 != 0 || child.try_wait().unwrap().is_some();
            wait_for("the task", || (told(&mut child) || self.tasks() != tasks).then_some(()));
            let _ = child.kill();
        }
        if victims & 1 != 0 {
            self.host.start_daemon();
        }
        child.wait().unwrap();
        self.host.wait_idle();
        self.what_came_of(act, before);
        if self.guest.is_some() {
            self.host.wait_state("m", "running");
            self.attach();
        }
    }

    fn tasks(&self) -> BTreeSet<String> {
        let tasks = self.host.json(&["task", "list"]);
        let items = tasks.as_array().or_else(|| tasks["items"].as_array()).unwrap();
        // Merges come by themselves.
        let asked = items.iter().filter(|task| task["operation"] != "checkpoint.merge");
        asked.map(|task| task["id"].as_str().unwrap().to_owned()).collect()
    }

    /// After `act` was cut short: done or not done, nothing between.
    fn what_came_of(&mut self, act: &Act, before: State) {
        let names: BTreeSet<String> = self.host.checkpoints("m").into_iter().collect();
        match act {
            Act::Create(name) if names.contains(name) => {
                // What was written meanwhile may be in it or not.
                let mut state = before;
                let same = |at: &(u8, u32), byte: &mut u8| self.now.sectors.get(at) == Some(byte);
                state.sectors.retain(same);
                let was_on = self.host.json(&["checkpoint", "show", "m", name])["has_memory"] == true;
                self.then.insert(name.clone(), Then { state, was_on });
            }
            Act::Apply(name) => {
                let on = self.host.state_of("m") == "running";
                let there = self.then[name].clone();
                if !on {
                    self.power_on();
                } else {
                    self.attach();
                }
                let guest = self.guest.as_mut().unwrap();
                let keys: BTreeSet<_> =
                    self.now.sectors.keys().chain(there.state.sectors.keys()).copied().collect();
                let seen: BTreeMap<_, _> =
                    keys.iter().map(|at| (*at, guest.read(at.0, at.1).first)).collect();
                let is = |state: &State, unsure: Option<((u8, u32), u8)>| {
                    state
                        .sectors
                        .iter()
                        .all(|(at, byte)| seen[at] == *byte || unsure == Some((*at, seen[at])))
                };
                let mib = self.host.vm("m")["memory_mib"].as_u64().unwrap();
                if is(&there.state, None) && mib == there.state.memory_mib {
                    self.now = State { sectors: seen, memory_mib: mib };
                } else {
                    assert!(is(&self.now, self.unsure), "after a killed apply: neither before nor after");
                }
                self.unsure = None;
            }
            Act::Rename(name, to) if names.contains(to) => {
                let then = self.then.remove(name).unwrap();
                self.then.insert(to.clone(), then);
            }
            Act::Delete(_) | Act::DeleteSubtree(_) => self.then.retain(|name, _| names.contains(name)),
            _ => {}
        }
    }

    fn check(&mut self, at: &str) {
        let names: BTreeSet<String> = self.host.checkpoints("m").into_iter().collect();
        assert_eq!(names, self.then.keys().cloned().collect(), "{at}");
        if let Some(((drive, lba), byte)) = self.unsure.take()
            && let Some(guest) = &mut self.guest
        {
            let seen = guest.read(drive, lba).first;
            let before = self.now.sectors.get(&(drive, lba)).copied();
            assert!(
                seen == byte || before.is_none_or(|b| b == seen),
                "{at}: neither the old nor the new byte"
            );
            self.now.sectors.insert((drive, lba), seen);
        }
        if let Some(guest) = &mut self.guest {
            for ((drive, lba), byte) in &self.now.sectors {
                let sector = guest.read(*drive, *lba);
                assert!(
                    sector.uniform && sector.first == *byte,
                    "{at}: {lba:#x} of {drive:#x} is {sector:?}, not {byte:#x}"
                );
            }
        }
        assert_eq!(self.host.vm("m")["memory_mib"], self.now.memory_mib, "{at}");
        let list = self.host.json(&["checkpoint", "list", "m"]);
        for item in list["items"].as_array().unwrap() {
            assert!(item["problems"].as_array().is_none_or(Vec::is_empty), "{at}: {item}");
        }
    }

    /// Every checkpoint is gone to, then all are deleted: one file per disk is left.
    fn end(mut self) {
        let names: Vec<String> = self.then.keys().cloned().collect();
        for name in &names {
            let act = Act::Apply(name.clone());
            let args = Self::args(&act);
            self.host.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
            self.done(&act);
            if self.guest.is_none() {
                self.power_on();
            }
            self.check(&format!("at the end, in {name}"));
        }
        for name in &names {
            self.host.ok(&["checkpoint", "delete", "m", name, "--yes"]);
            self.then.remove(name);
        }
        self.host.wait_idle();
        self.check("at the end");
        assert_eq!(layers(&self.host), BTreeSet::new(), "all space came back");
        if self.guest.take().is_some() {
            self.host.ok(&["vm", "turn-off", "m"]);
        }
        let disks = self.host.json(&["vm", "disks", "m"]);
        let items = disks.as_array().or_else(|| disks["items"].as_array()).unwrap();
        for disk in items {
            self.host.ok(&["disk", "check", disk["path"].as_str().unwrap()]);
        }
    }
}

fn run(seed: u64, steps: u32, chaos: bool) {
    let mut history = History::new(seed, chaos);
    for _ in 0..steps {
        history.one_step();
    }
    history.end();
}

#[test]
fn a_random_tree_is_what_the_model_says() {
    run(1, 16, false);
}

#[test]
fn a_random_tree_survives_what_is_killed() {
    run(2, 10, true);
}

#[test]
#[ignore = "runs for SOAK_SECONDS, in `make soak`"]
fn soak_random_trees_with_killed_processes() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    let limit = Instant::now() + Duration::from_secs(seconds);
    let first = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    for seed in first.. {
        if Instant::now() > limit {
            break;
        }
        run(seed, 40, seed % 3 > 0);
    }
}

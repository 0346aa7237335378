//! Processors under control: what is promised at the start, and what the host's scheduler really gives to guests that burn.

use backstay_e2e::{Host, HostOptions, Micro, cpu_ticks, kill, pin_to_first_cpu, vcpu_threads, wait_for};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

fn host(settings: &str) -> Host {
    Host::with(&HostOptions { settings: settings.into(), ..HostOptions::default() })
}

/// Whether limits act here; without that there is nothing to see.
fn controlled(host: &Host) -> bool {
    let shown = host.json(&["host", "show"]);
    let capacity = &shown["capacity"];
    let works = capacity["processor_control"] == true;
    if !works {
        println!("skipped: {}", capacity["processor_control_reason"]);
    }
    works
}

/// A machine's control group in the kernel's tree.
struct Group {
    machine: PathBuf,
    v2: bool,
}

impl Group {
    fn of(host: &Host, vm: &str) -> Self {
        let words = host.vm(vm)["run"]["processors"].as_str().unwrap_or_default().to_owned();
        let (way, path) = words.split_once(", ").unwrap_or_else(|| panic!("{vm} is controlled by '{words}'"));
        Self { machine: path.into(), v2: way == "cgroup v2" }
    }

    fn read(&self, v1: &str, v2: &str) -> String {
        let file = self.machine.join(if self.v2 { v2 } else { v1 });
        fs::read_to_string(&file)
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()))
            .trim()
            .to_owned()
    }

    /// Microseconds; none: no limit.
    fn quota_us(&self) -> Option<u64> {
        let text = self.read("vcpu/cpu.cfs_quota_us", "vcpu/cpu.max");
        text.split(' ').next().unwrap_or_default().parse().ok()
    }

    fn threads(&self) -> Vec<u64> {
        let text = self.read("vcpu/tasks", "vcpu/cgroup.threads");
        let mut threads: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
        threads.sort_unstable();
        threads
    }

    /// As a weight: 100 is normal.
    fn weight(&self) -> u64 {
        let number: u64 = self.read("cpu.shares", "cpu.weight").parse().unwrap();
        if self.v2 { number } else { number * 100 / 1024 }
    }
}

struct Burner {
    qemu: u64,
    thread: u64,
    _guest: Micro,
}

impl Burner {
    fn start(host: &Host, vm: &str, settings: &[&str]) -> Self {
        host.create_micro(vm, "ide:0:0", settings);
        host.ok(&["vm", "start", vm]);
        let (mut guest, _) = Micro::booting(&host.console(vm));
        guest.burn(400);
        let qemu = host.pid(vm, "qemu_pid");
        Self { qemu, thread: vcpu_threads(qemu)[0], _guest: guest }
    }

    fn ticks(&self) -> u64 {
        cpu_ticks(self.qemu, self.thread)
    }

    /// Percent of a processor that it gets while about half a second passes.
    fn percent(&self) -> u64 {
        let (before, since) = (self.ticks(), Instant::now());
        std::thread::sleep(std::time::Duration::from_millis(600));
        let hundredths = u64::try_from(since.elapsed().as_millis() / 10).unwrap();
        (self.ticks() - before) * 100 / hundredths
    }
}

#[test]
fn weights_divide_a_processor_that_everybody_wants() {
    let host = host("");
    if !controlled(&host) {
        return;
    }
    let burners: Vec<Burner> = [("a", "400"), ("b", "200"), ("c", "100")]
        .iter()
        .map(|(vm, weight)| Burner::start(&host, vm, &["--cpu-weight", weight]))
        .collect();
    // One processor for all three, or they would hardly meet.
    burners.iter().for_each(|burner| pin_to_first_cpu(burner.thread));
    let shares = |burners: &[Burner]| {
        let before: Vec<u64> = burners.iter().map(Burner::ticks).collect();
        wait_for("two seconds of processor time", || {
            let used: Vec<u64> = burners.iter().zip(&before).map(|(b, was)| b.ticks() - was).collect();
            (used.iter().sum::<u64>() >= 200).then_some(used)
        })
    };
    let used = shares(&burners);
    let ratio = |a: u64, b: u64| a * 100 / b.max(1);
    assert!((140..=280).contains(&ratio(used[0], used[1])), "4:2:1 gave {used:?}");
    assert!((140..=280).contains(&ratio(used[1], used[2])), "4:2:1 gave {used:?}");

    // Changed while they run; and a reserve counts more than any weight.
    host.ok(&["vm", "set", "c", "--cpu-weight", "1600"]);
    let used = shares(&burners);
    assert!((280..=560).contains(&ratio(used[2], used[0])), "4:2:16 gave {used:?}");
    host.ok(&["vm", "set", "c", "--cpu-weight", "100"]);
    let before = Group::of(&host, "b").weight();
    host.ok(&["vm", "set", "b", "--cpu-reserve", "50"]);
    assert!(Group::of(&host, "b").weight() > before, "a reserve raises the weight");
    host.ok(&["vm", "set", "b", "--cpu-reserve", "0"]);
    assert_eq!(Group::of(&host, "b").weight(), before);
}

#[test]
fn a_limit_holds_changes_and_outlives_the_worker() {
    let host = host("");
    if !controlled(&host) {
        return;
    }
    let burner = Burner::start(&host, "m", &["--cpu-limit", "20"]);
    let group = Group::of(&host, "m");
    assert_eq!(group.quota_us(), Some(4_000));
    assert_eq!(group.threads(), vcpu_threads(burner.qemu), "only virtual processors are limited");
    assert!(!group.threads().contains(&burner.qemu), "QEMU's main thread is not");
    let percent = burner.percent();
    assert!(percent <= 26, "limit 20 % gave {percent} %");

    let said = host.run(&["vm", "set", "m", "--cpu-limit", "100"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(group.quota_us(), None);
    wait_for("more than the limit", || (burner.percent() > 26).then_some(()));
    let said = host.run(&["vm", "set", "m", "--cpu-limit", "5"]);
    assert!(said.err.contains("limit 5 % of 1 vCPU = 0.05 cores"), "{}", said.err);
    assert_eq!(group.quota_us(), Some(1_000));
    let percent = burner.percent();
    assert!(percent <= 11, "limit 5 % gave {percent} %");

    // QEMU answers all the same: a screen, a pause.
    host.ok(&["vm", "screenshot", "m", "m.png"]);
    host.ok(&["vm", "pause", "m"]);
    host.ok(&["vm", "resume", "m"]);

    let worker = host.pid("m", "worker_pid");
    kill(worker);
    wait_for("a new worker", || {
        let vm = host.vm("m");
        let new = vm["run"]["worker_pid"].as_u64().filter(|pid| *pid != worker)?;
        (vm["state"] == "running").then_some(new)
    });
    assert_eq!(group.quota_us(), Some(1_000), "kept over the death of the worker");
    assert!(burner.percent() <= 11);
    host.ok(&["vm", "set", "m", "--cpu-limit", "50"]);
    assert_eq!(group.quota_us(), Some(10_000), "the new worker changes it");
    host.ok(&["vm", "reset", "m"]);
    wait_for("the threads after a reset", || (group.threads() == vcpu_threads(burner.qemu)).then_some(()));
    assert_eq!(host.vm("m")["cpu_limit_cores"], 0.5);

    host.ok(&["vm", "turn-off", "m"]);
    assert!(!group.machine.exists(), "{} is left", group.machine.display());
    // Both at once: nobody is left to clean up but the daemon.
    host.ok(&["vm", "set", "m", "--recovery", "none"]);
    host.ok(&["vm", "start", "m"]);
    assert_eq!(group.quota_us(), Some(10_000));
    let (worker, qemu) = (host.pid("m", "worker_pid"), host.pid("m", "qemu_pid"));
    kill(worker);
    kill(qemu);
    host.wait_state("m", "failed");
    wait_for("the group to go", || (!group.machine.exists()).then_some(()));
}

/// Four cores, of which each machine wants one: the fifth is refused. Without reserves all twenty run.
#[test]
fn a_core_is_promised_once() {
    let host = host("[limits]\ncores = 4\nhost_memory = '64M'\n");
    let names: Vec<String> = (0..20_u8).map(|i| char::from(b'a' + i).to_string()).collect();
    for name in &names {
        host.create_micro(name, "ide:0:0", &["--cpu-reserve", "100"]);
    }
    for name in &names[..4] {
        host.ok(&["vm", "start", name]);
    }
    let refusal = host.refused(5, &["vm", "start", "e"]);
    assert!(refusal.contains("'e' needs 1.00 cores reserved; 4.00 of 4.00 are promised to "), "{refusal}");
    let shown = host.json(&["host", "show"]);
    let capacity = &shown["capacity"];
    assert_eq!(capacity["cores_promised"], 4.0);
    assert_eq!(capacity["cores_left"], 0.0);
    assert_eq!(capacity["promises"].as_array().map(Vec::len), Some(4));
    host.ok(&["vm", "pause", "a"]);
    host.refused(5, &["vm", "start", "e"]);
    host.ok(&["vm", "resume", "a"]);

    // What is lowered can be promised to somebody else, and then not be raised again.
    host.ok(&["vm", "set", "a", "--cpu-reserve", "0"]);
    host.ok(&["vm", "start", "e"]);
    let refusal = host.refused(5, &["vm", "set", "a", "--cpu-reserve", "10"]);
    assert!(refusal.contains("'a' needs 0.10 cores reserved; 4.00 of 4.00"), "{refusal}");
    assert_eq!(host.vm("a")["cpu_reserve"], 0);

    for name in &names {
        host.ok(&["vm", "set", name, "--cpu-reserve", "0", "--cpu-limit", "10"]);
    }
    for name in &names[5..] {
        host.ok(&["vm", "start", name]);
    }
    let running = host.ok(&["-o", "name", "vm", "list", "--state", "running"]);
    assert_eq!(running.lines().count(), 20, "{running}");

    let refusal = host.refused(2, &["vm", "create", "wide", "--memory", "16M", "--cpus", "5"]);
    assert!(refusal.contains("'wide' has 5 virtual processors and this host 4"), "{refusal}");
    let refusal = host.refused(5, &["vm", "set", "a", "--cpus", "2"]);
    assert!(refusal.contains("'a' is running: configure is possible while it is off"), "{refusal}");
}

#[test]
fn a_machine_that_has_no_room_in_memory_is_refused_with_the_sum() {
    let host = host("[limits]\nmemory = '800M'\nhost_memory = '64M'\n");
    for (name, memory) in [("first", "256M"), ("second", "512M")] {
        host.create_micro(name, "ide:0:0", &[]);
        host.ok(&["vm", "set", name, "--memory", memory]);
    }
    host.ok(&["vm", "start", "first"]);
    let refusal = host.refused(5, &["vm", "start", "second"]);
    assert!(
        refusal.contains("512 MiB for the guest") && refusal.contains("promised to first and not used yet"),
        "{refusal}"
    );
    let shown = host.ok(&["host", "show"]);
    assert!(shown.contains("left for machines") && shown.contains("first: 0.00 cores"), "{shown}");
    host.ok(&["vm", "turn-off", "first"]);
    host.ok(&["vm", "start", "second"]);
}

#[test]
fn without_control_groups_machines_run_and_the_user_is_told() {
    let host = host("[processors]\ncontrol = 'none'\n");
    host.create_micro("m", "ide:0:0", &["--cpu-limit", "20"]);
    host.ok(&["vm", "start", "m"]);
    Micro::booting(&host.console("m")).0.count();
    let history = host.ok(&["event", "list", "--vm", "m"]);
    assert!(history.contains("limit, reserve and weight do not act"), "{history}");
    let said = host.run(&["host", "show"]);
    assert!(said.err.contains("do not act"), "{}", said.err);
    let said = host.run(&["vm", "set", "m", "--cpu-limit", "30"]);
    assert!(said.code == 0 && said.err.contains("kept but do not act"), "{}", said.err);
    assert_eq!(host.vm("m")["cpu_limit"], 30);
}

//! Stories of hosts with 4, 8 and 64 cores, as text: what is let in, what is refused in which words, and which weights and
//! quotas follow. Compared with `tests/golden/capacity-N.txt`.

#![expect(clippy::unwrap_used, reason = "a panic is the report")]

use backstay_model::{
    Cores, CpuControl, CpuHost, CpuPromise, CpuRefusal, MemoryHost, MemoryNeed, MemoryPromise, VmName,
    admit_cpu, admit_memory, weights,
};
use std::fmt::Write as _;

struct Host {
    host: CpuHost,
    running: Vec<(VmName, CpuControl)>,
    text: String,
}

fn name(text: &str) -> VmName {
    VmName::new(text).unwrap()
}

fn cpu(count: u32, reserve: u32, limit: u32, weight: u32) -> CpuControl {
    CpuControl { count, reserve_percent: reserve, limit_percent: limit, weight }
}

impl Host {
    fn new(processors: u32, kept: Cores, title: &str, text: String) -> Self {
        let mut host = Self { host: CpuHost { processors, kept }, running: Vec::new(), text };
        let _ = writeln!(host.text, "\n== {title}");
        host
    }

    fn start(&mut self, vm: &str, cpu: CpuControl) -> Result<(), CpuRefusal> {
        cpu.validate().unwrap();
        let promises: Vec<_> = self
            .running
            .iter()
            .map(|(name, cpu)| CpuPromise { name: name.clone(), cores: cpu.reserved() })
            .collect();
        let result = admit_cpu(&self.host, &promises, &name(vm), &cpu);
        let said = match &result {
            Ok(()) => "starts".to_owned(),
            Err(refusal) => refusal.to_string(),
        };
        let _ = writeln!(
            self.text,
            "{vm}: {} × reserve {} %, limit {} %, weight {}: {said}",
            cpu.count, cpu.reserve_percent, cpu.limit_percent, cpu.weight
        );
        if result.is_ok() {
            self.running.push((name(vm), cpu));
        }
        result
    }

    fn stop(&mut self, vm: &str) {
        let _ = writeln!(self.text, "{vm}: is turned off");
        self.running.retain(|(name, _)| name.as_str() != vm);
    }

    /// What the host is told about those that run.
    fn shares(mut self) -> String {
        let cpus: Vec<_> = self.running.iter().map(|(_, cpu)| *cpu).collect();
        for ((name, cpu), weight) in self.running.iter().zip(weights(self.host.cores(), &cpus)) {
            let share = backstay_model::CpuShare { weight, ..cpu.share() };
            let quota = share
                .quota
                .map_or("no quota".to_owned(), |q| format!("{} of {} µs", q.quota_us, q.period_us));
            let _ = writeln!(
                self.text,
                "  {name}: limit {} cores = {quota}, reserve {} cores, cpu.weight {weight}, cpu.shares {}",
                cpu.limit(),
                cpu.reserved(),
                share.v1_shares()
            );
        }
        self.text
    }
}

/// `a`, `b` … `t`
fn letters(count: u8) -> impl Iterator<Item = String> {
    (0..count).map(|i| char::from(b'a' + i).to_string())
}

fn story(cores: u32) -> String {
    let mut host = Host::new(cores, Cores::ZERO, "20 machines, everything reserved", String::new());
    let started = letters(20).filter(|vm| host.start(vm, cpu(1, 100, 100, 100)).is_ok()).count();
    assert_eq!(started, 20.min(cores as usize));

    let mut host = Host::new(cores, Cores::ZERO, "20 machines, limit 10 %", host.shares());
    assert!(letters(20).all(|vm| host.start(&vm, cpu(1, 0, 10, 100)).is_ok()));

    let mut host = Host::new(cores, Cores::ZERO, "all sorts", host.shares());
    let half = cores / 2;
    host.start("db", cpu(half, 75, 100, 200)).unwrap();
    host.start("web", cpu(cores, 25, 75, 100)).unwrap();
    host.start("batch", cpu(cores, 0, 100, 10)).unwrap();
    let refused = host.start("more", cpu(half, 100, 100, 100)).unwrap_err();
    assert!(matches!(refused, CpuRefusal::Reserve { .. }));
    host.start("too wide", cpu(cores + 1, 0, 100, 100)).unwrap_err();
    host.stop("web");
    host.start("more", cpu(half, 100, 100, 100)).unwrap();

    let mut host = Host::new(cores, Cores(150), "the host keeps 1.5 cores", host.shares());
    host.start("all but one", cpu(cores - 1, 100, 100, 100)).unwrap_err();
    host.start("all but two", cpu(cores - 2, 100, 100, 100)).unwrap();
    host.start("half", cpu(1, 50, 100, 100)).unwrap();
    host.start("one percent", cpu(1, 1, 100, 100)).unwrap_err();
    host.start("nothing", cpu(1, 0, 100, 10_000)).unwrap();
    host.shares()
}

fn compare(cores: u32, golden: &str) {
    let text = story(cores);
    assert!(text == golden, "capacity-{cores}.txt differs; it is now:\n{text}");
}

#[test]
fn a_host_with_4_cores() {
    compare(4, include_str!("golden/capacity-4.txt"));
}

#[test]
fn a_host_with_8_cores() {
    compare(8, include_str!("golden/capacity-8.txt"));
}

#[test]
fn a_host_with_64_cores() {
    compare(64, include_str!("golden/capacity-64.txt"));
}

const GIB: u64 = 1 << 30;

fn used(vm: &str, promised: u64, touched: u64) -> MemoryPromise {
    MemoryPromise { name: name(vm), promised, touched }
}

#[test]
fn memory_that_was_promised_and_not_used_yet_is_not_given_away() {
    let host = MemoryHost { available: 12 * GIB, kept: GIB };
    let need = MemoryNeed { guest: 4 * GIB, around: 128 << 20 };
    let running = [used("db", 8 * GIB, GIB), used("web", 2 * GIB, 2 * GIB), used("small", GIB, GIB / 2)];
    let refused = admit_memory(&host, &running, &name("new"), need).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "'new' needs 4.12 GiB of memory (4 GiB for the guest, 128 MiB around it) and 3.5 GiB are left: 12 GiB are available, \
         less 7.5 GiB promised to db, small and not used yet, less 1 GiB kept for the host; lower its memory, or turn off or \
         save a machine"
    );
    // What db has taken meanwhile is gone from both.
    let later = MemoryHost { available: 5 * GIB, kept: GIB };
    let running = [used("db", 8 * GIB, 8 * GIB), used("web", 2 * GIB, 2 * GIB), used("small", GIB, GIB / 2)];
    assert_eq!(admit_memory(&later, &running, &name("new"), need).unwrap_err().left, 7 * GIB / 2);
    let enough = MemoryHost { available: 6 * GIB, kept: GIB };
    admit_memory(&enough, &running, &name("new"), need).unwrap();
}

#[test]
fn nothing_is_promised_and_little_is_there() {
    let host = MemoryHost { available: GIB, kept: GIB / 4 };
    let need = MemoryNeed::of(2048, 1, false);
    let refused = admit_memory(&host, &[], &name("new"), need).unwrap_err().to_string();
    assert!(
        refused.contains("768 MiB are left: 1 GiB are available, less 256 MiB kept for the host"),
        "{refused}"
    );
}

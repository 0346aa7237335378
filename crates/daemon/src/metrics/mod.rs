//! `/metrics` for Prometheus. What is shown of machines is looked up when it is asked for, so a machine that was deleted
//! is gone from the page with its last series.

mod histogram;
mod page;
mod proc;

pub use histogram::TaskTimes;
pub use page::MEDIA_TYPE;

use crate::app::{App, worker_disks};
use crate::inventory::{Machine, blocking};
use backstay_model::{VirtualHardware, VmId, VmState};
use backstay_worker::control::DiskStatus;
use page::{Kind, Label, Page, approximate};
use proc::Usage;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

const STATES: [VmState; 9] = [
    VmState::Off,
    VmState::Starting,
    VmState::Running,
    VmState::Paused,
    VmState::PausedCritical,
    VmState::Saving,
    VmState::Saved,
    VmState::Stopping,
    VmState::Failed,
];

/// One machine with what was looked up for the page.
struct Seen {
    machine: Machine,
    id: String,
    restarts: u64,
    disks: Vec<DiskStatus>,
    worker: Option<Usage>,
    qemu: Option<Usage>,
}

impl Seen {
    fn labels<'a>(&'a self, more: &[Label<'a>]) -> Vec<Label<'a>> {
        [("vm", self.machine.name().as_str()), ("id", &self.id)]
            .into_iter()
            .chain(more.iter().copied())
            .collect()
    }
}

/// The page as it is now.
pub async fn render(app: &App) -> String {
    let seen = look(app).await;
    let roots = roots(app, &seen);
    let space = blocking(move || Ok(space(roots))).await.unwrap_or_default();
    let mut page = Page::default();
    let qemu = app.host.qemu_version().await.map(|version| version.to_string()).unwrap_or_default();
    let build = vec![("version", env!("CARGO_PKG_VERSION")), ("qemu_version", qemu.as_str())];
    page.family("backstay_build_info", Kind::Gauge, "Version of the daemon and of QEMU.", [(build, 1.0)]);
    machines(&mut page, &seen);
    processes(&mut page, &seen);
    drives(&mut page, &seen);
    activity(&mut page, app);
    host(&mut page, app, &space);
    this_process(&mut page);
    page.finish()
}

async fn look(app: &App) -> Vec<Seen> {
    let machines = app.inventory.all();
    let disks = futures_util::future::join_all(machines.iter().map(|machine| async {
        if machine.state.is_active() { worker_disks(app, machine.id).await } else { Vec::new() }
    }))
    .await;
    let pids: Vec<_> = machines
        .iter()
        .map(|m| m.run.as_ref().map_or((None, None), |run| (Some(run.worker_pid), run.qemu_pid)))
        .collect();
    let usages = blocking(move || {
        Ok(pids
            .into_iter()
            .map(|(worker, qemu)| (worker.and_then(proc::usage), qemu.and_then(proc::usage)))
            .collect::<Vec<_>>())
    })
    .await
    .unwrap_or_default();
    let usages = usages.into_iter().chain(std::iter::repeat((None, None)));
    machines
        .into_iter()
        .zip(disks)
        .zip(usages)
        .map(|((machine, disks), (worker, qemu))| {
            let id: VmId = machine.id;
            Seen { restarts: app.workers.restarts(id), id: id.to_string(), machine, disks, worker, qemu }
        })
        .collect()
}

fn machines(page: &mut Page, seen: &[Seen]) {
    let count = |state| approximate(seen.iter().filter(|s| s.machine.state == state).count() as u64);
    let counts = STATES.map(|state| (vec![("state", state.as_str())], count(state)));
    page.family("backstay_vms", Kind::Gauge, "Virtual machines by state.", counts);
    let infos = seen.iter().map(|s| {
        let spec = &s.machine.spec;
        let generation = match spec.hardware {
            VirtualHardware::Gen1 => "1",
            VirtualHardware::Gen2 => "2",
        };
        let accelerator = s.machine.run.as_ref().map_or("", |run| run.accelerator.as_str());
        let more = [
            ("generation", generation),
            ("machine_type", spec.machine_type.as_str()),
            ("accelerator", accelerator),
            ("template", if s.machine.is_template() { "true" } else { "false" }),
        ];
        (s.labels(&more), 1.0)
    });
    page.family("backstay_vm_info", Kind::Gauge, "What a virtual machine is.", infos);
    let states = seen.iter().map(|s| (s.labels(&[("state", s.machine.state.as_str())]), 1.0));
    page.family("backstay_vm_state", Kind::Gauge, "The state a virtual machine is in.", states);
    let gauge = |value: fn(&Machine) -> f64| seen.iter().map(move |s| (s.labels(&[]), value(&s.machine)));
    let cpus = gauge(|m| f64::from(m.spec.cpu.count));
    page.family("backstay_vm_vcpus", Kind::Gauge, "Virtual processors.", cpus);
    let memory = gauge(|m| approximate(m.spec.memory_mib << 20));
    page.family("backstay_vm_memory_bytes", Kind::Gauge, "Memory the guest has.", memory);
    let checkpoints = gauge(|m| approximate(m.checkpoints.all().len() as u64));
    page.family("backstay_vm_checkpoints", Kind::Gauge, "Checkpoints.", checkpoints);
    let oldest = seen.iter().filter_map(|s| {
        let oldest = s.machine.checkpoints.all().into_iter().map(|c| c.created_unix_ms).min()?;
        Some((s.labels(&[]), approximate(u64::try_from(oldest / 1000).unwrap_or(0))))
    });
    let help = "When the oldest checkpoint was taken.";
    page.family("backstay_vm_oldest_checkpoint_timestamp_seconds", Kind::Gauge, help, oldest);
    let restarts = seen.iter().map(|s| (s.labels(&[]), approximate(s.restarts)));
    let help = "Workers that were started again since the daemon was, because the former one had died.";
    page.family("backstay_vm_worker_restarts_total", Kind::Counter, help, restarts);
}

fn processes(page: &mut Page, seen: &[Seen]) {
    let vcpu = seen.iter().filter_map(|s| Some((s.labels(&[]), s.qemu?.vcpu_seconds)));
    let help = "Processor time of the virtual processors' threads since the machine was powered on.";
    page.family("backstay_vm_vcpu_seconds_total", Kind::Counter, help, vcpu);
    let both = |value: fn(&Usage) -> f64| {
        seen.iter().flat_map(move |s| {
            [("qemu", s.qemu), ("worker", s.worker)]
                .into_iter()
                .filter_map(move |(process, usage)| Some((s.labels(&[("process", process)]), value(&usage?))))
        })
    };
    let help = "Processor time of a machine's processes.";
    page.family("backstay_vm_cpu_seconds_total", Kind::Counter, help, both(|u| u.cpu_seconds));
    let help = "Memory of the host that a machine's processes use.";
    page.family("backstay_vm_resident_memory_bytes", Kind::Gauge, help, both(|u| approximate(u.resident)));
}

/// Name and words of a counter of a disk, and where it comes from.
type DiskCounter = (&'static str, &'static str, fn(&DiskStatus) -> u64);

fn drives(page: &mut Page, seen: &[Seen]) {
    let slots: Vec<Vec<String>> =
        seen.iter().map(|s| s.disks.iter().map(|disk| disk.slot.to_string()).collect()).collect();
    let of = |value: fn(&DiskStatus) -> u64| {
        seen.iter().zip(&slots).flat_map(move |(s, slots)| {
            s.disks
                .iter()
                .zip(slots)
                .map(move |(disk, slot)| (s.labels(&[("disk", slot)]), approximate(value(disk))))
        })
    };
    let counters: [DiskCounter; 4] = [
        ("backstay_vm_disk_read_bytes_total", "Bytes the guest read.", |d| d.read_bytes),
        ("backstay_vm_disk_written_bytes_total", "Bytes the guest wrote.", |d| d.written_bytes),
        ("backstay_vm_disk_reads_total", "Read requests.", |d| d.reads),
        ("backstay_vm_disk_writes_total", "Write requests.", |d| d.writes),
    ];
    for (name, help, value) in counters {
        page.family(name, Kind::Counter, help, of(value));
    }
    page.family("backstay_vm_disk_size_bytes", Kind::Gauge, "Size the guest sees.", of(|d| d.size));
    let help = "Files that a read may have to look into.";
    page.family("backstay_vm_disk_chain_length", Kind::Gauge, help, of(|d| d.chain.len() as u64));
}

fn activity(page: &mut Page, app: &App) {
    let durations = app.tasks.times().durations();
    let labelled = durations
        .iter()
        .map(|((operation, outcome), h)| (vec![("operation", operation.as_str()), ("outcome", *outcome)], h));
    page.histograms("backstay_task_duration_seconds", "How long tasks took.", labelled);
    let running = approximate(app.tasks.running() as u64);
    page.family("backstay_tasks_running", Kind::Gauge, "Tasks at work.", [(vec![], running)]);
    let pauses = app.tasks.times().pauses();
    let help = "How long guests stood still for a checkpoint.";
    page.histograms("backstay_checkpoint_pause_seconds", help, [(vec![], &pauses)]);
    let events = app.events.counts();
    let counted = events.iter().map(|(kind, count)| (vec![("kind", kind.as_str())], approximate(*count)));
    page.family(
        "backstay_events_total",
        Kind::Counter,
        "Events written since the daemon was started.",
        counted,
    );
}

fn roots(app: &App, seen: &[Seen]) -> BTreeSet<PathBuf> {
    let folders = seen.iter().map(|s| s.machine.layout.root().to_path_buf());
    folders.chain([app.config.state_dir.clone()]).collect()
}

/// Size and free bytes of each folder's file system. One that is away is left out.
fn space(roots: BTreeSet<PathBuf>) -> BTreeMap<String, (u64, u64)> {
    let look = |root: PathBuf| {
        let stat = rustix::fs::statvfs(&root).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Some((root.display().to_string(), (bytes(stat.f_blocks), bytes(stat.f_bavail))))
    };
    roots.into_iter().filter_map(look).collect()
}

fn host(page: &mut Page, app: &App, space: &BTreeMap<String, (u64, u64)>) {
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let one = |value: f64| [(vec![], value)];
    page.family("backstay_host_cpus", Kind::Gauge, "Processors of this host.", one(approximate(cpus as u64)));
    if let Some((all, available)) = proc::memory() {
        let help = "Memory of this host.";
        page.family("backstay_host_memory_bytes", Kind::Gauge, help, one(approximate(all)));
        let help = "Memory that new machines could have.";
        page.family("backstay_host_memory_available_bytes", Kind::Gauge, help, one(approximate(available)));
    }
    let of = |value: fn(&(u64, u64)) -> u64| {
        space.iter().map(move |(root, sizes)| (vec![("folder", root.as_str())], approximate(value(sizes))))
    };
    let help = "Size of the file system below a folder with machines.";
    page.family("backstay_storage_size_bytes", Kind::Gauge, help, of(|s| s.0));
    let help = "Free bytes of the file system below a folder with machines.";
    page.family("backstay_storage_available_bytes", Kind::Gauge, help, of(|s| s.1));
    let unreadable = approximate(app.inventory.unreadable().len() as u64);
    let help = "Configurations that are there and cannot be read.";
    page.family("backstay_unreadable_configurations", Kind::Gauge, help, one(unreadable));
}

/// Under the names that every Prometheus client uses.
fn this_process(page: &mut Page) {
    let one = |value: f64| [(vec![], value)];
    if let Some(usage) = proc::usage(std::process::id()) {
        let help = "Processor time of the daemon.";
        page.family("process_cpu_seconds_total", Kind::Counter, help, one(usage.cpu_seconds));
        let resident = one(approximate(usage.resident));
        page.family("process_resident_memory_bytes", Kind::Gauge, "Memory of the daemon.", resident);
    }
    if let Some(started) = proc::started() {
        page.family("process_start_time_seconds", Kind::Gauge, "When the daemon was started.", one(started));
    }
    if let Some(files) = proc::open_files() {
        let files = one(approximate(files as u64));
        page.family("process_open_fds", Kind::Gauge, "Descriptors the daemon has open.", files);
    }
}

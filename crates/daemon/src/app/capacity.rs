//! What this host has promised to its machines, and whether there is room for one more.
//!
//! A machine that is on keeps its promise, also while it is paused or restarted by its recovery action; one that is off,
//! saved or failed has none. From the decision to start a machine until it counts as one that is on, its promise is held by
//! a [`Reservation`]: two that start at once never get the same core or byte.

use super::App;
use crate::config::LimitsConfig;
use crate::failure::Failure;
use crate::inventory::{Machine, blocking};
use crate::memory;
use backstay_api::{Blocker, HostCapacity, HostPromise, ProblemCode};
use backstay_model::{
    AccelPolicy, Cores, CpuControl, CpuHost, CpuPromise, MemoryHost, MemoryNeed, MemoryPromise, VmId, VmName,
    VmSpec, VmState, admit_cpu, admit_memory, memory_kept_by_default, memory_left,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Promises of machines that are being started, or whose reserve is being raised.
#[derive(Debug, Default)]
pub struct Promises {
    pending: Mutex<BTreeMap<VmId, Promise>>,
}

impl Promises {
    fn pending(&self) -> MutexGuard<'_, BTreeMap<VmId, Promise>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one machine was promised.
#[derive(Clone, Debug)]
struct Promise {
    name: VmName,
    state: VmState,
    cpu: CpuControl,
    /// In bytes: all, and what its processes have made their own.
    memory: u64,
    used: u64,
}

/// Holds a promise until it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    app: Arc<App>,
    id: VmId,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.app.promises.pending().remove(&self.id);
    }
}

/// The processors that are counted.
pub(super) fn cpu_host(limits: &LimitsConfig) -> CpuHost {
    let here =
        || std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    CpuHost { processors: limits.cores.unwrap_or_else(here), kept: limits.host_cores }
}

/// Refuses more virtual processors than the host has.
pub(super) fn check_count(app: &App, name: &VmName, cpu: &CpuControl) -> Result<(), Failure> {
    // Without a reserve only the number counts.
    let alone = CpuControl { reserve_percent: 0, ..*cpu };
    admit_cpu(&cpu_host(&app.config.limits), &[], name, &alone)
        .map_err(|refusal| Failure::invalid(refusal.to_string()))
}

/// What everybody was promised. Blocking: looks at processes.
fn promises(app: &App, pending: &BTreeMap<VmId, Promise>, emulated: bool) -> BTreeMap<VmId, Promise> {
    let mut all = BTreeMap::new();
    for machine in app.inventory.all() {
        if machine.state.is_active() {
            let emulated = machine.run.as_ref().map_or(emulated, |run| run.accelerator != "kvm");
            let pids = machine.run.iter().flat_map(|run| [run.qemu_pid, Some(run.worker_pid)]).flatten();
            let promise = Promise {
                name: machine.name().clone(),
                state: machine.state,
                cpu: machine.spec.cpu,
                memory: need_of(&machine.spec, emulated).total(),
                used: pids.map(memory::used_by).sum(),
            };
            all.insert(machine.id, promise);
        }
    }
    for (id, promise) in pending {
        let used = all.get(id).map_or(0, |running| running.used);
        all.insert(*id, Promise { used, ..promise.clone() });
    }
    all
}

/// What everybody but one machine was promised.
struct Others {
    promises: BTreeMap<VmId, Promise>,
    /// Bytes that the machine itself gives back before it takes any: one that is on is turned off first.
    returned: u64,
}

fn others(app: &App, pending: &BTreeMap<VmId, Promise>, except: VmId, emulated: bool) -> Others {
    let mut promises = promises(app, pending, emulated);
    let returned = promises.remove(&except).map_or(0, |own| own.used);
    Others { promises, returned }
}

fn need_of(spec: &VmSpec, emulated: bool) -> MemoryNeed {
    MemoryNeed::of(spec.memory_mib, spec.cpu.count, emulated)
}

/// As a list of machines is read.
fn by_name(promises: &BTreeMap<VmId, Promise>) -> impl Iterator<Item = &Promise> {
    let mut all: Vec<_> = promises.values().collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all.into_iter()
}

fn cpu_promises(promises: &BTreeMap<VmId, Promise>) -> Vec<CpuPromise> {
    by_name(promises).map(|p| CpuPromise { name: p.name.clone(), cores: p.cpu.reserved() }).collect()
}

fn memory_promises(promises: &BTreeMap<VmId, Promise>) -> Vec<MemoryPromise> {
    let of = |p: &Promise| MemoryPromise { name: p.name.clone(), promised: p.memory, touched: p.used };
    by_name(promises).map(of).collect()
}

/// Memory that counts, with the word of the settings. `returned`: bytes that will be available besides.
fn counted(
    limits: &LimitsConfig,
    mut memory: memory::Memory,
    promises: &BTreeMap<VmId, Promise>,
    returned: u64,
) -> (memory::Memory, MemoryHost) {
    memory.available = memory.available.saturating_add(returned).min(memory.total);
    if let Some(most) = limits.memory.filter(|most| *most < memory.total) {
        let used: u64 = promises.values().map(|p| p.used).sum();
        memory.total = most;
        memory.available = memory.available.min(most.saturating_sub(used));
        memory.limited_by = Some("[limits] memory".into());
    }
    let kept = limits.host_memory.unwrap_or_else(|| memory_kept_by_default(memory.total));
    let host = MemoryHost { available: memory.available, kept };
    (memory, host)
}

fn blockers(app: &App, others: &Others, spec: &VmSpec, emulated: bool) -> Vec<Blocker> {
    let Others { promises, returned } = others;
    let limits = &app.config.limits;
    let blocker = |detail: String| Blocker { code: ProblemCode::Precondition, detail, cure: None };
    let cpu = admit_cpu(&cpu_host(limits), &cpu_promises(promises), &spec.name, &spec.cpu).err();
    let (_, host) = counted(limits, memory::look(), promises, *returned);
    let memory = admit_memory(&host, &memory_promises(promises), &spec.name, need_of(spec, emulated)).err();
    cpu.map(|refusal| blocker(refusal.to_string()))
        .into_iter()
        .chain(memory.map(|refusal| blocker(refusal.to_string())))
        .collect()
}

async fn is_emulated(app: &App, policy: AccelPolicy) -> bool {
    app.host.accelerator(policy).await.is_ok_and(|choice| choice.accel.as_str() != "kvm")
}

/// What stands in the way of a start now.
pub(super) async fn obstacles(app: &Arc<App>, machine: &Machine) -> Result<Vec<Blocker>, Failure> {
    let emulated = is_emulated(app, machine.spec.accel).await;
    let (app, machine) = (Arc::clone(app), machine.clone());
    blocking(move || {
        let pending = app.promises.pending().clone();
        let others = others(&app, &pending, machine.id, emulated);
        Ok(blockers(&app, &others, &machine.spec, emulated))
    })
    .await
}

/// Holds what a machine needs that is about to be started with `spec`. Keep it until the machine counts as one that is on.
///
/// # Errors
/// `precondition`, with the arithmetic; nothing is held then.
pub(super) async fn reserve(app: &Arc<App>, spec: &VmSpec) -> Result<Reservation, Failure> {
    let emulated = is_emulated(app, spec.accel).await;
    let (app, spec) = (Arc::clone(app), spec.clone());
    blocking(move || {
        // Looking and holding are one step.
        let mut pending = app.promises.pending();
        let others = others(&app, &pending, spec.id, emulated);
        let blockers = blockers(&app, &others, &spec, emulated);
        if !blockers.is_empty() {
            let words = format!("there is no room for '{}'", spec.name);
            return Err(Failure::precondition(words).with_blockers(blockers));
        }
        hold(&mut pending, &spec, emulated);
        drop(pending);
        Ok(Reservation { app, id: spec.id })
    })
    .await
}

/// Holds the reserve of a machine that is on and is to get other settings.
///
/// # Errors
/// `precondition`, with the arithmetic.
pub(super) async fn reserve_cores(app: &Arc<App>, spec: &VmSpec) -> Result<Reservation, Failure> {
    let emulated = is_emulated(app, spec.accel).await;
    let (app, spec) = (Arc::clone(app), spec.clone());
    blocking(move || {
        let mut pending = app.promises.pending();
        // What it has already is not asked again, also where more is promised than there is: settings of the host may change.
        if spec.cpu.reserved() > app.inventory.get(spec.id)?.spec.cpu.reserved() {
            let Others { promises, .. } = others(&app, &pending, spec.id, emulated);
            admit_cpu(&cpu_host(&app.config.limits), &cpu_promises(&promises), &spec.name, &spec.cpu)
                .map_err(|refusal| Failure::precondition(refusal.to_string()))?;
        }
        hold(&mut pending, &spec, emulated);
        drop(pending);
        Ok(Reservation { app, id: spec.id })
    })
    .await
}

fn hold(pending: &mut BTreeMap<VmId, Promise>, spec: &VmSpec, emulated: bool) {
    let memory = need_of(spec, emulated).total();
    let promise =
        Promise { name: spec.name.clone(), state: VmState::Starting, cpu: spec.cpu, memory, used: 0 };
    pending.insert(spec.id, promise);
}

/// The processor settings of all that are on or being started.
pub(super) fn processors(app: &App) -> Vec<(VmId, CpuControl)> {
    let active = app.inventory.all().into_iter().filter(|machine| machine.state.is_active());
    let mut all: BTreeMap<_, _> = active.map(|machine| (machine.id, machine.spec.cpu)).collect();
    all.extend(app.promises.pending().iter().map(|(id, promise)| (*id, promise.cpu)));
    all.into_iter().collect()
}

/// What was promised and what is left.
///
/// # Errors
/// A fault of Backstay.
pub async fn capacity(app: &Arc<App>) -> Result<HostCapacity, Failure> {
    let emulated = is_emulated(app, AccelPolicy::Auto).await;
    let app = Arc::clone(app);
    blocking(move || {
        let pending = app.promises.pending().clone();
        let all = promises(&app, &pending, emulated);
        let limits = &app.config.limits;
        let cpu = cpu_host(limits);
        let promised: Cores = all.values().map(|p| p.cpu.reserved()).sum();
        let (memory, host) = counted(limits, memory::look(), &all, 0);
        let of_memory = memory_promises(&all);
        let control = app.processors.way();
        let item = |(id, p): (&VmId, &Promise)| HostPromise {
            id: *id,
            name: p.name.to_string(),
            state: p.state,
            cores: p.cpu.reserved().as_f64(),
            memory_bytes: p.memory,
            memory_used_bytes: p.used,
        };
        Ok(HostCapacity {
            processors: cpu.processors,
            cores_kept: cpu.kept.as_f64(),
            cores_promised: promised.as_f64(),
            cores_left: cpu.cores().saturating_sub(promised).as_f64(),
            memory_bytes: memory.total,
            memory_available_bytes: memory.available,
            memory_limited_by: memory.limited_by,
            memory_kept_bytes: host.kept,
            memory_promised_bytes: all.values().map(|p| p.memory).sum(),
            memory_outstanding_bytes: of_memory.iter().map(MemoryPromise::outstanding).sum(),
            memory_left_bytes: memory_left(&host, &of_memory),
            processor_control: control.as_ref().is_ok(),
            processor_control_reason: control.unwrap_or_else(|none| none),
            promises: {
                let mut items: Vec<HostPromise> = all.iter().map(item).collect();
                items.sort_by(|a, b| a.name.cmp(&b.name));
                items
            },
        })
    })
    .await
}

#[cfg(test)]
mod tests;

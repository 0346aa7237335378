//! One merge: by the worker that has the file open, else in a thread of the daemon. In both cases it can be stopped at any
//! time, and the next one goes on from there.

use super::App;
use super::merge::keep_rate;
use super::merge_files::name_in;
use super::usage::{same_file, worker_disks};
use crate::disks::{code_of, merge_failure};
use crate::failure::{Failure, chain};
use crate::inventory::Machine;
use crate::tasks::{BackgroundHold, TaskContext};
use backstay_api::ProblemCode;
use backstay_disk::{DiskOptions, MergeControl, MergeError, fs::HostFs, mark_saved_state, merge_offline};
use backstay_model::{DriveSlot, Merging, VmId};
use backstay_worker::control::{MergeOutcome, MergeRequest, Reply, Request};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const QUICK: Duration = Duration::from_secs(20);
/// How often progress is asked for.
const STEP: Duration = Duration::from_millis(200);
/// How often, while it ends.
const ENDING: Duration = Duration::from_millis(20);

/// How a merge ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// The upper file is empty and off every chain.
    Whole {
        /// Bytes copied.
        bytes_moved: u64,
    },
    /// Somebody wants the machine, cancelled, or the worker was lost.
    Stopped,
}

/// What a merge listens to.
pub(super) struct Running<'a> {
    pub(super) app: &'a Arc<App>,
    pub(super) context: &'a TaskContext,
    pub(super) hold: &'a BackgroundHold,
    pub(super) rate: &'a watch::Receiver<Option<u64>>,
}

impl Running<'_> {
    /// Waits until the merge has to end.
    async fn end_wanted(&self) {
        tokio::select! {
            () = self.hold.wanted() => {}
            () = self.context.cancelled() => {}
        }
    }

    async fn keep_rate(&self, vm: VmId, rate: Option<u64>) {
        if let Err(failure) = keep_rate(self.app, vm, rate).await {
            tracing::warn!(%vm, error = failure.full_message(), "the limit of a merge will be forgotten");
        }
    }

    fn progress(&self, done: u64, total: u64, bytes: u64) {
        let percent = done.min(total).saturating_mul(98).checked_div(total).unwrap_or(0);
        let words = format!("merging: {done} of {total} blocks, {} MiB copied", bytes >> 20);
        self.context.progress(1 + u8::try_from(percent).unwrap_or(98), &words);
    }
}

/// Merges `upper` into `lower`.
pub(super) async fn merge(
    running: &Running<'_>,
    machine: &Machine,
    merging: &Merging,
    children: &[PathBuf],
) -> Result<Ran, Failure> {
    if machine.state.is_active() {
        let disks = worker_disks(running.app, machine.id).await;
        if disks.is_empty() && !machine.disks().is_empty() {
            // Between two workers: nobody knows what is open.
            return Ok(Ran::Stopped);
        }
        let real: Vec<(DriveSlot, Vec<PathBuf>)> = disks
            .into_iter()
            .map(|disk| (disk.slot, disk.chain.iter().map(|file| same_file(file)).collect()))
            .collect();
        let has = |file: &PathBuf| real.iter().find(|(_, chain)| chain.contains(file));
        // With the lower one only, the worker was just told to go on without the upper one: it is off the chain.
        if let Some((slot, chain)) = has(&merging.upper).or_else(|| has(&merging.lower)) {
            let request = MergeRequest {
                slot: *slot,
                upper: name_in(machine, &merging.upper),
                lower: name_in(machine, &merging.lower),
                children: children.iter().filter(|child| !chain.contains(child)).cloned().collect(),
                rate: *running.rate.borrow(),
            };
            return by_worker(running, machine.id, request).await;
        }
    }
    by_daemon(running, machine.id, merging, children).await
}

/// Ends a merge that a former daemon left to the worker: its files cannot be looked at while it goes on, and what it did
/// stays done.
pub(super) async fn stop_former(app: &App, machine: &Machine) -> Result<(), Failure> {
    let Some(merging) = machine.config.merging().filter(|_| machine.state.is_active()) else { return Ok(()) };
    let upper = merging.upper;
    let limit = tokio::time::Instant::now() + QUICK;
    while let Ok(Reply::Merge(MergeOutcome::Running { .. })) =
        app.workers.call(machine.id, Request::MergeStatus { upper: upper.clone() }, QUICK).await
    {
        if tokio::time::Instant::now() > limit {
            let words = format!("the merge of {} does not end: its storage does not answer", upper.display());
            return Err(Failure::new(ProblemCode::InUse, words));
        }
        let _ = app.workers.call(machine.id, Request::CancelMerge { upper: upper.clone() }, QUICK).await;
        tokio::time::sleep(ENDING).await;
    }
    Ok(())
}

/// A worker moved the top away while no daemon watched: the configuration names a file that is off the chain, and the guest
/// writes to the one below. The worker makes sure of it; which disk it is comes back with what was copied.
pub(super) async fn finished_meanwhile(
    running: &Running<'_>,
    machine: &Machine,
) -> Result<Option<(Merging, DriveSlot, u64)>, Failure> {
    let Some(named) = machine.config.merging().filter(|_| machine.state.is_active()) else { return Ok(None) };
    let real = Merging { upper: same_file(&named.upper), lower: same_file(&named.lower) };
    let disk = machine.disks().into_iter().find(|(_, file)| same_file(file) == real.upper);
    let Some((slot, _)) = disk else { return Ok(None) };
    let disks = worker_disks(running.app, machine.id).await;
    let Some(disk) = disks.iter().find(|disk| disk.slot == slot) else { return Ok(None) };
    let chain: Vec<PathBuf> = disk.chain.iter().map(|file| same_file(file)).collect();
    if chain.contains(&real.upper) || chain.first() != Some(&real.lower) {
        return Ok(None);
    }
    let request = MergeRequest {
        slot,
        upper: named.upper,
        lower: named.lower,
        children: Vec::new(),
        rate: *running.rate.borrow(),
    };
    match by_worker(running, machine.id, request).await? {
        Ran::Whole { bytes_moved } => Ok(Some((real, slot, bytes_moved))),
        Ran::Stopped => Ok(None),
    }
}

async fn by_worker(running: &Running<'_>, vm: VmId, request: MergeRequest) -> Result<Ran, Failure> {
    let workers = &running.app.workers;
    let upper = request.upper.clone();
    let mut rate = running.rate.clone();
    rate.mark_unchanged();
    match workers.call(vm, Request::MergeLayer(request), QUICK).await {
        Ok(_) => {}
        // It merges another layer, or its disks are not as they were looked at: both pass.
        Err(refused) if refused.code() == ProblemCode::Precondition => {
            return Err(Failure::because(ProblemCode::InUse, "the merge did not begin", refused));
        }
        Err(lost) => {
            tracing::debug!(%vm, error = lost.full_message(), "a merge could not begin");
            return Ok(Ran::Stopped);
        }
    }
    let mut ending = false;
    loop {
        match workers.call(vm, Request::MergeStatus { upper: upper.clone() }, QUICK).await {
            Ok(Reply::Merge(MergeOutcome::Running { blocks_total, blocks_done, bytes_moved })) => {
                running.progress(blocks_done, blocks_total, bytes_moved);
            }
            Ok(Reply::Merge(MergeOutcome::Complete { bytes_moved })) => {
                return Ok(Ran::Whole { bytes_moved });
            }
            Ok(Reply::Merge(MergeOutcome::Failed { message, kind })) => {
                return Err(Failure::new(code_of(kind), message));
            }
            // Stopped, or another worker took over.
            _ => return Ok(Ran::Stopped),
        }
        tokio::select! {
            () = tokio::time::sleep(if ending { ENDING } else { STEP }) => {}
            () = running.end_wanted(), if !ending => {
                ending = true;
                let _ = workers.call(vm, Request::CancelMerge { upper: upper.clone() }, QUICK).await;
            }
            Ok(()) = rate.changed() => {
                let wanted = *rate.borrow_and_update();
                running.keep_rate(vm, wanted).await;
                let request = Request::MergeRate { upper: upper.clone(), rate: wanted };
                let _ = workers.call(vm, request, QUICK).await;
            }
        }
    }
}

async fn by_daemon(
    running: &Running<'_>,
    vm: VmId,
    merging: &Merging,
    children: &[PathBuf],
) -> Result<Ran, Failure> {
    let control = Arc::new(MergeControl::new());
    let mut rate = running.rate.clone();
    control.set_rate(*rate.borrow_and_update());
    let (upper, lower) = (merging.upper.clone(), merging.lower.clone());
    let (children, how, guard) = (children.to_vec(), Arc::clone(&control), running.app.config.guard);
    let mut thread = tokio::task::spawn_blocking(move || {
        let options =
            DiskOptions { runtime_dir: DiskOptions::default_runtime_dir(), ..DiskOptions::default() };
        for file in [&upper, &lower] {
            // The machine is not saved: a mark that is left hinders for nothing. What is wrong else, the merge says.
            if let Err(error) = mark_saved_state(file, false) {
                tracing::debug!(file = %file.display(), error = chain(&error), "a mark of a saved machine is left");
            }
        }
        how.keep_free(guard.reserve_beside(&lower));
        merge_offline(&HostFs::shared(), &upper, &children, &options, &how)
    });
    let mut ending = false;
    loop {
        tokio::select! {
            ended = &mut thread => {
                return match ended {
                    Ok(Ok(merged)) => Ok(Ran::Whole { bytes_moved: merged.bytes_moved }),
                    Ok(Err(MergeError::Cancelled { .. } | MergeError::Closed { .. })) => Ok(Ran::Stopped),
                    Ok(Err(error)) => Err(merge_failure(error)),
                    Err(fault) => Err(Failure::because(
                        ProblemCode::Internal,
                        "a merge ended by a fault of Backstay",
                        fault,
                    )),
                };
            }
            () = tokio::time::sleep(STEP) => {
                let progress = control.progress();
                running.progress(progress.blocks_done, progress.blocks_total, progress.bytes_moved);
            }
            () = running.end_wanted(), if !ending => {
                ending = true;
                control.cancel();
            }
            Ok(()) = rate.changed() => {
                let wanted = *rate.borrow_and_update();
                control.set_rate(wanted);
                running.keep_rate(vm, wanted).await;
            }
        }
    }
}

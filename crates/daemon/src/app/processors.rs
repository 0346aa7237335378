//! Telling the workers what their processors get: the settings, and the weight that follows from everybody's reserves.

use super::App;
use super::capacity::{cpu_host, processors};
use crate::failure::Failure;
use backstay_model::{CpuControl, VmId, weights};
use backstay_worker::control::Request;
use backstay_worker::processors::{HostFolders, HostTree, ProcessorOrder, ProcessorSettings, probe};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How long a worker may take to change its control group.
const ANSWER: Duration = Duration::from_secs(30);

/// What the workers were told.
#[derive(Debug)]
pub struct Processors {
    settings: ProcessorSettings,
    /// Held while workers are told, so that the last word is the right one.
    turn: tokio::sync::Mutex<()>,
    told: Mutex<BTreeMap<VmId, (u32, ProcessorOrder)>>,
    changed: Notify,
}

impl Processors {
    /// Nobody was told anything yet.
    #[must_use]
    pub fn new(settings: ProcessorSettings) -> Self {
        Self { settings, turn: tokio::sync::Mutex::default(), told: Mutex::default(), changed: Notify::new() }
    }

    /// How control groups are made.
    #[must_use]
    pub fn settings(&self) -> &ProcessorSettings {
        &self.settings
    }

    /// How limits and weights act on this host, or why they do not. Blocking.
    pub fn way(&self) -> Result<String, String> {
        probe(&self.settings, &HostTree::here(), &HostFolders)
            .map(|way| way.words())
            .map_err(|none| none.to_string())
    }

    /// A machine came or went, or its worker did: the weights of the others may have to follow.
    pub fn changed(&self) {
        self.changed.notify_one();
    }
}

/// Follows changes until the daemon ends.
pub async fn keep(app: Arc<App>) {
    loop {
        app.processors.changed.notified().await;
        for (vm, failure) in share_out(&app).await {
            tracing::info!(%vm, error = failure.full_message(), "processor settings do not act");
        }
    }
}

/// The weight of `vm` among all that are on.
pub(super) fn weight_of(app: &App, vm: VmId) -> Option<u32> {
    orders(app).remove(&vm).and_then(|order| order.weight)
}

fn orders(app: &App) -> BTreeMap<VmId, ProcessorOrder> {
    let all = processors(app);
    let cpus: Vec<CpuControl> = all.iter().map(|(_, cpu)| *cpu).collect();
    let weights = weights(cpu_host(&app.config.limits).cores(), &cpus);
    let order = |((id, control), weight): (&(VmId, CpuControl), u32)| {
        (*id, ProcessorOrder { control: *control, weight: Some(weight) })
    };
    all.iter().zip(weights).map(order).collect()
}

/// Tells every worker what has changed for it. Returns those that could not follow.
pub(super) async fn share_out(app: &Arc<App>) -> BTreeMap<VmId, Failure> {
    let _turn = app.processors.turn.lock().await;
    let orders = orders(app);
    let known = {
        let mut told = app.processors.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|id, _| orders.contains_key(id));
        told.clone()
    };
    let tell = orders.into_iter().filter_map(|(id, order)| {
        let worker = app.inventory.get(id).ok()?.run?.worker_pid;
        // Whoever is not there yet is told when it comes.
        let news = known.get(&id) != Some(&(worker, order)) && app.workers.is_connected(id);
        news.then_some(async move {
            let answer = app.workers.call(id, Request::SetProcessors(order), ANSWER).await;
            (id, (worker, order), answer.map(drop))
        })
    });
    let mut failed = BTreeMap::new();
    for (id, said, answer) in futures_util::future::join_all(tell).await {
        match answer {
            Ok(()) => {
                app.processors.told.lock().unwrap_or_else(PoisonError::into_inner).insert(id, said);
            }
            Err(failure) => {
                failed.insert(id, failure);
            }
        }
    }
    failed
}

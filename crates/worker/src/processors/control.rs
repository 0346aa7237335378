//! The task that keeps the processors of one machine where they belong: orders one after the other, so that the last
//! one wins.

use super::{Driver, HostFolders, HostTree, ProcessorOrder, ProcessorSettings, Threads, driver, probe};
use crate::control::WorkerEvent;
use crate::events::Spool;
use crate::report::chain_of;
use backstay_model::{CpuControl, VmId};
use backstay_qemu::qmp::Qmp;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long a group may stay busy after its last process has ended.
const EMPTYING: Duration = Duration::from_secs(2);

type Told = oneshot::Sender<Result<(), String>>;

#[derive(Debug)]
enum Step {
    Apply { qmp: Qmp, qemu: u32, order: ProcessorOrder, told: Told },
    Remove { told: oneshot::Sender<()> },
}

/// A way to give orders. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    steps: mpsc::UnboundedSender<Step>,
    shown: Arc<Mutex<String>>,
}

impl Control {
    /// Starts the task. `place` is what a former worker told.
    pub(crate) fn start(settings: ProcessorSettings, vm: VmId, spool: Arc<Spool>) -> Self {
        let (steps, received) = mpsc::unbounded_channel();
        let shown = Arc::new(Mutex::new(String::new()));
        let task = Task { settings, vm, spool, shown: Arc::clone(&shown), driver: None, warned: None };
        tokio::spawn(task.run(received));
        Self { steps, shown }
    }

    /// Puts the processors of `qemu` where they belong. The answer comes when that is done, or why not; who does not need
    /// it drops it.
    pub(crate) fn apply(
        &self,
        qmp: Qmp,
        qemu: u32,
        order: ProcessorOrder,
    ) -> oneshot::Receiver<Result<(), String>> {
        let (told, answer) = oneshot::channel();
        let _ = self.steps.send(Step::Apply { qmp, qemu, order, told });
        answer
    }

    /// QEMU has ended for good.
    pub(crate) async fn remove(&self) {
        let (told, done) = oneshot::channel();
        let _ = self.steps.send(Step::Remove { told });
        let _ = done.await;
    }

    /// Where the processors are, or why nowhere, for people.
    pub(crate) fn shown(&self) -> String {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Task {
    settings: ProcessorSettings,
    vm: VmId,
    spool: Arc<Spool>,
    shown: Arc<Mutex<String>>,
    driver: Option<Arc<dyn Driver>>,
    warned: Option<String>,
}

impl Task {
    async fn run(mut self, mut steps: mpsc::UnboundedReceiver<Step>) {
        while let Some(step) = steps.recv().await {
            match step {
                Step::Apply { qmp, qemu, order, told } => {
                    let result = self.apply(&qmp, qemu, order).await;
                    let _ = told.send(result);
                }
                Step::Remove { told } => {
                    self.remove().await;
                    let _ = told.send(());
                }
            }
        }
    }

    async fn apply(&mut self, qmp: &Qmp, qemu: u32, order: ProcessorOrder) -> Result<(), String> {
        let driver = match self.driver().await {
            Ok(driver) => driver,
            Err(reason) => return Err(self.failed(&order, reason)),
        };
        // QEMU ending is told elsewhere.
        let cpus = qmp.query_cpus_fast().await.map_err(|error| chain_of(&error))?;
        let threads = Threads { qemu, vcpus: cpus.into_iter().map(|cpu| cpu.thread_id).collect() };
        let worked = Arc::clone(&driver);
        let result = tokio::task::spawn_blocking(move || worked.apply(&threads, &order.share())).await;
        match result {
            Ok(Ok(())) => {
                self.warned = None;
                self.show(driver.place());
                Ok(())
            }
            Ok(Err(error)) => Err(self.failed(&order, chain_of(&error))),
            Err(panic) => Err(self.failed(&order, panic.to_string())),
        }
    }

    async fn driver(&mut self) -> Result<Arc<dyn Driver>, String> {
        if let Some(driver) = &self.driver {
            return Ok(Arc::clone(driver));
        }
        let settings = self.settings.clone();
        let found = tokio::task::spawn_blocking(move || {
            probe(&settings, &HostTree::here(), &HostFolders).map(|way| (way, settings))
        });
        let (way, settings) =
            found.await.map_err(|panic| panic.to_string())?.map_err(|none| none.to_string())?;
        let driver: Arc<dyn Driver> = driver(&way, &settings, self.vm).into();
        self.driver = Some(Arc::clone(&driver));
        Ok(driver)
    }

    /// Says so once, and only where somebody has asked for something.
    fn failed(&mut self, order: &ProcessorOrder, reason: String) -> String {
        self.show(format!("none: {reason}"));
        let asked = CpuControl { count: order.control.count, ..CpuControl::default() } != order.control;
        if asked && self.warned.as_ref() != Some(&reason) {
            let message = format!("processor limit, reserve and weight do not act: {reason}");
            self.spool.append(jiff::Timestamp::now().as_millisecond(), WorkerEvent::Warning { message });
            self.warned = Some(reason.clone());
        }
        reason
    }

    fn show(&self, words: String) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = words;
    }

    async fn remove(&mut self) {
        let Ok(driver) = self.driver().await else { return };
        let limit = tokio::time::Instant::now() + EMPTYING;
        loop {
            let worked = Arc::clone(&driver);
            let result = tokio::task::spawn_blocking(move || worked.remove()).await;
            match result {
                // The last threads of a process leave its group a moment after its end is seen.
                Ok(Err(error)) if tokio::time::Instant::now() < limit => {
                    tracing::debug!(error = chain_of(&error), "the control group is not empty yet");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Ok(Err(error)) => {
                    return tracing::warn!(error = chain_of(&error), "the control group stays");
                }
                _ => return,
            }
        }
    }
}

//! The task engine: everything that changes something runs here, in a task of its own that goes on whether or not
//! anybody waits for it, and holds what it works on so that nothing else does.

mod context;
mod holds;
mod keys;

pub use context::{TaskContext, cancelled};
pub use holds::{BackgroundHold, Hold, Holds, Way};

use crate::failure::{Failure, chain};
use crate::metrics::TaskTimes;
use crate::store::{Idempotency, Store, StoreError, StoredTask};
use backstay_api::{ObjectKind, ObjectRef, ProblemCode, Task, TaskState};
use backstay_model::{TaskId, VmId};
use jiff::Timestamp;
use keys::{Claim, Keys};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tracing::Instrument as _;
use uuid::Uuid;

/// Who asks, and how.
#[derive(Clone, Debug)]
pub struct Caller {
    /// A user's name, or `backstay`.
    pub who: String,
    /// Key and text of the call, when it may be repeated.
    pub idempotency: Option<(String, String)>,
}

impl Caller {
    /// What happens by itself.
    #[must_use]
    pub fn backstay() -> Self {
        Self { who: "backstay".into(), idempotency: None }
    }
}

/// What a new task is.
#[derive(Clone, Debug)]
pub struct TaskSpec {
    /// `vm.start`, `checkpoint.create` …
    pub operation: &'static str,
    /// What it works on.
    pub object: ObjectRef,
    /// What nothing else may work on meanwhile.
    pub holds: Vec<Hold>,
    /// Whether cancelling is possible from the start.
    pub cancellable: bool,
    /// Whether an urgent operation on the same thing may cancel it.
    pub yields: bool,
}

/// How one running task is watched and cancelled.
#[derive(Debug)]
struct Running {
    record: watch::Sender<Task>,
    cancel: watch::Sender<bool>,
    yields: bool,
}

/// The task engine.
#[derive(Debug)]
pub struct TaskEngine {
    store: Store,
    running: Mutex<BTreeMap<TaskId, Arc<Running>>>,
    /// The last tasks that ended: whoever waits for one hears of its end even if the history could not be written.
    recent: Mutex<VecDeque<Task>>,
    holds: Holds,
    keys: Keys,
    times: TaskTimes,
}

/// How long an urgent operation waits for those that yield to it.
const PREEMPT: Duration = Duration::from_secs(2);

/// Ended tasks that are kept in memory.
const RECENT: usize = 64;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The problem of a database that does not take a record.
#[must_use]
pub fn store_failure(error: StoreError) -> Failure {
    let (code, words) = if error.is_full() {
        (ProblemCode::NoSpace, "no space is left for the daemon's history in its state folder: make room")
    } else {
        (ProblemCode::Unavailable, "the daemon's database cannot be used")
    };
    Failure::because(code, words, error)
}

impl TaskEngine {
    /// An engine without tasks.
    #[must_use]
    pub fn new(store: Store) -> Arc<Self> {
        Arc::new(Self {
            store,
            running: Mutex::new(BTreeMap::new()),
            recent: Mutex::new(VecDeque::new()),
            holds: Holds::default(),
            keys: Keys::default(),
            times: TaskTimes::default(),
        })
    }

    /// Accepts a task and lets it run. The task is on disk when this returns; a history that cannot be written stops
    /// nothing, because a machine must be manageable just when the disk is full. A call that is repeated with its key
    /// gets the task of the first one, also when both come at the same moment.
    ///
    /// # Errors
    /// `busy` when something else holds the same thing; the message names that task. `invalid` when the key belongs to
    /// another call.
    pub async fn start<F, Fut>(
        self: &Arc<Self>,
        spec: TaskSpec,
        caller: &Caller,
        work: F,
    ) -> Result<Task, Failure>
    where
        F: FnOnce(TaskContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<serde_json::Value>, Failure>> + Send + 'static,
    {
        let id = TaskId(Uuid::new_v4());
        let _way = self.holds.make_way(&spec.holds).await;
        let take = || self.holds.take(id, spec.operation, &spec.holds);
        let (held, accepted) = match &caller.idempotency {
            None => (take()?, None),
            Some((key, request)) => match self.keys.claim(key, request, id, take)? {
                Claim::New(held, accepted) => (held, Some(accepted)),
                Claim::Taken(former) => return self.get(former.accepted().await).await,
            },
        };
        let task = Task {
            id,
            operation: spec.operation.into(),
            object: spec.object,
            state: TaskState::Running,
            progress: 0,
            message: String::new(),
            cancellable: spec.cancellable,
            who: caller.who.clone(),
            created: Timestamp::now(),
            finished: None,
            error: None,
            result: None,
            warnings: Vec::new(),
            revision: 1,
        };
        let vm = vm_of(&task);
        let idempotency = caller.idempotency.clone().map(|(key, request)| Idempotency { key, request });
        let mut task = task;
        let engine = Arc::clone(self);
        // A caller who hangs up ends its call at any await. A task that is on disk must run, so this part goes on alone.
        let accept = tokio::spawn(async move {
            if let Err(error) = engine.store.insert_task(&task, vm, idempotency).await {
                tracing::error!(%id, error = chain(&error), "a task could not be written to the history");
                task.warnings.push(store_failure(error).full_message());
            }
            engine.spawn(task.clone(), held, spec.yields, work);
            drop(accepted);
            task
        });
        accept.await.map_err(|error| {
            Failure::because(
                ProblemCode::Internal,
                "the task could not be started: see the daemon's log",
                error,
            )
        })
    }

    /// Takes up a task of a former daemon under its old id.
    ///
    /// # Errors
    /// `busy`, as [`TaskEngine::start`].
    pub fn resume<F, Fut>(
        self: &Arc<Self>,
        stored: StoredTask,
        holds: &[Hold],
        work: F,
    ) -> Result<(), Failure>
    where
        F: FnOnce(TaskContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<serde_json::Value>, Failure>> + Send + 'static,
    {
        let held = self.holds.take(stored.task.id, "recovery", holds)?;
        self.spawn(stored.task, held, false, work);
        Ok(())
    }

    /// Ends a task of a former daemon that cannot be taken up.
    pub async fn interrupt(&self, mut task: Task, detail: &str) {
        let failure = Failure::new(ProblemCode::Interrupted, detail);
        task.error = Some(failure.to_problem());
        task.state = TaskState::Failed;
        task.cancellable = false;
        task.finished = Some(Timestamp::now());
        task.revision += 1;
        if let Err(error) = self.store.update_task(&task).await {
            tracing::error!(task = %task.id, error = chain(&error), "the end of a task could not be written");
        }
    }

    fn spawn<F, Fut>(self: &Arc<Self>, task: Task, held: holds::Held, yields: bool, work: F)
    where
        F: FnOnce(TaskContext) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<serde_json::Value>, Failure>> + Send + 'static,
    {
        let id = task.id;
        // Every line that is logged meanwhile tells whose it is.
        let span = tracing::error_span!("task", task = %id, operation = task.operation, vm = task.object.name,
            vm_id = task.object.id.map(|id| tracing::field::display(VmId(id))));
        let running =
            Arc::new(Running { record: watch::Sender::new(task), cancel: watch::Sender::new(false), yields });
        lock(&self.running).insert(id, Arc::clone(&running));
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            let context = TaskContext::new(Arc::clone(&running), engine.store.clone());
            // A panic is a fault of ours; it must not leave the machine held for ever.
            let inner = tokio::spawn(AssertUnwindSafe(work(context)).0.instrument(span));
            let outcome = match inner.await {
                Ok(outcome) => outcome,
                Err(error) => Err(Failure::because(
                    ProblemCode::Internal,
                    "the operation ended by a fault of Backstay: see the daemon's log",
                    error,
                )),
            };
            engine.finish(&running, outcome, held).await;
        });
    }

    async fn finish(
        &self,
        running: &Running,
        outcome: Result<Option<serde_json::Value>, Failure>,
        held: holds::Held,
    ) {
        let mut task = running.record.borrow().clone();
        task.finished = Some(Timestamp::now());
        task.cancellable = false;
        task.revision += 1;
        match outcome {
            Ok(result) => {
                task.state = TaskState::Succeeded;
                task.progress = 100;
                task.result = result;
            }
            Err(failure) => {
                let cancelled = failure.code() == ProblemCode::Cancelled;
                task.state = if cancelled { TaskState::Cancelled } else { TaskState::Failed };
                task.error = Some(failure.to_problem());
                tracing::warn!(task = %task.id, operation = task.operation, vm = task.object.name,
                    error = failure.full_message(), "task failed");
            }
        }
        if let Err(error) = self.store.update_task(&task).await {
            tracing::error!(task = %task.id, error = chain(&error), "the end of a task could not be written");
        }
        self.times.ended(&task);
        // Whoever sees the end may start the next operation at once: let go first.
        drop(held);
        {
            let mut recent = lock(&self.recent);
            if recent.len() == RECENT {
                recent.pop_front();
            }
            recent.push_back(task.clone());
        }
        lock(&self.running).remove(&task.id);
        running.record.send_replace(task);
    }

    /// What tasks took that have ended since the daemon was started.
    #[must_use]
    pub fn times(&self) -> &TaskTimes {
        &self.times
    }

    /// How many tasks are at work.
    #[must_use]
    pub fn running(&self) -> usize {
        lock(&self.running).len()
    }

    /// The task that came from the same call before.
    ///
    /// # Errors
    /// `invalid` when the key belongs to another call.
    pub async fn repeated(&self, caller: &Caller) -> Result<Option<Task>, Failure> {
        let Some((key, request)) = &caller.idempotency else { return Ok(None) };
        if let Some(former) = self.keys.find(key, request)? {
            return self.get(former.accepted().await).await.map(Some);
        }
        match self.store.task_by_key(key.clone()).await.map_err(store_failure)? {
            None => Ok(None),
            Some((task, former)) if former == *request => Ok(Some(self.live(task.id).unwrap_or(task))),
            Some(_) => Err(keys::foreign(key)),
        }
    }

    fn live(&self, id: TaskId) -> Option<Task> {
        let running = lock(&self.running).get(&id).map(|running| running.record.borrow().clone());
        running.or_else(|| lock(&self.recent).iter().find(|task| task.id == id).cloned())
    }

    /// One task.
    ///
    /// # Errors
    /// `not-found`.
    pub async fn get(&self, id: TaskId) -> Result<Task, Failure> {
        if let Some(task) = self.live(id) {
            return Ok(task);
        }
        let stored = self.store.task(id).await.map_err(store_failure)?;
        stored.ok_or_else(|| Failure::not_found(format!("there is no task {id}: old ones are forgotten")))
    }

    /// Tasks, newest first.
    ///
    /// # Errors
    /// The database.
    pub async fn list(&self, vm: Option<VmId>, active: bool, limit: u32) -> Result<Vec<Task>, Failure> {
        let mut tasks = self.store.tasks(vm, active, limit).await.map_err(store_failure)?;
        for task in &mut tasks {
            if let Some(live) = self.live(task.id) {
                *task = live;
            }
        }
        Ok(tasks)
    }

    /// Waits until a task's revision is above `after`, or it is final, or `patience` has passed.
    ///
    /// # Errors
    /// `not-found`.
    pub async fn wait(&self, id: TaskId, after: u64, patience: Duration) -> Result<Task, Failure> {
        let watched = lock(&self.running).get(&id).map(|running| running.record.subscribe());
        let Some(mut watched) = watched else { return self.get(id).await };
        let changed = watched.wait_for(|task| task.revision > after || task.state.is_final());
        let seen = match tokio::time::timeout(patience, changed).await {
            Ok(Ok(task)) => Some(task.clone()),
            _ => None,
        };
        match seen {
            Some(task) => Ok(task),
            None => self.get(id).await,
        }
    }

    /// Asks a task to stop.
    ///
    /// # Errors
    /// `not-found`; `precondition` when it has ended or cannot be cancelled.
    pub async fn cancel(&self, id: TaskId) -> Result<Task, Failure> {
        let running = lock(&self.running).get(&id).cloned();
        let Some(running) = running else {
            let task = self.get(id).await?;
            return Err(Failure::precondition(format!(
                "task {id} has ended ({}): there is nothing to cancel",
                task.state.as_str()
            )));
        };
        let accepted = running.record.send_if_modified(|task| {
            if task.state == TaskState::Running && task.cancellable {
                task.state = TaskState::Cancelling;
                task.revision += 1;
                return true;
            }
            false
        });
        let task = running.record.borrow().clone();
        if !accepted && task.state != TaskState::Cancelling {
            return Err(Failure::precondition(format!(
                "task {id} ({}) cannot be cancelled at this point: wait for its end",
                task.operation
            )));
        }
        running.cancel.send_replace(true);
        Ok(task)
    }

    /// Cancels tasks on `vm` that yield to urgent operations, and waits a moment for their end. Returns those that have
    /// not ended by then.
    pub async fn preempt(&self, vm: VmId) -> Vec<TaskId> {
        let yielding: Vec<_> = lock(&self.running)
            .values()
            .filter(|r| r.yields && vm_of(&r.record.borrow()) == Some(vm))
            .map(|r| r.record.borrow().id)
            .collect();
        let mut left = Vec::new();
        for id in yielding {
            // One that cannot be cancelled any more is about to end.
            let _ = self.cancel(id).await;
            if !self.wait(id, u64::MAX, PREEMPT).await.is_ok_and(|task| task.state.is_final()) {
                left.push(id);
            }
        }
        left
    }

    /// Asks work in the background on any of `wanted` to stop, waits until it has, and keeps it away until the result is
    /// dropped: for whoever looks at files before its task begins.
    pub async fn make_way(&self, wanted: &[Hold]) -> Way {
        self.holds.make_way(wanted).await
    }

    /// Waits until all of `wanted` are free and takes them for work in the background, which gives way to everything else.
    pub async fn background(&self, id: TaskId, operation: &'static str, wanted: &[Hold]) -> BackgroundHold {
        self.holds.background(id, operation, wanted).await
    }

    /// Whether all machines are being stopped with the host.
    #[must_use]
    pub fn stops_guests(&self) -> bool {
        self.holds.holder(&Hold::Guests).is_some()
    }

    /// The task that works on `vm` now.
    #[must_use]
    pub fn working_on(&self, vm: VmId) -> Option<TaskId> {
        self.holds.holder(&Hold::Vm(vm))
    }

    /// Whether that is a task of this kind. It counts as at work until its end is written.
    #[must_use]
    pub fn is_working_on(&self, vm: VmId, operation: &str) -> bool {
        let running = lock(&self.running);
        running
            .values()
            .map(|running| running.record.borrow())
            .any(|t| vm_of(&t) == Some(vm) && t.operation == operation)
    }

    /// Who asked for what was done to `vm` at the moment `at`: a worker's event may arrive after the task that caused it
    /// has ended.
    #[must_use]
    pub fn who_worked_on(&self, vm: VmId, at: Timestamp) -> Option<String> {
        let was_at_work = |task: &Task| {
            vm_of(task) == Some(vm) && task.created <= at && task.finished.is_none_or(|end| at <= end)
        };
        let running = lock(&self.running)
            .values()
            .map(|running| running.record.borrow().clone())
            .find(|task| was_at_work(task));
        let ended = || lock(&self.recent).iter().rev().find(|task| was_at_work(task)).cloned();
        running.or_else(ended).map(|task| task.who)
    }

    /// Waits for the running tasks, at most for `patience`.
    pub async fn drain(&self, patience: Duration) {
        let ids: Vec<_> = lock(&self.running).keys().copied().collect();
        let all = async {
            for id in ids {
                let _ = self.wait(id, u64::MAX, patience).await;
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
    }

    /// Tasks that a former daemon did not finish.
    ///
    /// # Errors
    /// The database.
    pub async fn unfinished(&self) -> Result<Vec<StoredTask>, Failure> {
        self.store.unfinished_tasks().await.map_err(store_failure)
    }
}

fn vm_of(task: &Task) -> Option<VmId> {
    if task.object.kind == ObjectKind::Vm { task.object.id.map(VmId) } else { None }
}

#[cfg(test)]
mod tests;

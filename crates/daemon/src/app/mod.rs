//! What the daemon can do: one file per operation. Each validates, makes a plan that can be printed, and hands the work
//! to a task of its own.

mod apply;
mod apply_checks;
mod capacity;
mod changes;
mod checkpoint;
mod checkpoint_finish;
mod checkpoint_run;
mod cleanup;
mod clone;
mod compact;
mod controllers;
mod create;
mod delete;
mod deleting;
mod devices;
mod drives;
mod export;
mod former;
mod host_actions;
mod hotplug;
mod limits;
mod look;
mod merge;
mod merge_files;
mod merge_run;
mod move_disk;
mod move_settle;
mod power;
mod processors;
mod recover;
mod register;
mod rename;
mod rename_checkpoint;
mod resize;
mod restorable;
mod save;
mod settle;
mod start;
mod strangers;
mod template;
#[cfg(test)]
mod testing;
mod unregister;
mod update;
mod usage;
pub mod views;
mod world;

pub use apply::{apply_checkpoint, revert};
pub use capacity::{Promises, capacity};
pub use checkpoint::create_checkpoint;
pub use clone::clone_vm;
pub use compact::compact_disk;
pub use create::create_vm;
pub use delete::delete_vm;
pub use deleting::delete_checkpoint;
pub use export::export_checkpoint;
pub use host_actions::stop_guests;
pub(crate) use limits::share_limits;
pub use look::{disk_check, disk_map};
pub(crate) use merge::kick_all as kick_merges;
pub use merge::{Mergers, merge_checkpoints};
pub use move_disk::move_disk;
pub use power::{pause, reset, resume, shutdown, turn_off};
pub use processors::{Processors, keep as keep_processors};
pub use recover::recover;
pub use register::register;
pub use rename::rename_vm;
pub use rename_checkpoint::update_checkpoint;
pub use resize::resize_disk;
pub(crate) use save::at_rest;
pub use save::{discard_saved_state, save};
pub use start::start_vm;
pub use template::set_template;
pub use unregister::unregister;
pub use update::update_vm;
pub(crate) use usage::worker_disks;
pub use usage::{disk_file, vm_disks};

use crate::chains::Chains;
use crate::config::Config;
use crate::events::EventHub;
use crate::failure::Failure;
use crate::host::Host;
use crate::inventory::{Inventory, Machine};
use crate::store::Store;
use crate::tasks::{Caller, Hold, TaskContext, TaskEngine, TaskSpec};
use crate::workers::Workers;
use backstay_api::{ObjectKind, ObjectRef, Plan, Task};
use backstay_model::{VmId, VmState, VmVerb, allowed};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// The daemon's parts.
#[derive(Debug)]
pub struct App {
    /// Settings.
    pub config: Config,
    /// Database.
    pub store: Store,
    /// Running operations.
    pub tasks: Arc<TaskEngine>,
    /// Machines.
    pub inventory: Inventory,
    /// History.
    pub events: EventHub,
    /// Processes of the machines that are on.
    pub workers: Workers,
    /// Merges of files of deleted checkpoints.
    pub mergers: Mergers,
    /// Chains of disks that nobody writes to.
    pub chains: Arc<Chains>,
    /// Held from the look at who uses which disk to the moment when the machine that got one is known.
    pub attaching: tokio::sync::Mutex<()>,
    /// What this host can do.
    pub host: Host,
    /// What is promised to machines that are not on yet.
    pub promises: Promises,
    /// What workers were told about processors.
    pub processors: Processors,
}

/// How a call that changes something was made.
#[derive(Clone, Debug)]
pub struct Call {
    /// By whom.
    pub caller: Caller,
    /// Only the plan is wanted.
    pub dry_run: bool,
}

/// What such a call gives.
#[derive(Clone, Debug)]
pub enum Accepted {
    /// It is being done.
    Task(Box<Task>),
    /// This is what would be done.
    Plan(Plan),
}

/// A finished operation's result.
pub type Done = Result<Option<serde_json::Value>, Failure>;

impl App {
    /// A machine's name for messages; its GUID once it is gone.
    #[must_use]
    pub fn name_of(&self, vm: VmId) -> String {
        self.inventory.get(vm).map_or_else(|_| vm.to_string(), |m| m.name().to_string())
    }

    /// Answers with the plan, with the task of the same call before, or with a new task that does the work.
    pub(crate) async fn accept<F, Fut>(
        self: &Arc<Self>,
        call: &Call,
        plan: Plan,
        spec: TaskSpec,
        work: F,
    ) -> Result<Accepted, Failure>
    where
        F: FnOnce(Arc<Self>, TaskContext) -> Fut + Send + 'static,
        Fut: Future<Output = Done> + Send + 'static,
    {
        if call.dry_run {
            return Ok(Accepted::Plan(plan));
        }
        let app = Arc::clone(self);
        let task = self.tasks.start(spec, &call.caller, move |context| work(app, context)).await?;
        Ok(Accepted::Task(Box::new(task)))
    }

    /// Carries out a call that changes something: once, if it is repeated with its key, and to its end, whether or not
    /// the caller hangs up meanwhile.
    ///
    /// # Errors
    /// As `work`; `invalid` when the key belongs to another call.
    pub async fn once<F, Fut>(self: &Arc<Self>, call: Call, work: F) -> Result<Accepted, Failure>
    where
        F: FnOnce(Arc<Self>, Call) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Accepted, Failure>> + Send + 'static,
    {
        let app = Arc::clone(self);
        let whole = async move {
            if let Some(former) = app.repeated(&call).await? {
                return Ok(former);
            }
            match work(Arc::clone(&app), call.clone()).await {
                // Refused because its twin was a moment quicker: then the twin's task is the answer.
                Err(refused) => app.repeated(&call).await?.ok_or(refused),
                accepted => accepted,
            }
        };
        tokio::spawn(whole).await.unwrap_or_else(|fault| {
            let words = "the call ended by a fault of Backstay: see the daemon's log";
            Err(Failure::because(backstay_api::ProblemCode::Internal, words, fault))
        })
    }

    async fn repeated(&self, call: &Call) -> Result<Option<Accepted>, Failure> {
        if call.dry_run {
            return Ok(None);
        }
        Ok(self.tasks.repeated(&call.caller).await?.map(|task| Accepted::Task(Box::new(task))))
    }

    /// Waits until `vm` is in a state that `wanted` accepts.
    ///
    /// # Errors
    /// `timeout` after `patience`; `not-found` when the machine is gone.
    pub(crate) async fn wait_state(
        &self,
        vm: VmId,
        patience: Duration,
        wanted: impl Fn(VmState) -> bool,
    ) -> Result<(VmState, Option<String>), Failure> {
        let mut watched = self.inventory.watch(vm)?;
        let reached =
            async { watched.wait_for(|(state, _)| wanted(*state)).await.ok().map(|now| now.clone()) };
        match tokio::time::timeout(patience, reached).await {
            Ok(Some(now)) => Ok(now),
            Ok(None) => Err(Failure::not_found(format!("the virtual machine {vm} was removed"))),
            Err(_) => {
                let machine = self.inventory.get(vm)?;
                Err(Failure::new(
                    backstay_api::ProblemCode::Timeout,
                    format!(
                        "'{}' is still {} after {} s: look at its events and at worker.log in {}",
                        machine.name(),
                        machine.state,
                        patience.as_secs(),
                        self.workers.run_folder(vm).display()
                    ),
                ))
            }
        }
    }
}

/// The task of an operation on one machine.
pub(crate) fn vm_task(operation: &'static str, machine: &Machine) -> TaskSpec {
    TaskSpec {
        operation,
        object: ObjectRef { kind: ObjectKind::Vm, id: Some(machine.id.0), name: machine.name().to_string() },
        holds: vec![Hold::Vm(machine.id)],
        cancellable: false,
        yields: false,
    }
}

/// Whether `verb` has something to do; it is refused where the state does not allow it.
pub(crate) fn check_verb(machine: &Machine, verb: VmVerb) -> Result<bool, Failure> {
    if let Some(refusal) = template::refusal(machine, verb) {
        return Err(Failure::precondition(refusal));
    }
    allowed(machine.name(), machine.state, verb).map_err(|refusal| {
        let why =
            machine.reason.as_ref().map_or(String::new(), |reason| format!(" (it is so because: {reason})"));
        Failure::precondition(format!("{refusal}{why}"))
    })
}

impl App {
    /// The machine that a filter names; a GUID may be that of a machine that was deleted.
    ///
    /// # Errors
    /// `not-found`.
    pub fn vm_in_history(&self, text: &str) -> Result<VmId, Failure> {
        match self.inventory.find(text) {
            Ok(machine) => Ok(machine.id),
            Err(failure) => text.parse().map_err(|_| failure),
        }
    }
}

//! One method per call.

use super::{CallOptions, Client, ClientError, EventFilter, Outcome, TaskFilter};
use crate::{
    CheckpointApply, CheckpointCreate, CheckpointDelete, CheckpointExport, CheckpointList, CheckpointMerge,
    CheckpointUpdate, DiskCheck, DiskCompact, DiskFile, DiskList, DiskMap, DiskMapQuery, DiskMove, DiskQuery,
    DiskResize, EventList, HostInfo, HostStopGuests, LogLevel, Task, TaskList, TaskWaitQuery, Vm, VmClone,
    VmCreate, VmDelete, VmList, VmQuery, VmRegister, VmRename, VmStart, VmTemplate, VmUnregister, VmUpdate,
};
use backstay_model::{CheckpointId, TaskId, VmId};
use reqwest::Method;
use std::{path::Path, time::Duration};

const NOTHING: Option<&()> = None;

/// Virtual machines.
impl Client {
    /// Machines, by name.
    ///
    /// # Errors
    /// As the daemon tells.
    pub async fn vms(&self, query: &VmQuery) -> Result<VmList, ClientError> {
        self.call(Method::GET, &["vms"]).query(query).get().await
    }

    /// One machine.
    ///
    /// # Errors
    /// `not-found`.
    pub async fn vm(&self, vm: VmId) -> Result<Vm, ClientError> {
        self.call(Method::GET, &["vms", &vm.to_string()]).get().await
    }

    /// Makes a machine.
    ///
    /// # Errors
    /// `invalid`, `exists`, `in-use`, `damaged`, `no-space`.
    pub async fn create_vm(&self, body: &VmCreate, options: &CallOptions) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["vms"]).change(Some(body), options).await
    }

    /// Brings back the machines of a folder.
    ///
    /// # Errors
    /// `not-found`, `exists`, `invalid`.
    pub async fn register_vm(
        &self,
        body: &VmRegister,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["vms", "register"]).change(Some(body), options).await
    }

    /// Moves a disk's file to another folder or file system.
    ///
    /// # Errors
    /// `invalid`, `precondition`, `exists`, `busy`; the task: `no-space`, `cancelled`.
    pub async fn move_disk(
        &self,
        vm: VmId,
        body: &DiskMove,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["vms", &vm.to_string(), "move-disk"]).change(Some(body), options).await
    }

    /// Changes settings.
    ///
    /// # Errors
    /// `invalid`, `precondition`, `stale`, `busy`.
    pub async fn update_vm(
        &self,
        vm: VmId,
        body: &VmUpdate,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::PATCH, &["vms", &vm.to_string()]).change(Some(body), options).await
    }

    /// Removes a machine; `query.dry_run` counts, not `options.dry_run`.
    ///
    /// # Errors
    /// `precondition` while it is on, `busy`.
    pub async fn delete_vm(
        &self,
        vm: VmId,
        query: &VmDelete,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        let options = CallOptions { dry_run: false, ..options.clone() };
        self.call(Method::DELETE, &["vms", &vm.to_string()]).query(query).change(NOTHING, &options).await
    }

    /// Makes a machine from another one.
    ///
    /// # Errors
    /// `invalid`, `exists`, `precondition`, `in-use`, `no-space`, `cancelled`.
    pub async fn clone_vm(
        &self,
        vm: VmId,
        body: &VmClone,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["vms", &vm.to_string(), "clone"]).change(Some(body), options).await
    }

    /// Makes it a template, or a machine like any other again.
    ///
    /// # Errors
    /// `precondition`, `in-use`, `busy`.
    pub async fn set_template(
        &self,
        vm: VmId,
        body: &VmTemplate,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["vms", &vm.to_string(), "template"]).change(Some(body), options).await
    }

    /// Changes the display name.
    ///
    /// # Errors
    /// `invalid`, `exists`, `busy`.
    pub async fn rename_vm(
        &self,
        vm: VmId,
        body: &VmRename,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["vms", &vm.to_string(), "rename"]).change(Some(body), options).await
    }

    /// Powers on.
    ///
    /// # Errors
    /// `precondition`, `damaged`, `in-use`, `busy`.
    pub async fn start_vm(
        &self,
        vm: VmId,
        body: &VmStart,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["vms", &vm.to_string(), "start"]).change(Some(body), options).await
    }

    async fn verb(&self, vm: VmId, verb: &str, options: &CallOptions) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["vms", &vm.to_string(), verb]).change(NOTHING, options).await
    }

    /// Asks the guest to shut down.
    ///
    /// # Errors
    /// `precondition`, `busy`.
    pub async fn shutdown_vm(&self, vm: VmId, options: &CallOptions) -> Result<Outcome, ClientError> {
        self.verb(vm, "shutdown", options).await
    }

    /// Pulls the plug.
    ///
    /// # Errors
    /// `busy`.
    pub async fn turn_off_vm(&self, vm: VmId, options: &CallOptions) -> Result<Outcome, ClientError> {
        self.verb(vm, "turn-off", options).await
    }

    /// Stops the processors.
    ///
    /// # Errors
    /// `precondition`, `busy`.
    pub async fn pause_vm(&self, vm: VmId, options: &CallOptions) -> Result<Outcome, ClientError> {
        self.verb(vm, "pause", options).await
    }

    /// Continues after a pause.
    ///
    /// # Errors
    /// `precondition`, `busy`.
    pub async fn resume_vm(&self, vm: VmId, options: &CallOptions) -> Result<Outcome, ClientError> {
        self.verb(vm, "resume", options).await
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// `precondition`, `busy`.
    pub async fn reset_vm(&self, vm: VmId, options: &CallOptions) -> Result<Outcome, ClientError> {
        self.verb(vm, "reset", options).await
    }

    /// Writes memory to disk and powers off.
    ///
    /// # Errors
    /// `precondition`, `busy`, `no-space`.
    pub async fn save_vm(&self, vm: VmId, options: &CallOptions) -> Result<Outcome, ClientError> {
        self.verb(vm, "save", options).await
    }

    /// Throws a saved machine's memory away.
    ///
    /// # Errors
    /// `precondition`, `busy`.
    pub async fn discard_saved_state(&self, vm: VmId, options: &CallOptions) -> Result<Outcome, ClientError> {
        self.verb(vm, "discard-saved-state", options).await
    }

    /// Forgets a registered folder.
    ///
    /// # Errors
    /// `not-found`, `precondition`, `busy`.
    pub async fn unregister_vm(
        &self,
        body: &VmUnregister,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["vms", "unregister"]).change(Some(body), options).await
    }

    /// A picture of the screen, PNG.
    ///
    /// # Errors
    /// `precondition` while it is off.
    pub async fn screenshot(&self, vm: VmId) -> Result<Vec<u8>, ClientError> {
        let call = self.call(Method::GET, &["vms", &vm.to_string(), "screenshot"]);
        let response = call.raw(|builder| builder).await?;
        response.bytes().await.map(|bytes| bytes.to_vec()).map_err(|source| call.failed(source))
    }
}

/// Checkpoints and disks.
impl Client {
    /// A machine's checkpoints and their tree.
    ///
    /// # Errors
    /// `not-found`.
    pub async fn checkpoints(&self, vm: VmId) -> Result<CheckpointList, ClientError> {
        self.call(Method::GET, &["vms", &vm.to_string(), "checkpoints"]).get().await
    }

    /// Takes a checkpoint.
    ///
    /// # Errors
    /// `precondition`, `busy`, `no-space`.
    pub async fn create_checkpoint(
        &self,
        vm: VmId,
        body: &CheckpointCreate,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["vms", &vm.to_string(), "checkpoints"]).change(Some(body), options).await
    }

    /// Goes to a checkpoint.
    ///
    /// # Errors
    /// `not-found`, `precondition`, `damaged`, `not-restorable`, `busy`.
    pub async fn apply_checkpoint(
        &self,
        vm: VmId,
        checkpoint: CheckpointId,
        body: &CheckpointApply,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        let (vm, checkpoint) = (vm.to_string(), checkpoint.to_string());
        self.call(Method::POST, &["vms", &vm, "checkpoints", &checkpoint, "apply"])
            .change(Some(body), options)
            .await
    }

    /// Changes a checkpoint's name or notes.
    ///
    /// # Errors
    /// `not-found`, `invalid`, `busy`.
    pub async fn update_checkpoint(
        &self,
        vm: VmId,
        checkpoint: CheckpointId,
        body: &CheckpointUpdate,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        let (vm, checkpoint) = (vm.to_string(), checkpoint.to_string());
        self.call(Method::PATCH, &["vms", &vm, "checkpoints", &checkpoint]).change(Some(body), options).await
    }

    /// Deletes a checkpoint, or it and everything below it; `query.dry_run` counts, not `options.dry_run`.
    ///
    /// # Errors
    /// `not-found`, `precondition`, `busy`.
    pub async fn delete_checkpoint(
        &self,
        vm: VmId,
        checkpoint: CheckpointId,
        query: &CheckpointDelete,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        let (vm, checkpoint) = (vm.to_string(), checkpoint.to_string());
        let options = CallOptions { dry_run: false, ..options.clone() };
        self.call(Method::DELETE, &["vms", &vm, "checkpoints", &checkpoint])
            .query(query)
            .change(NOTHING, &options)
            .await
    }

    /// Merges the files of deleted checkpoints; changes the speed of a merge that goes on.
    ///
    /// # Errors
    /// `not-found`, `precondition` when there is nothing to merge.
    pub async fn merge_checkpoints(
        &self,
        vm: VmId,
        body: &CheckpointMerge,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["vms", &vm.to_string(), "merge"]).change(Some(body), options).await
    }

    /// Writes a checkpoint as a machine of its own.
    ///
    /// # Errors
    /// `not-found`, `exists`, `no-space`, `busy`.
    pub async fn export_checkpoint(
        &self,
        vm: VmId,
        checkpoint: CheckpointId,
        body: &CheckpointExport,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        let (vm, checkpoint) = (vm.to_string(), checkpoint.to_string());
        self.call(Method::POST, &["vms", &vm, "checkpoints", &checkpoint, "export"])
            .change(Some(body), options)
            .await
    }

    /// Goes back to the latest checkpoint.
    ///
    /// # Errors
    /// As [`Client::apply_checkpoint`]; `precondition` when there is none.
    pub async fn revert_vm(
        &self,
        vm: VmId,
        body: &CheckpointApply,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["vms", &vm.to_string(), "revert"]).change(Some(body), options).await
    }

    /// A machine's disks with their chains.
    ///
    /// # Errors
    /// `not-found`.
    pub async fn vm_disks(&self, vm: VmId) -> Result<DiskList, ClientError> {
        self.call(Method::GET, &["vms", &vm.to_string(), "disks"]).get().await
    }

    /// Who uses a disk file, and its chain. `path` is absolute.
    ///
    /// # Errors
    /// `not-found`, `invalid`.
    pub async fn disk_file(&self, path: &Path) -> Result<DiskFile, ClientError> {
        self.call(Method::GET, &["disks"]).query(&DiskQuery { path: path.into() }).get().await
    }

    /// Where the ranges of a disk are, also while a machine writes to it.
    ///
    /// # Errors
    /// `not-found`, `invalid`, `damaged`, `in-use` (by somebody who is no machine of this host).
    pub async fn disk_map(&self, query: &DiskMapQuery) -> Result<DiskMap, ClientError> {
        self.call(Method::GET, &["disks", "map"]).query(query).get().await
    }

    /// Looks for damage in a disk, also while a machine writes to it.
    ///
    /// # Errors
    /// As [`Client::disk_map`], but damage is told in the answer.
    pub async fn disk_check(&self, path: &Path) -> Result<DiskCheck, ClientError> {
        self.call(Method::GET, &["disks", "check"]).query(&DiskQuery { path: path.into() }).get().await
    }

    /// Makes a disk that a running machine writes to larger. The task's result is a [`crate::DiskResized`].
    ///
    /// # Errors
    /// `precondition` for a smaller size, and when no running machine writes to it, `busy`.
    pub async fn resize_disk(
        &self,
        body: &DiskResize,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["disks", "resize"]).change(Some(body), options).await
    }
}

/// Disks that a running machine writes to.
impl Client {
    /// Makes the file of a disk as small as its content allows. The task's result is a [`crate::DiskCompacted`].
    ///
    /// # Errors
    /// `precondition` when no running machine writes to it.
    pub async fn compact_disk(
        &self,
        body: &DiskCompact,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["disks", "compact"]).change(Some(body), options).await
    }
}

/// Tasks, events and the host.
impl Client {
    /// Tasks, newest first.
    ///
    /// # Errors
    /// As the daemon tells.
    pub async fn tasks(&self, filter: &TaskFilter) -> Result<TaskList, ClientError> {
        self.call(Method::GET, &["tasks"]).query(filter).get().await
    }

    /// One task.
    ///
    /// # Errors
    /// `not-found`.
    pub async fn task(&self, task: TaskId) -> Result<Task, ClientError> {
        self.call(Method::GET, &["tasks", &task.to_string()]).get().await
    }

    /// Asks a task to stop. The task's state tells when it did.
    ///
    /// # Errors
    /// `precondition` when it cannot be cancelled any more.
    pub async fn cancel_task(&self, task: TaskId) -> Result<Task, ClientError> {
        self.call(Method::POST, &["tasks", &task.to_string(), "cancel"]).get().await
    }

    /// Waits for a task's next change after `revision`, at most about 20 seconds.
    ///
    /// # Errors
    /// `not-found`.
    pub async fn task_change(&self, task: TaskId, revision: u64) -> Result<Task, ClientError> {
        let query = TaskWaitQuery { after: revision, timeout_s: Some(20) };
        self.call(Method::GET, &["tasks", &task.to_string(), "wait"]).query(&query).get().await
    }

    /// Waits until `task` has ended and tells `on_change` of every change on the way. A daemon that is restarted in
    /// between is waited for, up to 30 seconds.
    ///
    /// # Errors
    /// The daemon stays away. A failed task is no error here: look at its state.
    pub async fn wait_task(&self, task: Task, mut on_change: impl FnMut(&Task)) -> Result<Task, ClientError> {
        let mut task = task;
        let mut absent = 0;
        on_change(&task);
        while !task.state.is_final() {
            match self.task_change(task.id, task.revision).await {
                Ok(now) => {
                    absent = 0;
                    if now.revision != task.revision || now.state != task.state {
                        on_change(&now);
                    }
                    task = now;
                }
                Err(ClientError::NotRunning { .. } | ClientError::Transport { .. }) if absent < 120 => {
                    absent += 1;
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(task)
    }

    /// Events, oldest first.
    ///
    /// # Errors
    /// As the daemon tells.
    pub async fn events(&self, filter: &EventFilter) -> Result<EventList, ClientError> {
        self.call(Method::GET, &["events"]).query(filter).get().await
    }

    /// What this host is and can do.
    ///
    /// # Errors
    /// As the daemon tells.
    pub async fn host(&self) -> Result<HostInfo, ClientError> {
        self.call(Method::GET, &["host"]).get().await
    }

    /// What the daemon logs.
    ///
    /// # Errors
    /// As the daemon tells.
    pub async fn log_level(&self) -> Result<LogLevel, ClientError> {
        self.call(Method::GET, &["host", "log-level"]).get().await
    }

    /// Changes what the daemon logs until it is started again.
    ///
    /// # Errors
    /// `invalid`.
    pub async fn set_log_level(&self, level: &LogLevel) -> Result<LogLevel, ClientError> {
        self.call(Method::PUT, &["host", "log-level"]).send_json(level).await
    }

    /// Whether the daemon answers.
    ///
    /// # Errors
    /// As every call.
    pub async fn live(&self) -> Result<(), ClientError> {
        self.vms(&VmQuery { name: Some(String::new()), state: None }).await.map(drop)
    }

    /// Stops all machines as a host does that goes down.
    ///
    /// # Errors
    /// `busy`.
    pub async fn stop_guests(
        &self,
        body: &HostStopGuests,
        options: &CallOptions,
    ) -> Result<Outcome, ClientError> {
        self.call(Method::POST, &["host", "stop-guests"]).change(Some(body), options).await
    }
}

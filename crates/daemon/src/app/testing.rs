//! A daemon without its socket, for tests of operations on machines that are off.

use super::{Accepted, App, Call};
use crate::config::Config;
use crate::inventory::Machine;
use crate::tasks::Caller;
use backstay_api::{
    CheckpointCreate, CheckpointDelete, CheckpointDeleted, DiskType, DriveKind, DriveRequest, MergeResult,
    NewDisk, Task, VmCreate,
};
use backstay_disk::{Backend, Disk, DiskOptions};
use backstay_model::{DriveSlot, TaskId};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Fixture {
    pub(super) app: Arc<App>,
    folder: tempfile::TempDir,
}

pub(super) fn call() -> Call {
    Call { caller: Caller::backstay(), dry_run: false }
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    /// With other settings.
    pub(super) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::in_folders(folder.path().join("state"), folder.path().join("run"));
        change(&mut config);
        for made in [&config.state_dir, &config.run_dir] {
            std::fs::create_dir(made).unwrap();
        }
        let app = crate::run::assemble(config).unwrap().unwrap();
        Self { app, folder }
    }

    /// A file for the test itself.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    /// What a daemon knows that finds the files as they are now.
    pub(super) async fn restart(&mut self) {
        self.app = crate::run::assemble(self.app.config.clone()).unwrap().unwrap();
        super::recover(&self.app).await.unwrap();
    }

    /// A daemon with another limit of checkpoints.
    pub(super) async fn limit(&mut self, limit: u32) {
        let mut config = self.app.config.clone();
        config.checkpoints.limit = limit;
        self.app = crate::run::assemble(config).unwrap().unwrap();
        super::recover(&self.app).await.unwrap();
    }

    /// As [`Fixture::restart`], after the state folder got another path.
    pub(super) async fn restart_in(&mut self, name: &str) {
        let mut config = self.app.config.clone();
        let moved = self.path(name);
        std::fs::rename(&config.state_dir, &moved).unwrap();
        config.state_dir = moved;
        self.app = crate::run::assemble(config).unwrap().unwrap();
        super::recover(&self.app).await.unwrap();
    }

    /// Waits for the end of what was accepted.
    pub(super) async fn end(&self, accepted: Accepted) -> Task {
        let Accepted::Task(task) = accepted else { panic!("a plan instead of a task") };
        let task = self.app.tasks.wait(task.id, u64::MAX, Duration::from_secs(60)).await.unwrap();
        assert!(task.state.is_final(), "{task:?}");
        task
    }

    /// The request of a machine with one disk: a new one of 8 MiB, or that of `path`.
    pub(super) fn request(name: &str, path: Option<PathBuf>) -> VmCreate {
        let create = path.is_none().then_some(NewDisk { size: 8 << 20, disk_type: DiskType::Dynamic });
        let slot = Some(DriveSlot::Ide { controller: 0, unit: 0 });
        let disk = DriveRequest { slot, kind: DriveKind::Disk, path, create };
        let body = serde_json::json!({ "name": name, "memory_mib": 16, "machine_type": "pc-i440fx-10.0" });
        VmCreate { drives: vec![disk], ..serde_json::from_value(body).unwrap() }
    }

    /// A machine with a new disk of 8 MiB.
    pub(super) async fn machine(&self, name: &str) -> Machine {
        self.machine_with(name, None).await
    }

    /// A machine with a new disk, or that of `path`.
    pub(super) async fn machine_with(&self, name: &str, path: Option<PathBuf>) -> Machine {
        let body = Self::request(name, path);
        let task = self.end(super::create_vm(&self.app, body, &call()).await.unwrap()).await;
        assert!(task.error.is_none(), "{task:?}");
        self.app.inventory.find(name).unwrap()
    }

    /// Takes a checkpoint of a machine that is off.
    pub(super) async fn checkpoint(&self, vm: &str, name: &str) {
        let body = CheckpointCreate { name: Some(name.into()), ..CheckpointCreate::default() };
        let task = self.end(super::create_checkpoint(&self.app, vm, body, &call()).await.unwrap()).await;
        assert!(task.error.is_none(), "{task:?}");
    }

    /// Writes a sector of the first disk of a machine that is off.
    pub(super) fn write(&self, vm: &str, sector: u64, value: u8) {
        let machine = self.app.inventory.find(vm).unwrap();
        let disk = Disk::open(&machine.disks()[0].1, DiskOptions::default()).unwrap();
        disk.write(sector * 512, &[value; 512]).unwrap();
        disk.close().unwrap();
    }

    /// Deletes a checkpoint; the task that merges its files, if there is one.
    pub(super) async fn delete(&self, vm: &str, name: &str, query: CheckpointDelete) -> Option<TaskId> {
        let accepted = super::delete_checkpoint(&self.app, vm, name, query, &call()).await.unwrap();
        let task = self.end(accepted).await;
        assert!(task.error.is_none(), "{task:?}");
        serde_json::from_value::<CheckpointDeleted>(task.result.unwrap()).unwrap().merge_task
    }

    /// As [`Fixture::delete`], and what came of the merge.
    pub(super) async fn merged(&self, vm: &str, name: &str) -> MergeResult {
        let Some(merge) = self.delete(vm, name, CheckpointDelete::default()).await else {
            return MergeResult::default();
        };
        let merge = self.app.tasks.wait(merge, u64::MAX, Duration::from_secs(60)).await.unwrap();
        assert!(merge.error.is_none() && merge.state.is_final(), "{merge:?}");
        serde_json::from_value(merge.result.unwrap()).unwrap()
    }

    /// Waits until a task says something.
    pub(super) async fn told(&self, task: TaskId, words: &str) -> Task {
        let mut seen = self.app.tasks.get(task).await.unwrap();
        let heard = async {
            while !seen.message.contains(words) {
                assert!(!seen.state.is_final(), "{seen:?}");
                seen = self.app.tasks.wait(task, seen.revision, Duration::from_secs(30)).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), heard).await.unwrap();
        seen
    }
}

/// What a sector of a disk reads as.
pub(super) fn read(file: &Path, sector: u64) -> u8 {
    let disk = Disk::open(file, DiskOptions::read_only()).unwrap();
    let mut bytes = [0; 512];
    disk.read(sector * 512, &mut bytes).unwrap();
    bytes[0]
}

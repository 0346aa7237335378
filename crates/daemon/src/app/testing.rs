//! A daemon without its socket, for tests of operations on machines that are off.

use super::{Accepted, App, Call};
use crate::config::Config;
use crate::inventory::Machine;
use crate::tasks::Caller;
use backstay_api::{DiskType, DriveKind, DriveRequest, NewDisk, Task, VmCreate};
use backstay_model::DriveSlot;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Fixture {
    pub(super) app: Arc<App>,
    _folder: tempfile::TempDir,
}

pub(super) fn call() -> Call {
    Call { caller: Caller::backstay(), dry_run: false }
}

impl Fixture {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::in_folders(folder.path().join("state"), folder.path().join("run"));
        for made in [&config.state_dir, &config.run_dir] {
            std::fs::create_dir(made).unwrap();
        }
        let app = crate::run::assemble(config).unwrap().unwrap();
        Self { app, _folder: folder }
    }

    /// Waits for the end of what was accepted.
    pub(super) async fn end(&self, accepted: Accepted) -> Task {
        let Accepted::Task(task) = accepted else { panic!("a plan instead of a task") };
        let task = self.app.tasks.wait(task.id, u64::MAX, Duration::from_secs(60)).await.unwrap();
        assert!(task.state.is_final(), "{task:?}");
        task
    }

    /// A machine with a new disk of 8 MiB.
    pub(super) async fn machine(&self, name: &str) -> Machine {
        let disk = DriveRequest {
            slot: Some(DriveSlot::Ide { controller: 0, unit: 0 }),
            kind: DriveKind::Disk,
            path: None,
            create: Some(NewDisk { size: 8 << 20, disk_type: DiskType::Dynamic }),
        };
        let body = serde_json::json!({ "name": name, "memory_mib": 16, "machine_type": "pc-i440fx-10.0" });
        let body = VmCreate { drives: vec![disk], ..serde_json::from_value(body).unwrap() };
        let task = self.end(super::create_vm(&self.app, body, &call()).await.unwrap()).await;
        assert!(task.error.is_none(), "{task:?}");
        self.app.inventory.find(name).unwrap()
    }
}

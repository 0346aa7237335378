//! Looking at the volumes that the machine's files grow on, and doing what the guard says.

use super::Owner;
use crate::control::WorkerEvent;
use crate::guard::{Change, Volume};
use backstay_disk::DiskOptions;
use backstay_qemu::lifecycle::Event as Life;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What was found of each volume; its folder, if it did not answer.
pub(super) type View = Vec<Result<Volume, PathBuf>>;

/// The view of a look that failed: what the volumes are like is not known.
pub(super) fn blind() -> View {
    vec![Err(PathBuf::new())]
}

/// How long the first look may take: a guest must not start for a moment on a volume that is full.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// The next look, or the one that is under way.
#[derive(Debug)]
pub(super) struct Looking {
    pub(super) at: Instant,
    pub(super) task: Option<JoinHandle<View>>,
}

impl Looking {
    pub(super) fn new() -> Self {
        Self { at: Instant::now(), task: None }
    }
}

fn look(folders: BTreeSet<PathBuf>) -> View {
    folders.into_iter().map(|folder| Volume::of(&folder).map_err(|_| folder)).collect()
}

impl Owner {
    /// Folders in which files of the machine grow: disks, the parent that a layer goes into, records of acknowledged writes, memory of a
    /// checkpoint.
    fn growing(&self) -> BTreeSet<PathBuf> {
        let mut files = self.disks.growing();
        files.extend(self.job.as_ref().map(|job| job.plan.memory_file.clone()));
        files.extend(self.grows_by_merge());
        let folders = files.iter().filter_map(|file| file.parent().map(PathBuf::from));
        folders.chain(DiskOptions::default_runtime_dir().filter(|dir| dir.exists())).collect()
    }

    pub(super) async fn look_first(&mut self) {
        if self.guard.stands() {
            let why = "its volume was nearly full: waiting for room".to_owned();
            self.feed(Life::Hold { reason: Some(why) }).await;
        }
        let folders = self.growing();
        let mut task = tokio::task::spawn_blocking(move || look(folders));
        match tokio::time::timeout(FIRST_LOOK, &mut task).await {
            Ok(view) => self.looked(view.unwrap_or_else(|_| blind())).await,
            Err(_) => self.looking.task = Some(task),
        }
    }

    /// Begins a look. A file system that does not answer holds up the next look, nothing else.
    pub(super) fn begin_look(&mut self) {
        let folders = self.growing();
        self.looking.task = Some(tokio::task::spawn_blocking(move || look(folders)));
    }

    pub(super) async fn looked(&mut self, view: View) {
        self.looking.task = None;
        let change = self.guard.step(&view, self.clock.now());
        self.looking.at = Instant::now() + self.guard.next_look();
        let stands = self.guard.stands();
        if stands != self.instance.low_space {
            self.instance.low_space = stands;
            self.remember();
        }
        match change {
            Some(Change::Low(reason)) => {
                self.tell(WorkerEvent::SpaceLow { reason: reason.clone() });
                self.feed(Life::Hold { reason: Some(reason) }).await;
            }
            Some(Change::Back(reason)) => {
                self.tell(WorkerEvent::SpaceBack { reason });
                self.feed(Life::Hold { reason: None }).await;
            }
            None => {}
        }
    }
}

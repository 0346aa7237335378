//! A machine in a temporary folder with its worker as a process of its own.
#![expect(
    dead_code,
    clippy::unwrap_used,
    reason = "every test file uses a part of it; a panic is the report"
)]

use backstay_disk::fs::HostFs;
use backstay_disk::{Backend, Disk, DiskOptions, Identity, NewDisk, create_disk};
use backstay_model::{
    AccelPolicy, CheckpointId, CpuControl, DriveMedia, DriveSlot, DriveSpec, RecoveryAction, VmId, VmName,
    VmSpec, VmState,
};
use backstay_qemu::testing::{Guest, microguest_code};
use backstay_worker::client::{ClientError, EventStream, WorkerClient};
use backstay_worker::control::{
    CheckpointOutcome, CheckpointRequest, EventFrame, LaunchRecord, LayerSwitch, Reply, Request, RestoreFrom,
    WorkerEvent, WorkerStatus,
};
use backstay_worker::events::read_spool;
use backstay_worker::processors::ProcessorSettings;
use backstay_worker::spawn;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::timeout;
use uuid::Uuid;

/// For anything that should take milliseconds, on a machine that does ten other things.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const DISK_SIZE: u64 = 8 << 20;

pub const EXECUTABLE: &str = env!("CARGO_BIN_EXE_backstay-worker-test");

/// Two slots on one bus: boot disk and data disk.
pub fn pair(bus: &str) -> [DriveSlot; 2] {
    match bus {
        "ide" => [DriveSlot::Ide { controller: 0, unit: 0 }, DriveSlot::Ide { controller: 0, unit: 1 }],
        "scsi" => [DriveSlot::Scsi { controller: 0, lun: 0 }, DriveSlot::Scsi { controller: 0, lun: 1 }],
        "virtio" => [DriveSlot::Virtio { index: 0 }, DriveSlot::Virtio { index: 1 }],
        other => panic!("no bus {other}"),
    }
}

pub fn create(path: &Path, what: &NewDisk) {
    create_disk(&HostFs::shared(), path, what, Identity::fresh()).unwrap();
}

/// A machine's files.
pub struct Vm {
    pub dir: tempfile::TempDir,
    pub record: LaunchRecord,
    pub slots: Vec<DriveSlot>,
    worker: Option<u32>,
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Whatever a failed test left running.
        if let Some(pid) = self.worker {
            kill(pid);
        }
        let paths = backstay_qemu::paths::RunPaths::new(self.run_dir()).unwrap();
        if let Ok(Some(qemu)) = backstay_qemu::process::adopt(&paths) {
            let _ = qemu.kill();
        }
        if std::thread::panicking() {
            for log in ["worker.log", "qemu.log"] {
                let text = std::fs::read_to_string(self.run_dir().join(log)).unwrap_or_default();
                eprintln!("--- {log}\n{text}");
            }
        }
    }
}

pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

impl Vm {
    /// Two disks on a bus; the guest's code is on the first.
    pub fn new(bus: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let slots = pair(bus).to_vec();
        let mut drives = Vec::new();
        for (index, slot) in slots.iter().enumerate() {
            let path = dir.path().join(format!("disk{index}.vhd"));
            create(&path, &NewDisk::Dynamic { size: DISK_SIZE, block_size: 2 << 20 });
            if index == 0 {
                let disk = Disk::open(&path, DiskOptions::default()).unwrap();
                disk.write(0, &microguest_code().unwrap()).unwrap();
                disk.close().unwrap();
            }
            drives.push(DriveSpec::new(*slot, DriveMedia::Disk(path)));
        }
        let spec = VmSpec {
            id: VmId(Uuid::new_v4()),
            name: VmName::new("guest").unwrap(),
            notes: String::new(),
            hardware: backstay_model::VirtualHardware::Gen1,
            memory_mib: 16,
            cpu: CpuControl::default(),
            drives,
            scsi_controllers: Default::default(),
            nics: vec![],
            boot_order: vec![],
            bios_guid: Uuid::new_v4(),
            machine_type: "pc-i440fx-10.0".into(),
            accel: AccelPolicy::Tcg,
            recovery: RecoveryAction::None,
            host_start: Default::default(),
            host_stop: Default::default(),
            start_delay_s: 0,
            start_order: 0,
        };
        let record = LaunchRecord {
            version: 1,
            spec,
            restore: None,
            start_paused: false,
            avoid_background: false,
            qemu: "qemu-system-x86_64".into(),
            qemu_uid_gid: None,
            processors: ProcessorSettings::default(),
            cpu_weight: None,
            qemu_groups: Vec::new(),
            sandbox: None,
            guard: backstay_worker::guard::GuardOptions::default(),
            disk_cache: backstay_disk::CacheMode::default(),
        };
        Self { dir, record, slots, worker: None }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn disk(&self, index: usize) -> PathBuf {
        let DriveMedia::Disk(path) = &self.record.spec.drives[index].media else { panic!("no disk {index}") };
        path.clone()
    }

    /// Starts a worker for the record as it is now.
    pub async fn launch(&mut self) -> Running {
        let seen = self.last_event();
        self.worker = Some(spawn::launch(EXECUTABLE.as_ref(), &self.run_dir(), &self.record).unwrap());
        self.connect(seen).await
    }

    /// Starts a worker whose machine fails at once; returns the reason.
    pub async fn launch_and_fail(&mut self) -> String {
        self.worker = Some(spawn::launch(EXECUTABLE.as_ref(), &self.run_dir(), &self.record).unwrap());
        self.failed().await
    }

    /// Starts a worker that takes over and finds nothing it can go on with; returns the reason.
    pub async fn respawn_and_fail(&mut self) -> String {
        self.worker = Some(spawn::respawn(EXECUTABLE.as_ref(), &self.run_dir()).unwrap());
        self.failed().await
    }

    async fn failed(&self) -> String {
        let events = self.run_dir().join("events.jsonl");
        let find = async {
            loop {
                let failed =
                    read_spool(&events, 0).unwrap().into_iter().find_map(|frame| match frame.event {
                        WorkerEvent::State { to: VmState::Failed, reason, .. } => Some(reason),
                        _ => None,
                    });
                match failed {
                    Some(reason) => return reason,
                    None => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        timeout(PATIENCE, find).await.unwrap()
    }

    /// Starts a worker that takes over.
    pub async fn respawn(&mut self) -> Running {
        let seen = self.last_event();
        self.worker = Some(spawn::respawn(EXECUTABLE.as_ref(), &self.run_dir()).unwrap());
        self.connect(seen).await
    }

    pub fn kill_worker(&mut self) {
        kill(self.worker.take().unwrap());
    }

    fn last_event(&self) -> u64 {
        read_spool(&self.run_dir().join("events.jsonl"), 0).unwrap().last().map_or(0, |frame| frame.seq)
    }

    async fn connect(&self, seen: u64) -> Running {
        let socket = self.run_dir().join("worker.sock");
        let client = WorkerClient::connect_within(&socket, PATIENCE).await.unwrap();
        let events = client.events(seen).await.unwrap();
        Running { client, events, console: self.run_dir().join("console.sock") }
    }

    /// A checkpoint of all disks whose new tops and memory are named after `name`.
    pub fn request(&self, name: &str) -> CheckpointRequest {
        let switch = |index: usize, slot: &DriveSlot| LayerSwitch {
            slot: *slot,
            from: self.disk(index),
            to: self.path(&format!("disk{index}_{name}.avhd")),
        };
        CheckpointRequest {
            checkpoint: CheckpointId(Uuid::new_v4()),
            disks: self.slots.iter().enumerate().map(|(index, slot)| switch(index, slot)).collect(),
            memory_file: self.path(&format!("{name}/{name}.bin")),
            descriptor_file: self.path(&format!("{name}/{name}.vsv")),
        }
    }

    /// The machine goes on in the files of a checkpoint that was taken.
    pub fn stepped(&mut self, request: &CheckpointRequest) {
        for (drive, switch) in self.record.spec.drives.iter_mut().zip(&request.disks) {
            drive.media = DriveMedia::Disk(switch.to.clone());
        }
    }

    /// What applying a checkpoint means for the launch record: new children of its disks, and its memory.
    pub fn apply(&mut self, request: &CheckpointRequest) {
        for (drive, switch) in self.record.spec.drives.iter_mut().zip(&request.disks) {
            let path = switch.from.with_extension(format!("{}.avhd", Uuid::new_v4().simple()));
            create(&path, &NewDisk::Differencing { parent: switch.from.clone(), block_size: 2 << 20 });
            drive.media = DriveMedia::Disk(path);
        }
        self.record.restore = Some(RestoreFrom {
            memory_file: request.memory_file.clone(),
            descriptor_file: request.descriptor_file.clone(),
            once: false,
        });
    }

    /// Everything below the machine's folder except the run folder.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.dir.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path == self.run_dir() {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path.clone());
                }
                found.push(path.strip_prefix(self.dir.path()).unwrap().to_path_buf());
            }
        }
        found.sort();
        found
    }
}

/// Connections to a worker.
pub struct Running {
    pub client: WorkerClient,
    pub events: EventStream,
    pub console: PathBuf,
}

impl Running {
    /// A guest that has just been started.
    pub async fn booted(&self) -> Guest {
        let mut guest = Guest::connect(&self.console).await.unwrap();
        guest.ready().await.unwrap();
        guest
    }

    /// A guest in the middle of its life.
    pub async fn guest(&self) -> Guest {
        let mut guest = Guest::connect(&self.console).await.unwrap();
        guest.resync().await.unwrap();
        guest
    }

    pub async fn try_call(&self, request: Request) -> Result<Reply, ClientError> {
        self.client.call(request, PATIENCE).await
    }

    pub async fn call(&self, request: Request) -> Reply {
        self.try_call(request.clone()).await.unwrap_or_else(|error| panic!("{request:?}: {error}"))
    }

    pub async fn status(&self) -> WorkerStatus {
        match self.call(Request::Status).await {
            Reply::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// The first event that `wanted` takes.
    pub async fn event<T>(&mut self, mut wanted: impl FnMut(&EventFrame) -> Option<T>) -> T {
        let mut seen = Vec::new();
        let search = async {
            loop {
                match self.events.next().await {
                    Some(frame) => match wanted(&frame) {
                        Some(found) => return found,
                        None => seen.push(frame),
                    },
                    None => panic!("the events ended with {seen:#?}"),
                }
            }
        };
        let found = timeout(PATIENCE, search).await;
        found.unwrap_or_else(|_| panic!("not among {seen:#?}"))
    }

    pub async fn state(&mut self, wanted: VmState) -> String {
        self.event(|frame| match &frame.event {
            WorkerEvent::State { to, reason, .. } if *to == wanted => Some(reason.clone()),
            _ => None,
        })
        .await
    }

    /// The end of the worker.
    pub async fn gone(&mut self) {
        let end = async { while self.events.next().await.is_some() {} };
        timeout(PATIENCE, end).await.unwrap();
    }

    pub async fn finished(&mut self, id: CheckpointId) -> CheckpointOutcome {
        self.event(|frame| match &frame.event {
            WorkerEvent::CheckpointFinished { checkpoint, outcome } if *checkpoint == id => {
                Some(outcome.clone())
            }
            _ => None,
        })
        .await
    }

    /// Takes a checkpoint to its end.
    pub async fn checkpoint(&mut self, request: &CheckpointRequest) -> CheckpointOutcome {
        self.call(Request::Checkpoint(request.clone())).await;
        let outcome = self.finished(request.checkpoint).await;
        assert!(matches!(outcome, CheckpointOutcome::Complete { .. }), "{outcome:?}");
        outcome
    }

    pub async fn turn_off(&mut self) {
        self.call(Request::TurnOff).await;
        self.gone().await;
    }
}

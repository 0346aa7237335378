//! The control socket of a worker: one JSON object per line in both directions.
//!
//! The daemon sends [`RequestFrame`]s and gets one [`ReplyFrame`] for each, matched by `id`; [`EventFrame`]s come in
//! between once [`Request::Subscribe`] was sent. The worker accepts any number of connections. A newer daemon must be
//! able to talk to an older worker: fields are only added, with defaults, and unknown fields are ignored.

mod disk;

pub use disk::{
    CompactOutcome, DiskCheck, DiskFinding, DiskLimit, DiskMap, DiskStatus, FailureKind, MapKind, MapRange,
    MoveOutcome,
};

use crate::guard::GuardOptions;
use crate::processors::{ProcessorOrder, ProcessorSettings};
use crate::sandbox::SandboxOptions;
use backstay_disk::CacheMode;
use backstay_model::{CheckpointId, DriveSlot, DriveSpec, MemoryMethod, VmSpec, VmState};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Version of this protocol, told in [`Reply::Hello`].
pub const PROTOCOL_VERSION: u32 = 1;

/// One request with the number its reply will carry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RequestFrame {
    /// Chosen by the sender.
    pub id: u64,
    /// What to do.
    pub request: Request,
}

/// What a worker can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Request {
    /// Who are you?
    Hello,
    /// State of the machine, its processes and disks.
    Status,
    /// Send [`EventFrame`]s from sequence number `after` + 1 on, then live ones.
    Subscribe {
        /// Last sequence number the caller has.
        after: u64,
    },
    /// Stop the processors.
    Pause,
    /// Continue.
    Resume,
    /// Reset button.
    Reset,
    /// ACPI power button.
    Shutdown,
    /// End QEMU, close the disks, end the worker.
    TurnOff,
    /// Write a PNG of the screen.
    Screenshot {
        /// Absolute path.
        path: PathBuf,
    },
    /// Take a checkpoint. The reply comes when the machine runs on (or could not be checkpointed); memory may still be
    /// on its way to disk, and [`WorkerEvent::CheckpointFinished`] tells the end.
    Checkpoint(CheckpointRequest),
    /// Write memory and end QEMU: a machine that continues later from [`LaunchRecord::restore`]. The reply comes when all
    /// is durable ([`CheckpointOutcome::Complete`]); the worker then ends with state `saved`. When it fails, the machine
    /// goes on as before.
    Save(SaveRequest),
    /// What became of a checkpoint: for a daemon that was restarted in between.
    CheckpointStatus {
        /// Which.
        checkpoint: CheckpointId,
    },
    /// Cancel a checkpoint that is still writing memory.
    CancelCheckpoint {
        /// Which.
        checkpoint: CheckpointId,
    },
    /// Move a layer of an open disk into its parent while the guest runs. The reply comes when that has begun
    /// ([`MergeOutcome::Running`]); [`Request::MergeStatus`] tells the end.
    MergeLayer(MergeRequest),
    /// How far a merge is: also for a daemon that was restarted in between.
    MergeStatus {
        /// The layer that is merged.
        upper: PathBuf,
    },
    /// Change the speed of a merge.
    MergeRate {
        /// The layer that is merged.
        upper: PathBuf,
        /// Bytes per second; none: as fast as it goes.
        rate: Option<u64>,
    },
    /// End a merge soon; what was moved stays moved.
    CancelMerge {
        /// The layer that is merged.
        upper: PathBuf,
    },
    /// Give the processors another share from now on. The number of processors stays as it is.
    SetProcessors(ProcessorOrder),
    /// Limit what the guest may ask of disks from now on, requests that wait already included.
    SetDiskLimits {
        /// The disks that get another limit.
        limits: Vec<DiskLimit>,
    },
    /// Attach one more hard disk to a SCSI controller, while the guest runs. The reply comes when the guest has it; when it
    /// fails, nothing is changed.
    AddDisk {
        /// The disk; the file is the top of its chain.
        drive: DriveSpec,
    },
    /// Detach a hard disk from a SCSI controller, while the guest runs. The reply comes when the guest has let go of it and
    /// its file is closed; when it fails, nothing is changed.
    RemoveDisk {
        /// Which disk.
        slot: DriveSlot,
    },
    /// Make a disk larger and tell the guest. The reply comes when that is done ([`Reply::Grown`]).
    GrowDisk {
        /// Which disk.
        slot: DriveSlot,
        /// Bytes the guest is to see.
        size: u64,
    },
    /// Move the top file of a disk while the guest runs. The reply comes when that has begun ([`MoveOutcome::Running`]);
    /// [`Request::MoveStatus`] tells the end.
    MoveDisk {
        /// Which disk.
        slot: DriveSlot,
        /// The new file; must not exist. Whoever finds both after a crash takes this one: it gets its name at the instant from
        /// which on it counts.
        to: PathBuf,
    },
    /// How far a move is.
    MoveStatus {
        /// The new file.
        to: PathBuf,
    },
    /// End a move soon; the disk stays where it is, unless it was over already.
    CancelMove {
        /// The new file.
        to: PathBuf,
    },
    /// Make the top file of a disk as small as its content allows, while the guest runs. The reply comes when that has begun
    /// ([`CompactOutcome::Running`]); [`Request::CompactStatus`] tells the end. Of one that goes on the rate is changed. A
    /// checkpoint or save ends it.
    CompactDisk {
        /// Which disk.
        slot: DriveSlot,
        /// Bytes per second; none: as fast as it goes.
        rate: Option<u64>,
    },
    /// How far the compaction of a disk is.
    CompactStatus {
        /// Which disk.
        slot: DriveSlot,
    },
    /// End whatever compaction goes on soon; what is done stays done.
    CancelCompact,
    /// Chain and statistics of the disks this worker holds.
    Disks,
    /// Which file of a disk's chain holds what.
    DiskMap {
        /// Which disk.
        slot: DriveSlot,
        /// Only what its top file holds.
        top_only: bool,
        /// From here on, in bytes.
        offset: u64,
        /// At most so many ranges.
        limit: usize,
    },
    /// Check the structures of a disk's top file and whether its chain is whole.
    DiskCheck {
        /// Which disk.
        slot: DriveSlot,
    },
}

/// Everything decided beforehand: the worker only acts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckpointRequest {
    /// The new checkpoint.
    pub checkpoint: CheckpointId,
    /// For each disk, the new top file. The worker creates it (durably, as an empty differencing disk of the current
    /// top) before it stops the machine. The configuration already names both files: whoever finds it after a crash
    /// takes `to` as the top if it exists (an empty child reads exactly as its parent), else `from`.
    pub disks: Vec<LayerSwitch>,
    /// Where the memory stream goes.
    pub memory_file: PathBuf,
    /// Where the descriptor (what it takes to load the stream) goes; written last.
    pub descriptor_file: PathBuf,
}

/// Where a saved machine's memory goes. Disks stay as they are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SaveRequest {
    /// An id for [`Request::CheckpointStatus`] and the descriptor.
    pub id: CheckpointId,
    /// Where the memory stream goes.
    pub memory_file: PathBuf,
    /// Where the descriptor goes; written last.
    pub descriptor_file: PathBuf,
}

/// One disk's step onto a new file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSwitch {
    /// Which disk.
    pub slot: DriveSlot,
    /// The file that is the top now and becomes read-only.
    pub from: PathBuf,
    /// The new top; must not exist yet.
    pub to: PathBuf,
}

/// A layer that is to be moved into its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeRequest {
    /// Which disk.
    pub slot: DriveSlot,
    /// The layer that ends up empty.
    pub upper: PathBuf,
    /// Its parent, as the configuration will name it where it named `upper`.
    pub lower: PathBuf,
    /// Files that have `upper` as their parent and are in no chain of this worker: they get `lower`.
    #[serde(default)]
    pub children: Vec<PathBuf>,
    /// Bytes per second; none: as fast as it goes.
    #[serde(default)]
    pub rate: Option<u64>,
}

/// How far a merge is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "stage")]
pub enum MergeOutcome {
    /// This worker never heard of it.
    Unknown,
    /// It goes on.
    Running {
        /// Blocks that were to be moved when it began; 0 before that is known.
        blocks_total: u64,
        /// Those of them that the lower layer holds for good.
        blocks_done: u64,
        /// Bytes copied so far.
        bytes_moved: u64,
    },
    /// The upper layer is empty and off the chain; nothing but the configuration names it.
    Complete {
        /// Bytes copied.
        bytes_moved: u64,
    },
    /// It was cancelled; another merge of the same layer goes on from there.
    Stopped,
    /// It failed; the chain is whole, and another merge of the same layer goes on from there.
    Failed {
        /// What went wrong.
        message: String,
        /// Whether trying again may help.
        #[serde(default)]
        kind: FailureKind,
    },
}

/// The answer to a [`RequestFrame`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplyFrame {
    /// The request's number.
    pub id: u64,
    /// What came of it.
    pub result: Result<Reply, WorkerError>,
}

/// A line from the worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ServerFrame {
    /// An answer; has an `id`.
    Reply(ReplyFrame),
    /// An event; has a `seq`.
    Event(EventFrame),
}

/// A refused or failed request.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct WorkerError {
    /// For programs.
    pub code: WorkerErrorCode,
    /// For people: thing, rule, cure; with the chain of causes.
    pub message: String,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerErrorCode {
    /// The state does not allow it.
    Precondition,
    /// It failed.
    Failed,
    /// A newer request than this worker knows.
    Unknown,
}

/// Answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// [`PROTOCOL_VERSION`] of the worker.
        protocol: u32,
        /// Version of the executable.
        version: String,
        /// The worker's process.
        pid: u32,
    },
    /// Done.
    Done,
    /// To [`Request::Status`].
    Status(Box<WorkerStatus>),
    /// To [`Request::Checkpoint`], [`Request::Save`] and [`Request::CheckpointStatus`].
    Checkpoint(CheckpointOutcome),
    /// To [`Request::MergeLayer`] and [`Request::MergeStatus`].
    Merge(MergeOutcome),
    /// To [`Request::Disks`].
    Disks {
        /// One per disk.
        disks: Vec<DiskStatus>,
        /// Places of disks that were detached by [`Request::RemoveDisk`] and are empty since.
        #[serde(default)]
        removed: Vec<DriveSlot>,
    },
    /// To [`Request::GrowDisk`].
    Grown {
        /// Bytes before.
        old: u64,
        /// Bytes now.
        new: u64,
        /// Why the guest does not see it before it is started the next time; none: it has been told.
        unseen: Option<String>,
    },
    /// To [`Request::MoveDisk`] and [`Request::MoveStatus`].
    Move(MoveOutcome),
    /// To [`Request::CompactDisk`] and [`Request::CompactStatus`].
    Compact(CompactOutcome),
    /// To [`Request::DiskMap`].
    DiskMap(DiskMap),
    /// To [`Request::DiskCheck`].
    DiskCheck(DiskCheck),
}

/// What a worker knows of its machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// What the machine does.
    pub state: VmState,
    /// Why, where that needs words (for example which disk stalls).
    #[serde(default)]
    pub reason: Option<String>,
    /// The configuration it was started with. Its disks name the tops at that time: [`Request::Disks`] has today's.
    pub spec: VmSpec,
    /// QEMU's process, if there is one.
    pub qemu_pid: Option<u32>,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Why that accelerator.
    pub accelerator_reason: String,
    /// `10.0.2`.
    pub qemu_version: String,
    /// Milliseconds since the Unix epoch when QEMU was started.
    pub started_unix_ms: i64,
    /// How many starts by the recovery action count at present.
    #[serde(default)]
    pub recoveries: u32,
    /// Highest event number so far.
    pub last_event: u64,
    /// Sockets a console client connects to.
    pub console_socket: PathBuf,
    /// VNC (RFB) socket.
    pub vnc_socket: PathBuf,
    /// How limits and weights of the processors act, or why they do not.
    #[serde(default)]
    pub processors: String,
}

/// How far a checkpoint is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "stage")]
pub enum CheckpointOutcome {
    /// This worker never heard of it.
    Unknown,
    /// The machine runs on; memory is being written.
    Writing {
        /// How long the guest stood still, in microseconds.
        pause_us: u64,
        /// Bytes of memory written so far, before compression.
        written: u64,
        /// Estimate of the total.
        total: u64,
        /// How memory is captured.
        method: MemoryMethod,
        /// Why that way.
        method_reason: String,
    },
    /// Memory, descriptor and disks are durable.
    Complete {
        /// How long the guest stood still, in microseconds.
        pause_us: u64,
        /// From the request to the end, in microseconds.
        total_us: u64,
        /// Bytes of the memory file.
        memory_bytes: u64,
        /// How memory was captured.
        method: MemoryMethod,
        /// Why that way.
        method_reason: String,
    },
    /// It failed; the machine goes on as it was, and no file of the checkpoint is left except those of `kept_layers`.
    Failed {
        /// What went wrong.
        message: String,
        /// Disks that stay on their new file because the guest had already written to it; the checkpoint's file below has to be merged later.
        kept_layers: Vec<DriveSlot>,
    },
}

/// Something that happened, numbered without gaps and kept in `events.jsonl` of the run folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventFrame {
    /// 1, 2, 3 …
    pub seq: u64,
    /// Milliseconds since the Unix epoch.
    pub at_unix_ms: i64,
    /// What.
    pub event: WorkerEvent,
}

/// What can happen to a machine by itself or on request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum WorkerEvent {
    /// The machine's state changed.
    State {
        /// Before.
        from: VmState,
        /// After.
        to: VmState,
        /// Why: `guest-shutdown`, `turned off`, `QEMU was killed by signal 9` …
        reason: String,
    },
    /// QEMU ended without being asked.
    QemuDied {
        /// Exit status or signal.
        reason: String,
        /// Last lines of its log.
        log: Vec<String>,
        /// What the recovery action does now.
        action: String,
    },
    /// This worker took over a QEMU that a former worker had started.
    Adopted {
        /// QEMU's process.
        qemu_pid: u32,
    },
    /// A disk request failed and the guest was stopped before it could see it.
    StorageStalled {
        /// Which disk.
        slot: DriveSlot,
        /// QEMU's reason.
        reason: String,
    },
    /// The guest runs again after [`WorkerEvent::StorageStalled`].
    StorageRecovered,
    /// A volume on which the machine's files grow is nearly full: the guest was paused before it could see an error.
    SpaceLow {
        /// Which, and how much.
        reason: String,
    },
    /// There is room again and the guest goes on.
    SpaceBack {
        /// Which, and how much.
        reason: String,
    },
    /// A checkpoint ended.
    CheckpointFinished {
        /// Which.
        checkpoint: CheckpointId,
        /// How.
        outcome: CheckpointOutcome,
    },
    /// A layer was merged into its parent, or was not.
    MergeFinished {
        /// The layer.
        upper: PathBuf,
        /// Its parent.
        lower: PathBuf,
        /// How it ended.
        outcome: MergeOutcome,
    },
    /// A warning worth keeping.
    Warning {
        /// Text.
        message: String,
    },
}

/// Everything a worker needs to start or adopt one machine: `launch.json` in the run folder, written by the daemon
/// before it starts the worker and read again by every worker that takes over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LaunchRecord {
    /// 1.
    pub version: u32,
    /// The machine.
    pub spec: VmSpec,
    /// Continue from this state instead of booting.
    #[serde(default)]
    pub restore: Option<RestoreFrom>,
    /// Start with the processors stopped.
    #[serde(default)]
    pub start_paused: bool,
    /// Never use background snapshots, even where userfaultfd works: checkpoints of the running machine then take the
    /// live mapped-ram way.
    #[serde(default)]
    pub avoid_background: bool,
    /// QEMU's executable; searched in PATH when it has no slash.
    pub qemu: PathBuf,
    /// Numeric user and group QEMU runs as; none: as the worker.
    #[serde(default)]
    pub qemu_uid_gid: Option<(u32, u32)>,
    /// How processors are controlled.
    #[serde(default)]
    pub processors: ProcessorSettings,
    /// The weight that follows from the reserves of all machines at the start; the machine's own unless given.
    #[serde(default)]
    pub cpu_weight: Option<u32>,
    /// Groups QEMU gets in addition, for devices.
    #[serde(default)]
    pub qemu_groups: Vec<u32>,
    /// QEMU gets a view of the host of its own; none: it sees what its user may see.
    #[serde(default)]
    pub sandbox: Option<SandboxOptions>,
    /// What is kept free on the volumes that its files grow on.
    #[serde(default)]
    pub guard: GuardOptions,
    /// What the host's page cache is used for; of the settings file, like the guard.
    #[serde(default)]
    pub disk_cache: CacheMode,
}

/// A saved memory state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreFrom {
    /// The stream.
    pub memory_file: PathBuf,
    /// Its descriptor.
    pub descriptor_file: PathBuf,
    /// It is the machine's own saved state: it goes when the guest executes, and stays as long as it has not. A
    /// checkpoint's state stays for ever.
    #[serde(default)]
    pub once: bool,
}

//! What goes over the wire: the types of REST v1, its problems, and a typed client.
//!
//! Everything lives under `/api/v1`. Field names are the ones `-o json` prints. A call that changes something answers
//! `202 Accepted` with a [`Task`], or `200 OK` with a [`Plan`] when it was asked with `?dry_run=true`; both are one
//! [`Outcome`] to callers of the [`Client`]. Failures are RFC 9457 problems: [`Problem`].

mod checkpoint;
mod client;
mod clone;
mod disk;
mod event;
pub mod explain;
mod host;
mod plan;
mod problem;
mod schema;
mod task;
mod vm;

pub use checkpoint::{
    CheckpointApply, CheckpointCreate, CheckpointDelete, CheckpointDeleted, CheckpointDiskInfo,
    CheckpointExport, CheckpointInfo, CheckpointLine, CheckpointList, CheckpointMerge, CheckpointResult,
    CheckpointUpdate, KeptFile, MergeResult, PendingFile, UnreadableRange,
};
pub use client::{
    CallOptions, Client, ClientError, ConsoleKind, ConsoleStream, EventFilter, EventStream, Outcome,
    TaskFilter,
};
pub use clone::{VmClone, VmTemplate};
pub use disk::{
    DiskCheck, DiskCompact, DiskCompacted, DiskFile, DiskFinding, DiskHolder, DiskLayer, DiskLimit,
    DiskLimitChange, DiskList, DiskMap, DiskMapQuery, DiskQuery, DiskRange, DiskResize, DiskResized,
    DiskStats, VmDisk,
};
pub use event::{Change, Event, EventList, EventQuery, ObjectKind, ObjectRef, Severity};
pub use host::{HostCapacity, HostInfo, HostPromise, HostStopGuests, LogLevel};
pub use plan::{Plan, PlanStep};
pub use problem::{Blocker, Problem, ProblemCode};
pub use task::{Task, TaskList, TaskQuery, TaskState, TaskWaitQuery};
pub use vm::{
    Compat, DiskMove, DiskType, Drive, DriveKind, DriveRequest, MutateQuery, NewDisk, Nic, NicRequest,
    RunInfo, Vm, VmBlocked, VmCreate, VmDelete, VmList, VmQuery, VmRegister, VmRename, VmStart, VmUnregister,
    VmUpdate,
};

/// Where every path of this version starts.
pub const API_PREFIX: &str = "/api/v1";

/// Protocol name in the `Upgrade` header of a console request.
pub const CONSOLE_PROTOCOL: &str = "backstay-console";

/// Media type of a [`Problem`].
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

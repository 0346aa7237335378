//! The words of Backstay: typed ids, what a virtual machine is made of, the states it can be in and which verb is
//! legal in which state. No I/O, no clock, no randomness: time and ids are arguments.

mod capacity;
mod checkpoint;
mod cpu;
mod ids;
mod layers;
mod limit;
mod name;
mod share;
mod size;
mod state;
mod vm;

pub use capacity::{
    CpuHost, CpuPromise, CpuRefusal, MemoryHost, MemoryNeed, MemoryPromise, MemoryRefusal, admit_cpu,
    admit_memory, memory_kept_by_default, memory_left,
};
pub use checkpoint::{Checkpoint, CheckpointDisk, CheckpointTree, MemoryMethod, TreeError, TreeLine};
pub use cpu::{CpuControl, CpuError};
pub use ids::{CheckpointId, Generation, NicId, ParseIdError, TaskId, VmId};
pub use layers::{FilePlan, FileStep, KeptFile, Layers, Merging, StateOf};
pub use limit::{IoLimit, IoLimitError};
pub use name::{NameError, VmName};
pub use share::{Cores, CpuShare, Quota, weights};
pub use size::{ByteSize, ParseSizeError};
pub use state::{Refusal, VmState, VmVerb, allowed};
pub use vm::{
    AccelPolicy, BootDevice, DriveMedia, DriveSlot, DriveSpec, HostStartAction, HostStopAction, MacAddress,
    NicAttachment, NicModel, NicSpec, ParseMacError, ParseSlotError, RecoveryAction, SpecError,
    VirtualHardware, VmSpec,
};

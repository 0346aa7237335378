//! Virtual machines.

use crate::disk::{DiskLimit, DiskLimitChange};
use crate::schema;
use backstay_model::{
    AccelPolicy, BootDevice, CheckpointId, DriveSlot, HostStartAction, HostStopAction, MacAddress, NicId,
    NicModel, RecoveryAction, TaskId, VirtualHardware, VmId, VmState,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// A virtual machine: its configuration, and what it does now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its GUID.
    #[schema(value_type = Uuid)]
    pub id: VmId,
    /// Display name.
    pub name: String,
    /// Free text.
    pub notes: String,
    /// What it does.
    #[schema(value_type = schema::VmState)]
    pub state: VmState,
    /// Why, where that needs words.
    #[serde(default)]
    pub state_reason: Option<String>,
    /// Counts changes of the configuration; an update names the one it replaces.
    pub generation: u64,
    /// Virtual hardware.
    #[schema(value_type = schema::VirtualHardware)]
    pub hardware: VirtualHardware,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Virtual processors, 1–240.
    pub cpus: u32,
    /// Percent of the virtual processors that is always available, 0–100.
    pub cpu_reserve: u32,
    /// Percent of the virtual processors that is never exceeded, 1–100.
    pub cpu_limit: u32,
    /// Relative weight under contention, 1–10000.
    pub cpu_weight: u32,
    /// The reserve in cores of the host.
    #[serde(default)]
    pub cpu_reserve_cores: f64,
    /// The limit in cores of the host.
    #[serde(default)]
    pub cpu_limit_cores: f64,
    /// Drives in slot order.
    pub drives: Vec<Drive>,
    /// SCSI controllers the guest has, 0–3: disks on them come and go while it runs.
    #[serde(default)]
    pub scsi_controllers: Vec<u8>,
    /// Network cards.
    pub nics: Vec<Nic>,
    /// Boot order.
    #[schema(value_type = Vec<schema::BootDevice>)]
    pub boot_order: Vec<BootDevice>,
    /// The SMBIOS system UUID the guest sees.
    pub bios_guid: Uuid,
    /// Versioned QEMU machine type.
    pub machine_type: String,
    /// Accelerator.
    #[schema(value_type = schema::AccelPolicy)]
    pub accel: AccelPolicy,
    /// When QEMU ends by itself.
    #[schema(value_type = schema::RecoveryAction)]
    pub recovery: RecoveryAction,
    /// When the host starts.
    #[schema(value_type = schema::HostStartAction)]
    pub host_start: HostStartAction,
    /// When the host stops.
    #[schema(value_type = schema::HostStopAction)]
    pub host_stop: HostStopAction,
    /// Seconds after the start of the host before it is started.
    #[serde(default)]
    pub start_delay_s: u32,
    /// Smaller numbers are started first and stopped last.
    #[serde(default)]
    pub start_order: u32,
    /// The configuration file.
    #[schema(value_type = String)]
    pub config_file: PathBuf,
    /// The folder that holds `Virtual Machines` and `Snapshots` of this machine.
    #[schema(value_type = String)]
    pub folder: PathBuf,
    /// Whether it is a template: cloned, and never started or changed.
    #[serde(default)]
    pub template: bool,
    /// How many checkpoints it has.
    pub checkpoints: u32,
    /// The checkpoint Now continues from.
    #[schema(value_type = Option<Uuid>)]
    pub now_parent: Option<CheckpointId>,
    /// The processes, while it is on.
    #[serde(default)]
    pub run: Option<RunInfo>,
    /// The task that works on it now.
    #[serde(default)]
    #[schema(value_type = Option<Uuid>)]
    pub task: Option<TaskId>,
    /// Verbs that are not possible now, and why.
    pub blocked: Vec<VmBlocked>,
    /// What deserves attention: a file that was found elsewhere, a disk whose merge is pending …
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A verb that is not possible now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmBlocked {
    /// The verb as the command line spells it.
    pub verb: String,
    /// Why, and what to do.
    pub reason: String,
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunInfo {
    /// The worker's process.
    pub worker_pid: u32,
    /// QEMU's process.
    #[serde(default)]
    pub qemu_pid: Option<u32>,
    /// `10.0.2`.
    pub qemu_version: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Why that accelerator.
    pub accelerator_reason: String,
    /// How often the recovery action has started it again without ten minutes of quiet in between.
    #[serde(default)]
    pub recoveries: u32,
    /// When QEMU was started.
    #[schema(value_type = schema::Timestamp)]
    pub started: Timestamp,
    /// Serial console socket.
    #[schema(value_type = String)]
    pub console_socket: PathBuf,
    /// VNC socket.
    #[schema(value_type = String)]
    pub vnc_socket: PathBuf,
    /// How limit and weight of the processors act, or why they do not (`none: …`).
    #[serde(default)]
    pub processors: String,
}

/// What can be in a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DriveKind {
    /// A virtual hard disk.
    Disk,
    /// A CD/DVD image.
    Iso,
    /// A CD/DVD drive without a medium.
    EmptyOptical,
}

/// A drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drive {
    /// Where it is attached.
    #[schema(value_type = schema::DriveSlot)]
    pub slot: DriveSlot,
    /// What is in it.
    pub kind: DriveKind,
    /// The file, unless it is empty.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// The disk is a block device of the host, which the machine has for itself.
    #[serde(default)]
    pub pass_through: bool,
    /// How much the machine may ask of the disk; none: as much as it can.
    #[serde(default)]
    pub limit: Option<DiskLimit>,
}

/// A system whose limits are to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Compat {
    /// Hyper-V of Windows Server 2008: no IDE disk above 127 GiB.
    #[serde(rename = "2008")]
    Hyperv2008,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Nic {
    /// Device instance GUID.
    #[schema(value_type = Uuid)]
    pub id: NicId,
    /// Its address.
    #[schema(value_type = schema::MacAddress)]
    pub mac: MacAddress,
    /// The card the guest sees.
    #[schema(value_type = schema::NicModel)]
    pub model: NicModel,
    /// `disconnected`, `user`, or `switch`.
    pub attachment: String,
    /// The virtual switch.
    #[serde(default)]
    pub switch: Option<String>,
}

/// Machines, by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmList {
    /// The machines.
    pub items: Vec<Vm>,
    /// Configurations that could not be read: path and reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

/// Which machines.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct VmQuery {
    /// Only the one with this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Only those in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub state: Option<VmState>,
}

/// Options of every call that changes something.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MutateQuery {
    /// Answer with the plan and do nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// A new machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCreate {
    /// Display name, 1–100 characters.
    pub name: String,
    /// Free text.
    #[serde(default)]
    pub notes: String,
    /// Virtual hardware.
    #[serde(default)]
    #[schema(value_type = schema::VirtualHardware)]
    pub hardware: VirtualHardware,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Virtual processors; 1 unless given.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Processor reserve in percent.
    #[serde(default)]
    pub cpu_reserve: Option<u32>,
    /// Processor limit in percent.
    #[serde(default)]
    pub cpu_limit: Option<u32>,
    /// Processor weight.
    #[serde(default)]
    pub cpu_weight: Option<u32>,
    /// Drives. Those without a slot take the next free one, IDE first.
    #[serde(default)]
    pub drives: Vec<DriveRequest>,
    /// Network cards.
    #[serde(default)]
    pub nics: Vec<NicRequest>,
    /// Boot order.
    #[serde(default)]
    #[schema(value_type = Option<Vec<schema::BootDevice>>)]
    pub boot_order: Option<Vec<BootDevice>>,
    /// Versioned QEMU machine type; the newest one known unless given.
    #[serde(default)]
    pub machine_type: Option<String>,
    /// Accelerator.
    #[serde(default)]
    #[schema(value_type = schema::AccelPolicy)]
    pub accel: AccelPolicy,
    /// When QEMU ends by itself.
    #[serde(default)]
    #[schema(value_type = schema::RecoveryAction)]
    pub recovery: RecoveryAction,
    /// When the host starts.
    #[serde(default)]
    #[schema(value_type = schema::HostStartAction)]
    pub host_start: HostStartAction,
    /// When the host stops.
    #[serde(default)]
    #[schema(value_type = schema::HostStopAction)]
    pub host_stop: HostStopAction,
    /// Seconds after the start of the host before it is started, at most 86,400.
    #[serde(default)]
    pub start_delay_s: u32,
    /// Smaller numbers are started first and stopped last.
    #[serde(default)]
    pub start_order: u32,
    /// Refuse what that system could not run, where otherwise there is a warning.
    #[serde(default)]
    pub compat: Option<Compat>,
    /// GUID; a new one unless given.
    #[serde(default)]
    #[schema(value_type = Option<Uuid>)]
    pub id: Option<VmId>,
}

impl VmCreate {
    /// A machine with `memory_mib` MiB and everything else at its default.
    #[must_use]
    pub fn new(name: impl Into<String>, memory_mib: u64) -> Self {
        Self {
            name: name.into(),
            notes: String::new(),
            hardware: VirtualHardware::default(),
            memory_mib,
            cpus: None,
            cpu_reserve: None,
            cpu_limit: None,
            cpu_weight: None,
            drives: Vec::new(),
            nics: Vec::new(),
            boot_order: None,
            machine_type: None,
            accel: AccelPolicy::default(),
            recovery: RecoveryAction::default(),
            host_start: HostStartAction::default(),
            host_stop: HostStopAction::default(),
            start_delay_s: 0,
            start_order: 0,
            compat: None,
            id: None,
        }
    }
}

/// A drive to attach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveRequest {
    /// Where; the next free place unless given.
    #[serde(default)]
    #[schema(value_type = Option<schema::DriveSlot>)]
    pub slot: Option<DriveSlot>,
    /// What.
    pub kind: DriveKind,
    /// The file: absolute path. With `create`, where the new file goes; it is made in `Virtual Hard Disks` unless given.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// Make the disk first.
    #[serde(default)]
    pub create: Option<NewDisk>,
}

/// A disk to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDisk {
    /// Bytes the guest sees, a multiple of 512.
    pub size: u64,
    /// Fixed or dynamic.
    #[serde(default)]
    pub disk_type: DiskType,
}

/// Kinds of new disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskType {
    /// All space is allocated at once.
    Fixed,
    /// It grows with its content.
    #[default]
    Dynamic,
}

/// A network card to add.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicRequest {
    /// Its address; a new one unless given.
    #[serde(default)]
    #[schema(value_type = Option<schema::MacAddress>)]
    pub mac: Option<MacAddress>,
    /// The card the guest sees.
    #[serde(default)]
    #[schema(value_type = schema::NicModel)]
    pub model: NicModel,
    /// A virtual switch by name; QEMU's user-mode network unless given.
    #[serde(default)]
    pub switch: Option<String>,
    /// Cable unplugged.
    #[serde(default)]
    pub disconnected: bool,
}

/// A folder, or a configuration file in it, whose machine or machines are to be brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRegister {
    /// Absolute path.
    #[schema(value_type = String)]
    pub path: PathBuf,
}

/// A registered folder that is to be forgotten.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmUnregister {
    /// Its absolute path, or the name or GUID of the one machine in it.
    pub target: String,
}

/// A disk that is to be moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskMove {
    /// Which disk.
    #[schema(value_type = schema::DriveSlot)]
    pub slot: DriveSlot,
    /// The folder its file goes to: absolute path, made where it is missing.
    #[schema(value_type = String)]
    pub folder: PathBuf,
}

/// A new display name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRename {
    /// 1–100 characters.
    pub name: String,
}

/// How to start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmStart {
    /// With the processors stopped.
    #[serde(default)]
    pub paused: bool,
}

/// How to delete.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct VmDelete {
    /// Answer with the plan and do nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Delete the disk files too that no other machine uses; they are kept otherwise.
    #[serde(default)]
    pub delete_disks: bool,
}

/// Settings to change; what is not given stays. Most need the machine off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// Refuse unless the configuration is still this one.
    #[serde(default)]
    pub generation: Option<u64>,
    /// Refuse what that system could not run, where otherwise there is a warning.
    #[serde(default)]
    pub compat: Option<Compat>,
    /// Free text.
    #[serde(default)]
    pub notes: Option<String>,
    /// Guest memory in MiB.
    #[serde(default)]
    pub memory_mib: Option<u64>,
    /// Virtual processors.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Processor reserve in percent.
    #[serde(default)]
    pub cpu_reserve: Option<u32>,
    /// Processor limit in percent.
    #[serde(default)]
    pub cpu_limit: Option<u32>,
    /// Processor weight.
    #[serde(default)]
    pub cpu_weight: Option<u32>,
    /// Boot order.
    #[serde(default)]
    #[schema(value_type = Option<Vec<schema::BootDevice>>)]
    pub boot_order: Option<Vec<BootDevice>>,
    /// Accelerator.
    #[serde(default)]
    #[schema(value_type = Option<schema::AccelPolicy>)]
    pub accel: Option<AccelPolicy>,
    /// When QEMU ends by itself.
    #[serde(default)]
    #[schema(value_type = Option<schema::RecoveryAction>)]
    pub recovery: Option<RecoveryAction>,
    /// When the host starts.
    #[serde(default)]
    #[schema(value_type = Option<schema::HostStartAction>)]
    pub host_start: Option<HostStartAction>,
    /// When the host stops.
    #[serde(default)]
    #[schema(value_type = Option<schema::HostStopAction>)]
    pub host_stop: Option<HostStopAction>,
    /// Seconds after the start of the host before it is started, at most 86,400.
    #[serde(default)]
    pub start_delay_s: Option<u32>,
    /// Smaller numbers are started first and stopped last.
    #[serde(default)]
    pub start_order: Option<u32>,
    /// Limits of disks, at any time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disk_limits: Vec<DiskLimitChange>,
    /// Drives to attach. While the machine runs, hard disks on SCSI.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_drives: Vec<DriveRequest>,
    /// Drives to detach; their files stay. While the machine runs, hard disks on SCSI.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<schema::DriveSlot>)]
    pub remove_drives: Vec<DriveSlot>,
    /// Network cards to add.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_nics: Vec<NicRequest>,
    /// Network cards to remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Uuid>)]
    pub remove_nics: Vec<NicId>,
}

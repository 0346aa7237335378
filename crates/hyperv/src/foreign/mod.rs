//! Machines of other hosts: one neutral description for every form that Hyper-V's hosts leave behind.
//!
//! | form | written by | reader |
//! |---|---|---|
//! | `.xml` | Windows Server 2008 to 2012 R2, and this product | [`read_xml`] |
//! | `.exp` | an export of Windows Server 2008 and 2008 R2 | [`read_exp`] |
//! | `.vmcx` | Windows Server 2016 and later | [`read_vmcx`] |
//! | JSON | `backstay-collect.ps1` on a host that still runs | [`read_collected`] |
//!
//! [`read`] looks at the bytes and takes the right one. All of them give [`Document`]s: a [`Machine`] with its state of
//! now and the checkpoints its file tells of, or a [`Checkpoint`] that lies in a file of its own. Whoever scans a folder
//! puts the second into the first with [`Machine::adopt`].
//!
//! Nothing here is judged: paths, names and numbers are as the source wrote them, and what nobody understood is listed
//! with its path, value and the reason ([`NotUnderstood`]). [`Machine::to_spec`] makes a machine of this product of it
//! and tells every [`Difference`]; [`export_files`] goes the other way.
//!
//! A configuration file of ours comes of it in one of two ways. A `.xml` keeps every node it has: parse it as
//! [`VmConfig`](crate::VmConfig) and apply the converted machine to it. For the other forms [`Machine::to_config`] makes a
//! tree that holds what a [`VmSpec`](backstay_model::VmSpec) does not (serial numbers, clock, integration services), to which
//! the converted machine is applied likewise.

mod adopt;
mod collector;
mod convert;
mod device_names;
mod exp;
mod exp_rasd;
mod export;
mod from_tree;
mod hardware;
mod machine;
mod path;
mod read;
mod to_tree;
mod tree_devices;
mod write_exp;

pub use convert::{Conversion, ConvertOptions, Difference, Level};
pub use export::{ExportError, ExportFile, Target, export_files, from_config};
pub use hardware::{
    Bandwidth, Bus, ComPort, Controller, Drive, DriveKind, DriveQos, DynamicMemory, Firmware, Integration,
    IntegrationService, Memory, Nic, NicKind, OtherDevice, Processors, Settings, Vlan,
};
pub use machine::{
    Actions, Checkpoint, CheckpointKind, DataRoots, Document, Machine, NotUnderstood, Recovery, SavedState,
    Source, SourceKind,
};
pub use path::{WindowsPath, file_name, is_windows};
pub use read::{Place, ReadError, read, read_collected, read_exp, read_vmcx, read_xml, sniff};

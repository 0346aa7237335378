//! Hyper-V's configuration files and what they say about a virtual machine.
//!
//! [`VmConfig`] is the lossless tree of a `.xml` configuration as Windows Server 2008 to 2012 R2 write it: whatever
//! it does not understand stays where it was. Our own data lives in one node of the root, `<backstay>`.
//! [`foreign`] reads machines of other hosts, whatever form they were left in, and writes exports for them; [`CimDocument`]
//! and [`vmcx::Store`] are the lossless trees of the other two forms.
//! Pure: bytes in, bytes out; time and ids are arguments. The format is described in `docs/formats/hyperv-xml.md`,
//! the others in `exp.md`, `vmcx.md` and `collector.md` beside it.

mod apply;
mod cim;
mod config;
mod devices;
mod error;
mod files;
pub mod foreign;
pub mod fuzz;
mod ours;
mod read;
mod spec;
mod template;
mod tree;
pub mod vmcx;
mod write;

pub use cim::{CimDocument, CimValue, Instance};
pub use config::{VmConfig, filetime_from_unix_ms, unix_ms_from_filetime};
pub use error::{ApplyError, ParseError, Warning};
pub use ours::{CheckpointMeta, LayerStep, PendingCheckpoint};
pub use tree::{Element, Node, Value};

//! Hyper-V's configuration files and what they say about a virtual machine.
//!
//! [`VmConfig`] is the lossless tree of a `.xml` configuration as Windows Server 2008 to 2012 R2 write it: whatever
//! it does not understand stays where it was. Our own data lives in one node of the root, `<backstay>`.
//! Pure: bytes in, bytes out; time and ids are arguments. The format is described in `docs/formats/hyperv-xml.md`.

mod apply;
mod config;
mod devices;
mod error;
mod files;
mod ours;
mod read;
mod spec;
mod template;
mod tree;
mod write;

pub use config::{VmConfig, filetime_from_unix_ms, unix_ms_from_filetime};
pub use error::{ApplyError, ParseError, Warning};
pub use ours::{CheckpointMeta, LayerStep, PendingCheckpoint};
pub use tree::{Element, Node, Value};

//! One virtual machine's process: joins QEMU and the disk engine behind a control socket.

pub mod checkpoint;
pub mod client;
pub mod console;
pub mod control;
mod durable;
pub mod events;
pub mod instance;
mod lock;
pub mod run_dir;
pub mod server;
pub mod spawn;

pub use checkpoint::descriptor::{
    Descriptor, DescriptorError, FileFacts, Hardware, HostFacts, Reason, check_restorable, read_descriptor,
};
pub use checkpoint::stream::file_facts;
pub use checkpoint::tops::Tops;

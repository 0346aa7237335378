//! One virtual machine's process: joins QEMU and the disk engine behind a control socket.
//!
//! ```text
//!  daemon ── worker.sock ─► server ─► owner ─► QEMU (QMP)
//!  viewers ─ console.sock ─► console ────────► serial port
//!  QEMU ──── nbd.sock ─► disks (NBD server, disk engine) ─► files
//!  QEMU ──── stream.sock ─► checkpoint job ─► .bin, .vsv
//! ```
//! The worker may die at any moment: QEMU lives on and waits for its disks, and the next worker, started for the same
//! run folder, takes over what `launch.json`, `instance.json`, `tops.json` and `checkpoint.json` tell.

pub mod checkpoint;
pub mod client;
mod console;
pub mod control;
mod disks;
pub mod durable;
pub mod events;
pub mod guard;
pub mod inspect;
mod instance;
mod kinds;
mod lock;
mod logs;
mod opening;
mod owner;
pub mod processors;
mod report;
mod run_dir;
pub mod sandbox;
pub mod saved_state;
mod server;
pub mod spawn;
mod start;
mod worker;

pub use checkpoint::descriptor::{
    Descriptor, DescriptorError, FileFacts, FileStamp, Hardware, HostFacts, Reason, check_memory_file,
    check_restorable, read_descriptor,
};
pub use checkpoint::hardware;
pub use checkpoint::stream::file_facts;
pub use checkpoint::tops::Tops;
pub use worker::run;

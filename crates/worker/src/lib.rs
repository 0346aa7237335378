//! One virtual machine's process: joins QEMU and the disk engine behind a control socket.

pub mod control;

//! QEMU's control protocol: one JSON object per line on a unix socket.

mod client;
mod commands;
mod error;
mod types;

pub use client::Qmp;
pub use error::QmpError;
pub use types::{
    BlockDevice, Capability, CpuThread, Greeting, MigrateInfo, MigrateParameters, MigrationStatus, QmpEvent,
    RamInfo, RunState, StatusInfo,
};

#[cfg(test)]
mod tests;

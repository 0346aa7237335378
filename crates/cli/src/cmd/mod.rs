//! One module per noun.

pub mod checkpoint;
pub mod completions;
pub mod daemon;
pub mod disk;
pub mod event;
pub mod explain;
pub mod host;
pub mod man;
pub mod sandbox_exec;
pub mod task;
pub mod vm;
pub mod worker;

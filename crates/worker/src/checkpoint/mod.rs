//! Checkpoints of a running or paused machine: disks and memory at one instant.

pub mod descriptor;
pub mod plan;
pub mod stream;
pub mod tops;

//! Whole stories: a user's commands against the real daemon, real workers and real guests, and what happens when any of
//! them is killed.

#![expect(clippy::unwrap_used, reason = "a panic in a test is the report")]

mod bad_input;
mod bad_medium;
mod cancel;
mod checkpoint;
mod clone;
mod controllers;
mod disk_limits;
mod events;
mod full_disk;
mod held_disks;
mod host_actions;
mod hotplug;
mod kernel_log;
mod kill_checkpoint;
mod kill_daemon;
mod kill_qemu;
mod kill_worker;
mod life;
mod linux;
mod live_disk;
mod live_grow;
mod live_merge;
mod low_space;
mod merge_no_space;
mod merge_waits;
mod metrics;
mod move_disk;
mod package;
mod pass_through;
mod processors;
mod sandbox;
mod save;
mod storage_loss;
mod tree;
mod tree_random;
mod unprivileged;
mod upgrade;
mod vhdx;

/// The first disk, as the BIOS numbers them.
const FIRST: u8 = 0x80;
/// The second one.
const SECOND: u8 = 0x81;

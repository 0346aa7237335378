//! The disk engine as its callers see it: on the host's files, and on a simulated file system that loses things.

#![expect(clippy::unwrap_used, reason = "a panic in a test is the report")]

mod bad_sectors;
mod chain;
mod compact;
mod compact_crash;
mod convert;
mod crash;
mod fallback;
mod foreign;
mod free_space;
mod host;
mod kill;
mod leftovers;
mod loop_fs;
mod merge;
mod merge_crash;
mod model;
mod offline_crash;
mod reflink;
mod relocate;
mod relocate_crash;
mod resize;
mod resize_crash;
mod shrink;
mod simfs;
mod space;
mod stress;
mod support;
mod switch;
mod through_qemu;
mod vhdx;

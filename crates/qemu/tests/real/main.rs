//! Tests against a real QEMU. One program, so that it is linked once.
#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the report")]

mod accel;
mod common;
mod control;
mod golden;
mod guest;
mod process;

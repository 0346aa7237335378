//! The executable as a user sees it.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

mod answers;
mod conventions;
mod convert;
mod daemon;
mod disk;
mod explain;
mod merge;
mod mount;
mod reference;
mod resize;
mod support;

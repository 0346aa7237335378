//! The disk engine.

mod backend;

pub use backend::{Backend, BlockStatus, ZeroMode};

//! The disk engine.

mod backend;
pub mod nbd;

pub use backend::{Backend, BlockStatus, ZeroMode};

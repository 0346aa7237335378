//! The VHD format.

mod storage;

pub use storage::Storage;

//! The VHDX side of the crate.

pub mod common;
mod corpus;
mod crash;
mod fixtures;
mod linkage;
mod log;
mod model;
mod oracles;
mod refusals;

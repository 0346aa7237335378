//! The VHDX side of the crate.

pub mod common;
mod corpus;
mod crash;
mod fixtures;
mod linkage;
mod log;
mod merge;
mod model;
mod oracles;
mod refusals;
mod repair;
mod resize;
mod stress;

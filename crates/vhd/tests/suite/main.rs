//! Everything a user of the crate would notice, in one program so that it links once.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a test")]
#![expect(clippy::cast_possible_truncation, reason = "test sizes are small")]
#![expect(clippy::disallowed_methods, reason = "tests hold real files against real programs")]

mod common;
mod corpus;
mod crash;
mod files;
mod fixtures;
mod layers;
mod model;
mod oracles;
mod orders;
mod parents;
mod plans;
mod refusals;
mod reparent;
mod vhdx;

//! Machines of other hosts: what Hyper-V's own files say, what ours say to other readers, and hostile bytes.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

mod collector;
mod common;
mod convert;
mod corpus;
mod exp;
mod export;
mod hostile;
mod vmcx;
mod xml;

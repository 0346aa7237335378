//! Everything about one QEMU process: how a [`backstay_model::VmSpec`] becomes its command line ([`argv`]), starting,
//! adopting and outliving it ([`process`]), and talking to it ([`qmp`]).
//!
//! Decisions are pure functions; [`process`] and [`qmp`] are the thin drivers that act.

pub mod accel;
pub mod argv;
pub mod lifecycle;
pub mod paths;
pub mod process;
pub mod qmp;
#[doc(hidden)]
pub mod testing;
pub mod version;

//! An NBD server: disks for QEMU and other clients over a unix socket.
//!
//! Speaks the fixed newstyle handshake with simple and structured replies as in the NBD protocol document
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>, "proto.md" below).
//! [`proto`], [`negotiate`] and [`request`] are pure: bytes in, decisions out. The rest drives sockets and threads.

mod conn;
mod export;
mod fuzz;
pub mod negotiate;
mod outbox;
pub mod proto;
mod reader;
pub mod request;
mod server;
mod throttle;
mod together;

#[doc(hidden)]
pub use fuzz::fuzz_nbd;
pub use server::{BindError, ExportError, ExportSpec, Server, Shutdown};
pub use throttle::Hurry;

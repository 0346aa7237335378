//! Heartbeats and fencing: when a node may write, and when another may take what it had.
//!
//! Each node commits a heartbeat by compare-and-swap on its own record every *I*. Its right to write ends at (its clock just
//! before it sent the heartbeat) + *L*. A taker waits *W* on its own clock since it first saw the last revision, fences with a
//! compare-and-swap on that revision, and takes groups with the next epoch. The heartbeat was sent before it was committed, and
//! seen after; the compare-and-swap proves that it was the last. So with clocks that are wrong by at most *ρ* the old right ends
//! before the new one begins if W(1−ρ) > L(1+ρ) + δ. No wall clock, no lease of the store, and no trust in its leader.

mod agent;
mod record;
mod taker;
#[cfg(test)]
mod tests;
mod timing;

pub use agent::{Agent, AgentEffect, AgentEvent, Rung};
pub use record::{Member, Owner, Standing};
pub use taker::{Presence, Taker, TakerEffect};
pub use timing::{Timing, TimingError};

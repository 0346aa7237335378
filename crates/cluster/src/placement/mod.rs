//! Where a group can be and where it is best: memory, processor reserve, reachable disks, switches, owners, anti-affinity.

mod fleet;
mod pack;
mod rating;

pub use fleet::{Ask, Fleet, Wish};
pub use pack::{Packing, SEARCH, pack};
pub use rating::{Rating, Refusal, Stars, rate};

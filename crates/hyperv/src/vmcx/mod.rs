//! The form of `.vmcx` files: a store of typed values in a tree, as Windows Server 2016 and later keep configurations in.
//!
//! The layout is in `docs/formats/vmcx.md`. Saved states (`.vmrs`) have the same form and other values. Files that were
//! not closed cleanly are refused: how the pages of a replay log follow its entries is not documented.

mod layout;
mod parse;
mod store;
mod write;

pub use layout::{VmcxError, looks_like};
pub use store::{Content, Entry, Store};

//! The VHDX format (MS-VHDX 8.0): the same shape as the VHD side of this crate. Reads and writes metadata through
//! [`crate::Storage`], tells its caller where data is and where it goes, and never touches a parent.
//!
//! Metadata goes through the log: one entry, written and not synced, for each change; one sync for all of them at a flush.

mod bat;
pub mod check;
mod compact;
pub mod convert;
pub mod create;
mod errors;
#[doc(hidden)]
pub mod fuzz;
mod header;
mod image;
mod info;
mod layout;
mod linkage;
mod locator;
mod log;
mod merge;
mod metadata;
mod open;
mod pages;
pub mod parent;
mod places;
mod region;
pub mod repair;
pub mod resize;
mod session;
mod space;
mod view;
mod write;

pub use errors::{OpenError, Structure};
pub use image::Image;
pub use info::{ImageInfo, Warning};
pub use linkage::MAX_STORED_LOCATOR;
pub use locator::Locator;
pub(crate) use open::kinship;
pub use open::{OpenOptions, WriteIds};

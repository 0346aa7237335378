//! The VHD and VHDX formats: what lies where in a file, what to write when so that no crash loses an acknowledged flush, and plans
//! for making, checking, repairing and converting files.
//!
//! The crate never opens a path and moves no payload. It reads and writes metadata through [`Storage`] and tells its
//! caller where data is ([`Image::resolve_read`]) and where it goes ([`Image::begin_write`]). Time and identities are
//! arguments.

mod alloc;
mod bitmap;
pub mod check;
pub mod compact;
pub mod convert;
pub mod create;
mod errors;
mod flush;
pub mod format;
#[doc(hidden)]
pub mod fuzz;
mod image;
mod info;
mod kinship;
mod layer;
mod locate;
pub mod map;
mod mark;
mod merge;
mod open;
mod overlap;
pub mod parent;
pub mod plan;
pub mod repair;
pub mod reparent;
pub mod resize;
mod shadow;
mod storage;
#[doc(hidden)]
pub mod testing;
pub mod vhdx;
mod write;

pub use errors::{MetaError, OpenError};
pub use format::{
    footer::{DiskType, VhdTime},
    geometry::{Chs, SizeRule},
    locator::LocatorKind,
};
pub use image::{Image, ReadExtent, Source};
pub use info::{ImageInfo, ParentLink, ParentLocator, Warning};
pub use kinship::{Kinship, KinshipError, kinship};
pub use layer::{Format, LayerFormat};
pub use mark::mark_saved;
pub use merge::FileSpan;
pub use open::{OpenOptions, is_split_extension};
pub use shadow::{Shadow, ShadowSlot};
pub use storage::Storage;
pub use write::{WriteExtent, WriteTicket};

//! The disk engine: opens chains of VHD or VHDX files and raw disks, moves the bytes, switches layers, converts, and exports
//! disks by NBD.
//!
//! ```text
//!  write(offset, data)
//!    │ Quiesce: one read lock; a layer switch is the writer
//!    │ zeros over nothing are left out (4 KiB pieces)
//!    ▼
//!  Image::begin_write ── block absent? ── take one from the reserved extent; its table entry goes to the kernel
//!    │                                    (a new extent is synced before any entry points into it)
//!    ▼
//!  WriteGate ─► pwrite of the payload to each file range
//!    ▼
//!  Image::complete_write ── differencing: new bits → shadow file (tmpfs) → visible to readers
//!    ▼
//!  ChangedRanges, counters, acknowledgement
//! ```
//! What is safe when:
//! - *acknowledged*: everything is in the kernel (page cache, shadow file), so the death of this process loses nothing;
//! - *flushed*: data synced, then the bitmaps that speak of it written and synced, so power loss loses nothing. Calls
//!   that wait at the same time share one round. After a failed sync nothing is acknowledged any more.
//!
//! Reads, and writes to blocks that exist, take no mutex and allocate nothing. Only the top of a chain is written to,
//! under an exclusive lock; parents are read under shared ones. New files are written under a temporary name, synced,
//! renamed, and the folder synced.

mod backend;
mod batch;
mod chain;
mod compact;
mod convert;
mod create;
pub mod device;
mod disk;
mod error;
mod family;
mod flat;
mod foreign;
pub mod fs;
mod grace;
mod image;
mod inspect;
mod kinship;
mod layer;
mod limit;
mod locator;
mod merge;
pub mod nbd;
mod options;
mod parent;
mod partitions;
mod quiesce;
mod relocate;
mod resize;
mod saved_state;
mod seams;
mod served;
mod settle;
mod shadow;
mod share;
mod stats;
mod status;
mod switch;
mod temp;
mod threads;
mod volume;
mod walk;
mod write;
mod zero;

pub use backstay_vhd::Kinship;

pub use backend::{Backend, BatchData, BatchDone, BatchOp, BlockStatus, ZeroMode};
pub use chain::{ChainWarning, MAX_DEPTH};
pub use compact::{CompactError, CompactPlan, Compacted, Dropping, compact_offline, plan_compact};
pub use convert::{
    BadRange, ConvertError, ConvertReport, ConvertRequest, ConvertTo, Progress, Reflink, convert,
    plan_convert, source_files,
};
pub use create::{CreateError, DEFAULT_BLOCK_SIZE, Identity, NewDisk, NewDiskPlan, create_disk};
pub use disk::{CloseError, Disk, LayerInfo};
pub use error::OpenError;
pub use family::children_beside;
pub use foreign::{ForeignError, ForeignFormat, ForeignSource, HeaderError, What};
pub use image::ImageInfo;
pub use inspect::{MapError, Report, check_file, look_at, map_file};
pub use kinship::{KinshipError, kinship};
pub use limit::{Bucket, Cost, RateLimit};
pub use merge::{
    MergeControl, MergeError, MergePlan, MergeProgress, MergeStep, Merged, ReparentError, ReparentPlan,
    children_of, merge_offline, plan_merge, plan_reparent, reparent,
};
pub use options::{CacheMode, DiskFormat, DiskOptions};
pub use partitions::{Partition, partitions};
pub use relocate::{RelocateControl, RelocateError};
pub use resize::{
    Grown, NewSize, ResizeControl, ResizeError, ResizePlan, UsedBy, plan_resize, resize_offline,
};
pub use saved_state::mark_saved_state;
pub use seams::{ChangedRanges, WriteGate};
pub use served::{DiskRange, FileRange};
pub use settle::settle_parents;
pub use stats::DiskStats;
pub use switch::{Switch, SwitchError, Switched, switch_all, switch_back_all};
pub use temp::remove_unfinished;
pub use volume::{SpaceState, VolumeSpace, fuzz_volume};

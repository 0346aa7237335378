//! The disk engine.

mod backend;
mod chain;
mod convert;
mod create;
mod disk;
mod error;
pub mod fs;
mod inspect;
mod layer;
pub mod nbd;
mod options;
mod parent;
mod quiesce;
mod seams;
mod shadow;
mod stats;
mod status;
mod switch;
mod temp;
mod walk;
mod write;
mod zero;

pub use backend::{Backend, BlockStatus, ZeroMode};
pub use chain::{ChainWarning, MAX_DEPTH};
pub use convert::{ConvertError, ConvertReport, ConvertRequest, ConvertTo, Progress, convert, plan_convert};
pub use create::{
    CreateError, DEFAULT_BLOCK_SIZE, Identity, NewDisk, NewDiskPlan, create_disk, format_for_new,
};
pub use disk::{CloseError, Disk, LayerInfo};
pub use error::OpenError;
pub use inspect::{
    ChainInfo, DiskRange, FileRange, MapError, RepairError, check_file, info, map, repair_file,
};
pub use options::{DiskFormat, DiskOptions};
pub use seams::{ChangedRanges, WriteGate};
pub use stats::DiskStats;
pub use switch::{Switch, SwitchError, Switched, switch_all, switch_back_all};

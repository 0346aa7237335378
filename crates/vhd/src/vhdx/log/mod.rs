//! The log (MS-VHDX 2.3): changes of metadata wait here until they are in their places.

pub(crate) mod entry;
pub(crate) mod replay;
pub(crate) mod ring;
pub(crate) mod scan;

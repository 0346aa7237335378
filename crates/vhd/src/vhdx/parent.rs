//! Finding the parent of a differencing VHDX: relative path, volume path, absolute path (MS-VHDX 2.2.4), then what
//! [`crate::parent`] adds.

use std::{error::Error, io, path::Path, path::PathBuf};

use uuid::Uuid;

use super::{ImageInfo, locator::Locator};
use crate::{
    LocatorKind, ParentLink, ParentLocator, VhdTime,
    parent::{self, FoundParent, ParentError, ParentGate, ParentIdentity, ParentSearch},
};

impl Locator {
    /// The reference in the form that both formats share: the id is `parent_linkage`.
    #[must_use]
    pub fn link(&self) -> ParentLink {
        let paths = [
            (LocatorKind::Relative, &self.relative),
            (LocatorKind::Absolute, &self.volume),
            (LocatorKind::Absolute, &self.absolute),
        ];
        let locators = paths.into_iter().enumerate().filter_map(|(slot, (kind, path))| {
            let path = path.clone()?;
            let reserved = path.encode_utf16().count() as u64 * 2;
            Some(ParentLocator { slot, kind, path: Some(path), offset: 0, reserved })
        });
        ParentLink {
            unique_id: self.linkage,
            time_stamp: VhdTime(0),
            unicode_name: String::new(),
            locators: locators.collect(),
        }
    }
}

/// Tries the paths in order. A file is the parent if its DataWriteGuid, which the gate gives as
/// [`ParentIdentity::unique_id`], is `parent_linkage` or `parent_linkage2`.
///
/// # Errors
/// If no candidate is the parent.
pub fn find(
    locator: &Locator,
    search: &ParentSearch,
    gate: &dyn ParentGate,
) -> Result<FoundParent, ParentError> {
    parent::find(&locator.link(), search, &Either { gate, locator })
}

/// A gate that takes either linkage for the one that is looked for.
struct Either<'a> {
    gate: &'a dyn ParentGate,
    locator: &'a Locator,
}

impl ParentGate for Either<'_> {
    fn real_path(&self, path: &Path) -> io::Result<PathBuf> {
        self.gate.real_path(path)
    }

    fn match_case(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        self.gate.match_case(path)
    }

    fn identify(&self, path: &Path) -> Result<ParentIdentity, Box<dyn Error + Send + Sync>> {
        let identity = self.gate.identify(path)?;
        let unique_id = match self.locator.accepts(identity.unique_id) {
            true => self.locator.linkage,
            false => identity.unique_id,
        };
        Ok(ParentIdentity { unique_id, ..identity })
    }
}

/// Why a disk cannot be the parent of another although its id is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MismatchError {
    /// Sectors of different sizes.
    #[error("the disk has sectors of {child} bytes, its parent of {parent}; they have to be equal")]
    LogicalSector {
        /// The child's.
        child: u32,
        /// The parent's.
        parent: u32,
    },
    /// The parent was written to.
    #[error(
        "the parent was written to after the disk was made (its content is {found}, the disk needs {needed})"
    )]
    Changed {
        /// The parent's DataWriteGuid.
        found: Uuid,
        /// What the child names.
        needed: Uuid,
    },
}

/// Whether an opened parent fits its child.
///
/// # Errors
/// Why it does not.
pub fn check(child: &ImageInfo, parent: &ImageInfo) -> Result<(), MismatchError> {
    if child.logical_sector != parent.logical_sector {
        return Err(MismatchError::LogicalSector {
            child: child.logical_sector,
            parent: parent.logical_sector,
        });
    }
    match &child.parent {
        Some(locator) if !locator.accepts(parent.data_write_guid) => {
            Err(MismatchError::Changed { found: parent.data_write_guid, needed: locator.linkage })
        }
        _ => Ok(()),
    }
}
